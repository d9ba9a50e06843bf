//! `envforge.yml` from outside: what is read, what is refused with which words, the canonical text and the schema.

#![allow(clippy::unwrap_used)]

mod generated;
mod mistakes;
mod properties;
mod read;
mod schema;
