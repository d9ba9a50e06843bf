//! What somebody leaves running in a workspace beyond their connections, held to the right of each sign-in that attached to it.
//!
//! Not here: opening shells (`shells`), and what lasts and where (`shell_host`).

use std::collections::HashMap;
use std::time::Duration;

use envforge_domain::access::{Action, Resource};
use envforge_domain::ids::{OrgId, UserId, WorkspaceId};
use envforge_domain::shell::{LastingShell, ShellEnd};

use super::shells::ShellEndpoints;
use crate::access::Caller;
use crate::shell_socket::Ground;

/// How often the right of those who left a lasting terminal behind is looked at.
const LASTING_CHECK: Duration = Duration::from_millis(200);

/// On which sign-ins stands what somebody left running in a workspace.
/// INVARIANT: the organization belongs to the key: a host names workspaces as it likes, but only as its own organization's.
pub(super) type Lasting = HashMap<(OrgId, WorkspaceId, UserId), Vec<Ground>>;

impl ShellEndpoints {
    /// Keeps an eye on the right of whoever leaves something running behind: it ends with the last sign-in that attached to it.
    pub(super) fn hold_lasting(&self, ground: &Ground, workspace: WorkspaceId) {
        let key = (ground.resource.org(), workspace, ground.caller.user);
        let first = {
            let mut lasting = self.lasting.lock();
            let grounds = lasting.entry(key).or_default();
            let session = |ground: &Ground| ground.caller.session_id().ok();
            let first = grounds.is_empty();
            if !grounds.iter().any(|known| session(known) == session(ground)) {
                grounds.push(ground.clone());
            }
            first
        };
        if !first {
            return;
        }
        let state = self.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = state.stop().cancelled() => return,
                    () = tokio::time::sleep(LASTING_CHECK) => {}
                }
                let over = {
                    let mut lasting = state.lasting.lock();
                    let Some(grounds) = lasting.get_mut(&key) else { return };
                    // Nobody gets to it while rights are unknown; it is not worth its end.
                    grounds.retain(|ground| matches!(ground.lost(), None | Some(ShellEnd::RightsUnknown)));
                    let over = grounds.is_empty();
                    if over {
                        lasting.remove(&key);
                    }
                    over
                };
                if over {
                    if let Some(host) = &state.host {
                        host.host().end_lasting(key.0, key.1, key.2).await;
                    }
                    return;
                }
            }
        });
    }

    /// Takes what lasts on hosts from before this process, or from before they were away, and holds it to the right as it is now.
    pub(super) async fn hold_found(self) {
        let Some(host) = self.host.clone() else { return };
        loop {
            let Some(found) = self.stop().run_until_cancelled(host.host().found_lasting()).await else { return };
            let LastingShell { org, project, workspace, user, session, surface } = found;
            let caller = Caller::recalled(org, user, session, surface, self.clock.now());
            let resource = Resource::Workspace { org, project, workspace };
            let ground = self.ground_on(&caller, Action::ShellOpen, resource);
            self.hold_lasting(&ground, workspace);
        }
    }
}
