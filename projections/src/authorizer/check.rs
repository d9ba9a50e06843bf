//! Whether somebody else may do something, and why: the same policy on the same fresh facts, and never a permit.
//!
//! Not here: who may ask (the callers), and the events behind a right (`rights_history`).

use envforge_domain::access::{Action, ActorFacts, Basis, Denial, Facts, Grant, Request, Resource, authorize};
use envforge_domain::commit::{Actor, Position, StreamId, Surface};
use envforge_domain::time::UnixMillis;

use super::{AuthorizeError, Authorizer, FRESHNESS_WAIT, access_streams};

/// Who wants to do what. People are asked about as if they were signed in: sessions come and go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// A person or a service token.
    pub subject: Actor,
    pub action: Action,
    pub resource: Resource,
    pub surface: Surface,
}

/// The policy's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub outcome: Result<Basis, Denial>,
    /// The facts were those of this position, or newer.
    pub position: Position,
    /// Every grant that the subject holds or stands on, and what the policy says to it alone.
    pub grants: Vec<Weighed>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weighed {
    pub grant: Grant,
    /// `None`: it allows it.
    pub short_of: Option<ShortOf>,
}

/// Why a grant does not allow something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShortOf {
    /// No row of the policy gives its role this.
    Role,
    /// It counts in another place, or in too small a one.
    Place,
    Ended,
    /// The organization's policy does not let its role give links.
    LinkIssuers,
    /// It would, but nothing that the subject holds counts: the account, the token, the surface.
    Subject,
}

impl ShortOf {
    pub const fn token(self) -> &'static str {
        match self {
            Self::Role => "role",
            Self::Place => "place",
            Self::Ended => "ended",
            Self::LinkIssuers => "link_issuers",
            Self::Subject => "subject",
        }
    }
}

impl Authorizer {
    /// Makes the view as fresh, for the answers to these, as the log's leader is. One round trip for all.
    ///
    /// # Errors
    /// `Stale` when the view does not get there in time; `Log` when the leader does not answer.
    pub async fn fresh_for(&self, questions: &[Question]) -> Result<(), AuthorizeError> {
        let streams = |questions: &[Question]| {
            let mut streams: Vec<StreamId> = Vec::new();
            for question in questions {
                for stream in access_streams(question.subject, self.issuer(question.subject), question.resource) {
                    if !streams.contains(&stream) {
                        streams.push(stream);
                    }
                }
            }
            streams
        };
        let mut wanted = streams(questions);
        while !wanted.is_empty() {
            let lasts = self.log.last_positions_of(&wanted).await?;
            if let Some(latest) = lasts.into_iter().max() {
                self.hot.wait_for(latest, FRESHNESS_WAIT).await?;
            }
            // The view may have learned only now on whose right a token stands.
            let learned = streams(questions);
            let more = learned.iter().any(|stream| !wanted.contains(stream));
            wanted = if more { learned } else { Vec::new() };
        }
        self.hot.following()?;
        Ok(())
    }

    /// The answer on what the view has. Nothing can be done with it.
    pub fn answer(&self, question: &Question, now: UnixMillis) -> Answer {
        let Question { subject, action, resource, surface } = *question;
        let view = &self.hot.authorization;
        let mut facts = match subject {
            Actor::ServiceToken(token) => self.hot.service_tokens.facts(view, token, &resource, now),
            _ => view.facts(&subject, None, &resource, now),
        };
        if let ActorFacts::Member { session_live, .. } = &mut facts.actor {
            *session_live = true;
        }
        let request = Request { actor: subject, action, resource, surface, now };
        let outcome = authorize(&facts, &request).map(|permit| permit.basis());
        let holder = match subject {
            Actor::User(user) => Some(user),
            _ => self.issuer(subject),
        };
        let org = resource.org();
        let mut held: Vec<Grant> = match &facts.actor {
            ActorFacts::Member { grants, .. } | ActorFacts::ServiceToken { grants, .. } => grants.clone(),
            _ => Vec::new(),
        };
        for grant in holder.into_iter().flat_map(|user| view.grants(org, user, now)) {
            if !held.contains(&grant) {
                held.push(grant);
            }
        }
        let grants = held.into_iter().map(|grant| weighed(&facts, &request, grant)).collect();
        Answer { outcome, position: facts.position, grants }
    }
}

/// What the policy says to one grant alone.
pub(crate) fn weighed(facts: &Facts, request: &Request, grant: Grant) -> Weighed {
    let mut alone = facts.clone();
    if let ActorFacts::Member { grants, .. } | ActorFacts::ServiceToken { grants, .. } = &mut alone.actor {
        *grants = vec![grant];
    }
    let row = request.action.row();
    let short_of = match authorize(&alone, request).map(|permit| permit.basis()) {
        Ok(Basis::Grant(_)) => None,
        // Whoever they are allows it, whatever they hold.
        Ok(Basis::Principal(_)) | Err(Denial::Role { .. }) if !row.roles.contains(&grant.role) => Some(ShortOf::Role),
        Ok(Basis::Principal(_)) | Err(Denial::Role { .. }) => Some(ShortOf::Place),
        Err(Denial::GrantExpired { .. }) => Some(ShortOf::Ended),
        Err(Denial::LinkIssuers { .. }) => Some(ShortOf::LinkIssuers),
        Err(_) if !row.roles.contains(&grant.role) => Some(ShortOf::Role),
        Err(_) => Some(ShortOf::Subject),
    };
    Weighed { grant, short_of }
}
