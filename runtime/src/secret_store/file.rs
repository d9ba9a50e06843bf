//! Values in files of this machine, encrypted with age (X25519).
//!
//! Layout below one directory: `identity.age-key` (mode 0600), and `values/<org>/<owner>/<NAME>/<generation>/<version>.age`. A
//! file's plain text begins with the key and version that it is for, so that one that was moved or copied from elsewhere is
//! refused, and is filled up to one length, so that files tell nothing of how long values are. Several processes may use one
//! directory: a version's file is linked into place and never replaces another.
//!
//! Beside it lies `<version>.note` from before the value is there until the log is known to name it, and `<version>.gone` where a
//! value was withdrawn, so that nobody else's gets its number.
//!
//! What it is worth: a copy of `values` alone says nothing. Whoever can read the whole directory as its owner reads every
//! value; the identity belongs in another backup than the values.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use age::secrecy::ExposeSecret;
use age::x25519;
use async_trait::async_trait;
use envforge_domain::ids::OrgId;
use envforge_domain::limits::{SECRET_BYTES_MAX, SECRET_READ_MAX, SECRET_VERSIONS_MAX};
use envforge_domain::secret::Secret;
use envforge_domain::secrets::{PinnedSecret, SecretKey, SecretName, SecretOwner};
use rand::RngExt;
use zeroize::Zeroizing;

use super::{PutNote, SecretStore, StoreError, Unrecorded, check_value};
use crate::output::private_directory;

const IDENTITY: &str = "identity.age-key";
const VALUES: &str = "values";
/// An identity in its text form has 74 characters.
const IDENTITY_BYTES_MAX: u64 = 200;
/// One note.
const NOTE_BYTES_MAX: u64 = 1024;
/// What files are, by the ends of their names.
const VALUE: &str = "age";
const NOTE: &str = "note";
const GONE: &str = "gone";
/// One encrypted value: the plain text's one length, and what age adds.
const FILE_BYTES_MAX: u64 = 8 * 1024;
/// First line of each plain text. Another format gets another one.
const FORMAT: &str = "envforge secret 1";
/// The longest first lines: format, ids, a name of 128 characters, two numbers.
const HEAD_BYTES_MAX: usize = 512;
const PLAIN_BYTES: usize = HEAD_BYTES_MAX + SECRET_BYTES_MAX;
/// Processes that put versions of one key at the same moment.
const PUT_ATTEMPTS_MAX: usize = 64;
/// Half a write that is older than this is nobody's any more.
const HALF_WRITE_AGE: Duration = Duration::from_secs(600);

/// Why the directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FileStoreError {
    #[error("the secret store at {path} cannot be used: {error}")]
    Io { path: PathBuf, error: io::Error },
    #[error(
        "the identity {path} may be read by others (mode {mode:o}): run `chmod 600` on it, and set all secrets anew if others had access"
    )]
    Exposed { path: PathBuf, mode: u32 },
    #[error(
        "{path} holds no age X25519 identity: restore it from a backup; without it no secret that was set can be read"
    )]
    Identity { path: PathBuf },
    #[error(
        "there are secrets below {path}, but the identity that reads them is gone: restore it from a backup, or remove the directory and set all secrets anew"
    )]
    IdentityMissing { path: PathBuf },
}

/// The store. Clones are one.
#[derive(Clone)]
pub struct FileStore(Arc<Inner>);

struct Inner {
    values: PathBuf,
    identity: x25519::Identity,
}

