//! One open connection to an app: its stream, and what was read of it and not yet understood.
//!
//! Not here: what the bytes mean (`answer_head`, `answer_body`), and whose connection it is (`mod`).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::BytesMut;
use tokio::net::TcpStream;
use tokio_util::io::poll_read_buf;

/// A buffer that has grown beyond this is not kept while nothing is under way.
const IDLE_BUFFER_BYTES_MAX: usize = 16 * 1024;

pub(super) struct Wire {
    stream: TcpStream,
    pub(super) buffer: BytesMut,
}

impl Wire {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self { stream, buffer: BytesMut::new() }
    }

    /// Reads once, with room for at least `room` bytes. 0 means that the app has closed.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>, room: usize) -> Poll<io::Result<usize>> {
        self.buffer.reserve(room);
        poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.buffer)
    }

    pub(super) fn stream(&mut self) -> Pin<&mut TcpStream> {
        Pin::new(&mut self.stream)
    }

    /// Whether the app has neither closed nor said anything that nobody asked for, as far as is known. Asks the kernel
    /// only where something has happened on the connection.
    pub(super) fn is_quiet(&self) -> bool {
        let asked = self.stream.try_read(&mut [0]);
        self.buffer.is_empty() && asked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Called where nothing is under way.
    pub(super) fn rest(&mut self) {
        if self.buffer.capacity() > IDLE_BUFFER_BYTES_MAX {
            self.buffer = BytesMut::new();
        }
    }

    pub(super) fn into_parts(self) -> (TcpStream, BytesMut) {
        (self.stream, self.buffer)
    }
}
