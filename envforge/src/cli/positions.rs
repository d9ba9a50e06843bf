//! Where in the log the last write of this user stands, for the commands that follow at once: a script that creates a link and shows
//! it in the next command must find it, though read models follow the log a moment later.
//!
//! A convenience of a minute: what cannot be read or written here is ignored.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::private_file;

/// After that long read models have caught up, and a position of a log that was replaced since would only be in the way.
const FRESH_MS: u64 = 60_000;
const FILE: &str = "positions.json";

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Written {
    position: u64,
    at_unix_ms: u64,
}

/// The positions of this user's last writes, by API (`Api::key`).
#[derive(Clone, Debug)]
pub(crate) struct Positions {
    path: PathBuf,
}

impl Positions {
    pub(crate) fn in_folder(config_dir: &Path) -> Self {
        Self { path: config_dir.join(FILE) }
    }

    /// The position that reads at `api` should have reached.
    pub(crate) fn recent(&self, api: &str, now_unix_ms: u64) -> Option<u64> {
        let written = self.read().remove(api)?;
        is_fresh(&written, now_unix_ms).then_some(written.position)
    }

    pub(crate) fn remember(&self, api: &str, position: u64, now_unix_ms: u64) {
        let mut all = self.read();
        all.retain(|_, written| is_fresh(written, now_unix_ms));
        let position = all.get(api).map_or(position, |known| known.position.max(position));
        all.insert(api.to_owned(), Written { position, at_unix_ms: now_unix_ms });
        self.write(&all);
    }

    /// Whoever signs in may have another log before them.
    pub(crate) fn forget(&self, api: &str) {
        let mut all = self.read();
        if all.remove(api).is_some() {
            self.write(&all);
        }
    }

    fn read(&self) -> BTreeMap<String, Written> {
        let text = private_file::read(&self.path).ok().flatten();
        text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
    }

    fn write(&self, all: &BTreeMap<String, Written>) {
        if let Ok(text) = serde_json::to_string(all) {
            // Without it the next command may meet a read model that is a moment behind, as any other reader may.
            let _ = private_file::write(&self.path, &text);
        }
    }
}

fn is_fresh(written: &Written, now_unix_ms: u64) -> bool {
    now_unix_ms.abs_diff(written.at_unix_ms) < FRESH_MS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_holds_for_a_minute_and_for_its_api() {
        let dir = tempfile::tempdir().unwrap();
        let positions = Positions::in_folder(dir.path());
        assert_eq!(positions.recent("a", 0), None);
        positions.remember("a", 7, 1_000);
        positions.remember("a", 5, 1_001);
        assert_eq!(positions.recent("a", 2_000), Some(7), "it never goes back");
        assert_eq!(positions.recent("b", 2_000), None);
        assert_eq!(positions.recent("a", 1_001 + FRESH_MS), None);
        positions.remember("a", 3, 1_001 + FRESH_MS);
        assert_eq!(positions.recent("a", 1_001 + FRESH_MS), Some(3), "another log may have begun");
        positions.forget("a");
        assert_eq!(positions.recent("a", 1_001 + FRESH_MS), None);
    }

    #[test]
    fn a_broken_file_is_as_good_as_none() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FILE), "{").unwrap();
        let positions = Positions::in_folder(dir.path());
        assert_eq!(positions.recent("a", 0), None);
        positions.remember("a", 1, 0);
        assert_eq!(positions.recent("a", 0), Some(1));
    }
}
