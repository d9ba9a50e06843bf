//! Logs and shells of a workspace whose machine is off: it is started for whoever may have them, once, and kept up while they are there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use envforge_api::{OpenShell, ShellHost, Shells};
use envforge_commands::hosts::{self, MachineKey};
use envforge_commands::{Context, machines, runtimes};
use envforge_domain::access::{Action, Resource};
use envforge_domain::aggregate::Aggregate;
use envforge_domain::commit::Position;
use envforge_domain::event::Event;
use envforge_domain::host::Capacity;
use envforge_domain::ids::{HostId, OrgId, RootWindowId, UserId, WorkspaceId};
use envforge_domain::job_run::JobOrder;
use envforge_domain::limits::MACHINE_USE_INTERVAL;
use envforge_domain::machine::{
    Machine, MachineCause, MachineCommand, MachineEnd, MachineEvent, MachinePurpose, MachineTerms, StartFailure,
    StopMode,
};
use envforge_domain::runtime::{Epoch, RuntimeCommand};
use envforge_domain::shell::{LastingShell, LogChunk, LogPlace, ShellFacts, ShellFailure, ShellOrder, TerminalSize};
use envforge_domain::slug::ServiceName;
use envforge_eventlog::Filter;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::house::{House, PATIENCE, Person, answer, eventually};

const WORKSPACE: &str = "/v1/orgs/acme/workspaces/signed-links";
const LOGS: &str = "/v1/orgs/acme/workspaces/signed-links/services/web/logs";
const CAPACITY: Capacity = Capacity { cpu_millicores: 2_000, memory_mib: 8_192 };

/// A host that is reached while its machine is up.
#[derive(Clone)]
struct Far {
    host: HostId,
    is_up: Arc<AtomicBool>,
    /// How often the line to it turns out to be dead.
    dead: Arc<AtomicU32>,
}

impl Far {
    fn here(&self) -> Result<HostId, ShellFailure> {
        if self.is_up.load(Ordering::SeqCst) { Ok(self.host) } else { Err(ShellFailure::OutOfReach) }
    }

    /// Whether the line to it is alive.
    fn line(&self) -> Result<HostId, ShellFailure> {
        let died = self.dead.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |dead| dead.checked_sub(1));
        if died.is_ok() { Err(ShellFailure::OutOfReach) } else { self.here() }
    }

    fn chunk(&self, bytes: &str) -> std::io::Result<LogChunk> {
        let gone = |failure| std::io::Error::new(std::io::ErrorKind::NotConnected, failure);
        self.line().map_err(gone)?;
        Ok(LogChunk { bytes: bytes.as_bytes().to_vec(), ..LogChunk::default() })
    }
}

impl ShellHost for Far {
    fn place(&self, _: OrgId, _: WorkspaceId) -> Result<HostId, ShellFailure> {
        self.here()
    }

    fn shell_place(&self, _: OrgId, _: WorkspaceId) -> Result<HostId, ShellFailure> {
        self.here()
    }

    fn open(&self, _: HostId, _: ShellOrder) -> BoxFuture<'_, Result<OpenShell, ShellFailure>> {
        async {
            self.line()?;
            let ((input, mut fed), (said, output)) = (mpsc::channel(1), mpsc::channel(1));
            tokio::spawn(async move {
                let _said = said;
                while fed.recv().await.is_some() {}
            });
            Ok(OpenShell { facts: ShellFacts::default(), input, output })
        }
        .boxed()
    }

    fn run_job(&self, _: JobOrder) -> BoxFuture<'_, Result<OpenShell, ShellFailure>> {
        async { Err(ShellFailure::NotAwake) }.boxed()
    }

    fn commit(&self, _: OrgId, _: WorkspaceId) -> BoxFuture<'_, Option<String>> {
        async { None }.boxed()
    }

    fn end_lasting<'a>(
        &'a self,
        _: OrgId,
        _: WorkspaceId,
        _: UserId,
        _: &'a (dyn Fn(&LastingShell) -> bool + Send + Sync),
    ) -> BoxFuture<'a, Vec<LastingShell>> {
        async { Vec::new() }.boxed()
    }

    fn found_lasting(&self) -> BoxFuture<'_, LastingShell> {
        std::future::pending().boxed()
    }

    fn attach_root(
        &self,
        _: OrgId,
        _: WorkspaceId,
        _: RootWindowId,
        _: TerminalSize,
        _: String,
    ) -> BoxFuture<'_, Result<OpenShell, ShellFailure>> {
        async { Err(ShellFailure::OutOfReach) }.boxed()
    }

    fn root_output(
        &self,
        _: OrgId,
        _: WorkspaceId,
        _: RootWindowId,
    ) -> BoxFuture<'_, Result<Option<(String, u64)>, ShellFailure>> {
        async { Err(ShellFailure::OutOfReach) }.boxed()
    }

    fn tail(
        &self,
        _: OrgId,
        _: WorkspaceId,
        _: ServiceName,
        _: usize,
    ) -> BoxFuture<'_, std::io::Result<Option<LogChunk>>> {
        async { self.chunk("its last line\n").map(Some) }.boxed()
    }

    fn more(&self, _: OrgId, _: WorkspaceId, _: ServiceName, _: LogPlace) -> BoxFuture<'_, std::io::Result<LogChunk>> {
        async { self.chunk("") }.boxed()
    }
}

