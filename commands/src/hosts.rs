//! Hosts: registration with the claim on the machine, so that one VM belongs to one organization; placing and releasing.

use envforge_domain::access::{Action, Permit};
use envforge_domain::claim::{Claim, ClaimCommand, ClaimKey};
use envforge_domain::commit::{InvalidStreamKey, StreamId};
use envforge_domain::host::{Capacity, Enrolling, Host, HostCommand};
use envforge_domain::ids::{HostId, OrgId, WorkspaceId};
use envforge_domain::secret::TokenDigest;
use envforge_domain::slug::HostName;
use envforge_domain::time::{Millis, UnixMillis};

use crate::{CommandError, Commands, Context, Done, Loaded};

/// Registers a host for the permit's organization. A machine that another organization holds is refused.
pub async fn register(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    host: HostId,
    provider: String,
    machine: MachineKey,
    capacity: Capacity,
) -> Result<Done, CommandError> {
    let org = permit.org();
    let take = ClaimCommand::Take { holder: org.to_string(), for_action: Action::HostRegister };
    commands
        .transaction(context)
        .step::<Host>(
            permit,
            StreamId::host(org, host),
            HostCommand::Register { host, org, provider, machine: machine.key, capacity },
        )
        .step::<Claim>(permit, machine.claim, take)
        .commit()
        .await
}

/// Claims the machine of a host that is registered already, for the permit's organization. Refused where another one
/// holds it.
pub async fn claim_machine(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    machine: MachineKey,
) -> Result<Done, CommandError> {
    let take = ClaimCommand::Take { holder: permit.org().to_string(), for_action: Action::HostRegister };
    commands.transaction(context).step::<Claim>(permit, machine.claim, take).commit().await
}

/// A machine's key in its claim.
pub struct MachineKey {
    key: String,
    claim: StreamId,
}

impl MachineKey {
    pub fn parse(key: &str) -> Result<Self, InvalidStreamKey> {
        Ok(Self { key: key.to_owned(), claim: ClaimKey::Machine(key.to_owned()).stream()? })
    }

    pub(crate) fn into_claim(self) -> StreamId {
        self.claim
    }
}

/// Places a workspace of the permit's organization.
pub async fn place(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    host: HostId,
    workspace: WorkspaceId,
    needs: Capacity,
) -> Result<Done, CommandError> {
    let org = permit.org();
    let command = HostCommand::Place { workspace, org, needs };
    commands.execute::<Host>(permit, context, &StreamId::host(org, host), &command).await
}

/// Gives back the room that a workspace takes.
pub async fn release(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    host: HostId,
    workspace: WorkspaceId,
) -> Result<Done, CommandError> {
    let command = HostCommand::Release { workspace };
    commands.execute::<Host>(permit, context, &StreamId::host(permit.org(), host), &command).await
}

/// Lets an agent enrol as a host of the permit's organization, once.
pub async fn issue_enrolment(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    host: HostId,
    name: HostName,
    token: TokenDigest,
    lifetime: Millis,
) -> Result<Done, CommandError> {
    let org = permit.org();
    let command = HostCommand::IssueEnrolment { host, org, name, token, lifetime, now: context.now };
    commands.execute::<Host>(permit, context, &StreamId::host(org, host), &command).await
}

/// Uses an enrolment: registers the host where it is new, and claims its machine. One that another organization holds is
/// refused, and the enrolment stays unused.
pub async fn enrol(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    machine: MachineKey,
    enrolling: Enrolling,
) -> Result<Done, CommandError> {
    let take = ClaimCommand::Take { holder: permit.org().to_string(), for_action: Action::HostRegister };
    let stream = StreamId::host(permit.org(), enrolling.host);
    commands
        .transaction(context)
        .step::<Host>(permit, stream, HostCommand::Enrol(enrolling))
        .step::<Claim>(permit, machine.claim, take)
        .commit()
        .await
}

/// Records that an agent has another certificate, where that is news.
pub async fn record_renewal(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    host: HostId,
    enrolment: u32,
    certificate: TokenDigest,
    certificate_expires_at: UnixMillis,
) -> Result<Done, CommandError> {
    let command = HostCommand::RecordRenewal { enrolment, certificate, certificate_expires_at, now: context.now };
    commands.execute::<Host>(permit, context, &StreamId::host(permit.org(), host), &command).await
}

/// Decides any command but a registration or an enrolment.
///
/// # Errors
/// As for [`Commands::execute`].
pub async fn execute(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    host: HostId,
    command: &HostCommand,
) -> Result<Done, CommandError> {
    commands.execute::<Host>(permit, context, &StreamId::host(permit.org(), host), command).await
}

/// A host as the log's leader has it.
pub async fn load(commands: &Commands, org: OrgId, host: HostId) -> Result<Loaded<Host>, CommandError> {
    Ok(commands.load::<Host>(&StreamId::host(org, host)).await?)
}
