//! Being a gateway, or a process of the API, for which revocations wait: entering, renewing the lease, answering.
//!
//! Not here: who is waited for (`registry`).

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::{Message, Subscriber};
use envforge_domain::commit::Position;
use envforge_domain::ids::{ApiProcessId, GatewayId};
use futures_util::StreamExt;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::leader::with_source;
use super::registry::{Member, Registry, Written};
use crate::LogError;
use crate::gateways::{REFUSES_WITHIN_MAX, Witness};

/// Between two renewals; between two attempts where one failed.
const RENEW_INTERVAL: Duration = Duration::from_secs(1);
const RETRY_PAUSE: Duration = Duration::from_millis(200);
/// Questions that wait for their commits to be read. Whoever is not answered asks again.
const QUESTIONS_MAX: usize = 256;

/// What a revocation asks of every gateway.
#[derive(Serialize, Deserialize)]
pub(super) struct Question {
    pub(super) commits: Vec<u64>,
    /// And of every process of the API: each shell is counted once, so nobody is asked who is not waited for.
    #[serde(default)]
    pub(super) shells: bool,
}

/// What whoever has read them says.
#[derive(Serialize, Deserialize)]
pub(super) struct Answer {
    #[serde(rename = "gateway")]
    pub(super) member: String,
    /// `None`: some are still open.
    pub(super) closed: Option<u32>,
}

/// A place in the registry. Dropped without `leave`, it is waited for until its lease is over.
pub struct Enrolled<Id = GatewayId> {
    id: Id,
    place: Place,
}

struct Place {
    stop: CancellationToken,
    renewing: JoinHandle<()>,
    answering: JoinHandle<()>,
}

struct Enrolment {
    registry: Arc<Registry>,
    witness: Arc<dyn Witness>,
    member: Member,
}

impl Registry {
    /// Enters the gateway of this process, which counts as waited for when this comes back. It must refuse everything, and have
    /// ended what was open, `refuses_within` after the last time that it was told so.
    ///
    /// # Errors
    /// Where that is longer than its lease, or the log is out of reach.
    pub async fn enrol(
        self: &Arc<Self>,
        witness: Arc<dyn Witness>,
        refuses_within: Duration,
    ) -> Result<Enrolled, LogError> {
        let id = GatewayId::from_uuid(Uuid::now_v7());
        Ok(Enrolled { id, place: self.place(Member::Gateway(id), witness, refuses_within).await? })
    }

    /// Enters this process with the shells of its API, in the same way: it must open none, and have ended those that were open.
    ///
    /// # Errors
    /// As `enrol`.
    pub async fn enrol_api(
        self: &Arc<Self>,
        witness: Arc<dyn Witness>,
        ends_within: Duration,
    ) -> Result<Enrolled<ApiProcessId>, LogError> {
        let id = ApiProcessId::from_uuid(Uuid::now_v7());
        Ok(Enrolled { id, place: self.place(Member::Api(id), witness, ends_within).await? })
    }

    async fn place(
        self: &Arc<Self>,
        member: Member,
        witness: Arc<dyn Witness>,
        refuses_within: Duration,
    ) -> Result<Place, LogError> {
        if refuses_within > REFUSES_WITHIN_MAX {
            return Err(LogError::Open(format!(
                "what refuses after {} ms only outlives its lease: at most {} ms",
                refuses_within.as_millis(),
                REFUSES_WITHIN_MAX.as_millis()
            )));
        }
        let enrolment = Enrolment { registry: Arc::clone(self), witness, member };
        // Whoever finds it in the registry is answered.
        let client = &self.leader.client;
        let questions = client.subscribe(self.asked_at.clone()).await;
        let questions = questions.map_err(|error| LogError::Unavailable(with_source(&error)))?;
        client.flush().await.map_err(|error| LogError::Unavailable(with_source(&error)))?;
        let enrolment = Arc::new(enrolment);
        let answering = tokio::spawn(Arc::clone(&enrolment).answer(questions));
        let entered = enrolment.enter().await;
        let sequence = match entered {
            Ok(sequence) => sequence,
            Err(error) => {
                answering.abort();
                return Err(error);
            }
        };
        let stop = CancellationToken::new();
        let renewing = tokio::spawn(enrolment.renew(sequence, stop.clone()));
        Ok(Place { stop, renewing, answering })
    }
}

