//! What the gateway itself shows: pages for people, typed JSON for programs.
//!
//! Self-contained, without any resource from elsewhere, under a strict content policy. No page names a host, port,
//! log line or anything that the reader did not get with the link. Not here: when which one is shown.

mod markup;
mod words;

use std::sync::LazyLock;

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use envforge_domain::time::UnixMillis;
use futures_util::Stream;
use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, REFERRER_POLICY,
    RETRY_AFTER, SET_COOKIE, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use http::{Response, StatusCode};
use serde::Serialize;

use crate::body::ResponseBody;
use crate::config::Scheme;
use crate::cookie;
use crate::denial::Denial;
use crate::host::WorkspaceHost;
use envforge_projections::gateway_view::{LinkView, RuntimePhase, RuntimeView};
use markup::Markup;

static STYLE: &str = include_str!("style.css");
static WAKING_SCRIPT: &str = include_str!("waking.js");
static STYLE_SOURCE: LazyLock<String> = LazyLock::new(|| source(STYLE));
static SCRIPT_SOURCE: LazyLock<String> = LazyLock::new(|| source(WAKING_SCRIPT));

static X_ROBOTS_TAG: HeaderName = HeaderName::from_static("x-robots-tag");
static CLEAR_SITE_DATA: HeaderName = HeaderName::from_static("clear-site-data");
static OPENER_POLICY: HeaderName = HeaderName::from_static("cross-origin-opener-policy");

/// Who reads the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Audience {
    /// Somebody who follows a link: gets a page.
    Person,
    /// fetch, XHR, WebSocket, subresources, other clients: get typed JSON, never a redirect.
    Program,
}

/// A content policy's name for one inline text.
fn source(inline: &str) -> String {
    format!("'sha256-{}'", STANDARD.encode(digest::digest(&digest::SHA256, inline.as_bytes())))
}

