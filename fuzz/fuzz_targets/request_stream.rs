//! Whole connections of clients: the service is asked what lies on the wire, through the lane and through hyper.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| envforge_gateway::fuzzing::request_stream(input));
