//! What the API reads of requests: headers, forms, SCIM, provider events, cursors, instants, JSON as idempotency compares it.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| envforge_api::fuzzing::api_requests(input));
