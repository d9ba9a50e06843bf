//! Revocations: from the acknowledged command to the gateway's refusal, in `dev` and over NATS with 4 gateways; 1,000 sockets closed

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures_util::StreamExt;
use hyper::StatusCode;

use super::Extent;
use crate::machine::{self, Cores};
use crate::site::{Connection, Site, Visit};
use crate::verdict::{Goal, Latencies, Series, Verdicts};

const GATEWAYS: usize = 4;
const SOCKETS: usize = 1_000;
/// Sockets from one loopback address: below the gateway's limit of connections.
const SOCKETS_PER_ADDRESS: usize = 250;
/// Between two questions of one reviewer: short beside what is measured, long enough to leave the processors to the others.
const PAUSE: Duration = Duration::from_millis(1);
/// How long reviewers are let in before each revocation.
const BEFORE: Duration = Duration::from_millis(20);
const DEADLINE: Duration = Duration::from_secs(10);

pub(crate) fn run(cores: &Cores, extent: &Extent, verdicts: &mut Verdicts) -> Result<()> {
    println!(
        "revoke: {} links in turn; a reviewer asks at each gateway every {} ms, the owner revokes over HTTP",
        extent.links,
        PAUSE.as_millis()
    );
    println!(
        "(counted from the answer to the owner until the reviewer has the first refusal in hand; all processes share all cores)"
    );
    cores.use_all()?;
    let runtime = machine::runtime()?;
    runtime.block_on(async {
        println!("\n`envforge dev`: one process, embedded log");
        let site = Site::dev().await?;
        refusals(&site, extent, "dev", 20.0, verdicts).await?;
        sockets(&site, extent, "dev", verdicts).await?;
        drop(site);
        println!("\nNATS and PostgreSQL, API, projector, reactors and {GATEWAYS} gateways as processes");
        let site = Site::cluster(GATEWAYS).await?;
        refusals(&site, extent, "NATS, 4 gateways", 50.0, verdicts).await?;
        sockets(&site, extent, "NATS, 4 gateways", verdicts).await
    })
}

/// What one reviewer at one gateway saw.
struct Seen {
    refused_at: Instant,
    /// When the last request was sent that was still answered by the app.
    last_let_in: Instant,
}

async fn refusals(site: &Site, extent: &Extent, what: &str, goal_ms: f64, verdicts: &mut Verdicts) -> Result<()> {
    let (mut latencies, mut acknowledgements, mut let_in_after) = (Vec::new(), Vec::new(), 0_u32);
    let mut owner = site.api_connection().await?;
    for _ in 0..extent.links {
        let visit = site.visit().await?;
        site.until_it_answers(&visit).await?;
        let mut reviewers = tokio::task::JoinSet::new();
        for gateway in &site.gateways {
            reviewers.spawn(ask_until_refused(*gateway, site.fetch(&visit, "/ping")?));
        }
        tokio::time::sleep(BEFORE).await;
        let asked = Instant::now();
        site.revoke(&mut owner, &visit).await?;
        let acknowledged = Instant::now();
        acknowledgements.push(acknowledged.duration_since(asked));
        while let Some(seen) = reviewers.join_next().await {
            let seen = seen??;
            latencies.push(seen.refused_at.saturating_duration_since(acknowledged));
            let_in_after += u32::from(seen.last_let_in > acknowledged);
        }
    }
    let count = latencies.len();
    let latencies = Latencies::new(latencies);
    println!(
        "  {count} revocations seen at a gateway: p50 {:.2} ms, p99 {:.2} ms, slowest {:.2} ms",
        latencies.percentile_ms(50.0),
        latencies.percentile_ms(99.0),
        latencies.percentile_ms(100.0)
    );
    let acknowledgements = Latencies::new(acknowledgements);
    println!(
        "  the acknowledgement itself: p50 {:.2} ms, p99 {:.2} ms, slowest {:.2} ms",
        acknowledgements.percentile_ms(50.0),
        acknowledgements.percentile_ms(99.0),
        acknowledgements.percentile_ms(100.0)
    );
    println!("  gateways that let a request in which was sent after the acknowledgement: {let_in_after}");
    let p99 = latencies.percentile_ms(99.0);
    verdicts.judge(&format!("{what}: acknowledged -> refused, p99"), p99, "ms", Goal::AtMost(goal_ms));
    Ok(())
}

