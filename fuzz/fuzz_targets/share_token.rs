//! Share tokens and workspace handoffs: neither passes for the other, and each says what was signed.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| envforge_identity::fuzzing::share_token(input));
