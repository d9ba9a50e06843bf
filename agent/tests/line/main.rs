//! Both ends of the line in one process, over real sockets: who is let in, what passes, and what a broken connection changes.
#![allow(clippy::unwrap_used)]

mod relay;
mod streams;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use envforge_agent::{
    Agent, AgentError, AgentIdentity, Arrival, Authority, AuthorityError, ByteStream, Config, EnrolError, Happened,
    HostIdentity, IdentityError, Listener, NotTaken, RemoteHost, RemoteWindow, Session, StreamHandler, StreamHeader,
    enrol, programs as programs_of_agents,
};
use envforge_domain::enrolment::EnrolmentToken;
use envforge_domain::host::Capacity;
use envforge_domain::ids::{HostId, JobRunId, OrgId, ProjectId, RootWindowId, UserId, WorkspaceId};
use envforge_domain::job_run::JobOrder;
use envforge_domain::manifest::Manifest;
use envforge_domain::secret::{Secret, TokenDigest};
use envforge_domain::shell::ShellFailure;
use envforge_domain::time::{Clock, Millis, SharedClock, UnixMillis};
use envforge_runtime::{LocalHost, RootWhat, Stage, WakeFailure, WakeOrder, frame};
use envforge_testkit::eventually;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const DEADLINE: Duration = Duration::from_secs(30);
const A_DAY: Millis = Millis::from_hours(24);

struct SystemClock;

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods, reason = "certificates are verified by the machine's clock")]
    fn now(&self) -> UnixMillis {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        UnixMillis::new(u64::try_from(since.as_millis()).unwrap())
    }
}

fn clock() -> SharedClock {
    Arc::new(SystemClock)
}

fn org(number: u128) -> OrgId {
    OrgId::from_uuid(Uuid::from_u128(number))
}

fn host() -> HostId {
    HostId::from_uuid(Uuid::from_u128(9))
}

fn workspace() -> WorkspaceId {
    WorkspaceId::from_uuid(Uuid::from_u128(7))
}

fn user(number: u128) -> UserId {
    UserId::from_uuid(Uuid::from_u128(number))
}

struct Line {
    dir: tempfile::TempDir,
    authority: Arc<Authority>,
    listener: Listener,
}

impl Line {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = authority(dir.path());
        let listener = Listener::bind("127.0.0.1:0".parse().unwrap(), &authority, clock()).await.unwrap();
        Self { dir, authority, listener }
    }

    fn at(&self) -> String {
        self.listener.local_address().unwrap().to_string()
    }

    fn token(&self) -> EnrolmentToken {
        EnrolmentToken::new(org(1), host(), self.authority.fingerprint(), &[5; 32])
    }

    fn folder(&self) -> PathBuf {
        let folder = self.dir.path().join("agent");
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    /// Certifies whoever comes with a token.
    async fn enrolled(&self, lifetime: Millis) -> AgentIdentity {
        let (at, folder, token, clock) = (self.at(), self.folder(), self.token(), clock());
        let capacity = Capacity { cpu_millicores: 4_000, memory_mib: 4_096 };
        let granting = async {
            let Arrival::Enrolling(enrolling) =
                self.listener.accept().await.unwrap().hello().await.unwrap().arrive().await.unwrap()
            else {
                panic!("somebody else came");
            };
            let identity = HostIdentity { org: enrolling.request.token.org(), host: host(), enrolment: 1 };
            let certificate = self.authority.certify(&enrolling.request.request, identity, clock.now(), lifetime);
            enrolling.grant(&certificate.unwrap()).await.unwrap();
        };
        let enrolling = enrol(&at, &folder, &token, "local-1", capacity, "test", &clock);
        let (identity, ()) = tokio::join!(enrolling, granting);
        identity.unwrap()
    }

    async fn connected(&self) -> (RemoteHost, Session) {
        let connecting = async {
            loop {
                if let Ok(Arrival::Agent(connection)) =
                    self.listener.accept().await.unwrap().hello().await.unwrap().arrive().await
                {
                    assert_eq!(connection.identity, HostIdentity { org: org(1), host: host(), enrolment: 1 });
                    let (host, session, version) = connection.establish().await.unwrap();
                    assert_eq!(version, "test");
                    return (host, session);
                }
            }
        };
        tokio::time::timeout(DEADLINE, connecting).await.unwrap()
    }

    /// An agent that has enrolled and is connected, until the token is cancelled.
    async fn up(&self) -> (LocalHost, RemoteHost, Session, CancellationToken) {
        let (identity, local) = (self.enrolled(A_DAY).await, self.local_host().await);
        let stop = CancellationToken::new();
        tokio::spawn(self.agent(&local, identity).run(stop.clone()));
        let (remote, session) = self.connected().await;
        (local, remote, session, stop)
    }

    async fn local_host(&self) -> LocalHost {
        LocalHost::open(envforge_runtime::Config::new(self.folder().join("runtime"))).await.unwrap().0
    }

    fn agent(&self, host: &LocalHost, identity: AgentIdentity) -> Agent {
        self.agent_serving(host, identity, programs())
    }

    fn agent_serving(&self, host: &LocalHost, identity: AgentIdentity, programs: StreamHandler) -> Agent {
        let config = Config { control_plane: self.at(), agent_version: "test".to_owned(), clock: clock() };
        Agent::new(config, host.clone(), identity, programs)
    }
}

