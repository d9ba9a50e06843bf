//! Stored events of refused attempts.

use std::net::IpAddr;

use envforge_domain::commit::{Actor, Position, Surface};
use envforge_domain::denial::{DenialEvent, DeniedAttempts, RefusedRequest};
use envforge_domain::ids::CorrelationId;
use envforge_domain::time::UnixMillis;

use serde_json::Value;

use super::wire::{events, object};

events! {
    DenialEvent {
        "denial.recorded.v4" => Recorded { attempts: Vec<DeniedAttempts> = "attempts" },
    }
}

object! {
    DeniedAttempts {
        actor: Actor = "actor",
        about: Option<Actor> = "about",
        action: String = "action",
        surface: Surface = "surface",
        resource: Option<String> = "resource",
        address: Option<IpAddr> = "address",
        code: String = "code",
        count: u32 = "count",
        first_at: UnixMillis = "first_at",
        last_at: UnixMillis = "last_at",
        requests: Vec<RefusedRequest> = "requests",
    }
}

object! {
    RefusedRequest {
        request: CorrelationId = "request",
        at: UnixMillis = "at",
        position: Position = "position",
    }
}

/// No request was named; the same of attempts that a link's visitors had refused.
pub(super) fn without_requests(mut data: Value) -> Result<Value, String> {
    for attempts in data["attempts"].as_array_mut().ok_or("`attempts` must be a list")? {
        attempts["requests"] = Value::Array(Vec::new());
    }
    Ok(data)
}

/// Nobody could ask about another.
pub(super) fn recorded_v2_to_v3(mut data: Value) -> Result<Value, String> {
    for attempts in data["attempts"].as_array_mut().ok_or("`attempts` must be a list")? {
        attempts["about"] = Value::Null;
    }
    Ok(data)
}

/// The first version did not say from where.
pub(super) fn recorded_v1_to_v2(mut data: Value) -> Result<Value, String> {
    for attempts in data["attempts"].as_array_mut().ok_or("`attempts` must be a list")? {
        attempts["address"] = Value::Null;
    }
    Ok(data)
}
