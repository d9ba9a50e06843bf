//! The client's end of a shell's WebSocket: opening it, its frames, and bytes in both directions.
//!
//! Not here: terminals and signals of this machine (`shell`), what the frames mean to the server (docs/shell.md).

use std::time::Duration;

use bytes::{BufMut as _, BytesMut};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use reqwest::Upgraded;
use serde::Deserialize;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::client::Client;
use super::failure::Failure;
use super::output::Output;
use super::problem::Problem;

pub(super) const PROTOCOL: &str = "envforge.shell.v1";
/// What one message of a server holds at most.
const MESSAGE_BYTES_MAX: usize = 256 * 1024;
/// Input that may be on its way without the server's word, as docs/shell.md says.
const WINDOW_BYTES: usize = 256 * 1024;
const CHUNK_BYTES: usize = 64 * 1024;
/// A server that says nothing for so long, not even a ping, is gone.
const SILENCE_MAX: Duration = Duration::from_secs(60);

const INPUT: u8 = 0;
const OUTPUT: u8 = 1;
const ERROR: u8 = 2;

/// What a server says besides data.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub(super) enum Said {
    Waking,
    Starting,
    Opened(Opened),
    Window { bytes: usize },
    Over(Over),
    Error { problem: Value },
}

/// What a server does before something can begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Preparing {
    /// The runtime is woken.
    Waking,
    /// The machine was off.
    Starting,
}

impl Preparing {
    /// Tells whoever waits, once.
    pub(super) fn told(output: &Output) -> impl FnMut(Self) {
        let mut last = None;
        move |what| {
            if last.replace(what) != Some(what) {
                output.note(match what {
                    Self::Waking => "Waking the runtime.",
                    Self::Starting => STARTING,
                });
            }
        }
    }
}

/// What whoever waits for a host's machine is told.
pub(super) const STARTING: &str = "The machine of this workspace's host is starting; this may take a few minutes.";

/// A shell, or a job's run, that has begun.
#[derive(Debug, Deserialize)]
pub(super) struct Opened {
    #[serde(default)]
    pub(super) lasting: bool,
    pub(super) notice: Option<String>,
    pub(super) host_key: Option<String>,
}

/// How it ended.
#[derive(Debug, Deserialize)]
pub(super) struct Over {
    pub(super) end: String,
    pub(super) code: Option<u32>,
}

type Socket = WebSocketStream<Upgraded>;

/// An open connection.
pub(super) struct Connection {
    sink: SplitSink<Socket, Message>,
    stream: SplitStream<Socket>,
}

/// Something to send besides input.
pub(super) enum Control {
    Resize { columns: u16, rows: u16 },
    Signal(&'static str),
}

impl Control {
    fn message(&self) -> Message {
        let text = match self {
            Self::Resize { columns, rows } => {
                serde_json::json!({ "type": "resize", "columns": columns, "rows": rows })
            }
            Self::Signal(signal) => serde_json::json!({ "type": "signal", "signal": signal }),
        };
        Message::Text(text.to_string().into())
    }
}

impl Connection {
    /// Connects as whoever is signed in.
    pub(super) async fn open(client: &Client, segments: &[&str]) -> Result<Self, Failure> {
        let upgraded = client.upgrade(segments, PROTOCOL).await?;
        let config = WebSocketConfig::default()
            .max_message_size(Some(MESSAGE_BYTES_MAX))
            .max_frame_size(Some(MESSAGE_BYTES_MAX))
            .write_buffer_size(0);
        let socket = WebSocketStream::from_raw_socket(upgraded, Role::Client, Some(config)).await;
        let (sink, stream) = socket.split();
        Ok(Self { sink, stream })
    }

    pub(super) async fn say(&mut self, message: &Value) -> Result<(), Failure> {
        self.sink.send(Message::Text(message.to_string().into())).await.map_err(|error| broke_off(&error))
    }

