//! A provider's ID, access and logout tokens: signed by the key they name, of one kind, and for us.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| envforge_identity::fuzzing::oidc_token(input));
