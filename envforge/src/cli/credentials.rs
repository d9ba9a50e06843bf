//! Who is signed in at which API: tokens in the operating system's keyring where there is one, else in a file for the owner alone,
//! changed under a lock.
//!
//! The file says for each API where its tokens are, so that a command that finds them there asks no keyring. Not here: asking the API for
//! tokens (`client`, `session`), and how a keyring is asked (`keyring`).

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use envforge_domain::secret::Secret;
use serde::{Deserialize, Serialize};

use super::failure::Failure;
use super::keyring::{Item, Keyring, NoKeyring};
use super::private_file;

/// One signed-in person at one API.
#[derive(Clone)]
pub(crate) struct Account {
    pub access_token: Secret,
    pub refresh_token: Secret,
    /// By this machine's clock, from the lifetime that the answer named, so that a skewed clock does no harm.
    pub access_expires_at_unix_ms: u64,
    pub email: String,
    pub user: String,
    pub org: String,
    pub org_slug: String,
}

/// Where somebody wants their credentials kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Keep {
    /// In the keyring where one is open, else in the file.
    #[default]
    Auto,
    /// In the keyring, or nowhere.
    Keyring,
    /// In the file; no keyring is asked.
    File,
}

impl Keep {
    pub(crate) const VARIABLE: &str = "ENVFORGE_CREDENTIALS";

    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text {
            "auto" => Some(Self::Auto),
            "keyring" => Some(Self::Keyring),
            "file" => Some(Self::File),
            _ => None,
        }
    }
}

/// The file as it is stored. Private: the only place where tokens become text.
#[derive(Default, Serialize, Deserialize)]
struct Stored {
    version: u32,
    accounts: BTreeMap<String, StoredAccount>,
    /// APIs whose tokens are in the keyring.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    in_keyring: BTreeMap<String, Moved>,
}

#[derive(Serialize, Deserialize)]
struct StoredAccount {
    access_token: String,
    refresh_token: String,
    access_expires_at_unix_ms: u64,
    email: String,
    user: String,
    org: String,
    org_slug: String,
}

/// That tokens were moved to the keyring, written before they are there.
// INVARIANT: an item counts where it names this move, and then it is newer than what the file may still hold. So there is no moment at
// which a process could die and leave a refresh token that was used as the one to use, or none.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Moved {
    id: String,
}

/// What an item of the keyring holds.
#[derive(Serialize, Deserialize)]
struct Kept {
    version: u32,
    moved: Moved,
    account: StoredAccount,
}

const VERSION: u32 = 1;
const FILE: &str = "credentials.json";
const LOCK: &str = "credentials.lock";
/// Whoever holds the lock is refreshing a token: one request.
const LOCK_WAIT_MAX: Duration = Duration::from_secs(40);
const LOCK_POLL: Duration = Duration::from_millis(25);

/// The credentials of this user.
#[derive(Clone, Debug)]
pub(crate) struct Credentials {
    dir: PathBuf,
    keep: Keep,
}

/// Held while tokens are exchanged. Released when dropped, also by the operating system when the process dies.
pub(crate) struct Locked<'a> {
    credentials: &'a Credentials,
    keyring: Result<Keyring, NoKeyring>,
    _file: File,
}

/// Where the credentials of one API are, for whoever wants to know.
pub(crate) enum Whereabouts {
    Nowhere,
    /// `next`: the keyring to which they move when they are renewed, or why they do not.
    File {
        next: Result<String, NoKeyring>,
    },
    Keyring(Result<String, NoKeyring>),
}

impl Credentials {
    pub(crate) fn in_folder(config_dir: &Path, keep: Keep) -> Self {
        Self { dir: config_dir.to_owned(), keep }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.join(FILE)
    }

    /// Who is signed in at `api` (`Api::key`).
    pub(crate) async fn account(&self, api: &str) -> Result<Option<Account>, Failure> {
        let stored = self.read()?;
        let keyring = match stored.in_keyring.get(api) {
            None => return Ok(stored.account(api)),
            Some(_) => self.find_keyring().await,
        };
        self.account_in(stored, &keyring, api).await
    }

