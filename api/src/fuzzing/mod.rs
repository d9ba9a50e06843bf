//! What `fuzz/` feeds with headers and bodies that nobody has written: each function reads one input by the parsers of one
//! format and holds what they say against a second, naive reading.
//!
//! Not here: running them (`cargo xtask fuzz`) and what they are run on (`fuzz/inputs`, which the test below goes through).
#![allow(clippy::unwrap_used, reason = "a panic is how a disagreement is told")]

mod api_bodies;
mod api_headers;

use api_bodies::api_bodies;
use api_headers::api_headers;

/// First byte: what the rest is, of nine kinds, the last of them headers.
pub fn api_requests(bytes: &[u8]) {
    match bytes {
        [mode, rest @ ..] if mode % 9 == 8 => api_headers(rest),
        _ => api_bodies(bytes),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_committed_inputs_of_the_apis_fuzz_target_hold() {
        envforge_testkit::feed_fuzz_inputs("api_requests", super::api_requests);
    }
}
