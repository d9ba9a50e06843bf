//! Hosts, paths, route families, slugs, ids and places to go back to: one spelling, one meaning.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| envforge_gateway::fuzzing::hosts_and_paths(input));
