//! Commits to append, and followers to hear them by.

use std::time::Duration;

use envforge_domain::claim::ClaimEvent;
use envforge_domain::commit::{Actor, Commit, Expectation, Position, Recorded, StreamId, StreamKind, Surface};
use envforge_domain::dev_link::DevLinkEvent;
use envforge_domain::event::Event;
use envforge_domain::ids::{CommandId, CommitId, CorrelationId, OrgId};
use envforge_domain::runtime::{Epoch, RuntimeEvent};
use envforge_domain::time::UnixMillis;
use envforge_eventlog::{AppendError, Appended, Checkpoint, Filter, Follow, LogError, SharedLog};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use uuid::Uuid;

use crate::site::DEADLINE;

pub fn org(number: u128) -> OrgId {
    OrgId::from_uuid(Uuid::from_u128(number))
}

pub fn stream(org_number: u128, kind: StreamKind, key: &str) -> StreamId {
    StreamId::new(org(org_number), kind, key).unwrap()
}

/// A claim stream of the first organization.
pub fn claim(key: &str) -> StreamId {
    stream(1, StreamKind::Claim, key)
}

pub fn event(kind: StreamKind, text: &str) -> Event {
    let text = text.to_owned();
    match kind {
        StreamKind::Claim => Event::Claim(ClaimEvent::Taken { holder: text }),
        StreamKind::DevLink => Event::DevLink(DevLinkEvent::Revoked { reason: Some(text) }),
        StreamKind::Runtime => Event::Runtime(RuntimeEvent::Failed { epoch: Epoch(1), stage: None, reason: text }),
        other => panic!("no sample event of kind {}", other.token()),
    }
}

pub fn commit(stream: &StreamId, text: &str) -> Commit {
    Commit {
        id: CommitId::from_uuid(Uuid::now_v7()),
        command: CommandId::from_uuid(Uuid::now_v7()),
        request_digest: None,
        stream: stream.clone(),
        actor: Actor::Anonymous,
        surface: Surface::Api,
        correlation: CorrelationId::from_uuid(Uuid::now_v7()),
        causation: None,
        decided_at: UnixMillis::new(1_795_000_000_000),
        events: vec![event(stream.kind(), text)],
    }
}

pub fn after(position: u64) -> Expectation {
    Expectation::LastAt(Position::new(position))
}

pub fn at(position: u64) -> Position {
    Position::new(position)
}

/// What `commit` was given.
pub fn text(recorded: &Recorded) -> &str {
    match &recorded.commit.events[0] {
        Event::Claim(ClaimEvent::Taken { holder }) => holder,
        Event::DevLink(DevLinkEvent::Revoked { reason: Some(reason) }) => reason,
        Event::Runtime(RuntimeEvent::Failed { reason, .. }) => reason,
        other => panic!("{other:?}"),
    }
}

pub fn texts(commits: &[Recorded]) -> Vec<&str> {
    commits.iter().map(text).collect()
}

pub async fn append(log: &SharedLog, commit: &Commit, expectation: Expectation) -> Result<Appended, AppendError> {
    log.append(vec![(commit.clone(), expectation)]).await
}

/// Appends to a stream wherever it ends, and returns the position.
pub async fn add(log: &SharedLog, stream: &StreamId, text: &str) -> Position {
    let last = log.last_position_of(std::slice::from_ref(stream)).await.unwrap();
    append(log, &commit(stream, text), Expectation::LastAt(last)).await.unwrap().last()
}

/// Everything there is.
pub async fn all(log: &SharedLog) -> Vec<Recorded> {
    let (mut commits, mut after) = (Vec::new(), Position::START);
    loop {
        let page = log.read(after, 100, &Filter::everything()).await.unwrap();
        commits.extend(page.commits);
        after = page.read_up_to;
        if page.at_head {
            return commits;
        }
    }
}

pub struct Follower(BoxStream<'static, Result<Follow, LogError>>);

impl Follower {
    pub async fn start(log: &SharedLog, from: Checkpoint, filter: Filter) -> Self {
        Self(log.follow(from, filter).await.unwrap())
    }

    pub async fn next(&mut self) -> Option<Result<Follow, LogError>> {
        tokio::time::timeout(DEADLINE, self.0.next()).await.expect("a follower hears something within the deadline")
    }

    pub async fn next_commit(&mut self) -> (Recorded, Checkpoint) {
        loop {
            match self.next().await.expect("a follower never just ends").unwrap() {
                Follow::Commit { recorded, checkpoint, .. } => {
                    assert_eq!(checkpoint.position, recorded.position);
                    return (recorded, checkpoint);
                }
                Follow::Caught { .. } => {}
            }
        }
    }

    pub async fn next_texts(&mut self, count: usize) -> Vec<String> {
        let mut texts = Vec::new();
        for _ in 0..count {
            texts.push(text(&self.next_commit().await.0).to_owned());
        }
        texts
    }

    /// Waits until the follower hears that it has everything up to there; returns the commits on the way.
    pub async fn until_caught(&mut self, position: Position) -> Vec<Recorded> {
        let mut commits = Vec::new();
        loop {
            match self.next().await.expect("a follower never just ends").unwrap() {
                Follow::Commit { recorded, .. } => commits.push(recorded),
                Follow::Caught { position: caught } if caught >= position => return commits,
                Follow::Caught { .. } => {}
            }
        }
    }

    /// Waits for the error that ends the follower.
    pub async fn until_error(&mut self) -> LogError {
        let error = loop {
            match self.next().await.expect("a follower ends with an error") {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert!(self.next().await.is_none(), "nothing comes after an error");
        error
    }
}

/// Why following from there is refused.
pub async fn refusal(log: &SharedLog, from: Checkpoint) -> LogError {
    match log.follow(from, Filter::everything()).await {
        Err(error) => error,
        Ok(stream) => {
            let first = tokio::time::timeout(DEADLINE, stream.take(1).collect::<Vec<_>>()).await.unwrap();
            first.into_iter().next().unwrap().expect_err("nothing may be delivered from another log")
        }
    }
}

pub const A_SECOND: Duration = Duration::from_secs(1);
