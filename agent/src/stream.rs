//! A byte stream in both directions, one of many on a connection, or between two parts of this process.
//!
//! Backpressure is the connection's (HTTP/2, RFC 9113 5.2): a reader that does not read stops its writer after a window, and nobody
//! else on the connection. What comes is taken in at once all the same: a connection that holds it keeps each frame by itself, which
//! costs a hundred times what a single byte does. Dropping a stream that was not shut down resets it; within a process the other end
//! finds it at its end.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use h2::{FlowControl, Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;
use tokio_util::sync::PollSemaphore;

/// Written at once at most; within a process also what is on its way each way.
const CHUNK_BYTES: usize = 64 * 1024;
/// Frames that wait for the connection to send them, however small they are.
const UNSENT_MAX: usize = 1_024;
/// What was read is room again for the other side by as much at a time, at most.
const OWED_BYTES_MAX: usize = 64 * 1024;
/// An inbox that is empty keeps no more room than this.
const KEPT_BYTES_MAX: usize = 16 * 1024;

/// A stream whose both ends are open.
pub struct ByteStream(Way);

enum Way {
    Connection(OnConnection),
    Process(DuplexStream),
}

struct OnConnection {
    send: SendStream<Bytes>,
    /// A place for each frame that is not sent yet.
    unsent: PollSemaphore,
    inbox: Arc<Mutex<Inbox>>,
    filling: AbortHandle,
    room: FlowControl,
    /// What was read, and the other side may not send again yet.
    owed: usize,
    shut: bool,
}

impl ByteStream {
    pub(crate) fn new(send: SendStream<Bytes>, mut recv: RecvStream) -> Self {
        let (room, inbox) = (recv.flow_control().clone(), Arc::<Mutex<Inbox>>::default());
        let filling = tokio::spawn(fill(recv, Arc::clone(&inbox))).abort_handle();
        let unsent = PollSemaphore::new(Arc::new(Semaphore::new(UNSENT_MAX)));
        Self(Way::Connection(OnConnection { send, unsent, inbox, filling, room, owed: 0, shut: false }))
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

/// What came and was not read yet: at most a window, which gets room again only for what was read.
#[derive(Default)]
struct Inbox {
    bytes: VecDeque<u8>,
    /// How it ended, after those bytes.
    over: Option<io::Result<()>>,
    reader: Option<Waker>,
}

impl Inbox {
    fn wake(&mut self) {
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }
}

/// A frame that the connection has not sent yet.
struct Unsent {
    bytes: Box<[u8]>,
    _place: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Unsent {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

fn locked(inbox: &Mutex<Inbox>) -> MutexGuard<'_, Inbox> {
    inbox.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes in whatever comes, as it comes.
async fn fill(mut recv: RecvStream, inbox: Arc<Mutex<Inbox>>) {
    let over = loop {
        match recv.data().await {
            None => break Ok(()),
            Some(Ok(chunk)) => {
                let mut inbox = locked(&inbox);
                inbox.bytes.extend(&chunk[..]);
                inbox.wake();
            }
            Some(Err(error)) if error.reason() == Some(Reason::NO_ERROR) => break Ok(()),
            Some(Err(error)) => break Err(broken(error)),
        }
    };
    let mut inbox = locked(&inbox);
    inbox.over = Some(over);
    inbox.wake();
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
        let mut guard = locked(&this.inbox);
        let inbox = &mut *guard;
        if inbox.bytes.is_empty() {
            return match &mut inbox.over {
                None => {
                    inbox.reader = Some(context.waker().clone());
                    Poll::Pending
                }
                Some(Ok(())) => Poll::Ready(Ok(())),
                // Said in full once.
                Some(over) => Poll::Ready(std::mem::replace(over, Err(io::ErrorKind::ConnectionReset.into()))),
            };
        }
        let (front, _) = inbox.bytes.as_slices();
        let length = front.len().min(buffer.remaining());
        buffer.put_slice(&front[..length]);
        inbox.bytes.drain(..length);
        let all_read = inbox.bytes.is_empty();
        if all_read && inbox.bytes.capacity() > KEPT_BYTES_MAX {
            inbox.bytes = VecDeque::new();
        }
        drop(guard);
        this.owed += length;
        if all_read || this.owed >= OWED_BYTES_MAX {
            // Fails where the stream is over: nobody waits for room then.
            let _ = this.room.release_capacity(std::mem::take(&mut this.owed));
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
        // Given back with a frame that is sent, or never will be.
        let place = ready!(this.unsent.poll_acquire(context));
        let _place = place.ok_or_else(|| io::Error::from(io::ErrorKind::BrokenPipe))?;
        let length = wanted.min(this.send.capacity());
        let frame = Unsent { bytes: bytes[..length].into(), _place };
        this.send.send_data(Bytes::from_owner(frame), false).map_err(broken)?;
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
        self.filling.abort();
    }
}
