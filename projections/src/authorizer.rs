//! Fresh decisions: the policy over facts that include everything the log's leader has about the actor's rights.
//!
//! A command that is accepted after a revocation was acknowledged is impossible, on any node: the leader is asked for the
//! last position of the access streams, and the view is waited for (DESIGN, "Decisions see fresh rights").

use std::sync::Arc;
use std::time::Duration;

use envforge_domain::access::{Action, Denial, Permit, Request, Resource, authorize};
use envforge_domain::commit::{Actor, StreamId, Surface};
use envforge_domain::ids::SessionId;
use envforge_domain::time::UnixMillis;
use envforge_eventlog::{LogError, SharedLog};

use crate::denials::DenialSink;
use crate::hot::{Hot, Stale};

/// How long a decision waits for the view to become fresh before it refuses.
const FRESHNESS_WAIT: Duration = Duration::from_secs(2);

/// Decides for commands and queries.
#[derive(Clone)]
pub struct Authorizer {
    log: SharedLog,
    hot: Arc<Hot>,
    denials: Arc<DenialSink>,
}

/// Why there is no permit.
#[derive(Debug, thiserror::Error)]
pub enum AuthorizeError {
    #[error(transparent)]
    Denied(#[from] Denial),
    /// Fail closed: nobody knows whether the right still stands.
    #[error("rights could not be made sure of: {0}")]
    Stale(#[from] Stale),
    #[error(transparent)]
    Log(#[from] LogError),
}

impl Authorizer {
    pub fn new(log: SharedLog, hot: Arc<Hot>, denials: Arc<DenialSink>) -> Self {
        Self { log, hot, denials }
    }

    pub fn hot(&self) -> &Arc<Hot> {
        &self.hot
    }

    pub fn denials(&self) -> &Arc<DenialSink> {
        &self.denials
    }

    /// Decides on rights as fresh as the log's leader has them. One round trip a stream.
    pub async fn permit(
        &self,
        actor: Actor,
        session: Option<SessionId>,
        action: Action,
        resource: Resource,
        surface: Surface,
        now: UnixMillis,
    ) -> Result<Permit, AuthorizeError> {
        let org = resource.org();
        let streams: Vec<StreamId> = match actor {
            Actor::User(user) => vec![StreamId::organization(org), StreamId::user(org, user)],
            Actor::LinkVisitor { link, .. } => {
                let workspace = resource.workspace().map(|workspace| StreamId::workspace(org, workspace));
                std::iter::once(StreamId::dev_link(org, link)).chain(workspace).collect()
            }
            Actor::Agent(host) => vec![StreamId::host(org, host)],
            Actor::System(_) | Actor::Anonymous => Vec::new(),
        };
        let position = self.log.last_position_of(&streams).await?;
        self.hot.wait_for(position, FRESHNESS_WAIT).await?;
        self.permit_from_memory(actor, session, action, resource, surface, now)
    }

    /// Decides on what the view has. For open streams that are checked again and again, and for reads that may be as
    /// old as the view.
    pub fn permit_from_memory(
        &self,
        actor: Actor,
        session: Option<SessionId>,
        action: Action,
        resource: Resource,
        surface: Surface,
        now: UnixMillis,
    ) -> Result<Permit, AuthorizeError> {
        if let Some(reason) = self.hot.failed() {
            return Err(Stale::Stopped { reason }.into());
        }
        let facts = self.hot.authorization.facts(&actor, session, resource.org(), now);
        let request = Request { actor, action, resource, surface, now };
        authorize(&facts, &request).map_err(|denial| {
            self.denials.record(&request, denial.code());
            denial.into()
        })
    }
}
