//! Shells and jobs that the log knows and no host does: killed between the two, they get their ends all the same.

use std::sync::Arc;

use envforge_agent::Host;
use envforge_commands::{Context, job_runs, shells};
use envforge_domain::access::Action;
use envforge_domain::event::Event;
use envforge_domain::ids::{HostId, SessionId};
use envforge_domain::job_run::JobRunEvent;
use envforge_domain::manifest::{Job, JobKind};
use envforge_domain::runtime::{Epoch, RuntimeCommand};
use envforge_domain::shell::{ShellEnd, ShellEnded, ShellEvent, ShellKind};
use envforge_domain::time::Millis;
use envforge_reactors::{HostMachine, SharedWorld, tell_shell_ends};
use envforge_runtime::LocalHost;
use envforge_testkit::eventually;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use uuid::Uuid;

use crate::site::*;

/// Old enough to be missed.
const OLD: Millis = Millis::from_secs(31);

/// Whoever tells for a host, as a process with reactors does, until dropped.
pub(crate) struct Telling {
    stop: CancellationToken,
    telling: AbortOnDropHandle<()>,
    following: JoinHandle<Result<(), envforge_eventlog::LogError>>,
}

impl Telling {
    pub(crate) fn of(site: &Site, host: Host, machine: HostMachine) -> Self {
        let (world, stop) = (SharedWorld::new(Arc::clone(&site.log)), CancellationToken::new());
        let following = tokio::spawn(world.clone().run(stop.clone()));
        let telling = tell_shell_ends(world, site.commands.clone(), host, machine, Arc::clone(&site.clock) as _);
        Self { stop, telling: AbortOnDropHandle::new(tokio::spawn(telling)), following }
    }

    pub(crate) async fn stop(self) {
        drop(self.telling);
        self.stop.cancel();
        self.following.await.unwrap().unwrap();
    }
}

impl Site {
    /// Somebody connects by the log, and whoever carries it is killed.
    pub(crate) async fn connect(&self, host: HostId) {
        let permit = self.permit(self.workspace, Action::ShellOpen).await;
        let (workspace, session) = (self.workspace.id, SessionId::from_uuid(Uuid::from_u128(5)));
        let new = shells::NewShell { workspace, user: owner(), session, kind: ShellKind::Command, host };
        shells::connect(&self.commands, &permit, &Context::new(self.now()), new).await.unwrap();
    }

    /// The same of a job, whose runtime is lost with its host.
    async fn run_job(&self) {
        let (epoch, host) = (Epoch(1), HostId::from_uuid(Uuid::from_u128(9)));
        self.wake().await;
        self.report(self.workspace, &RuntimeCommand::ChooseHost { epoch, host }).await.unwrap();
        self.report(self.workspace, &ready_on(host)).await.unwrap();
        let permit = self.permit(self.workspace, Action::JobRun).await;
        let (name, command) = ("test".to_owned(), "true".to_owned());
        let job = Job { name, command, kind: JobKind::Test, secrets: Vec::new() };
        let (workspace, project, commit) = (self.workspace.id, self.workspace.project, "c0ffee".to_owned());
        let new = job_runs::NewJobRun { workspace, project, job, by: owner(), commit, secrets: Vec::new() };
        job_runs::start(&self.commands, &permit, &Context::new(self.now()), new).await.unwrap();
        let lost = RuntimeCommand::DeclareLost { epoch, confirmed_by: Some(host), now: self.now() };
        self.report(self.workspace, &lost).await.unwrap();
    }

    /// Ends of shells and of jobs, in their order.
    pub(crate) async fn shell_ends(&self) -> (Vec<ShellEnded>, Vec<ShellEnded>) {
        let (mut shells, mut jobs) = (Vec::new(), Vec::new());
        for event in self.history().await {
            match event {
                Event::Shell(ShellEvent::Disconnected { ended, .. }) => shells.push(ended),
                Event::JobRun(JobRunEvent::Finished { ended, .. }) => jobs.push(ended),
                _ => {}
            }
        }
        (shells, jobs)
    }

    /// Until so many shells and jobs have an end.
    pub(crate) async fn until_ended(&self, count: (usize, usize)) {
        eventually("ends that nobody could tell", DEADLINE, async || {
            let (shells, jobs) = self.shell_ends().await;
            assert!(shells.iter().chain(&jobs).all(|ended| ended.end == ShellEnd::Lost), "{shells:?} {jobs:?}");
            ((shells.len(), jobs.len()) == count).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_log_knows_and_no_host_does_is_told_as_lost_once_whoever_looks() {
    let site = Site::new().await;
    let state = site.directory.path().join("runtime");
    let (host, _leftovers) = LocalHost::open(envforge_runtime::Config::new(&state)).await.unwrap();
    let machine_id = state.join("machine-id");
    std::fs::write(&machine_id, MACHINE).unwrap();
    let machine = HostMachine::open(&state, &machine_id).unwrap();
    // Two of ours, one on a host of which nobody heard, and a job whose runtime is nowhere.
    site.connect(machine.host).await;
    site.connect(machine.host).await;
    site.connect(HostId::from_uuid(Uuid::from_u128(9))).await;
    site.run_job().await;
    site.clock.skip(OLD);
    let telling = [(); 2].map(|()| Telling::of(&site, Host::Local(host.clone()), machine.clone()));
    // On its way through this process, or another one.
    site.connect(machine.host).await;
    site.until_ended((2, 1)).await;
    let (shells, jobs) = site.shell_ends().await;
    assert!(shells.iter().chain(&jobs).all(|ended| ended.duration >= OLD), "{shells:?} {jobs:?}");

    // What should have come to be by now never will.
    site.clock.skip(Millis::from_minutes(5));
    site.until_ended((3, 1)).await;
    // Nothing is open for so long, whoever had it.
    site.clock.skip(Millis::from_hours(25));
    site.until_ended((4, 1)).await;
    for telling in telling {
        telling.stop().await;
    }
    host.shutdown().await;
}
