//! Two processes of a control plane, one of which has an agent: who is let in, and what passes.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use envforge_agent::{HostHere, HostLine, RelayConnection, RelayKey, RelayListener, Relayed, RelayedHost};
use envforge_domain::ids::RootWindowId;
use envforge_runtime::frame;
use futures_util::FutureExt as _;
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
                let served = async { incoming.arrive().await?.serve(relayed).await };
                told.send(served.await).await
            });
        }
    });
    (address, ended)
}

/// Gives that line, whatever it is asked for.
pub(crate) fn only(line: Option<HostLine>) -> Relayed {
    let here = HostHere { org: org(1), host: host(), connection: 1, since: Instant::now() };
    let told = watch::Sender::new(vec![here]);
    let here = told.subscribe();
    let lines = move |_: HostId, _: u64, _: StreamHeader| {
        // Kept as long as anybody may ask: nothing changes.
        let _told = &told;
        std::future::ready(line.clone()).boxed()
    };
    Relayed { here, lines: Arc::new(lines) }
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
    assert_eq!((found.org, found.host), (org(1), host()));
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
    let refused = async |header: StreamHeader| found.line.open_stream(header).await.err().unwrap();

    // The agent says it even where the process in between does not.
    assert!(refused(header(2, "shell")).await.to_string().contains("another organization"));
    for purpose in ["ends", "known", "echo"] {
        assert!(refused(header(1, purpose)).await.to_string().contains("not for other processes"), "{purpose}");
    }
    let nowhere = WorkspaceId::from_uuid(Uuid::nil());
    let of_nothing = StreamHeader { workspace: nowhere, ..header(1, "shell") };
    assert!(refused(of_nothing).await.to_string().contains("not for other processes"));
    assert!(found.line.open_stream(StreamHeader { workspace: nowhere, ..header(1, "lasting") }).await.is_ok());
    let window = RootWindowId::from_uuid(Uuid::from_u128(5)).to_string();
    for call in ["run", "take", "forget", "windows", "join"] {
        let mut stream = found.line.open_stream(header(1, "root")).await.unwrap();
        let call = match call {
            "windows" => serde_json::json!({ "root": call }),
            "run" => serde_json::json!({ "root": call, "window": window, "words": ["id"], "until_uptime_ms": 1 }),
            "take" => serde_json::json!({ "root": call, "window": window, "epoch": 1 }),
            _ => serde_json::json!({ "root": call, "window": window }),
        };
        frame::write(&mut stream, &call).await.unwrap();
        assert!(frame::expect::<serde_json::Value, _>(&mut stream).await.is_err(), "{call}");
    }
    let mut passed = found.line.open_stream(header(1, "root")).await.unwrap();
    let shown = serde_json::json!({ "root": "output", "window": window });
    frame::write(&mut passed, &shown).await.unwrap();
    assert_eq!(frame::expect::<serde_json::Value, _>(&mut passed).await.unwrap(), shown);
    drop(passed);

    // A reader that does not read stops its writer, and ends with either side.
    let ended =
        async |what: &str| eventually(what, DEADLINE, async || (open.load(Ordering::SeqCst) == 0).then_some(())).await;
    ended("what was asked for before").await;
    let mut unread = found.line.open_stream(header(1, "shell")).await.unwrap();
    let (chunk, mut taken) = (vec![7; 64 * 1024], 0);
    while tokio::time::timeout(Duration::from_millis(300), unread.write_all(&chunk)).await.is_ok() {
        taken += chunk.len();
        assert!(taken < 16 * 1024 * 1024, "a stream that nobody reads takes whatever it is given");
    }
    let mut beside = found.line.open_stream(header(1, "shell")).await.unwrap();
    beside.write_all(b"typed").await.unwrap();
    let mut echoed = [0; 5];
    beside.read_exact(&mut echoed).await.unwrap();
    assert_eq!(&echoed, b"typed", "one that nobody reads holds up no other");
    drop((unread, beside));
    ended("the streams that were let go").await;
    let mut left = found.line.open_stream(header(1, "shell")).await.unwrap();
    drop(connection);
    ended("the streams of a connection that is gone").await;
    assert!(is_over(&mut left).await);

    let (_connection, found) = connected(at, &ours).await;
    let mut left = found.line.open_stream(header(1, "shell")).await.unwrap();
    session.closed().cancel();
    assert!(is_over(&mut left).await, "it ends with the agent's connection");
    let gone = found.line.open_stream(header(1, "shell")).await.err().unwrap();
    assert_eq!(gone.kind(), std::io::ErrorKind::NotConnected);
    stop.cancel();
}

async fn is_over(stream: &mut ByteStream) -> bool {
    matches!(tokio::time::timeout(DEADLINE, stream.read(&mut [0])).await.unwrap(), Err(_) | Ok(0))
}
