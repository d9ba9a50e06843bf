//! The fleet: machines of a provider, brought to the state that the log asks for, and asked for as workspaces need them.
//!
//! Each look lists the provider's instances, reports what the log does not know, asks the provider for what is missing, and
//! then plans for each organization. Everything is decided by the log's state and the provider's, never by having seen an
//! event; a second fleet on the same log asks for the same machines and launches with the same tokens. Not here: what runs
//! on a machine (its agent), how a provider is talked to (`envforge-aws`).

mod agent_watch;
mod compare;
mod enrolling;
mod executor;
mod known;
mod plan;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use envforge_commands::{Commands, Context, hosts, runtimes};
use envforge_domain::access::{Action, Resource};
use envforge_domain::commit::{Component, Position};
use envforge_domain::host::HostCommand;
use envforge_domain::ids::{CommitId, HostId, OrgId};
use envforge_domain::machine::{Machine, MachineCommand, MachineEnd, Power, StartFailure};
use envforge_domain::runtime::{Runtime, RuntimeCommand};
use envforge_domain::time::{Millis, SharedClock, UnixMillis};
use envforge_eventlog::{Follow, LogError, SharedLog};
use envforge_runtime::{Instance, MachineProvider};
use futures_util::StreamExt;
use futures_util::stream;
use tokio_util::sync::CancellationToken;

pub use agent_watch::{AgentWatch, Looked, Told};
pub use compare::{Act, Compared, Finding, compare};
pub use enrolling::{DrawSecret, Due, Enrolling, ReadAuthority, due};
pub use executor::{ActError, Executor, Grounds, launch_token, machine_key};
pub use known::{Known, KnownHost, KnownMachine};
pub use plan::{
    AgentState, Demand, FleetPolicy, MachineView, OrganizationFleet, Plan, PlanRefusal, Shape, Starts, Step, Token,
    WhyGivenUp, plan,
};

use crate::following::Following;
use crate::permit::system_permit;

/// How many looks in a row must agree before an instance counts as gone, or as stopped again.
const LOOKS_BEFORE_BELIEVED: u32 = 3;
/// A launch or a start may take so long to show wherever the provider is asked: what it does not show before says nothing.
const SHOWS_WITHIN: Millis = Millis::from_minutes(5);
/// Acts carried to the provider at one time.
const ACTS_AT_ONCE: usize = 8;

/// For metrics: all but those that are over.
const STANDINGS: [&str; 6] = ["requested", "starting", "booting", "on", "stopping", "off"];

fn standing(known: &KnownMachine, now: UnixMillis) -> &'static str {
    match &known.state {
        Machine::Requested { .. } => "requested",
        Machine::Live(live) => match live.power {
            Power::Starting => "starting",
            Power::On if known.awaits_enrolment(now) => "booting",
            Power::On => "on",
            Power::Stopping(_) | Power::Ending => "stopping",
            Power::Off(_) => "off",
        },
        Machine::Unknown | Machine::Over { .. } | Machine::Strange => "over",
    }
}

/// What organizations get.
#[derive(Clone, Debug)]
pub struct FleetPolicies {
    pub default: FleetPolicy,
    pub of: HashMap<OrgId, FleetPolicy>,
}

impl FleetPolicies {
    fn get(&self, org: OrgId) -> &FleetPolicy {
        self.of.get(&org).unwrap_or(&self.default)
    }
}

/// The process manager of machines. One per log and provider; a second one is harmless.
pub struct Fleet {
    log: SharedLog,
    executor: Executor,
    enrolling: Enrolling,
    commands: Commands,
    clock: SharedClock,
    policies: FleetPolicies,
    look_interval: Duration,
    known: Known,
    /// What was written must be read before it is planned again.
    ahead: Position,
    missed: HashMap<HostId, u32>,
    /// Since when.
    impaired: HashMap<HostId, UnixMillis>,
    /// Starts that the provider took: of which commit, and how many looks found the machine stopped since.
    started: HashMap<HostId, (CommitId, u32)>,
}

