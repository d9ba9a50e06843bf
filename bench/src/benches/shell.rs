//! Shells: how long a typed key takes to come back from a terminal, and how fast 100 MB come out of a command, by a pipe and by a
//! terminal, beside a terminal that is read and nothing else.

use std::ffi::OsString;
use std::io::Read as _;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures_util::{SinkExt, StreamExt};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use super::Extent;
use crate::load::Socket;
use crate::machine::{self, Cores};
use crate::site::Site;
use crate::verdict::{Goal, Latencies, Series, Verdicts};

/// Keys of one round.
const KEYS: u32 = 500;
const BYTES: usize = 100_000_000;

pub(crate) fn run(cores: &Cores, extent: &Extent, verdicts: &mut Verdicts) -> Result<()> {
    println!(
        "shell: {KEYS} keys typed into a terminal one after the other, and 100 MB out of a command, over one WebSocket"
    );
    println!("(of `dev`; and of an API over a relay to the machine of reactors in a process of their own, over NATS)");
    println!(
        "(without a runtime; the terminal with tmux and without; output by a pipe and by a terminal; all share all cores)"
    );
    cores.use_all()?;
    let runtime = machine::runtime()?;
    runtime.block_on(async {
        if extent.measures("dev") {
            measure("dev", &Site::dev().await?, extent, verdicts).await?;
        }
        if extent.measures("nats") {
            let site = Site::cluster(1).await?;
            until_reached(&site).await?;
            measure("relay", &site, extent, verdicts).await?;
        }
        Ok(())
    })
}

async fn measure(place: &str, site: &Site, extent: &Extent, verdicts: &mut Verdicts) -> Result<()> {
    let named = |name: &str| format!("{place}: {name}");
    for (name, lasting) in [("a key's echo, plain terminal, p99", false), ("a key's echo, tmux, p99", true)] {
        let mut series = Series::new(named(name), "ms");
        for _ in 0..extent.rounds {
            series.push(echoes(site, lasting).await?);
        }
        println!("{series}");
        verdicts.judge(&format!("{}, median round", named(name)), series.median(), "ms", Goal::AtMost(5.0));
    }
    let names = ["100 MB of output of a command", "100 MB of output of a terminal"].map(named);
    let [mut piped, mut terminal] = names.clone().map(|name| Series::new(name, "MB/s"));
    let mut bare = Series::new(named("a terminal that is read and no more"), "MB/s");
    for _ in 0..extent.rounds {
        let words = ["head", "-c", &BYTES.to_string(), "/dev/zero"].map(str::to_owned);
        piped.push(output(site, json!({ "open": "command", "words": words })).await?);
        let order = json!({ "open": "terminal", "columns": 80, "rows": 24, "term": "xterm", "words": words });
        terminal.push(output(site, order).await?);
        bare.push(tokio::task::spawn_blocking(bare_terminal).await??);
    }
    println!("{piped}\n{terminal}\n{bare}");
    for (name, series) in names.iter().zip([&piped, &terminal]) {
        verdicts.judge(&format!("{name}, median round"), series.median(), "MB/s", Goal::AtLeast(100.0));
    }
    // The kernel's terminal itself lets hardly more than that through at times.
    let beside = terminal.median() / bare.median();
    // Over a relay a third process copies it.
    let goal = if place == "dev" { 0.8 } else { 0.5 };
    verdicts.judge(&named("output of a terminal, ours / read and no more"), beside, "x", Goal::AtLeast(goal));
    Ok(())
}

/// Until the API has found the process that has the machine.
async fn until_reached(site: &Site) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    while let Err(refused) = open(site, &json!({ "open": "command", "words": ["true"] })).await {
        ensure!(Instant::now() < deadline, "the machine is not reached: {refused}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

/// Opens a shell, and comes back once it is open.
async fn open(site: &Site, order: &Value) -> Result<Socket> {
    let mut socket = site.shell().await?;
    socket.send(Message::Text(order.to_string().into())).await?;
    loop {
        match socket.next().await.context("the shell closed before it was open")?? {
            Message::Text(text) if text.contains("\"opened\"") => return Ok(socket),
            Message::Text(text) if text.contains("\"error\"") => bail!("{text}"),
            _ => {}
        }
    }
}

/// The next output; `None` once it is over.
async fn next(socket: &mut Socket) -> Result<Option<usize>> {
    loop {
        match socket.next().await.context("the shell broke off")?? {
            Message::Binary(bytes) => return Ok(Some(bytes.len() - 1)),
            Message::Text(text) if text.contains("\"over\"") => return Ok(None),
            Message::Close(_) => bail!("the shell was closed"),
            _ => {}
        }
    }
}

/// Milliseconds, the 99th of 100 keys: of what the terminal itself echoes.
async fn echoes(site: &Site, lasting: bool) -> Result<f64> {
    let order = json!({ "open": "terminal", "columns": 80, "rows": 24, "term": "xterm", "lasting": lasting });
    let mut socket = open(site, &order).await?;
    settle(&mut socket, 500).await;
    socket.send(Message::Binary(b"\0cat\r".to_vec().into())).await?;
    settle(&mut socket, 500).await;
    let mut latencies = Vec::new();
    for key in 0..KEYS {
        let begun = Instant::now();
        // Short lines: a terminal takes no more than 4,096 characters of one.
        let typed = if key % 50 == 49 { b"\0\r" } else { b"\0a" };
        socket.send(Message::Binary(typed.to_vec().into())).await?;
        ensure!(next(&mut socket).await?.is_some(), "the terminal ended");
        latencies.push(begun.elapsed());
        if key % 50 == 49 {
            // `cat` says the line once more.
            settle(&mut socket, 50).await;
        }
    }
    Ok(Latencies::new(latencies).percentile_ms(99.0))
}

/// Until nothing has come for so long.
async fn settle(socket: &mut Socket, quiet_ms: u64) {
    while tokio::time::timeout(Duration::from_millis(quiet_ms), next(socket)).await.is_ok() {}
}

/// MB a second.
async fn output(site: &Site, order: Value) -> Result<f64> {
    let mut socket = open(site, &order).await?;
    let begun = Instant::now();
    let mut bytes = 0;
    while let Some(more) = next(&mut socket).await? {
        bytes += more;
    }
    let seconds = begun.elapsed().as_secs_f64();
    ensure!(bytes == BYTES, "{bytes} bytes came");
    Ok(bytes as f64 / 1e6 / seconds)
}

/// MB a second, of what the kernel's terminal itself lets through.
fn bare_terminal() -> Result<f64> {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    let path = PathBuf::from(OsString::from_vec(ptsname(&ours, Vec::new())?.into_bytes()));
    let theirs = std::fs::OpenOptions::new().read(true).write(true).open(path)?;
    let begun = Instant::now();
    let words = ["-c", &BYTES.to_string(), "/dev/zero"];
    let mut writer = Command::new("head").args(words).stdin(Stdio::null()).stdout(Stdio::from(theirs)).spawn()?;
    let (mut ours, mut bytes) = (std::fs::File::from(ours), 0);
    let mut buffer = vec![0; 64 * 1024];
    while bytes < BYTES {
        let read = ours.read(&mut buffer).context("the terminal was hung up")?;
        bytes += read;
    }
    let seconds = begun.elapsed().as_secs_f64();
    ensure!(writer.wait()?.success() && bytes == BYTES, "{bytes} bytes came");
    Ok(bytes as f64 / 1e6 / seconds)
}
