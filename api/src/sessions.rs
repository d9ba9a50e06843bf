//! People's sessions: opened for whoever is proven, by whatever provider; listed; ended, with a receipt.
//!
//! Owns the order in which log, credential table, views and tokens are touched so that nothing is left open whatever breaks
//! off. Not here: proving identity (identity), and what the endpoints are called (`endpoints`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use envforge_commands::context::derived_uuid;
use envforge_commands::{Commands, Context, Done, users};
use envforge_domain::access::{Action, Permit, Resource, Scope};
use envforge_domain::commit::{Position, StreamId, Surface};
use envforge_domain::event::Event;
use envforge_domain::ids::{CommandId, OrgId, SessionId, UserId};
use envforge_domain::organization::{Organization, OrganizationPolicy, SessionOver};
use envforge_domain::revocation;
use envforge_domain::secret::Secret;
use envforge_domain::session::{ClientName, LOCAL_ISSUER, OpenSession, SessionEnd};
use envforge_domain::slug::OrgSlug;
use envforge_domain::time::{Millis, UnixMillis};
use envforge_domain::user::{User, UserCommand, UserEvent};
use envforge_domain::workspace_session::{WorkspaceSession, WorkspaceSessions};
use envforge_identity::sessions::SESSION_LIFETIME;
use envforge_identity::sign_in::{Identity, Proven};
use envforge_identity::tokens::{Description, Session};
use envforge_projections::Hot;
use http::HeaderMap;
use serde::Serialize;
use utoipa::ToSchema;

use crate::access::{Access, Caller};
use crate::browser::Cookie;
use crate::disclosed::Disclosed;
use crate::edge::Arrival;
use crate::instant;
use crate::problem::Problem;
use crate::revocation::{Over, Receipt, Revocations};

/// How long signing in and revoking wait until the views of this process know.
pub(crate) const WAIT_FOR_VIEW: Duration = Duration::from_secs(2);

/// Opens, lists and ends sessions.
#[derive(Clone)]
pub(crate) struct Sessions {
    access: Access,
    identity: Arc<Identity>,
    commands: Commands,
    hot: Arc<Hot>,
    revocations: Revocations,
}

/// A session that was just opened.
pub(crate) struct Opened {
    pub(crate) session: Session,
    pub(crate) opened: OpenSession,
    pub(crate) position: Position,
}

/// Tokens and whose they are.
#[derive(Serialize, ToSchema)]
pub(crate) struct SignedIn {
    #[schema(value_type = String)]
    access_token: Disclosed,
    /// Works once; the answer to its use holds the next one.
    #[schema(value_type = String)]
    refresh_token: Disclosed,
    /// Seconds for which the access token is good.
    expires_in: u64,
    session: String,
    user: SignedInUser,
    org: SignedInOrg,
}

#[derive(Serialize, ToSchema)]
struct SignedInUser {
    id: String,
    email: String,
    name: String,
}

#[derive(Serialize, ToSchema)]
struct SignedInOrg {
    id: String,
    slug: String,
}

/// A session as its owner, or an administrator, sees it.
#[derive(Serialize, ToSchema)]
pub(crate) struct SessionShown {
    id: String,
    /// `api`, `cli`, `console` or `gateway` (one workspace's host, or the sign-in that opens them): the session counts nowhere else.
    surface: String,
    /// What the program calls itself.
    client: String,
    /// The issuer that vouched for the person; `local` for an account of EnvForge's own.
    provider: String,
    opened_at: instant::Instant,
    /// When the person last proved who they are.
    authenticated_at: instant::Instant,
    /// To the hour.
    last_used_at: instant::Instant,
    expires_at: instant::Instant,
    /// Whether it is the one that asks.
    current: bool,
}

/// A revocation that is about to happen: what stood before.
pub(crate) struct Revoking {
    org: OrgId,
    user: UserId,
    cause: SessionEnd,
    /// Open ones, by the surface on which they count.
    sessions: BTreeMap<SessionId, Surface>,
    /// Of those on workspaces' hosts, the ones that are open.
    workspaces: WorkspaceSessions,
    workspaces_open: usize,
    links: usize,
    /// The account itself ends, and with it all of them, whatever events say of each.
    whole: bool,
    begun: Instant,
}

impl Revoking {
    /// Of somebody who is taken out.
    pub(crate) fn of_account(self) -> Self {
        Self { whole: true, ..self }
    }
}

