//! Carries one act to the provider and its result to the log.
//!
//! INVARIANT: before it touches an instance it reads the instance's tags anew, and refuses where they name another
//! organization, host or purpose than the act, whatever the plan said. Not here: which acts there are (`compare`).

use std::sync::Arc;

use envforge_commands::context::derived_uuid;
use envforge_commands::hosts::MachineKey;
use envforge_commands::{CommandError, Commands, Context, machines};
use envforge_domain::access::{Action, Denial, Resource};
use envforge_domain::aggregate::Aggregate;
use envforge_domain::commit::{Component, Position};
use envforge_domain::ids::{CommitId, CorrelationId, HostId, OrgId};
use envforge_domain::machine::{Machine, MachineCause, MachineCommand, MachineTerms, StartFailure, StopMode};
use envforge_domain::slug::InvalidSlug;
use envforge_domain::time::SharedClock;
use envforge_runtime::secret_store::StoreError;
use envforge_runtime::{Instance, InstanceState, LaunchOrder, LaunchToken, MachineProvider, ProviderError};

use super::compare::Act;
use crate::permit::system_permit;

/// Carries out acts.
#[derive(Clone)]
pub struct Executor {
    provider: Arc<dyn MachineProvider>,
    commands: Commands,
    clock: SharedClock,
}

/// To which commits of the log an act is due.
#[derive(Clone, Copy, Debug)]
pub struct Grounds {
    /// The one that asked for the machine: the launch's token is made of its id.
    pub requested: CommitId,
    pub commit: CommitId,
    pub correlation: CorrelationId,
    pub position: Position,
}

