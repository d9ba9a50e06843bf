//! One attempt to publish: a single message, or an atomic batch (ADR-50), with the server's answer told apart.
//!
//! async-nats has no publisher for atomic batches; its headers are written here. Not here: what to do about an answer
//! (`append`).

use std::time::Duration;

use async_nats::client::RequestErrorKind;
use async_nats::header::{
    HeaderMap, NATS_BATCH_COMMIT, NATS_BATCH_COMMIT_FINAL, NATS_BATCH_ID, NATS_BATCH_SEQUENCE,
    NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_EXPECTED_STREAM, NATS_MESSAGE_ID,
};
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::response::Response;
use async_nats::{HeaderValue, Request};
use envforge_domain::commit::Expectation;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use uuid::Uuid;

use super::leader::{Leader, with_source};
use crate::prepared::{PreparedAppend, PreparedCommit};

/// Names the subject that an expectation is about, where it is not the message's own. async-nats has no name for it.
///
/// Only ever with a literal subject: on replicated streams the server does not hold wildcards against messages that are
/// still on their way (docs/adr/0005).
const NATS_EXPECTED_LAST_SUBJECT_SEQUENCE_SUBJECT: &str = "Nats-Expected-Last-Subject-Sequence-Subject";

/// How long a request may take that waited for a new connection.
const GRACE_AFTER_RECONNECTION: Duration = Duration::from_millis(100);

/// What one attempt came to.
#[derive(Debug)]
pub(super) enum Attempt {
    /// The last commit of the append stands there.
    Stored(u64),
    /// The server had the command before; its message stands there.
    Duplicate(u64),
    /// An expectation did not hold, or may not have: the streams decide.
    Refused,
    /// Not stored by this attempt; another one may do better.
    NotStored(String),
    /// No answer came: stored or not.
    Unanswered(String),
    /// Not stored, and no other attempt would be.
    Impossible(String),
}

pub(super) async fn publish(leader: &Leader, append: &PreparedAppend) -> Attempt {
    let Some((last, others)) = append.commits.split_last() else {
        return Attempt::Impossible("an append without commits".to_owned());
    };
    let batch = (!others.is_empty()).then(|| Uuid::now_v7().simple().to_string());
    for (index, commit) in others.iter().enumerate() {
        let headers = headers(leader, append, index, commit, batch.as_deref(), false);
        let sent = leader.client.publish_with_headers(leader.subject(&commit.stream), headers, commit.payload.clone());
        if let Err(error) = sent.await {
            // A batch whose last message never comes is abandoned by the server.
            return Attempt::NotStored(with_source(&error));
        }
    }
    let headers = headers(leader, append, others.len(), last, batch.as_deref(), true);
    let request = Request::new().headers(headers).payload(last.payload.clone());
    let mut connections = leader.connections.clone();
    connections.mark_unchanged();
    let answer = tokio::select! {
        biased;
        answer = leader.client.send_request(leader.subject(&last.stream), request) => answer,
        // The answer went to a connection that is gone, unless the request itself waited for the new one.
        () = reconnected(&mut connections) => return Attempt::Unanswered("the connection was lost".to_owned()),
    };
    let message = match answer {
        Ok(message) => message,
        Err(error) => {
            return match error.kind() {
                RequestErrorKind::NoResponders => Attempt::NotStored("no stream takes the log's subjects".to_owned()),
                RequestErrorKind::InvalidSubject | RequestErrorKind::MaxPayloadExceeded => {
                    Attempt::Impossible(with_source(&error))
                }
                RequestErrorKind::TimedOut | RequestErrorKind::Other => Attempt::Unanswered(with_source(&error)),
            };
        }
    };
    match serde_json::from_slice::<Response<PublishAck>>(&message.payload) {
        Ok(Response::Ok(ack)) if ack.stream != leader.name => {
            Attempt::Impossible(format!("stream `{}` took the message, not `{}`", ack.stream, leader.name))
        }
        Ok(Response::Ok(ack)) if ack.duplicate => Attempt::Duplicate(ack.sequence),
        Ok(Response::Ok(ack)) => Attempt::Stored(ack.sequence),
        Ok(Response::Err { error }) => classify(error.error_code(), error.to_string()),
        Err(error) => Attempt::Unanswered(format!("an acknowledgement that is none: {error}")),
    }
}

async fn reconnected(connections: &mut watch::Receiver<u64>) {
    if connections.changed().await.is_err() {
        // The client is gone, and the request with it.
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(GRACE_AFTER_RECONNECTION).await;
}

/// One per command and stream: the server forgets neither a command that stands in another stream, nor takes the
/// commits of a batch for repetitions of each other. 64 bits tell the streams of one command apart.
fn message_id(append: &PreparedAppend, commit: &PreparedCommit) -> String {
    let digest = Sha256::digest(commit.stream.subject());
    format!("{}/{}", append.command, hex::encode(&digest[..8]))
}

fn headers(
    leader: &Leader,
    append: &PreparedAppend,
    index: usize,
    commit: &PreparedCommit,
    batch: Option<&str>,
    is_last: bool,
) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let message_id = message_id(append, commit);
    headers.insert(NATS_MESSAGE_ID, message_id.as_str());
    headers.insert(NATS_EXPECTED_STREAM, leader.name.as_str());
    match &commit.expectation {
        Expectation::LastAt(expected) => {
            headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, HeaderValue::from(expected.get()));
        }
        Expectation::Guards(guarded) => {
            headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, HeaderValue::from(guarded.last.get()));
            let subject = leader.subject(&guarded.stream);
            headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE_SUBJECT, subject.as_str());
        }
    }
    if let Some(batch) = batch {
        headers.insert(NATS_BATCH_ID, batch);
        headers.insert(NATS_BATCH_SEQUENCE, HeaderValue::from(index as u64 + 1));
        if is_last {
            headers.insert(NATS_BATCH_COMMIT, NATS_BATCH_COMMIT_FINAL);
        }
    }
    headers
}

fn classify(code: ErrorCode, text: String) -> Attempt {
    match code {
        // 10164 says the same as 10071 of a message that is still on its way through the cluster; 10201 and 10158 say
        // that the command was seen before.
        ErrorCode::STREAM_WRONG_LAST_SEQUENCE
        | ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT
        | ErrorCode::STREAM_DUPLICATE_MESSAGE_CONFLICT
        | ErrorCode::ATOMIC_PUBLISH_CONTAINS_DUPLICATE_MESSAGE => Attempt::Refused,
        ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM
        | ErrorCode::STREAM_HEADER_EXCEEDS_MAXIMUM
        | ErrorCode::STREAM_NOT_MATCH
        | ErrorCode::STREAM_SEALED
        | ErrorCode::ATOMIC_PUBLISH_DISABLED
        | ErrorCode::ATOMIC_PUBLISH_TOO_LARGE_BATCH => Attempt::Impossible(text),
        _ => Attempt::NotStored(text),
    }
}
