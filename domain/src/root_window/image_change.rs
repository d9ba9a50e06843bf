//! What changed on a host, as lines of a Dockerfile: so that a base image may have it, and nobody needs root for it again.
//!
//! Names come from hosts. INVARIANT: only those of harmless characters become instructions; all others are comments. Not here: what is
//! in the files, which nobody has looked at.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::{FileChange, FileChangeKind, PackageChange, RootChanges, RootWindow};
use crate::limits::ROOT_CHANGE_CHARS_MAX;

/// Below the Dockerfile's folder: where files lie that are to be copied.
const FILES: &str = "files";

impl RootWindow {
    /// `None` where nothing has run, or nobody knows what changed.
    pub fn image_change(&self) -> Option<String> {
        let before = match self {
            Self::Open(open) => &open.before[..],
            Self::Over(over) => &over.before[..],
            Self::Unknown | Self::Requested { .. } | Self::Approved { .. } => &[],
        };
        let ended: Vec<_> = before.iter().chain(self.command()).filter_map(|command| command.ended.as_ref()).collect();
        let known: Vec<_> = ended.iter().filter_map(|ended| ended.changes.as_ref()).collect();
        let mut changes = together(&known)?;
        changes.incomplete |= known.len() < ended.len();
        Some(image_change(&self.terms()?.window.to_string(), &changes))
    }
}

/// What several shells changed one after the other, as if it had been one. `None` where there are none.
fn together(all: &[&RootChanges]) -> Option<RootChanges> {
    if all.is_empty() {
        return None;
    }
    let (mut packages, mut files) = (BTreeMap::new(), BTreeMap::new());
    for changes in all {
        for PackageChange { name, before, after } in &changes.packages {
            packages.entry(name).or_insert((before, after)).1 = after;
        }
        for FileChange { path, kind } in &changes.files {
            files.entry(path).or_insert((kind, kind)).1 = kind;
        }
    }
    let package = |(name, (before, after)): (&String, (&Option<String>, &Option<String>))| {
        (before != after).then(|| PackageChange { name: name.clone(), before: before.clone(), after: after.clone() })
    };
    let file = |(path, (first, last)): (&String, (&FileChangeKind, &FileChangeKind))| {
        let kind = match (first, last) {
            (FileChangeKind::Added, FileChangeKind::Removed) => return None,
            (FileChangeKind::Added, _) => FileChangeKind::Added,
            (_, FileChangeKind::Removed) => FileChangeKind::Removed,
            (FileChangeKind::Removed | FileChangeKind::Changed, _) => FileChangeKind::Changed,
        };
        Some(FileChange { path: path.clone(), kind })
    };
    Some(RootChanges {
        packages: packages.into_iter().filter_map(package).collect(),
        files: files.into_iter().filter_map(file).collect(),
        incomplete: all.iter().any(|changes| changes.incomplete),
    })
}

fn image_change(window: &str, changes: &RootChanges) -> String {
    let RootChanges { packages, files, incomplete } = changes;
    let mut text = format!(
        "# What changed on its host while {window} was used, for a Dockerfile. Read it first: others may have\n\
         # changed something meanwhile, too.\n"
    );
    if *incomplete {
        text.push_str("# Not everything is known: there was more, or not all could be looked at.\n");
    }
    if packages.is_empty() && files.is_empty() {
        text.push_str("# No change of packages, or of files below /etc and /usr/local, is known.\n");
    }
    let (mut installed, mut removed, mut by_hand) = (Vec::new(), Vec::new(), Vec::new());
    let mut another_version = false;
    for PackageChange { name, before, after } in packages {
        // Of packages for every architecture, apt takes the name alone.
        let name = name.strip_suffix(":all").unwrap_or(name);
        match after {
            Some(version) if is_package(name) && is_package(version) => {
                another_version |= before.is_some();
                installed.push(format!("{name}={version}"));
            }
            None if is_package(name) => removed.push(name.to_owned()),
            Some(version) => by_hand.push(format!("package {name} {version}")),
            None => by_hand.push(format!("package {name}, removed")),
        }
    }
    if !installed.is_empty() {
        let downgrades = if another_version { " --allow-downgrades" } else { "" };
        let list = installed.join(" \\\n      ");
        let _ = write!(
            text,
            "RUN apt-get update \\\n && apt-get install -y --no-install-recommends{downgrades} \\\n      {list} \\\n \
             && rm -rf /var/lib/apt/lists/*\n"
        );
    }
    if !removed.is_empty() {
        let _ = writeln!(text, "RUN apt-get remove -y \\\n      {}", removed.join(" \\\n      "));
    }
    let (mut copied, mut gone) = (String::new(), String::new());
    for FileChange { path, kind } in files {
        match kind {
            FileChangeKind::Added | FileChangeKind::Changed if is_path(path) => {
                let _ = writeln!(copied, "COPY [\"{FILES}{path}\", \"{path}\"]");
            }
            FileChangeKind::Removed if is_path(path) => {
                let _ = writeln!(gone, "RUN [\"rm\", \"-f\", \"{path}\"]");
            }
            FileChangeKind::Added | FileChangeKind::Changed | FileChangeKind::Removed => {
                by_hand.push(format!("file {path}, {}", kind.token()));
            }
        }
    }
    if !copied.is_empty() {
        let _ = write!(
            text,
            "# Files that were written: what is in them is yours to bring, below {FILES}/. No secrets, and not those that a\n\
             # package of the list brings along.\n{copied}"
        );
    }
    text.push_str(&gone);
    if !by_hand.is_empty() {
        text.push_str("# Names that are too long or too strange for an instruction:\n");
        for name in by_hand {
            let harmless: String = name.chars().map(|c| if is_shown(c) { c } else { '?' }).collect();
            let _ = writeln!(text, "#   {harmless}");
        }
    }
    text
}

