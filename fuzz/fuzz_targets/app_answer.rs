//! Apps' answers, 101 and frames among them: our reading agrees with hyper's, whatever the cuts; clients are told nothing that an app may not say.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| envforge_gateway::fuzzing::app_answer(input));
