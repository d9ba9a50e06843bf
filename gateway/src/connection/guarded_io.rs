//! The byte stream under the lane and under hyper's server: inspects each HTTP/1 head, and ends connections on which
//! nothing moves.
//!
//! The lane takes whole heads (`poll_head`) and gives back the one that hyper has to serve.
//!
//! A head that arrives whole is looked at where it lies, without a copy. A head in pieces waits here until it is
//! complete. A refused head is replaced by one of our own making (`REFUSED_METHOD`), which the service answers with
//! the typed denial; what comes after it is thrown away.
//!
//! Not here: what a good head looks like (`head_scan`), and everything above HTTP framing.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};
use tokio_util::io::poll_read_buf;

use super::REFUSED_METHOD;
use super::body_scan::BodyScan;
use super::connection_state::ConnectionState;
use super::head_scan::{Field, HEAD_BYTES_MAX, Head, HeadScan, scan, scan_with};
use crate::denial::ProtocolFault;
use crate::metric;

/// How long a connection may stand still, by what it waits for.
#[derive(Debug, Clone, Copy)]
pub struct IoTimeouts {
    /// From the first byte of a head to its end.
    pub head: Duration,
    /// Between two requests.
    pub idle: Duration,
    /// Between two pieces of a request body that we are ready to read.
    pub body: Duration,
    /// The client takes nothing of what we write.
    pub write: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wire {
    /// Before or inside a head.
    Head,
    /// After a head that asked for an upgrade: opaque bytes if it was granted, else the next head.
    HeadOrUpgraded,
    Body(BodyScan),
    /// Before the end of HTTP/2's preface, of which this many bytes are missing.
    Preface(usize),
    /// HTTP/2, or after an upgrade: not ours to read.
    Opaque,
    /// After a refused head: read and thrown away.
    Refused,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waiting {
    Nothing,
    NextHead,
    RestOfHead,
    Body,
}

/// What a client says first on HTTP/2 (RFC 9113 3.4). hyper holds it against the text and waits for it without limit.
const PREFACE_BYTES: usize = 24;
/// Room for the next head, and for one that comes early.
const HEAD_ROOM_BYTES: usize = 4 * 1024;
const AHEAD_ROOM_BYTES: usize = 512;
/// Bytes thrown away after a refused head, so that the client reads our answer instead of a reset.
const DISCARD_BYTES_MAX: usize = 512 * 1024;
const LINGER: Duration = Duration::from_millis(500);

pub(crate) struct GuardedIo<S> {
    stream: S,
    wire: Wire,
    /// The beginning of a head whose end has not come, or what the lane has read and not served.
    partial: BytesMut,
    /// `partial` was given back by the lane: look at it before anything is read.
    given_back: bool,
    /// Checked bytes that hyper has not taken yet.
    checked: BytesMut,
    state: Arc<ConnectionState>,
    timeouts: IoTimeouts,
    waiting: Waiting,
    waiting_since: Instant,
    /// One timer for the connection's life, looked at only where reading waits. It fires at or before the deadline
    /// and is then set anew, so that requests do not touch it.
    read_timer: Pin<Box<Sleep>>,
    write_timer: Option<Pin<Box<Sleep>>>,
    linger: Option<Pin<Box<Sleep>>>,
    discarded: usize,
}

impl<S> GuardedIo<S> {
    pub(crate) fn http1(stream: S, state: Arc<ConnectionState>, timeouts: IoTimeouts) -> Self {
        Self::new(stream, Wire::Head, state, timeouts)
    }

    /// For HTTP/2: frames are hyper's; only a client that says or takes nothing is ended here.
    pub(crate) fn http2(stream: S, state: Arc<ConnectionState>, timeouts: IoTimeouts) -> Self {
        Self::new(stream, Wire::Preface(PREFACE_BYTES), state, timeouts)
    }

    fn new(stream: S, wire: Wire, state: Arc<ConnectionState>, timeouts: IoTimeouts) -> Self {
        let now = Instant::now();
        // The first head must come soon: nothing is known about this client yet.
        let read_timer = Box::pin(tokio::time::sleep_until(now + timeouts.head));
        Self {
            stream,
            wire,
            partial: BytesMut::new(),
            given_back: false,
            checked: BytesMut::new(),
            state,
            timeouts,
            waiting: Waiting::RestOfHead,
            waiting_since: now,
            read_timer,
            write_timer: None,
            linger: None,
            discarded: 0,
        }
    }

    /// The stream itself after an upgrade. `None` where the client sent bytes before the 101: they were never part
    /// of an agreed protocol.
    pub(crate) fn into_upgraded(self) -> Option<S> {
        let clean = self.partial.is_empty() && self.checked.is_empty();
        let expected = matches!(self.wire, Wire::HeadOrUpgraded | Wire::Opaque);
        (clean && expected).then_some(self.stream)
    }

    /// Looks at `bytes`, which continue the wire, and says how many of them hyper may have.
    fn check(&mut self, bytes: &[u8]) -> Checked {
        let mut at = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            match &mut self.wire {
                Wire::Preface(missing) => {
                    let taken = (*missing).min(rest.len());
                    *missing -= taken;
                    at += taken;
                    if *missing == 0 {
                        self.wire = Wire::Opaque;
                    }
                }
                Wire::Opaque => return Checked::Pass,
                Wire::Refused => return Checked::Cut { pass: at, rest: Rest::Discard },
                Wire::Body(body) => match body.advance(rest) {
                    Ok(taken) => {
                        at += taken;
                        if *body == BodyScan::Done {
                            self.wire = Wire::Head;
                        }
                    }
                    Err(fault) => return Checked::Broken(fault),
                },
                Wire::HeadOrUpgraded if self.state.is_upgraded() => self.wire = Wire::Opaque,
                Wire::Head | Wire::HeadOrUpgraded => match scan(rest) {
                    HeadScan::Complete(head) => {
                        at += head.length;
                        self.waiting = Waiting::Nothing;
                        self.wire = match BodyScan::begin(head.framing) {
                            BodyScan::Done if head.upgrade => Wire::HeadOrUpgraded,
                            BodyScan::Done => Wire::Head,
                            body => Wire::Body(body),
                        };
                    }
                    HeadScan::Incomplete => return Checked::Cut { pass: at, rest: Rest::Keep },
                    HeadScan::Refused(fault) => {
                        // After an upgrade was asked for, whatever is not HTTP came too early. It stays here, and
                        // `into_upgraded` then refuses the connection.
                        self.wire = Wire::Refused;
                        return Checked::Cut { pass: at, rest: Rest::Refuse(fault) };
                    }
                },
            }
        }
        Checked::Pass
    }

    fn refuse(&mut self, fault: ProtocolFault) {
        self.checked.extend_from_slice(
            format!("{REFUSED_METHOD} /{} HTTP/1.1\r\nhost: refused\r\nconnection: close\r\n\r\n", fault.code())
                .as_bytes(),
        );
    }

    fn deadline_of(&self, waiting: Waiting) -> Option<Instant> {
        let limit = match waiting {
            Waiting::Nothing => return None,
            Waiting::NextHead => self.timeouts.idle,
            Waiting::RestOfHead => self.timeouts.head,
            Waiting::Body => self.timeouts.body,
        };
        Some(self.waiting_since + limit)
    }

    /// Called where reading has to wait. `Ready` when it has waited too long.
    fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<Waiting> {
        let waiting = match self.wire {
            _ if !self.partial.is_empty() => Waiting::RestOfHead,
            // As `new` has set it: a preface in single bytes is no progress.
            Wire::Preface(_) => Waiting::RestOfHead,
            Wire::Opaque | Wire::Refused => Waiting::Nothing,
            Wire::Body(_) => Waiting::Body,
            Wire::Head | Wire::HeadOrUpgraded if self.state.in_flight() > 0 => Waiting::Nothing,
            // Until the first request, `RestOfHead` stays as `new` has set it.
            Wire::Head | Wire::HeadOrUpgraded if self.waiting == Waiting::RestOfHead => Waiting::RestOfHead,
            Wire::Head | Wire::HeadOrUpgraded => Waiting::NextHead,
        };
        if waiting != self.waiting {
            self.waiting = waiting;
            self.waiting_since = Instant::now();
            // Between requests the timer usually fires earlier anyway and is then set anew.
            if let Some(deadline) = self.deadline_of(waiting)
                && deadline < self.read_timer.deadline()
            {
                self.read_timer.as_mut().reset(deadline);
            }
        }
        loop {
            ready!(self.read_timer.as_mut().poll(cx));
            let now = Instant::now();
            let next = self.deadline_of(waiting).unwrap_or(now + self.timeouts.idle);
            if next <= now {
                return Poll::Ready(waiting);
            }
            self.read_timer.as_mut().reset(next);
        }
    }
}

/// What comes next on a connection.
#[derive(Debug)]
pub(super) enum Next {
    /// A head that may pass, whose fields were recorded.
    Head(Bytes, Head),
    /// Something that is refused; it is still to be read.
    Refused,
    /// The client has left, or said nothing for too long between two requests.
    End,
}

/// For the lane, which serves heads before hyper does.
impl<S: AsyncRead + Unpin> GuardedIo<S> {
    /// The next head as a whole. Until the lane gives it back, it is the lane's to answer.
    pub(super) fn poll_head(&mut self, cx: &mut Context<'_>, fields: &mut Vec<Field>) -> Poll<io::Result<Next>> {
        loop {
            if !self.partial.is_empty() {
                fields.clear();
                match scan_with(&self.partial, |field| fields.push(field)) {
                    HeadScan::Complete(head) => {
                        self.waiting = Waiting::Nothing;
                        return Poll::Ready(Ok(Next::Head(self.partial.split_to(head.length).freeze(), head)));
                    }
                    HeadScan::Refused(_) => {
                        self.given_back = true;
                        return Poll::Ready(Ok(Next::Refused));
                    }
                    HeadScan::Incomplete => {}
                }
            }
            let began = !self.partial.is_empty();
            self.partial.reserve(HEAD_ROOM_BYTES);
            match poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.partial) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Ok(Next::End)),
                Poll::Ready(Ok(_)) if !began && self.waiting != Waiting::RestOfHead => self.waiting = Waiting::Nothing,
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    return match ready!(self.poll_stalled(cx)) {
                        Waiting::NextHead => Poll::Ready(Ok(Next::End)),
                        waiting => Poll::Ready(Err(timed_out(waiting))),
                    };
                }
            }
        }
    }

    /// `Ready` when the client has left while it waits for its answer. What it sends meanwhile is kept, within a bound.
    pub(super) fn poll_left(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.partial.len() < HEAD_BYTES_MAX {
            self.partial.reserve(AHEAD_ROOM_BYTES);
            match ready!(poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.partial)) {
                Ok(0) | Err(_) => return Poll::Ready(()),
                Ok(_) => {}
            }
        }
        Poll::Pending
    }

    /// A head that hyper has to serve, with everything behind it.
    pub(super) fn give_back(&mut self, head: &[u8]) {
        let behind = std::mem::take(&mut self.partial);
        self.partial.reserve(head.len() + behind.len());
        self.partial.extend_from_slice(head);
        self.partial.extend_from_slice(&behind);
        self.given_back = true;
    }
}

