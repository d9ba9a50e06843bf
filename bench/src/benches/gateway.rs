//! Gateway: processor time of a request beside nginx, without a check and with auth_request; WebSockets, latency, memory

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use envforge_testkit::TestDir;
use envforge_testkit::tools::on_path;
use tokio::runtime::Runtime;

use super::Extent;
use crate::load::{self, Run, Wrk};
use crate::machine::{self, Cores, cpu_of, resident_mib_of};
use crate::peers::{self, Proxies};
use crate::processes::{self, Served};
use crate::verdict::{Goal, Series, Verdicts};
use crate::{commits, load::Socket};

/// Sessions that each check looks among.
const SESSIONS: u64 = 1_000_000;
/// Sessions that make the load; all of one link, as reviewers of one branch are.
const SESSIONS_LOADED: u64 = 4_096;
const CONNECTIONS: usize = 64;
const SOCKETS: usize = 50;
const LARGE_CONNECTIONS: usize = 8;

/// Who stands in front of the app.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Proxy {
    Ours,
    Plain,
    Asking,
}

struct Setting {
    ours: Served,
    check: Served,
    nginx: Proxies,
    wrk: Wrk,
    host: String,
}

impl Setting {
    fn port(&self, proxy: Proxy) -> u16 {
        match proxy {
            Proxy::Ours => self.ours.port,
            Proxy::Plain => self.nginx.plain_port,
            Proxy::Asking => self.nginx.asking_port,
        }
    }

    /// What has to work for a request that goes through this proxy, the app left out.
    fn processes(&self, proxy: Proxy) -> Vec<u32> {
        match proxy {
            Proxy::Ours => vec![self.ours.id()],
            Proxy::Plain => vec![self.nginx.plain.worker()],
            Proxy::Asking => vec![self.nginx.asking.worker(), self.check.id()],
        }
    }

    fn cpu(&self, proxy: Proxy) -> Result<Duration> {
        self.processes(proxy).into_iter().map(cpu_of).sum()
    }

    /// One turn of wrk: what it saw, and processor microseconds a request.
    fn turn(&self, proxy: Proxy, path: &str, connections: usize, length: Duration) -> Result<(Run, f64)> {
        let before = self.cpu(proxy)?;
        let run = self.wrk.run(self.port(proxy), path, connections, length)?;
        let used = self.cpu(proxy)?.saturating_sub(before);
        Ok((run, used.as_secs_f64() * 1e6 / run.requests))
    }
}

pub(crate) fn run(cores: &Cores, extent: &Extent, verdicts: &mut Verdicts) -> Result<()> {
    println!(
        "gateway: our gateway and each nginx on core {} with one worker; app, wrk and this program on {:?}",
        cores.measured, cores.load
    );
    println!(
        "browser-like headers; {SESSIONS} sessions, {SESSIONS_LOADED} of them in turn; ours strips its cookie; plain http, HTTP/1.1"
    );
    let runtime = machine::runtime()?;
    let dir = TestDir::new();
    let (_app, app) = peers::app(dir.path())?;
    let echo = runtime.block_on(load::echo())?;
    let log = dir.join("log");
    runtime.block_on(processes::fill(&log, SESSIONS, SESSIONS_LOADED, ([127, 0, 0, 1], app).into(), echo))?;
    let ours = Served::gateway(cores, dir.path(), &log)?;
    let check = Served::check(cores, dir.path(), SESSIONS)?;
    let nginx = peers::proxies(cores, dir.path(), app, echo.port(), check.port)?;
    let host = processes::host(0, ours.port);
    let wrk = Wrk::new(dir.path(), &host, (0..SESSIONS_LOADED).map(commits::cookie))?;
    let at_start = resident_mib_of(ours.id())?;
    let setting = Setting { ours, check, nginx, wrk, host };

    small(&setting, extent, verdicts)?;
    larger(&setting, extent, verdicts)?;
    alone(&setting, extent, verdicts)?;
    sockets(&runtime, &setting, extent, verdicts)?;
    println!();
    let resident = resident_mib_of(setting.ours.id())?;
    println!("  resident memory of ours: {at_start:.0} MiB when the views were full, {resident:.0} MiB after the load");
    verdicts.judge("resident memory", resident, "MiB", Goal::AtMost(200.0));
    syscalls(&setting, dir.path(), verdicts)
}

/// Contenders in turn; each round begins with another one.
fn turns(round: u32, contenders: &[Proxy]) -> Vec<usize> {
    let count = contenders.len();
    (0..count).map(|index| (index + round as usize) % count).collect()
}

fn name(proxy: Proxy) -> &'static str {
    match proxy {
        Proxy::Ours => "ours",
        Proxy::Plain => "nginx proxy_pass, no check",
        Proxy::Asking => "nginx + auth_request + session check",
    }
}

fn small(setting: &Setting, extent: &Extent, verdicts: &mut Verdicts) -> Result<()> {
    println!("\n1 KiB, {CONNECTIONS} keep-alive connections");
    let contenders = [Proxy::Ours, Proxy::Plain, Proxy::Asking];
    let series = |unit| contenders.map(|proxy| Series::new(name(proxy), unit));
    let (mut cpu, mut rate, mut p99) = (series("us/request"), series("requests/s"), series("us p99"));
    for round in 0..extent.rounds {
        for index in turns(round, &contenders) {
            let (run, used) = setting.turn(contenders[index], "1k", CONNECTIONS, extent.turn())?;
            cpu[index].push(used);
            rate[index].push(run.per_second);
            p99[index].push(run.p99_us);
        }
    }
    cpu.iter().chain(&rate).chain(&p99).for_each(|series| println!("{series}"));
    let ratio = cpu[0].median() / cpu[1].median();
    verdicts.judge("1 KiB processor time, ours / nginx without a check", ratio, "x", Goal::AtMost(1.15));
    let ratio = cpu[0].median() / cpu[2].median();
    verdicts.judge("1 KiB processor time, ours / nginx + auth_request", ratio, "x", Goal::AtMost(0.60));
    Ok(())
}

