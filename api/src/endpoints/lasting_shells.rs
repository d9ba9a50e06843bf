//! What somebody leaves running in a workspace beyond their connections, held to the right of each sign-in that attached to it.
//!
//! Not here: opening shells (`shells`), and what lasts and where (`shell_host`).

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::Duration;

use envforge_domain::access::{Action, Resource};
use envforge_domain::ids::{OrgId, UserId, WorkspaceId};
use envforge_domain::shell::{LastingShell, ShellEnd};

use super::shells::ShellEndpoints;
use crate::access::Caller;
use crate::shell_socket::Ground;

/// How often the right of those who left a lasting terminal behind is looked at.
const LASTING_CHECK: Duration = Duration::from_millis(200);

/// Somebody's in a workspace. INVARIANT: the organization belongs to it: a host names workspaces as it likes, but only as its own
/// organization's.
type Whose = (OrgId, WorkspaceId, UserId);

/// On which sign-ins stands what somebody left running in a workspace.
pub(super) type Lasting = HashMap<Whose, Vec<Ground>>;

/// Whether what lasts may go on. Nobody gets to it while rights are unknown; it is not worth its end.
fn stands(ground: &Ground) -> bool {
    matches!(ground.lost(), None | Some(ShellEnd::RightsUnknown))
}

impl ShellEndpoints {
    /// Keeps an eye on the right of whoever leaves something running behind: it ends with the last sign-in that attached to it.
    pub(super) fn hold_lasting(&self, ground: &Ground, workspace: WorkspaceId) {
        let whose = (ground.resource.org(), workspace, ground.caller.user);
        match self.lasting.lock().entry(whose) {
            Entry::Vacant(entry) => {
                entry.insert(vec![ground.clone()]);
            }
            Entry::Occupied(mut entry) => {
                let session = |ground: &Ground| ground.caller.session_id().ok();
                if !entry.get().iter().any(|known| session(known) == session(ground)) {
                    entry.get_mut().push(ground.clone());
                }
                return;
            }
        }
        let state = self.clone();
        tokio::spawn(async move {
            let stop = state.stop().clone();
            stop.run_until_cancelled(state.watch_lasting(whose)).await;
        });
    }

    /// Until it was ended. INVARIANT: there is one for each entry, which goes with it.
    async fn watch_lasting(self, whose: Whose) {
        loop {
            tokio::time::sleep(LASTING_CHECK).await;
            let goes_on = {
                let mut lasting = self.lasting.lock();
                let Some(grounds) = lasting.get_mut(&whose) else { return };
                grounds.retain(stands);
                !grounds.is_empty()
            };
            if goes_on {
                continue;
            }
            self.end_lasting(whose).await;
            let mut lasting = self.lasting.lock();
            // Somebody may have come meanwhile.
            if lasting.get(&whose).is_none_or(Vec::is_empty) {
                lasting.remove(&whose);
                return;
            }
        }
    }

    /// Ends it, unless its host knows of a sign-in that still stands: one that attached through another process. That is held from here, too.
    async fn end_lasting(&self, (org, workspace, user): Whose) {
        let Some(host) = &self.host else { return };
        let stands = |one: &LastingShell| stands(&self.ground_of_lasting(one));
        for one in host.host().end_lasting(org, workspace, user, &stands).await {
            self.hold_lasting(&self.ground_of_lasting(&one), workspace);
        }
    }

    /// The right of somebody whom a host names, as it is now.
    fn ground_of_lasting(&self, one: &LastingShell) -> Ground {
        let LastingShell { org, project, workspace, user, session, surface } = *one;
        let caller = Caller::recalled(org, user, session, surface, self.clock.now());
        self.ground_on(&caller, Action::ShellOpen, Resource::Workspace { org, project, workspace })
    }

    /// Takes what lasts on hosts from before this process, or from before they were away, and holds it to the right as it is now.
    pub(super) async fn hold_found(self) {
        let Some(host) = self.host.clone() else { return };
        while let Some(found) = self.stop().run_until_cancelled(host.host().found_lasting()).await {
            self.hold_lasting(&self.ground_of_lasting(&found), found.workspace);
        }
    }
}
