//! Asking the stream's leader, whose word is never stale: who the log is, where it ends, single commits.
//!
//! Not here: appending (`append`) and reading many commits at once (`range`).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use async_nats::jetstream::Context;
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::ContextBuilder;
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::{self, Info, LastRawMessageErrorKind, RawMessageError, State, Stream};
use bytes::Bytes;
use envforge_domain::commit::{Position, Recorded, StreamId};
use envforge_domain::time::UnixMillis;
use futures_util::StreamExt as _;
use tokio::sync::{Mutex, watch};

use super::config::{self, Config};
use super::definition;
use crate::{Filter, LogError, LogIdentity, NotTheSameLog, schema};

/// A word of the leader younger than this serves every follower of the process.
const WORD_AGE_MAX: Duration = Duration::from_millis(400);
/// Between two attempts to find or make the stream.
const OPEN_PAUSE: Duration = Duration::from_millis(100);

/// The connection to one log.
pub(super) struct Leader {
    pub(super) client: async_nats::Client,
    pub(super) context: Context,
    pub(super) stream: Stream<()>,
    pub(super) name: String,
    /// With its dot: `envforge.`.
    prefix: String,
    identity: LogIdentity,
    word: Mutex<Option<Word>>,
    pub(super) request_timeout: Duration,
    /// Counts connections: each one above the first was a reconnection.
    pub(super) connections: watch::Receiver<u64>,
    /// The highest position that is known to stand in the log.
    known: AtomicU64,
    /// The last connection on which the leader said that it still has this log.
    confirmed_on: AtomicU64,
    /// Set for good when another log was found in this one's place.
    replaced: OnceLock<NotTheSameLog>,
}

/// What the leader said, and when it was asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Word {
    asked: Instant,
    pub(super) head: Position,
}

/// A commit with the bytes it was read from.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    pub(super) position: Position,
    pub(super) recorded_at: UnixMillis,
    pub(super) payload: Bytes,
}

impl Stored {
    pub(super) fn decode(&self) -> Result<Recorded, LogError> {
        let commit = schema::decode(&self.payload)
            .map_err(|error| LogError::Undecodable { position: self.position, reason: error.to_string() })?;
        Ok(Recorded { position: self.position, recorded_at: self.recorded_at, commit })
    }
}

impl From<StreamMessage> for Stored {
    fn from(message: StreamMessage) -> Self {
        Self {
            position: Position::new(message.sequence),
            recorded_at: millis(message.time.unix_timestamp_nanos()),
            payload: message.payload,
        }
    }
}

pub(super) fn millis(nanoseconds: i128) -> UnixMillis {
    UnixMillis::new(u64::try_from(nanoseconds / 1_000_000).unwrap_or(0))
}

impl Leader {
    /// Connects; makes the stream where there is none, else refuses one that could not be a log.
    pub(super) async fn open(config: &Config) -> Result<Arc<Self>, LogError> {
        let (client, connections) = config::connect(config).await?;
        let payload_max = client.server_info().max_payload;
        if payload_max < definition::MESSAGE_BYTES_MAX {
            let needed = definition::MESSAGE_BYTES_MAX;
            let reason = format!("the server's max_payload is {payload_max} bytes, the log needs {needed}");
            return Err(LogError::Open(reason));
        }
        let context = ContextBuilder::new().timeout(config.request_timeout).build(client.clone());
        let stream = context
            .get_stream_no_info(&config.stream)
            .await
            .map_err(|error| LogError::Open(format!("stream `{}`: {error}", config.stream)))?;
        let wanted = definition::wanted(&config.stream, &config.subject_prefix, config.replicas);
        let connection = connection(&client);
        let info = found_or_made(&client, &context, config, &wanted).await?;
        let drift = definition::unsafe_drift(&info.config, &wanted);
        if !drift.is_empty() {
            return Err(LogError::Open(format!(
                "stream `{}` cannot be the event log: {}; mend it, or name another stream",
                config.stream,
                drift.join("; ")
            )));
        }
        Ok(Arc::new(Self {
            client,
            context,
            stream,
            name: config.stream.clone(),
            prefix: format!("{}.", config.subject_prefix),
            identity: identity(&info),
            word: Mutex::new(None),
            request_timeout: config.request_timeout,
            connections,
            known: AtomicU64::new(0),
            confirmed_on: AtomicU64::new(connection),
            replaced: OnceLock::new(),
        }))
    }

    pub(super) fn identity(&self) -> &LogIdentity {
        &self.identity
    }

    pub(super) fn subject(&self, stream: &StreamId) -> String {
        format!("{}{}", self.prefix, stream.subject())
    }

