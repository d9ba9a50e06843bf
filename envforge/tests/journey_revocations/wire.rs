//! HTTP/1.1 as bytes: connections that stay open from one request to the next, upgraded ones, and streams that do not end.
//!
//! A library's pool would open another connection whenever it likes; what is asked here is whether one that was let in
//! before a revocation still is. Not here: what is asked, and what an answer means.

use std::io::{Error, ErrorKind, Result};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::timeout;

/// Longer than anything here waits for: what hangs is a finding of its own.
const PATIENCE: Duration = Duration::from_secs(40);

/// A request, without what makes it one of a certain connection.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: &'static str,
    pub(crate) host: String,
    pub(crate) path: String,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: String,
}

impl Request {
    pub(crate) fn new(method: &'static str, host: &str, path: impl Into<String>) -> Self {
        Self { method, host: host.to_owned(), path: path.into(), headers: Vec::new(), body: String::new() }
    }

    pub(crate) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub(crate) fn bearer(self, token: &str) -> Self {
        self.with("authorization", format!("Bearer {token}"))
    }

    pub(crate) fn json(mut self, body: &serde_json::Value) -> Self {
        self.body = body.to_string();
        self.with("content-type", "application/json")
    }

    pub(crate) fn form(mut self, body: String) -> Self {
        self.body = body;
        self.with("content-type", "application/x-www-form-urlencoded")
    }

    /// As a person opens an address.
    pub(crate) fn navigation(self, from: &str) -> Self {
        self.with("accept", "text/html")
            .with("sec-fetch-site", from)
            .with("sec-fetch-mode", "navigate")
            .with("sec-fetch-dest", "document")
    }

    /// As a script of the page asks.
    pub(crate) fn fetch(self) -> Self {
        self.with("accept", "application/json")
            .with("sec-fetch-site", "same-origin")
            .with("sec-fetch-mode", "cors")
            .with("sec-fetch-dest", "empty")
    }

    pub(crate) fn upgrade(self) -> Self {
        let origin = format!("http://{}", self.host);
        self.with("origin", origin)
            .with("connection", "Upgrade")
            .with("upgrade", "websocket")
            .with("sec-websocket-version", "13")
            .with("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
    }

    fn text(&self) -> String {
        let mut text =
            format!("{} {} HTTP/1.1\r\nhost: {}\r\nuser-agent: journey\r\n", self.method, self.path, self.host);
        for (name, value) in &self.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        if self.method != "GET" {
            text.push_str(&format!("content-length: {}\r\n", self.body.len()));
        }
        format!("{text}\r\n{}", self.body)
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn location(&self) -> &str {
        self.header("location").unwrap_or_default()
    }

    /// `name`, `value` of all cookies that it sets.
    pub(crate) fn cookies(&self) -> impl Iterator<Item = (&str, &str)> {
        let lines = self.headers.iter().filter(|(name, _)| name == "set-cookie");
        lines.map(|(_, value)| value.split(';').next().unwrap().split_once('=').unwrap())
    }

    /// `name=value` of the cookie that was set first.
    pub(crate) fn cookie(&self) -> String {
        let set = self.header("set-cookie").unwrap_or_else(|| panic!("no cookie in {self:?}"));
        set.split(';').next().unwrap().to_owned()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }
}

type Reader = BufReader<TcpStream>;

async fn connect(to: SocketAddr, from: Ipv4Addr) -> Result<Reader> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((from, 0)))?;
    let stream = socket.connect(to).await?;
    stream.set_nodelay(true)?;
    Ok(BufReader::new(stream))
}

/// Status and headers of an answer.
async fn head(reader: &mut Reader) -> Result<Answer> {
    let mut answer: Option<Answer> = None;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).await? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end();
        match &mut answer {
            None => {
                let status = line.split(' ').nth(1).and_then(|status| status.parse().ok());
                let status = status.ok_or_else(|| Error::other(format!("no status in `{line}`")))?;
                answer = Some(Answer { status, headers: Vec::new(), body: String::new() });
            }
            Some(answer) if line.is_empty() => return Ok(answer.clone()),
            Some(answer) => {
                let (name, value) = line.split_once(':').ok_or_else(|| Error::other(format!("no header: `{line}`")))?;
                answer.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
            }
        }
    }
}

async fn body(reader: &mut Reader, answer: &mut Answer) -> Result<()> {
    let mut bytes = Vec::new();
    if answer.header("transfer-encoding").is_some() {
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).await?;
            let size = usize::from_str_radix(line.trim(), 16).map_err(Error::other)?;
            let mut chunk = vec![0; size + 2];
            reader.read_exact(&mut chunk).await?;
            if size == 0 {
                break;
            }
            bytes.extend_from_slice(&chunk[..size]);
        }
    } else if let Some(length) = answer.header("content-length") {
        bytes = vec![0; length.parse().map_err(Error::other)?];
        reader.read_exact(&mut bytes).await?;
    }
    answer.body = String::from_utf8_lossy(&bytes).into_owned();
    Ok(())
}

/// One connection, which stays open for as long as the other side lets it.
pub(crate) struct Connection {
    to: SocketAddr,
    from: Ipv4Addr,
    open: Option<Reader>,
}

