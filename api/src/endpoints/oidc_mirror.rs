//! From a person whom the provider has proven to a member with a session of EnvForge's own.
//!
//! The provider says who somebody is and to which of its organizations they signed in. Everything else is decided here and recorded in the
//! log: the user's record at first sight, membership where the organization takes whoever its provider sends, the role they need.

use envforge_commands::context::derived_uuid;
use envforge_commands::{CommandError, Context, organizations, users};
use envforge_domain::access::{Action, Grant, Grantee, Resource, Scope};
use envforge_domain::commit::{Actor, Component, Position, StreamId, Surface};
use envforge_domain::ids::{CommandId, OrgId, UserId};
use envforge_domain::limits::NAME_CHARS_MAX;
use envforge_domain::organization::{Organization, OrganizationCommand};
use envforge_domain::project::name_is_valid;
use envforge_domain::session::{ClientName, SessionEnd};
use envforge_domain::user::{EmailAddress, User, UserCommand};
use envforge_identity::oidc::{Client, MappedOrganization, Oidc, Proven};
use envforge_identity::sign_in;

use super::auth::Auth;
use super::oidc::Login;
use crate::edge::Arrival;
use crate::problem::Problem;
use crate::sessions::{Opened, WAIT_FOR_VIEW};

/// The surface that a client of the provider's stands for.
pub(super) const fn surface_of(client: Client) -> Surface {
    match client {
        Client::Web => Surface::Console,
        Client::Cli => Surface::Cli,
        Client::Gateway => Surface::Gateway,
    }
}

/// A person's record in one organization. The same for the same issuer and subject, so that whoever signs in for the first time in two places
/// at once gets one record. An address that changes hands gives nobody another's record.
pub(super) fn user_of(org: OrgId, issuer: &str, subject: &str) -> UserId {
    let purpose = format!("user of a provider {} {issuer} {subject}", issuer.len());
    UserId::from_uuid(derived_uuid(org.as_uuid().as_bytes(), &purpose))
}

/// A session for somebody whom the provider has proven: it is bound by the provider's own.
pub(super) async fn open_session(
    login: &Login,
    oidc: &Oidc,
    proven: &Proven,
    client: Option<ClientName>,
    arrival: &Arrival,
) -> Result<Opened, Problem> {
    let surface = surface_of(proven.client);
    let by_slug = |mapped: &MappedOrganization| login.hot.authorization.organization_by_slug(&mapped.slug);
    let mapped = oidc.config().organization(&proven.organization);
    let place = mapped.and_then(|mapped| Some((by_slug(mapped)?, mapped)));
    let outcome = match place {
        Some((org, mapped)) => admit(login, oidc, org, mapped, proven, client, arrival).await,
        None => Err(not_mapped()),
    };
    let who = place.map(|(org, _)| (org, user_of(org, &proven.issuer, &proven.subject)));
    login.auth.access.sign_in_outcome(outcome, who, surface, arrival)
}

async fn admit(
    login: &Login,
    oidc: &Oidc,
    org: OrgId,
    mapped: &MappedOrganization,
    proven: &Proven,
    client: Option<ClientName>,
    arrival: &Arrival,
) -> Result<Opened, Problem> {
    let surface = surface_of(proven.client);
    if proven.ends_at <= arrival.now {
        return Err(Problem::new("sign_in_expired", "Your session at the identity provider has ended already."));
    }
    let user = mirror(login, org, mapped, proven, surface, arrival).await?;
    let somebody = sign_in::Proven {
        user,
        org,
        provider: proven.issuer.clone(),
        authenticated_at: proven.authenticated_at,
        ends_by: Some(proven.ends_at),
    };
    let sessions = &login.auth.sessions;
    let session = sessions.new_session(&somebody, arrival.now)?;
    oidc.remember_session(&session, proven, arrival.now).await.map_err(internal)?;
    let opened = sessions.open_as(session, &somebody, surface, client, arrival).await?;
    // The provider may have ended it while we opened it, and found nothing to end then.
    if oidc.has_ended(proven).await.map_err(internal)? {
        sessions.end(&session, SessionEnd::Revoked, surface, arrival).await?;
        return Err(Problem::new("session_ended", "Your session at the identity provider has ended; sign in again."));
    }
    Ok(opened)
}

