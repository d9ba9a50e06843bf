//! What has to outlive a process and be shared by all: sign-ins under way, which of the provider's sessions ours came from, what the provider
//! has ended, which of its messages were carried out.
//!
//! In the credential table's database. Not here: what any of it means (`flow`, the API).

use envforge_domain::commit::Surface;
use envforge_domain::ids::{OrgId, SessionId, UserId};
use envforge_domain::secret::{Secret, TokenDigest};
use envforge_domain::session::{ClientName, OpenSession};
use envforge_domain::time::{Millis, UnixMillis};
use sha2::{Digest as _, Sha256};

use super::flow::{Proven, ReturnTo};
use super::{Client, Oidc};
use crate::credentials::{Credentials, CredentialsError, Pool, millis, on_either};
use crate::tokens::{Session, SignedIn};

/// Sign-ins under way at the same time. Beyond that the oldest make room: each is a row of 300 bytes.
const FLOWS_MAX: i64 = 50_000;
/// Longer than any session of ours can live after its provider's session ended.
const ENDING_KEPT: Millis = crate::sessions::SESSION_LIFETIME;

pub(super) struct Store {
    pool: Pool,
}

/// A sign-in under way.
pub(super) struct Flow {
    /// The client that was sent to the provider: the code that comes back is redeemed as that one and no other.
    pub(super) client: Client,
    pub(super) nonce: Secret,
    pub(super) verifier: Secret,
    pub(super) organization: Option<String>,
    pub(super) return_to: ReturnTo,
}

/// A session of ours that the provider has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndedSession {
    pub session: SessionId,
    pub user: UserId,
    pub org: OrgId,
}

/// Whether a message was carried out before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    Never,
    Before,
}

type FlowRow = (String, String, String, Option<String>, String);
type SessionRow = (String, String, String);
type BrowserRow = (String, String, String, String, String, i64, i64);

impl Store {
    pub(super) fn new(credentials: &Credentials) -> Self {
        Self { pool: credentials.pool.clone() }
    }

    pub(super) async fn begin(
        &self,
        state: TokenDigest,
        browser: TokenDigest,
        flow: &Flow,
        now: UnixMillis,
        expires_at: UnixMillis,
    ) -> Result<(), CredentialsError> {
        on_either!(self.pool, pool => {
            sqlx::query("DELETE FROM oidc_flows WHERE expires_at <= $1").bind(millis(now)).execute(pool).await?;
            sqlx::query(
                "DELETE FROM oidc_flows WHERE state_hash IN (SELECT state_hash FROM oidc_flows ORDER BY expires_at LIMIT \
                 (SELECT CASE WHEN COUNT(*) >= $1 THEN COUNT(*) - $1 + 1 ELSE 0 END FROM oidc_flows))",
            )
            .bind(FLOWS_MAX)
            .execute(pool)
            .await?;
            sqlx::query(
                "INSERT INTO oidc_flows (state_hash, browser_hash, client, nonce, verifier, organization, return_to, expires_at) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
            )
            .bind(hex::encode(state.as_bytes()))
            .bind(hex::encode(browser.as_bytes()))
            .bind(flow.client.token())
            .bind(flow.nonce.expose().to_owned())
            .bind(flow.verifier.expose().to_owned())
            .bind(flow.organization.clone())
            .bind(flow.return_to.as_str().to_owned())
            .bind(millis(expires_at))
            .execute(pool)
            .await?;
        });
        Ok(())
    }

    /// The sign-in of this state in this browser. It is there once: a second callback finds nothing. Another browser takes nothing away.
    pub(super) async fn take(
        &self,
        state: TokenDigest,
        browser: TokenDigest,
        now: UnixMillis,
    ) -> Result<Option<Flow>, CredentialsError> {
        let row: Option<FlowRow> = on_either!(self.pool, pool => sqlx::query_as(
            "DELETE FROM oidc_flows WHERE state_hash = $1 AND browser_hash = $2 AND expires_at > $3 \
             RETURNING client, nonce, verifier, organization, return_to",
        )
        .bind(hex::encode(state.as_bytes()))
        .bind(hex::encode(browser.as_bytes()))
        .bind(millis(now))
        .fetch_optional(pool)
        .await?);
        row.map(|(client, nonce, verifier, organization, return_to)| {
            let client = Client::from_token(&client).ok_or(CredentialsError::Damaged { column: "client" })?;
            let return_to =
                ReturnTo::parse(&return_to).map_err(|_| CredentialsError::Damaged { column: "return_to" })?;
            Ok(Flow { client, nonce: Secret::new(nonce), verifier: Secret::new(verifier), organization, return_to })
        })
        .transpose()
    }
}

