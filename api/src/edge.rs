//! The outermost layer: what is true for every request, whatever it asks.
//!
//! Owns the request's id, its time and address, the limits on how many and how long, panics, security headers and the
//! rendering of problems. Not here: who asks (`access`) and what the answer is (`endpoints`).

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRequestParts, MatchedPath, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use envforge_commands::{Commands, noting_withdrawals};
use envforge_domain::commit::Position;
use envforge_domain::ids::CorrelationId;
use envforge_domain::revocation::{Uncounted, WhyUncounted};
use envforge_domain::time::{SharedClock, UnixMillis};
use envforge_eventlog::gateways::Gateways;
use envforge_identity::randomness::Randomness;
use envforge_projections::Hot;
use futures_util::FutureExt;
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use tokio::sync::Semaphore;
use tracing::Instrument;

use crate::config::Config;
use crate::problem::{CONTENT_TYPE, Problem};
use crate::sessions::WAIT_FOR_VIEW;
use crate::write::{Keys, UsedKey};

/// Names a request in answers, logs and the events that follow from it.
pub const REQUEST_HEADER: HeaderName = HeaderName::from_static("envforge-request");

/// When, whence and under which id a request came.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival {
    pub correlation: CorrelationId,
    pub now: UnixMillis,
    pub address: IpAddr,
}

/// The peer of a connection, as the listener saw it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer(pub(crate) SocketAddr);

impl<S: Sync> FromRequestParts<S> for Arrival {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        parts.extensions.get::<Self>().copied().ok_or_else(|| Problem::internal("a request came past the edge"))
    }
}

pub(crate) struct Edge {
    clock: SharedClock,
    randomness: Randomness,
    keys: Keys,
    commands: Commands,
    hot: Arc<Hot>,
    gateways: Arc<dyn Gateways>,
    slots: Arc<Semaphore>,
    /// Routes whose body is read before anybody has proved who they are, with places of their own.
    anonymous_routes: BTreeSet<String>,
    anonymous_slots: Arc<Semaphore>,
    answer_timeout: Duration,
    trusted_proxies: Vec<IpAddr>,
}

impl Edge {
    pub(crate) fn new(
        config: &Config,
        clock: SharedClock,
        keys: Keys,
        commands: Commands,
        hot: Arc<Hot>,
        gateways: Arc<dyn Gateways>,
        anonymous_routes: BTreeSet<String>,
    ) -> Self {
        Self {
            clock,
            randomness: Randomness,
            keys,
            commands,
            hot,
            gateways,
            slots: Arc::new(Semaphore::new(config.requests_max)),
            anonymous_routes,
            anonymous_slots: Arc::new(Semaphore::new(config.anonymous_requests_max)),
            answer_timeout: config.answer_timeout,
            trusted_proxies: config.trusted_proxies.clone(),
        }
    }

    /// INVARIANT: whoever is told that something was done is told so only once the views of this process know, and every gateway where
    /// it may have taken a right away: what was revoked opens nothing anywhere from the answer on. All commands that were answered
    /// count, so that no endpoint can forget it. `withdrawn`: the furthest of those of this request that may take a right away.
    async fn settle(&self, method: &Method, withdrawn: Position) {
        if method.is_safe() && withdrawn == Position::START {
            return;
        }
        if let Err(stale) = self.hot.wait_for(self.commands.answered_up_to(), WAIT_FOR_VIEW).await {
            // It was done all the same, and other processes may know it already.
            metrics::counter!("envforge_api_unsettled_answers_total").increment(1);
            tracing::warn!(%stale, "something is answered that the views of this process do not know yet");
        }
        if withdrawn > Position::START {
            // The others refuse, whatever they have counted.
            let silent = |unknown: &Uncounted| matches!(unknown.why, WhyUncounted::Silent | WhyUncounted::Unknown);
            for unknown in self.gateways.settle(withdrawn).await.uncounted.into_iter().filter(silent) {
                metrics::counter!("envforge_api_gateways_unsettled_total", "why" => unknown.why.token()).increment(1);
                tracing::warn!(gateway = ?unknown.gateway, why = unknown.why.token(), "a gateway did not say that it refuses what was revoked");
            }
        }
    }
}

/// The client's address: the nearest one that is not a trusted proxy's.
pub(crate) fn client_address(peer: IpAddr, headers: &HeaderMap, trusted_proxies: &[IpAddr]) -> IpAddr {
    let mut nearest = peer.to_canonical();
    let forwarded = headers.get_all("x-forwarded-for").iter().filter_map(|value| value.to_str().ok());
    let hops: Vec<_> = forwarded.flat_map(|value| value.split(',')).map(str::trim).collect();
    for hop in hops.into_iter().rev() {
        if !trusted_proxies.contains(&nearest) {
            break;
        }
        match hop.parse::<IpAddr>() {
            Ok(address) => nearest = address.to_canonical(),
            Err(_) => break,
        }
    }
    nearest
}

