//! Wake path: what the control plane takes of a wake, before the host has its order and after the service is ready; `dev`, NATS, an agent

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hyper::StatusCode;
use serde_json::Value;

use super::Extent;
use crate::machine::{self, Cores};
use crate::site::{Connection, Site, Visit};
use crate::verdict::{Goal, Latencies, Verdicts};

const GATEWAYS: usize = 4;
/// As the host's traces say it.
const ORDERED: &str = "a wake is ordered";
const READY: &str = "a runtime is ready";
const DEADLINE: Duration = Duration::from_secs(10);

/// What one wake took, each by the machine's clock.
struct Woken {
    /// From the request's being sent to the host's having the order.
    before: Duration,
    /// From the host's last service being ready to the app's answer to that request.
    after: Duration,
    /// From the request to the answer, the app's share included.
    all: Duration,
}

pub(crate) fn run(cores: &Cores, extent: &Extent, verdicts: &mut Verdicts) -> Result<()> {
    println!(
        "wake-path: {} wakes of one small service, one after the other, each by a request that waits for it",
        extent.wakes
    );
    println!(
        "(before: the request is sent -> the host has the order; after: the host finds the last service ready -> the app's answer is here;"
    );
    println!(
        " in between, and not counted: checkout, start and probes. From the host's traces and from outside, one machine's clock, all cores)"
    );
    cores.use_all()?;
    let runtime = machine::runtime()?;
    runtime.block_on(async {
        if extent.measures("dev") {
            println!("\n`envforge dev`: one process, embedded log, its own host");
            wakes(&Site::dev().await?, extent, "dev", 20.0, verdicts).await?;
        }
        if extent.measures("nats") {
            println!(
                "\nNATS and PostgreSQL, API, projector, reactors with their host and {GATEWAYS} gateways as processes"
            );
            wakes(&Site::cluster(GATEWAYS).await?, extent, "NATS", 60.0, verdicts).await?;
        }
        if extent.measures("agent") {
            println!("\nthe same, the host being an agent that is connected to `serve agents`");
            wakes(&Site::cluster_with_agent(GATEWAYS).await?, extent, "NATS, agent", 60.0, verdicts).await?;
        }
        Ok(())
    })
}

async fn wakes(site: &Site, extent: &Extent, what: &str, goal_ms: f64, verdicts: &mut Verdicts) -> Result<()> {
    let visit = site.visit().await?;
    // The first wake clones the repository, and processes have things to do for the first time.
    site.until_it_answers(&visit).await?;
    let mut woken = Vec::new();
    for number in 0..extent.wakes {
        woken.push(once(site, &visit, number as usize % site.gateways.len()).await?);
    }
    let told = |name: &str, of: &dyn Fn(&Woken) -> Duration| {
        let latencies = Latencies::new(woken.iter().map(of).collect());
        let [p50, p90, p99, worst] = [50.0, 90.0, 99.0, 100.0].map(|percent| latencies.percentile_ms(percent));
        println!("  {name:<36} p50 {p50:>7.2} ms, p90 {p90:>7.2} ms, p99 {p99:>7.2} ms, worst {worst:>7.2} ms");
        p99
    };
    told("before: request -> order at the host", &|woken| woken.before);
    told("after: ready -> answer", &|woken| woken.after);
    let p99 = told("both", &|woken| woken.before + woken.after);
    told("the whole wake, with the app's share", &|woken| woken.all);
    verdicts.judge(&format!("{what}: both, p99 of {} wakes", woken.len()), p99, "ms", Goal::AtMost(goal_ms));
    Ok(())
}

async fn once(site: &Site, visit: &Visit, gateway: usize) -> Result<Woken> {
    site.sleep().await?;
    let before = instants(&site.host_traces())?;
    let mut connection = Connection::open(site.gateways[gateway], Ipv4Addr::LOCALHOST).await?;
    let request = site.fetch(visit, "/ping")?;
    let (sent_at, sent) = (super::now_us(), Instant::now());
    let answer = connection.send(request).await?;
    let all = sent.elapsed();
    ensure!(answer.status == StatusCode::OK, "{}: {}", answer.status, String::from_utf8_lossy(&answer.body));
    let answered_at = sent_at + u64::try_from(all.as_micros())?;
    let deadline = Instant::now() + DEADLINE;
    let (ordered_at, ready_at) = loop {
        // What a process traces may come after what it led to.
        let seen = instants(&site.host_traces())?;
        let mut new =
            seen.iter().filter(|(epoch, at)| at.1.is_some() && before.get(epoch).is_none_or(|at| at.1.is_none()));
        if let (Some((_, (ordered, Some(ready)))), None) = (new.next(), new.next()) {
            break (*ordered, *ready);
        }
        ensure!(Instant::now() < deadline, "the host did not trace one wake: {seen:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    ensure!(sent_at <= ordered_at && ordered_at <= ready_at && ready_at <= answered_at, "clocks disagree");
    Ok(Woken {
        before: Duration::from_micros(ordered_at - sent_at),
        after: Duration::from_micros(answered_at - ready_at),
        all,
    })
}

/// By the wake's epoch: when it was ordered first and when its runtime was ready, in microseconds since 1970.
fn instants(traces: &str) -> Result<BTreeMap<u64, (u64, Option<u64>)>> {
    let mut found = BTreeMap::new();
    for line in traces.lines().filter(|line| line.contains(ORDERED) || line.contains(READY)) {
        // The last line may be under way.
        let Ok(trace) = serde_json::from_str::<Value>(line) else { continue };
        let epoch = trace["fields"]["epoch"].as_u64().context("a trace of a wake without its epoch")?;
        let at = super::instant_us(trace["timestamp"].as_str().context("a trace without a timestamp")?)?;
        if trace["fields"]["message"] == ORDERED {
            found.entry(epoch).or_insert((at, None));
        } else if let Some((_, ready)) = found.get_mut(&epoch) {
            ready.get_or_insert(at);
        }
    }
    Ok(found)
}
