//! An answer of JSON Lines, line by line, with a bound on each line.
//!
//! Not here: asking for it (`client`), and going on after it broke off (`audit`).

use reqwest::Response;

use super::client::cause;
use super::failure::Failure;

/// One event is at most 64 KiB; its envelope is small.
const LINE_BYTES_MAX: usize = 1 << 20;

/// The lines of an answer that may stay open.
pub(crate) struct Lines {
    response: Response,
    buffer: Vec<u8>,
    /// Where in `buffer` the first line begins that was not returned yet.
    start: usize,
    /// Up to where no line end was found.
    searched: usize,
}

impl Lines {
    pub(crate) fn of(response: Response) -> Self {
        Self { response, buffer: Vec::new(), start: 0, searched: 0 }
    }

    /// The next line that is not empty; `None` at the end of the answer. A last line without line end is an answer that
    /// broke off in the middle of it, and is not returned.
    ///
    /// # Errors
    /// `Unreachable` where the connection broke, `Local` for a line beyond any event's size.
    pub(crate) async fn next(&mut self) -> Result<Option<String>, Failure> {
        loop {
            while let Some(end) = self.buffer[self.searched..].iter().position(|byte| *byte == b'\n') {
                let end = self.searched + end;
                let line = String::from_utf8_lossy(&self.buffer[self.start..end]).trim().to_owned();
                (self.start, self.searched) = (end + 1, end + 1);
                if !line.is_empty() {
                    return Ok(Some(line));
                }
            }
            self.buffer.drain(..self.start);
            (self.start, self.searched) = (0, self.buffer.len());
            if self.buffer.len() > LINE_BYTES_MAX {
                return Err(Failure::local(format!("the API sent a line of more than {LINE_BYTES_MAX} bytes"), ""));
            }
            match self.response.chunk().await {
                Ok(Some(chunk)) => self.buffer.extend_from_slice(&chunk),
                Ok(None) => return Ok(None),
                Err(error) => {
                    return Err(Failure::unreachable(format!("the event stream broke: {}", cause(&error)), ""));
                }
            }
        }
    }
}
