//! The first owner's password, kept in a private file from before its account exists until somebody was told it.
//!
//! Without it a start that made the account and then failed, on a busy port, would leave an installation that nobody can
//! sign in to. Not here: making the account (`bootstrap`).

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use envforge_domain::secret::Secret;

/// Where the password waits.
pub(crate) struct FirstPassword {
    folder: PathBuf,
}

impl FirstPassword {
    const FILE: &str = "first-password";

    /// `folder`: the one of the keys, which is its owner's alone.
    pub(crate) fn in_folder(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    fn path(&self) -> PathBuf {
        self.folder.join(Self::FILE)
    }

    /// The password that nobody was told yet.
    pub(crate) fn kept(&self) -> anyhow::Result<Option<Secret>> {
        match fs::read_to_string(self.path()) {
            Ok(text) => Ok(Some(Secret::new(text.trim_end().to_owned()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| self.path().display().to_string()),
        }
    }

    /// Keeps it, whole or not at all, also when the machine stops in the middle.
    pub(crate) fn keep(&self, password: &Secret) -> anyhow::Result<()> {
        let draft = self.path().with_extension("new");
        let attempt = || -> io::Result<()> {
            match fs::remove_file(&draft) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
            file.write_all(password.expose().as_bytes())?;
            file.sync_all()?;
            fs::rename(&draft, self.path())?;
            File::open(&self.folder)?.sync_all()
        };
        attempt().with_context(|| format!("the first password cannot be kept in {}", self.path().display()))
    }

    /// Somebody was told, or has chosen another.
    pub(crate) fn forget(&self) -> anyhow::Result<()> {
        match fs::remove_file(self.path()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {} yourself", self.path().display()))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_password_is_kept_for_its_owner_alone_until_it_was_told() {
        let folder = tempfile::tempdir().unwrap();
        let kept = FirstPassword::in_folder(folder.path());
        assert!(kept.kept().unwrap().is_none());
        // What a start that was killed in the middle of writing left behind.
        fs::write(folder.path().join("first-password.new"), "half").unwrap();
        kept.keep(&Secret::new("plum kite engine 7".to_owned())).unwrap();
        assert_eq!(kept.kept().unwrap().unwrap().expose(), "plum kite engine 7");
        assert_eq!(fs::metadata(kept.path()).unwrap().permissions().mode() & 0o777, 0o600);
        kept.forget().unwrap();
        kept.forget().unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