    /// A name for what stands beside the log's subjects and is none of them.
    pub(super) fn beside(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix.trim_end_matches('.'))
    }

    /// Subjects, without overlaps, that together match what a filter accepts.
    pub(super) fn subjects(&self, filter: &Filter) -> Vec<String> {
        let org = filter.org.map_or_else(|| "*".to_owned(), |org| org.to_string());
        let mut kinds: Vec<&str> = filter.kinds.iter().map(|kind| kind.token()).collect();
        kinds.sort_unstable();
        kinds.dedup();
        match (filter.org, kinds.as_slice()) {
            (None, []) => vec![format!("{}>", self.prefix)],
            (Some(_), []) => vec![format!("{}{org}.>", self.prefix)],
            (_, kinds) => kinds.iter().map(|kind| format!("{}{org}.{kind}.*", self.prefix)).collect(),
        }
    }

    /// The head, asked for now. Fails where the stream is gone or another one.
    pub(super) async fn head(&self) -> Result<Position, LogError> {
        Ok(self.ask().await?.head)
    }

    /// The head, asked for after `not_before` and at most `WORD_AGE_MAX` ago.
    pub(super) async fn word(&self, not_before: Instant) -> Result<Word, LogError> {
        let mut word = self.word.lock().await;
        if let Some(word) = *word
            && word.asked >= not_before
            && word.asked.elapsed() < WORD_AGE_MAX
        {
            return Ok(word);
        }
        let asked = self.ask().await?;
        *word = Some(asked);
        Ok(asked)
    }

    /// A lower bound of where the log ends: whatever is stored from now on stands above it.
    pub(super) fn known(&self) -> Position {
        Position::new(self.known.load(Ordering::Relaxed))
    }

    pub(super) fn saw(&self, position: Position) {
        self.known.fetch_max(position.get(), Ordering::Relaxed);
    }

    /// Fails for good once another log was found in this one's place.
    pub(super) fn in_place(&self) -> Result<(), LogError> {
        self.replaced.get().map_or(Ok(()), |found| Err(LogError::NotTheSameLog(found.clone())))
    }

    /// Another log stands in this one's place: from here on nothing is appended.
    pub(super) fn replaced(&self, found: NotTheSameLog) -> LogError {
        LogError::NotTheSameLog(self.replaced.get_or_init(|| found).clone())
    }

    /// What an answer is worth to its caller rests on this: servers that we came back to may hold another stream of the
    /// same name, and only its identity tells. Asked once a connection.
    pub(super) async fn confirm(&self) -> Result<(), LogError> {
        self.in_place()?;
        if self.confirmed_on.load(Ordering::Relaxed) < connection(&self.client) {
            self.ask().await?;
        }
        Ok(())
    }

    async fn ask(&self) -> Result<Word, LogError> {
        let (asked, connection) = (Instant::now(), connection(&self.client));
        let info = request_info(&self.client, info_subject(&self.name), self.request_timeout);
        let info = info.await?.ok_or_else(|| self.gone())?;
        let found = identity(&info);
        if found != self.identity {
            let expected = self.identity.clone();
            return Err(self.replaced(NotTheSameLog::Identity { expected, found }));
        }
        if unsettled(&info.state) {
            let State { messages, last_sequence, .. } = info.state;
            return Err(LogError::Unavailable(format!(
                "the server's count of the stream is not settled: {messages} commits up to position {last_sequence}"
            )));
        }
        match missing(&info.state) {
            Some(missing) => Err(LogError::NotTheSameLog(missing)),
            None => {
                let head = Position::new(info.state.last_sequence);
                self.saw(head);
                self.confirmed_on.fetch_max(connection, Ordering::Relaxed);
                Ok(Word { asked, head })
            }
        }
    }

    fn gone(&self) -> LogError {
        LogError::NotTheSameLog(NotTheSameLog::Replaced { found: format!("stream `{}` is gone", self.name) })
    }

    /// The last commit whose subject matches.
    pub(super) async fn last(&self, subject: &str) -> Result<Option<Stored>, LogError> {
        self.found(self.stream.raw_message_builder().last_by_subject(subject).send().await)
    }

    /// The first commit from there on whose subject matches.
    pub(super) async fn next(&self, subject: &str, from: Position) -> Result<Option<Stored>, LogError> {
        self.found(self.stream.raw_message_builder().sequence(from.get()).next_by_subject(subject).send().await)
    }

    pub(super) async fn at(&self, position: Position) -> Result<Option<Stored>, LogError> {
        self.found(self.stream.raw_message_builder().sequence(position.get()).send().await)
    }

    fn found(&self, answer: Result<StreamMessage, RawMessageError>) -> Result<Option<Stored>, LogError> {
        match answer {
            Ok(message) => Ok(Some(message.into())),
            Err(error) => match error.kind() {
                LastRawMessageErrorKind::NoMessageFound => Ok(None),
                LastRawMessageErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                    Err(self.gone())
                }
                _ => Err(LogError::Unavailable(with_source(&error))),
            },
        }
    }
}

