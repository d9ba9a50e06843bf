//! Small files that only their owner may read, replaced as a whole.
//!
//! Not here: what stands in them (`settings`, `credentials`).

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::failure::Failure;

/// No file of ours comes near it.
const BYTES_MAX: u64 = 1 << 20;

/// The file's text; `None` where there is none.
pub(crate) fn read(path: &Path) -> Result<Option<String>, Failure> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unusable(path, "read", &error)),
    };
    let mut text = String::new();
    file.take(BYTES_MAX).read_to_string(&mut text).map_err(|error| unusable(path, "read", &error))?;
    Ok(Some(text))
}

/// Whether others than the owner may read or write it. `None` where there is no file.
pub(crate) fn is_open_to_others(path: &Path) -> Option<bool> {
    std::fs::metadata(path).ok().map(|metadata| metadata.permissions().mode() & 0o077 != 0)
}

/// Puts `text` in the file's place at once: a reader sees the old or the new text, also after a crash.
pub(crate) fn write(path: &Path, text: &str) -> Result<(), Failure> {
    let dir = folder(path)?;
    let attempt = || -> std::io::Result<()> {
        let mut draft = tempfile_in(&dir, path)?;
        let written = draft.1.write_all(text.as_bytes()).and_then(|()| draft.1.sync_all());
        let placed = written.and_then(|()| std::fs::rename(&draft.0, path));
        if placed.is_err() {
            // The error that counts is the one above; a left-over draft is private and harmless.
            let _ = std::fs::remove_file(&draft.0);
        }
        placed?;
        File::open(&dir)?.sync_all()
    };
    attempt().map_err(|error| unusable(path, "written", &error))
}

/// The file that processes lock while they replace `path`.
pub(crate) fn open_lock(path: &Path) -> Result<File, Failure> {
    folder(path)?;
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
        .map_err(|error| unusable(path, "opened", &error))
}

/// The file's folder, made for the owner alone where it is missing.
fn folder(path: &Path) -> Result<PathBuf, Failure> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new(".")).to_owned();
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir);
    made.map_err(|error| unusable(&dir, "made", &error))?;
    Ok(dir)
}

fn tempfile_in(dir: &Path, path: &Path) -> std::io::Result<(PathBuf, File)> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let draft = dir.join(format!(".{name}.{}.new", std::process::id()));
    // A draft that a killed process of the same number left behind.
    match std::fs::remove_file(&draft) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    Ok((draft, file))
}

fn unusable(path: &Path, verb: &str, error: &std::io::Error) -> Failure {
    Failure::local(
        format!("{} cannot be {verb}: {error}", path.display()),
        "check its owner and permissions, or name another folder: ENVFORGE_CONFIG_DIR=/some/folder",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_written_file_is_for_its_owner_alone_and_leaves_no_draft() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep").join("credentials.json");
        assert_eq!(read(&path).unwrap(), None);
        for text in ["one", "two"] {
            write(&path, text).unwrap();
            assert_eq!(read(&path).unwrap().as_deref(), Some(text));
        }
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        assert_eq!(is_open_to_others(&path), Some(false));
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_others_could_read_becomes_private_when_it_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("credentials.json");
        std::fs::write(&path, "old").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(is_open_to_others(&path), Some(true));
        write(&path, "new").unwrap();
        assert_eq!(is_open_to_others(&path), Some(false));
    }
}
