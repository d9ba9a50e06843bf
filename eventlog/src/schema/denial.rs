//! Stored events of refused attempts.

use envforge_domain::commit::{Actor, Surface};
use envforge_domain::denial::{DenialEvent, DeniedAttempts};
use envforge_domain::time::UnixMillis;

use super::wire::{events, object};

events! {
    DenialEvent {
        "denial.recorded.v1" => Recorded { attempts: Vec<DeniedAttempts> = "attempts" },
    }
}

object! {
    DeniedAttempts {
        actor: Actor = "actor",
        action: String = "action",
        surface: Surface = "surface",
        resource: Option<String> = "resource",
        code: String = "code",
        count: u32 = "count",
        first_at: UnixMillis = "first_at",
        last_at: UnixMillis = "last_at",
    }
}
