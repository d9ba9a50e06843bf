//! Refresh tokens, service tokens, invitations and cookies of browsers: taken as given, letter for letter.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| envforge_identity::fuzzing::opaque_tokens(input));
