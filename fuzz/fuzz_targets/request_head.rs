//! Heads of requests: our scan agrees with httparse, the lane with hyper, and an app is sent nothing of ours.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| envforge_gateway::fuzzing::request_head(input));
