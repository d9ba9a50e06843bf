//! Forms, SCIM filters and patches, provider events, cursors, instants, JSON as idempotency compares it.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| envforge_api::fuzzing::api_bodies(input));
