//! WebSockets: an app's answer to a handshake, and where frames end.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| envforge_gateway::fuzzing::websocket(input));