async fn ask_until_refused(
    gateway: SocketAddr,
    request: hyper::Request<http_body_util::Full<bytes::Bytes>>,
) -> Result<Seen> {
    let mut connection = Connection::open(gateway, Ipv4Addr::LOCALHOST).await?;
    let deadline = Instant::now() + DEADLINE;
    let mut last_let_in = Instant::now();
    loop {
        let sent = Instant::now();
        // An answer under way at that moment is cut off with its connection: the next question tells why.
        let Ok(answer) = connection.send(request.clone()).await else {
            connection = Connection::open(gateway, Ipv4Addr::LOCALHOST).await?;
            continue;
        };
        match answer.status {
            StatusCode::OK => last_let_in = sent,
            StatusCode::GONE => return Ok(Seen { refused_at: Instant::now(), last_let_in }),
            other => bail!("the gateway answers {other}: {}", String::from_utf8_lossy(&answer.body)),
        }
        if Instant::now() > deadline {
            bail!("not refused after {} s", DEADLINE.as_secs());
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn sockets(site: &Site, extent: &Extent, what: &str, verdicts: &mut Verdicts) -> Result<()> {
    let mut slowest = Series::new(format!("{SOCKETS} sockets of one link, the last one closed"), "ms");
    let mut middle = Series::new("half of them closed", "ms");
    let mut owner = site.api_connection().await?;
    for _ in 0..extent.rounds {
        let visit = site.visit().await?;
        site.until_it_answers(&visit).await?;
        let closed = close_all(site, &visit, &mut owner).await?;
        let latencies = Latencies::new(closed);
        middle.push(latencies.percentile_ms(50.0));
        slowest.push(latencies.percentile_ms(100.0));
    }
    println!("{middle}\n{slowest}");
    let worst = slowest.worst();
    verdicts.judge(&format!("{what}: {SOCKETS} sockets closed, slowest round"), worst, "ms", Goal::AtMost(1_000.0));
    Ok(())
}

/// Opens the sockets, revokes, and answers how long after the acknowledgement each was closed.
async fn close_all(site: &Site, visit: &Visit, owner: &mut Connection) -> Result<Vec<Duration>> {
    let (mut open, revoking) = (Vec::with_capacity(SOCKETS), Arc::new(AtomicBool::new(false)));
    for number in 0..SOCKETS {
        let gateway: SocketAddr = site.gateways[number % site.gateways.len()];
        let from = Ipv4Addr::new(127, 0, 1, u8::try_from(number / SOCKETS_PER_ADDRESS)? + 1);
        open.push(site.socket(gateway, from, visit).await?);
    }
    let mut waiting = tokio::task::JoinSet::new();
    for mut socket in open {
        let revoking = Arc::clone(&revoking);
        waiting.spawn(async move {
            while let Some(Ok(message)) = socket.next().await {
                if message.is_close() {
                    break;
                }
            }
            let closed = Instant::now();
            if !revoking.load(Ordering::Acquire) {
                bail!("a socket was closed before the link was revoked");
            }
            Ok(closed)
        });
    }
    tokio::time::sleep(BEFORE).await;
    revoking.store(true, Ordering::Release);
    site.revoke(owner, visit).await?;
    let acknowledged = Instant::now();
    let mut closed = Vec::with_capacity(SOCKETS);
    while let Some(at) = tokio::time::timeout(DEADLINE, waiting.join_next()).await.context("sockets stay open")? {
        closed.push(at??.saturating_duration_since(acknowledged));
    }
    Ok(closed)
}
