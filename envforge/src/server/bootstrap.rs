//! The first start: an organization and its owner, so that somebody can sign in.
//!
//! Every step is derived from the log's identity, so that a start that was interrupted is finished by the next one and
//! never makes a second owner.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use envforge_commands::context::derived_uuid;
use envforge_commands::{Commands, Context, organizations, users};
use envforge_domain::access::{Action, ActorFacts, Facts, Permit, Request, Resource, authorize};
use envforge_domain::commit::{Actor, Component, Position, Surface};
use envforge_domain::ids::{CommandId, CorrelationId, OrgId, UserId};
use envforge_domain::secret::Secret;
use envforge_domain::slug::OrgSlug;
use envforge_domain::time::UnixMillis;
use envforge_domain::user::{EmailAddress, UserCommand};
use envforge_eventlog::LogIdentity;
use envforge_identity::credentials::Account;
use envforge_identity::self_hosted::SelfHosted;

use super::control_plane::ControlPlane;
use super::first_password::FirstPassword;
use crate::cli::failure::Failure;

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

    /// Creates account, user and organization where they do not exist; answers a password that was generated and that
    /// nobody was told yet. `first_password` holds it until the caller has told it.
    pub(crate) async fn first_start(
        &self,
        plane: &ControlPlane,
        identity: &LogIdentity,
        self_hosted: &SelfHosted,
        password_file: Option<&Path>,
        first_password: &FirstPassword,
    ) -> anyhow::Result<Option<Secret>> {
        let now = plane.clock.now();
        if let Some(existing) = plane.hot.authorization.organization(self.org)
            && existing.slug != self.org_slug
        {
            let what = format!("this log belongs to organization `{}` and not to `{}`", existing.slug, self.org_slug);
            return Err(Failure::conflict(what, "name that one, or use another log").into());
        }
        let given = match password_file {
            Some(path) => {
                let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
                Some(Secret::new(text.trim_end_matches(['\r', '\n']).to_owned()))
            }
            None => None,
        };
        let account = Account { user: self.user, org: self.org, email: self.email.clone() };
        // The account first: an organization whose owner cannot sign in would have no way out. And before it the
        // password that is shown only when all the rest has come up.
        let exists = self_hosted.credentials().account_of(self.user).await?.is_some();
        let untold = match (given, exists) {
            (_, true) => first_password.kept()?,
            (Some(given), false) => {
                first_password.forget()?;
                self_hosted.bootstrap(account, Some(given), now).await?;
                None
            }
            (None, false) => {
                let password = match first_password.kept()? {
                    Some(kept) => kept,
                    None => self_hosted.randomness().password()?,
                };
                first_password.keep(&password)?;
                self_hosted.bootstrap(account, Some(password.clone()), now).await?;
                Some(password)
            }
        };
        let position = self.create(&plane.commands, identity, now).await?;
        plane.hot.wait_for(position, Duration::from_secs(10)).await?;
        Ok(untold)
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
                repeated: None,
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
pub(super) fn setup_permit(action: Action, resource: Resource, now: UnixMillis) -> anyhow::Result<Permit> {
    let facts = Facts { position: Position::START, actor: ActorFacts::System };
    let request = Request { actor: Actor::System(Component::Setup), action, resource, surface: Surface::Cli, now };
    Ok(authorize(&facts, &request)?)
}
