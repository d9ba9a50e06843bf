//! Our own processes under load: a gateway on a real log, and the session check that nginx asks.
//!
//! Each is this program again, started with a hidden command, so that its processor time and memory are its own.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ahash::AHashSet;
use anyhow::{Context, Result};
use bytes::Bytes;
use envforge_commands::Commands;
use envforge_domain::commit::{Expectation, Position, StreamId};
use envforge_domain::event::Event;
use envforge_domain::runtime::{Epoch, RuntimeEvent, WakeCause};
use envforge_domain::secret::TokenDigest;
use envforge_eventlog::sqlite::{Config as LogConfig, SqliteLog};
use envforge_eventlog::{EventLog, SharedLog};
use envforge_gateway::{Activity, Config, Gateway, HandoffKey, LogDecisions, Parts, Scheme};
use envforge_identity::share_token::{ShareVerifier, SigningKey};
use envforge_projections::{Authorizer, DenialSink, Hot};
use envforge_testkit::{TestProcess, free_port};
use http_body_util::Empty;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use metrics_exporter_prometheus::PrometheusBuilder;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::commits;
use crate::machine::{Cores, runtime};

/// Below which workspace hosts are.
pub(crate) const DOMAIN: &str = "dev.localhost";
const START_DEADLINE: Duration = Duration::from_secs(120);
const READY: &str = "ready";

/// What a process of ours does, on the command line.
#[derive(Clone, Debug, clap::Subcommand)]
pub(crate) enum Role {
    /// A gateway that follows the log in a folder.
    #[command(name = "serve-gateway", hide = true)]
    Gateway { log: PathBuf, port: u16 },
    /// Answers 204 where a cookie is that of one of so many sessions.
    #[command(name = "serve-check", hide = true)]
    Check { sessions: u64, port: u16 },
    /// Fills a log for `serve-gateway`, to look at one by hand: with a profiler, for example.
    #[command(name = "fill", hide = true)]
    Fill { log: PathBuf, sessions: u64, web: SocketAddr },
    /// The app of a measured workspace, on the port that the runtime names.
    #[command(name = "serve-app", hide = true)]
    App,
}

/// A process of ours on the measured core, ready to serve.
pub(crate) struct Served {
    process: TestProcess,
    pub(crate) port: u16,
}

impl Served {
    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    pub(crate) fn gateway(cores: &Cores, dir: &Path, log: &Path) -> Result<Self> {
        let port = free_port();
        let log = log.to_str().context("the folder's name is not UTF-8")?;
        Self::start(cores, "gateway", dir, &["serve-gateway", log, &port.to_string()], port)
    }

    pub(crate) fn check(cores: &Cores, dir: &Path, sessions: u64) -> Result<Self> {
        let port = free_port();
        Self::start(cores, "check", dir, &["serve-check", &sessions.to_string(), &port.to_string()], port)
    }

    fn start(cores: &Cores, name: &str, dir: &Path, arguments: &[&str], port: u16) -> Result<Self> {
        let mut command = cores.measured_command(std::env::current_exe().context("where this program is")?);
        command.args(arguments);
        let mut process = TestProcess::spawn(name, &command, dir);
        process.wait_ready("its word that it serves", START_DEADLINE, |process| {
            process.stdout().contains(READY).then_some(())
        });
        Ok(Self { process, port })
    }
}

/// The host of a workspace's `web`, as a browser writes it.
pub(crate) fn host(workspace: u64, port: u16) -> String {
    format!("web--{}--acme.{DOMAIN}:{port}", commits::workspace_slug(workspace))
}

pub(crate) fn serve(role: &Role) -> Result<()> {
    runtime()?.block_on(async {
        match role {
            Role::Gateway { log, port } => serve_gateway(log, *port).await,
            Role::Check { sessions, port } => serve_check(*sessions, *port).await,
            Role::Fill { log, sessions, web } => fill(log, *sessions, *sessions, *web, *web).await,
            Role::App => crate::app::serve().await,
        }
    })
}

