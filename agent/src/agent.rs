//! The agent: keeps a connection to the control plane, does what comes over it on its own host, and tells what is up there.
//!
//! Not here: how services run (runtime). A connection that breaks ends nothing that runs: the next one begins with what is up.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use envforge_domain::ids::OrgId;
use envforge_domain::secret::TokenDigest;
use envforge_domain::time::{Millis, SharedClock, UnixMillis};
use envforge_runtime::{LocalHost, Stage};
use futures_util::future::BoxFuture;
use http::{Response, StatusCode};
use tokio::io::{AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::connection::answering;
use crate::enrol::connect;
use crate::frame;
use crate::identity::{AgentIdentity, Certified, IdentityError, NewKey};
use crate::pinned;
use crate::stream::ByteStream;
use crate::wire::{
    Call, Down, EndAnswer, HEARTBEAT_INTERVAL, PATH, SILENCE_MAX, StreamAnswer, StreamHeader, UNDECIDED, Up, WakeAnswer,
};

/// Wait before connecting again: doubled each time, and each time some random part of it.
const RECONNECT_MIN: Duration = Duration::from_millis(500);
const RECONNECT_MAX: Duration = Duration::from_secs(15);
/// A connection that held for this long begins the waits anew.
const SETTLED: Duration = Duration::from_secs(30);
/// Between two tries to renew a certificate.
const RENEWAL_RETRY: Millis = Millis::from_secs(60);
/// What one call may hold that nobody has read yet.
const WINDOW_BYTES: u32 = 1024 * 1024;
/// From a stream's opening to its first message.
const CALL_WAIT: Duration = Duration::from_secs(10);

/// Serves byte streams: `None` where it knows no such purpose. The future is the stream's whole life.
pub type StreamHandler = Arc<dyn Fn(&StreamHeader, &LocalHost) -> Option<StreamProgram> + Send + Sync>;
/// What happens with a stream once it is open.
pub type StreamProgram = Box<dyn FnOnce(ByteStream) -> BoxFuture<'static, ()> + Send>;

/// How an agent is run.
#[derive(Clone)]
pub struct Config {
    /// Host and port of the control plane's listener for agents.
    pub control_plane: String,
    pub agent_version: String,
    pub clock: SharedClock,
}

/// An agent with its host.
pub struct Agent {
    config: Config,
    host: LocalHost,
    identity: watch::Sender<AgentIdentity>,
    streams: StreamHandler,
}

/// Why an agent ends for good: a person has to do something.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error("the control plane takes this host no more ({code}): {text}")]
    Refused { code: String, text: String },
    #[error("this agent's certificate has ended, and with it its right to renew it: enrol this host again")]
    CertificateEnded { at: UnixMillis },
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// How one connection ended.
enum Ended {
    Lost(io::Error),
    Refused { code: String, text: String },
}

impl Ended {
    /// INVARIANT: what runs here is ended for a decision alone. Whoever cannot decide now will later.
    fn of_refusal(code: String, text: String) -> Self {
        if code == UNDECIDED { Self::Lost(io::Error::other(text)) } else { Self::Refused { code, text } }
    }
}

impl From<io::Error> for Ended {
    fn from(error: io::Error) -> Self {
        Self::Lost(error)
    }
}

impl Agent {
    pub fn new(config: Config, host: LocalHost, identity: AgentIdentity, streams: StreamHandler) -> Self {
        Self { config, host, identity: watch::channel(identity).0, streams }
    }

    /// Connects, again and again, until `stop`. Leaves the host alone: whoever opened it shuts it down.
    ///
    /// # Errors
    /// Where connecting again cannot help.
    pub async fn run(self, stop: CancellationToken) -> Result<(), AgentError> {
        let agent = Arc::new(self);
        let mut delay = RECONNECT_MIN;
        loop {
            let identity = agent.identity.borrow().clone();
            if identity.expires_at() <= agent.config.clock.now() {
                return Err(AgentError::CertificateEnded { at: identity.expires_at() });
            }
            let began = Instant::now();
            let Some(ended) = stop.run_until_cancelled(agent.serve(identity)).await else { return Ok(()) };
            match ended? {
                Ended::Refused { code, text } => return Err(AgentError::Refused { code, text }),
                Ended::Lost(error) => {
                    tracing::warn!(%error, ?delay, "the control plane is out of reach; what runs goes on");
                }
            }
            if began.elapsed() >= SETTLED {
                delay = RECONNECT_MIN;
            }
            let wait = delay.mul_f64(rand::random_range(0.5..1.0));
            if stop.run_until_cancelled(sleep(wait)).await.is_none() {
                return Ok(());
            }
            delay = (delay * 2).min(RECONNECT_MAX);
        }
    }

    /// One connection, to its end.
    async fn serve(self: &Arc<Self>, identity: AgentIdentity) -> Result<Ended, AgentError> {
        let config = identity.client_config()?;
        Ok(match self.connected(config, &identity.authorities()).await {
            Ok(ended) | Err(ended) => ended,
        })
    }

    async fn connected(
        self: &Arc<Self>,
        config: Arc<rustls::ClientConfig>,
        authorities: &[TokenDigest],
    ) -> Result<Ended, Ended> {
        let stream = connect(&self.config.control_plane, config).await?;
        let shown = stream.get_ref().1.peer_certificates().and_then(|chain| pinned::shown(chain, authorities));
        let shown = shown.ok_or_else(|| io::Error::from(io::ErrorKind::PermissionDenied))?;
        let mut connection = timeout(CALL_WAIT, answering(WINDOW_BYTES).handshake::<_, Bytes>(stream))
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
            .map_err(io::Error::other)?;
        // Ends with this connection, whatever it is at; what runs on the host is not among it.
        let mut calls = JoinSet::new();
        let (ends, mut ended) = mpsc::channel(1);
        let mut silent = Box::pin(sleep(SILENCE_MAX));
        let (heard, mut hears) = watch::channel(());
        loop {
            tokio::select! {
                next = connection.accept() => {
                    let (request, mut respond) = match next {
                        None => return Err(io::Error::from(io::ErrorKind::ConnectionReset).into()),
                        Some(next) => next.map_err(io::Error::other)?,
                    };
                    let known = request.uri().path() == PATH;
                    let status = if known { StatusCode::OK } else { StatusCode::NOT_FOUND };
                    let mut response = Response::new(());
                    *response.status_mut() = status;
                    let Ok(send) = respond.send_response(response, !known) else { continue };
                    if known {
                        let stream = ByteStream::new(send, request.into_body());
                        let (agent, ends, heard) = (Arc::clone(self), ends.clone(), heard.clone());
                        calls.spawn(async move {
                            if let Some(end) = agent.call(stream, heard, shown).await {
                                // Somebody else was first.
                                let _ = ends.try_send(end);
                            }
                        });
                    }
                }
                Some(end) = ended.recv() => return Ok(end),
                Ok(()) = hears.changed() => silent.as_mut().reset(Instant::now() + SILENCE_MAX),
                () = &mut silent => {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "the control plane fell silent").into());
                }
                Some(_) = calls.join_next(), if !calls.is_empty() => {}
            }
        }
    }

    /// One call, to its end. What ends the connection, where something does.
    async fn call(
        self: Arc<Self>,
        mut stream: ByteStream,
        heard: watch::Sender<()>,
        shown: TokenDigest,
    ) -> Option<Ended> {
        let call = match timeout(CALL_WAIT, frame::expect_call(&mut stream)).await {
            Ok(Ok(call)) => call,
            // It is reset where it is dropped.
            Ok(Err(_)) | Err(_) => return None,
        };
        let done = match call {
            Call::Session => return Some(Ended::Lost(self.session(stream, heard, shown).await)),
            Call::Refused { code, text } => {
                // Read: the control plane may close.
                let _ = frame::write(&mut stream, &EndAnswer::Ended { facts: 0 }).await;
                let _ = stream.shutdown().await;
                return Some(Ended::of_refusal(code, text));
            }
            Call::Wake(order) => match order.order() {
                Ok(order) if order.org == self.org() => self.wake(&mut stream, order).await,
                Ok(_) => self.answer(&mut stream, &foreign_wake()).await,
                Err(text) => self.answer(&mut stream, &WakeAnswer::Failed { text, may_pass_on_retry: false }).await,
            },
            Call::Sleep { org, workspace, epoch } => {
                let ended = async || self.host.sleep(workspace, epoch).await.map_err(|error| error.to_string());
                self.end(&mut stream, org, ended).await
            }
            Call::Remove { org, workspace } => {
                let ended = async || self.host.remove(workspace).await.map_err(|error| error.to_string());
                self.end(&mut stream, org, ended).await
            }
            Call::Stream(header) => {
                self.stream(stream, &header).await;
                return None;
            }
        };
        if let Err(error) = done {
            tracing::debug!(%error, "an answer did not reach the control plane");
        } else {
            let _ = stream.shutdown().await;
        }
        None
    }

    fn org(&self) -> OrgId {
        self.identity.borrow().of().0
    }

    async fn answer(&self, stream: &mut ByteStream, answer: &WakeAnswer) -> io::Result<()> {
        frame::write(stream, answer).await
    }

    /// INVARIANT: a workspace of another organization than the enrolment's never runs here (SPEC, rule 1), whoever says so.
    async fn wake(&self, stream: &mut ByteStream, order: envforge_runtime::WakeOrder) -> io::Result<()> {
        let (stages, mut stage) = watch::channel(Stage::CheckingOut);
        let waking = self.host.wake(order, stages);
        tokio::pin!(waking);
        let outcome = loop {
            tokio::select! {
                outcome = &mut waking => break outcome,
                Ok(()) = stage.changed() => {
                    let reached = WakeAnswer::Stage((&*stage.borrow_and_update()).into());
                    frame::write(stream, &reached).await?;
                }
            }
        };
        frame::write(stream, &WakeAnswer::of_outcome(outcome, self.host.changes())).await
    }

    async fn end(
        &self,
        stream: &mut ByteStream,
        org: OrgId,
        end: impl AsyncFnOnce() -> Result<(), String>,
    ) -> io::Result<()> {
        let ended = if org == self.org() { end().await } else { Err(FOREIGN.to_owned()) };
        let answer = match ended {
            Ok(()) => EndAnswer::Ended { facts: self.host.changes() },
            Err(text) => EndAnswer::Failed { text },
        };
        frame::write(stream, &answer).await
    }

    async fn stream(&self, mut stream: ByteStream, header: &StreamHeader) {
        let program = if header.org == self.org() { (self.streams)(header, &self.host) } else { None };
        let answer = match &program {
            Some(_) => StreamAnswer::Open,
            None if header.org == self.org() => StreamAnswer::Refused { reason: not_served(header) },
            None => StreamAnswer::Refused { reason: FOREIGN.to_owned() },
        };
        match (frame::write(&mut stream, &answer).await, program) {
            (Ok(()), Some(program)) => program(stream).await,
            // A stream that is dropped takes back what was not sent yet.
            (Ok(()), None) => drop(stream.shutdown().await),
            (Err(_), _) => {}
        }
    }

    /// Tells facts until the connection ends; why it ended.
    async fn session(&self, stream: ByteStream, heard: watch::Sender<()>, shown: TokenDigest) -> io::Error {
        let (reading, writing) = tokio::io::split(stream);
        let (downs, down) = mpsc::channel(4);
        let listening = async {
            let listened = listen(reading, downs, &heard).await;
            listened.err().unwrap_or_else(|| io::ErrorKind::ConnectionReset.into())
        };
        tokio::select! {
            error = listening => error,
            told = self.tell(writing, down, shown) => told.err().unwrap_or_else(|| io::ErrorKind::ConnectionReset.into()),
        }
    }

    /// `shown`: the authority that the control plane came by.
    async fn tell(
        &self,
        mut to: WriteHalf<ByteStream>,
        mut downs: mpsc::Receiver<Down>,
        shown: TokenDigest,
    ) -> io::Result<()> {
        frame::write(&mut to, &Up::Hello { agent_version: self.config.agent_version.clone() }).await?;
        let mut changes = self.host.changed();
        let mut alive = tokio::time::interval(HEARTBEAT_INTERVAL);
        alive.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut renewing: Option<NewKey> = None;
        let mut renew_at = self.identity.borrow().renew_at();
        let reports = self.host.reports();
        frame::write(&mut to, &self.facts()).await?;
        loop {
            let until_renewal = renew_at.since(self.config.clock.now()).to_duration();
            tokio::select! {
                biased;
                report = reports.next() => frame::write(&mut to, &Up::Report(report.into())).await?,
                Ok(()) = changes.changed() => {
                    changes.borrow_and_update();
                    frame::write(&mut to, &self.facts()).await?;
                }
                Some(down) = downs.recv() => match (down, renewing.take()) {
                    (Down::Certificate { chain, expires_at_unix_ms }, Some(key)) => {
                        let certified = Certified { chain, expires_at: UnixMillis::new(expires_at_unix_ms) };
                        let renewed = self.identity.borrow().renewed(&key.key, certified, shown, self.config.clock.now());
                        match renewed {
                            Ok(renewed) => {
                                renew_at = renewed.renew_at();
                                self.identity.send_replace(renewed);
                                metrics::counter!("certificate_renewals_total", "outcome" => "renewed").increment(1);
                            }
                            Err(error) => tracing::error!(%error, "a renewed certificate could not be kept"),
                        }
                    }
                    (Down::NotCertified { reason }, Some(_)) => {
                        metrics::counter!("certificate_renewals_total", "outcome" => "refused").increment(1);
                        tracing::error!(reason, "this agent's certificate was not renewed; trying again");
                    }
                    (Down::Alive | Down::Certificate { .. } | Down::NotCertified { .. }, waiting) => renewing = waiting,
                },
                () = sleep(until_renewal) => {
                    match NewKey::make() {
                        Ok(key) => {
                            frame::write(&mut to, &Up::Renew { request: key.request.clone() }).await?;
                            renewing = Some(key);
                        }
                        Err(error) => tracing::error!(%error, "no key could be made to renew the certificate"),
                    }
                    // Until an answer says otherwise; of what is left of a short life, a fourth.
                    let now = self.config.clock.now();
                    let left = self.identity.borrow().expires_at().since(now);
                    renew_at = now.plus(RENEWAL_RETRY.min(Millis::new(left.get() / 4 + 100)));
                }
                _ = alive.tick() => frame::write(&mut to, &Up::Alive).await?,
            }
        }
    }

    fn facts(&self) -> Up {
        // The count first: what changes in between is told again.
        let facts = self.host.changes();
        let up: BTreeMap<_, _> = self.host.epochs_up().into_iter().map(|(id, epoch)| (id.to_string(), epoch)).collect();
        Up::Facts { facts, up }
    }
}

pub(crate) const FOREIGN: &str = "this host serves another organization";

pub(crate) fn not_served(header: &StreamHeader) -> String {
    format!("this host serves no `{}`", header.purpose)
}

fn foreign_wake() -> WakeAnswer {
    metrics::counter!("foreign_orders_refused_total").increment(1);
    WakeAnswer::Failed { text: FOREIGN.to_owned(), may_pass_on_retry: false }
}

async fn listen(
    mut from: ReadHalf<ByteStream>,
    downs: mpsc::Sender<Down>,
    heard: &watch::Sender<()>,
) -> io::Result<()> {
    loop {
        let down: Down = frame::expect(&mut from).await?;
        heard.send_replace(());
        if !matches!(down, Down::Alive) && downs.send(down).await.is_err() {
            return Ok(());
        }
    }
}
