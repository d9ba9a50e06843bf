//! Cookie and Set-Cookie lines: none of ours reach an app or come from one. Handoff codes: what opens is what was sealed.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| envforge_gateway::fuzzing::cookies(input));
