//! One WebSocket that carries a shell: frames, flow, signs of life, and the right to it, looked at again and again.
//!
//! Binary messages are data: one byte says which stream (0 input, 1 output, 2 errors), the rest is its bytes. Text messages are
//! small JSON objects with a `type`. A client sends no more input than it was granted (`window`); output is held up by a client
//! that does not read. Not here: who may open what (`endpoints::shells`), and what runs at the other end (`shell_host`).

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use axum::extract::ws::{CloseFrame, Message, WebSocket};
use bytes::{BufMut as _, Bytes, BytesMut};
use envforge_domain::access::{Action, Resource};
use envforge_domain::ids::HostId;
use envforge_domain::limits::SHELL_WINDOW_BYTES;
use envforge_domain::shell::{ShellEnd, ShellInput, ShellOutput, ShellSignal, TerminalSize};
use envforge_domain::time::SharedClock;
use futures_util::future::BoxFuture;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _, stream};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::access::{Access, Caller};
use crate::edge::Arrival;
use crate::open_shells::OpenShells;
use crate::problem::Problem;
use crate::shell_host::OpenShell;

/// The name of these frames (RFC 6455 1.9).
pub(crate) const PROTOCOL: &str = "envforge.shell.v1";
/// One message of a client: 64 KiB of data, or one order with its words.
pub(crate) const MESSAGE_BYTES_MAX: usize = 192 * 1024;
/// What a client asks for must come within this time.
const ORDER_WAIT: Duration = Duration::from_secs(10);
/// How often the right is looked at again.
pub(crate) const RIGHTS_CHECK: Duration = Duration::from_millis(200);
const PING_INTERVAL: Duration = Duration::from_secs(15);
/// A client that answers nothing for so long is gone.
const SILENCE_MAX: Duration = Duration::from_secs(45);
/// What a message of a client that is not carried yet counts beside its bytes.
const EARLY_MESSAGE_BYTES: usize = 64;
/// How long a client is given to hear why a shell is over.
const FAREWELL: Duration = Duration::from_millis(250);

const INPUT: u8 = 0;
const OUTPUT: u8 = 1;
const ERROR: u8 = 2;

/// What a client says after its first message.
#[derive(Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum Said {
    Resize { columns: u16, rows: u16 },
    Signal { signal: Named },
    InputEnd,
}

#[derive(Clone, Copy, Deserialize)]
enum Named {
    #[serde(rename = "INT")]
    Int,
    #[serde(rename = "QUIT")]
    Quit,
    #[serde(rename = "TERM")]
    Term,
    #[serde(rename = "HUP")]
    Hup,
    #[serde(rename = "KILL")]
    Kill,
}

impl From<Said> for ShellInput {
    fn from(said: Said) -> Self {
        match said {
            Said::Resize { columns, rows } => Self::Resize(TerminalSize { columns, rows }),
            Said::InputEnd => Self::End,
            Said::Signal { signal } => Self::Signal(match signal {
                Named::Int => ShellSignal::Interrupt,
                Named::Quit => ShellSignal::Quit,
                Named::Term => ShellSignal::Terminate,
                Named::Hup => ShellSignal::Hangup,
                Named::Kill => ShellSignal::Kill,
            }),
        }
    }
}

/// Somebody's right to what is open, as it is now.
#[derive(Clone)]
pub(crate) struct Ground {
    pub(crate) access: Access,
    pub(crate) clock: SharedClock,
    pub(crate) caller: Caller,
    pub(crate) action: Action,
    pub(crate) resource: Resource,
    /// Where it is counted, and told when the right should be looked at at once.
    pub(crate) open: OpenShells,
    /// The host that it was opened on, once it was.
    pub(crate) host: Arc<OnceLock<HostId>>,
}

impl Ground {
    /// Whether it was taken away, as far as anybody knows.
    pub(crate) fn is_taken(&self) -> bool {
        self.ended().is_some_and(|end| end != ShellEnd::RightsUnknown)
    }

    /// From now on it is over with the trust in that host, too.
    pub(crate) fn opened_on(&self, host: HostId) {
        let _ = self.host.set(host);
    }

