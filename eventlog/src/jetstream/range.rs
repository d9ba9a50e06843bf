//! Reading many commits: fast from whichever server answers, complete by the leader's word.
//!
//! Direct gets may come from a server that lags behind (ADR-31). So the leader is asked where the wanted subjects end,
//! and a read that falls short of that is finished by the leader itself.

use async_nats::Request;
use async_nats::jetstream::message::StreamMessage;
use envforge_domain::commit::Position;
use futures_util::StreamExt;
use serde::Serialize;

use super::leader::{Leader, Stored, with_source};
use crate::LogError;

/// A read ends after this many stored bytes, so that readers stay small whatever the commits' sizes.
const READ_BYTES_MAX: usize = 4 * 1024 * 1024;
/// What a server gives at once.
const BATCH_COMMITS_MAX: usize = 1_000;

/// The commits of one subject (which may hold wildcards), in order.
pub(super) struct Range {
    pub(super) commits: Vec<Stored>,
    /// All up to the leader's last one were read; else the read stopped after its last commit.
    pub(super) complete: bool,
}

#[derive(Serialize)]
struct BatchRequest<'a> {
    seq: u64,
    next_by_subj: &'a str,
    batch: usize,
    max_bytes: usize,
}

pub(super) async fn read(leader: &Leader, subject: &str, after: Position, limit: usize) -> Result<Range, LogError> {
    let mut commits: Vec<Stored> = Vec::new();
    if limit == 0 {
        return Ok(Range { commits, complete: false });
    }
    let (end, first) = tokio::join!(leader.last(subject), batch(leader, subject, after, limit));
    let end = end?.map_or(Position::START, |last| last.position);
    let mut more = first?;
    let (mut last, mut bytes) = (after, 0);
    loop {
        let progress = !more.is_empty();
        for stored in more {
            last = stored.position;
            bytes += stored.payload.len();
            commits.push(stored);
        }
        if last >= end {
            return Ok(Range { commits, complete: true });
        }
        if commits.len() >= limit || bytes >= READ_BYTES_MAX {
            return Ok(Range { commits, complete: false });
        }
        more = if progress {
            batch(leader, subject, last, limit - commits.len()).await?
        } else {
            // This server has not heard of the rest yet.
            leader.next(subject, last.next()).await?.into_iter().collect()
        };
        if !progress && more.is_empty() {
            return Err(LogError::Unavailable(format!("the leader named {end}, but has nothing above {last}")));
        }
    }
}

async fn batch(leader: &Leader, subject: &str, after: Position, limit: usize) -> Result<Vec<Stored>, LogError> {
    let unavailable = |error: &dyn std::error::Error| LogError::Unavailable(with_source(error));
    let request = BatchRequest {
        seq: after.next().get(),
        next_by_subj: subject,
        batch: limit.min(BATCH_COMMITS_MAX),
        max_bytes: READ_BYTES_MAX,
    };
    let payload = serde_json::to_vec(&request).map_err(|error| unavailable(&error))?;
    let inbox = leader.client.new_inbox();
    let mut answers = leader.client.subscribe(inbox.clone()).await.map_err(|error| unavailable(&error))?;
    let request = Request::new().payload(payload.into()).inbox(inbox);
    let api = format!("DIRECT.GET.{}", leader.name);
    leader.context.send_request(api, request).await.map_err(|error| unavailable(&error))?;
    let mut commits = Vec::new();
    loop {
        let answer = tokio::time::timeout(leader.request_timeout, answers.next())
            .await
            .map_err(|_| LogError::Unavailable("a read got no answer in time".to_owned()))?
            .ok_or_else(|| LogError::Unavailable("the connection closed during a read".to_owned()))?;
        match answer.status.map(|status| status.as_u16()) {
            None | Some(200) => {
                commits.push(StreamMessage::try_from(answer).map_err(|error| unavailable(&error))?.into());
            }
            // The end of a batch; nothing matched.
            Some(204 | 404) => return Ok(commits),
            Some(status) => {
                let description = answer.description.unwrap_or_default();
                return Err(LogError::Unavailable(format!("a read was answered with {status} {description}")));
            }
        }
    }
}
