//! How connections with byte streams are set up, on both of their sides.
//!
//! INVARIANT: no stream ends another one's connection. What h2 would hold against a connection as a whole (frames that nobody has read
//! yet, streams that were taken back) is bounded stream by stream: by windows, by what a stream takes in at once (`stream`), and by how
//! many streams there are.

use h2::{client, server};

/// Streams of one connection.
pub(crate) const CALLS_MAX: u32 = 1_024;
/// What one stream may hold that nobody has read yet, where the control plane reads.
pub(crate) const WINDOW_BYTES: u32 = 256 * 1024;
const FRAME_BYTES: u32 = 64 * 1024;
const HEADERS_BYTES_MAX: u32 = 8 * 1024;

/// The side that asks.
pub(crate) fn asking() -> client::Builder {
    let mut builder = client::Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(WINDOW_BYTES)
        .initial_connection_window_size(all_windows(WINDOW_BYTES))
        .max_frame_size(FRAME_BYTES)
        .max_header_list_size(HEADERS_BYTES_MAX)
        .max_send_buffer_size(WINDOW_BYTES as usize)
        // A byte that comes alone counts like 256, and one that comes for a stream that is gone is never taken off again.
        .data_frame_budget(usize::MAX)
        .max_concurrent_reset_streams(CALLS_MAX as usize)
        // Each frame that was on its way to a stream when it was reset counts for as long as the connection lives.
        .max_local_error_reset_streams(None);
    builder
}

/// The side that answers. `window`: bytes that one of its streams may hold that nobody has read yet.
pub(crate) fn answering(window: u32) -> server::Builder {
    let mut builder = server::Builder::new();
    builder
        .initial_window_size(window)
        .initial_connection_window_size(all_windows(window))
        .max_frame_size(FRAME_BYTES)
        .max_concurrent_streams(CALLS_MAX)
        .max_send_buffer_size(window as usize)
        // As for the side that asks.
        .data_frame_budget(usize::MAX)
        .max_concurrent_reset_streams(CALLS_MAX as usize)
        .max_local_error_reset_streams(None)
        // Who asks may take back what it has just asked for, all of it at once, too.
        .max_pending_accept_reset_streams(CALLS_MAX as usize);
    builder
}

/// INVARIANT: as much as all streams together, so that those that nobody reads hold up no other, a session least of all.
const fn all_windows(window: u32) -> u32 {
    window * CALLS_MAX
}
