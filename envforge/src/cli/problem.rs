//! Problem documents (RFC 9457) as the API answers them: read leniently, with what to try next.
//!
//! Not here: how an error is printed (`failure`).

use serde::Deserialize;
use serde_json::Value;

use super::failure::Exit;

/// A refusal of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    pub status: u16,
    pub title: String,
    pub detail: Option<String>,
    pub code: Option<String>,
    pub request_id: Option<String>,
    /// Where it is and what is wrong there.
    pub fields: Vec<(String, String)>,
}

#[derive(Deserialize)]
struct Document {
    title: Option<String>,
    detail: Option<String>,
    code: Option<String>,
    /// RFC 9457: names the occurrence. The API's names the request.
    instance: Option<String>,
    #[serde(default)]
    errors: Vec<Value>,
}

/// More fields than anybody reads.
const FIELDS_MAX: usize = 20;

impl Problem {
    /// Of a status alone, for answers that are no problem document.
    pub(crate) fn bare(status: u16) -> Self {
        let reason = reqwest::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
        let title = format!("the server answered {status} {}", reason.unwrap_or("")).trim_end().to_owned();
        Self { status, title, detail: None, code: None, request_id: None, fields: Vec::new() }
    }

    /// Reads an answer's body. `request_id`: what the answer's header says, which the body may repeat.
    pub(crate) fn parse(status: u16, request_id: Option<String>, body: &[u8]) -> Self {
        let mut problem = Self { request_id, ..Self::bare(status) };
        let Ok(document) = serde_json::from_slice::<Document>(body) else { return problem };
        if let Some(title) = document.title.filter(|title| !title.is_empty()) {
            problem.title = title;
        }
        problem.detail = document.detail.filter(|detail| !detail.is_empty());
        problem.code = document.code;
        problem.request_id = problem.request_id.or(document.instance.map(request_of));
        problem.fields = document.errors.iter().take(FIELDS_MAX).filter_map(field).collect();
        problem
    }

    pub(crate) fn exit(&self) -> Exit {
        match self.status {
            401 | 403 => Exit::NotPermitted,
            404 | 410 => Exit::NotFound,
            409 | 412 => Exit::Conflict,
            408 | 502..=504 => Exit::Unreachable,
            _ => Exit::Refused,
        }
    }

    pub(crate) fn code(&self) -> &str {
        self.code.as_deref().unwrap_or("refused")
    }

    pub(crate) fn field_lines(&self) -> impl Iterator<Item = String> + '_ {
        let line = |(place, what): &(String, String)| {
            if place.is_empty() { what.clone() } else { format!("{place}: {what}") }
        };
        self.fields.iter().map(line)
    }

    /// What to try. By the server's code where one says more than the status.
    pub(crate) fn hint(&self) -> Option<String> {
        let by_code = match self.code() {
            "wrong_credentials" => {
                "check the address and the password; who lost theirs asks an admin of the organization"
            }
            "link_lifetime_out_of_range" | "link_families_not_allowed" | "keep_awake_too_long" => {
                "`envforge org policy show` shows what the organization allows"
            }
            "link_families_not_declared" => "`envforge workspace show` lists the services and their routes",
            "link_revoked" | "link_expired" => "issue a new one: `envforge link create`",
            "workspace_archived" => "create a new one with another slug: `envforge up --name SLUG`",
            "name_taken" | "name_retired" => "choose another slug",
            "host_label_too_long" => "choose a shorter slug: `envforge up --name SLUG`",
            "host_gone" | "host_leaving" => "wake it: `envforge workspace wake`",
            "host_starting" | "host_not_starting" => "repeat the command in a while",
            "runtime_not_awake" | "root_runtime_not_ready" => "wake it first: `envforge workspace wake`",
            "reauthentication_required" => {
                "run the command on a terminal, where it can ask for your password, or sign in again: `envforge login`"
            }
            "invitation_unknown" | "invitation_expired" | "invitation_lapsed" | "invitation_revoked" => {
                "ask whoever invited you for another one"
            }
            "session_of_another_surface" => "sign in from here: `envforge login`",
            "too_many_attempts" | "sign_in_busy" => "wait a moment before you try again",
            "wake_budget_spent" => "wake the workspace yourself: `envforge workspace wake`",
            "last_owner" => "give somebody else the role first: `envforge org role assign`",
            "request_not_recorded" => {
                "ask again in a moment, with the organization that the request was about (--org); `envforge audit log --outcome denied` lists what was refused"
            }
            "root_not_allowed" => "`envforge org policy show` shows what the organization allows; an owner changes it",
            "root_own_request" => {
                "somebody else runs this command, an owner or admin; `envforge root withdraw` takes your request back"
            }
            "root_decider_depends" => {
                "somebody else runs this command, who has account, membership and role from others; docs/root.md says who that can be"
            }
            "root_not_yours" => {
                "ask for your own: `envforge root request`; `envforge root revoke` ends somebody else's"
            }
            "root_not_approved" => "an owner or admin other than you approves it: `envforge root approve`",
            "root_window_expired" | "root_window_over" | "root_window_used" | "root_right_lost" => {
                "ask for another one: `envforge root request`"
            }
            "root_review_pending" => "somebody other than its requester reviews it: `envforge root review`",
            _ => "",
        };
        let by_status = match self.status {
            401 => "sign in: `envforge login`",
            403 => {
                "ask an owner or admin of the organization for the role; `envforge org role assign --help` shows the roles"
            }
            404 | 410 => {
                "check the name and the organization (`envforge org ls`, --org); what you may not see is also not found"
            }
            409 | 412 => "look at its present state and repeat the command",
            429 => "wait a moment and repeat the command",
            500 => "repeating the command is safe; if it stays, report the request id",
            502..=504 => "repeating the command is safe; `envforge doctor` looks at the connection",
            _ => "",
        };
        let hint = if by_code.is_empty() { by_status } else { by_code };
        (!hint.is_empty()).then(|| hint.to_owned())
    }
}