/// A workspace that was awake on a machine that is off now.
struct Site {
    house: House,
    owner: Person,
    far: Far,
    org: OrgId,
}

impl Site {
    async fn new() -> Self {
        let far = Far { host: HostId::from_uuid(Uuid::now_v7()), is_up: Arc::default(), dead: Arc::default() };
        let shells = Shells::new(far.clone());
        let house = House::start_with(|config| config.shells = Some(shells)).await;
        let owner = house.owner().await;
        let workspace: WorkspaceId = house.workspace(&owner).await.parse().unwrap();
        let org = house.hot.authorization.organization_by_slug(&"acme".parse().unwrap()).unwrap();
        let site = Self { house, owner, far, org };
        let (host, provider) = (site.far.host, "aws-ec2".to_owned());
        let (purpose, shape, capacity) = (MachinePurpose::Runtime, "m7g.large".to_owned(), CAPACITY);
        let terms = MachineTerms { host, org, purpose, provider: provider.clone(), shape, capacity };
        site.tell(MachineCommand::Request { terms, cause: MachineCause::Demand }).await;
        site.tell(MachineCommand::ReportLaunched { instance: "i-1".to_owned(), org, host }).await;
        site.tell(MachineCommand::ReportStarted).await;
        let (commands, key) = (&site.house.commands, MachineKey::parse("aws-ec2-i-1").unwrap());
        let permit = site.house.system(Action::HostRegister, Resource::Host { org, host });
        let context = || Context::new(site.house.now());
        hosts::register(commands, &permit, &context(), host, provider, key, CAPACITY).await.unwrap();
        site.owner.post(&format!("{WORKSPACE}/wake"), json!({})).await.expect(202);
        let project = site.house.hot.resources.workspace(workspace).unwrap().project().unwrap();
        let permit = site.house.system(Action::RuntimeReport, Resource::Workspace { org, project, workspace });
        let choose = RuntimeCommand::ChooseHost { epoch: Epoch(1), host };
        let chosen = runtimes::report(commands, &permit, &context(), workspace, &choose).await.unwrap();
        site.house.hot.wait_for(chosen.position, PATIENCE).await.unwrap();
        site.tell(MachineCommand::Stop { mode: StopMode::Stop, cause: MachineCause::Idle }).await;
        site.tell(MachineCommand::ReportStopped).await;
        site
    }

    /// What the fleet says of the machine.
    async fn tell(&self, command: MachineCommand) {
        let resource = Resource::Host { org: self.org, host: self.far.host };
        let permit = self.house.system(Machine::action_of(&command), resource);
        let context = Context::new(self.house.now());
        let done = machines::execute(&self.house.commands, &permit, &context, self.far.host, &command).await.unwrap();
        self.house.hot.wait_for(done.position, PATIENCE).await.unwrap();
    }

    /// What stands on the machine's stream since it was off.
    async fn asked(&self) -> Vec<MachineEvent> {
        let page = self.house.log.read(Position::START, 1_000, &Filter::everything()).await.unwrap();
        let of_machine = |event: &Event| if let Event::Machine(event) = event { Some(event.clone()) } else { None };
        let all = page.commits.iter().flat_map(|recorded| &recorded.commit.events).filter_map(of_machine);
        let all: Vec<_> = all.collect();
        let off = all.iter().position(|event| matches!(event, MachineEvent::Stopped { .. })).unwrap();
        all[off + 1..].to_vec()
    }

    async fn starts(&self) -> Vec<MachineEvent> {
        let is_start = |event: &MachineEvent| matches!(event, MachineEvent::StartRequested { .. });
        self.asked().await.into_iter().filter(is_start).collect()
    }

    async fn uses(&self) -> usize {
        self.asked().await.iter().filter(|event| matches!(event, MachineEvent::Used { .. })).count()
    }

