//! Headers of the API: bearer, cookies, origin, idempotency key, position, surface, forwarded addresses.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| envforge_api::fuzzing::api_headers(input));
