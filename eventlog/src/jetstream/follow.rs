//! Following the log through a consumer of its own, across reconnections, with the leader's word as sign of life.
//!
//! Each session begins with a new consumer and only then holds the log against the follower's checkpoint: a consumer
//! lives and dies with its stream, so what it delivers after that check comes from the log that was checked.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::{AckPolicy, Consumer, DeliverPolicy, ReplayPolicy, pull};
use envforge_domain::commit::Position;
use envforge_domain::time::UnixMillis;
use futures_util::stream::{self, BoxStream};
use futures_util::{FutureExt, StreamExt};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::leader::{Leader, Stored, millis, with_source};
use crate::measure::Backend;
use crate::{Checkpoint, CheckpointProof, Filter, Follow, LogError, NotTheSameLog};

/// Commits and bytes on their way to one follower.
const PULL_COMMITS_MAX: usize = 2_000;
const PULL_BYTES_MAX: usize = 8 * 1024 * 1024;
/// A pull request that brings nothing for so long is heard of.
const IDLE_HEARTBEAT: Duration = Duration::from_secs(1);
const PULL_EXPIRES: Duration = Duration::from_secs(30);
/// A consumer without a follower is forgotten by the server.
const CONSUMER_INACTIVE_MAX: Duration = Duration::from_secs(60);

/// Silence after which a follower asks for the leader's word; then between two signs of life.
const QUIET: Duration = Duration::from_millis(25);
const HEARTBEAT: Duration = Duration::from_millis(500);
/// Between two questions to the leader of one follower, whatever comes and goes in between.
const ASK_INTERVAL_MIN: Duration = Duration::from_millis(200);
/// The leader knows more, but the consumer brings nothing for so long: it gets a new one.
const STALLED: Duration = Duration::from_secs(3);
/// Between two attempts to begin a session; doubles from the first to the second.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// How long a log may look shorter than it was before that is believed: a former leader may not know yet that it is one.
const DOUBT: Duration = Duration::from_secs(1);
/// Commits between two measurements of lag.
const MEASURED_EVERY: u64 = 256;

struct Follower {
    leader: Arc<Leader>,
    filter: Filter,
    subjects: Vec<String>,
    /// The last commit that was delivered, or the checkpoint.
    position: Position,
    digest: Option<[u8; 32]>,
    /// What the caller's checkpoint says about the log.
    proof: Option<CheckpointProof>,
    recorded_at: UnixMillis,
    session: Option<Session>,
    /// When a commit or a sign of life was last heard.
    heard: Instant,
    /// When the leader may be asked next.
    ask_at: Instant,
    pause: Duration,
    delivered: u64,
    ended: bool,
}

struct Session {
    messages: pull::Stream,
    /// The consumer's own count: a gap in it means that messages were lost on the way to us, not in the log.
    consumer_sequence: u64,
    /// The connection it was begun on.
    connection: u64,
}

pub(super) fn start(
    leader: Arc<Leader>,
    from: Checkpoint,
    filter: Filter,
) -> BoxStream<'static, Result<Follow, LogError>> {
    let now = Instant::now();
    let follower = Follower {
        subjects: leader.subjects(&filter),
        leader,
        filter,
        position: from.position,
        digest: from.proof.as_ref().map(|proof| proof.digest),
        proof: from.proof,
        recorded_at: UnixMillis::EPOCH,
        session: None,
        heard: now,
        ask_at: now,
        pause: PAUSE_MIN,
        delivered: 0,
        ended: false,
    };
    stream::unfold(follower, |mut follower| async move {
        if follower.ended {
            return None;
        }
        let item = follower.next().await;
        follower.ended = item.is_err();
        Some((item, follower))
    })
    .boxed()
}