    /// The fleet starts the machine once it is asked to, and its agent connects.
    async fn comes_up(&self) {
        eventually("a start is asked for", async || (!self.starts().await.is_empty()).then_some(())).await;
        self.tell(MachineCommand::ReportStarted).await;
        tokio::time::sleep(Duration::from_millis(300)).await; // pause: for the agent to come later than its machine
        self.far.is_up.store(true, Ordering::SeqCst);
    }

    fn logs(&self, of: &Person, more: &str) -> reqwest::RequestBuilder {
        of.client.get(format!("{}{LOGS}{more}", of.base)).bearer_auth(&of.token)
    }
}

const FOR_LOGS: MachineEvent = MachineEvent::StartRequested { cause: MachineCause::Logs };

#[tokio::test]
async fn however_many_ask_for_logs_at_two_processes_the_machine_is_started_once_and_nobody_without_the_right_starts_it()
{
    let site = Site::new().await;
    let viewer = site.house.member(&site.owner, "viola", &["viewer"]).await;
    answer(site.logs(&viewer, "")).await.expect_problem(403, "role_missing");
    assert_eq!(site.asked().await, []);
    let elsewhere = site.house.elsewhere(&site.owner).await;
    let metered = site.owner.get("/v1/orgs/acme/usage").await.expect(200).body["items"].clone();
    let ask = async |of: &Person| {
        let response = site.logs(of, "").send().await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    };
    let all = (0..12).map(|number| ask(if number % 2 == 0 { &site.owner } else { &elsewhere }));
    let (told, ()) = tokio::join!(futures_util::future::join_all(all), site.comes_up());
    assert!(told.iter().all(|told| *told == (200, "its last line\n".to_owned())), "{told:?}");
    assert_eq!(site.starts().await, [FOR_LOGS]);
    assert_eq!(site.owner.get("/v1/orgs/acme/usage").await.expect(200).body["items"], metered);
    // While it is up nothing is started, and that somebody was there is said now and then.
    let uses = site.uses().await;
    assert!(uses >= 1, "whoever waits needs it up");
    assert_eq!(ask(&site.owner).await.0, 200);
    site.house.clock.skip(MACHINE_USE_INTERVAL);
    assert_eq!(ask(&elsewhere).await.0, 200);
    assert_eq!((site.starts().await.len(), site.uses().await), (1, uses + 1));
}

#[tokio::test]
async fn a_request_for_logs_is_held_for_a_while_and_then_asked_for_again() {
    let site = Site::new().await;
    // The line to its agent is dead, and nobody has noticed yet.
    site.far.is_up.store(true, Ordering::SeqCst);
    let held = answer(site.logs(&site.owner, "")).await;
    assert_eq!(held.headers["retry-after"], "1");
    held.expect_problem(503, "host_starting");
    assert_eq!(site.starts().await, [FOR_LOGS]);
    site.far.dead.store(2, Ordering::SeqCst);
    let (again, ()) = tokio::join!(site.logs(&site.owner, "").send(), site.comes_up());
    assert_eq!(again.unwrap().text().await.unwrap(), "its last line\n");
    assert_eq!(site.starts().await.len(), 1);
}

#[tokio::test]
async fn whoever_follows_logs_keeps_the_machine_up_for_as_long_as_they_are_there() {
    let site = Site::new().await;
    let (following, ()) = tokio::join!(site.logs(&site.owner, "?follow=true").send(), site.comes_up());
    let mut following = following.unwrap();
    assert_eq!(following.chunk().await.unwrap().unwrap(), "its last line\n");
    for _ in 0..2 {
        let before = site.uses().await;
        site.house.clock.skip(MACHINE_USE_INTERVAL);
        eventually("its use", async || (site.uses().await > before).then_some(())).await;
    }
    // Put aside all the same, it is not started for somebody to whom nothing is written.
    site.tell(MachineCommand::Stop { mode: StopMode::Stop, cause: MachineCause::Operator }).await;
    let before = site.uses().await;
    site.house.clock.skip(MACHINE_USE_INTERVAL);
    tokio::time::sleep(Duration::from_millis(600)).await; // pause: for some looks, after which nothing was asked for
    assert_eq!((site.uses().await, site.starts().await.len()), (before, 1));
    drop(following);
}

