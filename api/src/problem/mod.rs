//! The one error of this surface: an RFC 9457 problem, and the one place where everything else becomes one.
//!
//! Owns codes (`catalogue`), statuses and what a client may see. Internal detail is logged with the request's id and never
//! sent. Not here: which errors exist (domain, commands, eventlog, identity).

pub mod catalogue;

use axum::response::{IntoResponse, Response};
use envforge_commands::CommandError;
use envforge_domain::access::{Denial, Role};
use envforge_domain::aggregate::{Refusal, RefusalKind};
use envforge_domain::manifest::ManifestErrors;
use envforge_eventlog::{AppendError, LogError};
use envforge_identity::password::WeakPassword;
use envforge_identity::self_hosted::LoginError;
use envforge_identity::sessions::{IdentityError, RefreshError};
use http::{HeaderValue, StatusCode, header};
use serde_json::{Map, Value, json};

/// Why a request was not answered as asked.
#[derive(Clone, Debug)]
pub struct Problem {
    code: &'static str,
    status: StatusCode,
    title: &'static str,
    detail: String,
    fields: Map<String, Value>,
    retry_after_s: Option<u64>,
    /// For our logs alone.
    internal: Option<String>,
}

/// The content type of a problem (RFC 9457 6.1).
pub const CONTENT_TYPE: &str = "application/problem+json";

impl Problem {
    /// A problem of the catalogue. `detail` says what, where and what would be right.
    pub fn new(code: &'static str, detail: impl Into<String>) -> Self {
        match catalogue::find(code) {
            Some(entry) => Self {
                code,
                status: entry.status,
                title: entry.title,
                detail: detail.into(),
                fields: Map::new(),
                retry_after_s: None,
                internal: None,
            },
            None => Self::internal(format!("the problem code `{code}` stands in no catalogue: {}", detail.into())),
        }
    }

    /// Our own failure. The reason is logged and not sent.
    pub fn internal(reason: impl Into<String>) -> Self {
        let entry = catalogue::find("internal").expect("the catalogue documents `internal`");
        Self {
            code: entry.code,
            status: entry.status,
            title: entry.title,
            detail: "Something went wrong on our side. It is recorded under the request named by `instance`."
                .to_owned(),
            fields: Map::new(),
            retry_after_s: None,
            internal: Some(reason.into()),
        }
    }

    /// What does not exist, and what must look as if it did not: word for word the same.
    pub fn not_found() -> Self {
        Self::new("not_found", "There is no such thing here, or you may not know that there is.")
    }

    /// A value of the request that breaks a rule.
    pub fn value(field: &str, reason: impl std::fmt::Display) -> Self {
        Self::new("value_invalid", format!("`{field}`: {reason}")).with("field", field)
    }

    #[must_use]
    pub fn with(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.fields.insert(field.to_owned(), value.into());
        self
    }

    #[must_use]
    pub fn retry_after_s(mut self, seconds: u64) -> Self {
        self.retry_after_s = Some(seconds.max(1));
        self
    }

    #[must_use]
    pub fn because(mut self, internal: impl Into<String>) -> Self {
        self.internal = Some(internal.into());
        self
    }

    pub fn code(&self) -> &'static str {
        self.code
    }

    pub fn status(&self) -> StatusCode {
        self.status
    }

    pub(crate) fn title(&self) -> &'static str {
        self.title
    }

    pub(crate) fn detail(&self) -> &str {
        &self.detail
    }

    /// Seconds.
    pub(crate) fn retry_after(&self) -> Option<u64> {
        self.retry_after_s
    }

    pub(crate) fn internal_reason(&self) -> Option<&str> {
        self.internal.as_deref()
    }

    /// The body. `instance` names the request.
    pub(crate) fn body(&self, instance: &str) -> Vec<u8> {
        let mut object = self.fields.clone();
        for (name, value) in [
            ("type", json!(format!("/v1/problems/{}", self.code))),
            ("title", json!(self.title)),
            ("status", json!(self.status.as_u16())),
            ("detail", json!(self.detail)),
            ("instance", json!(instance)),
            ("code", json!(self.code)),
        ] {
            object.insert(name.to_owned(), value);
        }
        serde_json::to_vec(&object).expect("an object of texts and numbers")
    }
}

/// Leaves the body to the outermost layer, which knows the request's id.
impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"envforge\""));
        }
        response.extensions_mut().insert(self);
        response
    }
}

/// A domain "no". The status follows from its kind, except where the catalogue is more exact.
impl From<&dyn Refusal> for Problem {
    fn from(refusal: &dyn Refusal) -> Self {
        let status = match refusal.kind() {
            RefusalKind::NotFound => StatusCode::NOT_FOUND,
            RefusalKind::Conflict => StatusCode::CONFLICT,
            RefusalKind::Invalid => StatusCode::UNPROCESSABLE_ENTITY,
            RefusalKind::Gone => StatusCode::GONE,
            RefusalKind::Forbidden => StatusCode::FORBIDDEN,
        };
        let mut problem = Self::new(refusal.code(), refusal.to_string());
        problem.status = status;
        let people: Vec<_> =
            refusal.people().iter().map(|(id, name)| json!({ "id": id.to_string(), "name": name })).collect();
        if !people.is_empty() {
            problem = problem.with("people", people);
        }
        refusal.bounds().into_iter().fold(problem, |problem, (name, value)| problem.with(name, value))
    }
}