/// `urn:envforge:request:cor_…` without what stands in front of the id.
fn request_of(instance: String) -> String {
    instance.strip_prefix("urn:envforge:request:").map(str::to_owned).unwrap_or(instance)
}

/// One entry of `errors`: a text, or an object with a place (`pointer`, `field`, `path`, or `line` and `column`).
fn field(entry: &Value) -> Option<(String, String)> {
    if let Some(text) = entry.as_str() {
        return Some((String::new(), text.to_owned()));
    }
    let text = |names: &[&str]| names.iter().find_map(|name| entry.get(*name)?.as_str()).map(str::to_owned);
    let number = |name: &str| entry.get(name).and_then(Value::as_u64);
    let what = match (text(&["found"]), text(&["expected"])) {
        (Some(found), Some(expected)) => format!("found {found}; {expected}"),
        _ => text(&["detail", "message", "error"])?,
    };
    let place = text(&["pointer", "field", "path"]).unwrap_or_default();
    let place = match (number("line"), number("column")) {
        (Some(line), Some(column)) => format!("{line}:{column}: {place}").trim_end_matches([' ', ':']).to_owned(),
        _ => place,
    };
    Some((place, what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_is_no_problem_document_still_says_its_status() {
        let problem = Problem::parse(502, Some("req-1".into()), b"<html>bad gateway</html>");
        assert_eq!(problem.title, "the server answered 502 Bad Gateway");
        assert_eq!(problem.request_id.as_deref(), Some("req-1"));
        assert_eq!(problem.code(), "refused");
    }

    #[test]
    fn hints_are_given_for_codes_that_the_api_documents() {
        let source = include_str!("problem.rs");
        let (_, hints) = source.split_once("let by_code = match").unwrap();
        let (hints, _) = hints.split_once("let by_status").unwrap();
        let codes = hints.lines().filter_map(|line| line.split_once("=>")).flat_map(|(codes, _)| codes.split('|'));
        let codes: Vec<_> = codes.map(|code| code.trim().trim_matches('"')).filter(|code| *code != "_").collect();
        assert!(codes.len() > 10, "{codes:?}");
        for code in codes {
            assert!(envforge_api::problem::catalogue::find(code).is_some(), "the API has no problem `{code}`");
        }
    }

    #[test]
    fn places_are_read_in_each_of_their_spellings() {
        let body = br#"{"title":"x","errors":["plain",{"field":"slug","message":"too long"},
            {"line":3,"column":5,"path":"services.web","found":"an unknown key","expected":"leave it out"},{"nothing":1}]}"#;
        let lines: Vec<_> = Problem::parse(422, None, body).field_lines().collect();
        assert_eq!(lines, ["plain", "slug: too long", "3:5: services.web: found an unknown key; leave it out"]);
    }
}
