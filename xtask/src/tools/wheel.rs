//! Programs that come as wheels from the Python Package Index, by hash, into a folder of `.tools`.
//!
//! Nothing is installed into any Python of the machine.

use super::run_quietly;
use crate::workspace::{Workspace, on_path};
use anyhow::{Context, Result, bail};
use std::process::Command;

/// Whether `python3 -m pip` works.
pub(super) fn pip_is_here() -> bool {
    on_path("python3").is_some()
        && Command::new("python3").args(["-m", "pip", "--version"]).output().is_ok_and(|output| output.status.success())
}

/// Installs what `xtask/requirements/REQUIREMENTS` lists into `.tools/FOLDER`, whole or not at all.
pub(super) fn install(workspace: &Workspace, requirements: &str, folder: &str) -> Result<()> {
    if !pip_is_here() {
        bail!("`python3 -m pip` does not work: install Python 3 with pip");
    }
    let wanted = workspace.tools().join(folder);
    let partial = workspace.tools().join(format!("{folder}.partial"));
    let _ = std::fs::remove_dir_all(&partial);
    let mut pip = workspace.command("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"]);
    pip.args(["--require-hashes", "--requirement", &format!("xtask/requirements/{requirements}"), "--target"])
        .arg(&partial);
    run_quietly(workspace, &mut pip)?;
    let _ = std::fs::remove_dir_all(&wanted);
    std::fs::rename(&partial, &wanted)
        .with_context(|| format!("cannot move {} to {}", partial.display(), wanted.display()))
}
