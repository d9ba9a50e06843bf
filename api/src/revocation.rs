//! Receipts of revocations: what each closed at all gateways, and how fast.
//!
//! One mechanism for links, sessions, roles, policies, workspaces and hosts: what is over is counted by the views that fold the very
//! commits, open WebSockets by the gateways, and shells by the API's processes (`open_shells`). Not here: closing anything (projections give the signal, gateways act on it), and which rights end with a change (the views).

use std::sync::Arc;
use std::time::Instant;

use envforge_commands::{Commands, Context, Done, organizations, workspaces};
use envforge_domain::access::{Action, Resource};
use envforge_domain::aggregate::Aggregate;
use envforge_domain::commit::{Position, StreamId, Surface};
use envforge_domain::event::Event;
use envforge_domain::ids::OrgId;
use envforge_domain::organization::{Organization, OrganizationCommand, OrganizationEvent};
use envforge_domain::revocation::{self, UncountedShells, WhyShellsUnknown};
use envforge_domain::time::{Millis, UnixMillis};
use envforge_domain::workspace::WorkspaceEvent;
use envforge_eventlog::LogError;
use envforge_eventlog::gateways::{Gateways, Witness as _};
use envforge_projections::{Hot, gateway_view};
use serde::Serialize;
use utoipa::ToSchema;

use crate::access::{Access, Caller};
use crate::open_shells::OpenShells;
use crate::problem::Problem;
use crate::sessions::{WAIT_FOR_VIEW, part_of};

/// What taking a right away closed, and how fast.
#[derive(Serialize, ToSchema)]
pub(crate) struct Receipt {
    /// Of people, on workspaces' hosts too, and of reviewers.
    sessions: u32,
    /// Of those, people's on the command line.
    cli_sessions: u32,
    /// Links that are over with it.
    links: u32,
    /// WebSockets that were open, at whatever gateway, and are closed; `null` where it is not known of all.
    sockets: Option<u32>,
    /// Why it is not, as `gateways_unknown` says of each: the first of them.
    sockets_unknown: Option<&'static str>,
    /// Terminals, commands, SSH, jobs, followed logs and root shells that were open and are over, at all processes of the API but
    /// those of `processes_unknown`; `null` of a receipt from before they were counted.
    shells: Option<u32>,
    /// Why that is not all, as `processes_unknown` says of each: the first of them.
    shells_unknown: Option<&'static str>,
    /// Processes of the API that did not tell how many shells ended there. Empty where all did.
    processes_unknown: Vec<UnknownProcess>,
    /// Gateways that did not tell how many they closed. Empty where all did.
    gateways_unknown: Vec<UnknownGateway>,
    /// Milliseconds until no gateway let in anybody with what was revoked any more, and what was open was closed.
    took_ms: u64,
}

#[derive(Serialize, ToSchema)]
struct UnknownGateway {
    /// As it calls itself when it starts; `null` where it is not one alone.
    gateway: Option<String>,
    /// `still_closing` (it refuses; some were open for longer than was waited for), `gateway_lost` (its lease is over: it refuses
    /// everything by itself), `gateway_silent` (nothing was heard of it in time), `gateways_unknown` (which there are could not
    /// be found out), `not_reported` (of a receipt from before gateways reported).
    reason: &'static str,
}

#[derive(Serialize, ToSchema)]
struct UnknownProcess {
    /// As it calls itself when it starts (`api_id`); `null` where it is not one alone.
    process: Option<String>,
    /// `still_closing` (some took longer than a second), `process_lost` (its lease is over: it ends what is open by itself),
    /// `process_silent` (nothing was heard of it in time), `processes_unknown` (which there are could not be found out),
    /// `other_processes` (of a receipt from before they were asked), `not_reported` (of one from before shells were counted).
    reason: &'static str,
}

impl From<&revocation::Receipt> for Receipt {
    fn from(receipt: &revocation::Receipt) -> Self {
        let revocation::Receipt { sessions, cli_sessions, links, sockets, uncounted, shells, shells_uncounted, took } =
            receipt;
        let unknown = |uncounted: &revocation::Uncounted| UnknownGateway {
            gateway: uncounted.gateway.map(|gateway| gateway.to_string()),
            reason: uncounted.why.token(),
        };
        let unknown_process = |uncounted: &UncountedShells| UnknownProcess {
            process: uncounted.process.map(|process| process.to_string()),
            reason: uncounted.why.token(),
        };
        Self {
            sessions: *sessions,
            cli_sessions: *cli_sessions,
            links: *links,
            sockets: uncounted.is_empty().then_some(*sockets),
            sockets_unknown: uncounted.first().map(|uncounted| uncounted.why.token()),
            gateways_unknown: uncounted.iter().map(unknown).collect(),
            shells: shells_uncounted.iter().all(|one| one.why != WhyShellsUnknown::NotReported).then_some(*shells),
            shells_unknown: shells_uncounted.first().map(|one| one.why.token()),
            processes_unknown: shells_uncounted.iter().map(unknown_process).collect(),
            took_ms: took.get(),
        }
    }
}

/// Counts what revocations close.
#[derive(Clone)]
pub(crate) struct Revocations {
    access: Access,
    commands: Commands,
    hot: Arc<Hot>,
    gateways: Arc<dyn Gateways>,
    shells: OpenShells,
}

/// A change of an organization that is about to happen: when it began, and people's sessions that it would end.
pub(crate) struct Changing {
    begun: Instant,
    sessions: usize,
    cli_sessions: usize,
}