fn authority(folder: &Path) -> Arc<Authority> {
    let (key, certificate) = (folder.join("agents.key"), folder.join("agents.crt"));
    Arc::new(Authority::load_or_create(&key, &certificate, SystemClock.now()).unwrap())
}

/// `echo` answers what it gets, `deaf` reads nothing; the others are an agent's own.
fn programs() -> StreamHandler {
    Arc::new(|header, host| match header.purpose.as_str() {
        "echo" => Some(Box::new(|stream: ByteStream| {
            Box::pin(async move {
                let (mut reading, mut writing) = tokio::io::split(stream);
                let _ = tokio::io::copy(&mut reading, &mut writing).await;
                let _ = writing.shutdown().await;
            })
        })),
        "deaf" => Some(Box::new(|stream: ByteStream| {
            Box::pin(async move {
                let _held = stream;
                std::future::pending().await
            })
        })),
        _ => envforge_agent::programs()(header, host),
    })
}

fn header(of: u128, purpose: &str) -> StreamHeader {
    let purpose = purpose.to_owned();
    StreamHeader { org: org(of), workspace: workspace(), purpose, parameters: BTreeMap::new() }
}

fn order(of: u128, repository: &Path, epoch: u64) -> WakeOrder {
    let manifest = "version: 1\nservices:\n  web:\n    command: exec python3 -m http.server $PORT --bind $HOST\n    \
                    route: { web: {} }\n    readiness: { http: /, interval: 50ms, deadline: 20s }\n";
    WakeOrder {
        org: org(of),
        workspace: workspace(),
        epoch,
        repository: repository.display().to_string(),
        branch: "main".to_owned(),
        manifest: Manifest::parse(manifest).unwrap(),
        deadline: Millis::from_secs(30),
        public_hosts: BTreeMap::new(),
        secrets: BTreeMap::new(),
        git: None,
    }
}

fn job(of: u128) -> JobOrder {
    JobOrder {
        run: JobRunId::from_uuid(Uuid::from_u128(3)),
        org: org(of),
        project: ProjectId::from_uuid(Uuid::from_u128(4)),
        workspace: workspace(),
        name: "test".to_owned(),
        command: "true".to_owned(),
        secrets: Vec::new(),
    }
}

