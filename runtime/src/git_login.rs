//! What git shows a repository's server: a user name and a secret, told to git over a socket when it asks, and only for the very
//! repository that they are meant for.
//!
//! The value stands in no argument, no environment, no configuration and no file. git asks its helper, which is git's own client of
//! a credential cache; the other end of its socket is this process. The helper passes on questions alone, so git stores nothing.
//!
//! INVARIANT: an answer goes to processes of one user alone, whoever else can reach the socket, and only to a question for exactly
//! this scheme, host and path. A redirect or a submodule that leads elsewhere is another question. Not here: git (`checkout`), which
//! secret it is (the caller resolved it).

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::Duration;

use envforge_domain::ids::{UserId, WorkspaceId};
use envforge_domain::project::GitCredential;
use envforge_domain::secret::Secret;
use envforge_domain::time::Millis;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{Instant, timeout};
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use crate::failure::CheckoutFailure;
use crate::output::private_directory;
use crate::repository::Repository;
use crate::unix_user::UnixUser;

/// A question is a few lines.
const QUESTION_BYTES_MAX: u64 = 16 * 1024;
/// Bytes of a path at which sockets may lie, the shortest of common systems.
const SOCKET_PATH_BYTES_MAX: usize = 100;
const PATIENCE: Duration = Duration::from_secs(5);
/// Questions that are answered at the same time.
const QUESTIONS_MAX: usize = 32;

/// Without `Debug`: it holds a secret.
#[derive(Clone)]
pub struct GitLogin {
    pub username: String,
    pub value: Secret,
    /// From now on; `None`: for as long as it is asked for.
    pub valid_for: Option<Millis>,
}

/// What git is given for a shell.
#[derive(Clone)]
pub struct ShellLogin {
    pub login: GitLogin,
    /// Not for the first clone alone: for as long as the shell is open.
    pub inside: bool,
}

/// Where git asks in shells: one socket for all that somebody has open in a workspace, so that what lasts beyond one shell finds it
/// again in the next.
#[derive(Default)]
pub(crate) struct ShellLogins(Mutex<HashMap<(WorkspaceId, UserId), Weak<LoginSocket>>>);

impl ShellLogins {
    /// The socket that there is, with this login from now on; at `path` otherwise.
    pub(crate) fn open(
        &self,
        whose: (WorkspaceId, UserId),
        path: PathBuf,
        address: &str,
        login: GitLogin,
        user: Option<UnixUser>,
    ) -> Result<Arc<LoginSocket>, CheckoutFailure> {
        let mut logins = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        logins.retain(|_, socket| socket.strong_count() > 0);
        if let Some(socket) = logins.get(&whose).and_then(Weak::upgrade).filter(|socket| socket.scope.url == address) {
            socket.renew(login);
            return Ok(socket);
        }
        let socket = Arc::new(LoginSocket::open(path, address, login, Asker::Shell(user))?);
        logins.insert(whose, Arc::downgrade(&socket));
        Ok(socket)
    }
}

/// The one repository that a login is for, as git names it in its questions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Scope {
    /// The address itself.
    pub(crate) url: String,
    /// With its port, where it names one.
    pub(crate) host: String,
    pub(crate) path: String,
}

/// Whose git asks.
#[derive(Clone, Copy)]
pub(crate) enum Asker {
    EnvForge,
    /// That of a workspace's shells, by its user, where it has one of its own. One socket after another stands under one path.
    Shell(Option<UnixUser>),
}

/// Answers git's questions until it is dropped.
pub(crate) struct LoginSocket {
    path: PathBuf,
    /// Another one may stand under the same path since.
    stays: bool,
    scope: Scope,
    given: Arc<RwLock<Given>>,
    _serving: AbortOnDropHandle<()>,
}

struct Given {
    login: GitLogin,
    until: Option<Instant>,
}

impl From<GitLogin> for Given {
    fn from(login: GitLogin) -> Self {
        let until = login.valid_for.map(|length| Instant::now() + length.to_duration());
        Self { login, until }
    }
}

impl LoginSocket {
    /// For a git of EnvForge's own.
    ///
    /// # Errors
    /// As `open`.
    pub(crate) fn for_envforge(state_dir: &Path, address: &str, login: GitLogin) -> Result<Self, CheckoutFailure> {
        let path = own_socket(state_dir).map_err(no_place)?;
        Self::open(path, address, login, Asker::EnvForge)
    }