/// Holds a checkpoint against the log, by the leader's word.
pub(super) async fn verify(
    leader: &Leader,
    position: Position,
    digest: Option<[u8; 32]>,
    proof: Option<&CheckpointProof>,
) -> Result<(), LogError> {
    if let Some(proof) = proof
        && proof.identity != *leader.identity()
    {
        let (expected, found) = (proof.identity.clone(), leader.identity().clone());
        return Err(LogError::NotTheSameLog(NotTheSameLog::Identity { expected, found }));
    }
    let doubted = Instant::now();
    let mut head = leader.head().await?;
    while head < position {
        if doubted.elapsed() > DOUBT {
            return Err(LogError::NotTheSameLog(NotTheSameLog::WentBack { checkpoint: position, head }));
        }
        tokio::time::sleep(PAUSE_MIN).await;
        head = leader.head().await?;
    }
    if let Some(digest) = digest {
        let stored = leader.at(position).await?;
        if stored.is_none_or(|stored| digest_of(&stored.payload) != digest) {
            return Err(LogError::NotTheSameLog(NotTheSameLog::Rewritten { position }));
        }
    }
    Ok(())
}

fn digest_of(payload: &[u8]) -> [u8; 32] {
    Sha256::digest(payload).into()
}

impl Follower {
    async fn next(&mut self) -> Result<Follow, LogError> {
        loop {
            let Some(session) = &mut self.session else {
                self.begin_or_pause().await?;
                continue;
            };
            if let Some(message) = session.messages.next().now_or_never() {
                if let Some(item) = self.take(message)? {
                    return Ok(item);
                }
                continue;
            }
            let (begun_on, mut connections) = (session.connection, self.leader.connections.clone());
            let reconnected = async move { connections.wait_for(|connection| *connection != begun_on).await.is_ok() };
            tokio::select! {
                biased;
                message = session.messages.next() => {
                    if let Some(item) = self.take(message)? {
                        return Ok(item);
                    }
                }
                // The consumer may not have survived a reconnection; waiting for its heartbeat would take longer.
                true = reconnected => self.session = None,
                () = tokio::time::sleep_until(self.ask_at.into()) => {
                    if let Some(position) = self.ask().await? {
                        return Ok(Follow::Caught { position });
                    }
                }
            }
        }
    }

