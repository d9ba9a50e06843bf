//! Who is signed in at which API: tokens in one file for the owner alone, changed under a lock.
//!
//! Not here: asking the API for tokens (`client`, `session`). An operating system's keyring can stand in the file's place later.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::Duration;

use envforge_domain::secret::Secret;
use serde::{Deserialize, Serialize};

use super::failure::Failure;
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

/// The file as it is stored. Private: the only place where tokens become text.
#[derive(Default, Serialize, Deserialize)]
struct Stored {
    version: u32,
    accounts: BTreeMap<String, StoredAccount>,
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
}

/// Held while tokens are exchanged. Released when dropped, also by the operating system when the process dies.
pub(crate) struct Locked<'a> {
    credentials: &'a Credentials,
    _file: File,
}

impl Credentials {
    pub(crate) fn in_folder(config_dir: &Path) -> Self {
        Self { dir: config_dir.to_owned() }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.join(FILE)
    }

    /// Who is signed in at `api` (`Api::key`).
    pub(crate) fn account(&self, api: &str) -> Result<Option<Account>, Failure> {
        Ok(self.read()?.accounts.remove(api).map(|stored| Account {
            access_token: Secret::new(stored.access_token),
            refresh_token: Secret::new(stored.refresh_token),
            access_expires_at_unix_ms: stored.access_expires_at_unix_ms,
            email: stored.email,
            user: stored.user,
            org: stored.org,
            org_slug: stored.org_slug,
        }))
    }

    /// Waits until no other process exchanges tokens.
    pub(crate) async fn lock(&self) -> Result<Locked<'_>, Failure> {
        let path = self.dir.join(LOCK);
        let file = private_file::open_lock(&path)?;
        let deadline = tokio::time::Instant::now() + LOCK_WAIT_MAX;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Locked { credentials: self, _file: file }),
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
}

impl Locked<'_> {
    /// As it is now, under the lock.
    pub(crate) fn account(&self, api: &str) -> Result<Option<Account>, Failure> {
        self.credentials.account(api)
    }

    pub(crate) fn put(&self, api: &str, account: &Account) -> Result<(), Failure> {
        self.change(|stored| {
            let account = StoredAccount {
                access_token: account.access_token.expose().to_owned(),
                refresh_token: account.refresh_token.expose().to_owned(),
                access_expires_at_unix_ms: account.access_expires_at_unix_ms,
                email: account.email.clone(),
                user: account.user.clone(),
                org: account.org.clone(),
                org_slug: account.org_slug.clone(),
            };
            stored.accounts.insert(api.to_owned(), account);
        })
    }

    pub(crate) fn remove(&self, api: &str) -> Result<(), Failure> {
        self.change(|stored| {
            stored.accounts.remove(api);
        })
    }

    fn change(&self, change: impl FnOnce(&mut Stored)) -> Result<(), Failure> {
        let mut stored = self.credentials.read()?;
        change(&mut stored);
        stored.version = VERSION;
        let text = serde_json::to_string_pretty(&stored).map_err(std::io::Error::from)?;
        private_file::write(&self.credentials.path(), &(text + "\n"))
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
        let credentials = Credentials::in_folder(dir.path());
        assert!(credentials.account("https://a.example").unwrap().is_none());
        let locked = credentials.lock().await.unwrap();
        locked.put("https://a.example", &account("a")).unwrap();
        locked.put("https://b.example", &account("b")).unwrap();
        locked.remove("https://b.example").unwrap();
        drop(locked);
        let read = credentials.account("https://a.example").unwrap().unwrap();
        assert!(read.access_token.matches("a") && read.refresh_token.matches("refresh-a"));
        assert_eq!((read.org_slug.as_str(), read.access_expires_at_unix_ms), ("acme", 7));
        assert!(credentials.account("https://b.example").unwrap().is_none());
        assert_eq!(private_file::is_open_to_others(&credentials.path()), Some(false));
    }

    #[tokio::test]
    async fn the_second_process_waits_until_the_first_has_exchanged_its_tokens() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (Credentials::in_folder(dir.path()), Credentials::in_folder(dir.path()));
        let held = first.lock().await.unwrap();
        let waiting = tokio::spawn(async move {
            let locked = second.lock().await.unwrap();
            locked.account("api").unwrap().map(|account| account.access_token.matches("fresh"))
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        held.put("api", &account("fresh")).unwrap();
        drop(held);
        assert_eq!(waiting.await.unwrap(), Some(true));
    }

    #[test]
    fn a_broken_file_is_named_without_showing_what_stands_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let credentials = Credentials::in_folder(dir.path());
        std::fs::write(credentials.path(), r#"{"version":1,"accounts":{"a":{"access_token":"s3cret", nonsense"#)
            .unwrap();
        let Err(failure) = credentials.account("a") else { panic!("it was read") };
        assert!(failure.to_string().contains("credentials.json"), "{failure}");
        assert!(!failure.to_string().contains("s3cret"), "{failure}");
    }

    #[test]
    fn a_file_of_a_later_version_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let credentials = Credentials::in_folder(dir.path());
        std::fs::write(credentials.path(), r#"{"version":2,"accounts":{}}"#).unwrap();
        let Err(failure) = credentials.account("a") else { panic!("it was read") };
        assert!(failure.to_string().contains("version 2"), "{failure}");
    }
}