impl<Id: Copy> Enrolled<Id> {
    /// As which it is told where nothing was heard of it.
    pub fn id(&self) -> Id {
        self.id
    }

    /// Gives up the place. For what has stopped: nobody waits for it from here on.
    pub async fn leave(self) {
        let Place { stop, renewing, answering } = self.place;
        stop.cancel();
        if let Err(error) = renewing.await {
            tracing::error!(%error, "renewing a lease ended badly");
        }
        answering.abort();
    }
}

impl Enrolment {
    /// Enters, whatever the registry says of it, and is waited for once it has read what the log held then: a revocation that
    /// asked before it was there is among that.
    async fn enter(&self) -> Result<u64, LogError> {
        let sent = Instant::now();
        let Written::At(sequence) = self.registry.write(self.member, None).await? else {
            return Err(LogError::Unavailable("entering the registry expects nothing".to_owned()));
        };
        let head = self.registry.leader.head().await?;
        if !self.witness.has_read(head).await {
            // Nobody should wait for it meanwhile.
            self.registry.take_out(sequence).await;
            return Err(LogError::Unavailable(format!("the log was not read up to {head} in time")));
        }
        self.witness.was_waited_for(sent);
        Ok(sequence)
    }

    /// Renews until `stop`. A renewal follows the one before it, or it is none: whoever was taken out enters anew.
    async fn renew(self: Arc<Self>, first: u64, stop: CancellationToken) {
        let mut place = Some(first);
        let mut pause = RENEW_INTERVAL;
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(pause) => {}
            }
            pause = RENEW_INTERVAL;
            if !self.witness.is_fresh() {
                // It refuses already, and is not to be waited for.
                continue;
            }
            let sent = Instant::now();
            let renewed = match place {
                Some(after) => self.registry.write(self.member, Some(after)).await,
                None => self.enter().await.map(Written::At),
            };
            match renewed {
                Ok(Written::At(sequence)) => {
                    if place.is_some() {
                        self.witness.was_waited_for(sent);
                    }
                    place = Some(sequence);
                }
                Ok(Written::Superseded) => {
                    tracing::info!(member = %self.member, "this process's lease was not the last one: it enters anew");
                    (place, pause) = (None, Duration::ZERO);
                }
                Err(error) => {
                    tracing::warn!(%error, member = %self.member, "this process's lease could not be renewed");
                    pause = RETRY_PAUSE;
                }
            }
        }
        if let Some(sequence) = place {
            self.registry.take_out(sequence).await;
        }
    }

    async fn answer(self: Arc<Self>, mut questions: Subscriber) {
        let places = Arc::new(Semaphore::new(QUESTIONS_MAX));
        while let Some(message) = questions.next().await {
            let Ok(place) = Arc::clone(&places).try_acquire_owned() else { continue };
            let this = Arc::clone(&self);
            tokio::spawn(async move {
                this.answer_one(message).await;
                drop(place);
            });
        }
    }

    async fn answer_one(&self, message: Message) {
        let (Some(to), Ok(question)) = (message.reply, serde_json::from_slice::<Question>(&message.payload)) else {
            return;
        };
        if !question.shells && matches!(self.member, Member::Api(_)) {
            return;
        }
        let commits: Vec<Position> = question.commits.into_iter().map(Position::new).collect();
        let last = commits.iter().copied().max().unwrap_or(Position::START);
        if !self.witness.has_read(last).await {
            return;
        }
        let answer = Answer { member: self.member.to_string(), closed: self.witness.closed_by(&commits).await };
        let Ok(payload) = serde_json::to_vec(&answer) else { return };
        if let Err(error) = self.registry.leader.client.publish(to, payload.into()).await {
            tracing::debug!(%error, "an answer to a revocation could not be sent");
        }
    }
}
