//! Which gateways, and which processes of the API, there are: a stream beside the log with one message for each, written again and
//! again as long as it lives.
//!
//! INVARIANT: a gateway serves, and a process of the API keeps shells, only while it is in the registry, or was less than `REFUSES_WITHIN_MAX` ago; it is taken out by
//! others only once nothing of it was heard for `LEASE`; and whoever (re)enters has first read all that the log held then. So
//! a revocation that is stored before the registry is asked has to wait for those that it finds there and for nobody else
//! (docs/adr/0012). No clock is compared with another process's: each side counts on its own from before what it sends, or
//! from after what it receives.
//!
//! Not here: asking them (`asking`), and being one (`enrolment`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use async_nats::Request;
use async_nats::header::{NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, NATS_EXPECTED_STREAM};
use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::{
    self, DiscardPolicy, LastRawMessageErrorKind, RetentionPolicy, StorageType, Stream,
};
use envforge_domain::ids::{ApiProcessId, GatewayId, InvalidId};
use futures_util::TryStreamExt;
use futures_util::future::try_join_all;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::leader::{Leader, with_source};
use crate::LogError;
use crate::gateways::LEASE;

/// Between two looks at who is there.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
const OPEN_PAUSE: Duration = Duration::from_millis(100);

/// Who can be in the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Member {
    Gateway(GatewayId),
    Api(ApiProcessId),
}

impl fmt::Display for Member {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gateway(id) => id.fmt(formatter),
            Self::Api(id) => id.fmt(formatter),
        }
    }
}

impl FromStr for Member {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        text.parse().map(Self::Gateway).or_else(|_| text.parse().map(Self::Api))
    }
}

/// The gateways, and processes of the API, of everything that shares one log.
pub struct Registry {
    pub(super) leader: Arc<Leader>,
    stream: Stream<()>,
    name: String,
    /// With its dot.
    prefix: String,
    /// Where they are asked; no stream keeps it.
    pub(super) asked_at: String,
    seen: Mutex<BTreeMap<Member, Seen>>,
    /// The furthest position for which was waited.
    pub(super) settled: AtomicU64,
}

/// The message by which somebody was last known to live.
#[derive(Clone, Copy)]
struct Seen {
    sequence: u64,
    /// When it was first seen: later than it was stored.
    since: Instant,
}

/// What came of writing somebody's message.
pub(super) enum Written {
    /// It stands there.
    At(u64),
    /// It was to follow another one that is not the last any more.
    Superseded,
}

impl Registry {
    /// Finds the registry beside a log, or makes it.
    pub(super) async fn open(leader: Arc<Leader>, deadline: Duration, replicas: usize) -> Result<Self, LogError> {
        let (name, subjects) = (format!("{}_GATEWAYS", leader.name), leader.beside("gateways"));
        let deadline = Instant::now() + deadline;
        let wanted = stream::Config {
            name: name.clone(),
            description: Some(
                "Which gateways of EnvForge there are. Deleting it is as good as stopping them all.".to_owned(),
            ),
            subjects: vec![format!("{subjects}.*")],
            retention: RetentionPolicy::Limits,
            discard: DiscardPolicy::Old,
            storage: StorageType::File,
            num_replicas: replicas,
            max_messages_per_subject: 1,
            max_message_size: 1_024,
            ..stream::Config::default()
        };
        let found = loop {
            match leader.context.get_or_create_stream(wanted.clone()).await {
                Ok(found) => break found.cached_info().config.clone(),
                Err(error) if Instant::now() >= deadline => {
                    return Err(LogError::Open(format!("stream `{name}`: {}", with_source(&error))));
                }
                Err(_) => tokio::time::sleep(OPEN_PAUSE).await,
            }
        };
        // Kept for longer or shorter than until the next one, a message would say nothing about who is there.
        let fits = found.max_messages_per_subject == 1
            && found.max_age.is_zero()
            && found.max_messages <= 0
            && found.max_bytes <= 0
            && !found.deny_delete
            && found.subjects == wanted.subjects
            && found.storage == StorageType::File;
        if !fits {
            return Err(LogError::Open(format!(
                "stream `{name}` cannot be the registry of gateways: it must keep one message of each subject of {}, for as long \
                 as it takes; delete it and it is made anew",
                wanted.subjects.join(", ")
            )));
        }
        let stream = leader
            .context
            .get_stream_no_info(&name)
            .await
            .map_err(|error| LogError::Open(format!("stream `{name}`: {}", with_source(&error))))?;
        let asked_at = leader.beside("gateways-asked");
        let (seen, settled) = (Mutex::default(), AtomicU64::new(0));
        Ok(Self { leader, stream, name, prefix: format!("{subjects}."), asked_at, seen, settled })
    }

