//! What a provider tells us by itself about people who leave or come: signed events, and SCIM 2.0 (RFC 7643, RFC 7644).
//!
//! Deactivation revokes everything of the person in the organization: the record, sessions, refresh tokens, what is open. Not here: the
//! logout of a session (`oidc`).

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use envforge_commands::users;
use envforge_domain::access::{Action, Resource};
use envforge_domain::commit::{StreamId, Surface};
use envforge_domain::ids::{OrgId, UserId};
use envforge_domain::organization::Organization;
use envforge_domain::session::SessionEnd;
use envforge_domain::user::{User, UserCommand};
use envforge_identity::oidc::{Client, EVENT_AGE_MAX, MappedOrganization, Oidc, Proven, Seen};
use http::{HeaderMap, StatusCode, header};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::auth::Auth;
use super::oidc::Login;
use super::oidc_mirror::{context, first_sight, user_of};
use crate::edge::Arrival;
use crate::page::{Path, Query};
use crate::problem::Problem;
use crate::request_body::collect;

const BODY_BYTES_MAX: usize = 64 * 1024;
const ID_CHARS_MAX: usize = 255;
/// Signs a provider's event: `t=<unix seconds>,v1=<hex of HMAC-SHA256 of "<seconds>.<body>">`.
const SIGNATURE_HEADER: &str = "envforge-event-signature";
const SCIM_TYPE: &str = "application/scim+json";
const USER_SCHEMA: &str = "urn:ietf:params:scim:schemas:core:2.0:User";
const LIST_SCHEMA: &str = "urn:ietf:params:scim:api:messages:2.0:ListResponse";

pub(crate) fn routes() -> OpenApiRouter<Login> {
    OpenApiRouter::new().routes(routes!(event)).routes(routes!(scim_create, scim_list)).routes(routes!(
        scim_get,
        scim_put,
        scim_patch,
        scim_delete
    ))
}

/// Something that happened at the provider.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ProviderEvent {
    /// The provider's own; a repeated one does nothing.
    id: String,
    /// `user.deactivated`: everything of theirs is revoked.
    #[serde(rename = "type")]
    kind: String,
    /// `sub` of the person.
    subject: String,
    /// The provider's id of one organization; all mapped ones where it is left out.
    organization: Option<String>,
}

/// The provider tells that somebody was deactivated.
#[utoipa::path(post, path = "/v1/auth/oidc/events", tag = "auth", request_body = ProviderEvent,
    params(("envforge-event-signature" = String, Header, description = "`t=<unix seconds>,v1=<hex of HMAC-SHA256 of \"<seconds>.<body>\">`")),
    responses((status = 204)), extensions(("x-envforge-action" = json!("public"))))]
async fn event(State(state): State<Login>, arrival: Arrival, request: Request) -> Result<StatusCode, Problem> {
    let (oidc, _) = state.provider()?;
    state.asked.take(&arrival)?;
    let (parts, body) = request.into_parts();
    let mut given = parts.headers.get_all(SIGNATURE_HEADER).iter();
    let signature = match (given.next().and_then(|value| value.to_str().ok()), given.next()) {
        (Some(signature), None) => signature.to_owned(),
        _ => return Err(not_signed("malformed", "Send one `EnvForge-Event-Signature`.")),
    };
    let body = collect(body, BODY_BYTES_MAX).await?;
    oidc.verify_event(&signature, &body, arrival.now)
        .map_err(|invalid| not_signed(invalid.code(), &format!("{invalid}.")))?;
    let event: ProviderEvent = read(&body)?;
    if event.kind != "user.deactivated" {
        return Err(Problem::value("type", "expected `user.deactivated`"));
    }
    for (field, text) in [("id", &event.id), ("subject", &event.subject)] {
        if !(1..=ID_CHARS_MAX).contains(&text.len()) {
            return Err(Problem::value(field, format!("expected 1 to {ID_CHARS_MAX} characters")));
        }
    }
    if oidc.seen("event", &event.id).await.map_err(internal)? == Seen::Before {
        return Ok(StatusCode::NO_CONTENT);
    }
    let wanted = |mapped: &&MappedOrganization| {
        event.organization.as_ref().is_none_or(|organization| *organization == mapped.provider_id)
    };
    for mapped in oidc.config().organizations().iter().filter(wanted) {
        let Some(org) = state.hot.authorization.organization_by_slug(&mapped.slug) else { continue };
        let user = user_of(org, oidc.config().issuer(), &event.subject);
        deactivate(&state.auth, org, user, &arrival).await?;
    }
    // After the deed: carrying it out twice does no harm. Longer than a message can be repeated.
    let until = arrival.now.plus(EVENT_AGE_MAX).plus(EVENT_AGE_MAX);
    oidc.mark_seen("event", &event.id, until).await.map_err(internal)?;
    Ok(StatusCode::NO_CONTENT)
}

