//! A client that sends exactly the bytes it is told to.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::app::SOON;
use crate::world::World;

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Lower-case names; values of repeated headers joined by a line feed.
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(String::as_str).unwrap_or_default()
    }

    /// The value of a cookie that is set.
    pub(crate) fn cookie(&self, name: &str) -> Option<String> {
        let mut lines = self.header("set-cookie").lines();
        let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
        Some(value.split(';').next()?.to_owned())
    }

    /// The body without what each refused request is called anew.
    pub(crate) fn body_of_any_request(&self) -> String {
        self.body.replace(self.header("envforge-request"), "cor_any")
    }

    /// `code` of a problem.
    pub(crate) fn code(&self) -> String {
        let problem: serde_json::Value = serde_json::from_str(&self.body).unwrap_or_default();
        assert_eq!(self.header("content-type"), "application/problem+json", "{self:?}");
        assert_eq!(problem["status"], self.status);
        problem["code"].as_str().unwrap_or_default().to_owned()
    }
}

pub(crate) struct Client<S = TcpStream> {
    pub(crate) stream: BufReader<S>,
}

impl Client<TcpStream> {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self { stream: BufReader::new(TcpStream::connect(address).await.unwrap()) }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        // A gateway that refuses may have closed already: the answer tells.
        let _ = self.stream.get_mut().write_all(bytes.as_ref()).await;
        let _ = self.stream.get_mut().flush().await;
    }

    /// The next answer; `None` where the connection ends first.
    pub(crate) async fn answer(&mut self) -> Option<Answer> {
        timeout(SOON, self.read(true)).await.expect("an answer in time")
    }

    /// Only the head; the body is left on the wire.
    pub(crate) async fn head(&mut self) -> Option<Answer> {
        timeout(SOON, self.read(false)).await.expect("a head in time")
    }

    async fn read(&mut self, with_body: bool) -> Option<Answer> {
        let mut line = String::new();
        if self.stream.read_line(&mut line).await.unwrap_or(0) == 0 {
            return None;
        }
        let status = line.split(' ').nth(1)?.parse().ok()?;
        let mut headers: BTreeMap<String, String> = BTreeMap::new();
        loop {
            line.clear();
            self.stream.read_line(&mut line).await.ok()?;
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            let value = value.trim().to_owned();
            headers
                .entry(name.to_ascii_lowercase())
                .and_modify(|known| *known = format!("{known}\n{value}"))
                .or_insert(value);
        }
        let mut body = Vec::new();
        if with_body && !matches!(status, 100..200 | 204 | 304) {
            if let Some(length) = headers.get("content-length") {
                body.resize(length.parse().unwrap(), 0);
                self.stream.read_exact(&mut body).await.ok()?;
            } else if headers.contains_key("transfer-encoding") {
                while let Some(chunk) = self.chunk().await {
                    if chunk.is_empty() {
                        break;
                    }
                    body.extend_from_slice(&chunk);
                }
            } else {
                let _ = self.stream.read_to_end(&mut body).await;
            }
        }
        Some(Answer { status, headers, body: String::from_utf8_lossy(&body).into_owned() })
    }

    /// One chunk of a chunked body; `None` where the connection ends.
    pub(crate) async fn chunk(&mut self) -> Option<Vec<u8>> {
        let mut line = String::new();
        self.stream.read_line(&mut line).await.ok().filter(|read| *read > 0)?;
        let length = usize::from_str_radix(line.trim(), 16).ok()?;
        let mut chunk = vec![0; length + 2];
        self.stream.read_exact(&mut chunk).await.ok()?;
        chunk.truncate(length);
        Some(chunk)
    }

    /// Whether the other side has closed.
    pub(crate) async fn is_closed(&mut self) -> bool {
        let mut byte = [0];
        matches!(timeout(SOON, self.stream.read(&mut byte)).await.expect("an end in time"), Ok(0) | Err(_))
    }
}

impl World {
    pub(crate) async fn client(&self) -> Client {
        Client::connect(self.address()).await
    }

    /// Sends raw bytes on a connection of their own.
    pub(crate) async fn raw(&self, bytes: impl AsRef<[u8]>) -> Option<Answer> {
        let mut client = self.client().await;
        client.send(bytes).await;
        client.answer().await
    }

    /// `GET path` with the session's cookie and more header lines (each with its CRLF).
    pub(crate) fn get(&self, path: &str, more: &str) -> String {
        format!("GET {path} HTTP/1.1\r\nHost: {}\r\nCookie: {}\r\n{more}\r\n", self.host(), self.cookie_header())
    }

    /// As a script of the app's own page would send it.
    pub(crate) async fn fetch(&self, path: &str) -> Answer {
        self.raw(self.get(path, "Sec-Fetch-Site: same-origin\r\nSec-Fetch-Mode: cors\r\nSec-Fetch-Dest: empty\r\n"))
            .await
            .unwrap()
    }

    /// As a browser opens a page.
    pub(crate) async fn visit(&self, path: &str) -> Answer {
        self.raw(self.get(path, NAVIGATION)).await.unwrap()
    }
}

pub(crate) const NAVIGATION: &str =
    "Sec-Fetch-Site: none\r\nSec-Fetch-Mode: navigate\r\nSec-Fetch-Dest: document\r\nAccept: text/html\r\n";