    /// Refuses where new tokens could not be kept as was asked: they are worth nothing when nobody has them, and by then the old ones are used.
    pub(crate) async fn can_keep(&self) -> Result<(), Failure> {
        match self.keep {
            Keep::Auto | Keep::File => Ok(()),
            Keep::Keyring => self.find_keyring().await.map(drop).map_err(|why| needs_keyring(&why)),
        }
    }

    /// Waits until no other process exchanges tokens.
    pub(crate) async fn lock(&self) -> Result<Locked<'_>, Failure> {
        let keyring = self.find_keyring().await;
        if let (Keep::Keyring, Err(why)) = (self.keep, &keyring) {
            return Err(needs_keyring(why));
        }
        let path = self.dir.join(LOCK);
        let file = private_file::open_lock(&path)?;
        let deadline = tokio::time::Instant::now() + LOCK_WAIT_MAX;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Locked { credentials: self, keyring, _file: file }),
                Err(TryLockError::WouldBlock) if tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(LOCK_POLL).await;
                }
                Err(TryLockError::WouldBlock) => {
                    return Err(Failure::timed_out(
                        format!("another envforge has held {} for {} s", path.display(), LOCK_WAIT_MAX.as_secs()),
                        "end it and run the command again",
                    ));
                }
                Err(TryLockError::Error(error)) => return Err(error.into()),
            }
        }
    }

    /// Where the tokens of `api` are.
    pub(crate) async fn whereabouts(&self, api: &str) -> Result<Whereabouts, Failure> {
        let stored = self.read()?;
        let keyring = self.find_keyring().await.map(|keyring| keyring.name().to_owned());
        Ok(match (stored.in_keyring.contains_key(api), stored.accounts.contains_key(api)) {
            (true, _) => Whereabouts::Keyring(keyring),
            (false, true) => Whereabouts::File { next: keyring },
            (false, false) => Whereabouts::Nowhere,
        })
    }

    async fn find_keyring(&self) -> Result<Keyring, NoKeyring> {
        match self.keep {
            Keep::Auto | Keep::Keyring => Keyring::find().await,
            Keep::File => Err(NoKeyring::not_asked(&format!("{}=file says so", Keep::VARIABLE))),
        }
    }

    async fn account_in(
        &self,
        stored: Stored,
        keyring: &Result<Keyring, NoKeyring>,
        api: &str,
    ) -> Result<Option<Account>, Failure> {
        let Some(moved) = stored.in_keyring.get(api) else { return Ok(stored.account(api)) };
        let found = match keyring {
            Ok(keyring) => keyring.read(self.item(api)).await,
            Err(why) => Err(why.clone()),
        };
        let text = found.map_err(|why| self.out_of_reach(api, &why))?;
        let kept = text.and_then(|text| serde_json::from_str::<Kept>(text.expose()).ok());
        match kept.filter(|kept| kept.version == VERSION && kept.moved == *moved) {
            Some(kept) => Ok(Some(kept.account.into())),
            // It never got there, or somebody took it out.
            None => Ok(stored.account(api)),
        }
    }

    fn item<'a>(&'a self, api: &'a str) -> Item<'a> {
        Item { api, folder: &self.dir }
    }

    fn out_of_reach(&self, api: &str, why: &NoKeyring) -> Failure {
        let hint = match self.keep {
            Keep::Auto | Keep::Keyring => {
                "unlock the keyring and run the command again, or sign in again: `envforge login`".to_owned()
            }
            Keep::File => format!("unset {}, or sign in again: `envforge login`", Keep::VARIABLE),
        };
        Failure::local(
            format!("your credentials for {api} are in this machine's keyring, which cannot be used: {why}"),
            hint,
        )
    }

    fn read(&self) -> Result<Stored, Failure> {
        let Some(text) = private_file::read(&self.path())? else { return Ok(Stored::default()) };
        let broken = |why: String| {
            Failure::local(
                format!("{} cannot be read: {why}", self.path().display()),
                "remove it and sign in again: `envforge login`",
            )
        };
        // The parser's message may quote the text, which holds tokens: only the place is shown.
        let stored: Stored = serde_json::from_str(&text)
            .map_err(|error| broken(format!("mistake at line {}, column {}", error.line(), error.column())))?;
        if stored.version != VERSION {
            return Err(broken(format!("it has version {}, this envforge reads version {VERSION}", stored.version)));
        }
        Ok(stored)
    }

    fn change(&self, change: impl FnOnce(&mut Stored)) -> Result<(), Failure> {
        let mut stored = self.read()?;
        change(&mut stored);
        stored.version = VERSION;
        let text = serde_json::to_string_pretty(&stored).map_err(std::io::Error::from)?;
        private_file::write(&self.path(), &(text + "\n"))
    }
}