/// Takes everything from somebody. Whoever was never seen has nothing; repeating it changes nothing.
async fn deactivate(auth: &Auth, org: OrgId, user: UserId, arrival: &Arrival) -> Result<(), Problem> {
    let surface = Surface::Api;
    match auth.commands.load::<User>(&StreamId::user(org, user)).await?.state {
        User::Unknown | User::Invited(_) | User::InvitationRevoked => return Ok(()),
        User::Deactivated { .. } => {
            auth.identity.sessions().revoke_user(user, arrival.now).await?;
            return Ok(());
        }
        User::Active { .. } => {}
    }
    let revoking = auth.sessions.revoking(org, user, SessionEnd::Deactivated, arrival.now).await?;
    // Sessions first: also of somebody who cannot be deactivated, as the last owner cannot.
    let end = UserCommand::EndAllSessions { reason: SessionEnd::Deactivated };
    auth.sessions.record(org, user, surface, arrival, &end).await?;
    auth.identity.sessions().revoke_user(user, arrival.now).await?;
    let resource = Resource::User { org, user };
    let permit = auth.access.provider_permit(Action::UserDeactivate, resource, surface, arrival.now).await?;
    let context = context(auth, arrival)?;
    let done = users::deactivate(&auth.commands, &permit, &context, user).await?;
    auth.sessions.receipt(revoking, &done, surface, &context).await?;
    Ok(())
}

/// A person as the provider's SCIM client writes them.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ScimNewUser {
    /// The person's `sub` in the provider's tokens.
    external_id: String,
    user_name: Option<String>,
    display_name: Option<String>,
    #[serde(default)]
    emails: Vec<ScimEmail>,
    active: Option<bool>,
}

#[derive(Deserialize, ToSchema)]
struct ScimEmail {
    value: String,
}

/// A person as SCIM shows them.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct ScimUser {
    schemas: [&'static str; 1],
    id: String,
    external_id: String,
    user_name: String,
    display_name: String,
    active: bool,
}

/// The same, in the place of what was written before. Names and addresses are taken at first sight alone.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ScimReplacement {
    /// The person's `sub`; it cannot be changed.
    external_id: Option<String>,
    /// `false`: everything of theirs is revoked.
    #[serde(default)]
    active: Value,
}

#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ScimPatch {
    operations: Vec<ScimOperation>,
}

#[derive(Deserialize, ToSchema)]
struct ScimOperation {
    op: String,
    path: Option<String>,
    #[serde(default)]
    value: Value,
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(rename_all = "camelCase")]
struct ScimQuery {
    /// `externalId eq "SUBJECT"`; other filters find nobody.
    filter: Option<String>,
}

/// Make somebody a member before they sign in for the first time (SCIM 2.0).
#[utoipa::path(post, path = "/v1/scim/{org}/Users", tag = "scim",
    request_body(content = ScimNewUser, content_type = "application/scim+json"),
    responses((status = 201, body = ScimUser)), extensions(("x-envforge-action" = json!("public"))))]
async fn scim_create(
    State(state): State<Login>,
    arrival: Arrival,
    Path(slug): Path<String>,
    request: Request,
) -> Result<Response, Problem> {
    let scim = state.scim(&slug, request.headers(), &arrival)?;
    let body = collect(request.into_body(), BODY_BYTES_MAX).await?;
    let new: ScimNewUser = read(&body)?;
    if !(1..=ID_CHARS_MAX).contains(&new.external_id.len()) {
        return Err(Problem::value("externalId", "expected the person's `sub`, 1 to 255 characters"));
    }
    if new.active == Some(false) {
        return Err(Problem::value("active", "somebody who was never here cannot be made inactive"));
    }
    let user = scim.user(&new.external_id);
    match state.auth.commands.load::<User>(&StreamId::user(scim.org, user)).await?.state {
        User::Unknown | User::Invited(_) | User::InvitationRevoked => {}
        User::Active { .. } => return Err(Problem::new("user_exists", "Somebody with this `externalId` is here.")),
        User::Deactivated { .. } => {
            return Err(Problem::new("account_deactivated", "Somebody with this `externalId` was deactivated."));
        }
    }
    let address = new.emails.first().map(|email| email.value.clone()).or(new.user_name);
    let proven = Proven {
        issuer: scim.oidc.config().issuer().to_owned(),
        subject: new.external_id.clone(),
        organization: scim.mapped.provider_id.clone(),
        client: Client::Web,
        provider_session: None,
        email: address,
        name: new.display_name,
        authenticated_at: arrival.now,
        issued_at: arrival.now,
        ends_at: arrival.now,
    };
    // The organization's own provider says who belongs to it.
    let mut joining = scim.mapped.clone();
    joining.join = true;
    first_sight(&state.auth, scim.org, user, &joining, &proven, Surface::Api, &arrival).await?;
    let shown = state.scim_user(&scim, &new.external_id).await?;
    Ok(scim_answer(StatusCode::CREATED, &shown))
}

