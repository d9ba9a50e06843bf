//! Access tokens (HS256 and EdDSA): whoever is taken for signed in is whom the signed claims name.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| envforge_identity::fuzzing::access_token(input));