    /// The directory of `path` must be EnvForge's own.
    ///
    /// # Errors
    /// [`CheckoutFailure::Credential`] where the address takes no login, `Broken` where there is no place for the socket.
    pub(crate) fn open(path: PathBuf, address: &str, login: GitLogin, asker: Asker) -> Result<Self, CheckoutFailure> {
        let refused = |reason| CheckoutFailure::Credential { reason };
        let scope = Repository::parse(address)?.scope().ok_or(refused("it is for addresses at https:// alone"))?;
        if !GitCredential::carries(&login.value) {
            return Err(refused("it holds a line break, and git carries a password of one line"));
        }
        let (uid, others) = match asker {
            Asker::Shell(Some(user)) => (user.uid, true),
            Asker::EnvForge | Asker::Shell(None) => (rustix::process::geteuid().as_raw(), false),
        };
        let given = Arc::new(RwLock::new(Given::from(login)));
        let listener = listen(&path, others).map_err(no_place)?;
        let serving = tokio::spawn(serve(listener, scope.clone(), Arc::clone(&given), uid));
        Ok(Self {
            path,
            stays: matches!(asker, Asker::Shell(_)),
            scope,
            given,
            _serving: AbortOnDropHandle::new(serving),
        })
    }

    /// From now on another one is answered.
    pub(crate) fn renew(&self, login: GitLogin) {
        *self.given.write().unwrap_or_else(PoisonError::into_inner) = Given::from(login);
    }

