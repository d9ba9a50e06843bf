//! Who somebody is.
//!
//! Owns share tokens, and accounts, sessions and tokens of people. Not here: what somebody may do (domain's policy).

pub mod share_token;