fn timed_out(waiting: Waiting) -> io::Error {
    metric::connection_timeout(match waiting {
        Waiting::Body => "body",
        _ => "head",
    });
    io::ErrorKind::TimedOut.into()
}

enum Checked {
    Pass,
    /// The first `pass` bytes are hyper's.
    Cut {
        pass: usize,
        rest: Rest,
    },
    /// A body's framing is broken: no later byte can be understood.
    Broken(ProtocolFault),
}

enum Rest {
    Keep,
    Discard,
    Refuse(ProtocolFault),
}

impl<S> GuardedIo<S> {
    /// Looks at bytes that are hyper's only after that.
    fn check_joined(&mut self, mut joined: BytesMut) -> io::Result<()> {
        match self.check(&joined) {
            Checked::Pass => self.checked = joined,
            Checked::Cut { pass, rest } => {
                let tail = joined.split_off(pass);
                self.checked = joined;
                match rest {
                    Rest::Keep => self.partial = tail,
                    Rest::Discard => {}
                    Rest::Refuse(fault) => self.refuse(fault),
                }
            }
            Checked::Broken(fault) => return Err(broken(fault)),
        }
        Ok(())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for GuardedIo<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if std::mem::take(&mut this.given_back) {
                let joined = std::mem::take(&mut this.partial);
                this.check_joined(joined)?;
            }
            if !this.checked.is_empty() {
                let taken = this.checked.len().min(buf.remaining());
                buf.put_slice(&this.checked[..taken]);
                this.checked.advance(taken);
                return Poll::Ready(Ok(()));
            }
            let before = buf.filled().len();
            match Pin::new(&mut this.stream).poll_read(cx, buf) {
                Poll::Ready(result) => result?,
                Poll::Pending => {
                    return match ready!(this.poll_stalled(cx)) {
                        // The polite end between two requests.
                        Waiting::NextHead => Poll::Ready(Ok(())),
                        waiting => Poll::Ready(Err(timed_out(waiting))),
                    };
                }
            }
            let read = buf.filled().len() - before;
            if read == 0 {
                return Poll::Ready(Ok(()));
            }
            // The clock of a head that has begun goes on: a byte now and then is no progress.
            if this.partial.is_empty() && this.waiting != Waiting::RestOfHead {
                this.waiting = Waiting::Nothing;
            }
            if !this.partial.is_empty() {
                let mut joined = std::mem::take(&mut this.partial);
                joined.extend_from_slice(&buf.filled()[before..]);
                buf.set_filled(before);
                this.check_joined(joined)?;
                continue;
            }
            // Borrowed for the check alone: `buf` is the caller's.
            let outcome = this.check(&buf.filled()[before..]);
            match outcome {
                Checked::Pass => return Poll::Ready(Ok(())),
                Checked::Cut { pass, rest } => {
                    match rest {
                        Rest::Keep => this.partial.extend_from_slice(&buf.filled()[before + pass..]),
                        Rest::Refuse(fault) => this.refuse(fault),
                        Rest::Discard => {
                            this.discarded += read - pass;
                            if this.discarded > DISCARD_BYTES_MAX {
                                return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
                            }
                        }
                    }
                    buf.set_filled(before + pass);
                    if pass > 0 {
                        return Poll::Ready(Ok(()));
                    }
                }
                Checked::Broken(fault) => return Poll::Ready(Err(broken(fault))),
            }
        }
    }
}