/// The person's record, made at first sight, where they are a member with a role.
async fn mirror(
    login: &Login,
    org: OrgId,
    mapped: &MappedOrganization,
    proven: &Proven,
    surface: Surface,
    arrival: &Arrival,
) -> Result<UserId, Problem> {
    let auth = &login.auth;
    let user = user_of(org, &proven.issuer, &proven.subject);
    let mut position = match auth.commands.load::<User>(&StreamId::user(org, user)).await?.state {
        User::Active { .. } => Position::START,
        User::Deactivated { .. } => {
            return Err(Problem::new("account_deactivated", "Your account is deactivated."));
        }
        // Invitations are for accounts with passwords: nobody is invited under an id of the provider's.
        User::Unknown | User::Invited(_) | User::InvitationRevoked => {
            first_sight(auth, org, user, mapped, proven, surface, arrival).await?
        }
    };
    let organization = auth.commands.load::<Organization>(&StreamId::organization(org)).await?;
    position = position.max(organization.position);
    match organization.state {
        Organization::Active(organization) if organization.members.contains(&user) => {}
        Organization::Active(_) | Organization::Unknown => {
            return Err(Problem::new("membership_ended", "You do not belong to this organization any more."));
        }
    }
    login.hot.wait_for(position, WAIT_FOR_VIEW).await.map_err(|stale| {
        Problem::new("rights_stale", "Your rights are not known here yet. Sign in again.")
            .retry_after_s(1)
            .because(stale.to_string())
    })?;
    if login.hot.authorization.grants(org, user, arrival.now).is_empty() {
        return Err(Problem::new(
            "no_role",
            format!("You are a member of `{}` without a role. An administrator can give you one.", mapped.slug),
        )
        .with("user", user.to_string()));
    }
    Ok(user)
}

/// Membership, role and record, in this order: who has a record was through all of it, and is not made a member again after somebody took
/// them out.
pub(super) async fn first_sight(
    auth: &Auth,
    org: OrgId,
    user: UserId,
    mapped: &MappedOrganization,
    proven: &Proven,
    surface: Surface,
    arrival: &Arrival,
) -> Result<Position, Problem> {
    if mapped.join {
        let add = OrganizationCommand::AddMember { user };
        change(auth, Action::MemberAdd, org, &add, surface, arrival).await?;
        if let Some(role) = mapped.role {
            let grant = Grant { grantee: Grantee::User(user), role, scope: Scope::Organization, expires_at: None };
            let by = Actor::System(Component::Identity);
            let assign = OrganizationCommand::AssignRole { by, grant, now: arrival.now };
            change(auth, Action::RoleAssign, org, &assign, surface, arrival).await?;
        }
    } else {
        let organization = auth.commands.load::<Organization>(&StreamId::organization(org)).await?.state;
        if !matches!(organization, Organization::Active(organization) if organization.members.contains(&user)) {
            return Err(Problem::new(
                "not_invited",
                format!("Nobody has added you to `{}`. An administrator can: your id is {user}.", mapped.slug),
            )
            .with("user", user.to_string()));
        }
    }
    let (email, name) = (email_of(proven, user), name_of(proven));
    let create =
        UserCommand::Create { user, issuer: proven.issuer.clone(), subject: proven.subject.clone(), email, name };
    let permit =
        auth.access.provider_permit(Action::UserCreate, Resource::Organization(org), surface, arrival.now).await?;
    match users::change(&auth.commands, &permit, &context(auth, arrival)?, user, &create).await {
        Ok(done) => Ok(done.position),
        // Somebody else's first sight of the same person came first.
        Err(CommandError::Refused(refusal)) if refusal.code() == "user_exists" => Ok(Position::START),
        Err(error) => Err(error.into()),
    }
}

async fn change(
    auth: &Auth,
    action: Action,
    org: OrgId,
    command: &OrganizationCommand,
    surface: Surface,
    arrival: &Arrival,
) -> Result<(), Problem> {
    let permit = auth.access.provider_permit(action, Resource::Organization(org), surface, arrival.now).await?;
    organizations::change(&auth.commands, &permit, &context(auth, arrival)?, command).await?;
    Ok(())
}

/// What EnvForge does because of a request; never a client's repeated command.
pub(super) fn context(auth: &Auth, arrival: &Arrival) -> Result<Context, Problem> {
    Ok(Context {
        command: CommandId::from_uuid(auth.identity.randomness().uuid_v7(arrival.now).map_err(internal)?),
        request_digest: None,
        repeated: None,
        correlation: arrival.correlation,
        causation: None,
        now: arrival.now,
    })
}

/// Only for people to recognise each other. Without an address that the provider has verified, one that nobody has.
fn email_of(proven: &Proven, user: UserId) -> EmailAddress {
    let given = proven.email.as_deref().and_then(|email| EmailAddress::parse(email).ok());
    given.unwrap_or_else(|| {
        let nobody = format!("{user}@no-address.invalid");
        EmailAddress::parse(&nobody).expect("an id and a domain are an address")
    })
}

fn name_of(proven: &Proven) -> String {
    let given = proven.name.as_deref().or(proven.email.as_deref()).unwrap_or("Somebody");
    let name: String = given.chars().filter(|char| !char.is_control()).take(NAME_CHARS_MAX).collect();
    if name_is_valid(&name) { name } else { "Somebody".to_owned() }
}

fn not_mapped() -> Problem {
    Problem::new(
        "organization_not_mapped",
        "The organization that you signed in to at the identity provider is none here.",
    )
}

fn internal(error: impl std::fmt::Display) -> Problem {
    Problem::internal(error.to_string())
}