/// Whether a session may go on, as the log's leader has it.
pub(crate) enum Standing {
    Live {
        opened: OpenSession,
        position: Position,
    },
    /// The organization's policy does not let it go on. It stands where the policy is loosened again.
    NotAllowed {
        opened: OpenSession,
        over: SessionOver,
    },
    Ended,
    NotAMember,
}

pub(crate) fn session_ended() -> Problem {
    Problem::new("session_ended", "This session has ended; sign in again.")
}

/// What the organization's policy makes of a session, as its person is told.
pub(crate) fn not_allowed(over: SessionOver, opened: &OpenSession) -> Problem {
    match over {
        SessionOver::TooOld => {
            session_ended().with("reason", "too_old").with("opened_at", instant::Instant(opened.opened_at).text())
        }
        SessionOver::Provider => {
            let how = if opened.provider == LOCAL_ISSUER { "a password here" } else { &opened.provider };
            Problem::new(
                "identity_provider_not_allowed",
                format!("The organization's policy lets nobody sign in with {how}."),
            )
            .with("provider", opened.provider.clone())
        }
    }
}

/// A step of a request that takes several commits: the same request, so the same command again when it is repeated.
pub(crate) fn part_of(context: &Context, part: &str) -> Context {
    let command = CommandId::from_uuid(derived_uuid(context.command.as_uuid().as_bytes(), part));
    Context { command, ..*context }
}

/// The sessions that a commit ended.
fn sessions_ended(done: &Done) -> impl Iterator<Item = SessionId> + '_ {
    done.events.iter().filter_map(|event| match event {
        Event::User(UserEvent::SessionEnded { session, .. }) => Some(*session),
        _ => None,
    })
}

impl Sessions {
    pub(crate) fn new(
        access: Access,
        identity: Arc<Identity>,
        commands: Commands,
        hot: Arc<Hot>,
        revocations: Revocations,
    ) -> Self {
        Self { access, identity, commands, hot, revocations }
    }

    /// Opens a session for somebody whose identity was proven, with tokens.
    pub(crate) async fn open(
        &self,
        proven: &Proven,
        surface: Surface,
        client: Option<ClientName>,
        arrival: &Arrival,
    ) -> Result<(Position, SignedIn), Problem> {
        let session = self.new_session(proven, arrival.now)?;
        let opened = self.open_as(session, proven, surface, client, arrival).await?;
        Ok((opened.position, self.tokens(&opened, arrival.now).await?))
    }

    /// A session that nobody knows of yet, for whoever has to write down where it comes from before it is opened.
    pub(crate) fn new_session(&self, proven: &Proven, now: UnixMillis) -> Result<Session, Problem> {
        let expires_at = now.plus(SESSION_LIFETIME);
        Ok(Session {
            user: proven.user,
            org: proven.org,
            session: SessionId::from_uuid(self.identity.randomness().uuid_v7(now).map_err(internal)?),
            expires_at: proven.ends_by.map_or(expires_at, |end| end.min(expires_at)),
        })
    }

    /// The one way into EnvForge, for every provider. Only members of their organization get in, by a provider that it allows, as
    /// the log's leader has it.
    pub(crate) async fn open_as(
        &self,
        session: Session,
        proven: &Proven,
        surface: Surface,
        client: Option<ClientName>,
        arrival: &Arrival,
    ) -> Result<Opened, Problem> {
        let Session { user, org, .. } = session;
        let now = arrival.now;
        let (_, policy) = self.membership(org, user).await?;
        let opened = OpenSession {
            surface,
            provider: proven.provider.clone(),
            client: client.unwrap_or_else(|| ClientName::of_surface(surface)),
            opened_at: now,
            authenticated_at: proven.authenticated_at.min(now),
            expires_at: session.expires_at,
        };
        let refused = |policy: &OrganizationPolicy| {
            let over = policy.session_over(&opened.provider, opened.opened_at, opened.expires_at, now);
            over.map_or(Ok(()), |over| Err(not_allowed(over, &opened)))
        };
        refused(&policy)?;
        let open = UserCommand::OpenSession { session: session.session, opened: opened.clone(), now };
        let done = self.record(org, user, surface, arrival, &open).await.map_err(|problem| {
            // A first start that broke off between the two: not the fault of whoever signs in.
            if problem.code() == "user_unknown" { internal("an account has no user in the log") } else { problem }
        })?;
        for ended in sessions_ended(&done) {
            self.identity.sessions().revoke_session(ended, now).await?;
        }
        // Taken out between the first look and now, a person whose sessions were ended then would have this one left.
        if let Err(problem) = self.membership(org, user).await.and_then(|(_, policy)| refused(&policy)) {
            self.end(&session, SessionEnd::Revoked, surface, arrival).await?;
            return Err(problem);
        }
        // The organization and the user are in the view for sure once it stands at the commit that opened the session.
        self.hot.wait_for(done.position, WAIT_FOR_VIEW).await.map_err(|stale| {
            Problem::new("rights_stale", "You are signed in, but your rights are not known here yet. Sign in again.")
                .retry_after_s(1)
                .because(stale.to_string())
        })?;
        Ok(Opened { session, opened, position: done.position })
    }

