//! A stream whose other side says what an input says, and the polling of what reads it until nothing moves any more.

use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, Wake, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::runtime::{Builder, Runtime};

pub(super) struct Script {
    input: Vec<u8>,
    at: usize,
    piece: usize,
    /// It speaks when it was spoken to, and then leaves.
    answers: bool,
    spoken_to: bool,
    reader: Option<Waker>,
}

impl Script {
    /// What a client says; it stays and waits.
    pub(super) fn client_says(input: &[u8], piece: usize) -> Self {
        Self { input: input.to_vec(), at: 0, piece, answers: false, spoken_to: true, reader: None }
    }

    /// What an app says to whatever it is asked; it leaves then.
    pub(super) fn app_says(input: &[u8], piece: usize) -> Self {
        Self { answers: true, spoken_to: false, ..Self::client_says(input, piece) }
    }
}

impl AsyncRead for Script {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let length = self.piece.min(self.input.len() - self.at).min(buf.remaining());
        if !self.spoken_to || (length == 0 && !self.answers) {
            self.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        buf.put_slice(&self.input[self.at..self.at + length]);
        self.at += length;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Script {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.spoken_to = true;
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Polls for as long as somebody asks for it; `None` where nothing moves any more. No time passes.
pub(super) fn drive<T>(future: impl Future<Output = T>) -> Option<T> {
    static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Builder::new_current_thread().enable_time().build().unwrap());
    let _context = RUNTIME.enter();
    let woken = Arc::new(Woken(AtomicBool::new(true)));
    let waker = Waker::from(Arc::clone(&woken));
    let mut future = pin!(future);
    while woken.0.swap(false, Ordering::Relaxed) {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return Some(output);
        }
    }
    None
}