    async fn begin_or_pause(&mut self) -> Result<(), LogError> {
        match self.begin().await {
            Ok(session) => {
                self.session = Some(session);
                self.pause = PAUSE_MIN;
                self.heard = Instant::now();
                self.ask_at = self.heard;
                Ok(())
            }
            Err(LogError::Unavailable(reason)) => {
                tracing::debug!(reason, position = %self.position, "following is interrupted");
                tokio::time::sleep(self.pause).await;
                self.pause = (self.pause * 2).min(PAUSE_MAX);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    async fn begin(&self) -> Result<Session, LogError> {
        let connection = *self.leader.connections.borrow();
        let config = pull::Config {
            name: Some(format!("follower-{}", Uuid::now_v7().simple())),
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: self.position.next().get() },
            ack_policy: AckPolicy::None,
            replay_policy: ReplayPolicy::Instant,
            filter_subjects: if self.is_unfiltered() { Vec::new() } else { self.subjects.clone() },
            inactive_threshold: CONSUMER_INACTIVE_MAX,
            num_replicas: 1,
            memory_storage: true,
            ..pull::Config::default()
        };
        let consumer: Result<Consumer<pull::Config>, _> = self.leader.stream.create_consumer(config).await;
        // Whatever went wrong, the log itself says best why: it may be gone.
        verify(&self.leader, self.position, self.digest, self.proof.as_ref()).await?;
        let consumer = consumer.map_err(|error| LogError::Unavailable(with_source(&error)))?;
        let messages = consumer
            .stream()
            .max_messages_per_batch(PULL_COMMITS_MAX)
            .max_bytes_per_batch(PULL_BYTES_MAX)
            .heartbeat(IDLE_HEARTBEAT)
            .expires(PULL_EXPIRES)
            .messages()
            .await
            .map_err(|error| LogError::Unavailable(with_source(&error)))?;
        Ok(Session { messages, consumer_sequence: 0, connection })
    }

    fn is_unfiltered(&self) -> bool {
        self.filter.org.is_none() && self.filter.kinds.is_empty()
    }

    /// Takes what the consumer brought. `None` where it was nothing to hand on; the session may be over.
    fn take(
        &mut self,
        message: Option<Result<async_nats::jetstream::Message, pull::MessagesError>>,
    ) -> Result<Option<Follow>, LogError> {
        let Some(session) = &mut self.session else { return Ok(None) };
        let delivery = match &message {
            None => Err("the consumer ended".to_owned()),
            Some(Err(error)) => Err(with_source(error)),
            Some(Ok(message)) => match message.info() {
                Ok(info) if info.consumer_sequence == session.consumer_sequence + 1 => {
                    let published = millis(info.published.unix_timestamp_nanos());
                    Ok((Position::new(info.stream_sequence), published, message.payload.clone()))
                }
                Ok(info) => Err(format!("message {} came after {}", info.consumer_sequence, session.consumer_sequence)),
                Err(error) => Err(format!("a message without a position: {error}")),
            },
        };
        let (found, recorded_at, payload) = match delivery {
            Ok(delivery) => delivery,
            Err(reason) => {
                tracing::debug!(reason, position = %self.position, "following is interrupted");
                self.session = None;
                return Ok(None);
            }
        };
        session.consumer_sequence += 1;
        if found <= self.position || self.is_unfiltered() && found != self.position.next() {
            return Err(LogError::NotTheSameLog(NotTheSameLog::Gap { after: self.position, found }));
        }
        if recorded_at < self.recorded_at {
            Backend::JetStream.clock_went_back();
        }
        self.recorded_at = self.recorded_at.max(recorded_at);
        let stored = Stored { position: found, recorded_at: self.recorded_at, payload };
        let recorded = stored.decode()?;
        let digest = digest_of(&stored.payload);
        self.position = found;
        self.leader.saw(found);
        self.digest = Some(digest);
        self.heard = Instant::now();
        self.ask_at = self.ask_at.max(self.heard + QUIET);
        self.delivered += 1;
        if self.delivered % MEASURED_EVERY == 1 {
            Backend::JetStream.followed(recorded_at);
        }
        let proof = CheckpointProof { identity: self.leader.identity().clone(), digest };
        let checkpoint = Checkpoint { position: found, proof: Some(proof) };
        Ok(Some(Follow::Commit { recorded, checkpoint, bytes: stored.payload.len() }))
    }

    /// The position up to which there is nothing left, by the leader's word; `None` where commits are on their way, or
    /// where the leader is out of reach.
    async fn ask(&mut self) -> Result<Option<Position>, LogError> {
        let asked = Instant::now();
        self.ask_at = asked + ASK_INTERVAL_MIN;
        match self.nothing_left().await {
            Ok(Some(head)) => {
                self.heard = asked;
                self.ask_at = asked + HEARTBEAT;
                Ok(Some(head))
            }
            Ok(None) => {
                if self.heard.elapsed() > STALLED {
                    self.session = None;
                }
                Ok(None)
            }
            Err(LogError::Unavailable(reason)) => {
                tracing::debug!(reason, "the log's leader is out of reach");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    async fn nothing_left(&self) -> Result<Option<Position>, LogError> {
        let head = self.leader.word(self.heard).await?.head;
        if head < self.position {
            // Fails where that lasts.
            verify(&self.leader, self.position, None, None).await?;
            return Ok(None);
        }
        if head == self.position {
            return Ok(Some(head));
        }
        if self.is_unfiltered() {
            return Ok(None);
        }
        // Asked after the head: what matches up to there is among these.
        for subject in &self.subjects {
            if self.leader.last(subject).await?.is_some_and(|last| last.position > self.position) {
                return Ok(None);
            }
        }
        Ok(Some(head))
    }
}
