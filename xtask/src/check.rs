//! `cargo xtask check`: what can be judged without running the product, one line with its time for each step.
//!
//! The rules themselves stand elsewhere: rustfmt.toml, clippy.toml, deny.toml, tests/tests/architecture.rs.

use crate::ownership;
use crate::steps::Steps;
use crate::workspace::{Workspace, on_path};
use anyhow::{Result, bail};
use clap::Args;
use std::collections::BTreeSet;

/// `cargo xtask check`.
#[derive(Args)]
pub(crate) struct Options {}

pub(crate) fn run(workspace: &Workspace, _: &Options) -> Result<()> {
    let before = changed_files(workspace)?;
    let mut steps = Steps::new();
    steps.run("formatting", || {
        let checked = workspace.output_of(workspace.cargo().args(["fmt", "--all", "--check"]));
        checked.map(|_| String::new()).map_err(|error| error.context("run `cargo fmt --all`"))
    });
    steps.run("lints", || {
        let mut clippy = workspace.cargo();
        clippy.args([
            "clippy",
            "--workspace",
            "--all-targets",
            "--locked",
            "--keep-going",
            "--quiet",
            "--",
            "-D",
            "warnings",
        ]);
        workspace.output_of(&mut clippy).map(|_| String::new())
    });
    steps.run("lock file of the fuzz targets", || {
        let mut metadata = workspace.cargo();
        metadata.args([
            "metadata",
            "--manifest-path",
            "fuzz/Cargo.toml",
            "--format-version",
            "1",
            "--locked",
            "--quiet",
        ]);
        let read = workspace.output_of(&mut metadata).map(|_| String::new());
        read.map_err(|error| {
            error.context("run `cargo metadata --manifest-path fuzz/Cargo.toml` and commit fuzz/Cargo.lock")
        })
    });
    steps.run("libraries and licences", || {
        if on_path("cargo-deny").is_none() {
            return ownership::check(workspace)
                .map(|note| format!("{note} (cargo-deny is not installed: our own reading of deny.toml)"));
        }
        let mut deny = workspace.cargo();
        deny.args(["deny", "--workspace", "--locked", "check", "bans", "licenses", "sources"]);
        workspace.output_of(&mut deny).map(|_| "cargo-deny".to_owned())
    });
    steps.run("architecture", || {
        let mut test = workspace.cargo();
        test.args(["test", "--package", "envforge-tests", "--test", "architecture", "--locked", "--quiet"])
            .env("RUST_BACKTRACE", "0");
        // What failed stands on standard output, which is shown for a failure only.
        let output = test.output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            bail!("{text}\n{}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(text
            .lines()
            .find_map(|line| line.strip_prefix("test result: ok. "))
            .unwrap_or_default()
            .split(';')
            .next()
            .unwrap_or_default()
            .to_owned())
    });
    steps.run("generated files", || {
        let after = changed_files(workspace)?;
        let written: Vec<&str> = after.difference(&before).map(String::as_str).collect();
        if !written.is_empty() {
            bail!("these files differ from what generates them; look at them and commit them:\n{}", written.join("\n"));
        }
        // insta and our golden tests leave what they got next to what they wanted.
        let pending: Vec<&str> = after.iter().filter(|line| line.contains(".snap.new")).map(String::as_str).collect();
        if !pending.is_empty() {
            bail!("pending snapshots: review and accept or delete them:\n{}", pending.join("\n"));
        }
        Ok(String::new())
    });
    steps.finish()
}

/// Changed and new files with a mark of their contents, so that a step that rewrites an already changed file is seen too.
fn changed_files(workspace: &Workspace) -> Result<BTreeSet<String>> {
    if !workspace.root().join(".git").exists() {
        return Ok(BTreeSet::new());
    }
    let mut status = workspace.command("git");
    status.args(["status", "--porcelain=v1", "--untracked-files=all", "-z"]);
    let listed = workspace.output_of(&mut status)?;
    let with_contents = |entry: &str| {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let mut hasher = DefaultHasher::new();
        let path = entry.get(3..).unwrap_or_default();
        std::fs::read(workspace.root().join(path)).ok().hash(&mut hasher);
        format!("{entry} ({:x})", hasher.finish())
    };
    Ok(listed.split('\0').filter(|entry| !entry.is_empty()).map(with_contents).collect())
}
