//! Two processes of a control plane, one of which has an agent or is a host itself: who is let in, and what passes.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use envforge_agent::{
    HostHere, HostLine, RelayConnection, RelayKey, RelayListener, Relayed, RelayedHost, SecretSource,
};
use envforge_domain::access::Resource;
use envforge_domain::commit::Surface;
use envforge_domain::ids::{RootWindowId, SessionId, ShellId, UserId};
use envforge_domain::project::{GitCredential, Repository};
use envforge_domain::secrets::{ConsumedSecret, SecretConsumer, SecretOwner};
use envforge_domain::shell::{ShellGit, ShellOrder, ShellWhat};
use envforge_domain::workspace::Branch;
use envforge_runtime::{GitLogin, ShellLogin, frame};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::time::Instant;

use super::*;

/// What the agent serves to other processes, here: everything is an echo.
fn echoes(open: &Arc<AtomicUsize>) -> StreamHandler {
    let open = Arc::clone(open);
    Arc::new(move |_, _| {
        let open = Arc::clone(&open);
        Some(Box::new(move |stream: ByteStream| {
            async move {
                open.fetch_add(1, Ordering::SeqCst);
                let (mut reading, mut writing) = tokio::io::split(stream);
                let _ = tokio::io::copy(&mut reading, &mut writing).await;
                let _ = writing.shutdown().await;
                open.fetch_sub(1, Ordering::SeqCst);
            }
            .boxed()
        }))
    })
}

pub(crate) fn key(folder: &Path) -> Arc<RelayKey> {
    std::fs::create_dir_all(folder).unwrap();
    let (key, certificate) = (folder.join("relay.key"), folder.join("relay.crt"));
    Arc::new(RelayKey::load_or_create(&key, &certificate, SystemClock.now()).unwrap())
}

/// Serves whoever comes, and tells how each ended.
pub(crate) async fn serving(
    key: Arc<RelayKey>,
    relayed: Relayed,
) -> (SocketAddr, tokio::sync::mpsc::Receiver<std::io::Result<()>>) {
    let listener = RelayListener::bind("127.0.0.1:0".parse().unwrap(), key, clock()).await.unwrap();
    let address = listener.local_address().unwrap();
    let (told, ended) = tokio::sync::mpsc::channel(8);
    tokio::spawn(async move {
        loop {
            let (incoming, relayed, told) = (listener.accept().await.unwrap(), relayed.clone(), told.clone());
            tokio::spawn(async move {
                let served = async { incoming.hello().await?.arrive().await?.serve(relayed).await };
                told.send(served.await).await
            });
        }
    });
    (address, ended)
}

/// Gives that line, whatever it is asked for.
pub(crate) fn only(line: Option<HostLine>) -> Relayed {
    let (org, host) = (Some(org(1)), host());
    let here = HostHere { org, host, own_machine: false, connection: 1, since: Instant::now() };
    let told = watch::Sender::new(vec![here]);
    let here = told.subscribe();
    let lines = move |_: HostId, _: u64, _: StreamHeader| {
        // Kept as long as anybody may ask: nothing changes.
        let _told = &told;
        std::future::ready(line.clone()).boxed()
    };
    Relayed { here, lines: Arc::new(lines), secrets: Arc::new(Store) }
}

const VALUE: &str = "the-value-of-a-secret";

/// Has one value for everything but for what is called `ABSENT`.
struct Store;

impl Store {
    fn value(secret: &ConsumedSecret) -> Result<Secret, String> {
        if secret.name.as_str() == "ABSENT" {
            Err("it is absent".to_owned())
        } else {
            Ok(Secret::new(VALUE.to_owned()))
        }
    }
}

impl SecretSource for Store {
    fn login(&self, place: Resource, git: ShellGit) -> BoxFuture<'_, Result<ShellLogin, String>> {
        assert_eq!(place, job(1).place());
        let value = Self::value(git.given.as_ref().unwrap());
        let login = |value| GitLogin { username: git.credential.username.clone(), value, valid_for: None };
        std::future::ready(value.map(|value| ShellLogin { login: login(value), inside: git.credential.in_shells }))
            .boxed()
    }

    fn of_job(
        &self,
        place: Resource,
        secrets: Vec<ConsumedSecret>,
    ) -> BoxFuture<'_, Result<BTreeMap<String, Secret>, String>> {
        assert_eq!(place, job(1).place());
        let value = |secret: &ConsumedSecret| Ok((secret.name.to_string(), Self::value(secret)?));
        std::future::ready(secrets.iter().map(value).collect()).boxed()
    }
}

