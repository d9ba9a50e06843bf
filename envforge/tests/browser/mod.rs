//! A real browser that a script of `tests/browser` drives: told to go on by lines, tells what it saw by lines of JSON.
//!
//! Not here: what it must have seen (`reviewer`, `journey_member`).

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use envforge_testkit::tools::Tool;
use serde_json::{Value, json};

pub(crate) struct Browser {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
    stdin: ChildStdin,
}

impl Browser {
    /// `script` of `tests/browser`, with its arguments; the last one is the folder for screenshots.
    pub(crate) fn open(script: &str, arguments: &[&str], shots: &Path) -> Self {
        let mut child = command(script, arguments, shots).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let stdin = child.stdin.take().unwrap();
        Self { child, lines, stdin }
    }

    pub(crate) fn saw(&mut self, event: &str) -> Value {
        let line = self.lines.next().unwrap_or_else(|| panic!("the browser ended before `{event}`")).unwrap();
        let saw: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(saw["event"], event, "{saw}");
        saw
    }

    pub(crate) fn go_on(&mut self) {
        writeln!(self.stdin).unwrap();
    }
}

/// A run of a script that asks nothing on the way.
pub(crate) fn command(script: &str, arguments: &[&str], shots: &Path) -> Command {
    std::fs::create_dir_all(shots).unwrap();
    let mut command = Command::new(Tool::Node.path());
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/browser").join(script)).args(arguments).arg(shots);
    command.env("ENVFORGE_TEST_BROWSER_DIR", Tool::BrowserDir.path());
    command.env("ENVFORGE_TEST_CHROMIUM", Tool::Chromium.path());
    command
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The page that the browser stood on shows these words.
pub(crate) fn assert_says(saw: &Value, words: &[&str]) {
    let text = saw["text"].as_str().unwrap();
    for word in words {
        assert!(text.contains(word), "`{word}` is not on the page: {text}");
    }
}

/// axe found nothing wrong with it, in light and dark colours.
pub(crate) fn assert_accessible(saw: &Value) {
    assert_eq!(saw["axe"], json!([]), "on the page of `{}`", saw["event"]);
}

/// Pages fit on a phone, are read easily, and are dark where that is asked for. Answers how many were looked at.
pub(crate) fn assert_looks(saw: &Value) -> usize {
    let looks = saw["views"].as_array().unwrap();
    for look in looks {
        assert!(look["overflow"].as_f64().unwrap() <= 0.0 && look["sticksOut"] == json!([]), "{look}");
        // WCAG 2.2, 1.4.3: what is read at this size.
        assert!(look["contrast"].as_f64().unwrap() >= 4.5, "{look}");
        assert_eq!(look["ground"].as_f64().unwrap() < 0.2, look["scheme"] == "dark", "{look}");
    }
    looks.len()
}