    /// The first tokens of a session that was just opened.
    pub(crate) async fn tokens(&self, opened: &Opened, now: UnixMillis) -> Result<SignedIn, Problem> {
        let Opened { session, opened, .. } = opened;
        let description = self.description(session.org, session.user, now);
        let tokens = self.identity.sessions().open(session, opened, &description, now).await?;
        self.signed_in(session, tokens.access, tokens.signed_in.expires_at, tokens.refresh, now)
    }

    /// A cookie for a session of a browser that was just opened. A new one each time: whatever cookie the browser had before
    /// signs nobody in.
    pub(crate) async fn browser_cookie(&self, opened: &Opened) -> Result<Secret, Problem> {
        let cookie = self.identity.randomness().token("").map_err(internal)?;
        let credentials = self.identity.self_hosted().credentials();
        credentials.insert_browser_session(&cookie, &opened.session, &opened.opened).await.map_err(internal)?;
        Ok(cookie)
    }

    /// Ends a session, in the log first: a refresh token that outlives its session is refused.
    pub(crate) async fn end(
        &self,
        session: &Session,
        reason: SessionEnd,
        surface: Surface,
        arrival: &Arrival,
    ) -> Result<(), Problem> {
        let end = UserCommand::EndSession { session: session.session, reason };
        self.record(session.org, session.user, surface, arrival, &end).await?;
        Ok(self.identity.sessions().revoke_session(session.session, arrival.now).await?)
    }

    /// Members alone get tokens; somebody who was taken out proves who they are and gets none.
    async fn membership(&self, org: OrgId, user: UserId) -> Result<(Position, OrganizationPolicy), Problem> {
        let loaded = self.commands.load::<Organization>(&StreamId::organization(org)).await?;
        match &loaded.state {
            Organization::Active(organization) if organization.members.contains(&user) => {
                Ok((loaded.position, organization.policy.clone()))
            }
            Organization::Active(_) | Organization::Unknown => {
                Err(Problem::new("membership_ended", "You do not belong to this organization any more."))
            }
        }
    }

    /// Whom this cookie of a browser speaks for, if its session still counts, as the log's leader has it: whoever signed out at
    /// another process is nobody here either.
    pub(crate) async fn in_browser(
        &self,
        cookie: Cookie,
        headers: &HeaderMap,
        arrival: &Arrival,
    ) -> Result<Option<Caller>, Problem> {
        let Some(caller) = self.access.presented_in_browser(cookie, headers, arrival).await? else { return Ok(None) };
        let Caller { user, org, expires_at, .. } = caller;
        let session = Session { user, org, session: caller.session_id()?, expires_at };
        Ok(match self.standing(&session, arrival.now).await? {
            Standing::Live { .. } => Some(caller),
            Standing::NotAllowed { .. } | Standing::Ended | Standing::NotAMember => None,
        })
    }

    pub(crate) async fn standing(&self, session: &Session, now: UnixMillis) -> Result<Standing, Problem> {
        let loaded = self.commands.load::<User>(&StreamId::user(session.org, session.user)).await?;
        let opened = match loaded.state {
            User::Active { mut sessions, .. } => sessions.remove(&session.session),
            User::Unknown | User::Invited(_) | User::InvitationRevoked | User::Deactivated { .. } => None,
        };
        let Some(opened) = opened.filter(|opened| now < opened.expires_at) else { return Ok(Standing::Ended) };
        match self.membership(session.org, session.user).await {
            Ok((position, policy)) => {
                Ok(match policy.session_over(&opened.provider, opened.opened_at, opened.expires_at, now) {
                    None => Standing::Live { opened, position: position.max(loaded.position) },
                    Some(over) => Standing::NotAllowed { opened, over },
                })
            }
            Err(problem) if problem.code() == "membership_ended" => Ok(Standing::NotAMember),
            Err(problem) => Err(problem),
        }
    }