    /// Why what is open on it is over, where it is.
    fn ended(&self) -> Option<ShellEnd> {
        let placement = &self.access.hot().placement;
        let revoked = |host: &&HostId| placement.is_revoked(self.resource.org(), **host);
        self.lost().or_else(|| self.host.get().filter(revoked).map(|_| ShellEnd::Lost))
    }

    /// Why it is over, where it is.
    pub(crate) fn lost(&self) -> Option<ShellEnd> {
        let workspace = self.resource.workspace();
        if workspace.is_some_and(|workspace| self.access.hot().gateway.is_archived(workspace)) {
            return Some(ShellEnd::WorkspaceArchived);
        }
        match self.access.permit_still(&self.caller, self.action, self.resource, self.clock.now()) {
            Ok(_) => self.open.is_unwatched().then_some(ShellEnd::RightsUnknown),
            Err(problem) => Some(match problem.code() {
                "session_ended" => ShellEnd::SessionEnded,
                "rights_stale" => ShellEnd::RightsUnknown,
                _ => ShellEnd::RightLost,
            }),
        }
    }

    /// Waits until it is over: why. Looks again and again, and at once when somebody asks for that.
    pub(crate) async fn until_ended(&self) -> ShellEnd {
        let look = self.open.look();
        loop {
            // Before looking, so that whoever asks in between is heard.
            let asked = look.notified();
            if let Some(end) = self.ended() {
                return end;
            }
            let _ = tokio::time::timeout(RIGHTS_CHECK, asked).await;
        }
    }

    /// The caller as of now.
    pub(crate) fn caller_now(&self) -> Caller {
        let arrival = Arrival { now: self.clock.now(), ..self.caller.arrival };
        Caller { arrival, ..self.caller }
    }
}

/// Who says how something ended: what the host said of it, or that it said nothing ([`ShellEnd::Lost`]), to what the client is told. Where
/// nobody is asked, the host's word stands, and where there is none the connection closes without one.
pub(crate) type Verdict = Arc<dyn Fn(ShellEnd) -> BoxFuture<'static, &'static str> + Send + Sync>;

/// A client's end of a shell that is about to be opened.
pub(crate) struct Client {
    sink: SplitSink<WebSocket, Message>,
    stream: SplitStream<WebSocket>,
    /// What it said since its order, and what that counts.
    early: Vec<Message>,
    early_bytes: usize,
}

impl Client {
    pub(crate) fn new(socket: WebSocket) -> Self {
        let (sink, stream) = socket.split();
        Self { sink, stream, early: Vec::new(), early_bytes: 0 }
    }

    /// What the client asks for: its first message. `None` where it says nothing that can be read, and is told so.
    pub(crate) async fn order<T: for<'de> Deserialize<'de>>(&mut self) -> Option<T> {
        let first = tokio::time::timeout(ORDER_WAIT, self.stream.next()).await;
        let read = match &first {
            Ok(Some(Ok(Message::Text(text)))) => serde_json::from_str(text).map_err(|error| error.to_string()),
            Ok(Some(Ok(Message::Binary(_)))) => Err("the first message must be the order, as text".to_owned()),
            Ok(_) => return None,
            Err(_) => Err(format!("no order came within {} s", ORDER_WAIT.as_secs())),
        };
        match read {
            Ok(order) => Some(order),
            Err(reason) => {
                self.refuse(&Problem::new("body_invalid", reason)).await;
                None
            }
        }
    }

    /// Whether it could be sent.
    pub(crate) async fn say(&mut self, message: &Value) -> bool {
        let sending = self.sink.send(Message::Text(message.to_string().into()));
        matches!(tokio::time::timeout(SILENCE_MAX, sending).await, Ok(Ok(())))
    }

    /// Says why there is no shell, and closes.
    pub(crate) async fn refuse(&mut self, problem: &Problem) {
        if let Some(reason) = problem.internal_reason() {
            tracing::error!(code = problem.code(), reason, "a shell failed on our side");
        }
        let body: Value = serde_json::from_slice(&problem.body("about:blank")).unwrap_or_default();
        self.say(&json!({ "type": "error", "problem": body })).await;
        let _ = tokio::time::timeout(FAREWELL, self.sink.send(closing(1000, problem.code()))).await;
    }