impl FileStore {
    /// Opens the directory, made if need be with an identity of its own. Of processes that start together one makes it.
    ///
    /// # Errors
    /// See [`FileStoreError`]; nothing is replaced.
    pub fn open(directory: &Path) -> Result<Self, FileStoreError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |error| FileStoreError::Io { path, error }
        };
        private_directory(directory).map_err(failed(directory))?;
        let (path, values) = (directory.join(IDENTITY), directory.join(VALUES));
        match fs::exists(&path).map_err(failed(&path))? {
            true => {}
            false if fs::exists(&values).map_err(failed(&values))? => {
                return Err(FileStoreError::IdentityMissing { path: values });
            }
            false => {
                let text = x25519::Identity::generate().to_string();
                let line = Zeroizing::new(format!("{}\n", text.expose_secret()));
                match link_new(directory, &path, line.as_bytes()) {
                    Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(failed(&path)(error)),
                    _ => {}
                }
            }
        }
        let identity = read_identity(&path)?;
        private_directory(&values).map_err(failed(&values))?;
        Ok(Self(Arc::new(Inner { values, identity })))
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let inner = Arc::clone(&self.0);
        tokio::task::spawn_blocking(move || work(&inner))
            .await
            .unwrap_or_else(|error| Err(StoreError::Unavailable { detail: error.to_string() }))
    }
}

fn read_identity(path: &Path) -> Result<x25519::Identity, FileStoreError> {
    let failed = |error| FileStoreError::Io { path: path.to_owned(), error };
    let file = File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(FileStoreError::Exposed { path: path.to_owned(), mode });
    }
    let invalid = || FileStoreError::Identity { path: path.to_owned() };
    let mut text = Zeroizing::new(String::new());
    match file.take(IDENTITY_BYTES_MAX).read_to_string(&mut text) {
        Err(error) if error.kind() == ErrorKind::InvalidData => return Err(invalid()),
        read => read.map_err(failed)?,
    };
    x25519::Identity::from_str(text.trim()).map_err(|_| invalid())
}

