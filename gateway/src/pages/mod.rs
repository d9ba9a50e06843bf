//! What the gateway itself shows: pages for people, typed JSON for programs.
//!
//! Self-contained, without any resource from elsewhere, under a strict content policy. No page names a host, port,
//! log line or anything that the reader did not get with the link. Not here: when which one is shown.

mod words;

use bytes::Bytes;
use envforge_domain::ids::CorrelationId;
use envforge_domain::time::UnixMillis;
use envforge_pages::{Allowances, Markup};
use futures_util::Stream;
use http::header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue, REFERRER_POLICY, RETRY_AFTER, SET_COOKIE};
use http::{Response, StatusCode};
use serde::Serialize;

use crate::body::ResponseBody;
use crate::config::Scheme;
use crate::cookie;
use crate::denial::Denial;
use crate::host::WorkspaceHost;
use crate::wake::why_failed;
pub(crate) use envforge_pages::protect;
use envforge_projections::gateway_view::{LinkView, RuntimePhase, RuntimeView};

static WAKING_SCRIPT: &str = include_str!("waking.js");

static CLEAR_SITE_DATA: HeaderName = HeaderName::from_static("clear-site-data");

/// Who reads the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Audience {
    /// Somebody who follows a link: gets a page.
    Person,
    /// fetch, XHR, WebSocket, subresources, other clients: get typed JSON, never a redirect.
    Program,
}

fn respond(status: StatusCode, content_type: &'static str, content: String) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::page(Bytes::from(content)));
    *response.status_mut() = status;
    protect(response.headers_mut());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn page(
    status: StatusCode,
    title: &str,
    allow: &Allowances<'_>,
    content: impl FnOnce(Markup) -> Markup,
) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::empty());
    *response.status_mut() = status;
    let html = envforge_pages::page(title, allow, response.headers_mut(), content);
    response.map(|_| ResponseBody::page(Bytes::from(html)))
}

/// The inert page behind a share URL.
pub(crate) fn share(link: &LinkView, host: &WorkspaceHost, now: UnixMillis) -> Response<ResponseBody> {
    let forms_to = [&*host.origin];
    let allow = Allowances { forms_to: Some(&forms_to), script: None };
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
pub(crate) fn waking(workspace_name: &str, runtime: &RuntimeView) -> Response<ResponseBody> {
    let allow = Allowances { script: Some(WAKING_SCRIPT), forms_to: None };
    let step = words::step(runtime);
    // 202: the request was accepted and is being worked on. A 5xx would make monitors and browsers give up.
    let mut response = page(StatusCode::ACCEPTED, "Starting the app", &allow, |html| {
        let html = html
            .raw("<h1>Starting the app</h1><p id=\"detail\"><strong>")
            .text(workspace_name)
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
        let denial = refusal.or((runtime.phase == RuntimePhase::Failed).then(|| why_failed(runtime)));
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

/// Names a request in its answer, as the API does. `envforge why` explains a refusal by it.
static REQUEST_HEADER: HeaderName = HeaderName::from_static("envforge-request");

/// Any denial, as its reader can use it.
pub(crate) fn denial(
    denial: Denial,
    audience: Audience,
    scheme: Scheme,
    sign_in: bool,
    request: Option<CorrelationId>,
) -> Response<ResponseBody> {
    let request = request.map(|request| request.to_string());
    let words = denial.words();
    let mut response = match audience {
        Audience::Person => page(denial.status(), words.title, &Allowances::default(), |html| {
            let html = html.raw("<h1>").raw(words.title).raw("</h1><p>").raw(words.detail).raw("</p>");
            // Whoever has a link that is over may be a member as well.
            let html = if sign_in && denial.leaves_signing_in() {
                html.raw("<p class=\"note\">On the team? <a href=\"/.envforge/sign-in\">Sign in to open it</a>.</p>")
            } else {
                html
            };
            match &request {
                Some(request) => html.raw("<p class=\"note\">Request ").text(request).raw("</p>"),
                None => html,
            }
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
                instance: request.as_ref().map(|request| format!("urn:envforge:request:{request}")),
            };
            let content = serde_json::to_string(&problem).unwrap_or_else(|_| "{}".to_owned());
            respond(denial.status(), "application/problem+json", content)
        }
    };
    let headers = response.headers_mut();
    if let Some(request) = request.and_then(|request| HeaderValue::try_from(request).ok()) {
        headers.insert(&REQUEST_HEADER, request);
    }
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
    #[serde(skip_serializing_if = "Option::is_none")]
    instance: Option<String>,
}

pub(crate) fn robots() -> Response<ResponseBody> {
    respond(StatusCode::OK, "text/plain; charset=utf-8", "User-agent: *\nDisallow: /\n".to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use http::header::CACHE_CONTROL;

    #[test]
    fn programs_get_a_typed_problem_and_people_get_words() {
        for (audience, kind) in
            [(Audience::Program, "application/problem+json"), (Audience::Person, "text/html; charset=utf-8")]
        {
            let response = denial(Denial::AuthorizationStale, audience, Scheme::Https, true, None);
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
            let response = denial(Denial::LinkExpired, audience, Scheme::Https, true, None);
            assert_eq!(response.headers()["clear-site-data"], "\"cache\", \"storage\"");
            assert!(!response.headers().contains_key(SET_COOKIE));
        }
        let response = denial(Denial::DuplicateSession, Audience::Program, Scheme::Https, true, None);
        assert!(response.headers()[SET_COOKIE].to_str().unwrap().starts_with("__Host-envforge_session=; "));
        let response = denial(Denial::AccessRequired, Audience::Person, Scheme::Https, true, None);
        assert!(!response.headers().contains_key(SET_COOKIE) && !response.headers().contains_key("clear-site-data"));
    }
}