/// Headers of every answer of ours.
pub(crate) fn protect(headers: &mut HeaderMap) {
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert(&X_ROBOTS_TAG, HeaderValue::from_static("noindex, nofollow"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
}

fn respond(status: StatusCode, content_type: &'static str, content: String) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::page(Bytes::from(content)));
    *response.status_mut() = status;
    protect(response.headers_mut());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// What a page may do besides showing itself.
#[derive(Default)]
struct Allowances<'a> {
    script: bool,
    /// Origin that a form leads to, through a redirect (which Chromium holds against `form-action` too).
    form_to: Option<&'a str>,
}

fn page(
    status: StatusCode,
    title: &str,
    allow: &Allowances<'_>,
    content: impl FnOnce(Markup) -> Markup,
) -> Response<ResponseBody> {
    let html = Markup::default()
        .raw("<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">")
        .raw("<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><title>")
        .text(title)
        .raw("</title><link rel=\"icon\" href=\"data:,\"><style>")
        .raw(STYLE)
        .raw("</style></head><body><main>")
        .raw(
            "<svg class=\"mark\" viewBox=\"0 0 40 40\" fill=\"none\" aria-hidden=\"true\"><rect x=\"1.5\" y=\"1.5\" \
             width=\"37\" height=\"37\" rx=\"11\" fill=\"currentColor\" opacity=\".12\"/><path d=\"M12 14h16M12 \
             20h11M12 26h16\" stroke=\"currentColor\" stroke-width=\"3\" stroke-linecap=\"round\"/></svg>",
        )
        .then(content)
        .raw("</main>")
        .then(|html| if allow.script { html.raw("<script>").raw(WAKING_SCRIPT).raw("</script>") } else { html })
        .raw("</body></html>")
        .finish();
    let mut response = respond(status, "text/html; charset=utf-8", html);
    let headers = response.headers_mut();
    let script =
        if allow.script { format!("; script-src {}; connect-src 'self'", *SCRIPT_SOURCE) } else { String::new() };
    let form = allow.form_to.map_or_else(|| "'none'".to_owned(), |origin| format!("'self' {origin}"));
    let policy = format!(
        "default-src 'none'; style-src {}; img-src data:{script}; form-action {form}; base-uri 'none'; frame-ancestors 'none'",
        *STYLE_SOURCE
    );
    if let Ok(policy) = HeaderValue::from_str(&policy) {
        headers.insert(CONTENT_SECURITY_POLICY, policy);
    }
    headers.insert(X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    headers.insert(&OPENER_POLICY, HeaderValue::from_static("same-origin"));
    response
}

/// The inert page behind a share URL.
pub(crate) fn share(link: &LinkView, host: &WorkspaceHost, now: UnixMillis) -> Response<ResponseBody> {
    let allow = Allowances { form_to: Some(&host.origin), ..Allowances::default() };
    let title = format!("{} shared an app with you", link.org_name);
    let mut response = page(StatusCode::OK, &title, &allow, |html| {
        html.raw("<h1>")
            .text(&link.org_name)
            .raw(" shared an app with you</h1><p>You can look at <strong>")
            .text(&link.workspace_name)
            .raw("</strong> in this browser. No account is needed.</p><dl><div><dt>From</dt><dd>")
            .text(&link.org_name)
            .raw("</dd></div><div><dt>App</dt><dd>")
            .text(&link.workspace_name)
            .raw("<small>")
            .text(link.service.as_str())
            .raw("</small></dd></div><div><dt>You can use</dt><dd>")
            .text(&words::families(link.families))
            .raw("</dd></div><div><dt>Open for</dt><dd>")
            .text(&words::remaining(link.expires_at.since(now)))
            .raw("<small>until ")
            .text(&words::instant(link.expires_at))
            .raw("</small></dd></div></dl><form method=\"post\"><button type=\"submit\">Open the app</button></form>")
            .raw("<p class=\"note\">Only continue if you know who sent you this link. What you type into the app goes to ")
            .text(&link.org_name)
            .raw(".</p>")
    });
    // With `no-referrer` the form would be sent with `Origin: null`, which older browsers do not explain further. The
    // address of this page is told to our own origin alone.
    response.headers_mut().insert(REFERRER_POLICY, HeaderValue::from_static("same-origin"));
    response
}

/// Shown while the app starts; continues by itself.
pub(crate) fn waking(link: &LinkView, runtime: &RuntimeView) -> Response<ResponseBody> {
    let allow = Allowances { script: true, ..Allowances::default() };
    let step = words::step(runtime);
    // 202: the request was accepted and is being worked on. A 5xx would make monitors and browsers give up.
    let mut response = page(StatusCode::ACCEPTED, "Starting the app", &allow, |html| {
        let html = html
            .raw("<h1>Starting the app</h1><p id=\"detail\"><strong>")
            .text(&link.workspace_name)
            .raw("</strong> was asleep to save energy. It opens here by itself in a moment.</p><ol>");
        let html = words::STEPS.iter().enumerate().fold(html, |html, (index, label)| {
            let html = match index.cmp(&step) {
                std::cmp::Ordering::Less => html.raw("<li data-stage data-state=\"done\">"),
                std::cmp::Ordering::Equal => html.raw("<li data-stage data-state=\"now\" aria-current=\"step\">"),
                std::cmp::Ordering::Greater => html.raw("<li data-stage data-state=\"next\">"),
            };
            html.raw(label).raw("</li>")
        });
        html.raw("</ol><button id=\"again\" type=\"button\" hidden>Try again</button>")
            .raw("<p id=\"spoken\" role=\"status\" class=\"spoken\"></p>")
            .raw("<noscript><p class=\"note\">Please reload this page in a few seconds.</p></noscript>")
    });
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("2"));
    response
}

/// How far a wake is, for the waking page.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct WakeNews {
    phase: &'static str,
    /// Index of the step under way.
    step: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<Problem>,
    #[serde(skip)]
    is_ready: bool,
    /// Comes back with the next question.
    #[serde(rename = "seen")]
    pub(crate) tag: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Problem {
    code: &'static str,
    title: &'static str,
    detail: &'static str,
}

impl WakeNews {
    pub(crate) fn new(runtime: &RuntimeView, refusal: Option<Denial>) -> Self {
        let denial = refusal.or((runtime.phase == RuntimePhase::Failed).then_some(Denial::WakeFailed));
        let problem = denial.map(|denial| {
            let words = denial.words();
            Problem { code: denial.code(), title: words.title, detail: words.detail }
        });
        let phase = words::phase(runtime.phase);
        let step = words::step(runtime);
        let code = problem.as_ref().map_or("", |problem| problem.code);
        let tag = format!("{}.{phase}.{step}.{code}", runtime.epoch.0);
        Self { phase, step, problem, is_ready: runtime.phase == RuntimePhase::Ready, tag }
    }

    /// Whether nothing follows: the app is there, or will not come by itself.
    pub(crate) fn is_last(&self) -> bool {
        self.is_ready || self.problem.is_some()
    }

    /// As one server-sent event.
    pub(crate) fn event(&self) -> Bytes {
        Bytes::from(format!("data: {}\n\n", self.json()))
    }

    fn json(&self) -> String {
        serde_json::to_string(self).unwrap_or_else(|_| "{}".to_owned())
    }
}

pub(crate) fn wake_news(news: &WakeNews) -> Response<ResponseBody> {
    respond(StatusCode::OK, "application/json", news.json())
}

/// News as they come; `events` ends after the last ones.
pub(crate) fn wake_events(events: impl Stream<Item = Bytes> + Send + 'static) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::events(events));
    protect(response.headers_mut());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    response
}

/// Any denial, as its reader can use it.
pub(crate) fn denial(denial: Denial, audience: Audience, scheme: Scheme) -> Response<ResponseBody> {
    let words = denial.words();
    let mut response = match audience {
        Audience::Person => page(denial.status(), words.title, &Allowances::default(), |html| {
            html.raw("<h1>").raw(words.title).raw("</h1><p>").raw(words.detail).raw("</p>")
        }),
        Audience::Program => {
            let problem = ProblemJson {
                kind: format!("https://envforge.ai/problems/{}", denial.code()),
                title: words.title,
                status: denial.status().as_u16(),
                detail: match denial {
                    Denial::Protocol(fault) => fault.to_string(),
                    _ => words.detail.to_owned(),
                },
                code: denial.code(),
            };
            let content = serde_json::to_string(&problem).unwrap_or_else(|_| "{}".to_owned());
            respond(denial.status(), "application/problem+json", content)
        }
    };
    let headers = response.headers_mut();
    if let Some(seconds) = denial.retry_after_secs() {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if denial == Denial::MethodNotAllowed {
        headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD, POST"));
    }
    if denial.clears_session() {
        headers.append(SET_COOKIE, cookie::clear_session(scheme));
    }
    if denial.ends_visit() {
        // Service workers and cached pages of the app end with the link. Scripts are told too: a worker that answers
        // from its cache first never navigates. Not `cookies`, which would reach every workspace below the same domain.
        headers.insert(&CLEAR_SITE_DATA, HeaderValue::from_static("\"cache\", \"storage\""));
    }
    response
}

/// RFC 9457.
#[derive(Serialize)]
struct ProblemJson {
    #[serde(rename = "type")]
    kind: String,
    title: &'static str,
    status: u16,
    detail: String,
    code: &'static str,
}

pub(crate) fn robots() -> Response<ResponseBody> {
    respond(StatusCode::OK, "text/plain; charset=utf-8", "User-agent: *\nDisallow: /\n".to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_content_policy_names_exactly_what_the_page_holds() {
        let response = denial(Denial::LinkRevoked, Audience::Person, Scheme::Https);
        let policy = response.headers()[CONTENT_SECURITY_POLICY].to_str().unwrap();
        assert!(policy.contains(&source(STYLE)) && policy.contains("default-src 'none'"));
        assert!(!policy.contains("unsafe") && !policy.contains("script-src"));
        assert!(policy.contains("form-action 'none'") && policy.contains("frame-ancestors 'none'"));
    }

    #[test]
    fn programs_get_a_typed_problem_and_people_get_words() {
        for (audience, kind) in
            [(Audience::Program, "application/problem+json"), (Audience::Person, "text/html; charset=utf-8")]
        {
            let response = denial(Denial::AuthorizationStale, audience, Scheme::Https);
            assert_eq!(response.status(), 503);
            assert_eq!(response.headers()[CONTENT_TYPE], kind);
            assert_eq!(response.headers()[RETRY_AFTER], "2");
            assert_eq!(response.headers()[CACHE_CONTROL], "no-store");
            assert_eq!(response.headers()[REFERRER_POLICY], "no-referrer");
        }
    }

    #[test]
    fn an_ended_link_takes_what_the_app_stored_along_and_two_sessions_are_cleared() {
        for audience in [Audience::Person, Audience::Program] {
            let response = denial(Denial::LinkExpired, audience, Scheme::Https);
            assert_eq!(response.headers()["clear-site-data"], "\"cache\", \"storage\"");
            assert!(!response.headers().contains_key(SET_COOKIE));
        }
        let response = denial(Denial::DuplicateSession, Audience::Program, Scheme::Https);
        assert!(response.headers()[SET_COOKIE].to_str().unwrap().starts_with("__Host-envforge_session=; "));
        let response = denial(Denial::AccessRequired, Audience::Person, Scheme::Https);
        assert!(!response.headers().contains_key(SET_COOKIE) && !response.headers().contains_key("clear-site-data"));
    }
}