fn broken(fault: ProtocolFault) -> io::Error {
    metric::denial(fault.code());
    io::Error::new(io::ErrorKind::InvalidData, fault)
}

impl<S: AsyncRead + AsyncWrite + Unpin> GuardedIo<S> {
    /// Called where writing has to wait.
    fn poll_write_stalled(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let limit = self.timeouts.write;
        let timer = self.write_timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        ready!(timer.as_mut().poll(cx));
        metric::connection_timeout("write");
        Poll::Ready(io::ErrorKind::TimedOut.into())
    }

    fn written(&mut self, cx: &mut Context<'_>, outcome: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match outcome {
            Poll::Ready(result) => {
                self.write_timer = None;
                Poll::Ready(result)
            }
            Poll::Pending => self.poll_write_stalled(cx).map(Err),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for GuardedIo<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.stream).poll_write(cx, bytes);
        this.written(cx, outcome)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.stream).poll_write_vectored(cx, slices);
        this.written(cx, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match Pin::new(&mut this.stream).poll_flush(cx) {
            Poll::Ready(result) => {
                this.write_timer = None;
                Poll::Ready(result)
            }
            Poll::Pending => this.poll_write_stalled(cx).map(Err),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let refused = this.wire == Wire::Refused;
        if this.linger.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
            if !refused {
                return Poll::Ready(Ok(()));
            }
        }
        // Closing with unread bytes resets the connection and takes our answer with it: read them for a moment.
        let linger = this.linger.get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER)));
        if linger.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        let mut waste = [0_u8; 4096];
        loop {
            let mut waste = ReadBuf::new(&mut waste);
            match ready!(Pin::new(&mut this.stream).poll_read(cx, &mut waste)) {
                Ok(()) if !waste.filled().is_empty() => {
                    this.discarded += waste.filled().len();
                    if this.discarded > DISCARD_BYTES_MAX {
                        return Poll::Ready(Ok(()));
                    }
                }
                Ok(()) | Err(_) => return Poll::Ready(Ok(())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    const TIMEOUTS: IoTimeouts = IoTimeouts {
        head: Duration::from_secs(5),
        idle: Duration::from_secs(5),
        body: Duration::from_secs(5),
        write: Duration::from_secs(5),
    };

    /// What hyper would read of `wire` when it comes in pieces of these sizes and is taken in others.
    fn read_through(wire: &[u8], cuts: &[usize], takes: &[usize]) -> Vec<u8> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let (mut client, server) = tokio::io::duplex(1 << 20);
            let mut guarded = GuardedIo::http1(server, Arc::new(ConnectionState::default()), TIMEOUTS);
            let (mut read, mut sent) = (Vec::new(), 0);
            let (mut cuts, mut takes) = (cuts.iter().cycle(), takes.iter().cycle());
            loop {
                let mut buffer = vec![0; *takes.next().unwrap()];
                let taken = tokio::select! {
                    biased;
                    taken = guarded.read(&mut buffer) => taken.unwrap(),
                    () = tokio::task::yield_now() => {
                        if sent == wire.len() {
                            return read;
                        }
                        let end = (sent + cuts.next().unwrap()).min(wire.len());
                        client.write_all(&wire[sent..end]).await.unwrap();
                        sent = end;
                        continue;
                    }
                };
                read.extend_from_slice(&buffer[..taken]);
            }
        })
    }

    fn request() -> impl Strategy<Value = Vec<u8>> {
        let body = proptest::collection::vec(any::<u8>(), 0..60);
        (0_u8..4, "[a-z/]{0,12}", body).prop_map(|(kind, path, body)| {
            let mut wire = match kind {
                0 => format!("GET /{path} HTTP/1.1\r\nHost: h\r\n\r\n").into_bytes(),
                1 => format!("GET /{path} HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\n\r\n").into_bytes(),
                2 => format!("POST /{path} HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes(),
                _ => b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec(),
            };
            match kind {
                2 => wire.extend_from_slice(&body),
                3 => {
                    if !body.is_empty() {
                        wire.extend_from_slice(format!("{:X}\r\n", body.len()).as_bytes());
                        wire.extend_from_slice(&body);
                        wire.extend_from_slice(b"\r\n");
                    }
                    wire.extend_from_slice(b"0\r\n\r\n");
                }
                _ => {}
            }
            wire
        })
    }

    proptest! {
        /// Good requests arrive byte for byte, however the network cuts them and hyper takes them; a bad one behind
        /// them is replaced as a whole, and nothing after it arrives.
        #[test]
        fn what_passes_is_unchanged_and_what_is_refused_is_replaced(
            requests in proptest::collection::vec(request(), 0..5),
            cuts in proptest::collection::vec(1_usize..90, 1..30),
            takes in proptest::collection::vec(1_usize..200, 1..10),
        ) {
            let good = requests.concat();
            prop_assert_eq!(read_through(&good, &cuts, &takes), good.clone());
            let mut bad = good.clone();
            bad.extend_from_slice(b"GET /smuggled HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\nGET /next HTTP/1.1\r\nHost: h\r\n\r\n");
            let mut expected = good;
            expected.extend_from_slice(
                format!("{REFUSED_METHOD} /host_repeated HTTP/1.1\r\nhost: refused\r\nconnection: close\r\n\r\n").as_bytes(),
            );
            prop_assert_eq!(read_through(&bad, &cuts, &takes), expected);
        }
    }

    #[tokio::test]
    async fn bytes_after_a_granted_upgrade_are_nobodys_heads_and_bytes_before_it_refuse_it() {
        let upgrade = b"GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\n\r\n";
        for (early, allowed) in [(false, true), (true, false)] {
            let (mut client, server) = tokio::io::duplex(1 << 16);
            let state = Arc::new(ConnectionState::default());
            let mut guarded = GuardedIo::http1(server, Arc::clone(&state), TIMEOUTS);
            client.write_all(upgrade).await.unwrap();
            if early {
                client.write_all(b"\x81\x00").await.unwrap();
            }
            let mut buffer = [0; 1024];
            assert_eq!(guarded.read(&mut buffer).await.unwrap(), upgrade.len());
            state.set_upgraded();
            if !early {
                client.write_all(b"\x81\x00").await.unwrap();
                assert_eq!(guarded.read(&mut buffer).await.unwrap(), 2);
            }
            assert_eq!(guarded.into_upgraded().is_some(), allowed);
        }
    }
}
