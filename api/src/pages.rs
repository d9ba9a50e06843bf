//! The API's own pages: signing in, what became of it, and signing out. Plain forms without any script.
//!
//! Not here: what happens when one is sent (`endpoints::sign_in_page`), and how pages look (`envforge_pages`).

use axum::response::{IntoResponse, Response};
use envforge_identity::oidc::ReturnTo;
use envforge_pages::{Allowances, Markup};
use http::StatusCode;

use crate::form::encoded;
use crate::problem::Problem;

/// What a sign-in page offers, and what it says of the last attempt.
pub(crate) struct SignInPage<'a> {
    /// The provider's host, where there is one for browsers.
    pub(crate) provider: Option<&'a str>,
    pub(crate) return_to: &'a ReturnTo,
    /// What was typed before.
    pub(crate) email: &'a str,
    pub(crate) problem: Option<&'a Problem>,
    /// Who comes from a workspace's host may have been a reviewer.
    pub(crate) from_workspace: bool,
}

/// Who is signed in.
pub(crate) struct Person<'a> {
    pub(crate) name: &'a str,
    pub(crate) email: &'a str,
    pub(crate) organization: &'a str,
}

fn respond(
    status: StatusCode,
    title: &str,
    forms_to: Option<&[&str]>,
    content: impl FnOnce(Markup) -> Markup,
) -> Response {
    let mut response = status.into_response();
    let allow = Allowances { script: None, forms_to };
    let html = envforge_pages::page(title, &allow, response.headers_mut(), content);
    // With `no-referrer` a form would be sent with `Origin: null`, by which nobody knows whose page it was.
    response.headers_mut().insert(http::header::REFERRER_POLICY, http::HeaderValue::from_static("same-origin"));
    *response.body_mut() = html.into();
    response
}

/// What went wrong, where a screen reader hears it first.
fn said(html: Markup, problem: Option<&Problem>) -> Markup {
    match problem {
        None => html,
        Some(problem) => {
            let words = words(problem);
            html.raw("<p class=\"problem\" role=\"alert\" id=\"problem\">").text(&words).raw("</p>")
        }
    }
}

/// A problem as people read it.
fn words(problem: &Problem) -> String {
    match problem.code() {
        "wrong_credentials" => "E-mail address and password do not belong together. Please try again.".to_owned(),
        "too_many_attempts" => {
            let seconds = problem.retry_after().unwrap_or(1);
            let wait = if seconds >= 120 {
                format!("{} minutes", seconds.div_ceil(60))
            } else if seconds == 1 {
                "1 second".to_owned()
            } else {
                format!("{seconds} seconds")
            };
            format!("Too many attempts. Signing in is locked for {wait}; then please try again.")
        }
        "cross_site_request" => "This form was not sent from this page. Please try again here.".to_owned(),
        _ => problem.detail().to_owned(),
    }
}

/// `forms_to`: where workspaces are, since what follows signing in may lead there.
pub(crate) fn sign_in(page: &SignInPage<'_>, forms_to: &str) -> Response {
    let status = page.problem.map_or(StatusCode::OK, Problem::status);
    let mut response = respond(status, "Sign in", Some(&[forms_to]), |html| {
        let html = html.raw("<h1>Sign in to EnvForge</h1>");
        let html = if page.from_workspace {
            html.raw("<p>This workspace is open to its team. After signing in you go on to it.</p>")
        } else {
            html
        };
        let html = said(html, page.problem);
        let html = match page.provider {
            Some(provider) => html
                .raw("<a class=\"button\" href=\"/v1/auth/oidc/start?return_to=")
                .text(&encoded(page.return_to.as_str()))
                .raw("\">Continue with ")
                .text(provider)
                .raw("</a><p class=\"or\">or with a password</p>"),
            None => html,
        };
        let html = html
            .raw("<form method=\"post\" action=\"/sign-in\"><input type=\"hidden\" name=\"return_to\" value=\"")
            .text(page.return_to.as_str())
            .raw("\"><label for=\"email\">E-mail address</label><input id=\"email\" name=\"email\" type=\"email\" ")
            .raw("autocomplete=\"username\" autocapitalize=\"none\" spellcheck=\"false\" maxlength=\"254\" required value=\"")
            .text(page.email)
            .raw("\"><label for=\"password\">Password</label><input id=\"password\" name=\"password\" type=\"password\" ")
            .raw("autocomplete=\"current-password\" maxlength=\"72\" required");
        let html = if page.problem.is_some() { html.raw(" aria-describedby=\"problem\"") } else { html };
        let html = html.raw("><button type=\"submit\"");
        let html = if page.provider.is_some() { html.raw(" class=\"quiet\"") } else { html };
        let html = html.raw(">Sign in</button></form>");
        if page.from_workspace {
            html.raw("<p class=\"note\">Were you sent a review link? Open that link again: it needs no account.</p>")
        } else {
            html
        }
    });
    if let Some(seconds) = page.problem.and_then(Problem::retry_after) {
        response.headers_mut().insert(http::header::RETRY_AFTER, http::HeaderValue::from(seconds));
    }
    response
}

