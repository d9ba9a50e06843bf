//! Who somebody is.
//!
//! Owns accounts and their credential table, the way to an OpenID provider, password rules, access and refresh tokens, share tokens, and the randomness
//! that those need. Not here: what somebody may do (domain's access policy) and the record of it (the log).

pub mod clock;
mod common_passwords;
pub mod credentials;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod hesitation;
pub mod key_file;
pub mod key_ring;
pub mod lockout;
mod migrations;
pub mod oidc;
pub mod password;
pub mod randomness;
pub mod self_hosted;
pub mod service_tokens;
pub mod sessions;
pub mod share_token;
pub mod sign_in;
pub mod submitted;
pub mod tokens;
pub mod workspace_handoff;
mod yielding_bcrypt;