impl Fleet {
    pub fn new(
        log: SharedLog,
        commands: Commands,
        provider: Arc<dyn MachineProvider>,
        enrolling: Enrolling,
        clock: SharedClock,
        policies: FleetPolicies,
        look_interval: Duration,
    ) -> Self {
        let executor = Executor::new(provider, commands.clone(), SharedClock::clone(&clock));
        Self {
            log,
            executor,
            enrolling,
            commands,
            clock,
            policies,
            look_interval,
            known: Known::default(),
            ahead: Position::START,
            missed: HashMap::new(),
            impaired: HashMap::new(),
            started: HashMap::new(),
        }
    }

    /// Follows the log and looks at the provider until `stop`. Machines stay as they are then.
    ///
    /// # Errors
    /// When the log cannot be followed any more.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), LogError> {
        let mut following = Following::new(SharedLog::clone(&self.log), "fleet");
        let mut look = tokio::time::interval(self.look_interval);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut caught_up = false;
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Ok(()),
                next = following.next() => match next? {
                    Follow::Commit { recorded, .. } => self.known.apply(&recorded),
                    Follow::Caught { .. } => caught_up = true,
                },
                _ = look.tick(), if caught_up && self.known.position() >= self.ahead => {
                    tokio::select! {
                        () = stop.cancelled() => return Ok(()),
                        () = self.look() => {}
                    }
                }
            }
        }
    }

    /// One look at the provider, and what follows from it.
    async fn look(&mut self) {
        let instances = match self.executor.provider().list().await {
            Ok(instances) => instances,
            Err(error) => {
                metrics::counter!("envforge_fleet_looks_failed_total").increment(1);
                tracing::warn!(%error, "the provider's instances could not be listed; looking again");
                return;
            }
        };
        let compared = compare(self.executor.provider().name(), self.known.machines(), &instances);
        self.believe(&compared);
        for finding in &compared.findings {
            if let Err(error) = self.report(finding).await {
                tracing::warn!(?finding, %error, "what the provider shows was not recorded");
            }
        }
        let acts = self.without_started(compared.acts, &instances).await;
        self.carry_out(&acts).await;
        let position = self.enrolling.look(&self.known, &self.commands, self.clock.now()).await;
        self.ahead = self.ahead.max(position);
        self.count();
        if self.known.position() >= self.ahead {
            let organizations = self.known.organizations();
            for org in organizations {
                self.plan(org).await;
            }
        }
    }

    /// Machines by where they stand.
    fn count(&self) {
        let now = self.clock.now();
        let mut counts: BTreeMap<&str, u32> = STANDINGS.iter().map(|standing| (*standing, 0)).collect();
        for known in self.known.machines().values() {
            *counts.entry(standing(known, now)).or_default() += 1;
        }
        counts.remove("over");
        for (state, count) in counts {
            metrics::gauge!("envforge_fleet_machines", "state" => state).set(f64::from(count));
        }
    }

    /// Counts how often in a row something was missing, and since when it fails.
    fn believe(&mut self, compared: &Compared) {
        let (mut missing, mut failing) = (BTreeSet::new(), BTreeSet::new());
        for finding in &compared.findings {
            match finding {
                Finding::Missing { host, .. } => missing.insert(*host),
                Finding::Impaired { host } => failing.insert(*host),
                Finding::Launched { .. }
                | Finding::Started { .. }
                | Finding::Stopped { .. }
                | Finding::Ended { .. }
                | Finding::Recovered { .. }
                | Finding::Strange { .. } => false,
            };
        }
        self.missed.retain(|host, _| missing.contains(host));
        for host in missing {
            *self.missed.entry(host).or_default() += 1;
        }
        let now = self.clock.now();
        self.impaired.retain(|host, _| failing.contains(host));
        for host in failing {
            self.impaired.entry(host).or_insert(now);
        }
    }

    /// Leaves out the starts that the provider has taken already, and records those after which the machine stopped again.
    async fn without_started(&mut self, acts: Vec<Act>, instances: &[Instance]) -> Vec<Act> {
        let current = |host: &HostId| self.known.machines().get(host).map(|known| known.commit);
        self.started.retain(|host, (commit, _)| current(host) == Some(*commit));
        let (mut left, mut stopped) = (Vec::new(), Vec::new());
        for act in acts {
            match &act {
                Act::Start { terms, instance } => match self.started.get_mut(&terms.host) {
                    None => left.push(act),
                    Some((_, looks)) => {
                        *looks += 1;
                        if *looks >= LOOKS_BEFORE_BELIEVED {
                            stopped.push((terms.host, instance.clone()));
                        }
                    }
                },
                Act::Launch { .. } | Act::Stop { .. } | Act::Terminate { .. } => left.push(act),
            }
        }
        for (host, instance) in stopped {
            let shown = instances.iter().find(|shown| shown.id == instance).and_then(|shown| shown.reason.clone());
            let reason = format!("it stopped again: {}", shown.as_deref().unwrap_or("the provider does not say why"));
            let report = MachineCommand::ReportStartFailed { why: StartFailure::StoppedAgain, reason };
            if let Err(error) = self.command(host, "start failed", &report).await {
                tracing::warn!(%host, %error, "a start that failed was not recorded yet");
            }
        }
        left
    }

    async fn report(&mut self, finding: &Finding) -> Result<(), ActError> {
        let host = match finding {
            Finding::Launched { host, instance } => return self.launched(*host, instance).await,
            Finding::Strange { instance, reason } => {
                if !self.known.is_reported_strange(instance) {
                    tracing::warn!(%instance, %reason, "an instance that nobody asked for");
                    let position = self.executor.strange(instance, reason, self.known.position()).await?;
                    self.ahead = self.ahead.max(position);
                }
                return Ok(());
            }
            Finding::Started { host }
            | Finding::Stopped { host }
            | Finding::Ended { host, .. }
            | Finding::Impaired { host }
            | Finding::Recovered { host }
            | Finding::Missing { host, .. } => *host,
        };
        let (command, purpose) = match finding {
            Finding::Started { .. } => (MachineCommand::ReportStarted, "started"),
            Finding::Stopped { .. } => (MachineCommand::ReportStopped, "stopped"),
            Finding::Ended { end, .. } => (MachineCommand::ReportTerminated { end: *end }, "terminated"),
            Finding::Missing { instance, .. } if self.is_missed(host) => {
                if self.executor.provider().find(instance).await?.is_some() {
                    return Ok(());
                }
                (MachineCommand::ReportTerminated { end: MachineEnd::Vanished }, "vanished")
            }
            Finding::Impaired { .. } if self.is_believed_impaired(host) => {
                (MachineCommand::ReportChecks { failing: true }, "checks failed")
            }
            Finding::Recovered { .. } => (MachineCommand::ReportChecks { failing: false }, "checks passed"),
            _ => return Ok(()),
        };
        self.command(host, purpose, &command).await
    }

    fn is_missed(&self, host: HostId) -> bool {
        let is_new = |known: &KnownMachine| {
            let starts = matches!(&known.state, Machine::Live(live) if live.power == Power::Starting);
            starts && self.clock.now().since(known.starts.asked_at) < SHOWS_WITHIN
        };
        self.missed.get(&host).is_some_and(|count| *count >= LOOKS_BEFORE_BELIEVED)
            && !self.known.machines().get(&host).is_some_and(is_new)
    }

    /// Its checks have failed for long enough, and the log does not say so yet.
    fn is_believed_impaired(&self, host: HostId) -> bool {
        let Some(Machine::Live(live)) = self.known.machines().get(&host).map(|known| &known.state) else {
            return false;
        };
        let after = self.policies.get(live.terms.org).impaired_after;
        let since = self.impaired.get(&host);
        !live.impaired && since.is_some_and(|since| self.clock.now().since(*since) >= after)
    }

    async fn launched(&mut self, host: HostId, instance: &Instance) -> Result<(), ActError> {
        let Some(known) = self.known.machines().get(&host) else { return Ok(()) };
        let Some(terms) = known.state.terms().cloned() else { return Ok(()) };
        let grounds = self.grounds(known);
        let position = self.executor.launched(host, &terms, instance, grounds).await?;
        self.ahead = self.ahead.max(position);
        Ok(())
    }

    async fn carry_out(&mut self, acts: &[Act]) {
        let with_grounds = acts.iter().filter_map(|act| {
            let host = match act {
                Act::Launch { host, .. } => *host,
                Act::Start { terms, .. } | Act::Stop { terms, .. } | Act::Terminate { terms, .. } => terms.host,
            };
            self.known.machines().get(&host).map(|known| (act.clone(), self.grounds(known)))
        });
        let with_grounds: Vec<_> = with_grounds.collect();
        let executor = &self.executor;
        let done: Vec<_> = stream::iter(with_grounds)
            .map(|(act, grounds)| async move { (executor.act(&act, grounds).await, act) })
            .buffer_unordered(ACTS_AT_ONCE)
            .collect()
            .await;
        for (result, act) in done {
            match result {
                Ok(Some(position)) => self.ahead = self.ahead.max(position),
                Ok(None) => {
                    if let Act::Start { terms, .. } = &act
                        && let Some(known) = self.known.machines().get(&terms.host)
                    {
                        self.started.insert(terms.host, (known.commit, 0));
                    }
                }
                Err(ActError::CrossOrganization { instance }) => {
                    metrics::counter!("envforge_fleet_cross_organization_refused_total").increment(1);
                    tracing::error!(?act, "an instance of another organization was not touched");
                    let reason = "its tags are not those of the machine that was to touch it";
                    if let Err(error) = self.executor.strange(&instance, reason, self.known.position()).await {
                        tracing::warn!(%error, "a strange instance was not recorded yet");
                    }
                }
                Err(error) => tracing::warn!(?act, %error, "the provider did not do it yet"),
            }
        }
    }

    async fn plan(&mut self, org: OrgId) {
        let now = self.clock.now();
        let mut fleet = self.known.fleet_of(org, now);
        for machine in &mut fleet.machines {
            machine.impaired_since = self.impaired.get(&machine.host).copied();
            if let Token::Needed { ready_since } = &mut machine.token {
                *ready_since = self.enrolling.ready_since(machine.host);
            }
        }
        let planned = plan(&fleet, self.policies.get(org), now);
        for refusal in &planned.refusals {
            match refusal {
                PlanRefusal::CrossOrganization { .. } => {
                    metrics::counter!("envforge_fleet_cross_organization_refused_total").increment(1);
                    tracing::error!(%org, ?refusal, "the plan leaves out what is another organization's");
                }
                PlanRefusal::TooLarge { .. } | PlanRefusal::MachinesMax { .. } | PlanRefusal::Pausing { .. } => {
                    tracing::info!(%org, ?refusal, "a machine was not asked for");
                }
            }
        }
        for step in &planned.steps {
            if let Err(error) = self.step(org, step).await {
                tracing::warn!(%org, ?step, %error, "a step of the plan was not taken; planning again");
            }
        }
    }

    async fn step(&mut self, org: OrgId, step: &Step) -> Result<(), ActError> {
        let placing = |step: &Step| match step {
            Step::Place { workspace, host, needs } => Some((*workspace, *host, Some(*needs))),
            Step::Release { workspace, host } => Some((*workspace, *host, None)),
            _ => None,
        };
        if let Some((workspace, host, needs)) = placing(step) {
            let now = self.clock.now();
            let Some(resource) = self.known.world.resource(workspace) else { return Ok(()) };
            let permit = system_permit(Component::Fleet, Action::HostPlace, resource, self.known.position(), now)?;
            let context = Context::new(now);
            let done = match needs {
                Some(needs) => hosts::place(&self.commands, &permit, &context, host, workspace, needs).await?,
                None => hosts::release(&self.commands, &permit, &context, host, workspace).await?,
            };
            self.ahead = self.ahead.max(done.position);
            return Ok(());
        }
        if let Step::PlaceAnew { workspace, host } = step {
            let (Some(known), Some(resource)) =
                (self.known.world.runtime(*workspace), self.known.world.resource(*workspace))
            else {
                return Ok(());
            };
            let Runtime::Waking { epoch, .. } = known.state else { return Ok(()) };
            let now = self.clock.now();
            let permit = system_permit(Component::Fleet, Action::RuntimeReport, resource, self.known.position(), now)?;
            let context = Context::caused_by(known.commit, known.correlation, "place anew", now);
            let anew = RuntimeCommand::PlaceAnew { epoch, host: *host };
            let done = runtimes::report(&self.commands, &permit, &context, *workspace, &anew).await?;
            self.ahead = self.ahead.max(done.position);
            return Ok(());
        }
        let (host, command, purpose) = match step {
            Step::Request { terms, cause } => {
                (terms.host, MachineCommand::Request { terms: terms.clone(), cause: *cause }, "request")
            }
            Step::Start { host, cause } => (*host, MachineCommand::Start { cause: *cause }, "start"),
            Step::Stop { host, mode, cause } => (*host, MachineCommand::Stop { mode: *mode, cause: *cause }, "stop"),
            Step::Drain { host, cause } => (*host, MachineCommand::Drain { cause: *cause }, "drain"),
            Step::Terminate { host, cause } => {
                let placed = self.known.world.placement().placed(*host).map_or(0, |placed| placed.len());
                (*host, MachineCommand::Terminate { cause: *cause, placed }, "terminate")
            }
            Step::GiveUp { host, why } => {
                let reason = why.to_string();
                tracing::warn!(%org, %host, reason, "a machine is given up");
                metrics::counter!("envforge_fleet_given_up_total", "reason" => why.token()).increment(1);
                (*host, MachineCommand::ReportUnhealthy { reason }, "given up")
            }
            Step::GiveUpChecks { host } => {
                let reason = "the provider's status checks fail again, after it was stopped and started".to_owned();
                tracing::warn!(%org, %host, reason, "a machine is given up");
                (*host, MachineCommand::ReportUnhealthy { reason }, "checks fail")
            }
            Step::Retire { host } => {
                let now = self.clock.now();
                let resource = Resource::Host { org, host: *host };
                let permit =
                    system_permit(Component::Fleet, Action::HostRegister, resource, self.known.position(), now)?;
                let context = Context::new(now);
                let done = hosts::execute(&self.commands, &permit, &context, *host, &HostCommand::Retire).await?;
                self.ahead = self.ahead.max(done.position);
                return Ok(());
            }
            Step::Place { .. } | Step::Release { .. } | Step::PlaceAnew { .. } => return Ok(()),
        };
        if let Step::Request { terms, .. } = step {
            // Nothing caused it but the log as it stands.
            let (context, position) = (Context::new(self.clock.now()), self.known.position());
            let position = self.executor.command(terms.org, host, position, &context, &command).await?;
            self.ahead = self.ahead.max(position);
            return Ok(());
        }
        self.command(host, purpose, &command).await
    }

    async fn command(&mut self, host: HostId, purpose: &str, command: &MachineCommand) -> Result<(), ActError> {
        let Some(known) = self.known.machines().get(&host) else { return Ok(()) };
        let Some(terms) = known.state.terms() else { return Ok(()) };
        let (org, grounds) = (terms.org, self.grounds(known));
        let context = self.executor.caused(grounds, purpose);
        let position = self.executor.command(org, host, grounds.position, &context, command).await?;
        self.ahead = self.ahead.max(position);
        Ok(())
    }

    fn grounds(&self, known: &KnownMachine) -> Grounds {
        Grounds {
            requested: known.requested,
            commit: known.commit,
            correlation: known.correlation,
            position: self.known.position(),
        }
    }
}