/// The policy's "no". What must stay hidden is answered like what does not exist.
impl From<Denial> for Problem {
    fn from(denial: Denial) -> Self {
        if denial.hides_existence() {
            return Self::not_found();
        }
        let problem = Self::new(denial.code(), denial.to_string());
        match denial {
            Denial::Role { action }
            | Denial::GrantExpired { action }
            | Denial::Surface { action, .. }
            | Denial::OutsideServiceToken { action } => problem.with("action", action.token()),
            Denial::ServiceTokenOver { over } => problem.with("reason", over.token()),
            Denial::LinkIssuers { allowed } => {
                problem.with("roles", allowed.iter().map(Role::token).collect::<Vec<_>>())
            }
            Denial::NotAMember
            | Denial::Deactivated
            | Denial::SessionEnded
            | Denial::OutsideLink
            | Denial::LinkEnded
            | Denial::OtherOrganization => problem,
        }
    }
}

impl From<CommandError> for Problem {
    fn from(error: CommandError) -> Self {
        match error {
            CommandError::Refused(refusal) => Self::from(&*refusal),
            CommandError::PermitMismatch { .. } | CommandError::PermitRestsOnNothing { .. } => {
                Self::internal(error.to_string())
            }
            CommandError::RightsMoved { .. } => Self::new(
                "rights_stale",
                "Whether you may do this cannot be made sure of right now; nothing was changed.",
            )
            .retry_after_s(1)
            .because(error.to_string()),
            CommandError::CommandReused => Self::new(
                "idempotency_key_reused",
                "This Idempotency-Key was used for another request before. Use a new one.",
            ),
            CommandError::Contended => Self::new("contended", error.to_string()).retry_after_s(1),
            CommandError::Unknown => Self::new("outcome_unknown", error.to_string()).retry_after_s(1),
            CommandError::Unappendable(error) => error.into(),
            CommandError::Log(error) => error.into(),
        }
    }
}

impl From<AppendError> for Problem {
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::TooLarge { unit, limit, .. } => {
                Self::new("event_too_large", error.to_string()).with("max", limit).with("unit", unit)
            }
            AppendError::Malformed => Self::internal(error.to_string()),
            AppendError::Conflict { .. } => CommandError::Contended.into(),
            AppendError::RightsMoved { stream, .. } => CommandError::RightsMoved { stream }.into(),
            AppendError::CommandReused { .. } => CommandError::CommandReused.into(),
            AppendError::Unknown => CommandError::Unknown.into(),
            AppendError::Log(error) => error.into(),
        }
    }
}

impl From<LogError> for Problem {
    fn from(error: LogError) -> Self {
        match error {
            LogError::Unavailable(_) | LogError::Open(_) => {
                // A request may take several commits, or have been stored before its answer was looked for.
                Self::new(
                    "log_unavailable",
                    "The event log is out of reach. A change may have happened in part; repeat it with the same \
                     `Idempotency-Key`.",
                )
                .retry_after_s(1)
                .because(error.to_string())
            }
            LogError::NotTheSameLog(_) | LogError::Undecodable { .. } | LogError::Damaged(_) => {
                Self::internal(error.to_string())
            }
        }
    }
}

impl From<IdentityError> for Problem {
    fn from(error: IdentityError) -> Self {
        Self::internal(error.to_string())
    }
}

impl From<LoginError> for Problem {
    fn from(error: LoginError) -> Self {
        match error {
            LoginError::WrongCredentials { .. } => Self::new("wrong_credentials", error.to_string()),
            LoginError::LockedOut(locked) => Self::new("too_many_attempts", error.to_string())
                .retry_after_s(locked.retry_after.get().div_ceil(1_000)),
            LoginError::Busy => Self::new("sign_in_busy", error.to_string()).retry_after_s(1),
            LoginError::Identity(error) => error.into(),
        }
    }
}

impl From<RefreshError> for Problem {
    fn from(error: RefreshError) -> Self {
        match error {
            RefreshError::Invalid | RefreshError::Revoked { .. } => {
                Self::new("refresh_token_invalid", error.to_string())
            }
            RefreshError::Reused { .. } => Self::new("refresh_token_reused", error.to_string()),
            RefreshError::Identity(error) => error.into(),
        }
    }
}

impl From<WeakPassword> for Problem {
    fn from(weak: WeakPassword) -> Self {
        let problem = Self::new(weak.code(), weak.to_string());
        match weak {
            WeakPassword::TooShort { min, .. } => problem.with("min_chars", min),
            WeakPassword::TooLong { max, .. } => problem.with("max_bytes", max),
            WeakPassword::Common | WeakPassword::ControlCharacter => problem,
        }
    }
}

impl From<ManifestErrors> for Problem {
    fn from(errors: ManifestErrors) -> Self {
        let listed: Vec<_> = errors
            .errors()
            .iter()
            .map(|error| {
                json!({
                    "line": error.position.line,
                    "column": error.position.column,
                    "path": error.path,
                    "code": error.kind.code(),
                    "found": error.found,
                    "expected": error.expected,
                })
            })
            .collect();
        Self::new("manifest_invalid", errors.to_string()).with("errors", listed).with("omitted", errors.omitted())
    }
}
