//! Copies bytes between a client and an app until one of them, the link, or a limit ends it.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;
use tokio_util::io::poll_read_buf;
use tokio_util::sync::CancellationToken;

use super::frame::{FrameTracker, close_frame};
use crate::activity::OpenStream;
use crate::forward::LAST_WORD;
use crate::standing::Standing;

/// Bytes under way in one direction, once it has filled a small buffer. Most sockets say little, and many are open.
const BUFFER_BYTES: usize = 16 * 1024;
const SMALL_BUFFER_BYTES: usize = 1024;
/// How often a socket in use says so to `activity`.
const ACTIVITY_INTERVAL: Duration = Duration::from_secs(5);
/// Private close code (RFC 6455 7.4.2) for a right that has ended; the number follows HTTP's 403.
const CLOSE_ACCESS_ENDED: u16 = 4403;
const CLOSE_IDLE: u16 = 4408;
/// The gateway stops; the client may connect again.
const CLOSE_RESTART: u16 = 1012;
/// The gateway has not heard from the log for too long; later it may have.
const CLOSE_STALE: u16 = 1013;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    Normally,
    Withdrawn,
    Expired,
    /// Nobody knows whether the right still stands.
    Stale,
    Idle,
    Shutdown,
    Broken,
    EarlyBytes,
}

impl Ended {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Normally => "normally",
            Self::Withdrawn => "withdrawn",
            Self::Expired => "expired",
            Self::Stale => "authorization_stale",
            Self::Idle => "idle",
            Self::Shutdown => "shutdown",
            Self::Broken => "broken",
            Self::EarlyBytes => "early_bytes",
        }
    }
}

pub(crate) struct Limits {
    pub(crate) idle: Duration,
    pub(crate) deadline: Instant,
}

pub(crate) struct Splice {
    /// The path's family and that of sockets: either ends it.
    pub(crate) cancel: [CancellationToken; 2],
    /// Given when the log has been silent for too long.
    pub(crate) cut: CancellationToken,
    pub(crate) stop: CancellationToken,
    pub(crate) limits: Limits,
    pub(crate) open: OpenStream,
    pub(crate) standing: Arc<Standing>,
}

/// One direction: what was read and not yet written.
struct Copy {
    buffer: BytesMut,
    /// Room made before a read.
    room: usize,
    finished: bool,
    needs_flush: bool,
}

impl Copy {
    fn new(early: &[u8]) -> Self {
        Self { buffer: BytesMut::from(early), room: SMALL_BUFFER_BYTES, finished: false, needs_flush: false }
    }

    /// Runs until it has to wait. `moved` is set where bytes were written, `wrote` sees them.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        mut from: Pin<&mut impl AsyncRead>,
        mut to: Pin<&mut impl AsyncWrite>,
        moved: &mut bool,
        mut wrote: impl FnMut(&[u8]),
    ) -> Poll<io::Result<()>> {
        loop {
            while !self.buffer.is_empty() {
                let written = ready!(to.as_mut().poll_write(cx, &self.buffer))?;
                if written == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                wrote(&self.buffer[..written]);
                self.buffer.advance(written);
                (*moved, self.needs_flush) = (true, true);
            }
            if self.finished {
                return to.as_mut().poll_shutdown(cx);
            }
            // What was written is given up, so this makes no new buffer unless it grows.
            self.buffer.reserve(self.room);
            match poll_read_buf(from.as_mut(), cx, &mut self.buffer)? {
                Poll::Ready(read) => {
                    self.finished = read == 0;
                    if read >= self.room {
                        self.room = BUFFER_BYTES;
                    }
                }
                Poll::Pending => {
                    if self.needs_flush {
                        ready!(to.as_mut().poll_flush(cx))?;
                        self.needs_flush = false;
                    }
                    return Poll::Pending;
                }
            }
        }
    }
}