fn repository(folder: &Path) -> PathBuf {
    let root = folder.join("orders");
    std::fs::create_dir_all(&root).unwrap();
    std::fs::write(root.join("index.html"), "orders").unwrap();
    envforge_testkit::commit_all(&root);
    root
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_awake_outlives_its_connection_and_a_repeated_order_changes_nothing() {
    let line = Line::new().await;
    let (identity, local) = (line.enrolled(A_DAY).await, line.local_host().await);
    let stop = CancellationToken::new();
    let running = tokio::spawn(line.agent(&local, identity).run(stop.clone()));
    let root = repository(line.dir.path());
    let (remote, session) = line.connected().await;
    let (stages, stage) = watch::channel(Stage::CheckingOut);
    let awake = remote.wake(order(1, &root, 1), stages).await.unwrap();
    assert!(remote.is_up(workspace(), 1) && remote.is_heard());
    assert_eq!(*stage.borrow(), Stage::Ready);
    // The connection breaks; what runs does not.
    drop((remote, session));
    let (remote, _session) = line.connected().await;
    assert!(remote.is_up(workspace(), 1), "the next one begins with what is up");
    let again = remote.wake(order(1, &root, 1), watch::channel(Stage::CheckingOut).0).await.unwrap();
    assert_eq!(again, awake);
    remote.sleep(workspace(), 1).await.unwrap();
    assert!(!remote.is_up(workspace(), 1) && local.epochs_up().is_empty());
    let over = remote.wake(order(1, &root, 1), watch::channel(Stage::CheckingOut).0).await;
    assert!(matches!(over, Err(WakeFailure::OnHost { .. })), "{over:?}");
    // What ends there without having been asked for is told.
    remote.wake(order(1, &root, 2), watch::channel(Stage::CheckingOut).0).await.unwrap();
    local.sleep(workspace(), 2).await.unwrap();
    eventually("the agent's word", DEADLINE, async || remote.epoch_up(workspace()).is_none().then_some(())).await;
    remote.remove(workspace()).await.unwrap();
    stop.cancel();
    running.await.unwrap().unwrap();
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_taken_as_root_when_the_line_broke_is_taken_again_by_the_next_and_begun_once() {
    let line = Line::new().await;
    let identity = line.enrolled(A_DAY).await;
    let mut config = envforge_runtime::Config::new(line.folder().join("runtime"));
    // A guard that guards nothing: what it would hold is never started.
    config.root_guard = Some("/bin/false".into());
    let (local, _) = LocalHost::open(config).await.unwrap();
    let config = Config { control_plane: line.at(), agent_version: "test".to_owned(), clock: clock() };
    let stop = CancellationToken::new();
    let running = tokio::spawn(Agent::new(config, local.clone(), identity, programs_of_agents()).run(stop.clone()));
    let root = repository(line.dir.path());
    let (remote, session) = line.connected().await;
    remote.wake(order(1, &root, 1), watch::channel(Stage::CheckingOut).0).await.unwrap();
    let window = RootWindowId::from_uuid(Uuid::from_u128(11));
    let taken = remote.take_root(workspace(), (window, 0), 1).await.unwrap();
    if local.root_refusal().is_none() {
        drop((taken.unwrap(), remote, session));
        let (remote, _session) = line.connected().await;
        assert_eq!(remote.root_windows().await.unwrap(), [(window, RemoteWindow::Taken)].into());
        let again = remote.take_root(workspace(), (window, 0), 1).await.unwrap().unwrap();
        let (_keep, kill) = watch::channel(None);
        let what = RootWhat::Command(vec!["true".to_owned()]);
        assert!(again.run(&what, DEADLINE, kill).await.unwrap().is_some());
        let taken = async |number| remote.take_root(workspace(), (window, number), 1).await.unwrap().err();
        assert_eq!(taken(0).await, Some(NotTaken::Begun));
        // The log has heard of its end, and asks for the next one; that the host may forget it was lost on the way.
        assert_eq!(taken(1).await, None);
        assert_eq!(remote.root_windows().await.unwrap(), [(window, RemoteWindow::Taken)].into());
    } else {
        assert!(taken.is_err(), "there is no root to give");
    }
    stop.cancel();
    running.await.unwrap().unwrap();
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_does_nothing_for_another_organization() {
    let line = Line::new().await;
    let (local, remote, _session, stop) = line.up().await;
    let root = repository(line.dir.path());
    let refused = remote.wake(order(2, &root, 1), watch::channel(Stage::CheckingOut).0).await.unwrap_err();
    assert!(refused.to_string().contains("another organization"), "{refused}");
    assert!(local.epochs_up().is_empty());
    assert_eq!(std::fs::read_dir(line.folder().join("runtime/workspaces")).unwrap().count(), 0, "nothing was made");
    let refused = remote.line().open_stream(header(2, "echo")).await.err().unwrap();
    assert!(refused.to_string().contains("another organization"), "{refused}");
    let refused = remote.line().run_job(job(2), BTreeMap::new()).await.err().unwrap();
    assert!(refused.to_string().contains("another organization"), "{refused}");
    stop.cancel();
}

/// Neither a planner nor an executor stands before it here: a token and a wake of another organization come to a machine straight.
#[tokio::test(flavor = "multi_thread")]
async fn the_agent_alone_refuses_another_organizations_enrolment_and_wake() {
    let line = Line::new().await;
    let (local, remote, _session, stop) = line.up().await;
    let root = repository(line.dir.path());
    let theirs = EnrolmentToken::new(org(2), host(), line.authority.fingerprint(), &[6; 32]);
    let capacity = Capacity { cpu_millicores: 4_000, memory_mib: 4_096 };
    let enrolled = enrol(&line.at(), &line.folder(), &theirs, "local-1", capacity, "test", &clock()).await;
    // Refused before it has told anybody anything: nobody accepts here.
    assert!(matches!(enrolled, Err(EnrolError::Identity(IdentityError::Another { .. }))), "{:?}", enrolled.err());
    assert_eq!(AgentIdentity::load(&line.folder()).unwrap().unwrap().of(), (org(1), host()), "it stays who it is");
    let refused = remote.wake(order(2, &root, 1), watch::channel(Stage::CheckingOut).0).await.unwrap_err();
    assert!(refused.to_string().contains("another organization"), "{refused}");
    assert!(local.epochs_up().is_empty());
    stop.cancel();
}

/// As many as a project may have, as long as one may be in JSON.
#[tokio::test(flavor = "multi_thread")]
async fn a_job_reaches_its_host_with_all_the_secrets_that_it_may_be_given() {
    use envforge_domain::limits::{SECRET_BYTES_MAX, SECRETS_MAX};
    let line = Line::new().await;
    let (_local, remote, _session, stop) = line.up().await;
    let value = "\u{1}".repeat(SECRET_BYTES_MAX);
    let secrets = (0..SECRETS_MAX).map(|number| (format!("SECRET_{number}"), Secret::new(value.clone())));
    let refused = remote.line().run_job(job(1), secrets.collect()).await.err().unwrap();
    assert!(matches!(refused, ShellFailure::NotAwake), "it came, and there is no runtime: {refused}");
    stop.cancel();
}

/// What lasts there is not forgotten then, and asking again is right.
#[tokio::test(flavor = "multi_thread")]
async fn an_end_that_fails_on_a_host_fails_for_whoever_asked() {
    let line = Line::new().await;
    let (identity, local) = (line.enrolled(A_DAY).await, line.local_host().await);
    let stop = CancellationToken::new();
    let programs: StreamHandler = Arc::new(|header, _| match header.purpose.as_str() {
        "lasting" => Some(Box::new(|mut stream: ByteStream| {
            Box::pin(async move {
                let call: serde_json::Value = frame::expect(&mut stream).await.unwrap();
                // As it is where nothing runs any more, and where something does.
                let failed = call.to_string().contains(&user(2).to_string()).then_some("3 processes do not end");
                frame::write(&mut stream, &failed).await.unwrap();
                let _ = stream.shutdown().await;
            })
        })),
        _ => None,
    });
    tokio::spawn(line.agent_serving(&local, identity, programs).run(stop.clone()));
    let (remote, _session) = line.connected().await;
    remote.line().end_lasting_shells(workspace(), user(1)).await.unwrap();
    let failed = remote.line().end_lasting_shells(workspace(), user(2)).await.unwrap_err();
    assert_eq!(failed.to_string(), "3 processes do not end");
    stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_cannot_decide_is_asked_again_and_a_refusal_is_for_good() {
    let line = Line::new().await;
    let (identity, local) = (line.enrolled(A_DAY).await, line.local_host().await);
    let agent = tokio::spawn(line.agent(&local, identity).run(CancellationToken::new()));
    for code in [envforge_agent::UNDECIDED, "host_revoked"] {
        let refusing = async {
            let arrived = line.listener.accept().await.unwrap().hello().await.unwrap().arrive().await.unwrap();
            let Arrival::Agent(connection) = arrived else { panic!("somebody else came") };
            connection.refuse(code, "not now".to_owned()).await.unwrap();
        };
        tokio::time::timeout(DEADLINE, refusing).await.unwrap();
    }
    let ended = tokio::time::timeout(DEADLINE, agent).await.unwrap().unwrap();
    assert!(matches!(&ended, Err(AgentError::Refused { code, .. }) if code == "host_revoked"), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_carry_much_both_ways_and_one_that_nobody_reads_holds_up_no_other() {
    const BYTES: usize = 100 * 1024 * 1024;
    let line = Line::new().await;
    let (identity, local) = (line.enrolled(A_DAY).await, line.local_host().await);
    let stop = CancellationToken::new();
    let _running = tokio::spawn(line.agent(&local, identity).run(stop.clone()));
    let (remote, session) = line.connected().await;
    assert!(remote.line().open_stream(header(1, "unheard-of")).await.is_err());

    let mut deaf = remote.line().open_stream(header(1, "deaf")).await.unwrap();
    let chunk = vec![7; 64 * 1024];
    let mut taken = 0;
    // Until nobody takes any more.
    while tokio::time::timeout(Duration::from_millis(300), deaf.write_all(&chunk)).await.is_ok() {
        taken += chunk.len();
        assert!(taken < 16 * 1024 * 1024, "a stream that nobody reads takes whatever it is given");
    }

    let echo = remote.line().open_stream(header(1, "echo")).await.unwrap();
    let (mut reading, mut writing) = tokio::io::split(echo);
    let began = tokio::time::Instant::now();
    let sending = tokio::spawn(async move {
        let mut sent = 0;
        while sent < BYTES {
            let chunk: Vec<u8> = (0..64 * 1024).map(|index| ((sent + index) % 251) as u8).collect();
            writing.write_all(&chunk).await.unwrap();
            sent += chunk.len();
        }
        writing.shutdown().await.unwrap();
        sent
    });
    let (mut got, mut buffer) = (0, vec![0; 256 * 1024]);
    loop {
        match reading.read(&mut buffer).await.unwrap() {
            0 => break,
            read => {
                assert!(buffer[..read].iter().enumerate().all(|(at, byte)| *byte == ((got + at) % 251) as u8));
                got += read;
            }
        }
    }
    assert_eq!((sending.await.unwrap(), got), (BYTES, BYTES));
    println!("100 MiB there and back within {:?}", began.elapsed());
    // The end of the connection is the end of its streams.
    let mut open = remote.line().open_stream(header(1, "echo")).await.unwrap();
    session.closed().cancel();
    assert!(matches!(open.read(&mut buffer).await, Err(_) | Ok(0)));
    stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn only_certificates_of_the_authority_are_let_in_and_only_in_time() {
    let line = Line::new().await;
    let (identity, local) = (line.enrolled(Millis::from_secs(2)).await, line.local_host().await);
    let stop = CancellationToken::new();
    // In time it is let in, and no longer than it lasts unless it is renewed.
    let running = tokio::spawn(line.agent(&local, identity).run(stop.clone()));
    let (_remote, mut session) = line.connected().await;
    let ended = async { while !matches!(session.next().await, envforge_agent::Happened::Closed) {} };
    tokio::time::timeout(DEADLINE, ended).await.expect("the connection ends with its certificate");
    let ended = tokio::time::timeout(DEADLINE, running).await.unwrap().unwrap();
    assert!(matches!(ended, Err(AgentError::CertificateEnded { .. })), "{ended:?}");

    // An authority of somebody else's certifies nobody here, and the agent believes nobody else's either.
    let elsewhere = tempfile::tempdir().unwrap();
    let other = authority(elsewhere.path());
    let token = EnrolmentToken::new(org(1), host(), other.fingerprint(), &[5; 32]);
    let folder = elsewhere.path().join("agent");
    std::fs::create_dir(&folder).unwrap();
    let (at, capacity, clock) = (line.at(), Capacity::default(), clock());
    let arriving = async { line.listener.accept().await.unwrap().hello().await.unwrap().arrive().await };
    let enrolling = enrol(&at, &folder, &token, "local-1", capacity, "test", &clock);
    let (enrolled, arrived) = tokio::join!(enrolling, arriving);
    assert!(matches!(enrolled, Err(EnrolError::Unreachable { .. })) && arrived.is_err());
    assert!(AgentIdentity::load(&folder).unwrap().is_none());
}

/// The same agent through both steps, at listeners that know one authority, both, and the other.
#[tokio::test(flavor = "multi_thread")]
async fn an_authority_is_replaced_while_its_agents_stay() {
    let mut line = Line::new().await;
    let (key, certificate) = (line.dir.path().join("agents.key"), line.dir.path().join("agents.crt"));
    let (first, now) = (line.authority.fingerprint(), SystemClock.now());
    let finish = |now| Authority::finish_rotation(&key, &certificate, now, A_DAY);
    assert!(matches!(finish(now), Err(AuthorityError::NotRotating)));
    // Old enough to be renewed soon: half of its time is over in two seconds.
    let (identity, local) = (line.enrolled(Millis::from_secs(4)).await, line.local_host().await);
    let trusted = || {
        let text = std::fs::read_to_string(line.dir.path().join("agent/agent.json")).unwrap();
        let kept: serde_json::Value = serde_json::from_str(&text).unwrap();
        [kept["authority"].clone(), kept["next_authority"].clone()].map(|name| name.as_str().map(str::to_owned))
    };
    let name = |authority: TokenDigest| Some(hex::encode(authority.as_bytes()));
    assert_eq!(trusted(), [name(first), None]);

    let second = Authority::begin_rotation(&key, &certificate, now).unwrap();
    assert!(second != first);
    assert!(matches!(Authority::begin_rotation(&key, &certificate, now), Err(AuthorityError::Rotating)));
    assert!(matches!(finish(now.plus(Millis::from_hours(23))), Err(AuthorityError::InUse { .. })));
    let both = authority(line.dir.path());
    assert!(both.fingerprint() == first, "what tokens carry");
    line.listener = Listener::bind("127.0.0.1:0".parse().unwrap(), &both, clock()).await.unwrap();
    // It comes with the first one's certificate, and gets one of the second's.
    let stop = CancellationToken::new();
    let running = tokio::spawn(line.agent(&local, identity).run(stop.clone()));
    let (_remote, mut session) = line.connected().await;
    renew(&both, &mut session).await;
    eventually("both trusted", DEADLINE, async || (trusted() == [name(first), name(second)]).then_some(())).await;
    // With which it is let in again, by the first one's listener.
    drop(session);
    let (_remote, session) = line.connected().await;
    stop.cancel();
    running.await.unwrap().unwrap();
    drop(session);

    assert!(finish(now.plus(A_DAY)).unwrap() == second);
    let other = authority(line.dir.path());
    assert!(other.fingerprint() == second);
    line.listener = Listener::bind("127.0.0.1:0".parse().unwrap(), &other, clock()).await.unwrap();
    let identity = AgentIdentity::load(&line.folder()).unwrap().unwrap();
    let stop = CancellationToken::new();
    let running = tokio::spawn(line.agent(&local, identity).run(stop.clone()));
    let (_remote, mut session) = line.connected().await;
    renew(&other, &mut session).await;
    eventually("the first one is dropped", DEADLINE, async || (trusted() == [name(second), None]).then_some(())).await;
    stop.cancel();
    running.await.unwrap().unwrap();
    // Neither side takes the first one's word any more.
    let of_first = Listener::bind("127.0.0.1:0".parse().unwrap(), &line.authority, clock()).await.unwrap();
    let identity = AgentIdentity::load(&line.folder()).unwrap().unwrap();
    let config = Config {
        control_plane: of_first.local_address().unwrap().to_string(),
        agent_version: "test".to_owned(),
        clock: clock(),
    };
    let stop = CancellationToken::new();
    let running = tokio::spawn(Agent::new(config, local.clone(), identity, programs()).run(stop.clone()));
    assert!(of_first.accept().await.unwrap().hello().await.unwrap().arrive().await.is_err());
    stop.cancel();
    running.await.unwrap().unwrap();
    local.shutdown().await;
}

/// Certifies the next key that the agent asks for.
async fn renew(authority: &Authority, session: &mut Session) {
    let Happened::Renew(request) = tokio::time::timeout(DEADLINE, session.next()).await.unwrap() else {
        panic!("the agent asked for nothing");
    };
    let identity = HostIdentity { org: org(1), host: host(), enrolment: 1 };
    let certificate = authority.certify(&request, identity, SystemClock.now(), Millis::from_secs(8)).unwrap();
    session.certify(&certificate, SystemClock.now()).await;
}

#[test]
fn a_rotation_that_was_cut_short_is_finished_and_never_half_used() {
    let dir = tempfile::tempdir().unwrap();
    let (key, certificate) = (dir.path().join("agents.key"), dir.path().join("agents.crt"));
    authority(dir.path());
    let now = SystemClock.now();
    let second = Authority::begin_rotation(&key, &certificate, now).unwrap();
    // Between the two renames.
    std::fs::rename(dir.path().join("agents-next.crt"), &certificate).unwrap();
    assert!(Authority::load(&key, &certificate).is_err(), "a key that is not its certificate's");
    assert!(Authority::finish_rotation(&key, &certificate, now, A_DAY).unwrap() == second);
    assert!(Authority::load(&key, &certificate).unwrap().fingerprint() == second);
    // A certificate whose key was never written is made anew.
    std::fs::write(dir.path().join("agents-next.crt"), "half").unwrap();
    Authority::begin_rotation(&key, &certificate, now).unwrap();
    Authority::load(&key, &certificate).unwrap();
}

#[test]
fn an_authority_that_lost_a_half_is_refused_instead_of_replaced() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let first = authority(dir.path()).fingerprint();
    assert!(authority(dir.path()).fingerprint() == first);
    let (key, certificate) = (dir.path().join("agents.key"), dir.path().join("agents.crt"));
    assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(envforge_agent::authority_fingerprint(&certificate).unwrap() == first);
    std::fs::remove_file(&certificate).unwrap();
    assert!(Authority::load_or_create(&key, &certificate, SystemClock.now()).is_err());
    assert!(!certificate.exists());
}