/// Find somebody by the provider's id (SCIM 2.0).
#[utoipa::path(get, path = "/v1/scim/{org}/Users", tag = "scim", params(ScimQuery),
    responses((status = 200, body = Value)), extensions(("x-envforge-action" = json!("public"))))]
async fn scim_list(
    State(state): State<Login>,
    arrival: Arrival,
    headers: HeaderMap,
    Path(slug): Path<String>,
    Query(query): Query<ScimQuery>,
) -> Result<Response, Problem> {
    let scim = state.scim(&slug, &headers, &arrival)?;
    let mut found = Vec::new();
    if let Some(subject) = query.filter.as_deref().and_then(external_id) {
        match state.scim_user(&scim, subject).await {
            Ok(user) => found.push(user),
            Err(problem) if problem.code() == "not_found" => {}
            Err(problem) => return Err(problem),
        }
    }
    let list = json!({
        "schemas": [LIST_SCHEMA], "totalResults": found.len(), "startIndex": 1, "itemsPerPage": found.len(), "Resources": found,
    });
    Ok(scim_answer(StatusCode::OK, &list))
}

/// Somebody (SCIM 2.0).
#[utoipa::path(get, path = "/v1/scim/{org}/Users/{user}", tag = "scim", responses((status = 200, body = ScimUser)),
    extensions(("x-envforge-action" = json!("public"))))]
async fn scim_get(
    State(state): State<Login>,
    arrival: Arrival,
    headers: HeaderMap,
    Path((slug, user)): Path<(String, String)>,
) -> Result<Response, Problem> {
    let scim = state.scim(&slug, &headers, &arrival)?;
    Ok(scim_answer(StatusCode::OK, &state.scim_user(&scim, &subject_of(&user)?).await?))
}

/// Deactivate somebody by `active: false`: everything of theirs is revoked (SCIM 2.0).
#[utoipa::path(patch, path = "/v1/scim/{org}/Users/{user}", tag = "scim",
    request_body(content = ScimPatch, content_type = "application/scim+json"),
    responses((status = 200, body = ScimUser)), extensions(("x-envforge-action" = json!("public"))))]
async fn scim_patch(
    State(state): State<Login>,
    arrival: Arrival,
    Path((slug, user)): Path<(String, String)>,
    request: Request,
) -> Result<Response, Problem> {
    let scim = state.scim(&slug, request.headers(), &arrival)?;
    let subject = subject_of(&user)?;
    let body = collect(request.into_body(), BODY_BYTES_MAX).await?;
    let patch: ScimPatch = read(&body)?;
    let shown = state.bring_to(&scim, &subject, wanted_state(&patch)?, &arrival).await?;
    Ok(scim_answer(StatusCode::OK, &shown))
}

/// Write somebody again, as providers do that know no patch: by `active: false` everything of theirs is revoked (SCIM 2.0).
#[utoipa::path(put, path = "/v1/scim/{org}/Users/{user}", tag = "scim",
    request_body(content = ScimReplacement, content_type = "application/scim+json"),
    responses((status = 200, body = ScimUser)), extensions(("x-envforge-action" = json!("public"))))]
