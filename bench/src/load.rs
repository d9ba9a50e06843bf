//! The load on a proxy: wrk with a browser's headers and many sessions, and WebSockets that echo.
//!
//! Not here: what is loaded, and what its processor time was.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use envforge_testkit::tools::Tool;
use futures_util::{SinkExt, StreamExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;

/// One run of wrk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    pub(crate) requests: f64,
    pub(crate) per_second: f64,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
}

/// wrk with the cookies of sessions of one link.
pub(crate) struct Wrk {
    script: PathBuf,
    host: String,
}

impl Wrk {
    /// `host` is the workspace's, with the port that browsers use.
    pub(crate) fn new(dir: &Path, host: &str, cookies: impl Iterator<Item = String>) -> Result<Self> {
        let sessions = dir.join("sessions");
        std::fs::write(&sessions, cookies.map(|cookie| cookie + "\n").collect::<String>())?;
        let script = dir.join("load.lua");
        std::fs::write(&script, include_str!("load.lua")).context("wrk's script")?;
        Ok(Self { script, host: host.to_owned() })
    }

    /// # Errors
    /// When wrk fails, or when one answer was not a 200 or did not come.
    pub(crate) fn run(&self, port: u16, path: &str, connections: usize, length: Duration) -> Result<Run> {
        let mut wrk = Command::new(Tool::Wrk.path());
        wrk.args(["--threads", "1", "--connections", &connections.to_string(), "--timeout", "10s"]);
        wrk.args(["--duration", &format!("{}s", length.as_secs().max(1))]).arg("--script").arg(&self.script);
        wrk.arg(format!("http://127.0.0.1:{port}/{path}"));
        wrk.arg("--").arg(&self.host).arg(self.script.with_file_name("sessions"));
        let output = wrk.output().context("wrk did not start")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let result = text.lines().find_map(|line| line.strip_prefix("RESULT "));
        let result = result
            .with_context(|| format!("wrk said nothing of use: {text}{}", String::from_utf8_lossy(&output.stderr)))?;
        let numbers: Vec<f64> = result.split(' ').map(str::parse).collect::<Result<_, _>>().context("wrk's result")?;
        let [requests, duration_us, errors, p50_us, p99_us] = numbers[..] else { bail!("wrk's result: {result}") };
        if errors > 0.0 || requests < 1.0 {
            bail!("{errors} of {requests} requests for /{path} on port {port} failed:\n{text}");
        }
        Ok(Run { requests, per_second: requests * 1e6 / duration_us, p50_us, p99_us })
    }
}

/// An app's WebSocket that sends back what it gets. Lasts as long as the runtime.
pub(crate) async fn echo() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = stream.set_nodelay(true);
            tokio::spawn(async move {
                // A socket that ends badly was closed by the gateway, which is what some benchmarks wait for.
                let Ok(mut socket) = tokio_tungstenite::accept_async(stream).await else { return };
                while let Some(Ok(message)) = socket.next().await {
                    if (message.is_binary() || message.is_text()) && socket.send(message).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    Ok(address)
}

pub(crate) type Socket = tokio_tungstenite::WebSocketStream<TcpStream>;

/// Opens a WebSocket at `/api/live` as a page of the workspace would.
pub(crate) async fn open_socket(port: u16, host: &str, cookie: &str) -> Result<Socket> {
    let mut request = format!("ws://{host}/api/live").into_client_request()?;
    let headers = request.headers_mut();
    headers.insert("origin", HeaderValue::from_str(&format!("http://{host}"))?);
    headers.insert("cookie", HeaderValue::from_str(&format!("envforge_session={cookie}"))?);
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.set_nodelay(true)?;
    let (socket, _) = tokio_tungstenite::client_async(request, stream).await.context("the handshake was refused")?;
    Ok(socket)
}

/// Sends a message of 128 bytes on each socket and waits for it to come back, again and again; answers how many came.
pub(crate) async fn echo_load(sockets: Vec<Socket>, length: Duration) -> Result<(u64, Duration)> {
    let (messages, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let begun = Instant::now();
    let mut clients = tokio::task::JoinSet::new();
    for mut socket in sockets {
        let (messages, over) = (Arc::clone(&messages), Arc::clone(&over));
        clients.spawn(async move {
            let payload = Bytes::from(vec![b'm'; 128]);
            while !over.load(Ordering::Relaxed) {
                socket.send(Message::Binary(payload.clone())).await?;
                let answer = socket.next().await.context("the socket was closed under way")??;
                if answer.into_data().len() != payload.len() {
                    bail!("an echo of another length came back");
                }
                messages.fetch_add(1, Ordering::Relaxed);
            }
            Ok(())
        });
    }
    tokio::time::sleep(length).await;
    over.store(true, Ordering::Relaxed);
    while let Some(client) = clients.join_next().await {
        client??;
    }
    Ok((messages.load(Ordering::Relaxed), begun.elapsed()))
}
