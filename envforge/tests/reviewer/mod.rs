//! A reviewer's browser, told what to do by lines, and what a reviewer must have seen wherever EnvForge runs.
//!
//! Not here: who serves what it sees (`journey_dev`, `journey_cluster`). The browser itself is driven by
//! `tests/browser/review.mjs`.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use envforge_testkit::tools::Tool;
use serde_json::{Value, json};

/// The browser.
pub(crate) struct Reviewer {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
    stdin: ChildStdin,
}

impl Reviewer {
    pub(crate) fn open(share_url: &str, shots: &Path) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/browser/review.mjs");
        let mut child = Command::new(Tool::Node.path())
            .args([script, share_url])
            .arg(shots)
            .env("ENVFORGE_TEST_BROWSER_DIR", Tool::BrowserDir.path())
            .env("ENVFORGE_TEST_CHROMIUM", Tool::Chromium.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let stdin = child.stdin.take().unwrap();
        Self { child, lines, stdin }
    }

    fn saw(&mut self, event: &str) -> Value {
        let line = self.lines.next().unwrap_or_else(|| panic!("the browser ended before `{event}`")).unwrap();
        let saw: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(saw["event"], event, "{saw}");
        saw
    }

    /// The share page: names what the link opens, leaves nothing behind.
    pub(crate) fn sees_the_share_page(&mut self, words: &[&str]) {
        let share = self.saw("share");
        assert_says(&share, words);
        assert_eq!(share["cookies"], 0, "looking at a share page must leave nothing behind");
        assert_accessible(&share);
    }

    /// The waking page, on the workspace's own host.
    pub(crate) fn sees_it_waking(&mut self, workspace_url: &str) {
        let opened = self.saw("opened");
        assert!(opened["url"].as_str().unwrap().starts_with(workspace_url), "{opened}");
        assert_says(&opened, &["Finding a place to run", "Starting the app", "Checking that it answers"]);
        assert_accessible(&opened);
    }

    /// The app: page, asset, same-origin API and WebSocket, without the session's cookie.
    pub(crate) fn uses_the_app(&mut self) {
        let app = self.saw("app");
        assert!(app["orders"].as_i64().unwrap() > 0, "{app}");
        assert_eq!(app["style"], 200);
        assert!(app["echo"].as_str().unwrap().contains("across the gateway"), "{app}");
        assert_eq!(app["socket"], "open");
        assert!(!app["cookie"].as_str().unwrap().contains("envforge"), "scripts must not see the session: {app}");
        assert_eq!(app["failures"], json!([]));
    }

    /// After the link was revoked: the socket closes, the API answers with a typed error, pages say so.
    pub(crate) fn is_out(&mut self) {
        let revoked = self.saw("revoked");
        assert!(revoked["socketMs"].as_u64().unwrap() < 1_000, "{revoked}");
        let api = &revoked["api"];
        assert_eq!((&api["status"], &api["redirected"]), (&json!(410), &json!(false)), "{api}");
        assert!(api["type"].as_str().unwrap().contains("json"), "{api}");
        assert_eq!(api["body"]["code"], "link_revoked", "{api}");
        assert_says(&revoked, &["This link was closed", "has ended access", "Ask them for a new link"]);
        assert_accessible(&revoked);
        let looks = self.saw("looks")["views"].as_array().unwrap().clone();
        assert_eq!(looks.len(), 9, "three pages in three views: {looks:?}");
        for look in &looks {
            assert!(look["overflow"].as_f64().unwrap() <= 0.0 && look["sticksOut"] == json!([]), "{look}");
            // WCAG 2.2, 1.4.3: what is read at this size.
            assert!(look["contrast"].as_f64().unwrap() >= 4.5, "{look}");
            assert_eq!(look["ground"].as_f64().unwrap() < 0.2, look["scheme"] == "dark", "{look}");
        }
        let again = self.saw("share-again");
        assert_eq!(again["buttons"], 0, "{again}");
        assert_says(&again, &["This link is not open", "Ask the person who shared it"]);
        assert_accessible(&again);
    }

    pub(crate) fn go_on(&mut self) {
        writeln!(self.stdin).unwrap();
    }
}

impl Drop for Reviewer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The page that the browser stood on shows these words.
fn assert_says(saw: &Value, words: &[&str]) {
    let text = saw["text"].as_str().unwrap();
    for word in words {
        assert!(text.contains(word), "`{word}` is not on the page: {text}");
    }
}

/// axe found nothing wrong with it, in light and dark colours.
fn assert_accessible(saw: &Value) {
    assert_eq!(saw["axe"], json!([]), "on the page of `{}`", saw["event"]);
}