    /// Variables that have git ask here for this repository, and follow no redirect with the answer. No other helper is asked for it:
    /// git would tell each of them what it was given here.
    pub(crate) fn environment(&self) -> Vec<(String, String)> {
        let Scope { url, .. } = &self.scope;
        let socket = self.path.to_string_lossy().replace('\'', r"'\''");
        let helper = format!(r#"!f() {{ test "$1" != get || git credential-cache --socket='{socket}' get; }}; f"#);
        let settings = [
            (format!("credential.{url}.helper"), String::new()),
            (format!("credential.{url}.helper"), helper),
            (format!("credential.{url}.useHttpPath"), "true".to_owned()),
            (format!("http.{url}.followRedirects"), "false".to_owned()),
        ];
        let mut variables = vec![("GIT_CONFIG_COUNT".to_owned(), settings.len().to_string())];
        for (number, (key, value)) in settings.into_iter().enumerate() {
            variables.push((format!("GIT_CONFIG_KEY_{number}"), key));
            variables.push((format!("GIT_CONFIG_VALUE_{number}"), value));
        }
        variables
    }

    /// A text of git's without the value, however it is spelled in an address.
    pub(crate) fn redacted(&self, text: &str) -> String {
        let given = self.given.read().unwrap_or_else(PoisonError::into_inner);
        let value = given.login.value.expose();
        let encoded = Secret::new(encoded(value));
        [value, encoded.expose()]
            .iter()
            .filter(|value| !value.is_empty())
            .fold(text.to_owned(), |text, value| text.replace(value, "…"))
    }
}

impl Drop for LoginSocket {
    fn drop(&mut self) {
        if !self.stays {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn no_place(error: io::Error) -> CheckoutFailure {
    let detail = format!("there is no place for the socket at which git asks for its credential: {error}");
    CheckoutFailure::Broken { detail }
}

/// A path of its own for a socket, in a directory that nobody else enters; where paths are short enough for sockets.
fn own_socket(state_dir: &Path) -> io::Result<PathBuf> {
    use std::os::unix::ffi::OsStrExt as _;
    use std::os::unix::fs::MetadataExt as _;
    let name = uuid::Uuid::now_v7().simple().to_string();
    let mut directory = state_dir.join("git");
    let own = rustix::process::geteuid().as_raw();
    if directory.as_os_str().as_bytes().len() + 1 + name.len() > SOCKET_PATH_BYTES_MAX {
        directory = std::env::temp_dir().join(format!("envforge-git-{own}"));
    }
    private_directory(&directory)?;
    // Where everybody may make directories, it may be somebody else's.
    let found = fs::symlink_metadata(&directory)?;
    if !found.is_dir() || found.uid() != own || found.mode() & 0o077 != 0 {
        let text = format!("{} is not this user's alone", directory.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    Ok(directory.join(name))
}

fn listen(path: &Path, others: bool) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    // Who asks is looked at by the kernel's word, not by the file's mode.
    fs::set_permissions(path, fs::Permissions::from_mode(if others { 0o666 } else { 0o600 }))?;
    Ok(listener)
}

async fn serve(listener: UnixListener, scope: Scope, given: Arc<RwLock<Given>>, asker: u32) {
    let questions = TaskTracker::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of files: others give some back.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let allowed = stream.peer_cred().is_ok_and(|peer| peer.uid() == asker);
        if !allowed || questions.len() >= QUESTIONS_MAX {
            continue;
        }
        let (scope, given) = (scope.clone(), Arc::clone(&given));
        questions.spawn(async move {
            if timeout(PATIENCE, answer(stream, &scope, &given)).await.is_err() {
                tracing::debug!("a question of git's was not asked to its end");
            }
        });
    }
}

async fn answer(mut stream: UnixStream, scope: &Scope, given: &RwLock<Given>) -> io::Result<()> {
    let mut question = String::new();
    (&mut stream).take(QUESTION_BYTES_MAX).read_to_string(&mut question).await?;
    let told = {
        let given = given.read().unwrap_or_else(PoisonError::into_inner);
        let over = given.until.is_some_and(|until| until <= Instant::now());
        let GitLogin { username, value, .. } = &given.login;
        (!over && is_for(scope, &question))
            .then(|| Secret::new(format!("username={username}\npassword={}\n", value.expose())))
    };
    if let Some(told) = told {
        stream.write_all(told.expose().as_bytes()).await?;
    }
    stream.shutdown().await
}

/// Whether git asks for this very repository. A line that says something twice says it for nobody.
fn is_for(scope: &Scope, question: &str) -> bool {
    let said = |key: &str| {
        let mut values = question.lines().filter_map(|line| line.split_once('=')).filter(|(name, _)| *name == key);
        let first = values.next().map(|(_, value)| value);
        first.filter(|_| values.next().is_none())
    };
    said("action") == Some("get")
        && said("protocol") == Some("https")
        && said("host") == Some(&scope.host)
        && said("path") == Some(&scope.path)
}

/// As it would stand in an address.
fn encoded(value: &str) -> String {
    let mut text = String::with_capacity(value.len() * 3);
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const ADDRESS: &str = "https://git.test:8443/acme/or%20ders.git/";
    const QUESTION: &str = "action=get\ntimeout=900\ncapability[]=authtype\nprotocol=https\nhost=git.test:8443\npath=acme/or ders.git\nwwwauth[]=Basic realm=\"x\"\n";

    fn login(value: &str) -> GitLogin {
        GitLogin { username: "x-access-token".to_owned(), value: Secret::new(value.to_owned()), valid_for: None }
    }

    async fn ask(path: &Path, question: &str) -> String {
        let mut stream = UnixStream::connect(path).await.unwrap();
        stream.write_all(question.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn only_a_question_for_the_very_repository_is_answered_and_only_in_time() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let socket = LoginSocket::open(path.clone(), ADDRESS, login("hunter2"), Asker::EnvForge).unwrap();
        assert_eq!(ask(&path, QUESTION).await, "username=x-access-token\npassword=hunter2\n");
        for (right, wrong) in [
            ("action=get", "action=store"),
            ("protocol=https", "protocol=http"),
            ("host=git.test:8443", "host=git.test"),
            ("host=git.test:8443", "host=evil.test:8443"),
            ("host=git.test:8443", "host=git.test:8443\nhost=evil.test"),
            ("path=acme/or ders.git", "path=acme/or ders.git/info/lfs"),
            ("path=acme/or ders.git", "path=acme/other.git"),
            ("path=acme/or ders.git\n", ""),
        ] {
            assert_eq!(ask(&path, &QUESTION.replace(right, wrong)).await, "", "{wrong}");
        }
        assert_eq!(ask(&path, "").await, "");
        socket.renew(login("another"));
        assert!(ask(&path, QUESTION).await.contains("password=another\n"));
        socket.renew(GitLogin { valid_for: Some(Millis::ZERO), ..login("over") });
        assert_eq!(ask(&path, QUESTION).await, "");
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_login_is_for_https_and_of_one_line() {
        let directory = tempfile::tempdir().unwrap();
        let open =
            |address, value| LoginSocket::open(directory.path().join("s"), address, login(value), Asker::EnvForge);
        for address in ["git@git.test:acme/orders.git", "ssh://git.test/acme", "/srv/orders", "file:///srv/orders"] {
            assert!(matches!(open(address, "x"), Err(CheckoutFailure::Credential { .. })), "{address}");
        }
        assert!(matches!(open(ADDRESS, "one\nprotocol=http"), Err(CheckoutFailure::Credential { .. })));
    }

    #[tokio::test]
    async fn neither_the_variables_nor_what_git_says_hold_the_value() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("it's");
        let socket = LoginSocket::open(path, ADDRESS, login("hunter 2"), Asker::EnvForge).unwrap();
        let variables = socket.environment();
        assert!(variables.iter().all(|(_, value)| !value.contains("hunter")), "{variables:?}");
        assert!(variables.iter().any(|(_, value)| value.contains(r"it'\''s")), "{variables:?}");
        let said = socket.redacted("fatal: https://x:hunter%202@git.test/ or hunter 2 is wrong");
        assert_eq!(said, "fatal: https://x:…@git.test/ or … is wrong");
    }
}
