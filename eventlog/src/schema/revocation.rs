//! Receipts of revocations, as they stand in the events of whatever was revoked.

use envforge_domain::ids::{ApiProcessId, GatewayId};
use envforge_domain::revocation::{Receipt, Uncounted, UncountedShells, WhyShellsUnknown, WhyUncounted};
use envforge_domain::time::Millis;
use serde_json::{Value, json};

use super::wire::{object, tokens};

object! {
    Receipt {
        sessions: u32 = "sessions",
        cli_sessions: u32 = "cli_sessions",
        links: u32 = "links",
        sockets: u32 = "sockets",
        uncounted: Vec<Uncounted> = "uncounted",
        shells: u32 = "shells",
        shells_uncounted: Vec<UncountedShells> = "shells_uncounted",
        took: Millis = "took_ms",
    }
}

object! {
    Uncounted {
        gateway: Option<GatewayId> = "gateway",
        why: WhyUncounted = "why",
    }
}

tokens! {
    WhyUncounted {
        "still_closing" => StillClosing,
        "gateway_lost" => Lost,
        "gateway_silent" => Silent,
        "gateways_unknown" => Unknown,
        "not_reported" => NotReported,
    }
}

object! {
    UncountedShells {
        process: Option<ApiProcessId> = "process",
        why: WhyShellsUnknown = "why",
    }
}

tokens! {
    WhyShellsUnknown {
        "still_closing" => StillClosing,
        "process_lost" => Lost,
        "process_silent" => Silent,
        "processes_unknown" => Unknown,
        "other_processes" => OtherProcesses,
        "not_reported" => NotReported,
    }
}

/// Shells were not counted.
pub(super) fn without_shells(mut data: Value) -> Result<Value, String> {
    let receipt = data.get_mut("receipt").and_then(Value::as_object_mut).ok_or("no receipt")?;
    receipt.insert("shells".to_owned(), 0.into());
    receipt.insert("shells_unknown".to_owned(), "not_reported".into());
    Ok(data)
}

/// One process was asked, and said at most one reason.
pub(super) fn with_one_process(mut data: Value) -> Result<Value, String> {
    let receipt = data.get_mut("receipt").and_then(Value::as_object_mut).ok_or("no receipt")?;
    let uncounted = match receipt.remove("shells_unknown").ok_or("`receipt` must have `shells_unknown`")? {
        Value::Null => json!([]),
        why => json!([{ "process": null, "why": why }]),
    };
    receipt.insert("shells_uncounted".to_owned(), uncounted);
    Ok(data)
}

/// The first version of people's receipts held the cause within, and nothing of command lines. Sockets were a number or `null`.
pub(super) fn of_user_v1_to_v2(mut data: Value) -> Result<Value, String> {
    let cause = data["receipt"]["cause"].take();
    Ok(json!({ "cause": cause, "receipt": receipt(&data["receipt"], data["receipt"]["links"].clone())? }))
}

/// Those of links named no link: it was the one.
pub(super) fn of_link_v1_to_v2(data: Value) -> Result<Value, String> {
    Ok(json!({ "receipt": receipt(&data["receipt"], 1.into())? }))
}

fn receipt(former: &Value, links: Value) -> Result<Value, String> {
    let sockets = former.get("sockets").ok_or("`receipt` must have `sockets`")?;
    let uncounted = if sockets.is_null() { json!([{ "gateway": null, "why": "not_reported" }]) } else { json!([]) };
    Ok(json!({
        "sessions": former["sessions"],
        "cli_sessions": 0,
        "links": links,
        "sockets": sockets.as_u64().unwrap_or(0),
        "uncounted": uncounted,
        "took_ms": former["took_ms"],
    }))
}
