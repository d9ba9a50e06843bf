//! Wakes: 1,000 requests through 4 gateways to a sleeping runtime; how many wakes, what was lost, when the app had them

use std::net::Ipv4Addr;

use anyhow::{Context, Result, ensure};
use hyper::StatusCode;
use serde_json::Value;

use super::Extent;
use crate::machine::{self, Cores};
use crate::site::{Connection, Site, Visit};
use crate::verdict::{Goal, Series, Verdicts};

const GATEWAYS: usize = 4;
const REQUESTS: usize = 1_000;
/// Connections from one loopback address: below the gateway's limit.
const PER_ADDRESS: usize = 250;

/// What one wake came to.
struct Woken {
    wakes: usize,
    lost: usize,
    failed: usize,
    /// Milliseconds after the log had the runtime ready, by the same machine's clock.
    first_ms: f64,
    median_ms: f64,
    last_ms: f64,
}

pub(crate) fn run(cores: &Cores, extent: &Extent, verdicts: &mut Verdicts) -> Result<()> {
    println!(
        "wake: {REQUESTS} requests at once through {GATEWAYS} gateways, each on a connection of its own, to a runtime that sleeps"
    );
    println!("(NATS and PostgreSQL, API, projector, reactors and gateways as processes; all share all cores)");
    println!(
        "(released: the app has the request; counted from the time that the log gave to the runtime's being ready)"
    );
    cores.use_all()?;
    let runtime = machine::runtime()?;
    runtime.block_on(async {
        let site = Site::cluster(GATEWAYS).await?;
        let visit = site.visit().await?;
        site.until_it_answers(&visit).await?;
        let mut first = Series::new("first request released after ready", "ms");
        let mut median = Series::new("half of them released after ready", "ms");
        let mut last = Series::new("last request released after ready", "ms");
        let (mut wakes, mut lost, mut failed) = (Vec::new(), 0, 0);
        for _ in 0..extent.rounds {
            let woken = once(&site, &visit).await?;
            wakes.push(woken.wakes);
            lost += woken.lost;
            failed += woken.failed;
            first.push(woken.first_ms);
            median.push(woken.median_ms);
            last.push(woken.last_ms);
        }
        println!("  wakes in each round: {wakes:?}");
        println!("{first}\n{median}\n{last}");
        let most = wakes.iter().copied().max().unwrap_or(0).max(2 - wakes.iter().copied().min().unwrap_or(0).min(2));
        verdicts.judge("wakes in a round (1, neither more nor less)", most as f64, "wakes", Goal::AtMost(1.0));
        verdicts.judge("requests that the app never had", lost as f64, "requests", Goal::AtMost(0.0));
        verdicts.judge("requests not answered by the app's 200", failed as f64, "requests", Goal::AtMost(0.0));
        verdicts.judge("last request released after ready, median round", last.median(), "ms", Goal::AtMost(50.0));
        Ok(())
    })
}

async fn once(site: &Site, visit: &Visit) -> Result<Woken> {
    site.sleep().await?;
    let wakes_before = count(&site.events().await?, "runtime.wake_requested");
    let mut connections = Vec::with_capacity(REQUESTS);
    for number in 0..REQUESTS {
        let from = Ipv4Addr::new(127, 0, 2, u8::try_from(number / PER_ADDRESS)? + 1);
        connections.push(Connection::open(site.gateways[number % GATEWAYS], from).await?);
    }
    let mut requests = tokio::task::JoinSet::new();
    for mut connection in connections {
        let request = site.fetch(visit, "/held")?;
        requests.spawn(async move { connection.send(request).await });
    }
    let mut failed = 0;
    while let Some(answer) = requests.join_next().await {
        let answer = answer??;
        if answer.status != StatusCode::OK {
            failed += 1;
            eprintln!("  {}: {}", answer.status, String::from_utf8_lossy(&answer.body));
        }
    }
    let mut connection = Connection::open(site.gateways[0], Ipv4Addr::LOCALHOST).await?;
    let arrivals = connection.send(site.fetch(visit, "/arrivals")?).await?;
    let mut arrivals: Vec<u64> = String::from_utf8_lossy(&arrivals.body)
        .lines()
        .map(str::parse)
        .collect::<Result<_, _>>()
        .context("arrivals")?;
    arrivals.sort_unstable();
    let events = site.events().await?;
    let ready = events.iter().rev().find(|event| is(event, "runtime.ready")).context("no runtime became ready")?;
    let ready_us = super::instant_us(ready["time"].as_str().context("an event without a time")?)?;
    ensure!(!arrivals.is_empty(), "the app had no request");
    let after = |index: usize| (arrivals[index] as f64 - ready_us as f64) / 1_000.0;
    Ok(Woken {
        wakes: count(&events, "runtime.wake_requested") - wakes_before,
        lost: REQUESTS.saturating_sub(arrivals.len()),
        failed,
        first_ms: after(0),
        median_ms: after(arrivals.len() / 2),
        last_ms: after(arrivals.len() - 1),
    })
}

fn is(event: &Value, kind: &str) -> bool {
    event["type"].as_str().is_some_and(|found| found.contains(&format!("{kind}.v")))
}

fn count(events: &[Value], kind: &str) -> usize {
    events.iter().filter(|event| is(event, kind)).count()
}
