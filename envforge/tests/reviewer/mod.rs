//! A reviewer's browser, told what to do by lines, and what a reviewer must have seen wherever EnvForge runs.
//!
//! Not here: who serves what it sees (`journey_dev`, `journey_cluster`). The browser itself is driven by
//! `tests/browser/review.mjs`.

use std::path::Path;

use serde_json::json;

use crate::browser::{Browser, assert_accessible, assert_looks, assert_says};

/// The browser.
pub(crate) struct Reviewer(Browser);

impl Reviewer {
    pub(crate) fn open(share_url: &str, shots: &Path) -> Self {
        Self(Browser::open("review.mjs", &[share_url], shots))
    }

    /// The share page: names what the link opens, leaves nothing behind.
    pub(crate) fn sees_the_share_page(&mut self, words: &[&str]) {
        let share = self.0.saw("share");
        assert_says(&share, words);
        assert_eq!(share["cookies"], 0, "looking at a share page must leave nothing behind");
        assert_accessible(&share);
    }

    /// The waking page, on the workspace's own host.
    pub(crate) fn sees_it_waking(&mut self, workspace_url: &str) {
        let opened = self.0.saw("opened");
        assert!(opened["url"].as_str().unwrap().starts_with(workspace_url), "{opened}");
        assert_says(&opened, &["Finding a place to run", "Starting the app", "Checking that it answers"]);
        assert_accessible(&opened);
    }

    /// The app: page, asset, same-origin API and WebSocket, without the session's cookie.
    pub(crate) fn uses_the_app(&mut self) {
        let app = self.0.saw("app");
        assert!(app["orders"].as_i64().unwrap() > 0, "{app}");
        assert_eq!(app["style"], 200);
        assert!(app["echo"].as_str().unwrap().contains("across the gateway"), "{app}");
        assert_eq!(app["socket"], "open");
        assert!(!app["cookie"].as_str().unwrap().contains("envforge"), "scripts must not see the session: {app}");
        assert_eq!(app["failures"], json!([]));
    }

    /// After the link was revoked: the socket closes, the API answers with a typed error, pages say so.
    pub(crate) fn is_out(&mut self) {
        let revoked = self.0.saw("revoked");
        assert!(revoked["socketMs"].as_u64().unwrap() < 1_000, "{revoked}");
        let api = &revoked["api"];
        assert_eq!((&api["status"], &api["redirected"]), (&json!(410), &json!(false)), "{api}");
        assert!(api["type"].as_str().unwrap().contains("json"), "{api}");
        assert_eq!(api["body"]["code"], "link_revoked", "{api}");
        assert_says(&revoked, &["This link was closed", "has ended access", "Ask them for a new link"]);
        assert_accessible(&revoked);
        assert_eq!(assert_looks(&self.0.saw("looks")), 9, "three pages in three views");
        let again = self.0.saw("share-again");
        assert_eq!(again["buttons"], 0, "{again}");
        assert_says(&again, &["This link is not open", "Ask the person who shared it"]);
        assert_accessible(&again);
    }

    pub(crate) fn go_on(&mut self) {
        self.0.go_on();
    }
}
