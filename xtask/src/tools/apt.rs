//! Packages of Debian and its children, installed as root, or the command that somebody else has to run.
//!
//! It does not know which tool needs which package.

use super::run_quietly;
use crate::workspace::{Workspace, on_path};
use anyhow::{Result, bail};

/// Font packages and a file by which each is known to be there.
pub(super) const FONTS: &[(&str, &str)] = &[
    ("fonts-noto-core", "/usr/share/fonts/truetype/noto/NotoSans-Regular.ttf"),
    ("fonts-noto-color-emoji", "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"),
];

/// Whether this machine installs packages with apt.
pub(super) fn is_here() -> bool {
    on_path("apt-get").is_some()
}

/// Installs `packages`; says whether there was anything to do.
pub(super) fn install(workspace: &Workspace, packages: &[&str]) -> Result<bool> {
    if packages.is_empty() {
        return Ok(false);
    }
    let list = packages.join(" ");
    if !is_here() {
        bail!(
            "this machine has no apt-get: install the counterparts of these Debian packages yourself, then run this again: {list}\n\
             (programs off PATH are named by the variables that `cargo xtask setup` prints)"
        );
    }
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "only root may install packages; run this once, then run the same xtask again:\n\n    \
             sudo apt-get update && sudo apt-get install --yes --no-install-recommends {list}\n"
        );
    }
    let mut update = workspace.command("apt-get");
    update.args(["update", "--quiet"]);
    run_quietly(workspace, &mut update)?;
    let mut install = workspace.command("apt-get");
    install.args(["install", "--yes", "--quiet", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300"]);
    install.args(packages).env("DEBIAN_FRONTEND", "noninteractive").stdin(std::process::Stdio::null());
    // Only the programs are wanted: without systemd this keeps a package from starting its server.
    install.env("RUNLEVEL", "1");
    run_quietly(workspace, &mut install)?;
    Ok(true)
}
