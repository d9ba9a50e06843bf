//! Git repositories of tests.

use std::path::Path;
use std::process::Command;

/// Makes the folder a repository with one branch `main`, where one commit holds what lies there.
pub fn commit_all(root: &Path) {
    for arguments in [
        &["init", "-q", "-b", "main"][..],
        &["add", "-A"],
        &["-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-q", "-m", "first"],
    ] {
        assert!(Command::new("git").args(arguments).current_dir(root).status().unwrap().success(), "git {arguments:?}");
    }
}