    /// Records on the user's stream what identity has seen: that they signed in, or that a session had to end.
    pub(crate) async fn record(
        &self,
        org: OrgId,
        user: UserId,
        surface: Surface,
        arrival: &Arrival,
        command: &UserCommand,
    ) -> Result<Done, Problem> {
        let context = Context {
            command: CommandId::from_uuid(self.identity.randomness().uuid_v7(arrival.now).map_err(internal)?),
            request_digest: None,
            repeated: None,
            correlation: arrival.correlation,
            causation: None,
            now: arrival.now,
        };
        self.record_as(&context, org, user, surface, command).await
    }

    /// `record`, as a part of a request.
    pub(crate) async fn record_as(
        &self,
        context: &Context,
        org: OrgId,
        user: UserId,
        surface: Surface,
        command: &UserCommand,
    ) -> Result<Done, Problem> {
        let permit = self.access.identity_permit(org, user, surface, context.now).await?;
        Ok(users::change(&self.commands, &permit, context, user, command).await?)
    }

    pub(crate) fn description(&self, org: OrgId, user: UserId, now: UnixMillis) -> Description {
        let grants = self.hot.authorization.grants(org, user, now);
        let mut roles: Vec<_> =
            grants.iter().filter(|grant| grant.scope == Scope::Organization).map(|grant| grant.role).collect();
        roles.sort_unstable();
        roles.dedup();
        let teams = self.hot.authorization.teams_of(org, user).into_iter().map(|(team, _)| team).collect();
        Description { roles, teams }
    }

    pub(crate) fn signed_in(
        &self,
        session: &Session,
        access: Secret,
        access_expires_at: UnixMillis,
        refresh: Secret,
        now: UnixMillis,
    ) -> Result<SignedIn, Problem> {
        let unknown = || Problem::internal("somebody with an account has no record in the views");
        let user = self.hot.authorization.user(session.user).ok_or_else(unknown)?;
        let org = self.hot.authorization.organization(session.org);
        Ok(SignedIn {
            access_token: Disclosed(access),
            refresh_token: Disclosed(refresh),
            expires_in: whole_seconds(access_expires_at.since(now)),
            session: session.session.to_string(),
            user: SignedInUser { id: session.user.to_string(), email: user.email, name: user.name },
            org: SignedInOrg {
                id: session.org.to_string(),
                slug: org.map_or_else(String::new, |org| OrgSlug::to_string(&org.slug)),
            },
        })
    }

    /// The open sessions of the person whom the permit is about, the newest first, as the log's leader has them.
    pub(crate) async fn list(&self, permit: &Permit, caller: &Caller) -> Result<Vec<SessionShown>, Problem> {
        let allowed = matches!(permit.action(), Action::SessionReadOwn | Action::SessionRead);
        let Resource::User { org, user } = permit.resource() else { return Err(Problem::not_found()) };
        if !allowed {
            return Err(internal("the permit is not for reading sessions"));
        }
        let (sessions, workspaces) = match self.commands.load::<User>(&StreamId::user(org, user)).await?.state {
            User::Active { sessions, workspaces, .. } => (sessions, workspaces),
            User::Deactivated { .. } => return Ok(Vec::new()),
            User::Unknown | User::Invited(_) | User::InvitationRevoked => return Err(Problem::not_found()),
        };
        let uses = self.identity.sessions().last_uses(user).await?;
        let last_use = |session: &SessionId| uses.iter().find(|(used, _)| used == session).map(|(_, at)| *at);
        let hosts =
            workspaces.iter().filter_map(|(id, open)| Some((*id, self.as_session(open, sessions.get(&open.parent)?))));
        let hosts: Vec<_> = hosts.collect();
        let mut live: Vec<_> =
            sessions.into_iter().chain(hosts).filter(|(_, opened)| caller.arrival.now < opened.expires_at).collect();
        live.sort_by_key(|(session, opened)| std::cmp::Reverse((opened.opened_at, *session)));
        let shown = |(session, opened): (SessionId, OpenSession)| SessionShown {
            id: session.to_string(),
            surface: opened.surface.token().to_owned(),
            client: opened.client.as_str().to_owned(),
            provider: opened.provider,
            opened_at: opened.opened_at.into(),
            authenticated_at: opened.authenticated_at.into(),
            last_used_at: last_use(&session).unwrap_or(opened.opened_at).max(opened.opened_at).into(),
            expires_at: opened.expires_at.into(),
            current: caller.session_id().is_ok_and(|own| own == session),
        };
        Ok(live.into_iter().map(shown).collect())
    }