    /// Says that it is over before it began.
    pub(crate) async fn over(&mut self, end: ShellEnd) {
        self.say(&over(end.token(), None)).await;
        let _ = tokio::time::timeout(FAREWELL, self.sink.send(closing(1000, end.token()))).await;
    }

    /// Waits until the client is gone. What it says meanwhile is kept for what it is about to be given; nothing beyond what it may have
    /// on its way is read.
    pub(crate) async fn gone(&mut self) {
        while self.early_bytes < SHELL_WINDOW_BYTES {
            let bytes = match self.stream.next().await {
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                Some(Ok(message)) => {
                    let bytes = match &message {
                        Message::Binary(bytes) => bytes.len(),
                        Message::Text(text) => text.len(),
                        Message::Ping(_) | Message::Pong(_) | Message::Close(_) => 0,
                    };
                    self.early.push(message);
                    bytes
                }
            };
            self.early_bytes += bytes + EARLY_MESSAGE_BYTES;
        }
        std::future::pending().await
    }

    /// Waits for what a host begins, while the right to it stands and the client is there; else says why it is over. `beginning` must end
    /// what it has begun where it is dropped.
    pub(crate) async fn until_begun<T>(
        &mut self,
        ground: &Ground,
        stop: &CancellationToken,
        beginning: impl Future<Output = T>,
    ) -> Result<T, ShellEnd> {
        tokio::select! {
            biased;
            () = stop.cancelled() => Err(ShellEnd::HostStopped),
            end = ground.until_ended() => Err(end),
            () = self.gone() => Err(ShellEnd::Closed),
            begun = beginning => Ok(begun),
        }
    }

    /// Carries a shell until it is over: why, and with which exit status.
    pub(crate) async fn carry(
        self,
        open: OpenShell,
        ground: &Ground,
        longest: Duration,
        stop: &CancellationToken,
        verdict: Option<Verdict>,
    ) -> (ShellEnd, Option<u32>) {
        let Self { sink, stream: later, early, .. } = self;
        let mut stream = stream::iter(early).map(Ok).chain(later);
        let OpenShell { input, output, .. } = open;
        let on_their_way = Arc::new(AtomicUsize::new(0));
        // Room for pings and the last word; a writer that a slow client holds up takes none of it.
        let (say, said) = mpsc::channel(4);
        let mut writing = tokio::spawn(write(sink, output, said, verdict, Arc::clone(&on_their_way)));
        let mut check = tokio::time::interval(RIGHTS_CHECK);
        check.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let begun = Instant::now();
        let look = ground.open.look();
        let (mut heard, mut pinged) = (begun, begun);
        let end = loop {
            tokio::select! {
                biased;
                written = &mut writing => return match written {
                    Ok(Some(over)) => over,
                    Ok(None) | Err(_) => (ShellEnd::Closed, None),
                },
                () = stop.cancelled() => break ShellEnd::HostStopped,
                () = look.notified() => {
                    if let Some(end) = ground.ended() {
                        break end;
                    }
                }
                _ = check.tick() => {
                    if let Some(end) = ground.ended() {
                        break end;
                    }
                    if begun.elapsed() > longest {
                        break ShellEnd::TimeOver;
                    }
                    if heard.elapsed() > SILENCE_MAX {
                        break ShellEnd::Silent;
                    }
                    if pinged.elapsed() > PING_INTERVAL {
                        pinged = Instant::now();
                        // Full: the client reads nothing, and its silence will tell.
                        let _ = say.try_send(Message::Ping(Bytes::new()));
                    }
                }
                next = stream.next() => {
                    heard = Instant::now();
                    match next {
                        Some(Ok(Message::Binary(bytes))) => match bytes.split_first() {
                            Some((&INPUT, data)) => {
                                let before = on_their_way.fetch_add(data.len(), Ordering::AcqRel);
                                if before + data.len() > SHELL_WINDOW_BYTES {
                                    break ShellEnd::Violation;
                                }
                                if !hand_over(&input, ShellInput::Data(data.to_vec())).await {
                                    break ShellEnd::Lost;
                                }
                            }
                            _ => break ShellEnd::Violation,
                        },
                        Some(Ok(Message::Text(text))) => match serde_json::from_str::<Said>(&text) {
                            Ok(said) => {
                                if !hand_over(&input, said.into()).await {
                                    break ShellEnd::Lost;
                                }
                            }
                            Err(_) => break ShellEnd::Violation,
                        },
                        Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                        // A message that is too large is an error of the stream, too.
                        Some(Ok(Message::Close(_))) | Some(Err(_)) | None => break ShellEnd::Closed,
                    }
                }
            }
        };
        // Before the host falls silent, which would be told as `lost`.
        if end != ShellEnd::Closed {
            let _ = say.try_send(Message::Text(over(end.token(), None).to_string().into()));
            let code = if end == ShellEnd::Violation { 1002 } else { 1000 };
            let _ = say.try_send(closing(code, end.token()));
        }
        // What runs there ends now, whatever becomes of the client.
        drop((input, say));
        if tokio::time::timeout(FAREWELL, &mut writing).await.is_err() {
            writing.abort();
        }
        (end, None)
    }
}

