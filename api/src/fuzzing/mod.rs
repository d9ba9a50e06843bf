//! What `fuzz/` feeds with headers and bodies that nobody has written: each function reads one input by the parsers of one
//! format and holds what they say against a second, naive reading.
//!
//! Not here: running them (`cargo xtask fuzz`) and what they are run on (`fuzz/inputs`, which the test below goes through).
#![allow(clippy::unwrap_used, reason = "a panic is how a disagreement is told")]

mod api_bodies;
mod api_headers;

pub use api_bodies::api_bodies;
pub use api_headers::api_headers;

#[cfg(test)]
mod tests {
    type Target = (&'static str, fn(&[u8]));

    const TARGETS: [Target; 2] = [("api_bodies", super::api_bodies), ("api_headers", super::api_headers)];

    #[test]
    fn the_committed_inputs_of_the_apis_fuzz_targets_hold() {
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