/// Writes a file beside and links it into place: it never exists half-written, and never replaces another.
fn link_new(directory: &Path, path: &Path, content: &[u8]) -> io::Result<()> {
    let beside = directory.join(format!("{:032x}.new", rand::rng().random::<u128>()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    let linked = file.write_all(content).and_then(|()| file.sync_all()).and_then(|()| fs::hard_link(&beside, path));
    fs::remove_file(&beside)?;
    linked?;
    File::open(directory)?.sync_all()
}

fn head(key: &SecretKey, version: u64) -> String {
    let SecretKey { org, owner, name, generation } = key;
    format!("{FORMAT}\n{org} {owner} {name} {generation} {version}\n")
}

fn unavailable(error: io::Error) -> StoreError {
    StoreError::Unavailable { detail: error.to_string() }
}

fn damaged(pinned: &PinnedSecret, detail: &str) -> StoreError {
    let text = format!("version {} of {} {detail}", pinned.version, pinned.key.name);
    StoreError::Damaged { detail: text, pinned: Some(pinned.clone()) }
}

impl Inner {
    fn owner(&self, org: OrgId, owner: SecretOwner) -> PathBuf {
        self.values.join(org.to_string()).join(owner.to_string())
    }

    fn of(&self, key: &SecretKey) -> PathBuf {
        self.owner(key.org, key.owner).join(key.name.as_str()).join(key.generation.to_string())
    }

    fn path(directory: &Path, version: u64, kind: &str) -> PathBuf {
        directory.join(format!("{version}.{kind}"))
    }

    /// Versions of which there is such a file, in order; empty where there is no such directory.
    fn versions(directory: &Path, kinds: &[&str]) -> Result<Vec<u64>, StoreError> {
        let entries = match fs::read_dir(directory) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(unavailable)?,
        };
        let mut versions = Vec::new();
        for entry in entries {
            let name = entry.map_err(unavailable)?.file_name();
            let split = name.to_str().and_then(|name| name.rsplit_once('.'));
            let meant = split.filter(|(_, kind)| kinds.contains(kind));
            versions.extend(meant.and_then(|(stem, _)| stem.parse::<u64>().ok()));
        }
        versions.sort_unstable();
        Ok(versions)
    }

    fn encrypted(&self, key: &SecretKey, version: u64, value: &Secret) -> Result<Vec<u8>, StoreError> {
        let mut plain = Zeroizing::new(Vec::with_capacity(PLAIN_BYTES));
        plain.extend_from_slice(head(key, version).as_bytes());
        plain.extend_from_slice(value.expose().as_bytes());
        // No value holds a NUL.
        plain.resize(PLAIN_BYTES, 0);
        age::encrypt(&self.identity.to_public(), &plain)
            .map_err(|error| StoreError::Unavailable { detail: error.to_string() })
    }

    fn put(&self, key: &SecretKey, value: &Secret, note: &PutNote) -> Result<u64, StoreError> {
        let directory = self.of(key);
        private_directory(&directory).map_err(unavailable)?;
        let note = note.to_string();
        for _ in 0..PUT_ATTEMPTS_MAX {
            let version = Self::versions(&directory, &[VALUE, NOTE, GONE])?.last().map_or(1, |newest| newest + 1);
            // Whose note it is, whose number it is.
            match link_new(&directory, &Self::path(&directory, version, NOTE), note.as_bytes()) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(unavailable(error)),
            }
            let content = self.encrypted(key, version, value)?;
            link_new(&directory, &Self::path(&directory, version, VALUE), &content).map_err(unavailable)?;
            self.sync_above(&directory)?;
            Self::forget_old(&directory);
            return Ok(version);
        }
        Err(StoreError::Throttled)
    }

    /// A note that cannot be read counts as none: what it is beside stays.
    fn notes(&self, org: OrgId, owner: SecretOwner) -> Result<Vec<Unrecorded>, StoreError> {
        let mut found = Vec::new();
        for (name, directory) in named::<SecretName>(&self.owner(org, owner))? {
            for (generation, directory) in named::<u32>(&directory)? {
                for version in Self::versions(&directory, &[NOTE])? {
                    let mut bytes = Vec::new();
                    match File::open(Self::path(&directory, version, NOTE)) {
                        Err(error) if error.kind() == ErrorKind::NotFound => continue,
                        file => file
                            .and_then(|file| file.take(NOTE_BYTES_MAX).read_to_end(&mut bytes))
                            .map_err(unavailable)?,
                    };
                    let key = SecretKey { org, owner, name: name.clone(), generation };
                    match String::from_utf8_lossy(&bytes).parse() {
                        Ok(note) => found.push(Unrecorded { key, version, note }),
                        Err(error) => tracing::warn!(name = %key.name, version, %error, "a value stays in the store"),
                    }
                }
            }
        }
        Ok(found)
    }

    fn record(&self, key: &SecretKey, version: u64) -> Result<(), StoreError> {
        let directory = self.of(key);
        remove(&Self::path(&directory, version, NOTE))?;
        sync(&directory)
    }

    fn withdraw(&self, key: &SecretKey, versions: &BTreeSet<u64>) -> Result<usize, StoreError> {
        let directory = self.of(key);
        let mut gone = 0;
        for version in versions {
            let note = Self::path(&directory, *version, NOTE);
            // Recorded meanwhile, or withdrawn by somebody else.
            if !fs::exists(&note).map_err(unavailable)? {
                continue;
            }
            match link_new(&directory, &Self::path(&directory, *version, GONE), b"") {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(unavailable(error)),
                _ => {}
            }
            remove(&Self::path(&directory, *version, VALUE))?;
            // The note goes last: whoever is stopped here comes back to it.
            sync(&directory)?;
            remove(&note)?;
            gone += 1;
        }
        sync(&directory)?;
        Ok(gone)
    }

    /// The directories themselves may be new.
    fn sync_above(&self, directory: &Path) -> Result<(), StoreError> {
        for above in directory.ancestors().skip(1).take_while(|above| above.starts_with(&self.values)) {
            File::open(above).and_then(|above| above.sync_all()).map_err(unavailable)?;
        }
        Ok(())
    }

    /// What cannot be removed now is removed at the next put.
    fn forget_old(directory: &Path) {
        if let Ok(versions) = Self::versions(directory, &[VALUE]) {
            let over = versions.len().saturating_sub(SECRET_VERSIONS_MAX);
            for version in &versions[..over] {
                let _ = fs::remove_file(Self::path(directory, *version, VALUE));
            }
            let oldest = versions.get(over).copied().unwrap_or_default();
            for version in Self::versions(directory, &[NOTE, GONE]).into_iter().flatten().filter(|one| *one < oldest) {
                let _ = fs::remove_file(Self::path(directory, version, NOTE));
                let _ = fs::remove_file(Self::path(directory, version, GONE));
            }
        }
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let old = entry
                .metadata()
                .and_then(|metadata| metadata.modified())
                .is_ok_and(|modified| modified.elapsed().is_ok_and(|age| age > HALF_WRITE_AGE));
            if old && entry.path().extension().is_some_and(|extension| extension == "new") {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// `None`: there is no such file.
    fn read(&self, pinned: &PinnedSecret) -> Result<Option<Secret>, StoreError> {
        let path = Self::path(&self.of(&pinned.key), pinned.version, VALUE);
        let file = match File::open(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            file => file.map_err(unavailable)?,
        };
        let mut content = Vec::new();
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut content).map_err(unavailable)?;
        if content.len() as u64 > FILE_BYTES_MAX {
            return Err(damaged(pinned, "is larger than any that this store writes"));
        }
        let plain = age::decrypt(&self.identity, &content).map_err(|error| match error {
            age::DecryptError::NoMatchingKeys => damaged(pinned, "was encrypted for another identity"),
            _ => damaged(pinned, "is damaged: it is not what was written"),
        })?;
        let plain = Zeroizing::new(plain);
        let foreign = || damaged(pinned, "is another secret's file");
        let value = plain.strip_prefix(head(&pinned.key, pinned.version).as_bytes()).ok_or_else(foreign)?;
        let length = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
        let text = String::from_utf8(value[..length].to_vec()).map_err(|_| damaged(pinned, "is no text"))?;
        Ok(Some(Secret::new(text)))
    }
}

#[async_trait]
impl SecretStore for FileStore {
    async fn put(&self, key: &SecretKey, value: &Secret, note: &PutNote) -> Result<u64, StoreError> {
        check_value(value)?;
        let (key, value, note) = (key.clone(), value.clone(), note.clone());
        self.blocking(move |inner| inner.put(&key, &value, &note)).await
    }

    async fn read(&self, pinned: &[PinnedSecret]) -> Result<Vec<Secret>, StoreError> {
        if pinned.len() > SECRET_READ_MAX {
            return Err(StoreError::TooMany { max: SECRET_READ_MAX });
        }
        let pinned = pinned.to_vec();
        self.blocking(move |inner| {
            let (mut values, mut missing) = (Vec::with_capacity(pinned.len()), Vec::new());
            for one in pinned {
                match inner.read(&one)? {
                    Some(value) => values.push(value),
                    None => missing.push(one),
                }
            }
            if missing.is_empty() { Ok(values) } else { Err(StoreError::Missing { pinned: missing }) }
        })
        .await
    }

    async fn delete(&self, key: &SecretKey) -> Result<(), StoreError> {
        let key = key.clone();
        self.blocking(move |inner| {
            let directory = inner.of(&key);
            match fs::remove_dir_all(&directory) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(unavailable(error)),
                _ => {}
            }
            // Empty ones above go too; one that is not empty stays.
            for above in directory.ancestors().skip(1).take(2) {
                if fs::remove_dir(above).is_err() {
                    break;
                }
            }
            Ok(())
        })
        .await
    }

    async fn keys(&self, org: OrgId, owner: SecretOwner) -> Result<Vec<SecretKey>, StoreError> {
        self.blocking(move |inner| {
            let mut keys = Vec::new();
            for (name, directory) in named::<SecretName>(&inner.owner(org, owner))? {
                for generation in named::<u32>(&directory)?.into_keys() {
                    keys.push(SecretKey { org, owner, name: name.clone(), generation });
                }
            }
            Ok(keys)
        })
        .await
    }

    async fn unrecorded(&self, org: OrgId, owners: &[SecretOwner]) -> Result<Vec<Unrecorded>, StoreError> {
        let owners = owners.to_vec();
        self.blocking(move |inner| {
            let found = owners.into_iter().map(|owner| inner.notes(org, owner)).collect::<Result<Vec<_>, _>>()?;
            Ok(found.into_iter().flatten().collect())
        })
        .await
    }

    async fn record(&self, key: &SecretKey, version: u64) -> Result<(), StoreError> {
        let key = key.clone();
        self.blocking(move |inner| inner.record(&key, version)).await
    }

    async fn withdraw(&self, key: &SecretKey, versions: &BTreeSet<u64>) -> Result<usize, StoreError> {
        let (key, versions) = (key.clone(), versions.clone());
        self.blocking(move |inner| inner.withdraw(&key, &versions)).await
    }
}

