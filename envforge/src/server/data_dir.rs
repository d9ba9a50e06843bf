//! The data directory of an embedded EnvForge: where what lies, and that only its owner may read it.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// A directory with mode 0700.
#[derive(Clone, Debug)]
pub(crate) struct DataDir(PathBuf);

#[derive(Debug, thiserror::Error)]
pub(crate) enum DataDirError {
    #[error("cannot make the data directory `{path}`: {source}; choose another with --data")]
    Create { path: PathBuf, source: io::Error },
    #[error("the data directory `{path}` is open to others (mode {mode:o}); run `chmod 700 {path}`")]
    Open { path: PathBuf, mode: u32 },
    #[error("`{path}` is not a directory; choose another with --data")]
    NotADirectory { path: PathBuf },
    #[error("this user has no data directory of their own; choose one with --data")]
    NoDefault,
}

impl DataDir {
    /// The user's data directory by the platform's convention.
    pub(crate) fn default_path() -> Result<PathBuf, DataDirError> {
        directories::ProjectDirs::from("ai", "EnvForge", "envforge")
            .map(|dirs| dirs.data_dir().to_path_buf())
            .ok_or(DataDirError::NoDefault)
    }

    pub(crate) fn open(path: &Path) -> Result<Self, DataDirError> {
        let create = |source| DataDirError::Create { path: path.to_path_buf(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(create)?;
        let path = path.canonicalize().map_err(create)?;
        let metadata = fs::metadata(&path).map_err(create)?;
        if !metadata.is_dir() {
            return Err(DataDirError::NotADirectory { path });
        }
        // An empty directory that somebody prepared is ours to close; one with content is not ours to change.
        let mode = metadata.permissions().mode() & 0o777;
        let empty = fs::read_dir(&path).map_err(create)?.next().is_none();
        if mode & 0o077 != 0 {
            if !empty || metadata.uid() != nix::unistd::getuid().as_raw() {
                return Err(DataDirError::Open { path, mode });
            }
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).map_err(create)?;
        }
        for folder in ["keys", "demo"] {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(path.join(folder)).map_err(create)?;
        }
        Ok(Self(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.0.join("log")
    }

    pub(crate) fn read_models(&self) -> PathBuf {
        self.0.join("read-models.sqlite")
    }

    pub(crate) fn credentials(&self) -> PathBuf {
        self.0.join("credentials.sqlite")
    }

    pub(crate) fn keys(&self) -> PathBuf {
        self.0.join("keys")
    }

    pub(crate) fn runtime(&self) -> PathBuf {
        self.0.join("runtime")
    }

    pub(crate) fn secrets(&self) -> PathBuf {
        self.0.join("secrets")
    }

    pub(crate) fn demo(&self) -> PathBuf {
        self.0.join("demo")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_directory_that_others_can_read_is_refused_when_it_holds_something() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("data");
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(fs::metadata(DataDir::open(&path).unwrap().path()).unwrap().permissions().mode() & 0o777, 0o700);
        fs::write(path.join("x"), "").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(matches!(DataDir::open(&path), Err(DataDirError::Open { mode: 0o755, .. })));
    }
}
