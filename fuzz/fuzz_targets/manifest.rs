//! envforge.yml: what is taken has one canonical text.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| envforge_domain::fuzzing::manifest(input));
