//! `envforge logs`: what a workspace's services write, as they write it.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::time::{Duration, Instant};

use clap::Args;
use envforge_domain::limits::MACHINE_START_WAIT;
use futures_util::future::try_join_all;
use reqwest::Response;
use serde::Deserialize;

use super::Context;
use super::client::{HOST_STARTING, Query, cause};
use super::failure::{Exit, Failure};
use super::shell_connection::STARTING;
use super::workspace::Meant;

/// A line that is longer is shown in pieces.
const LINE_BYTES_MAX: usize = 64 * 1024;
/// Before logs are asked for again whose host is on its way up.
const STARTING_PAUSE: Duration = Duration::from_secs(1);

#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  envforge logs signed-links                all services, each line with its service's name
  envforge logs signed-links web --follow   one service, byte by byte")]
pub(crate) struct LogsArguments {
    #[command(flatten)]
    meant: Meant,
    /// Service of envforge.yml [default: all of them]
    service: Option<String>,
    /// Stay, and show what is written from now on
    #[arg(long, short)]
    follow: bool,
    /// Last lines to begin with
    #[arg(long, value_name = "COUNT", default_value_t = 100, value_parser = clap::value_parser!(u16).range(..=10_000))]
    lines: u16,
}

#[derive(Deserialize)]
struct Shown {
    #[serde(default)]
    services: Vec<Service>,
}

#[derive(Deserialize)]
struct Service {
    name: String,
}

pub(super) async fn run(context: &Context, arguments: LogsArguments) -> Result<Exit, Failure> {
    let LogsArguments { meant, service, follow, lines } = arguments;
    let org = context.org().await?;
    let workspace = meant.find(context, &org).await?;
    let one = service.is_some();
    let services = match service {
        Some(service) => vec![service],
        None => {
            let runtime = context.client.get(&["v1", "orgs", &org, "workspaces", &workspace, "runtime"], &[]).await?;
            let shown: Shown = runtime.view()?;
            shown.services.into_iter().map(|service| service.name).collect()
        }
    };
    let width = services.iter().map(String::len).max().unwrap_or(0);
    let pieces: BTreeMap<_, _> = services
        .iter()
        .map(|name| (name.as_str(), if one { None } else { Some(format!("{name:width$} | ")) }))
        .collect();
    let (org, workspace, starting) = (&org, &workspace, Cell::new(false));
    let shown = try_join_all(pieces.iter().map(async |(service, prefix)| {
        let segments = ["v1", "orgs", org, "workspaces", workspace, "services", service, "logs"];
        let query = [("lines", Some(lines.to_string())), ("follow", follow.then(|| "true".to_owned()))];
        let mut response = match once_started(context, &segments, &query, &starting).await {
            Ok(response) => response,
            // It has not written anything yet; others may have.
            Err(Failure::Refused(problem)) if problem.status == 404 && !one => return Ok(false),
            Err(failure) => return Err(failure),
        };
        let mut line = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| {
            Failure::unreachable(format!("the connection to the API broke off: {}", cause(&error)), "")
        })? {
            match prefix {
                None => put(&[&chunk])?,
                Some(prefix) => {
                    for piece in chunk.split_inclusive(|byte| *byte == b'\n') {
                        line.extend_from_slice(piece);
                        if line.ends_with(b"\n") || line.len() >= LINE_BYTES_MAX {
                            whole(prefix, &mut line)?;
                        }
                    }
                }
            }
        }
        if let Some(prefix) = prefix
            && !line.is_empty()
        {
            whole(prefix, &mut line)?;
        }
        Ok(true)
    }))
    .await?;
    if !shown.contains(&true) {
        context.output.note("No service has written anything here yet.");
    }
    Ok(Exit::Ok)
}

/// The answer, once the machine that the logs lie on is up. `told`: whether whoever waits was told so.
async fn once_started(
    context: &Context,
    segments: &[&str],
    query: &Query<'_>,
    told: &Cell<bool>,
) -> Result<Response, Failure> {
    let begun = Instant::now();
    loop {
        match context.client.stream(segments, query).await {
            Err(Failure::Refused(problem))
                if problem.code() == HOST_STARTING && begun.elapsed() < MACHINE_START_WAIT.to_duration() =>
            {
                if !told.replace(true) {
                    context.output.note(STARTING);
                }
                // The API has waited before it answered.
                tokio::time::sleep(STARTING_PAUSE).await;
            }
            answer => return answer,
        }
    }
}

fn whole(prefix: &str, line: &mut Vec<u8>) -> Result<(), Failure> {
    if !line.ends_with(b"\n") {
        line.push(b'\n');
    }
    put(&[prefix.as_bytes(), line])?;
    line.clear();
    Ok(())
}

fn put(pieces: &[&[u8]]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    for piece in pieces {
        out.write_all(piece)?;
    }
    Ok(out.flush()?)
}