    /// Waits until it has begun. `told` is called with what comes before that.
    pub(super) async fn begun(&mut self, mut told: impl FnMut(Preparing)) -> Result<Result<Opened, Over>, Failure> {
        loop {
            match self.stream.next().await {
                Some(Ok(Message::Text(text))) => match read(&text)? {
                    Said::Waking => told(Preparing::Waking),
                    Said::Starting => told(Preparing::Starting),
                    Said::Opened(opened) => return Ok(Ok(opened)),
                    Said::Over(over) => return Ok(Err(over)),
                    Said::Error { problem } => return Err(refused(&problem)),
                    Said::Window { .. } => {}
                },
                Some(Ok(Message::Close(_))) | None => return Err(gone()),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(broke_off(&error)),
            }
        }
    }

    /// Carries bytes until it is over. `input` that ends is told; without any nothing is read.
    pub(super) async fn carry(
        self,
        input: Option<impl AsyncRead + Unpin>,
        mut output: impl AsyncWrite + Unpin,
        mut errors: impl AsyncWrite + Unpin,
        mut controls: mpsc::Receiver<Control>,
    ) -> Result<Over, Failure> {
        let Self { mut sink, mut stream } = self;
        let (grant, mut granted) = mpsc::channel::<usize>(1_024);
        let sending = async {
            let mut input = input;
            let mut window = WINDOW_BYTES;
            loop {
                let mut chunk = BytesMut::with_capacity(1 + CHUNK_BYTES.min(window));
                chunk.put_u8(INPUT);
                let room = CHUNK_BYTES.min(window);
                let reading = async {
                    match &mut input {
                        Some(input) if room > 0 => input.take(room as u64).read_buf(&mut chunk).await,
                        _ => std::future::pending().await,
                    }
                };
                let message = tokio::select! {
                    biased;
                    Some(control) = controls.recv() => control.message(),
                    Some(bytes) = granted.recv() => {
                        window += bytes;
                        continue;
                    }
                    read = reading => match read {
                        Ok(read @ 1..) => {
                            window -= read;
                            Message::Binary(chunk.freeze())
                        }
                        _ => {
                            input = None;
                            Message::Text(serde_json::json!({ "type": "input_end" }).to_string().into())
                        }
                    },
                };
                if sink.send(message).await.is_err() {
                    // Whoever receives learns why.
                    std::future::pending::<()>().await;
                }
            }
        };
        let receiving = async {
            loop {
                let next = tokio::time::timeout(SILENCE_MAX, stream.next()).await;
                match next.map_err(|_| gone())? {
                    Some(Ok(Message::Binary(bytes))) => match bytes.split_first() {
                        Some((&OUTPUT, data)) => put(&mut output, data).await?,
                        Some((&ERROR, data)) => put(&mut errors, data).await?,
                        _ => return Err(gone()),
                    },
                    Some(Ok(Message::Text(text))) => match read(&text)? {
                        Said::Window { bytes } => {
                            let _ = grant.try_send(bytes);
                        }
                        Said::Over(over) => return Ok(over),
                        Said::Error { problem } => return Err(refused(&problem)),
                        Said::Waking | Said::Starting | Said::Opened(_) => {}
                    },
                    Some(Ok(Message::Close(_))) | None => return Err(gone()),
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Err(broke_off(&error)),
                }
            }
        };
        tokio::select! {
            biased;
            over = receiving => over,
            () = sending => Err(gone()),
        }
    }
}

async fn put(output: &mut (impl AsyncWrite + Unpin), data: &[u8]) -> Result<(), Failure> {
    let written = async {
        output.write_all(data).await?;
        output.flush().await
    };
    match written.await {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Err(Failure::OutputClosed),
        Err(error) => Err(error.into()),
    }
}

fn read(text: &str) -> Result<Said, Failure> {
    serde_json::from_str(text).map_err(|error| {
        Failure::local(
            format!("the API's message cannot be read: {error}"),
            "the API and this envforge are of different versions; `envforge doctor` shows both",
        )
    })
}

fn refused(problem: &Value) -> Failure {
    let status = problem["status"].as_u64().and_then(|status| u16::try_from(status).ok()).unwrap_or(500);
    Failure::Refused(Box::new(Problem::parse(status, None, problem.to_string().as_bytes())))
}

fn gone() -> Failure {
    Failure::unreachable(
        "the connection to the API broke off",
        "what lasts goes on: repeat the command to come back to it",
    )
}

fn broke_off(error: &Error) -> Failure {
    let hint = "what lasts goes on: repeat the command to come back to it";
    Failure::unreachable(format!("the connection to the API broke off: {error}"), hint)
}
