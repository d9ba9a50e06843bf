//! The first start: an organization and its owner, so that somebody can sign in.
//!
//! Every step is derived from the log's identity, so that a start that was interrupted is finished by the next one and
//! never makes a second owner.

use envforge_commands::context::derived_uuid;
use envforge_commands::{Commands, Context, organizations, users};
use envforge_domain::access::{Action, ActorFacts, Facts, Permit, Request, Resource, authorize};
use envforge_domain::commit::{Actor, Component, Position, Surface};
use envforge_domain::ids::{CommandId, CorrelationId, OrgId, UserId};
use envforge_domain::slug::OrgSlug;
use envforge_domain::time::UnixMillis;
use envforge_domain::user::{EmailAddress, UserCommand};
use envforge_eventlog::LogIdentity;

/// Who owns what, from the first start on.
#[derive(Clone, Debug)]
pub(crate) struct FirstOwner {
    pub(crate) org: OrgId,
    pub(crate) org_slug: OrgSlug,
    pub(crate) user: UserId,
    pub(crate) email: EmailAddress,
}

impl FirstOwner {
    /// The first owner of a log, whether or not they exist yet.
    pub(crate) fn of(log: &LogIdentity, org_slug: OrgSlug, email: EmailAddress) -> Self {
        let id = |what: &str| derived_uuid(log.0.as_bytes(), what);
        Self {
            org: OrgId::from_uuid(id("first organization")),
            org_slug,
            user: UserId::from_uuid(id("first owner")),
            email,
        }
    }

    /// Creates user and organization where they do not exist. Repeating it changes nothing.
    pub(crate) async fn create(
        &self,
        commands: &Commands,
        log: &LogIdentity,
        now: UnixMillis,
    ) -> anyhow::Result<Position> {
        let context = |what: &str| {
            let id = derived_uuid(log.0.as_bytes(), what);
            Context {
                command: CommandId::from_uuid(id),
                request_digest: None,
                correlation: CorrelationId::from_uuid(derived_uuid(log.0.as_bytes(), "first start")),
                causation: None,
                now,
            }
        };
        let create_user = UserCommand::Create {
            user: self.user,
            issuer: "local".to_owned(),
            subject: self.user.to_string(),
            email: self.email.clone(),
            name: "Owner".to_owned(),
        };
        let permit = setup_permit(Action::UserCreate, Resource::Organization(self.org), now)?;
        users::change(commands, &permit, &context("create first owner"), self.user, &create_user).await?;
        let permit = setup_permit(Action::OrganizationCreate, Resource::Organization(self.org), now)?;
        let done = organizations::create(
            commands,
            &permit,
            &context("create first organization"),
            self.org,
            self.org_slug.clone(),
            self.org_slug.to_string(),
            self.user,
        )
        .await?;
        Ok(done.position)
    }
}

/// A permit of whoever has the machine's command line, from the same policy as everybody's.
fn setup_permit(action: Action, resource: Resource, now: UnixMillis) -> anyhow::Result<Permit> {
    let facts = Facts { position: Position::START, actor: ActorFacts::System };
    let request = Request { actor: Actor::System(Component::Setup), action, resource, surface: Surface::Cli, now };
    Ok(authorize(&facts, &request)?)
}