/// The host takes whatever comes at once; one that does not is none any more: `false`. One that has ended takes nothing, and says so.
async fn hand_over(input: &mpsc::Sender<ShellInput>, what: ShellInput) -> bool {
    tokio::time::timeout(RIGHTS_CHECK, input.send(what)).await.is_ok()
}

/// Sends what the host says until it is over, or until the client is gone. What is `said` goes first.
async fn write(
    mut sink: SplitSink<WebSocket, Message>,
    mut output: mpsc::Receiver<ShellOutput>,
    mut said: mpsc::Receiver<Message>,
    verdict: Option<Verdict>,
    on_their_way: Arc<AtomicUsize>,
) -> Option<(ShellEnd, Option<u32>)> {
    let mut over_before = false;
    loop {
        let message = tokio::select! {
            biased;
            message = said.recv() => match message {
                Some(message) => {
                    over_before |= matches!(message, Message::Text(_));
                    message
                }
                // Whoever carries the shell has said all: the rest is nobody's any more.
                None => return None,
            },
            next = output.recv(), if !over_before => match next {
                Some(ShellOutput::Out(bytes)) => data(OUTPUT, &bytes),
                Some(ShellOutput::Error(bytes)) => data(ERROR, &bytes),
                Some(ShellOutput::Taken(bytes)) => {
                    on_their_way.fetch_sub(bytes, Ordering::AcqRel);
                    Message::Text(json!({ "type": "window", "bytes": bytes }).to_string().into())
                }
                None if verdict.is_none() => return Some((ShellEnd::Lost, None)),
                next @ (Some(ShellOutput::Over { .. }) | None) => {
                    let (end, code) = match next {
                        Some(ShellOutput::Over { end, code }) => (end, code),
                        _ => (ShellEnd::Lost, None),
                    };
                    let told = match &verdict {
                        Some(verdict) => verdict(end).await,
                        None => end.token(),
                    };
                    let _ = sink.send(Message::Text(over(told, code).to_string().into())).await;
                    let _ = tokio::time::timeout(FAREWELL, sink.send(closing(1000, told))).await;
                    return Some((end, code));
                }
            },
        };
        sink.send(message).await.ok()?;
    }
}

fn data(stream: u8, bytes: &[u8]) -> Message {
    let mut message = BytesMut::with_capacity(bytes.len() + 1);
    message.put_u8(stream);
    message.extend_from_slice(bytes);
    Message::Binary(message.freeze())
}

fn over(end: &str, code: Option<u32>) -> Value {
    json!({ "type": "over", "end": end, "code": code })
}

fn closing(code: u16, reason: &str) -> Message {
    Message::Close(Some(CloseFrame { code, reason: reason.to_owned().into() }))
}