impl Locked<'_> {
    /// As it is now, under the lock.
    pub(crate) async fn account(&self, api: &str) -> Result<Option<Account>, Failure> {
        let stored = self.credentials.read()?;
        self.credentials.account_in(stored, &self.keyring, api).await
    }

    pub(crate) async fn put(&self, api: &str, account: &Account) -> Result<(), Failure> {
        let refused = match &self.keyring {
            Ok(keyring) => match self.put_into(keyring, api, account).await {
                Ok(()) => return Ok(()),
                Err(NotKept::Local(failure)) => return Err(failure),
                Err(NotKept::Keyring(why)) => why,
            },
            Err(why) => why.clone(),
        };
        match self.credentials.keep {
            // A keyring that takes nothing must not cost the session.
            Keep::Auto | Keep::File => self.credentials.change(|stored| {
                stored.in_keyring.remove(api);
                stored.accounts.insert(api.to_owned(), account.into());
            }),
            Keep::Keyring => Err(needs_keyring(&refused)),
        }
    }

    /// First that they move, then new ones in the keyring, then old ones out of the file.
    async fn put_into(&self, keyring: &Keyring, api: &str, account: &Account) -> Result<(), NotKept> {
        let stored = self.credentials.read()?;
        let moved = match stored.in_keyring.get(api) {
            Some(moved) => moved.clone(),
            None => {
                let moved = Moved { id: uuid::Uuid::now_v7().to_string() };
                self.credentials.change(|stored| {
                    stored.in_keyring.insert(api.to_owned(), moved.clone());
                })?;
                moved
            }
        };
        let kept = Kept { version: VERSION, moved, account: account.into() };
        let text =
            Secret::new(serde_json::to_string(&kept).map_err(|error| Failure::from(std::io::Error::from(error)))?);
        let label = format!("EnvForge: {} at {api}", account.email);
        keyring.write(self.credentials.item(api), &label, &text).await?;
        if stored.accounts.contains_key(api) {
            self.credentials.change(|stored| {
                stored.accounts.remove(api);
            })?;
        }
        Ok(())
    }

    /// Forgets them here; whoever asks for it has ended the session.
    pub(crate) async fn remove(&self, api: &str) -> Result<(), Failure> {
        if let Ok(keyring) = &self.keyring
            && self.credentials.read()?.in_keyring.contains_key(api)
        {
            // What a keyring does not give up is worth nothing any more, and is not looked at again.
            let _ = keyring.remove(self.credentials.item(api)).await;
        }
        self.credentials.change(|stored| {
            stored.accounts.remove(api);
            stored.in_keyring.remove(api);
        })
    }
}

/// Why new tokens are not in the keyring.
enum NotKept {
    Keyring(NoKeyring),
    Local(Failure),
}

impl From<NoKeyring> for NotKept {
    fn from(why: NoKeyring) -> Self {
        Self::Keyring(why)
    }
}

impl From<Failure> for NotKept {
    fn from(failure: Failure) -> Self {
        Self::Local(failure)
    }
}

fn needs_keyring(why: &NoKeyring) -> Failure {
    Failure::local(
        format!("{}=keyring, and the keyring of this machine cannot be used: {why}", Keep::VARIABLE),
        format!("start and unlock one, or let credentials be kept in a file for you alone: {}=file", Keep::VARIABLE),
    )
}