/// Counts connections, from the moment on which each is made; the events that `connections` counts come later.
fn connection(client: &async_nats::Client) -> u64 {
    client.statistics().connects.load(Ordering::Relaxed)
}

/// The stream as it stands, made where there was none. A cluster that just started may need a moment to elect leaders.
async fn found_or_made(
    client: &async_nats::Client,
    context: &Context,
    config: &Config,
    wanted: &stream::Config,
) -> Result<Info, LogError> {
    let deadline = Instant::now() + config.open_timeout;
    loop {
        let trouble = match request_info(client, info_subject(&config.stream), config.request_timeout).await {
            Ok(Some(info)) => return Ok(info),
            // Another process may make it in the same moment: what stands there afterwards decides.
            Ok(None) => match context.create_stream(wanted).await {
                Ok(_) => continue,
                Err(error) => format!("stream `{}` could not be created: {}", config.stream, with_source(&error)),
            },
            Err(LogError::Unavailable(reason)) => reason,
            Err(error) => return Err(error),
        };
        if Instant::now() + OPEN_PAUSE >= deadline {
            return Err(LogError::Open(trouble));
        }
        tokio::time::sleep(OPEN_PAUSE).await;
    }
}

fn info_subject(stream: &str) -> String {
    format!("$JS.API.STREAM.INFO.{stream}")
}

/// Asks for a stream's state until `timeout`. `None` where there is no such stream.
///
/// INVARIANT: what is believed comes from the stream's leader. A server whose copy knows of no leader answers as well, with
/// what it has, and often before the leader that there is (seen with 2.15.1 after a kill -9).
async fn request_info(
    client: &async_nats::Client,
    subject: String,
    timeout: Duration,
) -> Result<Option<Info>, LogError> {
    let request = async_nats::Request::new().timeout(Some(timeout));
    let first = client.send_request(subject.clone(), request).await.map_err(|error| match error.kind() {
        async_nats::RequestErrorKind::NoResponders => {
            LogError::Unavailable("JetStream does not answer: is it enabled, and has the cluster a leader?".to_owned())
        }
        _ => LogError::Unavailable(with_source(&error)),
    })?;
    if let Some(word) = leaders_word(&first.payload) {
        return word;
    }
    let unavailable = |error: &dyn std::error::Error| LogError::Unavailable(with_source(error));
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.map_err(|error| unavailable(&error))?;
    client.publish_with_reply(subject, inbox, Bytes::new()).await.map_err(|error| unavailable(&error))?;
    let answered = tokio::time::timeout(timeout, async {
        while let Some(answer) = answers.next().await {
            if let Some(word) = leaders_word(&answer.payload) {
                return word;
            }
        }
        Err(LogError::Unavailable("the connection was closed".to_owned()))
    });
    answered.await.unwrap_or_else(|_| Err(LogError::Unavailable("the stream has no leader at the moment".to_owned())))
}

/// `None` for an answer that does not come from a leader.
fn leaders_word(answer: &[u8]) -> Option<Result<Option<Info>, LogError>> {
    match serde_json::from_slice::<Response<Info>>(answer) {
        Ok(Response::Ok(info)) => {
            let leaderless = info.cluster.as_ref().is_some_and(|cluster| cluster.leader.is_none());
            (!leaderless).then_some(Ok(Some(info)))
        }
        Ok(Response::Err { error }) => match error.error_code() {
            ErrorCode::STREAM_NOT_FOUND => Some(Ok(None)),
            ErrorCode::CLUSTER_NOT_AVAILABLE => None,
            _ => Some(Err(LogError::Unavailable(error.to_string()))),
        },
        Err(error) => Some(Err(LogError::Unavailable(format!("the server's word of the stream: {error}")))),
    }
}

/// The random name it was given and the instant it was made: a stream made anew has another identity, whatever it is
/// called.
fn identity(info: &Info) -> LogIdentity {
    let random = info.config.metadata.get(definition::IDENTITY).map_or("none", String::as_str);
    LogIdentity(format!("{random}@{}", info.created.unix_timestamp_nanos()))
}

/// More commits than positions: no loss makes that, but a server that is catching up after its start answers it for a
/// moment. Its word is worth nothing yet, neither for going on nor for giving up.
fn unsettled(state: &State) -> bool {
    state.messages > state.last_sequence
}