/// One word for one thing of one issuer; the lengths keep parts apart.
fn digest(parts: &[&str]) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part.as_bytes());
    }
    hex::encode(hasher.finalize())
}

fn read_session((session, user, org): SessionRow) -> Result<EndedSession, CredentialsError> {
    Ok(EndedSession {
        session: session.parse().map_err(|_| CredentialsError::Damaged { column: "session_id" })?,
        user: user.parse().map_err(|_| CredentialsError::Damaged { column: "user_id" })?,
        org: org.parse().map_err(|_| CredentialsError::Damaged { column: "org_id" })?,
    })
}

impl Oidc {
    /// Remembers where a session comes from. Before it is opened: one that nobody could find at the provider's logout must not exist.
    pub async fn remember_session(
        &self,
        session: &Session,
        proven: &Proven,
        now: UnixMillis,
    ) -> Result<(), CredentialsError> {
        let store = &self.store;
        on_either!(store.pool, pool => sqlx::query(
            "INSERT INTO oidc_sessions \
             (session_id, user_id, org_id, issuer, subject, provider_session, client, opened_at, expires_at) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        )
        .bind(session.session.to_string())
        .bind(session.user.to_string())
        .bind(session.org.to_string())
        .bind(proven.issuer.clone())
        .bind(proven.subject.clone())
        .bind(proven.provider_session.clone())
        .bind(proven.client.token())
        .bind(millis(now))
        .bind(millis(session.expires_at))
        .execute(pool)
        .await
        .map(drop)?);
        Ok(())
    }

    /// Whether the provider has ended this person's session, or everything of this person, since they signed in.
    pub async fn has_ended(&self, proven: &Proven) -> Result<bool, CredentialsError> {
        let issuer = proven.issuer.as_str();
        let person = digest(&["subject", issuer, &proven.subject]);
        let session = proven.provider_session.as_deref().map(|session| digest(&["session", issuer, session]));
        let store = &self.store;
        let row: Option<(i64,)> = on_either!(store.pool, pool => sqlx::query_as(
            "SELECT ended_at FROM oidc_endings WHERE what = $1 OR (what = $2 AND ended_at >= $3) LIMIT 1",
        )
        // A session that was ended stays ended; a person may sign in again.
        .bind(session.unwrap_or_default())
        .bind(person)
        .bind(millis(proven.issued_at))
        .fetch_optional(pool)
        .await?);
        Ok(row.is_some())
    }

    /// Takes note that the provider has ended a session, or everything of a person before an instant, and says which sessions of ours came
    /// from there. They are ended by whoever asked.
    pub async fn end(
        &self,
        subject: Option<&str>,
        provider_session: Option<&str>,
        ended_at: UnixMillis,
        now: UnixMillis,
    ) -> Result<Vec<EndedSession>, CredentialsError> {
        let issuer = self.config().issuer();
        let what = match (provider_session, subject) {
            (Some(session), _) => digest(&["session", issuer, session]),
            (None, Some(subject)) => digest(&["subject", issuer, subject]),
            (None, None) => return Ok(Vec::new()),
        };
        let store = &self.store;
        let rows: Vec<SessionRow> = on_either!(store.pool, pool => {
            sqlx::query(
                "INSERT INTO oidc_endings (what, ended_at, expires_at) VALUES ($1, $2, $3) ON CONFLICT (what) DO UPDATE SET \
                 ended_at = CASE WHEN oidc_endings.ended_at > excluded.ended_at THEN oidc_endings.ended_at ELSE excluded.ended_at END, \
                 expires_at = excluded.expires_at",
            )
            .bind(what)
            .bind(millis(ended_at))
            .bind(millis(now.plus(ENDING_KEPT)))
            .execute(pool)
            .await?;
            // Only of sessions that were there by then: a repeated message ends nothing that came after it. Where both are named, it is
            // that session of that person.
            sqlx::query_as(
                "SELECT session_id, user_id, org_id FROM oidc_sessions WHERE issuer = $1 AND expires_at > $4 \
                 AND (($2 <> '' AND provider_session = $2 AND ($3 = '' OR subject = $3)) OR ($2 = '' AND subject = $3 AND opened_at <= $5)) \
                 ORDER BY session_id",
            )
            .bind(issuer.to_owned())
            .bind(provider_session.unwrap_or_default().to_owned())
            .bind(subject.unwrap_or_default().to_owned())
            .bind(millis(now))
            .bind(millis(now.min(ended_at.plus(Millis::from_minutes(2)))))
            .fetch_all(pool)
            .await?
        });
        rows.into_iter().map(read_session).collect()
    }

    /// Whether a message of the provider was carried out before.
    pub async fn seen(&self, kind: &str, id: &str) -> Result<Seen, CredentialsError> {
        let store = &self.store;
        let row: Option<(i64,)> = on_either!(store.pool, pool => sqlx::query_as("SELECT expires_at FROM oidc_messages WHERE message = $1")
            .bind(digest(&[kind, self.config().issuer(), id]))
            .fetch_optional(pool)
            .await?);
        Ok(if row.is_some() { Seen::Before } else { Seen::Never })
    }

    /// Remembers that a message was carried out. After that: carrying it out twice does no harm, forgetting it does.
    pub async fn mark_seen(&self, kind: &str, id: &str, until: UnixMillis) -> Result<(), CredentialsError> {
        let store = &self.store;
        on_either!(store.pool, pool => sqlx::query(
            "INSERT INTO oidc_messages (message, expires_at) VALUES ($1, $2) ON CONFLICT DO NOTHING",
        )
        .bind(digest(&[kind, self.config().issuer(), id]))
        .bind(millis(until))
        .execute(pool)
        .await
        .map(drop)?);
        Ok(())
    }
}

/// Cookies of browsers, for either provider.
impl Credentials {
    /// A cookie for a session that the log knows.
    pub async fn insert_browser_session(
        &self,
        cookie: &Secret,
        session: &Session,
        opened: &OpenSession,
    ) -> Result<(), CredentialsError> {
        on_either!(self.pool, pool => sqlx::query(
            "INSERT INTO browser_sessions \
             (cookie_hash, session_id, user_id, org_id, surface, client, authenticated_at, expires_at) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        )
        .bind(hex::encode(cookie.digest().as_bytes()))
        .bind(session.session.to_string())
        .bind(session.user.to_string())
        .bind(session.org.to_string())
        .bind(opened.surface.token())
        .bind(opened.client.as_str().to_owned())
        .bind(millis(opened.authenticated_at))
        .bind(millis(session.expires_at))
        .execute(pool)
        .await
        .map(drop)?);
        Ok(())
    }

    /// Whom a cookie speaks for. Whether the session is still live, the authorization view knows.
    pub(crate) async fn browser_session(
        &self,
        cookie: &Secret,
        now: UnixMillis,
    ) -> Result<Option<SignedIn>, CredentialsError> {
        let row: Option<BrowserRow> = on_either!(self.pool, pool => sqlx::query_as(
            "SELECT session_id, user_id, org_id, surface, client, authenticated_at, expires_at \
             FROM browser_sessions WHERE cookie_hash = $1 AND expires_at > $2",
        )
        .bind(hex::encode(cookie.digest().as_bytes()))
        .bind(millis(now))
        .fetch_optional(pool)
        .await?);
        row.map(|(session, user, org, surface, client, authenticated_at, expires_at)| {
            let EndedSession { session, user, org } = read_session((session, user, org))?;
            let damaged = |column| CredentialsError::Damaged { column };
            let instant = |at: i64, column| u64::try_from(at).map(UnixMillis::new).map_err(|_| damaged(column));
            Ok(SignedIn {
                user,
                org,
                session,
                surface: Surface::from_token(&surface).ok_or(damaged("surface"))?,
                client: ClientName::parse(&client).map_err(|_| damaged("client"))?,
                authenticated_at: instant(authenticated_at, "authenticated_at")?,
                expires_at: instant(expires_at, "expires_at")?,
            })
        })
        .transpose()
    }

    /// Forgets what is over: sign-ins, cookies, notes about the provider's sessions. Returns how many rows.
    pub async fn sweep_provider_tables(&self, now: UnixMillis) -> Result<u64, CredentialsError> {
        let mut swept = 0;
        for table in ["oidc_flows", "oidc_sessions", "oidc_endings", "oidc_messages", "browser_sessions"] {
            // The names stand here, nobody gives them.
            let statement = sqlx::AssertSqlSafe(format!("DELETE FROM {table} WHERE expires_at <= $1"));
            swept += on_either!(self.pool, pool => sqlx::query(statement)
                .bind(millis(now))
                .execute(pool)
                .await?
                .rows_affected());
        }
        Ok(swept)
    }
}

#[cfg(test)]
mod tests;
