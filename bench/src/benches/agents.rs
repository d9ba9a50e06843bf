//! Agents: 1,000 connected to one control plane; its processor time and memory without them, with them, and how fast they come back

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use envforge_agent::{Agent, AgentIdentity, Config, StreamHandler, enrol};
use envforge_domain::enrolment::EnrolmentToken;
use envforge_domain::host::Capacity;
use envforge_domain::time::SharedClock;
use envforge_identity::clock::SystemClock;
use envforge_runtime::LocalHost;
use envforge_testkit::TestDir;
use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::Extent;
use crate::machine::{self, Cores, cpu_of, resident_mib_of};
use crate::site::Site;
use crate::verdict::{Goal, Series, Verdicts};

/// Until all are connected and the first facts are told.
const SETTLE: Duration = Duration::from_secs(10);
const DEADLINE: Duration = Duration::from_secs(300);

pub(crate) fn run(cores: &Cores, extent: &Extent, verdicts: &mut Verdicts) -> Result<()> {
    let agents = extent.agents;
    println!("agents: {agents} of them, each with its own certificate and connection, to one `envforge dev`");
    println!("(the agents are the product's own, in this process, with empty hosts; all share all cores)");
    cores.use_all()?;
    let runtime = machine::runtime()?;
    runtime.block_on(async {
        let site = Site::dev().await?;
        let process = site.process().id();
        let place = TestDir::new();
        let mut idle = Series::new("without agents: processor", "core-%");
        let mut busy = Series::new("with heartbeats of all agents: processor", "core-%");
        let mut memory = Series::new("with all agents: resident", "MiB");
        let mut back = Series::new("all connected again after a cut", "s");
        // Heartbeats come every 5 seconds, lease renewals every 10.
        let turn = extent.turn().max(Duration::from_secs(20));
        for _ in 0..extent.rounds {
            idle.push(core_percent(process, turn).await?);
        }
        let before_mib = resident_mib_of(process)?;
        let began = Instant::now();
        let identities = enrolled(&site, place.path(), agents).await?;
        println!("  {agents} enrolled one after the other within {:.1} s", began.elapsed().as_secs_f64());
        for round in 0..extent.rounds {
            let began = Instant::now();
            let stop = CancellationToken::new();
            let mut running = JoinSet::new();
            for (number, identity) in identities.iter().enumerate() {
                let state = place.join(format!("runtime-{number}"));
                let (host, _) = LocalHost::open(envforge_runtime::Config::new(state)).await?;
                running.spawn(agent(&site, host, identity.clone())?.run(stop.clone()));
            }
            until_connected(&site, agents).await?;
            if round > 0 {
                back.push(began.elapsed().as_secs_f64());
            }
            tokio::time::sleep(SETTLE).await;
            busy.push(core_percent(process, turn).await?);
            memory.push(resident_mib_of(process)?);
            stop.cancel();
            while let Some(ended) = running.join_next().await {
                ended??;
            }
            until_connected(&site, 0).await?;
        }
        println!("{idle}\n{busy}\n{memory}\n{back}");
        println!("  before the first agent: {before_mib:.0} MiB");
        let each_hundred = (busy.median() - idle.median()) * 100.0 / f64::from(agents);
        verdicts.judge("processor of each 100 agents", each_hundred, "core-%", Goal::AtMost(1.0));
        verdicts.judge("resident memory in all", memory.worst(), "MiB", Goal::AtMost(300.0));
        Ok(())
    })
}

async fn core_percent(process: u32, turn: Duration) -> Result<f64> {
    let (before, began) = (cpu_of(process)?, Instant::now());
    tokio::time::sleep(turn).await;
    let used = cpu_of(process)?.saturating_sub(before);
    Ok(used.as_secs_f64() * 100.0 / began.elapsed().as_secs_f64())
}

async fn enrolled(site: &Site, place: &Path, agents: u32) -> Result<Vec<AgentIdentity>> {
    let clock: SharedClock = Arc::new(SystemClock);
    let at = site.agents()?;
    let mut identities = Vec::new();
    for number in 0..agents {
        let body = json!({ "name": format!("bench-{number}") });
        let issued = site.call("POST", "/v1/orgs/acme/hosts", Some(&body)).await?;
        let token = EnrolmentToken::parse(issued["token"].as_str().context("an enrolment without a token")?)?;
        let folder = place.join(format!("agent-{number}"));
        std::fs::create_dir(&folder)?;
        let (machine, capacity) = (format!("bench-{number}"), Capacity { cpu_millicores: 4_000, memory_mib: 8_192 });
        identities.push(enrol(&at, &folder, &token, &machine, capacity, "bench", &clock).await?);
    }
    Ok(identities)
}

fn agent(site: &Site, host: LocalHost, identity: AgentIdentity) -> Result<Agent> {
    let clock: SharedClock = Arc::new(SystemClock);
    let config = Config { control_plane: site.agents()?, agent_version: "bench".to_owned(), clock };
    let streams: StreamHandler = Arc::new(|_, _| None);
    Ok(Agent::new(config, host, identity, streams))
}

/// As the process's own metrics have it.
async fn until_connected(site: &Site, agents: u32) -> Result<()> {
    let until = Instant::now() + DEADLINE;
    loop {
        let metrics = site.call("GET", "/metrics", None).await?;
        let metrics = metrics.as_str().unwrap_or_default();
        let line = metrics.lines().find_map(|line| line.strip_prefix("envforge_agents_connected "));
        if line.and_then(|count| count.trim().parse::<f64>().ok()) == Some(f64::from(agents)) {
            return Ok(());
        }
        anyhow::ensure!(Instant::now() < until, "not all agents connected or left in time: {line:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