pub(crate) async fn connected(at: SocketAddr, key: &RelayKey) -> (RelayConnection, RelayedHost) {
    let mut connection = RelayConnection::open(&at.to_string(), key, &clock(), Arc::new(|| 7)).await.unwrap();
    let [host] = connection.next().await.unwrap().try_into().unwrap_or_else(|_| panic!("one host is there"));
    (connection, host)
}

/// The agent's own key and certificate, and the relay's authority, in a client that wants to be another process.
async fn as_a_process(line: &Line, at: SocketAddr) {
    let stored: serde_json::Value =
        serde_json::from_slice(&std::fs::read(line.folder().join("agent.json")).unwrap()).unwrap();
    let text = |name: &str| stored[name].as_str().unwrap().as_bytes().to_vec();
    let chain = CertificateDer::pem_slice_iter(&text("chain")).collect::<Result<Vec<_>, _>>().unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(line.dir.path().join("ours/relay.crt")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(&text("key")).unwrap())
        .unwrap();
    config.alpn_protocols = vec![b"envforge-relay/1".to_vec()];
    let socket = tokio::net::TcpStream::connect(at).await.unwrap();
    let name = ServerName::try_from("relay.envforge.internal").unwrap();
    if let Ok(mut stream) = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, socket).await {
        // It hears of its certificate afterwards.
        assert!(stream.read_u8().await.is_err());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_processes_of_one_control_plane_pass_streams_on_and_an_agents_certificate_is_none() {
    let line = Line::new().await;
    let (ours, theirs) = (key(&line.dir.path().join("ours")), key(&line.dir.path().join("theirs")));
    let (at, mut ended) = serving(Arc::clone(&ours), only(None)).await;
    let (connection, found) = connected(at, &ours).await;
    assert_eq!((found.org, found.host), (Some(org(1)), host()));
    drop((connection, found));
    assert!(ended.recv().await.is_some(), "a connection that is given up ends");

    // Another control plane's process.
    let stranger = async {
        RelayConnection::open(&at.to_string(), &theirs, &clock(), Arc::new(|| 0)).await?.next().await.map(drop)
    };
    assert!(stranger.await.is_err());
    assert!(ended.recv().await.unwrap().is_err());

    // An agent: as agents are, and with the relay's authority as whom it trusts.
    let (identity, local) = (line.enrolled(A_DAY).await, line.local_host().await);
    as_a_process(&line, at).await;
    let refused = ended.recv().await.unwrap().unwrap_err();
    let refused = refused.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    assert!(matches!(refused, Some(rustls::Error::InvalidCertificate(_))), "{refused:?}");
    let stop = CancellationToken::new();
    let astray = Config { control_plane: at.to_string(), agent_version: "test".to_owned(), clock: clock() };
    let running = tokio::spawn(Agent::new(astray, local, identity, programs()).run(stop.clone()));
    assert!(ended.recv().await.unwrap().is_err());
    stop.cancel();
    running.await.unwrap().unwrap();

    // And a process of the control plane is no agent.
    let (listening, clock) = (line.at(), clock());
    let coming = RelayConnection::open(&listening, &ours, &clock, Arc::new(|| 0));
    let arriving = async { line.listener.accept().await.unwrap().hello().await.unwrap().arrive().await };
    let (refused, arrived) = tokio::join!(coming, arriving);
    assert!(refused.is_err() && arrived.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_passes_to_another_organizations_host_and_no_order_of_reactors() {
    let line = Line::new().await;
    let (identity, local) = (line.enrolled(A_DAY).await, line.local_host().await);
    let (stop, open) = (CancellationToken::new(), Arc::<AtomicUsize>::default());
    let _running = tokio::spawn(line.agent_serving(&local, identity, echoes(&open)).run(stop.clone()));
    let (remote, session) = line.connected().await;
    let ours = key(&line.dir.path().join("ours"));
    let (at, _ended) = serving(Arc::clone(&ours), only(Some(remote.line().clone()))).await;
    let (connection, found) = connected(at, &ours).await;
    let passed_on = found.line(org(1));
    let refused = async |header: StreamHeader| passed_on.open_stream(header).await.err().unwrap();

    // The agent says it even where the process in between does not.
    assert!(refused(header(2, "shell")).await.to_string().contains("another organization"));
    for purpose in ["ends", "known", "echo"] {
        assert!(refused(header(1, purpose)).await.to_string().contains("not for other processes"), "{purpose}");
    }
    let nowhere = WorkspaceId::from_uuid(Uuid::nil());
    let of_nothing = StreamHeader { workspace: nowhere, ..header(1, "shell") };
    assert!(refused(of_nothing).await.to_string().contains("not for other processes"));
    assert!(found.line(org(1)).open_stream(StreamHeader { workspace: nowhere, ..header(1, "lasting") }).await.is_ok());
    let window = RootWindowId::from_uuid(Uuid::from_u128(5)).to_string();
    for call in ["run", "take", "forget", "windows", "join"] {
        let mut stream = found.line(org(1)).open_stream(header(1, "root")).await.unwrap();
        let call = match call {
            "windows" => serde_json::json!({ "root": call }),
            "run" => serde_json::json!({ "root": call, "window": window, "words": ["id"], "until_uptime_ms": 1 }),
            "take" => serde_json::json!({ "root": call, "window": window, "epoch": 1 }),
            _ => serde_json::json!({ "root": call, "window": window }),
        };
        frame::write(&mut stream, &call).await.unwrap();
        assert!(frame::expect::<serde_json::Value, _>(&mut stream).await.is_err(), "{call}");
    }
    let mut passed = found.line(org(1)).open_stream(header(1, "root")).await.unwrap();
    let shown = serde_json::json!({ "root": "output", "window": window });
    frame::write(&mut passed, &shown).await.unwrap();
    assert_eq!(frame::expect::<serde_json::Value, _>(&mut passed).await.unwrap(), shown);
    drop(passed);

    // A reader that does not read stops its writer, and ends with either side.
    let ended =
        async |what: &str| eventually(what, DEADLINE, async || (open.load(Ordering::SeqCst) == 0).then_some(())).await;
    ended("what was asked for before").await;
    let mut unread = found.line(org(1)).open_stream(header(1, "shell")).await.unwrap();
    let (chunk, mut taken) = (vec![7; 64 * 1024], 0);
    while tokio::time::timeout(Duration::from_millis(300), unread.write_all(&chunk)).await.is_ok() {
        taken += chunk.len();
        assert!(taken < 16 * 1024 * 1024, "a stream that nobody reads takes whatever it is given");
    }
    let mut beside = found.line(org(1)).open_stream(header(1, "shell")).await.unwrap();
    beside.write_all(b"typed").await.unwrap();
    let mut echoed = [0; 5];
    beside.read_exact(&mut echoed).await.unwrap();
    assert_eq!(&echoed, b"typed", "one that nobody reads holds up no other");
    drop((unread, beside));
    ended("the streams that were let go").await;
    let mut left = found.line(org(1)).open_stream(header(1, "shell")).await.unwrap();
    drop(connection);
    ended("the streams of a connection that is gone").await;
    assert!(is_over(&mut left).await);

    let (_connection, found) = connected(at, &ours).await;
    let mut left = found.line(org(1)).open_stream(header(1, "shell")).await.unwrap();
    session.closed().cancel();
    assert!(is_over(&mut left).await, "it ends with the agent's connection");
    let gone = found.line(org(1)).open_stream(header(1, "shell")).await.err().unwrap();
    assert_eq!(gone.kind(), std::io::ErrorKind::NotConnected);
    stop.cancel();
}

async fn is_over(stream: &mut ByteStream) -> bool {
    matches!(tokio::time::timeout(DEADLINE, stream.read(&mut [0])).await.unwrap(), Err(_) | Ok(0))
}

fn consumed(name: &str, consumer: SecretConsumer) -> ConsumedSecret {
    let owner = SecretOwner::Project(job(1).project);
    ConsumedSecret { consumer, name: name.parse().unwrap(), owner, generation: 1, version: 3 }
}

fn shell_with(name: &str) -> ShellOrder {
    let number = Uuid::from_u128(8);
    let given = consumed(name, SecretConsumer::Git);
    let credential =
        GitCredential { secret: given.name.clone(), username: "x-access-token".to_owned(), in_shells: true };
    ShellOrder {
        shell: ShellId::from_uuid(number),
        org: org(1),
        project: job(1).project,
        workspace: workspace(),
        user: UserId::from_uuid(number),
        session: SessionId::from_uuid(number),
        surface: Surface::Cli,
        repository: Repository::parse("https://git.example.com/orders.git").unwrap(),
        branch: Branch::parse("main").unwrap(),
        git: Some(ShellGit { credential, given: Ok(given), expires_at: None }),
        what: ShellWhat::Command { words: vec!["true".to_owned()] },
    }
}

/// Says what it was called with, and that it was begun.
fn told_calls(calls: tokio::sync::mpsc::Sender<serde_json::Value>) -> StreamHandler {
    Arc::new(move |_, _| {
        let calls = calls.clone();
        Some(Box::new(move |mut stream: ByteStream| {
            async move {
                let call = frame::expect_call(&mut stream).await.unwrap();
                let opened =
                    serde_json::json!({ "answer": "opened", "lasting": false, "notice": null, "host_key": null });
                frame::write(&mut stream, &opened).await.unwrap();
                calls.send(call).await.unwrap();
            }
            .boxed()
        }))
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_value_is_read_where_the_host_is_and_only_named_by_who_asks() {
    let line = Line::new().await;
    let (local, ours) = (line.local_host().await, key(&line.dir.path().join("ours")));
    let (told, mut calls) = tokio::sync::mpsc::channel(1);
    let here = HostLine::here(org(1), local.clone(), told_calls(told));
    let (at, _ended) = serving(Arc::clone(&ours), only(Some(here))).await;
    let (_connection, found) = connected(at, &ours).await;
    let passed_on = found.line(org(1));

    let opened = passed_on.open_shell(shell_with("GIT_TOKEN"), None).await.unwrap();
    assert_eq!(opened.facts.notice, None);
    let call = calls.recv().await.unwrap();
    assert_eq!((&call["git"]["login"]["secret"], &call["git"]["inside"]), (&VALUE.into(), &true.into()), "{call}");
    let opened = passed_on.open_shell(shell_with("ABSENT"), None).await.unwrap();
    assert_eq!(opened.facts.notice.as_deref(), Some("git has no credential here: it is absent"));
    assert!(calls.recv().await.unwrap()["git"].is_null());

    let of_job =
        |name: &str| JobOrder { secrets: vec![consumed(name, SecretConsumer::Job("test".to_owned()))], ..job(1) };
    assert!(passed_on.run_job(of_job("TOKEN"), BTreeMap::new()).await.is_ok());
    assert_eq!(calls.recv().await.unwrap()["secrets"], serde_json::json!({ "TOKEN": VALUE }));
    let refused = passed_on.run_job(of_job("ABSENT"), BTreeMap::new()).await.err().unwrap();
    let ShellFailure::NotStarted { reason } = &refused else { panic!("{refused}") };
    assert!(reason.contains("its secrets could not be had: it is absent"), "{reason}");
    assert!(calls.try_recv().is_err(), "nothing was begun");
    local.shutdown().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_serves_its_own_machine_with_an_agents_programs_and_for_the_organization_asked_for_alone() {
    let line = Line::new().await;
    let (local, ours) = (line.local_host().await, key(&line.dir.path().join("ours")));
    let here = HostLine::here(org(1), local.clone(), programs_of_agents());
    let (at, _ended) = serving(Arc::clone(&ours), only(Some(here))).await;
    let (_connection, found) = connected(at, &ours).await;
    let passed_on = found.line(org(1));
    assert_eq!(passed_on.lasting_shells().await.unwrap(), []);
    assert_eq!(passed_on.commit_up(workspace()).await, None);
    assert!(passed_on.tail_log(workspace(), &"web".parse().unwrap(), 10).await.unwrap().is_none());
    let refused = passed_on.run_job(job(1), BTreeMap::new()).await.err().unwrap();
    assert!(matches!(refused, ShellFailure::NotAwake), "{refused}");
    let refused = found.line(org(2)).run_job(job(2), BTreeMap::new()).await.err().unwrap();
    assert!(refused.to_string().contains("another organization"), "{refused}");
    local.shutdown().await;
    let refused = passed_on.run_job(job(1), BTreeMap::new()).await.err().unwrap();
    assert!(matches!(refused, ShellFailure::ShuttingDown), "{refused}");
}