impl Connection {
    pub(crate) fn new(to: SocketAddr, from: Ipv4Addr) -> Self {
        Self { to, from, open: None }
    }

    /// The answer, and whether it came over a connection that was open before.
    pub(crate) async fn send(&mut self, request: &Request) -> (Answer, bool) {
        match timeout(PATIENCE, self.try_send(request)).await {
            Ok(Ok(answered)) => answered,
            Ok(Err(error)) => panic!("{} {} of {}: {error}", request.method, request.path, request.host),
            Err(_) => panic!("no answer to {} {} of {}", request.method, request.path, request.host),
        }
    }

    async fn try_send(&mut self, request: &Request) -> Result<(Answer, bool)> {
        if let Some(reader) = self.open.take()
            && let Ok(answer) = self.exchange(reader, request).await
        {
            return Ok((answer, true));
        }
        // The other side closed it, or broke off in the middle, which is its right and no answer.
        for _ in 0..2 {
            let reader = connect(self.to, self.from).await?;
            if let Ok(answer) = self.exchange(reader, request).await {
                return Ok((answer, false));
            }
        }
        let reader = connect(self.to, self.from).await?;
        Ok((self.exchange(reader, request).await?, false))
    }

    async fn exchange(&mut self, mut reader: Reader, request: &Request) -> Result<Answer> {
        reader.write_all(request.text().as_bytes()).await?;
        let mut answer = head(&mut reader).await?;
        if answer.status == 101 {
            return Ok(answer);
        }
        body(&mut reader, &mut answer).await?;
        if answer.header("connection").is_none_or(|value| !value.eq_ignore_ascii_case("close")) {
            self.open = Some(reader);
        }
        Ok(answer)
    }
}

/// An open WebSocket to an app that says back what it hears.
pub(crate) struct Socket(Reader);

/// What became of something that was said over a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heard {
    SaidBack,
    Closed,
    Nothing,
}

impl Socket {
    pub(crate) async fn open(to: SocketAddr, from: Ipv4Addr, request: &Request) -> Self {
        let mut reader = connect(to, from).await.unwrap();
        reader.write_all(request.text().as_bytes()).await.unwrap();
        let mut answer = head(&mut reader).await.unwrap();
        if answer.status != 101 {
            body(&mut reader, &mut answer).await.unwrap();
            panic!("a socket is refused: {answer:?}");
        }
        Self(reader)
    }

    pub(crate) async fn say(&mut self, word: &str, within: Duration) -> Heard {
        let mut frame = vec![0x81, 0x80 | u8::try_from(word.len()).unwrap(), 0, 0, 0, 0];
        frame.extend_from_slice(word.as_bytes());
        if self.0.write_all(&frame).await.is_err() {
            return Heard::Closed;
        }
        let hear = async {
            loop {
                match self.frame().await {
                    Ok((1, text)) if text == word.as_bytes() => return Heard::SaidBack,
                    Ok((8, _)) | Err(_) => return Heard::Closed,
                    Ok(_) => {}
                }
            }
        };
        timeout(within, hear).await.unwrap_or(Heard::Nothing)
    }

    async fn frame(&mut self) -> Result<(u8, Vec<u8>)> {
        let mut head = [0; 2];
        self.0.read_exact(&mut head).await?;
        let mut payload = vec![0; usize::from(head[1] & 0x7f)];
        self.0.read_exact(&mut payload).await?;
        Ok((head[0] & 0x0f, payload))
    }
}

/// An open stream of events: where in the log the newest stands that was delivered, and whether it has ended.
#[derive(Clone)]
pub(crate) struct Stream(watch::Receiver<(u64, bool)>);

impl Stream {
    pub(crate) async fn open(to: SocketAddr, from: Ipv4Addr, request: &Request) -> Self {
        let mut reader = connect(to, from).await.unwrap();
        reader.write_all(request.text().as_bytes()).await.unwrap();
        let answer = head(&mut reader).await.unwrap();
        assert_eq!(answer.status, 200, "a stream is refused: {answer:?}");
        let (seen, kept) = watch::channel((0, false));
        tokio::spawn(async move {
            let mut line = String::new();
            // Each chunk holds whole lines, and no chunk's length begins like an object.
            while let Ok(1..) = reader.read_line(&mut line).await {
                if line.starts_with('{') {
                    let event: serde_json::Value = serde_json::from_str(&line).unwrap();
                    let position = event["envforgeposition"].as_str().unwrap().parse().unwrap();
                    seen.send_modify(|seen| seen.0 = position);
                } else if line == "0\r\n" {
                    break;
                }
                line.clear();
            }
            seen.send_modify(|seen| seen.1 = true);
        });
        Self(kept)
    }

    pub(crate) fn newest(&self) -> u64 {
        self.0.borrow().0
    }

    /// Whether it delivers what stands there, in that time and before it ends.
    pub(crate) async fn comes_to(&mut self, position: u64, within: Duration) -> bool {
        let _ = timeout(within, self.0.wait_for(|(newest, ended)| *newest >= position || *ended)).await;
        self.newest() >= position
    }

    /// Whether it ends in that time.
    pub(crate) async fn ends(&mut self, within: Duration) -> bool {
        timeout(within, self.0.wait_for(|(_, ended)| *ended)).await.is_ok()
    }
}