/// Sessions and links that are over with a revocation.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Over {
    pub(crate) sessions: usize,
    pub(crate) cli_sessions: usize,
    pub(crate) links: usize,
}

impl Revocations {
    pub(crate) fn new(
        access: Access,
        commands: Commands,
        hot: Arc<Hot>,
        gateways: Arc<dyn Gateways>,
        shells: OpenShells,
    ) -> Self {
        Self { access, commands, hot, gateways, shells }
    }

    /// Of a change that ends no person's session at API, command line and console.
    pub(crate) fn changing() -> Changing {
        Changing { begun: Instant::now(), sessions: 0, cli_sessions: 0 }
    }

    /// Looks at which sessions a change of an organization would end, as a dry run does.
    pub(crate) async fn changing_organization(
        &self,
        org: OrgId,
        command: &OrganizationCommand,
        now: UnixMillis,
    ) -> Result<Changing, LogError> {
        let begun = Instant::now();
        let state = self.commands.load::<Organization>(&StreamId::organization(org)).await?.state;
        // What is refused now is refused when it is asked for.
        let events = Organization::decide(&state, command).unwrap_or_default();
        let ended = self.hot.authorization.consequences(org, &events, now).sessions;
        let cli_sessions = ended.iter().filter(|session| session.surface == Surface::Cli).count();
        Ok(Changing { begun, sessions: ended.len(), cli_sessions })
    }

    /// What a change of an organization, or of a workspace, has closed, once no gateway lets it in; written down on its stream
    /// where that is anything. The change holds whether or not this comes to its end.
    pub(crate) async fn changed(
        &self,
        caller: &Caller,
        resource: Resource,
        changing: Changing,
        done: &Done,
        context: &Context,
    ) -> Receipt {
        let Changing { begun, sessions, cli_sessions } = changing;
        let commits = done.commits();
        if done.events.is_empty() {
            return Receipt::from(&self.receipt(&commits, Over::default(), begun).await);
        }
        let known = self.known(&commits).await;
        let gateway_view::Over { links, link_sessions, member_sessions, .. } = self.hot.gateway.over_with(&commits);
        // Where people's sessions end, those on workspaces' hosts are among them.
        let members = if sessions > 0 { sessions } else { member_sessions };
        let over = Over { sessions: members + link_sessions, cli_sessions, links };
        let receipt = self.receipt(&commits, over, begun).await;
        // Views that do not know what was closed do not know who may write it down either.
        if !known || receipt.is_empty() && !done.duplicate {
            return Receipt::from(&receipt);
        }
        let recorded = self.record(caller, resource, &receipt, &part_of(context, "receipt")).await;
        // Of a repeated request: what its first answer said.
        Receipt::from(recorded.as_ref().unwrap_or_else(|problem| {
            tracing::warn!(code = problem.code(), "the receipt of a revocation could not be written down");
            &receipt
        }))
    }

    /// By EnvForge itself: whoever took a role may have taken their own.
    async fn record(
        &self,
        caller: &Caller,
        resource: Resource,
        receipt: &revocation::Receipt,
        context: &Context,
    ) -> Result<revocation::Receipt, Problem> {
        let (action, surface) = (Action::RevocationRecord, caller.surface);
        let permit = self.access.provider_permit(action, resource, surface, context.now).await?;
        let receipt = receipt.clone();
        let done = match resource.workspace() {
            Some(workspace) => {
                workspaces::record_revocation(&self.commands, &permit, context, workspace, receipt.clone()).await?
            }
            None => {
                let command = OrganizationCommand::RecordRevocation { receipt: receipt.clone() };
                organizations::change(&self.commands, &permit, context, &command).await?
            }
        };
        let written = done.events.into_iter().find_map(|event| match event {
            Event::Organization(OrganizationEvent::RevocationRecorded { receipt })
            | Event::Workspace(WorkspaceEvent::RevocationRecorded { receipt }) => Some(receipt),
            _ => None,
        });
        Ok(written.unwrap_or(receipt))
    }

    /// Comes back once this process's views have these commits; with `false` where that takes too long.
    pub(crate) async fn known(&self, commits: &[Position]) -> bool {
        let last = commits.iter().copied().max().unwrap_or(Position::START);
        let known = self.hot.wait_for(last, WAIT_FOR_VIEW).await;
        if let Err(stale) = &known {
            tracing::warn!(%stale, "a revocation is not known to this process's views yet");
        }
        known.is_ok()
    }

    /// What these commits have closed, once no gateway lets in what they took. For commits that are `known`. `begun`: when they
    /// were decided.
    pub(crate) async fn receipt(&self, commits: &[Position], over: Over, begun: Instant) -> revocation::Receipt {
        let here = async {
            if !self.gateways.is_all_there_is() {
                // It is asked with the others.
                return (0, Vec::new());
            }
            match self.shells.closed_by(commits).await {
                Some(shells) => (shells, Vec::new()),
                None => (0, vec![UncountedShells { process: None, why: WhyShellsUnknown::StillClosing }]),
            }
        };
        let (mut closed, (shells, uncounted)) = tokio::join!(self.gateways.have_read(commits), here);
        closed.shells_uncounted.extend(uncounted);
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        revocation::Receipt {
            sessions: count(over.sessions),
            cli_sessions: count(over.cli_sessions),
            links: count(over.links),
            sockets: closed.sockets,
            uncounted: closed.uncounted,
            shells: closed.shells.saturating_add(shells),
            shells_uncounted: closed.shells_uncounted,
            took: Millis::new(u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX)),
        }
    }
}