    fn subject(&self, member: Member) -> String {
        format!("{}{member}", self.prefix)
    }

    /// Who is there, by the word of the stream's leader.
    pub(super) async fn members(&self) -> Result<BTreeSet<Member>, LogError> {
        let unavailable = |error: &dyn std::error::Error| LogError::Unavailable(with_source(error));
        let mut subjects =
            self.stream.info_with_subjects(format!("{}*", self.prefix)).await.map_err(|error| unavailable(&error))?;
        let mut members = BTreeSet::new();
        while let Some((subject, _)) = subjects.try_next().await.map_err(|error| unavailable(&error))? {
            let member = subject.strip_prefix(&self.prefix).and_then(|id| id.parse().ok());
            let nobodys = || LogError::Unavailable(format!("`{subject}` is no gateway's, and no process's"));
            members.insert(member.ok_or_else(nobodys)?);
        }
        Ok(members)
    }

    /// `members`, without those whose lease is over: these are taken out.
    pub(super) async fn look(&self) -> Result<BTreeSet<Member>, LogError> {
        let mut members = self.members().await?;
        let lasts = members.iter().map(async |member| Ok((*member, self.last(*member).await?)));
        let lasts: Vec<(Member, Option<u64>)> = try_join_all(lasts).await?;
        let now = Instant::now();
        let mut over = Vec::new();
        {
            let mut seen = self.seen.lock();
            seen.retain(|member, _| members.contains(member));
            for (member, last) in lasts {
                let Some(sequence) = last else { continue };
                let known = seen.entry(member).or_insert(Seen { sequence, since: now });
                if known.sequence != sequence {
                    *known = Seen { sequence, since: now };
                }
                if now.duration_since(known.since) >= LEASE {
                    over.push((member, sequence));
                }
            }
        }
        for (member, sequence) in over {
            // It is this very message that is deleted: whoever wrote since stays.
            if self.take_out(sequence).await {
                tracing::warn!(%member, "nothing was heard of it for as long as its lease: it counts as gone");
                members.remove(&member);
            }
        }
        Ok(members)
    }

    /// Looks from time to time, until `stop`: so that revocations need not wait for who has been gone for long.
    pub async fn watch(self: Arc<Self>, stop: CancellationToken) {
        let mut tick = tokio::time::interval(LOOK_INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = tick.tick() => {}
            }
            if let Err(error) = self.look().await {
                tracing::debug!(%error, "the registry of gateways could not be looked at");
            }
        }
    }

    async fn last(&self, member: Member) -> Result<Option<u64>, LogError> {
        let subject = self.subject(member);
        match self.stream.raw_message_builder().last_by_subject(&subject).send().await {
            Ok(message) => Ok(Some(message.sequence)),
            Err(error) if matches!(error.kind(), LastRawMessageErrorKind::NoMessageFound) => Ok(None),
            Err(error) => Err(LogError::Unavailable(with_source(&error))),
        }
    }

    /// Deletes a message; `false` where it is not there any more, or nobody knows.
    pub(super) async fn take_out(&self, sequence: u64) -> bool {
        self.stream.delete_message(sequence).await.unwrap_or(false)
    }

    /// Writes somebody's message, behind `after` where that is given.
    pub(super) async fn write(&self, member: Member, after: Option<u64>) -> Result<Written, LogError> {
        let mut headers = HeaderMap::new();
        headers.insert(NATS_EXPECTED_STREAM, self.name.as_str());
        if let Some(after) = after {
            headers.insert(NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, after.to_string().as_str());
        }
        let request = Request::new().headers(headers).payload(bytes::Bytes::new());
        let answer = self.leader.client.send_request(self.subject(member), request).await;
        let answer = answer.map_err(|error| LogError::Unavailable(with_source(&error)))?;
        match serde_json::from_slice::<Response<PublishAck>>(&answer.payload) {
            Ok(Response::Ok(ack)) => Ok(Written::At(ack.sequence)),
            Ok(Response::Err { error }) => match error.error_code() {
                ErrorCode::STREAM_WRONG_LAST_SEQUENCE | ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT => {
                    Ok(Written::Superseded)
                }
                _ => Err(LogError::Unavailable(error.to_string())),
            },
            Err(error) => Err(LogError::Unavailable(format!("an acknowledgement that is none: {error}"))),
        }
    }
}
