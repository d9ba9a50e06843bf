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
        let [(first, _), (second, _)] = keys;
        on_either!(self.attempts, pool => {
            let mut transaction = begun(pool).await?;
            // A write that changes nothing: it takes the rows' locks, on both databases. All take accounts before addresses,
            // so that nobody waits in a circle.
            let rows: Vec<(String, i64, i64)> = sqlx::query_as(
                "INSERT INTO credential_attempts (key, failures, last_at) VALUES ($1, 0, $3), ($2, 0, $3) \
                 ON CONFLICT (key) DO UPDATE SET key = excluded.key RETURNING key, failures, last_at",
            )
            .bind(first)
            .bind(second)
            .bind(millis(now))
            .fetch_all(&mut *transaction)
            .await?;
            let mut counted = [Failures::default(); 2];
            for (index, (key, rule)) in keys.iter().enumerate() {
                let row = rows.iter().find(|(of, _, _)| of == key);
                let (_, failures, last_at) = row.ok_or(CredentialsError::Damaged { column: "key" })?;
                let found = Failures {
                    count: u32::try_from(*failures).unwrap_or(u32::MAX),
                    last: UnixMillis::new(u64::try_from(*last_at).unwrap_or(0)),
                };
                match rule.another(found, now) {
                    Ok(one_more) => counted[index] = one_more,
                    Err(locked) => {
                        transaction.rollback().await?;
                        return Ok(Err((index, locked)));
                    }
                }
            }
            let [of_first, of_second] = counted;
            sqlx::query(
                "UPDATE credential_attempts SET failures = CASE WHEN key = $1 THEN $3 ELSE $5 END, \
                 last_at = CASE WHEN key = $1 THEN $4 ELSE $6 END WHERE key IN ($1, $2)",
            )
            .bind(first)
            .bind(second)
            .bind(i64::from(of_first.count))
            .bind(millis(of_first.last))
            .bind(i64::from(of_second.count))
            .bind(millis(of_second.last))
            .execute(&mut *transaction)
            .await?;
            transaction.commit().await?;
            Ok(Ok(()))
        })
    }

    /// Takes one attempt back under both keys, or forgets all of the first. Rows are locked in the order of `count_attempt`.
    pub(crate) async fn take_back(&self, keys: [&str; 2], all_of_first: bool) -> Result<(), CredentialsError> {
        let [first, second] = keys;
        on_either!(self.attempts, pool => sqlx::query(
            "INSERT INTO credential_attempts (key, failures, last_at) VALUES ($1, 0, 0), ($2, 0, 0) \
             ON CONFLICT (key) DO UPDATE SET failures = CASE \
             WHEN credential_attempts.failures = 0 OR (excluded.key = $1 AND $3) THEN 0 \
             ELSE credential_attempts.failures - 1 END",
        )
        .bind(first)
        .bind(second)
        .bind(all_of_first)
        .execute(pool)
        .await
        .map(drop)?);
        Ok(())
    }
}
