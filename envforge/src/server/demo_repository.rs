//! The demo: a small real app of this repository, made into a Git repository of its own in the data directory.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

/// A file of the demo app, compiled in so that the binary needs nothing beside itself.
struct DemoFile {
    path: &'static str,
    content: &'static str,
}

macro_rules! demo_files {
    ($($path:literal),* $(,)?) => {
        &[$(DemoFile {
            path: $path,
            content: include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/orders/", $path)),
        }),*]
    };
}

const FILES: &[DemoFile] = demo_files![
    "envforge.yml",
    "README.md",
    ".gitignore",
    "api/orders.py",
    "api/server.py",
    "mailbox/server.py",
    "scripts/flush.py",
    "web/assets/board.css",
    "web/assets/board.js",
    "web/assets/mark.svg",
    "web/pages/index.html",
    "web/server.py",
    "web/websocket.py",
    "tests/test_orders.py",
    "tests/test_websocket.py",
];

/// The demo app's `envforge.yml`.
pub(crate) const MANIFEST: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/orders/envforge.yml"));

/// The branch that the demo's workspace runs.
pub(crate) const BRANCH: &str = "signed-links";

#[derive(Debug, thiserror::Error)]
pub(crate) enum DemoError {
    #[error("the demo repository `{path}` could not be written: {source}")]
    Write { path: PathBuf, source: std::io::Error },
    #[error("`git {arguments}` failed in the demo repository: {detail}; EnvForge needs git on the PATH")]
    Git { arguments: String, detail: String },
    #[error("the demo needs {program}, and there is none on the PATH; install it, or start without --demo")]
    Missing { program: &'static str },
}

/// Before anything is made: whether what the demo runs on is here.
pub(crate) fn check_tools() -> Result<(), DemoError> {
    for program in ["git", "python3"] {
        let run = std::process::Command::new(program)
            .arg("--version")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if !run.is_ok_and(|status| status.success()) {
            return Err(DemoError::Missing { program });
        }
    }
    Ok(())
}

/// Makes the repository where it does not exist, brings its files up to date, and answers its path.
pub(crate) async fn repository(directory: &Path) -> Result<PathBuf, DemoError> {
    let root = directory.join("orders");
    for file in FILES {
        let path = root.join(file.path);
        let failed = |source| DemoError::Write { path: path.clone(), source };
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(failed)?;
        }
        std::fs::write(&path, file.content).map_err(failed)?;
    }
    if !root.join(".git").exists() {
        git(&root, &["init", "--quiet", "--initial-branch", BRANCH]).await?;
    }
    git(&root, &["add", "--all"]).await?;
    if !git(&root, &["status", "--porcelain"]).await?.is_empty() {
        git(&root, &["commit", "--quiet", "--message", "The order board"]).await?;
    }
    Ok(root)
}

async fn git(root: &Path, arguments: &[&str]) -> Result<String, DemoError> {
    let failed = |detail: String| DemoError::Git { arguments: arguments.join(" "), detail };
    let output = Command::new("git")
        .args(["-c", "user.name=EnvForge demo", "-c", "user.email=demo@envforge.invalid", "-c", "commit.gpgsign=false"])
        .args(["-c", "core.hooksPath=/dev/null"])
        .args(arguments)
        .current_dir(root)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).chars().take(400).collect()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn files_below(root: &Path, folder: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                if name != "__pycache__" {
                    files_below(root, &path, found);
                }
            } else {
                found.push(path.strip_prefix(root).unwrap().to_string_lossy().into_owned());
            }
        }
    }

    #[test]
    fn the_demo_holds_every_file_of_the_example() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/orders");
        let mut there = Vec::new();
        files_below(&root, &root, &mut there);
        there.sort();
        let mut embedded: Vec<_> = FILES.iter().map(|file| file.path.to_owned()).collect();
        embedded.sort();
        assert_eq!(embedded, there);
    }

    #[tokio::test]
    async fn the_repository_is_made_once_and_updated_after() {
        let directory = tempfile::tempdir().unwrap();
        let root = repository(directory.path()).await.unwrap();
        let first = git(&root, &["rev-parse", "HEAD"]).await.unwrap();
        repository(directory.path()).await.unwrap();
        assert_eq!(git(&root, &["rev-parse", "HEAD"]).await.unwrap(), first);
        std::fs::write(root.join("envforge.yml"), "changed").unwrap();
        git(&root, &["commit", "--quiet", "--all", "--message", "x"]).await.unwrap();
        repository(directory.path()).await.unwrap();
        assert_ne!(git(&root, &["rev-parse", "HEAD"]).await.unwrap(), first);
        assert_eq!(std::fs::read_to_string(root.join("envforge.yml")).unwrap(), FILES[0].content);
    }
}
