//! A provider's key sets, discovery, answers and signed events; places to go back to; settings.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| envforge_identity::fuzzing::oidc_documents(input));
