//! The table of service tokens' secrets, as hashes. Not here: what a token may do and whether it still counts (the log).

use envforge_domain::ids::{OrgId, ServiceTokenId};
use envforge_domain::secret::TokenDigest;
use envforge_domain::time::{Millis, UnixMillis};

use super::{Credentials, CredentialsError, millis};

/// Which secret of which token it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceTokenKey {
    pub token: ServiceTokenId,
    pub org: OrgId,
    pub generation: u32,
}

/// How exactly a last use is remembered: a write for each request would cost more than the request.
const USED_TO: Millis = Millis::from_hours(1);

impl Credentials {
    /// A secret that is asked for again takes the place of the first: a repeated request answers one that works.
    pub(crate) async fn put_service_token(
        &self,
        hash: TokenDigest,
        key: ServiceTokenKey,
        expires_at: UnixMillis,
    ) -> Result<(), CredentialsError> {
        on_either!(self.pool, pool => sqlx::query(
            "INSERT INTO credential_service_tokens (secret_hash, token_id, org_id, generation, expires_at) \
             VALUES ($1, $2, $3, $4, $5) ON CONFLICT (token_id, generation) DO UPDATE \
             SET secret_hash = excluded.secret_hash, expires_at = excluded.expires_at",
        )
        .bind(hex::encode(hash.as_bytes()))
        .bind(key.token.to_string())
        .bind(key.org.to_string())
        .bind(i64::from(key.generation))
        .bind(millis(expires_at))
        .execute(pool)
        .await
        .map(drop)?);
        Ok(())
    }

    /// Whose secret this is the hash of, with the hash that is stored. Takes note of the use.
    pub(crate) async fn service_token(
        &self,
        hash: TokenDigest,
        now: UnixMillis,
    ) -> Result<Option<(TokenDigest, ServiceTokenKey)>, CredentialsError> {
        let text = hex::encode(hash.as_bytes());
        let row: Option<(String, String, String, i64, Option<i64>)> = on_either!(self.pool, pool => sqlx::query_as(
            "SELECT secret_hash, token_id, org_id, generation, used_at FROM credential_service_tokens \
             WHERE secret_hash = $1 AND expires_at > $2",
        )
        .bind(&text)
        .bind(millis(now))
        .fetch_optional(pool)
        .await?);
        let Some((stored, token, org, generation, used_at)) = row else { return Ok(None) };
        let damaged = |column| CredentialsError::Damaged { column };
        let mut bytes = [0_u8; 32];
        hex::decode_to_slice(&stored, &mut bytes).map_err(|_| damaged("secret_hash"))?;
        let key = ServiceTokenKey {
            token: token.parse().map_err(|_| damaged("token_id"))?,
            org: org.parse().map_err(|_| damaged("org_id"))?,
            generation: u32::try_from(generation).map_err(|_| damaged("generation"))?,
        };
        if used_at.is_none_or(|at| at <= millis(now.minus(USED_TO))) {
            on_either!(self.pool, pool => sqlx::query(
                "UPDATE credential_service_tokens SET used_at = $2 WHERE secret_hash = $1 AND (used_at IS NULL OR used_at < $2)",
            )
            .bind(&text)
            .bind(millis(now))
            .execute(pool)
            .await
            .map(drop)?);
        }
        Ok(Some((TokenDigest::from_bytes(bytes), key)))
    }

    /// When tokens of an organization were used last, to the hour.
    pub(crate) async fn service_token_uses(
        &self,
        org: OrgId,
    ) -> Result<Vec<(ServiceTokenId, UnixMillis)>, CredentialsError> {
        let rows: Vec<(String, i64)> = on_either!(self.pool, pool => sqlx::query_as(
            "SELECT token_id, MAX(used_at) FROM credential_service_tokens WHERE org_id = $1 AND used_at IS NOT NULL \
             GROUP BY token_id",
        )
        .bind(org.to_string())
        .fetch_all(pool)
        .await?);
        let parsed = |(token, at): (String, i64)| {
            let token = token.parse().map_err(|_| CredentialsError::Damaged { column: "token_id" })?;
            Ok((token, UnixMillis::new(u64::try_from(at).unwrap_or(0))))
        };
        rows.into_iter().map(parsed).collect()
    }
}