async fn scim_put(
    State(state): State<Login>,
    arrival: Arrival,
    Path((slug, user)): Path<(String, String)>,
    request: Request,
) -> Result<Response, Problem> {
    let scim = state.scim(&slug, request.headers(), &arrival)?;
    let subject = subject_of(&user)?;
    let body = collect(request.into_body(), BODY_BYTES_MAX).await?;
    let replacement: ScimReplacement = read(&body)?;
    if replacement.external_id.is_some_and(|external| external != subject) {
        return Err(Problem::value("externalId", "expected that of this person: it cannot be changed"));
    }
    let wanted = match &replacement.active {
        Value::Null => None,
        active => Some(truth(active).ok_or_else(|| Problem::value("active", "expected true or false"))?),
    };
    let shown = state.bring_to(&scim, &subject, wanted, &arrival).await?;
    Ok(scim_answer(StatusCode::OK, &shown))
}

/// Somebody has left: everything of theirs is revoked (SCIM 2.0).
#[utoipa::path(delete, path = "/v1/scim/{org}/Users/{user}", tag = "scim", responses((status = 204)),
    extensions(("x-envforge-action" = json!("public"))))]
async fn scim_delete(
    State(state): State<Login>,
    arrival: Arrival,
    headers: HeaderMap,
    Path((slug, user)): Path<(String, String)>,
) -> Result<StatusCode, Problem> {
    let scim = state.scim(&slug, &headers, &arrival)?;
    let subject = subject_of(&user)?;
    state.scim_user(&scim, &subject).await?;
    deactivate(&state.auth, scim.org, scim.user(&subject), &arrival).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The organization for which a SCIM client has proven itself.
struct Scim<'a> {
    oidc: &'a Oidc,
    org: OrgId,
    mapped: &'a MappedOrganization,
}

impl Scim<'_> {
    fn user(&self, subject: &str) -> UserId {
        user_of(self.org, self.oidc.config().issuer(), subject)
    }
}

impl Login {
    /// Whoever presents the organization's token. Without it nobody learns which organizations there are.
    fn scim(&self, slug: &str, headers: &HeaderMap, arrival: &Arrival) -> Result<Scim<'_>, Problem> {
        let refused =
            || Problem::new("unauthenticated", "Send `Authorization: Bearer <the organization's SCIM token>`.");
        let (oidc, _) = self.provider()?;
        self.asked.take(arrival)?;
        let mut given = headers.get_all(header::AUTHORIZATION).iter();
        let token = match (given.next().and_then(|value| value.to_str().ok()), given.next()) {
            (Some(value), None) => value.strip_prefix("Bearer ").ok_or_else(refused)?,
            _ => return Err(refused()),
        };
        let mapped = slug.parse().ok().and_then(|slug| oidc.config().organization_of(&slug)).ok_or_else(refused)?;
        if !mapped.scim_token().is_some_and(|known| known.matches(token)) {
            return Err(refused());
        }
        let org = self.hot.authorization.organization_by_slug(&mapped.slug).ok_or_else(Problem::not_found)?;
        Ok(Scim { oidc, org, mapped })
    }

    /// Somebody as they are once they are active or not, as wanted. Nobody is made active again.
    async fn bring_to(
        &self,
        scim: &Scim<'_>,
        subject: &str,
        active: Option<bool>,
        arrival: &Arrival,
    ) -> Result<ScimUser, Problem> {
        let before = self.scim_user(scim, subject).await?;
        match active {
            Some(false) => deactivate(&self.auth, scim.org, scim.user(subject), arrival).await?,
            Some(true) if !before.active => {
                return Err(Problem::new("account_deactivated", "A deactivated account is not activated by SCIM."));
            }
            // Names and addresses are the provider's; they are taken at first sight.
            Some(true) | None => return Ok(before),
        }
        self.scim_user(scim, subject).await
    }

    /// A member of the organization whom a provider has made, as the log's leader has them.
    async fn scim_user(&self, scim: &Scim<'_>, subject: &str) -> Result<ScimUser, Problem> {
        let user = scim.user(subject);
        let loaded = self.auth.commands.load::<User>(&StreamId::user(scim.org, user)).await?;
        let active = match loaded.state {
            User::Unknown | User::Invited(_) | User::InvitationRevoked => return Err(Problem::not_found()),
            User::Active { .. } => {
                let organization =
                    self.auth.commands.load::<Organization>(&StreamId::organization(scim.org)).await?.state;
                matches!(organization, Organization::Active(organization) if organization.members.contains(&user))
            }
            User::Deactivated { .. } => false,
        };
        // The record's name is in the view once it stands there.
        self.hot.wait_for(loaded.position, crate::sessions::WAIT_FOR_VIEW).await.map_err(internal)?;
        let known = self.hot.authorization.user(user).ok_or_else(Problem::not_found)?;
        Ok(ScimUser {
            schemas: [USER_SCHEMA],
            id: URL_SAFE_NO_PAD.encode(subject),
            external_id: subject.to_owned(),
            user_name: known.email,
            display_name: known.name,
            active,
        })
    }
}

