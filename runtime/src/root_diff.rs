//! What changed on this host while a command ran as root: packages, and files where administrators keep theirs.
//!
//! Names alone, never what is in them. It says what changed, not who changed it: others may have been at work meanwhile.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use envforge_domain::limits::{ROOT_CHANGE_CHARS_MAX, ROOT_CHANGES_MAX};
use envforge_domain::root_window::{FileChange, FileChangeKind, PackageChange, RootChanges};
use serde::{Deserialize, Serialize};

/// Where changes of files are looked for. What packages bring lies elsewhere, and shows as their change.
const FILE_ROOTS: [&str; 2] = ["/etc", "/usr/local"];
/// Files that are looked at; where there are more, the rest is not known.
const FILES_MAX: usize = 50_000;
const DIRECTORIES_MAX: usize = 20_000;
/// How long is looked; a command waits for it.
const LOOK_MAX: Duration = Duration::from_secs(2);
/// What is written of one look, as JSON: enough for ordinary paths of all files.
const SNAPSHOT_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Where Debian and what comes of it keep what is installed.
const DPKG_STATUS: &str = "/var/lib/dpkg/status";

/// What a file looks like from outside: any write, replacement, or change of owner or mode changes it.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Look {
    changed: (i64, i64),
    inode: u64,
    size: u64,
    mode: u32,
}

/// A host at one moment.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Snapshot {
    /// Versions by name and architecture.
    packages: Option<BTreeMap<String, String>>,
    files: BTreeMap<String, Look>,
    complete: bool,
}

impl Snapshot {
    /// Blocking: walks directories.
    pub(crate) fn take() -> Self {
        Self::of(&FILE_ROOTS.map(PathBuf::from), Path::new(DPKG_STATUS))
    }

    fn of(roots: &[PathBuf], dpkg_status: &Path) -> Self {
        let mut snapshot = Self {
            packages: fs::read_to_string(dpkg_status).ok().map(|text| packages(&text)),
            files: BTreeMap::new(),
            complete: true,
        };
        let (mut open, mut directories, begun) = (roots.to_vec(), 0, Instant::now());
        while let Some(directory) = open.pop() {
            directories += 1;
            if directories > DIRECTORIES_MAX || begun.elapsed() > LOOK_MAX {
                snapshot.complete = false;
                break;
            }
            let Ok(entries) = fs::read_dir(&directory) else {
                snapshot.complete = false;
                continue;
            };
            for entry in entries {
                let Ok((path, metadata)) = entry.and_then(|entry| Ok((entry.path(), entry.metadata()?))) else {
                    // Gone in between, or out of reach.
                    snapshot.complete = false;
                    continue;
                };
                if metadata.is_dir() {
                    open.push(path);
                } else if snapshot.files.len() < FILES_MAX {
                    let look = Look {
                        changed: (metadata.ctime(), metadata.ctime_nsec()),
                        inode: metadata.ino(),
                        size: metadata.size(),
                        mode: metadata.mode(),
                    };
                    snapshot.files.insert(path.to_string_lossy().into_owned(), look);
                } else {
                    snapshot.complete = false;
                }
            }
        }
        snapshot
    }

    /// Blocking. Not to be read by others: it tells what is where only root looks.
    pub(crate) fn write(&self, path: &Path) -> io::Result<()> {
        let text = serde_json::to_vec(self)?;
        if text.len() as u64 > SNAPSHOT_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "there is too much on this host"));
        }
        let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(path)?;
        file.write_all(&text)
    }

    /// Blocking. `None` where none was written, or not all of it.
    pub(crate) fn read(path: &Path) -> Option<Self> {
        let mut text = Vec::new();
        File::open(path).ok()?.take(SNAPSHOT_BYTES_MAX).read_to_end(&mut text).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// What `after` has otherwise, sorted, and cut to what an event holds.
    pub(crate) fn changes_to(&self, after: &Self) -> RootChanges {
        let mut incomplete = !(self.complete && after.complete);
        let mut packages = Vec::new();
        match (&self.packages, &after.packages) {
            (Some(before), Some(after)) => {
                for (name, before, after) in differing(before, after) {
                    let (name, before, after) =
                        (shown(name), before.map(|text| shown(text)), after.map(|text| shown(text)));
                    packages.push(PackageChange { name, before, after });
                }
            }
            _ => incomplete = true,
        }
        let files = differing(&self.files, &after.files).map(|(path, before, after)| FileChange {
            path: shown(path),
            kind: match (before, after) {
                (None, _) => FileChangeKind::Added,
                (Some(_), None) => FileChangeKind::Removed,
                (Some(_), Some(_)) => FileChangeKind::Changed,
            },
        });
        let mut files: Vec<_> = files.collect();
        incomplete |= packages.len() > ROOT_CHANGES_MAX || files.len() > ROOT_CHANGES_MAX;
        packages.truncate(ROOT_CHANGES_MAX);
        files.truncate(ROOT_CHANGES_MAX);
        RootChanges { packages, files, incomplete }
    }
}

/// The keys whose values differ, with both values, in order.
fn differing<'a, K: Ord, V: PartialEq>(
    before: &'a BTreeMap<K, V>,
    after: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, Option<&'a V>, Option<&'a V>)> {
    let gone_or_changed = before.iter().map(|(key, value)| (key, Some(value), after.get(key)));
    let new = after.iter().filter(|(key, _)| !before.contains_key(key)).map(|(key, value)| (key, None, Some(value)));
    gone_or_changed.chain(new).filter(|(_, before, after)| before != after)
}

