//! What the two sides say about root windows, as JSON.

use std::collections::BTreeMap;

use envforge_domain::ids::RootWindowId;
use envforge_domain::limits::{ROOT_CHANGE_CHARS_MAX, ROOT_CHANGES_MAX};
use envforge_domain::root_window::{FileChange, FileChangeKind, PackageChange, RootChanges, RootOutcome};
use envforge_runtime::wire::text;
use envforge_runtime::{RanRoot, RootWhat};
use serde::{Deserialize, Serialize};

/// What a stream is for.
pub(crate) const ROOT: &str = "root";

/// What is asked for on such a stream, once.
#[derive(Serialize, Deserialize)]
#[serde(tag = "root", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum RootCall {
    /// Which windows the host knows of.
    Windows,
    /// Takes what a window is to run. Nothing runs yet.
    Take {
        #[serde(with = "text")]
        window: RootWindowId,
        /// The wake at which the runtime is up.
        epoch: u64,
        /// Which of the window's commands, counted from 0: of a window's shells each is one.
        #[serde(default)]
        number: usize,
    },
    /// Runs what was taken, until the host's own clock of its uptime says so.
    Run {
        #[serde(with = "text")]
        window: RootWindowId,
        /// A shell where there are none.
        words: Vec<String>,
        until_uptime_ms: u64,
    },
    /// Waits for the end of what runs.
    Join {
        #[serde(with = "text")]
        window: RootWindowId,
    },
    /// Comes to the window's shell: a shell's stream from then on.
    Attach {
        #[serde(with = "text")]
        window: RootWindowId,
        columns: u16,
        rows: u16,
        term: String,
    },
    Output {
        #[serde(with = "text")]
        window: RootWindowId,
    },
    /// Its end stands in the log.
    Forget {
        #[serde(with = "text")]
        window: RootWindowId,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum WindowState {
    /// Nothing was run.
    Taken,
    /// It runs, or has ended.
    Begun,
    /// Of an earlier process of the agent's.
    Left,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum RootAnswer {
    Windows {
        windows: BTreeMap<String, WindowState>,
    },
    /// By the host's own clock of its uptime, just now.
    Taken {
        uptime_ms: u64,
    },
    /// It, or a later one of its window, was begun already.
    Begun,
    /// This host runs nothing as root, and why.
    NoRoot {
        outcome: String,
    },
    /// There is no such window here.
    Unknown,
    Ended {
        outcome: String,
        code: Option<u32>,
        changes: Option<Changes>,
    },
    Output {
        kept: Option<Output>,
    },
    Done,
    Failed {
        reason: String,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Output {
    pub(crate) text: String,
    pub(crate) dropped: u64,
}

/// Why what runs is to end: said on the stream that waits for it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RootKill {
    pub(crate) outcome: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Changes {
    packages: Vec<Package>,
    files: Vec<File>,
    incomplete: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Package {
    name: String,
    before: Option<String>,
    after: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    path: String,
    kind: Kind,
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Added,
    Removed,
    Changed,
}

/// What words ask for.
pub(crate) fn what(words: Vec<String>) -> RootWhat {
    if words.is_empty() { RootWhat::Shell } else { RootWhat::Command(words) }
}

pub(crate) fn words(what: &RootWhat) -> Vec<String> {
    match what {
        RootWhat::Command(words) => words.clone(),
        RootWhat::Shell => Vec::new(),
    }
}

pub(crate) fn ended(ran: RanRoot) -> RootAnswer {
    let changes = ran.changes.map(|RootChanges { packages, files, incomplete }| {
        let package = |PackageChange { name, before, after }| Package { name, before, after };
        let file = |FileChange { path, kind }| File {
            path,
            kind: match kind {
                FileChangeKind::Added => Kind::Added,
                FileChangeKind::Removed => Kind::Removed,
                FileChangeKind::Changed => Kind::Changed,
            },
        };
        Changes {
            packages: packages.into_iter().map(package).collect(),
            files: files.into_iter().map(file).collect(),
            incomplete,
        }
    });
    RootAnswer::Ended { outcome: ran.outcome.token().to_owned(), code: ran.code, changes }
}

/// What a host may say of an end, `asked` being what the control plane wanted: rights are not the host's to judge. What does not fit
/// into the log is left out, and said to be.
pub(crate) fn ran(outcome: &str, code: Option<u32>, changes: Option<Changes>, asked: Option<RootOutcome>) -> RanRoot {
    let outcome = match RootOutcome::from_token(outcome) {
        Some(
            own @ (RootOutcome::Exited
            | RootOutcome::Signalled
            | RootOutcome::Deadline
            | RootOutcome::HostStopped
            | RootOutcome::NoRoot
            | RootOutcome::NotStarted
            | RootOutcome::Lost),
        ) => own,
        Some(
            judged
            @ (RootOutcome::Revoked | RootOutcome::Withdrawn | RootOutcome::RightLost | RootOutcome::RuntimeGone),
        ) if asked == Some(judged) => judged,
        Some(_) | None => RootOutcome::Lost,
    };
    let code = code.filter(|_| matches!(outcome, RootOutcome::Exited | RootOutcome::Signalled));
    RanRoot { outcome, code, changes: changes.map(fitting) }
}

fn fitting(changes: Changes) -> RootChanges {
    let Changes { mut packages, mut files, incomplete } = changes;
    let before = packages.len() + files.len();
    let short = |text: &String| text.chars().count() <= ROOT_CHANGE_CHARS_MAX;
    packages.retain(|package| {
        [Some(&package.name), package.before.as_ref(), package.after.as_ref()].into_iter().flatten().all(short)
    });
    files.retain(|file| short(&file.path));
    packages.truncate(ROOT_CHANGES_MAX);
    files.truncate(ROOT_CHANGES_MAX);
    let incomplete = incomplete || packages.len() + files.len() < before;
    let package = |Package { name, before, after }| PackageChange { name, before, after };
    let file = |File { path, kind }| FileChange {
        path,
        kind: match kind {
            Kind::Added => FileChangeKind::Added,
            Kind::Removed => FileChangeKind::Removed,
            Kind::Changed => FileChangeKind::Changed,
        },
    };
    RootChanges {
        packages: packages.into_iter().map(package).collect(),
        files: files.into_iter().map(file).collect(),
        incomplete,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn back(answer: RootAnswer, asked: Option<RootOutcome>) -> RanRoot {
        let text = serde_json::to_string(&answer).unwrap();
        let RootAnswer::Ended { outcome, code, changes } = serde_json::from_str(&text).unwrap() else {
            panic!("{text}")
        };
        ran(&outcome, code, changes, asked)
    }

    #[test]
    fn an_end_comes_as_it_was_but_for_what_a_host_may_not_judge() {
        let changes = RootChanges {
            packages: vec![PackageChange { name: "libpq5".to_owned(), before: None, after: Some("15.1".to_owned()) }],
            files: vec![FileChange { path: "/etc/hosts".to_owned(), kind: FileChangeKind::Changed }],
            incomplete: false,
        };
        let exited = RanRoot { outcome: RootOutcome::Exited, code: Some(3), changes: Some(changes) };
        assert_eq!(back(ended(exited.clone()), None), exited);
        let revoked = RanRoot { outcome: RootOutcome::Revoked, code: None, changes: None };
        assert_eq!(back(ended(revoked.clone()), Some(RootOutcome::Revoked)), revoked);
        assert_eq!(back(ended(revoked), None).outcome, RootOutcome::Lost);
    }

    #[test]
    fn what_the_log_does_not_take_is_left_out_and_said_to_be() {
        let file = |path: String| FileChange { path, kind: FileChangeKind::Added };
        let mut files: Vec<_> = (0..ROOT_CHANGES_MAX + 5).map(|number| file(format!("/etc/{number}"))).collect();
        files.push(file("x".repeat(ROOT_CHANGE_CHARS_MAX + 1)));
        let changes = RootChanges { packages: vec![], files, incomplete: false };
        let told = back(ended(RanRoot { outcome: RootOutcome::Deadline, code: Some(1), changes: Some(changes) }), None);
        let changes = told.changes.unwrap();
        assert!(changes.files.len() == ROOT_CHANGES_MAX && changes.incomplete && told.code.is_none());
    }
}
