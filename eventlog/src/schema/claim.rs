//! Stored events of claims.

use envforge_domain::claim::ClaimEvent;

use super::wire::events;

events! {
    ClaimEvent {
        "claim.taken.v1" => Taken { holder: String = "holder" },
        "claim.retired.v1" => Retired { holder: String = "holder" },
        "claim.released.v1" => Released { holder: String = "holder" },
    }
}