/// What is not there is removed already.
fn remove(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(unavailable(error)),
        _ => Ok(()),
    }
}

/// One that is gone with all that was in it is synced already.
fn sync(directory: &Path) -> Result<(), StoreError> {
    match File::open(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        opened => opened.and_then(|directory| directory.sync_all()).map_err(unavailable),
    }
}

/// What lies in a directory under names of that kind; nothing where there is none.
fn named<T: FromStr + Ord>(directory: &Path) -> Result<BTreeMap<T, PathBuf>, StoreError> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(BTreeMap::new()),
        entries => entries.map_err(unavailable)?,
    };
    let mut found = BTreeMap::new();
    for entry in entries {
        let entry = entry.map_err(unavailable)?;
        if let Some(name) = entry.file_name().to_str().and_then(|name| name.parse().ok()) {
            found.insert(name, entry.path());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use envforge_domain::commit::Position;
    use envforge_domain::ids::{CommandId, ProjectId};
    use envforge_domain::time::UnixMillis;
    use uuid::Uuid;

    use super::*;
    use crate::secret_store::LogMark;

    fn key(name: &str, generation: u32) -> SecretKey {
        let org = OrgId::from_uuid(Uuid::from_u128(1));
        let owner = SecretOwner::Project(ProjectId::from_uuid(Uuid::from_u128(2)));
        SecretKey { org, owner, name: name.parse().unwrap(), generation }
    }

    fn pin(key: &SecretKey, version: u64) -> PinnedSecret {
        PinnedSecret { key: key.clone(), version }
    }

    fn secret(text: &str) -> Secret {
        Secret::new(text.to_owned())
    }

    fn note() -> PutNote {
        let log = LogMark { position: Position::new(7), identity: "log".to_owned(), digest: [1; 32] };
        PutNote { command: CommandId::from_uuid(Uuid::from_u128(3)), at: UnixMillis::new(1), log }
    }

    fn path(directory: &Path, key: &SecretKey, version: u64) -> PathBuf {
        let SecretKey { org, owner, name, generation } = key;
        directory.join(format!("values/{org}/{owner}/{name}/{generation}/{version}.age"))
    }

    async fn read_one(store: &FileStore, pinned: PinnedSecret) -> Result<String, StoreError> {
        store.read(&[pinned]).await.map(|values| values[0].expose().to_owned())
    }

    #[tokio::test]
    async fn versions_count_up_are_read_back_and_the_oldest_go() {
        let directory = tempfile::tempdir().unwrap();
        let store = FileStore::open(directory.path()).unwrap();
        let key = key("API_KEY", 0);
        let last = SECRET_VERSIONS_MAX as u64 + 3;
        for version in 1..=last {
            assert_eq!(store.put(&key, &secret(&format!("value {version}")), &note()).await, Ok(version));
        }
        let reopened = FileStore::open(directory.path()).unwrap();
        assert_eq!(read_one(&reopened, pin(&key, last)).await.unwrap(), format!("value {last}"));
        assert_eq!(read_one(&reopened, pin(&key, 4)).await.unwrap(), "value 4");
        assert_eq!(read_one(&reopened, pin(&key, 3)).await, Err(StoreError::Missing { pinned: vec![pin(&key, 3)] }));
        reopened.delete(&key).await.unwrap();
        reopened.delete(&key).await.unwrap();
        assert_eq!(reopened.keys(key.org, key.owner).await, Ok(vec![]));
        assert_eq!(
            fs::read_dir(directory.path().join("values")).unwrap().count(),
            1,
            "only the organization's is left"
        );
    }

    #[tokio::test]
    async fn no_file_holds_a_value_or_tells_how_long_it_is_and_nobody_else_may_read_one() {
        let directory = tempfile::tempdir().unwrap();
        let store = FileStore::open(directory.path()).unwrap();
        let (short, long) = (key("SHORT", 0), key("LONG", 1));
        store.put(&short, &secret("s3cr3t-canary"), &note()).await.unwrap();
        store.put(&long, &secret(&"x".repeat(SECRET_BYTES_MAX)), &note()).await.unwrap();
        let contents = [path(directory.path(), &short, 1), path(directory.path(), &long, 1)].map(|path| {
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
            fs::read(path).unwrap()
        });
        // age adds a little of random length, so that readers get used to it.
        assert!(contents[0].len().abs_diff(contents[1].len()) < 500);
        assert!(!String::from_utf8_lossy(&contents[0]).contains("s3cr3t-canary"));
        assert_eq!(read_one(&store, pin(&long, 1)).await.unwrap().len(), SECRET_BYTES_MAX);
        let mode = fs::metadata(directory.path().join(IDENTITY)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[tokio::test]
    async fn what_is_damaged_moved_or_encrypted_for_somebody_else_is_refused_in_words() {
        let (directory, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (store, other) = (FileStore::open(directory.path()).unwrap(), FileStore::open(elsewhere.path()).unwrap());
        let (key, moved) = (key("API_KEY", 0), key("OTHER_KEY", 0));
        for store in [&store, &other] {
            store.put(&key, &secret("value"), &note()).await.unwrap();
            store.put(&moved, &secret("another"), &note()).await.unwrap();
        }
        let file = path(directory.path(), &key, 1);
        let whole = fs::read(&file).unwrap();
        let refused = async |content: &[u8], expected: &str| {
            fs::write(&file, content).unwrap();
            match read_one(&store, pin(&key, 1)).await {
                Err(StoreError::Damaged { detail, pinned: Some(named) }) => {
                    assert!(detail.contains(expected), "{detail}");
                    assert_eq!(named, pin(&key, 1));
                }
                other => panic!("{other:?}"),
            }
        };
        let mut flipped = whole.clone();
        *flipped.last_mut().unwrap() ^= 1;
        refused(&flipped, "damaged").await;
        refused(&whole[..whole.len() - 1], "damaged").await;
        refused(b"", "damaged").await;
        refused(&vec![b'a'; 9 * 1024], "larger").await;
        refused(&fs::read(path(elsewhere.path(), &key, 1)).unwrap(), "another identity").await;
        refused(&fs::read(path(directory.path(), &moved, 1)).unwrap(), "another secret's").await;
        fs::write(&file, &whole).unwrap();
        assert_eq!(read_one(&store, pin(&key, 1)).await.unwrap(), "value");
    }

    #[test]
    fn an_identity_that_is_gone_broken_or_exposed_is_not_replaced() {
        let directory = tempfile::tempdir().unwrap();
        drop(FileStore::open(directory.path()).unwrap());
        let path = directory.path().join(IDENTITY);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(FileStore::open(directory.path()), Err(FileStoreError::Exposed { mode: 0o644, .. })));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(&path, "nonsense").unwrap();
        assert!(matches!(FileStore::open(directory.path()), Err(FileStoreError::Identity { .. })));
        fs::remove_file(&path).unwrap();
        assert!(matches!(FileStore::open(directory.path()), Err(FileStoreError::IdentityMissing { .. })));
    }

    #[tokio::test]
    async fn values_out_of_bounds_and_too_many_at_once_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let store = FileStore::open(directory.path()).unwrap();
        let key = key("API_KEY", 0);
        for value in [String::new(), "a\0b".to_owned(), "x".repeat(SECRET_BYTES_MAX + 1)] {
            assert_eq!(
                store.put(&key, &secret(&value), &note()).await,
                Err(StoreError::Value { max: SECRET_BYTES_MAX })
            );
        }
        let many: Vec<_> = (0..=SECRET_READ_MAX as u64).map(|version| pin(&key, version)).collect();
        assert_eq!(store.read(&many).await.err(), Some(StoreError::TooMany { max: SECRET_READ_MAX }));
    }

    #[tokio::test]
    async fn puts_at_the_same_moment_get_versions_of_their_own() {
        let directory = tempfile::tempdir().unwrap();
        let stores = [FileStore::open(directory.path()).unwrap(), FileStore::open(directory.path()).unwrap()];
        let key = key("API_KEY", 0);
        let puts = (0..16).map(|number| {
            let (store, key) = (stores[number % 2].clone(), key.clone());
            tokio::spawn(
                async move { (number, store.put(&key, &secret(&format!("{number}")), &note()).await.unwrap()) },
            )
        });
        let mut versions = Vec::new();
        for put in puts.collect::<Vec<_>>() {
            let (number, version) = put.await.unwrap();
            assert_eq!(read_one(&stores[0], pin(&key, version)).await.unwrap(), number.to_string());
            versions.push(version);
        }
        versions.sort_unstable();
        assert_eq!(versions, (1..=16).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn the_keys_of_an_owner_are_found() {
        let directory = tempfile::tempdir().unwrap();
        let store = FileStore::open(directory.path()).unwrap();
        let keys = [key("A", 0), key("A", 2), key("B", 1)];
        for key in &keys {
            store.put(key, &secret("value"), &note()).await.unwrap();
        }
        assert_eq!(store.keys(keys[0].org, keys[0].owner).await.unwrap(), keys);
        let nobody = SecretOwner::Project(ProjectId::from_uuid(Uuid::from_u128(9)));
        assert_eq!(store.keys(keys[0].org, nobody).await.unwrap(), []);
    }

    #[tokio::test]
    async fn what_was_put_is_noted_until_it_is_recorded_and_only_what_is_noted_is_withdrawn() {
        let directory = tempfile::tempdir().unwrap();
        let store = FileStore::open(directory.path()).unwrap();
        let key = key("API_KEY", 0);
        for version in 1..=3 {
            store.put(&key, &secret(&format!("value {version}")), &note()).await.unwrap();
        }
        store.record(&key, 1).await.unwrap();
        store.record(&key, 1).await.unwrap();
        let versions = async || {
            let found = store.unrecorded(key.org, &[key.owner]).await.unwrap();
            assert!(found.iter().all(|found| found.key == key && found.note == note()));
            found.into_iter().map(|found| found.version).collect::<Vec<_>>()
        };
        assert_eq!(versions().await, [2, 3]);
        assert_eq!(store.withdraw(&key, &BTreeSet::from([1, 3, 9])).await, Ok(1), "what is recorded stays");
        assert_eq!(read_one(&store, pin(&key, 1)).await.unwrap(), "value 1");
        assert_eq!(read_one(&store, pin(&key, 3)).await, Err(StoreError::Missing { pinned: vec![pin(&key, 3)] }));
        assert_eq!(versions().await, [2]);
        // Nobody gets a number that somebody had.
        assert_eq!(store.put(&key, &secret("value 4"), &note()).await, Ok(4));
        assert_eq!(store.unrecorded(key.org, &[]).await, Ok(vec![]));
        // One without a note, as of former versions of EnvForge, is not one to withdraw.
        fs::remove_file(path(directory.path(), &key, 2).with_extension("note")).unwrap();
        assert_eq!(versions().await, [4]);
        // A put that was cut short has a note and no value.
        fs::remove_file(path(directory.path(), &key, 4)).unwrap();
        assert_eq!(store.withdraw(&key, &BTreeSet::from([2, 4])).await, Ok(1));
        assert_eq!(read_one(&store, pin(&key, 2)).await.unwrap(), "value 2");
        assert_eq!(store.put(&key, &secret("value 5"), &note()).await, Ok(5));
    }
}
