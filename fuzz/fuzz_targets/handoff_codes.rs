//! Handoff codes of share pages: what opens is what was sealed, for its host and browser.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| envforge_gateway::fuzzing::handoff_codes(input));
