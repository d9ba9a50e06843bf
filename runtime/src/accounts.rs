//! Names of a workspace's users: files in the place of /etc/passwd and /etc/group, for what its people and its services run.
//!
//! Programs ask who they are and where home is, and some give up where nobody can say: ssh, sftp-server, initdb, Node's `os.userInfo`.
//! The machine's own files stay as they are: the workspace's are mounted over them in a mount namespace. A shell's helper makes one of
//! its own; services, probes, hooks and jobs are started in one ([`Names`]), with no program between that would be root in an
//! environment which others wrote (`LD_PRELOAD`). Where the system lets nobody mount (a container), ids have no names there. Not here:
//! who those users are (`unix_user`).
//!
//! Layout: `workspaces/<workspace>/accounts/{passwd,group}`, root's, in a directory that root alone enters.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use tokio::process::{Child, Command};
use tokio::runtime::Handle;

use crate::output::private_directory;
use crate::record::blocking;
use crate::unix_user::{UnixUser, UserBlock};

/// What people run is the user of this name.
const SHELL_USER: &str = "workspace";
const PASSWD: &str = "passwd";
const GROUP: &str = "group";
/// Of the machine's own files; larger ones stay in their place.
const SYSTEM_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// A mount namespace in which the users of one workspace have names. Clones are one.
#[derive(Clone)]
pub(crate) struct Names(Arc<Place>);

struct Place {
    namespace: OwnedFd,
    /// Where their files are.
    directory: PathBuf,
}

impl Names {
    /// Of a workspace that has users, as [`written`] writes them; `None` also where nothing may be mounted, which is no failure.
    ///
    /// # Errors
    /// Where the files cannot be written.
    pub(crate) async fn of(place: PathBuf, block: Option<UserBlock>, login_shell: String) -> io::Result<Option<Self>> {
        let Some(directory) = written(place, block, login_shell).await? else { return Ok(None) };
        blocking(move || {
            let made = aside(|| {
                enter(&directory)?;
                File::open("/proc/thread-self/ns/mnt")
            });
            Ok(match made {
                Ok(namespace) => Some(Self(Arc::new(Place { namespace: namespace.into(), directory }))),
                Err(error) => {
                    tracing::info!(%error, "users of a workspace have no names here");
                    None
                }
            })
        })
        .await
    }
}

/// Starts a process where its user has a name, if it has one.
///
/// # Errors
/// Where it cannot be started.
pub(crate) fn start(command: &mut Command, names: Option<&Names>) -> io::Result<Child> {
    let Some(Names(place)) = names else { return command.spawn() };
    let runtime = Handle::current();
    aside(|| {
        let _in_it = runtime.enter();
        // Root and working directory are the whole process's until they are not shared; who shares them may enter nothing.
        unshare(CloneFlags::CLONE_FS)?;
        setns(&place.namespace, CloneFlags::CLONE_NEWNS)?;
        // Whoever replaces the machine's file (useradd) takes away what was mounted over it, in every namespace.
        if !are_over(&place.directory)
            && let Err(error) = cover(&place.directory)
        {
            tracing::info!(%error, "users of a workspace have no names any more");
        }
        command.spawn()
    })
}

/// On a thread that ends with it: what it sees of the file system becomes its own and nobody else's here.
fn aside<T: Send>(act: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("names".to_owned()).spawn_scoped(scope, act)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("it ended unexpectedly")))
    })
}

/// Writes the files of a workspace that has users, whose directory is `place`, as the machine's are now with its users behind them. Answers
/// where they are; `None` also where they cannot say it: no field of theirs holds a colon.
///
/// # Errors
/// Where they cannot be written.
pub(crate) async fn written(
    place: PathBuf,
    block: Option<UserBlock>,
    login_shell: String,
) -> io::Result<Option<PathBuf>> {
    let Some(block) = block else { return Ok(None) };
    blocking(move || write(&place, &block, &login_shell)).await
}

fn write(place: &Path, block: &UserBlock, login_shell: &str) -> io::Result<Option<PathBuf>> {
    let directory = place.join("accounts");
    let (Some(passwd), Some(group)) = (system(PASSWD)?, system(GROUP)?) else { return Ok(None) };
    let Some((users, groups)) = lines(place, block, login_shell) else { return Ok(None) };
    private_directory(&directory)?;
    for (name, text) in [(PASSWD, passwd + &users), (GROUP, group + &groups)] {
        let path = directory.join(name);
        if fs::read(&path).is_ok_and(|known| known == text.as_bytes()) {
            continue;
        }
        let fresh = directory.join(format!("{name}.new"));
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o644).open(&fresh)?;
        // Whatever the umask of this process is: everybody who sees it reads it.
        file.set_permissions(fs::Permissions::from_mode(0o644))?;
        file.write_all(text.as_bytes())?;
        fs::rename(&fresh, &path)?;
    }
    Ok(Some(directory))
}

/// What the machine's own file says, with a line break at its end; `None` where it is too large.
fn system(name: &str) -> io::Result<Option<String>> {
    let mut text = Vec::new();
    match File::open(Path::new("/etc").join(name)) {
        Ok(file) => file.take(SYSTEM_BYTES_MAX + 1).read_to_end(&mut text)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(error) => return Err(error),
    };
    if text.len() as u64 > SYSTEM_BYTES_MAX {
        return Ok(None);
    }
    let mut text = String::from_utf8_lossy(&text).into_owned();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(Some(text))
}

/// Lines of passwd(5) and group(5).
fn lines(place: &Path, block: &UserBlock, login_shell: &str) -> Option<(String, String)> {
    let home = place.join("shell").join("home");
    let people = (SHELL_USER.to_owned(), block.shell(), home);
    let services = block.named().map(|(name, user)| (format!("service-{name}"), user, place.join("homes").join(name)));
    let mut users = String::new();
    for (name, UnixUser { uid, gid }, home) in std::iter::once(people).chain(services) {
        let home = home.to_str().filter(|home| !home.contains([':', '\n']))?;
        writeln!(users, "{name}:x:{uid}:{gid}:EnvForge workspace:{home}:{login_shell}").ok()?;
    }
    Some((users, format!("{SHELL_USER}:x:{}:\n", block.shell().gid)))
}

/// Has this process, and what it starts, find the files of `directory` in the places of the machine's own.
///
/// # Errors
/// Where it may not, or they are not there; it then sees the machine's.
pub(crate) fn enter(directory: &Path) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    // What is mounted on the machine from now on comes here, too; what is mounted here stays here.
    mount(None::<&Path>, "/", None::<&str>, MsFlags::MS_SLAVE | MsFlags::MS_REC, None::<&str>)?;
    cover(directory)
}

/// Whether the files of `directory` are what is seen here in the places of the machine's own.
fn are_over(directory: &Path) -> bool {
    let same = |name: &&str| {
        let (seen, meant) = (fs::metadata(Path::new("/etc").join(name)), fs::metadata(directory.join(name)));
        seen.is_ok_and(|seen| meant.is_ok_and(|meant| (seen.dev(), seen.ino()) == (meant.dev(), meant.ino())))
    };
    [PASSWD, GROUP].iter().all(same)
}

fn cover(directory: &Path) -> io::Result<()> {
    for name in [PASSWD, GROUP] {
        let (over, bind) = (Path::new("/etc").join(name), MsFlags::MS_BIND);
        mount(Some(&directory.join(name)), &over, None::<&str>, bind, None::<&str>)?;
        let flags = bind | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(None::<&Path>, &over, None::<&str>, flags, None::<&str>)?;
    }
    Ok(())
}