/// A SCIM id is the subject itself, spelled for URLs: whoever the provider did not make cannot even be named.
pub(crate) fn subject_of(id: &str) -> Result<String, Problem> {
    let bytes = URL_SAFE_NO_PAD.decode(id).map_err(|_| Problem::not_found())?;
    let subject = String::from_utf8(bytes).map_err(|_| Problem::not_found())?;
    if (1..=ID_CHARS_MAX).contains(&subject.len()) { Ok(subject) } else { Err(Problem::not_found()) }
}

/// The subject of `externalId eq "…"`.
pub(crate) fn external_id(filter: &str) -> Option<&str> {
    let (attribute, rest) = filter.trim().split_once(' ')?;
    let (operator, value) = rest.trim_start().split_once(' ')?;
    let quoted = value.trim_start().strip_prefix('"')?.strip_suffix('"')?;
    if attribute != "externalId" || !operator.eq_ignore_ascii_case("eq") {
        return None;
    }
    (!quoted.is_empty() && quoted.len() <= ID_CHARS_MAX && !quoted.contains(['"', '\\'])).then_some(quoted)
}

/// What a patch wants `active` to be. Providers write it in three ways (RFC 7644 3.5.2, and Entra's strings).
pub(crate) fn wanted_state(patch: &ScimPatch) -> Result<Option<bool>, Problem> {
    let wrong = || Problem::value("Operations", "expected `replace` of `active` by true or false");
    let mut wanted = None;
    for operation in &patch.operations {
        if !operation.op.eq_ignore_ascii_case("replace") && !operation.op.eq_ignore_ascii_case("add") {
            continue;
        }
        let value = match operation.path.as_deref() {
            Some("active") => Some(&operation.value),
            Some(_) => None,
            None => operation.value.get("active"),
        };
        if let Some(value) = value {
            wanted = Some(truth(value).ok_or_else(wrong)?);
        }
    }
    Ok(wanted)
}

/// True or false, and how Entra spells them.
fn truth(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(active) => Some(*active),
        Value::String(text) if text.eq_ignore_ascii_case("true") => Some(true),
        Value::String(text) if text.eq_ignore_ascii_case("false") => Some(false),
        _ => None,
    }
}

fn read<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(body)
        .map_err(|error| Problem::new("body_invalid", format!("The body cannot be read: {error}.")))
}

fn scim_answer(status: StatusCode, body: &impl Serialize) -> Response {
    let text = serde_json::to_vec(body).unwrap_or_default();
    (status, [(header::CONTENT_TYPE, SCIM_TYPE)], text).into_response()
}

fn not_signed(reason: &str, detail: &str) -> Problem {
    Problem::new("event_not_signed", detail).with("reason", reason)
}

fn internal(error: impl std::fmt::Display) -> Problem {
    Problem::internal(error.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_filter_names_one_subject() {
        for good in [r#"externalId eq "auth0|ada""#, r#" externalId  EQ  "auth0|ada" "#] {
            assert_eq!(external_id(good), Some("auth0|ada"), "{good}");
        }
        for wrong in [
            "",
            r#"userName eq "x""#,
            "externalId eq x",
            r#"externalId eq """#,
            r#"externalIdeq"a""#,
            r#"externalId eq"a""#,
            r#"externalId eq "a" or "b""#,
        ] {
            assert_eq!(external_id(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_patch_says_active_in_one_of_three_ways() {
        let of = |operations: Value| {
            let patch = serde_json::from_value(json!({ "Operations": operations })).unwrap();
            wanted_state(&patch).map_err(|problem| problem.code())
        };
        assert_eq!(of(json!([{"op": "replace", "path": "active", "value": false}])), Ok(Some(false)));
        assert_eq!(of(json!([{"op": "Replace", "value": {"active": "False"}}])), Ok(Some(false)));
        assert_eq!(of(json!([{"op": "replace", "path": "active", "value": "true"}])), Ok(Some(true)));
        assert_eq!(of(json!([{"op": "replace", "path": "displayName", "value": "Ada"}])), Ok(None));
        assert_eq!(of(json!([{"op": "replace", "path": "active", "value": "perhaps"}])), Err("value_invalid"));
    }
}
