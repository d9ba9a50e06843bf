//! Dana, a developer, who works in shells and asks for root, and the owner, who approves it.

use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::Arc;

use envforge_testkit::wait_until;
use serde_json::Value;

use crate::site::{DEADLINE, Site, is_dead};
use crate::tty::Tty;

const DANA: &str = "dana@acme.example";
const PASSWORD: &str = "plum kite engine 8";

#[derive(Clone)]
pub(crate) struct Dana(Arc<Site>);

impl Dana {
    pub(crate) fn join(site: &Arc<Site>) -> Self {
        site.add_developer(DANA, PASSWORD);
        site.sign_in_as("dana", DANA, PASSWORD, &site.api());
        Self(Arc::clone(site))
    }

    pub(crate) fn does(&self, args: &[&str], stdin: &str) -> Output {
        self.0.run("dana", args, stdin)
    }

    pub(crate) fn tty(&self, args: &[&str]) -> Tty {
        Tty::start(self.0.command_of("dana", args))
    }

    /// What a command in the workspace's shell says, which must come to its end as it should.
    #[track_caller]
    pub(crate) fn shell(&self, script: &str, stdin: &str) -> String {
        let output = self.does(&["shell", "main", "--", "sh", "-c", script], stdin);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!((output.status.code(), &*err), (Some(7), "to-err\n"), "{out}");
        out.into_owned()
    }

    /// A window that Dana asks for, nobody else may approve, and the owner does.
    #[track_caller]
    pub(crate) fn window(&self, more: &[&str]) -> String {
        let ask = ["--json", "root", "request", "main", "--reason", "what is on this machine"];
        let asked = self.does(&[&ask[..], more].concat(), "");
        assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
        let asked: Value = serde_json::from_slice(&asked.stdout).unwrap();
        let window = asked["id"].as_str().unwrap().to_owned();
        assert!(!self.does(&["root", "approve", &window], "").status.success(), "nobody approves their own");
        self.0.json(&["root", "approve", &window]);
        window
    }

    /// How a window is, once the end of what ran in it stands in the log.
    #[track_caller]
    pub(crate) fn ended(&self, window: &str, outcome: &str) -> Value {
        let shown = || self.0.json(&["root", "show", window]);
        wait_until(&format!("{outcome} in the log"), DEADLINE * 2, || shown()["command"]["outcome"] == outcome);
        shown()
    }

    /// The same, and that it is closed by then.
    #[track_caller]
    pub(crate) fn closed(&self, window: &str, outcome: &str) -> Value {
        let shown = self.ended(window, outcome);
        assert_eq!(shown["phase"], "closed", "{shown}");
        shown
    }
}

/// A file below /etc, which the machines of this story share with the one that they are on.
pub(crate) struct Changed(PathBuf);

impl Changed {
    pub(crate) fn named(name: &str) -> Self {
        Self(PathBuf::from(format!("/etc/envforge-test-{}-{name}", std::process::id())))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// What changed is in the closeout.
    #[track_caller]
    pub(crate) fn is_told(&self, closed: &Value) {
        let changes = closed["command"]["changes"].to_string();
        assert!(changes.contains(self.0.to_str().unwrap()), "{closed}");
    }
}

impl Drop for Changed {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A process that runs as root and does not want to end, by the file in which it writes who it is.
#[track_caller]
pub(crate) fn until_dead(pids: &Path) {
    let all = || std::fs::read_to_string(pids).unwrap_or_default();
    wait_until("the end of what ran as root", DEADLINE * 2, || all().lines().all(is_dead));
    assert!(!all().is_empty());
}