/// Wraps every request.
pub(crate) async fn edge(State(edge): State<Arc<Edge>>, mut request: Request, next: Next) -> Response {
    let started = std::time::Instant::now();
    let now = edge.clock.now();
    let Ok(id) = edge.randomness.uuid_v7(now) else {
        // Without random bytes nothing here is safe to do.
        return http::StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    let peer = request.extensions().get::<Peer>().map_or(IpAddr::from([0, 0, 0, 0]), |peer| peer.0.ip());
    let address = client_address(peer, request.headers(), &edge.trusted_proxies);
    let arrival = Arrival { correlation: CorrelationId::from_uuid(id), now, address };
    let used = UsedKey::default();
    request.extensions_mut().insert(arrival);
    request.extensions_mut().insert(used.clone());
    let method = request.method().as_str().to_owned();
    // The route's pattern: paths hold names of customers' things, and would make one metric each.
    let route = request.extensions().get::<MatchedPath>().map_or("unmatched", MatchedPath::as_str).to_owned();
    let span = tracing::info_span!("request", id = %arrival.correlation, method, route);

    let slots = if edge.anonymous_routes.contains(&route) { &edge.anonymous_slots } else { &edge.slots };
    let response = match Arc::clone(slots).try_acquire_owned() {
        Err(_) => Problem::new("overloaded", "Too many requests are being answered right now.")
            .retry_after_s(1)
            .into_response(),
        Ok(_slot) => {
            let keys = edge.keys.clone();
            let answer = async {
                let method = request.method().clone();
                let (response, withdrawn) =
                    noting_withdrawals(async { keys.remember(&used, next.run(request).await).await }).await;
                edge.settle(&method, withdrawn).await;
                response
            };
            let answer = AssertUnwindSafe(answer).catch_unwind().instrument(span.clone());
            match tokio::time::timeout(edge.answer_timeout, answer).await {
                Ok(Ok(response)) => response,
                Ok(Err(_)) => Problem::internal("a handler panicked; the panic's own message is above").into_response(),
                Err(_) => Problem::new("timed_out", "The answer took too long. It may or may not have happened.")
                    .retry_after_s(1)
                    .into_response(),
            }
        }
    };
    let response = span.in_scope(|| finish(response, &arrival));
    let status = response.status().as_u16().to_string();
    metrics::counter!("envforge_api_requests_total", "route" => route.clone(), "method" => method.clone(), "status" => status)
        .increment(1);
    metrics::histogram!("envforge_api_answer_seconds", "route" => route, "method" => method)
        .record(started.elapsed().as_secs_f64());
    response
}

/// Renders a problem's body and sets what every answer carries.
fn finish(mut response: Response, arrival: &Arrival) -> Response {
    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        if let Some(reason) = problem.internal_reason() {
            tracing::error!(code = problem.code(), reason, "a request failed on our side");
        }
        metrics::counter!("envforge_api_problems_total", "code" => problem.code()).increment(1);
        let body = problem.body(&format!("urn:envforge:request:{}", arrival.correlation));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
        headers.remove(header::CONTENT_LENGTH);
        *response.body_mut() = body.into();
    }
    let headers = response.headers_mut();
    let id = HeaderValue::from_str(&arrival.correlation.to_string()).expect("an id is visible ASCII");
    headers.insert(REQUEST_HEADER, id);
    for (name, value) in [
        // Answers hold what only this caller may see; the few public ones set their own.
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

/// For paths that no route has.
pub(crate) async fn nothing_here() -> Problem {
    Problem::not_found()
}

/// For methods that a route does not have.
pub(crate) async fn no_such_method() -> Problem {
    Problem::new("method_not_allowed", "This path exists, but not with this method.")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn address(peer: &str, trusted: &[&str], forwarded: &[&str]) -> String {
        let trusted: Vec<IpAddr> = trusted.iter().map(|text| text.parse().unwrap()).collect();
        let mut headers = HeaderMap::new();
        for value in forwarded {
            headers.append("x-forwarded-for", value.parse().unwrap());
        }
        client_address(peer.parse().unwrap(), &headers, &trusted).to_string()
    }

    #[test]
    fn a_forwarded_address_counts_only_behind_a_trusted_proxy() {
        assert_eq!(address("192.0.2.1", &[], &["198.51.100.7"]), "192.0.2.1");
        assert_eq!(address("10.0.0.1", &["10.0.0.1"], &["198.51.100.7"]), "198.51.100.7");
        assert_eq!(address("10.0.0.1", &["10.0.0.1"], &["203.0.113.9, 198.51.100.7"]), "198.51.100.7");
        assert_eq!(address("10.0.0.1", &["10.0.0.1", "10.0.0.2"], &["198.51.100.7", "10.0.0.2"]), "198.51.100.7");
        assert_eq!(address("10.0.0.1", &["10.0.0.1"], &["forged, nonsense"]), "10.0.0.1");
        assert_eq!(address("::ffff:192.0.2.1", &[], &[]), "192.0.2.1");
    }
}
