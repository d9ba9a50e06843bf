//! A byte stream in both directions, one of many on a connection, or between two parts of this process.
//!
//! Backpressure is the connection's (HTTP/2, RFC 9113 5.2): a reader that does not read stops its writer after a window, and nobody
//! else on the connection. Dropping a stream that was not shut down resets it; within a process the other end finds it at its end.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

/// Written at once at most; within a process also what is on its way each way.
const CHUNK_BYTES: usize = 64 * 1024;

/// A stream whose both ends are open.
pub struct ByteStream(Way);

enum Way {
    Connection(OnConnection),
    Process(DuplexStream),
}

struct OnConnection {
    send: SendStream<Bytes>,
    recv: RecvStream,
    /// What came and was not read yet.
    chunk: Bytes,
    /// What the other side may send again once `chunk` is read.
    held: usize,
    shut: bool,
}

impl ByteStream {
    pub(crate) fn new(send: SendStream<Bytes>, recv: RecvStream) -> Self {
        Self(Way::Connection(OnConnection { send, recv, chunk: Bytes::new(), held: 0, shut: false }))
    }

    /// Both ends of a stream within this process.
    pub(crate) fn pair() -> (Self, Self) {
        let (one, other) = tokio::io::duplex(CHUNK_BYTES);
        (Self(Way::Process(one)), Self(Way::Process(other)))
    }
}

impl AsyncRead for ByteStream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().0 {
            Way::Connection(stream) => Pin::new(stream).poll_read(context, buffer),
            Way::Process(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for ByteStream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().0 {
            Way::Connection(stream) => Pin::new(stream).poll_write(context, bytes),
            Way::Process(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().0 {
            Way::Connection(stream) => Pin::new(stream).poll_flush(context),
            Way::Process(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().0 {
            Way::Connection(stream) => Pin::new(stream).poll_shutdown(context),
            Way::Process(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

fn broken(error: h2::Error) -> io::Error {
    if error.is_io() {
        return error.into_io().unwrap_or_else(|| io::ErrorKind::BrokenPipe.into());
    }
    io::Error::new(io::ErrorKind::ConnectionReset, error)
}

impl AsyncRead for OnConnection {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.chunk.is_empty() {
            match ready!(this.recv.poll_data(context)) {
                None => return Poll::Ready(Ok(())),
                Some(Ok(chunk)) => {
                    this.held = chunk.len();
                    this.chunk = chunk;
                }
                Some(Err(error)) if error.reason() == Some(Reason::NO_ERROR) => return Poll::Ready(Ok(())),
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
            }
        }
        let length = this.chunk.len().min(buffer.remaining());
        buffer.put_slice(&this.chunk[..length]);
        this.chunk.advance(length);
        if this.chunk.is_empty() {
            let held = std::mem::take(&mut this.held);
            // Fails where the stream is over: nobody waits for room then.
            let _ = this.recv.flow_control().release_capacity(held);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for OnConnection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let wanted = bytes.len().min(CHUNK_BYTES);
        this.send.reserve_capacity(wanted);
        while this.send.capacity() == 0 {
            match ready!(this.send.poll_capacity(context)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
        let length = wanted.min(this.send.capacity());
        this.send.send_data(Bytes::copy_from_slice(&bytes[..length]), false).map_err(broken)?;
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The connection's task sends what is given to it.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.shut {
            this.shut = true;
            this.send.send_data(Bytes::new(), true).map_err(broken)?;
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for OnConnection {
    fn drop(&mut self) {
        if !self.shut {
            self.send.send_reset(Reason::CANCEL);
        }
    }
}