#[tokio::test]
async fn a_machine_that_does_not_start_goes_or_is_gone_is_refused_by_name() {
    let site = Site::new().await;
    let ask = async || answer(site.logs(&site.owner, "")).await;
    let fails = async {
        eventually("a start is asked for", async || (!site.starts().await.is_empty()).then_some(())).await;
        let (why, reason) =
            (StartFailure::Capacity, "InsufficientInstanceCapacity: no m7g.large in eu-central-1a".to_owned());
        site.tell(MachineCommand::ReportStartFailed { why, reason }).await;
    };
    let (failed, ()) = tokio::join!(ask(), fails);
    let refused = failed.expect_problem(503, "host_not_starting");
    assert_eq!(refused.body["reason"], "capacity");
    assert!(!refused.body.to_string().contains("eu-central"), "{refused:?}");
    let pause: u64 = refused.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((10..=15).contains(&pause), "{pause}");
    ask().await.expect_problem(503, "host_not_starting");
    assert_eq!(site.starts().await.len(), 1, "it is not tried again before it is due");
    site.house.clock.skip(envforge_domain::time::Millis::from_secs(16));
    let (up, ()) = tokio::join!(site.logs(&site.owner, "").send(), async {
        eventually("the second", async || (site.starts().await.len() == 2).then_some(())).await;
        site.comes_up().await;
    });
    assert_eq!(up.unwrap().status(), 200);

    site.far.is_up.store(false, Ordering::SeqCst);
    site.tell(MachineCommand::Drain { cause: MachineCause::Operator }).await;
    site.tell(MachineCommand::Stop { mode: StopMode::Stop, cause: MachineCause::Operator }).await;
    ask().await.expect_problem(409, "host_leaving");
    site.tell(MachineCommand::ReportTerminated { end: MachineEnd::Vanished }).await;
    ask().await.expect_problem(410, "host_gone");
    assert_eq!(site.starts().await.len(), 2);
    // Whoever follows waits for what comes from the host that takes the next wake.
    let mut following = site.logs(&site.owner, "?follow=true").send().await.unwrap();
    assert_eq!(following.chunk().await.unwrap().unwrap(), "[what it wrote before is gone with its host]\n");
}

/// One text message of a client (RFC 6455 5.2), with a mask of zeros.
async fn say(socket: &mut reqwest::Upgraded, message: &Value) {
    let text = message.to_string();
    let mut frame = vec![0x81, 0x80 | u8::try_from(text.len()).unwrap(), 0, 0, 0, 0];
    frame.extend_from_slice(text.as_bytes());
    socket.write_all(&frame).await.unwrap();
}

/// The next short text message of the server.
async fn heard(socket: &mut reqwest::Upgraded) -> Value {
    let mut head = [0; 2];
    socket.read_exact(&mut head).await.unwrap();
    assert_eq!(head[0], 0x81, "a text");
    let length = match head[1] {
        126 => usize::from(socket.read_u16().await.unwrap()),
        short => usize::from(short),
    };
    let mut text = vec![0; length];
    socket.read_exact(&mut text).await.unwrap();
    serde_json::from_slice(&text).unwrap()
}

#[tokio::test]
async fn whoever_opens_a_shell_waits_for_the_machine_and_is_told_so_and_why_it_does_not_come() {
    let site = Site::new().await;
    let open = async || {
        let request = site.owner.client.get(format!("{}{WORKSPACE}/shell", site.owner.base));
        let request =
            request.bearer_auth(&site.owner.token).header("connection", "Upgrade").header("upgrade", "websocket");
        let request =
            request.header("sec-websocket-version", "13").header("sec-websocket-protocol", "envforge.shell.v1");
        let sent = request.header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==").send().await.unwrap();
        let mut socket = sent.upgrade().await.unwrap();
        say(&mut socket, &json!({"open": "command", "words": ["true"]})).await;
        socket
    };
    let mut socket = open().await;
    assert_eq!(heard(&mut socket).await, json!({"type": "starting"}));
    site.far.dead.store(1, Ordering::SeqCst);
    let ((), opened) = tokio::join!(site.comes_up(), heard(&mut socket));
    assert_eq!(opened["type"], "opened", "{opened}");
    assert_eq!(site.starts().await, [MachineEvent::StartRequested { cause: MachineCause::Shell }]);
    drop(socket);

    site.far.is_up.store(false, Ordering::SeqCst);
    site.tell(MachineCommand::Stop { mode: StopMode::Stop, cause: MachineCause::Idle }).await;
    let mut socket = open().await;
    assert_eq!(heard(&mut socket).await, json!({"type": "starting"}));
    site.tell(MachineCommand::ReportStartFailed { why: StartFailure::Quota, reason: "quota".to_owned() }).await;
    let refused = heard(&mut socket).await;
    assert_eq!((&refused["type"], &refused["problem"]["code"]), (&json!("error"), &json!("host_not_starting")));
}