fn sign_out_forms(html: Markup) -> Markup {
    html.raw("<form method=\"post\" action=\"/sign-out\"><button type=\"submit\">Sign out</button></form>")
        .raw("<form method=\"post\" action=\"/sign-out\"><input type=\"hidden\" name=\"everywhere\" value=\"yes\">")
        .raw("<button type=\"submit\" class=\"quiet\">Sign out everywhere</button></form>")
}

/// `/`, for who is signed in.
pub(crate) fn home(person: &Person<'_>) -> Response {
    respond(StatusCode::OK, "Signed in", Some(&[]), |html| {
        let html = html
            .raw("<h1>You are signed in</h1><p>Workspaces of <strong>")
            .text(person.organization)
            .raw("</strong> that your role opens now open in this browser.</p><dl><div><dt>Name</dt><dd>")
            .text(person.name)
            .raw("</dd></div><div><dt>E-mail</dt><dd>")
            .text(person.email)
            .raw("</dd></div></dl>");
        sign_out_forms(html).raw(
            "<p class=\"note\">Signing out closes every workspace that this browser has open. \
             <strong>Everywhere</strong> also ends your sessions in other browsers and on the command line.</p>",
        )
    })
}

/// `/`, for who is signed in for workspaces alone.
pub(crate) fn for_workspaces(person: &Person<'_>) -> Response {
    respond(StatusCode::OK, "Signed in to workspaces", Some(&[]), |html| {
        html.raw("<h1>You are signed in to workspaces</h1><p>This browser opens workspaces of <strong>")
            .text(person.organization)
            .raw("</strong> as <strong>")
            .text(person.email)
            .raw("</strong>, and does nothing else in your name.</p><a class=\"button\" href=\"/sign-in\">Sign in to EnvForge</a>")
            .raw("<form method=\"post\" action=\"/sign-out\"><button type=\"submit\" class=\"quiet\">Sign out</button></form>")
            .raw("<p class=\"note\">Signing out closes every workspace that this browser has open.</p>")
    })
}

pub(crate) fn signed_out() -> Response {
    respond(StatusCode::OK, "Signed out", None, |html| {
        html.raw("<h1>You are signed out</h1><p role=\"status\">Workspaces that this browser had open are closed.</p>")
            .raw("<a class=\"button\" href=\"/sign-in\">Sign in again</a>")
    })
}

/// A workspace that does not exist, or not for them: nothing tells which.
pub(crate) fn not_yours(person: &Person<'_>) -> Response {
    respond(StatusCode::FORBIDDEN, "You may not open this workspace", Some(&[]), |html| {
        let html = html
            .raw("<h1>You may not open this workspace</h1><p>It does not exist, or your role does not open it. You are signed in as <strong>")
            .text(person.email)
            .raw("</strong>; an administrator of <strong>")
            .text(person.organization)
            .raw("</strong> can give you a role there.</p>");
        html.raw("<form method=\"post\" action=\"/sign-out\"><button type=\"submit\" class=\"quiet\">")
            .raw("Sign out to use another account</button></form>")
    })
}

/// Whatever else went wrong, with the way back.
pub(crate) fn failed(problem: &Problem) -> Response {
    let mut response = respond(problem.status(), problem.title(), None, |html| {
        let html = html.raw("<h1>").text(problem.title()).raw("</h1>");
        said(html, Some(problem)).raw("<a class=\"button\" href=\"/sign-in\">To the sign-in</a>")
    });
    if let Some(seconds) = problem.retry_after() {
        response.headers_mut().insert(http::header::RETRY_AFTER, http::HeaderValue::from(seconds));
    }
    response
}
