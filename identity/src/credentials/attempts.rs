//! The table of failed attempts. Not here: how many are too many (`lockout`).

use envforge_domain::time::UnixMillis;

use super::{Credentials, CredentialsError, begun, millis};
use crate::lockout::{Failures, LockedOut, LockoutRule};

impl Credentials {
    /// Counts one attempt under each key, or under none where one of them is locked. Whoever asks at the same moment, in
    /// whatever process, is counted after this one.
    pub(crate) async fn count_attempt(
        &self,
        keys: [(&str, LockoutRule); 2],
        now: UnixMillis,
    ) -> Result<Result<(), (usize, LockedOut)>, CredentialsError> {
        on_either!(self, pool => {
            let mut transaction = begun(pool).await?;
            let mut counted = [Failures::default(); 2];
            for (index, (key, rule)) in keys.iter().enumerate() {
                // A write that changes nothing: it takes the row's lock, on both databases. All take accounts before
                // addresses, so that nobody waits in a circle.
                let (failures, last_at): (i64, i64) = sqlx::query_as(
                    "INSERT INTO credential_attempts (key, failures, last_at) VALUES ($1, 0, $2) \
                     ON CONFLICT (key) DO UPDATE SET key = excluded.key RETURNING failures, last_at",
                )
                .bind(*key)
                .bind(millis(now))
                .fetch_one(&mut *transaction)
                .await?;
                let found = Failures {
                    count: u32::try_from(failures).unwrap_or(u32::MAX),
                    last: UnixMillis::new(u64::try_from(last_at).unwrap_or(0)),
                };
                match rule.another(found, now) {
                    Ok(one_more) => counted[index] = one_more,
                    Err(locked) => {
                        transaction.rollback().await?;
                        return Ok(Err((index, locked)));
                    }
                }
            }
            for ((key, _), failures) in keys.iter().zip(counted) {
                sqlx::query("UPDATE credential_attempts SET failures = $2, last_at = $3 WHERE key = $1")
                    .bind(*key)
                    .bind(i64::from(failures.count))
                    .bind(millis(failures.last))
                    .execute(&mut *transaction)
                    .await?;
            }
            transaction.commit().await?;
            Ok(Ok(()))
        })
    }

    /// Takes one attempt back.
    pub(crate) async fn forgive_attempt(&self, key: &str) -> Result<(), CredentialsError> {
        on_either!(self, pool => sqlx::query(
            "UPDATE credential_attempts SET failures = failures - 1 WHERE key = $1 AND failures > 0",
        )
        .bind(key)
        .execute(pool)
        .await
        .map(drop)?);
        Ok(())
    }

    pub(crate) async fn forget_attempts(&self, key: &str) -> Result<(), CredentialsError> {
        on_either!(self, pool => sqlx::query("DELETE FROM credential_attempts WHERE key = $1")
            .bind(key)
            .execute(pool)
            .await
            .map(drop)?);
        Ok(())
    }
}
