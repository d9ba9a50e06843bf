//! Builders of history for the tests of the hot views.
#![allow(clippy::unwrap_used)]