/// A name, with an architecture perhaps, or a version, as Debian's are.
fn is_package(text: &str) -> bool {
    let first = text.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric());
    first && is_whole(text) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.:~".contains(&byte))
}

/// Without what a Dockerfile or a shell reads as anything but itself.
fn is_path(text: &str) -> bool {
    let harmless = |byte: u8| byte.is_ascii_alphanumeric() || b" /+-._:@,=%~".contains(&byte);
    text.starts_with('/') && is_whole(text) && text.bytes().all(harmless) && !text.split('/').any(|part| part == "..")
}

/// Longer names are cut on their way into the log.
fn is_whole(text: &str) -> bool {
    text.len() < ROOT_CHANGE_CHARS_MAX
}

/// No line ends, and nothing that only looks like something else.
fn is_shown(character: char) -> bool {
    character.is_ascii_graphic() || character == ' '
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, before: Option<&str>, after: Option<&str>) -> PackageChange {
        PackageChange { name: name.to_owned(), before: before.map(str::to_owned), after: after.map(str::to_owned) }
    }

    fn file(path: &str, kind: FileChangeKind) -> FileChange {
        FileChange { path: path.to_owned(), kind }
    }

    #[test]
    fn packages_come_with_their_versions_and_files_by_name() {
        let changes = RootChanges {
            packages: vec![
                package("gone:amd64", Some("1"), None),
                package("libpq5:amd64", None, Some("15.1-0+deb12u1")),
                package("tzdata:all", None, Some("2:2024a~rc1")),
            ],
            files: vec![
                file("/etc/app/my app.conf", FileChangeKind::Added),
                file("/etc/hosts", FileChangeKind::Changed),
                file("/usr/local/bin/old", FileChangeKind::Removed),
            ],
            incomplete: false,
        };
        insta::assert_snapshot!(image_change("rtw_1", &changes), @r#"
        # What changed on its host while rtw_1 was used, for a Dockerfile. Read it first: others may have
        # changed something meanwhile, too.
        RUN apt-get update \
         && apt-get install -y --no-install-recommends \
              libpq5:amd64=15.1-0+deb12u1 \
              tzdata=2:2024a~rc1 \
         && rm -rf /var/lib/apt/lists/*
        RUN apt-get remove -y \
              gone:amd64
        # Files that were written: what is in them is yours to bring, below files/. No secrets, and not those that a
        # package of the list brings along.
        COPY ["files/etc/app/my app.conf", "/etc/app/my app.conf"]
        COPY ["files/etc/hosts", "/etc/hosts"]
        RUN ["rm", "-f", "/usr/local/bin/old"]
        "#);
    }

    #[test]
    fn what_several_shells_changed_counts_as_one_change() {
        use FileChangeKind::{Added, Changed, Removed};
        let changes = |packages, files, incomplete| RootChanges { packages, files, incomplete };
        let first = changes(
            vec![
                package("back", Some("1"), None),
                package("new", None, Some("1")),
                package("up", Some("1"), Some("2")),
            ],
            vec![file("/etc/a", Added), file("/etc/b", Added), file("/etc/c", Removed), file("/etc/d", Changed)],
            false,
        );
        let second = changes(
            vec![package("back", None, Some("1")), package("new", Some("1"), Some("2"))],
            vec![file("/etc/a", Removed), file("/etc/b", Changed), file("/etc/c", Added), file("/etc/d", Removed)],
            true,
        );
        let both = changes(
            vec![package("new", None, Some("2")), package("up", Some("1"), Some("2"))],
            vec![file("/etc/b", Added), file("/etc/c", Changed), file("/etc/d", Removed)],
            true,
        );
        assert_eq!(together(&[&first, &second]), Some(both));
        assert_eq!((together(&[&first]), together(&[])), (Some(first.clone()), None));
    }

    #[test]
    fn another_version_may_be_an_older_one_and_what_is_not_known_is_said() {
        let packages = vec![package("up:amd64", Some("2"), Some("1"))];
        let text = image_change("rtw_1", &RootChanges { packages, files: vec![], incomplete: true });
        assert!(text.contains("--allow-downgrades") && text.contains("# Not everything is known"), "{text}");
        let text = image_change("rtw_1", &RootChanges::default());
        assert!(text.contains("# No change") && text.lines().all(|line| line.starts_with('#')), "{text}");
    }

    #[test]
    fn a_name_that_a_host_made_up_is_no_instruction() {
        let long = format!("/etc/{}", "x".repeat(ROOT_CHANGE_CHARS_MAX));
        let hostile = ["/etc/a\nRUN curl evil", "/etc/a\"]", "/etc/$HOME", "/etc/*", "/etc/../b", "/etc/ä", "x", &long];
        let kinds = [FileChangeKind::Added, FileChangeKind::Changed, FileChangeKind::Removed];
        let files = hostile.iter().flat_map(|path| kinds.map(|kind| file(path, kind))).collect();
        let names = ["a\nRUN x", "a b", "$(x)", "-o", "a;x", ""];
        let mut packages: Vec<_> = names.iter().map(|name| package(name, None, Some("1"))).collect();
        packages.extend(names.iter().map(|version| package("a", None, Some(version))));
        packages.extend(names.iter().map(|name| package(name, Some("1"), None)));
        let text = image_change("rtw_1", &RootChanges { packages, files, incomplete: false });
        assert!(text.lines().all(|line| line.starts_with('#')), "{text}");
    }
}