/// A gateway as the product runs it: its views follow the log, its decisions go to the log.
pub(crate) async fn gateway(log: &SharedLog, hot: &Arc<Hot>, port: u16, key: &SigningKey) -> Result<Gateway> {
    let commands = Arc::new(Commands::new(Arc::clone(log)));
    let authorizer = Authorizer::new(Arc::clone(log), Arc::clone(hot), Arc::new(DenialSink::default()));
    let mut config = Config::new(DOMAIN, Scheme::PlainHttpDev, SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    // All load comes from one address.
    config.limits.connections_per_address_max = 0;
    let parts = Parts {
        view: Arc::clone(&hot.gateway),
        decisions: Arc::new(LogDecisions::new(commands, authorizer)),
        verifier: ShareVerifier::new([key.verification_key()])?,
        handoff_key: HandoffKey::random().context("the system gives no randomness")?,
        activity: Activity::default(),
        clock: Arc::new(envforge_identity::clock::SystemClock),
    };
    Ok(Gateway::start(config, parts).await?)
}

async fn serve_gateway(directory: &Path, port: u16) -> Result<()> {
    // Measured with its metrics, as it runs.
    PrometheusBuilder::new().install_recorder().context("metrics")?;
    let log: SharedLog = Arc::new(SqliteLog::open(LogConfig::new(directory)).await?);
    let hot = Hot::start(Arc::clone(&log), CancellationToken::new());
    hot.caught_up().await?;
    let key = SigningKey::create(&directory.with_extension("key"))?;
    let _gateway = gateway(&log, &hot, port, &key).await?;
    println!("{READY}: {} sessions", hot.gateway.session_count());
    std::future::pending().await
}

/// Fills a log with workspace 0, ready at `web` and `backend`, and with sessions: `of_first_link` of link 0, the others over 10,000 links.
pub(crate) async fn fill(
    directory: &Path,
    sessions: u64,
    of_first_link: u64,
    web: SocketAddr,
    backend: SocketAddr,
) -> Result<()> {
    const LINKS: u64 = 10_000;
    const EVENTS: u64 = 64;
    let log = Arc::new(SqliteLog::open(LogConfig::new(directory)).await?);
    let now = commits::now();
    let new = |commit| (commit, Expectation::LastAt(Position::START));
    log.append(vec![new(commits::organization_created())]).await?;
    log.append(vec![new(commits::person_created()?)]).await?;
    log.append(vec![new(commits::project_created(0)?)]).await?;
    log.append(vec![new(commits::workspace_created(0, now)?)]).await?;
    let wake = RuntimeEvent::WakeRequested {
        epoch: Epoch(1),
        workspace: commits::workspace(0),
        project: commits::project(0),
        cause: WakeCause::Link { link: commits::link(0), session: commits::session(0) },
    };
    let mut events = vec![Event::Runtime(wake)];
    events.extend(commits::ready(Epoch(1), now, web, backend)?);
    let runtime = StreamId::runtime(commits::org(), commits::workspace(0));
    log.append(vec![new(commits::commit(runtime, Uuid::now_v7(), now, events))]).await?;
    // Many links at a time, so that the log can join them to groups.
    let mut filling = tokio::task::JoinSet::new();
    for link in 0..LINKS {
        let rest = sessions.saturating_sub(of_first_link);
        let (first, count) = if link == 0 {
            (0, of_first_link)
        } else {
            let each = rest.div_ceil(LINKS - 1);
            let first = each * (link - 1);
            (of_first_link + first, each.min(rest.saturating_sub(first)))
        };
        let log = Arc::clone(&log);
        filling.spawn(async move {
            let issued = commits::link_issued(link, 0, now)?;
            let stream = issued.stream.clone();
            let mut last = log.append(vec![(issued, Expectation::LastAt(Position::START))]).await?.last();
            for begin in (first..first + count).step_by(EVENTS as usize) {
                let events =
                    (begin..(begin + EVENTS).min(first + count)).map(|number| commits::session_opened(number, now));
                let commit = commits::commit(stream.clone(), Uuid::now_v7(), now, events.collect());
                last = log.append(vec![(commit, Expectation::LastAt(last))]).await?.last();
            }
            Ok::<_, anyhow::Error>(())
        });
        if filling.len() >= 256
            && let Some(filled) = filling.join_next().await
        {
            filled??;
        }
    }
    while let Some(filled) = filling.join_next().await {
        filled??;
    }
    if let Some(log) = Arc::into_inner(log) {
        log.close().await;
    }
    Ok(())
}

async fn serve_check(sessions: u64, port: u16) -> Result<()> {
    let known: AHashSet<TokenDigest> =
        (0..sessions).map(|number| TokenDigest::of(commits::cookie(number).as_bytes())).collect();
    let known = Arc::new(known);
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await?;
    println!("{READY}");
    loop {
        let (stream, _) = listener.accept().await?;
        let _ = stream.set_nodelay(true);
        let known = Arc::clone(&known);
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                let status = if is_known(&request, &known) { StatusCode::NO_CONTENT } else { StatusCode::UNAUTHORIZED };
                let mut response = Response::new(Empty::<Bytes>::new());
                *response.status_mut() = status;
                std::future::ready(Ok::<_, std::convert::Infallible>(response))
            });
            // A connection that ends badly shows as failed requests in the load.
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

fn is_known<B>(request: &Request<B>, known: &AHashSet<TokenDigest>) -> bool {
    let lines = request.headers().get_all("cookie").into_iter().filter_map(|line| line.to_str().ok());
    let mut pairs = lines.flat_map(|line| line.split(';')).map(str::trim);
    let session = pairs.find_map(|pair| pair.strip_prefix("envforge_session="));
    session.is_some_and(|session| known.contains(&TokenDigest::of(session.as_bytes())))
}
