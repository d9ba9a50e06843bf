//! An invitation: somebody who is to join an organization with some roles, until a time.
//!
//! It stands in the stream of the user who is to be, and on the right of whoever made it: when they may no longer give
//! one of its roles, it opens nothing. Not here: its token (identity), and joining the organization (`organization`).

use crate::access::{Role, Scope};
use crate::ids::UserId;
use crate::time::UnixMillis;
use crate::user::EmailAddress;

/// A role that comes with an invitation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InvitedRole {
    pub role: Role,
    pub scope: Scope,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invitation {
    /// Who the person will be.
    pub user: UserId,
    pub email: EmailAddress,
    pub roles: Vec<InvitedRole>,
    pub invited_by: UserId,
    pub expires_at: UnixMillis,
}

impl Invitation {
    pub fn is_open(&self, now: UnixMillis) -> bool {
        now < self.expires_at
    }
}