    /// A session on a workspace's host, beside the others: it counts on the gateway, and is called as the host is.
    fn as_session(&self, open: &WorkspaceSession, parent: &OpenSession) -> OpenSession {
        let name = self.hot.gateway.workspace_name(open.workspace);
        let client = name.and_then(|name| ClientName::parse(&format!("{} of {name}", open.service)).ok());
        OpenSession {
            surface: Surface::Gateway,
            client: client.unwrap_or_else(|| ClientName::of_surface(Surface::Gateway)),
            opened_at: open.opened_at,
            expires_at: open.expires_at,
            ..parent.clone()
        }
    }

    /// Looks at what a revocation may close, before it happens.
    pub(crate) async fn revoking(
        &self,
        org: OrgId,
        user: UserId,
        cause: SessionEnd,
        now: UnixMillis,
    ) -> Result<Revoking, Problem> {
        let begun = Instant::now();
        let (sessions, workspaces) = match self.commands.load::<User>(&StreamId::user(org, user)).await?.state {
            User::Active { sessions, workspaces, .. } => (sessions, workspaces),
            User::Unknown | User::Invited(_) | User::InvitationRevoked | User::Deactivated { .. } => Default::default(),
        };
        let sessions = sessions.iter().filter(|(_, opened)| now < opened.expires_at);
        let sessions = sessions.map(|(session, opened)| (*session, opened.surface)).collect();
        let workspaces_open = workspaces.iter().filter(|(_, open)| now < open.expires_at).count();
        let links = self.hot.authorization.open_links_of(user, now);
        let whole = cause == SessionEnd::Deactivated;
        Ok(Revoking { org, user, cause, sessions, workspaces, workspaces_open, links, whole, begun })
    }

    /// What a revocation has closed, once no gateway lets it in; written down. The revocation holds whether or not this comes to
    /// its end.
    pub(crate) async fn receipt(
        &self,
        revoking: Revoking,
        done: &Done,
        surface: Surface,
        context: &Context,
    ) -> Result<Receipt, Problem> {
        self.receipt_of_all(revoking, &[done], surface, context).await
    }

    /// `receipt`, of a revocation that took several steps.
    pub(crate) async fn receipt_of_all(
        &self,
        revoking: Revoking,
        done: &[&Done],
        surface: Surface,
        context: &Context,
    ) -> Result<Receipt, Problem> {
        let Revoking { org, user, cause, sessions, workspaces, workspaces_open, links, whole, begun } = revoking;
        let changed = done.iter().any(|done| !done.events.is_empty());
        let ended = || done.iter().flat_map(|done| sessions_ended(done));
        let on_cli = |session: &SessionId| sessions.get(session) == Some(&Surface::Cli);
        let (over, cli_sessions) = if whole && changed {
            // Whoever is deactivated or taken out loses all of them by that event alone.
            (sessions.len() + workspaces_open, sessions.keys().filter(|session| on_cli(session)).count())
        } else {
            // What was opened from a session ended with it, without an event of its own.
            let all = ended().map(|session| 1 + workspaces.opened_from(session)).sum();
            (all, ended().filter(on_cli).count())
        };
        let commits: Vec<Position> = done.iter().flat_map(|done| done.commits()).collect();
        self.revocations.known(&commits).await;
        let links = links.saturating_sub(self.hot.authorization.open_links_of(user, context.now));
        let over = Over { sessions: over, cli_sessions, links };
        let receipt = self.revocations.receipt(&commits, over, begun).await;
        if !changed {
            return Ok(Receipt::from(&receipt));
        }
        let record = UserCommand::RecordRevocation { cause, receipt: receipt.clone() };
        match self.record_as(&part_of(context, "receipt"), org, user, surface, &record).await {
            // Of a repeated request: what its first answer said.
            Ok(recorded) => Ok(Receipt::from(recorded.events.iter().find_map(receipt_of).unwrap_or(&receipt))),
            Err(problem) => {
                tracing::warn!(code = problem.code(), "the receipt of a revocation could not be written down");
                Ok(Receipt::from(&receipt))
            }
        }
    }
}

fn receipt_of(event: &Event) -> Option<&revocation::Receipt> {
    match event {
        Event::User(UserEvent::RevocationRecorded { receipt, .. }) => Some(receipt),
        _ => None,
    }
}

/// An end that stands in whole seconds is not told as a second less.
pub(crate) fn whole_seconds(left: Millis) -> u64 {
    left.get().div_ceil(1_000)
}

pub(crate) fn internal(error: impl std::fmt::Display) -> Problem {
    Problem::internal(error.to_string())
}