/// Why an act was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum ActError {
    /// Nothing was done to it.
    #[error("instance {instance} belongs to another organization, host or purpose than it was to be touched for")]
    CrossOrganization { instance: String },
    #[error("there is no instance {instance} any more")]
    Gone { instance: String },
    #[error(transparent)]
    Provider(#[from] ProviderError),
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error("the policy does not allow it: {0}")]
    Denied(#[from] Denial),
    #[error(transparent)]
    Enrolments(#[from] StoreError),
    #[error("a machine's host cannot be named: {0}")]
    Name(#[from] InvalidSlug),
    #[error("the system has no randomness for a token")]
    Randomness,
    #[error("the certificate of the authority for agents cannot be read")]
    Authority,
    #[error("the provider's key of the instance cannot be used: {0}")]
    Key(#[from] envforge_domain::commit::InvalidStreamKey),
}

/// The token of the launch that a commit asked for.
pub fn launch_token(requested: CommitId) -> LaunchToken {
    LaunchToken::from_uuid(derived_uuid(requested.as_uuid().as_bytes(), "launch"))
}

/// A machine's key in its claim, the same that an agent on it registers with.
pub fn machine_key(provider: &str, instance: &str) -> String {
    format!("{provider}-{instance}")
}

/// What a refused start means for its machine; `None` where the next look may ask again.
fn start_failure(error: &ProviderError) -> Option<StartFailure> {
    match error {
        ProviderError::Capacity { .. } => Some(StartFailure::Capacity),
        ProviderError::Quota { .. } => Some(StartFailure::Quota),
        ProviderError::Unsupported { .. }
        | ProviderError::Unauthorized { .. }
        | ProviderError::TokenMismatch
        | ProviderError::Invalid { .. } => Some(StartFailure::Refused),
        // It is gone, which the next looks find.
        ProviderError::NotFound { .. }
        | ProviderError::Throttled
        | ProviderError::NotNow { .. }
        | ProviderError::Unavailable { .. } => None,
    }
}

impl Executor {
    pub fn new(provider: Arc<dyn MachineProvider>, commands: Commands, clock: SharedClock) -> Self {
        Self { provider, commands, clock }
    }

    pub(super) fn provider(&self) -> &dyn MachineProvider {
        self.provider.as_ref()
    }

    /// Carries one act out. `Some` where the log moved.
    ///
    /// # Errors
    /// See [`ActError`]; the next look asks again for what is still missing.
    pub async fn act(&self, act: &Act, grounds: Grounds) -> Result<Option<Position>, ActError> {
        match act {
            Act::Launch { host, terms } => self.launch(*host, terms, grounds).await.map(Some),
            Act::Start { terms, instance } => {
                let now = self.look(terms, instance).await?;
                // Whoever was faster has done it; while it stops, the next look asks again.
                if now.state != InstanceState::Stopped {
                    return Ok(None);
                }
                match self.provider.start(instance).await {
                    Ok(()) => Ok(None),
                    Err(error) => match start_failure(&error) {
                        Some(why) => {
                            let report = MachineCommand::ReportStartFailed { why, reason: error.to_string() };
                            let context = self.caused(grounds, "start failed");
                            self.command(terms.org, terms.host, grounds.position, &context, &report).await.map(Some)
                        }
                        None => Err(error.into()),
                    },
                }
            }
            Act::Stop { terms, instance, mode } => {
                let now = self.look(terms, instance).await?;
                if now.state != InstanceState::Running {
                    return Ok(None);
                }
                // What it was launched for counts, whatever the policy says by now.
                if *mode == StopMode::Hibernate && !now.hibernates {
                    return self.stop_instead(terms, grounds).await.map(Some);
                }
                match self.provider.stop(instance, *mode).await {
                    Ok(()) => Ok(None),
                    Err(ProviderError::Unsupported { reason }) if *mode == StopMode::Hibernate => {
                        tracing::warn!(%instance, %reason, "a machine does not hibernate; it is stopped instead");
                        self.stop_instead(terms, grounds).await.map(Some)
                    }
                    Err(error) => Err(error.into()),
                }
            }
            Act::Terminate { terms, instance } => {
                let now = self.look(terms, instance).await?;
                if !now.state.is_over() {
                    self.provider.terminate(instance).await?;
                }
                Ok(None)
            }
        }
    }

    /// The next look asks for the stop.
    async fn stop_instead(&self, terms: &MachineTerms, grounds: Grounds) -> Result<Position, ActError> {
        let stop = MachineCommand::Stop { mode: StopMode::Stop, cause: MachineCause::NoHibernation };
        let context = self.caused(grounds, "stop instead");
        self.command(terms.org, terms.host, grounds.position, &context, &stop).await
    }

    async fn launch(&self, host: HostId, terms: &MachineTerms, grounds: Grounds) -> Result<Position, ActError> {
        let order = LaunchOrder { terms: terms.clone(), token: launch_token(grounds.requested) };
        match self.provider.launch(&order).await {
            Ok(instance) => self.launched(host, terms, &instance, grounds).await,
            Err(error) if error.is_ambiguous() || error == ProviderError::TokenMismatch => Err(error.into()),
            Err(error) => {
                let report = MachineCommand::ReportLaunchFailed { reason: error.to_string() };
                let context = self.caused(grounds, "launch failed");
                self.command(terms.org, host, grounds.position, &context, &report).await
            }
        }
    }

    /// Records the instance of a request, when its tags say that it is.
    ///
    /// # Errors
    /// See [`ActError`].
    pub async fn launched(
        &self,
        host: HostId,
        terms: &MachineTerms,
        instance: &Instance,
        grounds: Grounds,
    ) -> Result<Position, ActError> {
        let other = || ActError::CrossOrganization { instance: instance.id.clone() };
        let (Some(org), Some(on)) = (instance.tags.org, instance.tags.host) else { return Err(other()) };
        if !instance.tags.are_of(terms) || on != host {
            return Err(other());
        }
        let now = self.clock.now();
        let resource = Resource::Host { org: terms.org, host };
        let permit = system_permit(Component::Fleet, Action::MachineReport, resource, grounds.position, now)?;
        let context = self.caused(grounds, "launched");
        let key = MachineKey::parse(&machine_key(self.provider.name(), &instance.id))?;
        let report = MachineCommand::ReportLaunched { instance: instance.id.clone(), org, host: on };
        Ok(machines::launched(&self.commands, &permit, &context, host, key, report).await?.position)
    }

    /// The instance as it is now, when its tags are those of the terms.
    async fn look(&self, terms: &MachineTerms, instance: &str) -> Result<Instance, ActError> {
        let found = self.provider.find(instance).await?;
        let found = found.ok_or_else(|| ActError::Gone { instance: instance.to_owned() })?;
        if found.id != instance || !found.tags.are_of(terms) {
            return Err(ActError::CrossOrganization { instance: instance.to_owned() });
        }
        Ok(found)
    }

    /// A reaction to what brought the machine to where it is: whoever repeats it repeats the same command.
    pub(super) fn caused(&self, grounds: Grounds, purpose: &str) -> Context {
        Context::caused_by(grounds.commit, grounds.correlation, purpose, self.clock.now())
    }

    /// Sends a command about a machine of an organization.
    pub(super) async fn command(
        &self,
        org: OrgId,
        host: HostId,
        position: Position,
        context: &Context,
        command: &MachineCommand,
    ) -> Result<Position, ActError> {
        let resource = Resource::Host { org, host };
        let permit = system_permit(Component::Fleet, Machine::action_of(command), resource, position, context.now)?;
        Ok(machines::execute(&self.commands, &permit, context, host, command).await?.position)
    }

    /// Reports an instance that nobody asked for.
    pub(super) async fn strange(&self, instance: &str, reason: &str, position: Position) -> Result<Position, ActError> {
        let now = self.clock.now();
        let resource = Resource::Organization(OrgId::SYSTEM);
        let permit = system_permit(Component::Fleet, Action::MachineReport, resource, position, now)?;
        let done = machines::strange(&self.commands, &permit, &Context::new(now), instance, reason.to_owned()).await?;
        Ok(done.position)
    }
}
