//! What `fuzz/` feeds with bytes that nobody has written: each function reads one input by the parsers of one format and
//! holds what they say against a second, naive reading.
//!
//! Not here: running them (`cargo xtask fuzz`) and what they are run on (`fuzz/inputs`, which the test below goes through).
#![allow(clippy::unwrap_used, reason = "a panic is how a disagreement is told")]

mod answer;
mod codes;
mod cookies;
mod hosts;
mod request_head;
mod request_stream;
mod script;
mod websocket;

pub use answer::app_answer;
pub use cookies::cookies;
pub use hosts::hosts_and_paths;
pub use request_head::request_head;
pub use request_stream::request_stream;

use crate::config::{Config, Scheme};

/// The gateway of every input.
fn config() -> Config {
    let listen = std::net::SocketAddr::from(([127, 0, 0, 1], 443));
    Config::new("dev.envforge.ai", Scheme::Https, listen)
}

/// Where an input of this length is cut: everywhere, or at some thirty places.
fn cuts(length: usize) -> impl Iterator<Item = usize> {
    (0..length).step_by((length / 32).max(1))
}

#[cfg(test)]
mod tests {
    type Target = (&'static str, fn(&[u8]));

    const TARGETS: [Target; 5] = [
        ("app_answer", super::app_answer),
        ("cookies", super::cookies),
        ("hosts_and_paths", super::hosts_and_paths),
        ("request_head", super::request_head),
        ("request_stream", super::request_stream),
    ];

    #[test]
    fn the_committed_inputs_of_the_gateways_fuzz_targets_hold() {
        for (name, target) in TARGETS {
            let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/inputs").join(name);
            let mut inputs = 0;
            for entry in std::fs::read_dir(&folder).unwrap() {
                let path = entry.unwrap().path();
                // Seen where one panics.
                println!("{}", path.display());
                target(&std::fs::read(path).unwrap());
                inputs += 1;
            }
            assert!(inputs > 0, "{} is empty", folder.display());
        }
    }
}
