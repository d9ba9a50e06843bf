//! The table of invitations' tokens. Not here: what was offered, and whether it still stands (the log).

use envforge_domain::ids::{OrgId, UserId};
use envforge_domain::secret::TokenDigest;
use envforge_domain::time::UnixMillis;

use super::{Credentials, CredentialsError, millis};

/// Whom a token invites where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvitationKey {
    pub user: UserId,
    pub org: OrgId,
}

impl Credentials {
    /// A token that is asked for again takes the place of the first: a repeated request answers one that works.
    pub(crate) async fn put_invitation(
        &self,
        hash: TokenDigest,
        key: InvitationKey,
        expires_at: UnixMillis,
    ) -> Result<(), CredentialsError> {
        on_either!(self.pool, pool => sqlx::query(
            "INSERT INTO credential_invitations (token_hash, user_id, org_id, expires_at) VALUES ($1, $2, $3, $4) \
             ON CONFLICT (user_id) DO UPDATE SET token_hash = excluded.token_hash, expires_at = excluded.expires_at",
        )
        .bind(hex::encode(hash.as_bytes()))
        .bind(key.user.to_string())
        .bind(key.org.to_string())
        .bind(millis(expires_at))
        .execute(pool)
        .await
        .map(drop)?);
        Ok(())
    }

    pub(crate) async fn invitation(
        &self,
        hash: TokenDigest,
        now: UnixMillis,
    ) -> Result<Option<InvitationKey>, CredentialsError> {
        let row: Option<(String, String)> = on_either!(self.pool, pool => sqlx::query_as(
            "SELECT user_id, org_id FROM credential_invitations WHERE token_hash = $1 AND expires_at > $2",
        )
        .bind(hex::encode(hash.as_bytes()))
        .bind(millis(now))
        .fetch_optional(pool)
        .await?);
        let Some((user, org)) = row else { return Ok(None) };
        Ok(Some(InvitationKey {
            user: user.parse().map_err(|_| CredentialsError::Damaged { column: "user_id" })?,
            org: org.parse().map_err(|_| CredentialsError::Damaged { column: "org_id" })?,
        }))
    }

    pub(crate) async fn remove_invitation(&self, user: UserId) -> Result<(), CredentialsError> {
        on_either!(self.pool, pool => sqlx::query("DELETE FROM credential_invitations WHERE user_id = $1")
            .bind(user.to_string())
            .execute(pool)
            .await
            .map(drop)?);
        Ok(())
    }
}
