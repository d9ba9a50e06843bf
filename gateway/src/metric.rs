//! What the gateway counts, with every name in one place.
//!
//! Handles of the request path are made once (`Meters`); rare events look theirs up by name. No label holds anything
//! that a client can choose.
//!
//! Not here: where the numbers go (the binary installs a recorder).

use std::time::Duration;

use metrics::{Counter, Gauge, counter, gauge, histogram};

/// Counters that every request touches.
pub(crate) struct Meters {
    pub(crate) forwarded: Counter,
    pub(crate) reused: Counter,
    pub(crate) connected: Counter,
    pub(crate) retried: Counter,
    status: [Counter; 5],
    pub(crate) held: Gauge,
    pub(crate) sockets: Gauge,
}

impl Meters {
    pub(crate) fn new() -> Self {
        let status = |class: &'static str| counter!("gateway_responses_total", "class" => class);
        Self {
            forwarded: counter!("gateway_forwarded_total"),
            reused: counter!("gateway_upstream_connections_total", "kind" => "reused"),
            connected: counter!("gateway_upstream_connections_total", "kind" => "opened"),
            retried: counter!("gateway_upstream_retries_total"),
            status: [status("1xx"), status("2xx"), status("3xx"), status("4xx"), status("5xx")],
            held: gauge!("gateway_held_requests"),
            sockets: gauge!("gateway_websockets_open"),
        }
    }

    /// Counts an answer of the app.
    pub(crate) fn answered(&self, status: http::StatusCode) {
        if let Some(class) = self.status.get(usize::from(status.as_u16() / 100).wrapping_sub(1)) {
            class.increment(1);
        }
    }
}

pub(crate) fn denial(code: &'static str) {
    counter!("gateway_denials_total", "code" => code).increment(1);
}

pub(crate) fn connection_refused(reason: &'static str) {
    counter!("gateway_connections_refused_total", "reason" => reason).increment(1);
}

pub(crate) fn connection_timeout(waiting_for: &'static str) {
    counter!("gateway_connection_timeouts_total", "waiting_for" => waiting_for).increment(1);
}

pub(crate) fn share(step: &'static str) {
    counter!("gateway_share_steps_total", "step" => step).increment(1);
}

pub(crate) fn wake(outcome: &'static str) {
    counter!("gateway_wakes_total", "outcome" => outcome).increment(1);
}

/// How long a request waited for a runtime.
pub(crate) fn held(length: Duration, released: bool) {
    let outcome = if released { "released" } else { "refused" };
    histogram!("gateway_hold_seconds", "outcome" => outcome).record(length);
}

pub(crate) fn ended(what: &'static str, reason: &'static str) {
    counter!("gateway_streams_ended_total", "what" => what, "reason" => reason).increment(1);
}

pub(crate) fn certificate(outcome: &'static str) {
    counter!("gateway_certificate_reloads_total", "outcome" => outcome).increment(1);
}

pub(crate) fn blocked_report(outcome: &'static str) {
    counter!("gateway_blocked_reports_total", "outcome" => outcome).increment(1);
}

pub(crate) fn dropped(what: &'static str) {
    counter!("gateway_dropped_headers_total", "what" => what).increment(1);
}
