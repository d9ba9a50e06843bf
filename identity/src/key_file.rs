//! A symmetric key in a file that only its owner can read; made at the first start.
//!
//! Not here: what the key signs.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::randomness::{NoRandomness, Randomness};

/// Bytes of a key: as many as the output of SHA-256 (RFC 7518 3.2).
pub const KEY_BYTES: usize = 32;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    #[error("the key file {path} cannot be used: {error}")]
    Io { path: PathBuf, error: io::Error },
    #[error(
        "the key file {path} may be read by others (mode {mode:o}); run `chmod 600` on it, and replace it if others had access"
    )]
    Exposed { path: PathBuf, mode: u32 },
    #[error(
        "the key file {path} holds {found} bytes instead of {KEY_BYTES}; restore it, or remove it to end all sessions and start with a new key"
    )]
    Length { path: PathBuf, found: usize },
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
}

/// Reads the key, or makes one where there is none yet. Of two processes that start together one makes it and both
/// get the same.
pub fn open_or_create(path: &Path, randomness: Randomness) -> Result<Zeroizing<[u8; KEY_BYTES]>, KeyFileError> {
    let failed = |error: io::Error| KeyFileError::Io { path: path.to_owned(), error };
    match File::open(path) {
        Ok(file) => read(path, file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            create(path, randomness)?;
            read(path, File::open(path).map_err(failed)?)
        }
        Err(error) => Err(failed(error)),
    }
}

fn read(path: &Path, file: File) -> Result<Zeroizing<[u8; KEY_BYTES]>, KeyFileError> {
    let failed = |error: io::Error| KeyFileError::Io { path: path.to_owned(), error };
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(KeyFileError::Exposed { path: path.to_owned(), mode });
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(KEY_BYTES + 1));
    file.take(KEY_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    let key = <[u8; KEY_BYTES]>::try_from(bytes.as_slice())
        .map_err(|_| KeyFileError::Length { path: path.to_owned(), found: bytes.len() })?;
    Ok(Zeroizing::new(key))
}

/// Writes beside and links into place: the file never exists half-written, and never replaces another.
fn create(path: &Path, randomness: Randomness) -> Result<(), KeyFileError> {
    let failed = |error: io::Error| KeyFileError::Io { path: path.to_owned(), error };
    let mut key = Zeroizing::new([0_u8; KEY_BYTES]);
    randomness.fill(&mut *key)?;
    let mut nonce = [0_u8; 8];
    randomness.fill(&mut nonce)?;
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".{}", hex::encode(nonce)));
    let beside = PathBuf::from(beside);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside).map_err(failed)?;
    let written = file.write_all(&*key).and_then(|()| file.sync_all()).and_then(|()| fs::hard_link(&beside, path));
    fs::remove_file(&beside).map_err(failed)?;
    match written {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(failed(error)),
        _ => {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            File::open(parent).and_then(|directory| directory.sync_all()).map_err(failed)
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_key_is_made_once_for_its_owner_alone_and_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("access.key");
        let made = open_or_create(&path, Randomness).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(*open_or_create(&path, Randomness).unwrap(), *made);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_key_that_others_may_read_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("access.key");
        open_or_create(&path, Randomness).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(open_or_create(&path, Randomness), Err(KeyFileError::Exposed { mode: 0o640, .. })));
    }

    #[test]
    fn a_cut_key_is_refused_instead_of_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("access.key");
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).unwrap();
        file.write_all(b"short").unwrap();
        assert!(matches!(open_or_create(&path, Randomness), Err(KeyFileError::Length { found: 5, .. })));
    }

    #[test]
    fn threads_that_start_together_get_the_same_key() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("access.key");
        let keys: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| *open_or_create(&path, Randomness).unwrap())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(keys.iter().all(|key| key == &keys[0]));
    }
}