impl Splice {
    /// `app_early` are bytes that the app sent right behind its 101.
    pub(super) async fn run(
        self,
        client: impl AsyncRead + AsyncWrite,
        app: impl AsyncRead + AsyncWrite,
        app_early: Bytes,
    ) -> Ended {
        let (mut client, mut app) = (std::pin::pin!(client), std::pin::pin!(app));
        let (mut upward, mut downward) = (Copy::new(&[]), Copy::new(&app_early));
        drop(app_early);
        let mut frames = FrameTracker::default();
        let moved = AtomicBool::new(false);
        // Looked at only when something in it has happened, and not for each message.
        let mut watch = FuturesUnordered::from_iter([self.watch(&moved)]);
        let (mut up_done, mut down_done) = (false, false);
        let ended = poll_fn(|cx| {
            if let Poll::Ready(Some(ended)) = watch.poll_next_unpin(cx) {
                return Poll::Ready(ended);
            }
            let mut any = false;
            let mut copying = || -> io::Result<()> {
                if !up_done
                    && let Poll::Ready(result) = upward.poll(cx, client.as_mut(), app.as_mut(), &mut any, |_| {})
                {
                    result?;
                    up_done = true;
                }
                if !down_done
                    && let Poll::Ready(result) =
                        downward.poll(cx, app.as_mut(), client.as_mut(), &mut any, |bytes| frames.advance(bytes))
                {
                    result?;
                    down_done = true;
                }
                Ok(())
            };
            let copied = copying();
            if any {
                moved.store(true, Ordering::Relaxed);
            }
            match copied {
                // The app has closed: whatever the client still says, nobody hears it.
                Ok(()) if down_done => Poll::Ready(Ended::Normally),
                Ok(()) => Poll::Pending,
                Err(_) => Poll::Ready(Ended::Broken),
            }
        })
        .await;
        drop(watch);
        let last_word = match ended {
            Ended::Withdrawn => Some((CLOSE_ACCESS_ENDED, "access ended")),
            Ended::Expired => Some((CLOSE_ACCESS_ENDED, "link expired")),
            Ended::Stale => Some((CLOSE_STALE, "access cannot be confirmed")),
            Ended::Idle => Some((CLOSE_IDLE, "idle")),
            Ended::Shutdown => Some((CLOSE_RESTART, "restarting")),
            Ended::Normally | Ended::Broken | Ended::EarlyBytes => None,
        };
        if let Some((code, reason)) = last_word
            && frames.may_close()
        {
            let frame = close_frame(code, reason);
            // A client that takes nothing is not waited for.
            let _ = tokio::time::timeout(LAST_WORD, async {
                client.write_all(&frame).await?;
                client.flush().await?;
                client.shutdown().await
            })
            .await;
        }
        ended
    }

    /// Comes back when the socket has to end though both sides are there. `moved` is set where bytes went through.
    async fn watch(&self, moved: &AtomicBool) -> Ended {
        // Looked at several times within the idle time, so that activity is reported while it happens.
        let look = (self.limits.idle / 4).min(ACTIVITY_INTERVAL);
        let mut used_at = Instant::now();
        let given = async {
            tokio::select! {
                biased;
                () = self.cancel[0].cancelled() => Ended::Withdrawn,
                () = self.cancel[1].cancelled() => Ended::Withdrawn,
                () = self.cut.cancelled() => Ended::Stale,
                () = self.stop.cancelled() => Ended::Shutdown,
                () = tokio::time::sleep_until(self.limits.deadline) => Ended::Expired,
            }
        };
        let mut given = std::pin::pin!(given);
        loop {
            tokio::select! {
                biased;
                ended = given.as_mut() => return ended,
                () = tokio::time::sleep(look) => {
                    let now = Instant::now();
                    if moved.swap(false, Ordering::Relaxed) {
                        used_at = now;
                        self.open.touch(self.standing.now());
                    } else if now >= used_at + self.limits.idle {
                        return Ended::Idle;
                    }
                }
            }
        }
    }
}