impl Stored {
    fn account(mut self, api: &str) -> Option<Account> {
        self.accounts.remove(api).map(Account::from)
    }
}

impl From<StoredAccount> for Account {
    fn from(stored: StoredAccount) -> Self {
        Self {
            access_token: Secret::new(stored.access_token),
            refresh_token: Secret::new(stored.refresh_token),
            access_expires_at_unix_ms: stored.access_expires_at_unix_ms,
            email: stored.email,
            user: stored.user,
            org: stored.org,
            org_slug: stored.org_slug,
        }
    }
}

impl From<&Account> for StoredAccount {
    fn from(account: &Account) -> Self {
        Self {
            access_token: account.access_token.expose().to_owned(),
            refresh_token: account.refresh_token.expose().to_owned(),
            access_expires_at_unix_ms: account.access_expires_at_unix_ms,
            email: account.email.clone(),
            user: account.user.clone(),
            org: account.org.clone(),
            org_slug: account.org_slug.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn account(token: &str) -> Account {
        Account {
            access_token: Secret::new(token.to_owned()),
            refresh_token: Secret::new(format!("refresh-{token}")),
            access_expires_at_unix_ms: 7,
            email: "dana@acme.example".into(),
            user: "usr_1".into(),
            org: "org_1".into(),
            org_slug: "acme".into(),
        }
    }

    #[tokio::test]
    async fn accounts_are_kept_apart_by_api_and_only_the_owner_may_read_them() {
        let dir = tempfile::tempdir().unwrap();
        let credentials = Credentials::in_folder(dir.path(), Keep::File);
        assert!(credentials.account("https://a.example").await.unwrap().is_none());
        let locked = credentials.lock().await.unwrap();
        locked.put("https://a.example", &account("a")).await.unwrap();
        locked.put("https://b.example", &account("b")).await.unwrap();
        locked.remove("https://b.example").await.unwrap();
        drop(locked);
        let read = credentials.account("https://a.example").await.unwrap().unwrap();
        assert!(read.access_token.matches("a") && read.refresh_token.matches("refresh-a"));
        assert_eq!((read.org_slug.as_str(), read.access_expires_at_unix_ms), ("acme", 7));
        assert!(credentials.account("https://b.example").await.unwrap().is_none());
        assert_eq!(private_file::is_open_to_others(&credentials.path()), Some(false));
    }

    #[tokio::test]
    async fn the_second_process_waits_until_the_first_has_exchanged_its_tokens() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) =
            (Credentials::in_folder(dir.path(), Keep::File), Credentials::in_folder(dir.path(), Keep::File));
        let held = first.lock().await.unwrap();
        let waiting = tokio::spawn(async move {
            let locked = second.lock().await.unwrap();
            locked.account("api").await.unwrap().map(|account| account.access_token.matches("fresh"))
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        held.put("api", &account("fresh")).await.unwrap();
        drop(held);
        assert_eq!(waiting.await.unwrap(), Some(true));
    }

    #[tokio::test]
    async fn a_broken_file_is_named_without_showing_what_stands_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let credentials = Credentials::in_folder(dir.path(), Keep::File);
        std::fs::write(credentials.path(), r#"{"version":1,"accounts":{"a":{"access_token":"s3cret", nonsense"#)
            .unwrap();
        let Err(failure) = credentials.account("a").await else { panic!("it was read") };
        assert!(failure.to_string().contains("credentials.json"), "{failure}");
        assert!(!failure.to_string().contains("s3cret"), "{failure}");
    }

    #[tokio::test]
    async fn a_file_of_a_later_version_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let credentials = Credentials::in_folder(dir.path(), Keep::File);
        std::fs::write(credentials.path(), r#"{"version":2,"accounts":{}}"#).unwrap();
        let Err(failure) = credentials.account("a").await else { panic!("it was read") };
        assert!(failure.to_string().contains("version 2"), "{failure}");
    }
}
