//! Machines of providers: what is asked for, and what the provider said.

use envforge_domain::access::{Action, Permit};
use envforge_domain::claim::{Claim, ClaimCommand};
use envforge_domain::commit::StreamId;
use envforge_domain::ids::{HostId, OrgId};
use envforge_domain::machine::{Machine, MachineCommand};

use crate::hosts::MachineKey;
use crate::{CommandError, Commands, Context, Done, Loaded};

/// Decides any command but a report of a launch or of a strange instance, on a machine of the permit's organization.
///
/// # Errors
/// As for [`Commands::execute`].
pub async fn execute(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    host: HostId,
    command: &MachineCommand,
) -> Result<Done, CommandError> {
    commands.execute::<Machine>(permit, context, &StreamId::machine(permit.org(), host), command).await
}

/// Records the instance that a launch gave, and claims it for the permit's organization: one VM, one organization.
///
/// # Errors
/// As for [`Commands::execute`]; `name_taken` where another organization holds the instance.
pub async fn launched(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    host: HostId,
    instance: MachineKey,
    report: MachineCommand,
) -> Result<Done, CommandError> {
    let take = ClaimCommand::Take { holder: permit.org().to_string(), for_action: Action::MachineReport };
    commands
        .transaction(context)
        .step::<Machine>(permit, StreamId::machine(permit.org(), host), report)
        .step::<Claim>(permit, instance.into_claim(), take)
        .commit()
        .await
}

/// Reports an instance that nobody asked for, once, on a stream of its own.
///
/// # Errors
/// As for [`Commands::execute`].
pub async fn strange(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    instance: &str,
    reason: String,
) -> Result<Done, CommandError> {
    let stream = StreamId::strange_machine(instance)
        .map_err(|_| CommandError::refused(envforge_domain::machine::MachineRefusal::Unknown))?;
    let command = MachineCommand::ReportStrange { instance: instance.to_owned(), reason };
    commands.execute::<Machine>(permit, context, &stream, &command).await
}

/// A machine as the log's leader has it.
///
/// # Errors
/// As for [`Commands::load`].
pub async fn load(commands: &Commands, org: OrgId, host: HostId) -> Result<Loaded<Machine>, CommandError> {
    Ok(commands.load::<Machine>(&StreamId::machine(org, host)).await?)
}
