//! Fresh decisions: the policy over facts that include everything the log's leader has about the actor's rights.
//!
//! The leader is asked for the last position of the access streams, and the view is waited for. That alone would not keep
//! a command from being stored after a revocation that was acknowledged in between: the permit names the streams with the
//! positions found, and the append that it is for holds only where none of them has moved (docs/adr/0005).

mod check;

use std::sync::Arc;
use std::time::Duration;

use envforge_domain::access::{Action, Denial, Permit, Request, Resource, authorize};
use envforge_domain::commit::{Actor, Position, Standing, StreamId, Surface};
use envforge_domain::denial::RefusedRequest;
use envforge_domain::ids::{CorrelationId, SessionId, UserId};
use envforge_domain::time::UnixMillis;
use envforge_eventlog::{LogError, SharedLog};

pub(crate) use self::check::weighed;
pub use self::check::{Answer, Question, ShortOf, Weighed};

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
    /// In whose name refusals are held.
    request: Option<CorrelationId>,
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
        Self { log, hot, denials, request: None }
    }

    /// The same, for what is asked on behalf of one request: a refusal is held with its id, and can be explained by it.
    #[must_use]
    pub fn in_request(&self, request: CorrelationId) -> Self {
        Self { request: Some(request), ..self.clone() }
    }

    pub fn hot(&self) -> &Arc<Hot> {
        &self.hot
    }

    pub fn denials(&self) -> &Arc<DenialSink> {
        &self.denials
    }

    /// Decides on rights as fresh as the log's leader has them. One round trip a stream. The permit rests on where the
    /// streams stood then, which the facts include.
    ///
    /// # Errors
    /// `Denied` by the policy; `Stale` when the view does not get there in time; `Log` when the leader does not answer.
    pub async fn permit(
        &self,
        actor: Actor,
        session: Option<SessionId>,
        action: Action,
        resource: Resource,
        surface: Surface,
        now: UnixMillis,
    ) -> Result<Permit, AuthorizeError> {
        let mut issuer = self.issuer(actor);
        let rests_on = loop {
            let streams = access_streams(actor, issuer, resource);
            let lasts = if streams.is_empty() { Vec::new() } else { self.log.last_positions_of(&streams).await? };
            if let Some(latest) = lasts.iter().copied().max() {
                self.hot.wait_for(latest, FRESHNESS_WAIT).await?;
            }
            // The view may have learned only now on whose rights the link stands.
            match self.issuer(actor) {
                learned if learned == issuer => break standings(streams, lasts),
                learned => issuer = learned,
            }
        };
        self.hot.following()?;
        Ok(self.decide(session, Request { actor, action, resource, surface, now })?.resting_on(rests_on))
    }

    /// Decides on what the view has. For open streams that are checked again and again, and for reads that may be as
    /// old as the view. Nothing that a person changes can be appended on such a permit: it rests on no streams.
    ///
    /// # Errors
    /// `Denied` by the policy; `Stale` when the log has been silent for longer than is trusted.
    pub fn permit_from_memory(
        &self,
        actor: Actor,
        session: Option<SessionId>,
        action: Action,
        resource: Resource,
        surface: Surface,
        now: UnixMillis,
    ) -> Result<Permit, AuthorizeError> {
        self.hot.fresh()?;
        self.decide(session, Request { actor, action, resource, surface, now })
    }

    fn decide(&self, session: Option<SessionId>, request: Request) -> Result<Permit, AuthorizeError> {
        let authorization = &self.hot.authorization;
        let org = request.resource.org();
        let facts = match request.actor {
            Actor::ServiceToken(token) => {
                self.hot.service_tokens.facts(authorization, token, &request.resource, request.now)
            }
            _ => authorization.facts(&request.actor, session, &request.resource, request.now),
        };
        authorize(&facts, &request).map_err(|denial| {
            DenialSink::count(&request, denial.code());
            // Ids that somebody made up must not fill memory and log: such attempts are counted, not told.
            if authorization.organization_exists(org) {
                let of = |id| RefusedRequest { request: id, at: request.now, position: facts.position };
                self.denials.hold(&request, denial.code(), self.request.map(of));
            }
            denial.into()
        })
    }

    /// Whose rights those of a link visitor or of a service token stand on.
    fn issuer(&self, actor: Actor) -> Option<UserId> {
        match actor {
            Actor::LinkVisitor { link, .. } => self.hot.authorization.link_issuer(link),
            Actor::ServiceToken(token) => self.hot.service_tokens.creator(token),
            Actor::User(_) | Actor::Agent(_) | Actor::System(_) | Actor::Anonymous => None,
        }
    }
}

fn standings(streams: Vec<StreamId>, lasts: Vec<Position>) -> impl Iterator<Item = Standing> {
    streams.into_iter().zip(lasts).map(|(stream, last)| Standing { stream, last })
}

/// The streams on which an actor's rights to a resource stand.
fn access_streams(actor: Actor, issuer: Option<UserId>, resource: Resource) -> Vec<StreamId> {
    let org = resource.org();
    match actor {
        Actor::User(user) => vec![StreamId::organization(org), StreamId::user(org, user)],
        Actor::LinkVisitor { link, .. } => [StreamId::organization(org), StreamId::dev_link(org, link)]
            .into_iter()
            .chain(issuer.map(|issuer| StreamId::user(org, issuer)))
            .chain(resource.workspace().map(|workspace| StreamId::workspace(org, workspace)))
            .collect(),
        Actor::ServiceToken(_) => [StreamId::organization(org), StreamId::service_tokens(org)]
            .into_iter()
            .chain(issuer.map(|creator| StreamId::user(org, creator)))
            .collect(),
        Actor::Agent(host) => vec![StreamId::host(org, host)],
        Actor::System(_) | Actor::Anonymous => Vec::new(),
    }
}

#[cfg(test)]
mod tests;