/// Commits that the stream has lost, by its own count: nothing may ever be deleted from it. Seen by every follower, whose
/// own filter hides gaps.
fn missing(state: &State) -> Option<NotTheSameLog> {
    let (first, last, count) = (state.first_sequence, state.last_sequence, state.messages);
    if last == 0 || first == 1 && count == last {
        return None;
    }
    Some(if first > 1 {
        NotTheSameLog::Gap { after: Position::START, found: Position::new(first) }
    } else {
        NotTheSameLog::Replaced { found: format!("it ends at {last} and holds {count} commits") }
    })
}

pub(super) fn with_source(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server's word, from a copy of the stream that ends there.
    fn word(leader: Option<&str>, last: u64) -> Bytes {
        let config = serde_json::json!({
            "name": "LOG", "subjects": ["log.>"], "retention": "limits", "max_consumers": -1, "max_msgs": -1,
            "max_bytes": -1, "discard": "new", "max_age": 0, "max_msgs_per_subject": -1, "max_msg_size": -1,
            "storage": "file", "num_replicas": 3, "duplicate_window": 120_000_000_000_u64, "allow_direct": true,
        });
        let at = "2026-11-24T00:00:00Z";
        let mut cluster = serde_json::json!({ "name": "test", "replicas": [] });
        if let Some(leader) = leader {
            cluster["leader"] = leader.into();
        }
        let word = serde_json::json!({
            "type": "io.nats.jetstream.api.v1.stream_info_response", "created": at, "ts": at, "config": config,
            "state": counted(1, last, last), "cluster": cluster,
        });
        word.to_string().into()
    }

    /// Two servers of a cluster in one process: the real ones do this for a moment that nobody can wait for.
    async fn answered_by(words: Vec<Bytes>) -> Result<Option<Info>, LogError> {
        let server = envforge_testkit::NatsServer::start();
        let client = async_nats::connect(server.url()).await.expect("the server listens");
        let mut asked = client.subscribe("word").await.expect("it is connected");
        let answering = client.clone();
        tokio::spawn(async move {
            while let Some(question) = asked.next().await {
                let to = question.reply.expect("whoever asks names where to");
                for word in &words {
                    answering.publish(to.clone(), word.clone()).await.expect("it is connected");
                }
            }
        });
        client.flush().await.expect("it is connected");
        request_info(&client, "word".to_owned(), Duration::from_millis(500)).await
    }

    #[tokio::test]
    async fn the_word_of_a_server_that_knows_of_no_leader_is_not_taken_for_the_leaders() {
        let not_available: Bytes =
            r#"{"type":"error","error":{"code":503,"err_code":10008,"description":"no leader"}}"#.into();
        let (stale, fresh) = (word(None, 4), word(Some("b"), 9));
        for words in [vec![stale.clone(), fresh.clone()], vec![not_available, fresh.clone()], vec![fresh]] {
            let info = answered_by(words).await.expect("the leader has answered").expect("there is a stream");
            assert_eq!(info.state.last_sequence, 9);
        }
        let nobody = answered_by(vec![stale]).await;
        assert!(matches!(&nobody, Err(LogError::Unavailable(reason)) if reason.contains("no leader")), "{nobody:?}");
    }

    fn state(first: u64, last: u64, messages: u64) -> State {
        serde_json::from_value(counted(first, last, messages)).expect("the fields that a server sends")
    }

    fn counted(first: u64, last: u64, messages: u64) -> serde_json::Value {
        let at = "2026-11-24T00:00:00Z";
        serde_json::json!({
            "messages": messages, "bytes": 0, "first_seq": first, "first_ts": at, "last_seq": last, "last_ts": at,
            "consumer_count": 0,
        })
    }

    #[test]
    fn a_whole_stream_misses_nothing() {
        for whole in [state(0, 0, 0), state(1, 0, 0), state(1, 1, 1), state(1, 7, 7)] {
            assert_eq!(missing(&whole), None);
        }
    }

    #[test]
    fn a_server_that_counts_more_commits_than_positions_is_not_believed_either_way() {
        assert!(unsettled(&state(1, 12_063, 13_694)));
        for settled in [state(0, 0, 0), state(1, 7, 7), state(1, 7, 6), state(3, 7, 5)] {
            assert!(!unsettled(&settled));
        }
    }

    #[test]
    fn a_stream_without_its_beginning_has_a_gap() {
        let expected = NotTheSameLog::Gap { after: Position::START, found: Position::new(3) };
        assert_eq!(missing(&state(3, 7, 5)), Some(expected));
        let expected = NotTheSameLog::Gap { after: Position::START, found: Position::new(8) };
        assert_eq!(missing(&state(8, 7, 0)), Some(expected), "purged");
    }

    #[test]
    fn a_stream_with_a_hole_says_how_much_is_left() {
        let found = "it ends at 7 and holds 6 commits".to_owned();
        assert_eq!(missing(&state(1, 7, 6)), Some(NotTheSameLog::Replaced { found }));
    }
}