fn shown(text: &str) -> String {
    text.chars().take(ROOT_CHANGE_CHARS_MAX).collect()
}

/// Installed packages of a dpkg status file, with their versions.
fn packages(status: &str) -> BTreeMap<String, String> {
    let paragraphs = status.split("\n\n").filter_map(|paragraph| {
        let field = |name: &str| {
            paragraph.lines().find_map(|line| line.strip_prefix(name).and_then(|rest| rest.strip_prefix(": ")))
        };
        let installed = field("Status")?.split(' ').next_back() == Some("installed");
        let name = format!("{}:{}", field("Package")?, field("Architecture").unwrap_or("all"));
        installed.then(|| Some((name, field("Version")?.to_owned()))).flatten()
    });
    paragraphs.collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn packages_that_came_went_or_got_another_version_are_told_and_configuration_left_behind_is_none() {
        let paragraph = |name: &str, status: &str, version: &str| {
            format!(
                "Package: {name}\nStatus: install ok {status}\nArchitecture: amd64\nVersion: {version}\nDescription: x\n y\n"
            )
        };
        let status = |all: &[String]| all.join("\n");
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (dir.path().join("first"), dir.path().join("second"));
        let one = [
            paragraph("gone", "installed", "1"),
            paragraph("kept", "installed", "1"),
            paragraph("up", "installed", "1"),
        ];
        let two = [
            paragraph("gone", "config-files", "1"),
            paragraph("kept", "installed", "1"),
            paragraph("new", "installed", "3"),
            paragraph("up", "installed", "2"),
        ];
        fs::write(&first, status(&one)).unwrap();
        fs::write(&second, status(&two)).unwrap();
        let changes = Snapshot::of(&[], &first).changes_to(&Snapshot::of(&[], &second));
        let told: Vec<_> = changes
            .packages
            .iter()
            .map(|change| (change.name.as_str(), change.before.as_deref(), change.after.as_deref()))
            .collect();
        assert_eq!(
            told,
            [("gone:amd64", Some("1"), None), ("up:amd64", Some("1"), Some("2")), ("new:amd64", None, Some("3"))]
        );
        assert!(!changes.incomplete);
        let unknown = Snapshot::of(&[], &dir.path().join("none"));
        assert!(unknown.changes_to(&Snapshot::of(&[], &second)).incomplete, "where nobody knows, that is said");
    }

    #[test]
    fn files_that_came_went_or_were_written_are_told_by_name_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (root, status) = (dir.path().join("etc"), dir.path().join("status"));
        fs::create_dir_all(root.join("deep")).unwrap();
        fs::write(&status, "").unwrap();
        for name in ["gone", "kept", "deep/written"] {
            fs::write(root.join(name), "before").unwrap();
        }
        let before = Snapshot::of(std::slice::from_ref(&root), &status);
        fs::remove_file(root.join("gone")).unwrap();
        fs::write(root.join("deep/written"), "after!").unwrap();
        fs::write(root.join("new"), "a secret").unwrap();
        let changes = before.changes_to(&Snapshot::of(std::slice::from_ref(&root), &status));
        let told: Vec<_> = changes
            .files
            .iter()
            .map(|change| (change.path.rsplit('/').next().unwrap().to_owned(), change.kind))
            .collect();
        let expected =
            [("written", FileChangeKind::Changed), ("gone", FileChangeKind::Removed), ("new", FileChangeKind::Added)];
        assert_eq!(told, expected.map(|(name, kind)| (name.to_owned(), kind)));
        assert!(!changes.incomplete && changes.packages.is_empty());
        for number in 0..=ROOT_CHANGES_MAX {
            fs::write(root.join(format!("many-{number}")), "").unwrap();
        }
        let many = before.changes_to(&Snapshot::of(&[root], &status));
        assert!(many.incomplete && many.files.len() == ROOT_CHANGES_MAX);
    }

    #[test]
    fn a_look_that_was_written_down_tells_what_changed_since_and_half_of_one_tells_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (root, status, kept) = (dir.path().join("etc"), dir.path().join("status"), dir.path().join("kept"));
        fs::create_dir(&root).unwrap();
        fs::write(&status, "").unwrap();
        fs::write(root.join("hosts"), "before").unwrap();
        let look = || Snapshot::of(std::slice::from_ref(&root), &status);
        look().write(&kept).unwrap();
        assert_eq!(fs::metadata(&kept).unwrap().mode() & 0o777, 0o600);
        assert!(Snapshot::read(&kept).unwrap().changes_to(&look()) == RootChanges::default());
        fs::write(root.join("hosts"), "afterwards").unwrap();
        let changes = Snapshot::read(&kept).unwrap().changes_to(&look());
        assert_eq!(changes.files.iter().map(|change| change.kind).collect::<Vec<_>>(), [FileChangeKind::Changed]);
        let text = fs::read(&kept).unwrap();
        fs::write(&kept, &text[..text.len() / 2]).unwrap();
        assert!(Snapshot::read(&kept).is_none() && Snapshot::read(&root.join("none")).is_none());
    }
}
