//! Folders that end with the test.
//!
//! They lie in the system's temporary folder, not in `target`: PostgreSQL runs as another user where tests run as root, and that user
//! often may not enter the folder in which the working copy lies.

use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// A fresh folder, removed on drop. Folders of killed test processes are removed by the next test that makes one.
#[derive(Debug)]
pub struct TestDir {
    path: PathBuf,
}

impl TestDir {
    /// Makes the folder.
    ///
    /// # Panics
    /// When the temporary folder cannot be written to.
    #[allow(clippy::new_without_default, reason = "making a folder is not a default value")]
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        static SWEPT: OnceLock<()> = OnceLock::new();
        let base = base();
        SWEPT.get_or_init(|| sweep(base));
        let path = base.join(format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
        create(&path);
        Self { path }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The path of `name` inside.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for TestDir {
    fn drop(&mut self) {
        // A server that is just dying may still write into it: the sweep of a later test takes what is left.
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// The folder of this user under which all test folders lie.
pub(crate) fn base() -> &'static Path {
    static BASE: OnceLock<PathBuf> = OnceLock::new();
    BASE.get_or_init(|| {
        let user = nix::unistd::getuid();
        let path = std::env::temp_dir().join(format!("envforge-tests-{user}"));
        if !path.is_dir() {
            create(&path);
        }
        let owner =
            std::fs::symlink_metadata(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).uid();
        assert!(owner == user.as_raw(), "{} belongs to user {owner}, not to us ({user}): remove it", path.display());
        path
    })
}

fn create(path: &Path) {
    match std::fs::DirBuilder::new().mode(0o755).create(path) {
        Ok(()) => {}
        // Two test processes that start together both make the base folder.
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && path.is_dir() => {}
        Err(error) => panic!("cannot create {}: {error}", path.display()),
    }
}

/// Removes folders whose process is gone.
fn sweep(base: &Path) {
    for entry in std::fs::read_dir(base).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let process =
            name.to_str().and_then(|name| name.split_once('-')).and_then(|(process, _)| process.parse::<i32>().ok());
        if let Some(process) = process
            && nix::sys::signal::kill(nix::unistd::Pid::from_raw(process), None) == Err(nix::errno::Errno::ESRCH)
        {
            crate::postgres::release_memory(&entry.path().join("data"));
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_ends_with_its_value() {
        let dir = TestDir::new();
        std::fs::write(dir.join("file"), "x").unwrap();
        let path = dir.path().to_path_buf();
        drop(dir);
        assert!(!path.exists());
    }

    #[test]
    fn what_a_dead_process_left_is_swept() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let dead = child.id();
        child.wait().unwrap();
        let left = base().join(format!("{dead}-0"));
        std::fs::create_dir(&left).unwrap();
        sweep(base());
        assert!(!left.exists());
    }
}