fn larger(setting: &Setting, extent: &Extent, verdicts: &mut Verdicts) -> Result<()> {
    for (path, what, connections, goal) in
        [("64k", "64 KiB", CONNECTIONS, 1.4), ("10m", "10 MiB", LARGE_CONNECTIONS, 1.0)]
    {
        println!("\n{what}, {connections} keep-alive connections; nginx with buffers of 16 x 64 KiB");
        let contenders = [Proxy::Ours, Proxy::Plain];
        let mut cpu = contenders.map(|proxy| Series::new(name(proxy), "us/request"));
        let mut rate = contenders.map(|proxy| Series::new(name(proxy), "requests/s"));
        for round in 0..extent.rounds {
            for index in turns(round, &contenders) {
                let (run, used) = setting.turn(contenders[index], path, connections, extent.turn())?;
                cpu[index].push(used);
                rate[index].push(run.per_second);
            }
        }
        cpu.iter().chain(&rate).for_each(|series| println!("{series}"));
        let ratio = cpu[0].median() / cpu[1].median();
        verdicts.judge(&format!("{what} processor time, ours / nginx"), ratio, "x", Goal::AtMost(goal));
    }
    Ok(())
}

fn alone(setting: &Setting, extent: &Extent, verdicts: &mut Verdicts) -> Result<()> {
    println!("\n1 KiB, one connection");
    let contenders = [Proxy::Ours, Proxy::Plain];
    let mut p50 = contenders.map(|proxy| Series::new(name(proxy), "us p50"));
    for round in 0..extent.rounds {
        for index in turns(round, &contenders) {
            let (run, _) = setting.turn(contenders[index], "1k", 1, extent.turn())?;
            p50[index].push(run.p50_us);
        }
    }
    p50.iter().for_each(|series| println!("{series}"));
    let more = p50[0].median() - p50[1].median();
    verdicts.judge("one connection, p50 above nginx", more, "us", Goal::AtMost(10.0));
    Ok(())
}

fn sockets(runtime: &Runtime, setting: &Setting, extent: &Extent, verdicts: &mut Verdicts) -> Result<()> {
    println!("\nWebSocket, {SOCKETS} sockets, messages of 128 bytes there and back");
    let contenders = [Proxy::Ours, Proxy::Plain];
    let mut cpu = contenders.map(|proxy| Series::new(name(proxy), "us/message"));
    let mut rate = contenders.map(|proxy| Series::new(name(proxy), "messages/s"));
    for round in 0..extent.rounds {
        for index in turns(round, &contenders) {
            let proxy = contenders[index];
            let (messages, length, used) = runtime.block_on(async {
                let mut open: Vec<Socket> = Vec::with_capacity(SOCKETS);
                for number in 0..SOCKETS as u64 {
                    open.push(load::open_socket(setting.port(proxy), &setting.host, &commits::cookie(number)).await?);
                }
                let before = setting.cpu(proxy)?;
                let (messages, length) = load::echo_load(open, extent.turn()).await?;
                anyhow::Ok((messages, length, setting.cpu(proxy)?.saturating_sub(before)))
            })?;
            cpu[index].push(used.as_secs_f64() * 1e6 / messages as f64);
            rate[index].push(messages as f64 / length.as_secs_f64());
        }
    }
    cpu.iter().chain(&rate).for_each(|series| println!("{series}"));
    let ratio = cpu[0].median() / cpu[1].median();
    verdicts.judge("WebSocket processor time, ours / nginx", ratio, "x", Goal::AtMost(1.15));
    Ok(())
}

/// Counted by the kernel's tracepoint, which leaves the timing alone.
fn syscalls(setting: &Setting, dir: &Path, verdicts: &mut Verdicts) -> Result<()> {
    println!("\nsyscalls a request, 1 KiB, {CONNECTIONS} connections, counted by `perf stat`");
    let Some(perf) = on_path("perf") else {
        println!("  not measured: `perf` is missing");
        return Ok(());
    };
    let mut counts = [0.0; 2];
    for (index, proxy) in [Proxy::Ours, Proxy::Plain].into_iter().enumerate() {
        let [process] = setting.processes(proxy)[..] else { continue };
        let file = dir.join(format!("syscalls-{index}"));
        let mut counter = Command::new(&perf);
        counter.args(["stat", "--field-separator", ",", "--event", "raw_syscalls:sys_enter", "--output"]).arg(&file);
        let mut counter =
            counter.args(["--pid", &process.to_string()]).stderr(Stdio::piped()).spawn().context("perf")?;
        // It writes its file only at the end; a moment lets it begin before the load does.
        std::thread::sleep(Duration::from_millis(300));
        let run = setting.wrk.run(setting.port(proxy), "1k", CONNECTIONS, Duration::from_secs(2));
        // The end that perf expects: it then writes what it counted.
        let id = nix::unistd::Pid::from_raw(i32::try_from(counter.id())?);
        let _ = nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGINT);
        counter.wait()?;
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        let counted = text.lines().find(|line| line.contains("sys_enter")).and_then(|line| line.split(',').next());
        let Some(calls) = counted.and_then(|count| count.parse::<f64>().ok()) else {
            println!("  not measured: perf may not count system calls here");
            return Ok(());
        };
        counts[index] = calls / run?.requests;
        println!("  {:<44} {:.2}", name(proxy), counts[index]);
    }
    verdicts.judge("syscalls a request", counts[0], "calls", Goal::AtMost(4.6));
    Ok(())
}
