//! `envforge recover-owner`: somebody with the machine's command line gets an owner back in, when none can sign in.
//!
//! Works on the stores themselves while nothing serves the embedded log, which has one holder. Every step is one that may have
//! happened already, so that a recovery that broke off is simply run again. It is an event of its own, and the audit says so.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use envforge_commands::{Commands, Context, organizations, users};
use envforge_domain::access::{Action, Resource};
use envforge_domain::commit::StreamId;
use envforge_domain::ids::{OrgId, UserId};
use envforge_domain::organization::{Organization, OrganizationCommand};
use envforge_domain::secret::Secret;
use envforge_domain::session::LOCAL_ISSUER;
use envforge_domain::slug::OrgSlug;
use envforge_domain::time::{Clock as _, UnixMillis};
use envforge_domain::user::{EmailAddress, User, UserCommand};
use envforge_identity::clock::SystemClock;
use envforge_identity::credentials::Account;
use envforge_identity::randomness::Randomness;
use envforge_identity::self_hosted::SelfHosted;
use uuid::Uuid;

use super::bootstrap::{FirstOwner, setup_permit};
use super::projections::Place;
use super::telemetry::{self, LogFormat};
use super::usable;
use crate::cli::failure::Failure;
use crate::cli::output::Output;

/// Make somebody an owner from this machine, with a new password: for an organization whose owners cannot sign in, or where nobody
/// else decides on its founder's root windows.
#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  envforge recover-owner --data ~/.local/share/envforge --email dana@example.com

`envforge dev` on that data must be stopped. All sessions of the person end. The recovery stands in the audit.")]
pub(crate) struct RecoverOwnerArgs {
    #[command(flatten)]
    place: Place,
    /// Whose account it is, or will be.
    #[arg(long, value_name = "EMAIL")]
    email: String,
    /// Which organization; left out for the one that the first start made.
    #[arg(long, value_name = "SLUG")]
    org: Option<String>,
    /// Read the new password from this file instead of generating one.
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
}

/// What a recovery works with.
struct Recovery {
    commands: Commands,
    accounts: SelfHosted,
    org: OrgId,
    now: UnixMillis,
}

pub(crate) async fn run(args: RecoverOwnerArgs, output: Output) -> anyhow::Result<()> {
    telemetry::install("warn", LogFormat::Text)?;
    let email = usable("--email", EmailAddress::parse(&args.email))?;
    let slug = args.org.as_deref().map(|org| usable("--org", org.parse::<OrgSlug>())).transpose()?;
    let (password, generated) = match &args.password_file {
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
            (Secret::new(text.trim_end_matches(['\r', '\n']).to_owned()), false)
        }
        None => (Randomness.password()?, true),
    };
    // Opening waits for nobody: a log that another process holds is an error that says so.
    let (log, _) = args.place.open("recovery").await?;
    let credentials = args.place.credentials().await?;
    let accounts = tokio::task::spawn_blocking(move || SelfHosted::for_tools(credentials)).await??;
    let first = FirstOwner::of(&log.head().await?.identity, "acme".parse()?, email.clone());
    let commands = Commands::new(log);
    let org = match &slug {
        None => first.org,
        Some(slug) => holder(&commands, slug).await?,
    };
    let recovery = Recovery { commands, accounts, org, now: SystemClock.now() };
    let (user, slug) = recovery.recover(&email, password.clone()).await?;
    let mut line = serde_json::json!({ "org": slug, "user": user.to_string(), "email": email.as_str() });
    if generated {
        line["password"] = password.expose().into();
    }
    output.last_event(&line, || {
        let mut text = format!("{} is an owner of {slug}; all of their sessions have ended.", email.as_str());
        if generated {
            text.push_str(&format!("\nPassword: {}  (shown this once)", password.expose()));
        }
        text
    })?;
    Ok(())
}

/// Who holds a slug.
async fn holder(commands: &Commands, slug: &OrgSlug) -> anyhow::Result<OrgId> {
    use envforge_domain::claim::{Claim, ClaimKey};
    let stream = ClaimKey::OrgSlug(slug.clone()).stream()?;
    match commands.load::<Claim>(&stream).await?.state {
        Claim::Held { holder } | Claim::Retired { holder } => Ok(holder.parse()?),
        Claim::Free => {
            Err(Failure::not_found(format!("there is no organization `{slug}` in this log"), "name another: --org")
                .into())
        }
    }
}

impl Recovery {
    async fn recover(&self, email: &EmailAddress, password: Secret) -> anyhow::Result<(UserId, String)> {
        let slug = match self.commands.load::<Organization>(&StreamId::organization(self.org)).await?.state {
            Organization::Active(organization) => organization.slug.to_string(),
            Organization::Unknown => {
                let hint = "see whether --data names the right folder; the first start of `envforge dev` makes one";
                return Err(Failure::not_found("this log holds no such organization", hint).into());
            }
        };
        let accounts = &self.accounts;
        let mut known = accounts.credentials().account_by_address(email).await?;
        if let Some(account) = &known {
            if account.org != self.org {
                let what = format!("{} has an account in another organization", email.as_str());
                return Err(Failure::conflict(what, "choose another address: --email").into());
            }
            // Left over from an invitation that was never accepted to its end.
            if matches!(self.user(account.user).await?, User::Invited(_) | User::InvitationRevoked) {
                accounts.credentials().remove_account(account.user).await?;
                known = None;
            }
        }
        // The account first, as at the first start: a user whom nobody can be would stay for ever.
        let user = match known {
            Some(account) => {
                accounts.reset_password(account.user, password, self.now).await?;
                account.user
            }
            None => {
                let user = UserId::from_uuid(Uuid::now_v7());
                let account = Account { user, org: self.org, email: email.clone() };
                accounts.create_account(&account, password, self.now).await?;
                user
            }
        };
        match self.user(user).await? {
            User::Unknown => {
                let create = UserCommand::Create {
                    user,
                    issuer: LOCAL_ISSUER.to_owned(),
                    subject: user.to_string(),
                    email: email.clone(),
                    name: email.as_str().to_owned(),
                };
                self.change(Action::UserCreate, user, &create).await?;
            }
            User::Deactivated { .. } => {
                self.change(Action::UserReactivate, user, &UserCommand::Reactivate { beyond: None }).await?;
            }
            User::Active { .. } | User::Invited(_) | User::InvitationRevoked => {}
        }
        self.change(Action::UserRecordSession, user, &UserCommand::RecordPasswordChange).await?;
        let permit = setup_permit(Action::OwnerRecover, Resource::Organization(self.org), self.now)?;
        let recover = OrganizationCommand::RecoverOwner { user };
        organizations::change(&self.commands, &permit, &Context::new(self.now), &recover).await?;
        Ok((user, slug))
    }

    async fn user(&self, user: UserId) -> anyhow::Result<User> {
        Ok(self.commands.load::<User>(&StreamId::user(self.org, user)).await?.state)
    }

    async fn change(&self, action: Action, user: UserId, command: &UserCommand) -> anyhow::Result<()> {
        let permit = setup_permit(action, Resource::User { org: self.org, user }, self.now)?;
        users::change(&self.commands, &permit, &Context::new(self.now), user, command).await?;
        Ok(())
    }
}
