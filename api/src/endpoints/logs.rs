//! What the services of a workspace write, as they write it.
//!
//! Not here: where it lies (`shell_host`), and machines that are off (`host_starts`).

use std::time::Instant;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use envforge_domain::access::Action;
use envforge_domain::limits::SHELL_OPEN_MAX;
use envforge_domain::shell::{LogChunk, LogPlace};
use envforge_domain::slug::ServiceName;
use http::header;
use serde::Deserialize;
use utoipa::IntoParams;

use super::events::OpenStream;
use super::shells::{LOOK_INTERVAL, ShellEndpoints};
use crate::access::Caller;
use crate::open_shells::Held;
use crate::page::{Path, Query, wrong_query};
use crate::problem::Problem;
use crate::shell_socket::Ground;

const LINES_MAX: u64 = 10_000;

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct LogsQuery {
    /// Last lines to begin with, at most 10,000; 100 where it is left out.
    lines: Option<u64>,
    /// Stay and send what is written from now on.
    #[serde(default)]
    follow: bool,
}

/// What a service has written: both its outputs as they came, and nothing else. May hold anything that the service wrote.
///
/// Where the machine that it lies on is off, it is started for this, which wakes nothing and is outside the meter: the answer waits for up to
/// 5 s and is `host_starting` then, to be asked again. It stays up for as long as somebody follows, 24 hours at most. `host_not_starting`,
/// `host_leaving` and `host_gone` say that it does not come up now, or not any more.
#[utoipa::path(get, path = "/v1/orgs/{org}/workspaces/{workspace}/services/{service}/logs", tag = "shell",
    params(LogsQuery),
    responses((status = 200, body = String, content_type = "text/plain", description = "The service's output.")),
    extensions(("x-envforge-action" = json!("logs.read"))))]
pub(super) async fn logs(
    State(state): State<ShellEndpoints>,
    caller: Caller,
    Path((org, workspace, service)): Path<(String, String, String)>,
    Query(query): Query<LogsQuery>,
) -> Result<Response, Problem> {
    let ground = state.ground(&caller, &org, &workspace, Action::LogsRead).await?;
    let service: ServiceName = service.parse().map_err(|_| Problem::not_found())?;
    let lines = query.lines.unwrap_or(100);
    if lines > LINES_MAX {
        return Err(wrong_query("lines", format!("at most {LINES_MAX}")));
    }
    state.host()?;
    let open = state.open.open(caller.user)?;
    let lines = usize::try_from(lines).unwrap_or(usize::MAX);
    let tail = state.tail(&ground, &service, lines).await;
    // It may have come late.
    if ground.lost().is_some() {
        state.ground_of(&ground.caller_now(), ground.action, ground.resource).await?;
    }
    let chunk = match (tail, query.follow) {
        (Ok(Some(chunk)), _) => chunk,
        (Ok(None), true) => LogChunk::default(),
        (Ok(None), false) => return Err(Problem::not_found()),
        // The next wake writes elsewhere.
        (Err(problem), true) if problem.code() == "host_gone" => {
            LogChunk { bytes: b"[what it wrote before is gone with its host]\n".to_vec(), ..LogChunk::default() }
        }
        (Err(problem), _) => return Err(problem),
    };
    let place = chunk.next;
    let held = query.follow.then(|| state.hold(&ground));
    let open = (open, held);
    let begun = Instant::now();
    let following =
        Following { state: state.clone(), ground, service, place, follow: query.follow, begun, _open: open };
    let body = futures_util::stream::unfold((Some(chunk.bytes), Some(following)), |(first, following)| async {
        let mut following = following?;
        if let Some(first) = first.filter(|first| !first.is_empty()) {
            return Some((Ok::<_, std::io::Error>(Bytes::from(first)), (None, Some(following))));
        }
        match following.next().await {
            Ok(Some(bytes)) => Some((Ok(bytes), (None, Some(following)))),
            Ok(None) => None,
            Err(error) => Some((Err(error), (None, None))),
        }
    });
    let headers = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
    Ok((headers, Body::from_stream(body)).into_response())
}

/// Somebody who follows a service's output.
struct Following {
    state: ShellEndpoints,
    ground: Ground,
    service: ServiceName,
    place: LogPlace,
    follow: bool,
    begun: Instant,
    _open: (OpenStream, Option<Held>),
}

impl Following {
    /// The next bytes; `None` where nothing comes any more, or may.
    async fn next(&mut self) -> std::io::Result<Option<Bytes>> {
        let Some(workspace) = self.ground.resource.workspace().filter(|_| self.follow) else { return Ok(None) };
        loop {
            if let Some(end) = self.ground.lost() {
                tracing::info!(end = end.token(), "somebody's logs were ended");
                return Ok(None);
            }
            let Ok(host) = self.state.host() else { return Ok(None) };
            if self.begun.elapsed() < SHELL_OPEN_MAX.to_duration() {
                self.state.keep_logs_up(&self.ground).await;
            }
            let org = self.ground.resource.org();
            let more = tokio::select! {
                biased;
                _ = self.ground.until_ended() => continue,
                more = host.host().more(org, workspace, self.service.clone(), self.place) => more,
            };
            // It may have come late.
            if self.ground.lost().is_some() {
                continue;
            }
            let LogChunk { bytes, next, gap } = match more {
                // It comes back, and with it what was written meanwhile.
                Err(error) if error.kind() == std::io::ErrorKind::NotConnected => {
                    LogChunk { next: self.place, ..LogChunk::default() }
                }
                more => more?,
            };
            self.place = next;
            if gap {
                return Ok(Some(Bytes::from([&b"\n[some output was rotated away]\n"[..], &bytes].concat())));
            }
            if !bytes.is_empty() {
                return Ok(Some(bytes.into()));
            }
            let look = self.ground.open.look();
            tokio::select! {
                () = self.state.stop().cancelled() => return Ok(None),
                () = look.notified() => {}
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
            }
        }
    }
}
