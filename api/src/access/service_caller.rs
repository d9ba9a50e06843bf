//! Programs with a service token: who they are, and what only they need on the way to a permit.
//!
//! Not here: a token's secret (identity), what it may do (the policy), and people (`access`).

use envforge_commands::service_tokens;
use envforge_domain::access::{Action, Permit, Request, Resource, Scope};
use envforge_domain::aggregate::Refusal as _;
use envforge_domain::commit::{Actor, Surface};
use envforge_domain::denial::RefusedRequest;
use envforge_domain::ids::{ServiceTokenId, UserId};
use envforge_domain::root_window::RootWindowRefusal;
use envforge_domain::service_token::ServiceToken;
use envforge_domain::time::UnixMillis;
use envforge_identity::credentials::ServiceTokenKey;
use envforge_projections::DenialSink;
use envforge_projections::authorizer::{Answer, Question};

use crate::access::{Access, By, Caller, Listing, denied};
use crate::edge::Arrival;
use crate::endpoints::auth::other_surface;
use crate::problem::Problem;

/// What a secret counts for no more is answered with, whatever the reason: whoever holds it learns nothing of the token.
fn unknown_secret() -> Problem {
    Problem::new(
        "unauthenticated",
        "The service token is not valid: it is unknown, was rotated, or has expired. Ask for a current one.",
    )
}

/// What somebody is told about another's right.
pub(crate) struct Answered {
    pub(crate) answer: Answer,
    /// Why the domain would refuse what the policy allows.
    pub(crate) against: Option<RootWindowRefusal>,
}

impl Access {
    /// Whose secret this is. Whether the token still counts is the policy's to say, in its name.
    pub(crate) async fn service_caller(
        &self,
        secret: &str,
        named: Option<Surface>,
        arrival: Arrival,
    ) -> Result<Caller, Problem> {
        let found = self.identity.service_tokens().recognise(secret, arrival.now).await?;
        let known = match found {
            Some(key) => self.known(key).await?.map(|token| (key, token)),
            None => None,
        };
        let Some((ServiceTokenKey { token, org, generation }, known)) = known else {
            return self.sign_in_outcome(Err(unknown_secret()), None, Surface::Api, &arrival);
        };
        // Programs have one surface.
        if named.is_some_and(|named| named != Surface::Api) {
            return Err(other_surface(Surface::Api));
        }
        Ok(Caller {
            user: known.created_by,
            org,
            by: By::ServiceToken { token, generation },
            surface: Surface::Api,
            // A program never proves itself anew: what wants a fresh proof wants a person.
            authenticated_at: UnixMillis::EPOCH,
            expires_at: known.expires_at,
            arrival,
        })
    }

    /// A token, from the leader where the view has not seen it yet.
    async fn known(&self, key: ServiceTokenKey) -> Result<Option<ServiceToken>, Problem> {
        if let Some(known) = self.hot().service_tokens.get(key.token) {
            return Ok(Some(known.token));
        }
        let mut tokens = service_tokens::load(&self.commands, key.org).await?.state.tokens;
        Ok(tokens.remove(&key.token))
    }

    /// Whether the secret that was shown is still one of the token's. Asked after a permit, when the view is as fresh as that.
    pub(crate) fn admits(&self, caller: &Caller, permit: &Permit) -> Result<(), Problem> {
        let By::ServiceToken { token, generation } = caller.by else { return Ok(()) };
        let known = self.hot().service_tokens.get(token);
        if known.is_some_and(|known| known.token.admits(generation, permit.decided_at())) {
            return Ok(());
        }
        self.count_refusal(caller, permit, "service_token_rotated");
        Err(unknown_secret())
    }

    /// Counts a no that came after the policy's yes, in the metrics and for the audit.
    pub(super) fn count_refusal(&self, caller: &Caller, permit: &Permit, code: &'static str) {
        let request = Request {
            actor: permit.actor(),
            action: permit.action(),
            resource: permit.resource(),
            surface: permit.surface(),
            now: permit.decided_at(),
        };
        DenialSink::count(&request, code);
        let of = RefusedRequest { position: permit.position(), ..self.refused_request(&caller.arrival) };
        self.authorizer.denials().hold(&request, code, Some(of));
    }

    /// What a wake by a program is called: a job, by its token's name.
    pub(crate) fn job_of(&self, caller: &Caller) -> Option<String> {
        let By::ServiceToken { token, .. } = caller.by else { return None };
        Some(
            self.hot()
                .service_tokens
                .get(token)
                .map_or_else(|| token.to_string(), |known| known.token.slug.to_string()),
        )
    }

    /// Makes the views as fresh, for answers about others, as the log's leader is.
    pub(crate) async fn fresh_for(&self, questions: &[Question]) -> Result<(), Problem> {
        self.authorizer.fresh_for(questions).await.map_err(denied)
    }

    /// The policy's answer about somebody else, and what the domain has against its yes. A no is counted for the audit.
    pub(crate) async fn answer_about(&self, caller: &Caller, question: &Question) -> Result<Answered, Problem> {
        let now = caller.arrival.now;
        let answer = self.authorizer.answer(question, now);
        let against = match answer.outcome {
            Ok(_) => self.against_decider(question, now).await?,
            Err(_) => None,
        };
        let code = answer.outcome.as_ref().err().map(|denial| denial.code());
        if let Some(code) = code.or(against.as_ref().map(RootWindowRefusal::code))
            && question.subject != caller.actor()
        {
            let Question { subject: actor, action, resource, surface } = *question;
            let request = Request { actor, action, resource, surface, now };
            self.authorizer.denials().record_denied_check(caller.actor(), &request, code);
        }
        Ok(Answered { answer, against })
    }

    /// On whose grants somebody stands: a person on their own, a token on its creator's.
    pub(crate) fn holder_of(&self, subject: Actor) -> Option<UserId> {
        match subject {
            Actor::User(user) => Some(user),
            Actor::ServiceToken(token) => self.hot().service_tokens.creator(token),
            Actor::LinkVisitor { .. } | Actor::Agent(_) | Actor::System(_) | Actor::Anonymous => None,
        }
    }

    /// What of a list a program may see: its token's place, all of it or nothing.
    pub(crate) async fn service_listing(
        &self,
        caller: &Caller,
        token: ServiceTokenId,
        action: Action,
    ) -> Result<Listing, Problem> {
        let org = caller.org;
        let place = self.hot().service_tokens.get(token).map_or(Scope::Organization, |known| known.token.place);
        let resource = match place {
            Scope::Organization => Resource::Organization(org),
            Scope::Project(project) => Resource::Project { org, project },
            Scope::Workspace { project, workspace } => Resource::Workspace { org, project, workspace },
        };
        let permit = self.permit(caller, action, resource).await?;
        Ok(Listing { org, permits: vec![permit], everything: place == Scope::Organization })
    }
}
