//! Whether services may run as EnvForge's own user on this machine, asked before anything starts.
//!
//! Not here: which user is whose, and why there are none (runtime). `dev` asks nobody: it runs one's own code on one's own machine,
//! and warns.

use std::path::Path;

use clap::Args;
use envforge_runtime::{NoUsers, UnixUsers};

use crate::cli::failure::Failure;

#[derive(Args, Clone, Copy, Debug)]
pub(crate) struct ServiceUserArgs {
    /// As root, start also where services cannot have users of their own, because others cannot enter a directory above theirs. Services, jobs
    /// and shells then run as root: whoever pushes a branch has this machine.
    #[arg(long)]
    services_as_own_user: bool,
}

impl ServiceUserArgs {
    /// `state_dir`: where the host keeps its state. What lies above it exists.
    ///
    /// # Errors
    /// Where EnvForge is root, and what it runs for workspaces would be, too.
    pub(crate) fn check(self, state_dir: &Path) -> Result<(), Failure> {
        match UnixUsers::supported(state_dir) {
            Err(NoUsers::Unreachable { directory, mode }) if !self.services_as_own_user => {
                let closed = directory.display();
                let what = format!(
                    "services, jobs and shells would run as root: other users cannot enter `{closed}` (mode {mode:o}), below which `{}` lies",
                    state_dir.display()
                );
                let hint = format!(
                    "`chmod o+x {closed}`, another directory, or another user than root; --services-as-own-user starts all the same"
                );
                Err(Failure::local(what, hint))
            }
            Ok(()) | Err(NoUsers::NotRoot | NoUsers::Unreachable { .. }) => Ok(()),
        }
    }
}
