//! The table of failed attempts. Not here: how many are too many (`lockout`).

use std::fmt::Write as _;
use std::sync::Arc;

use envforge_domain::time::UnixMillis;
use envforge_domain::user::EmailAddress;
use sqlx::AssertSqlSafe;
use sqlx::error::ErrorKind;

use super::{Account, Credentials, CredentialsError, StoredAccount, millis, on_lane};
use crate::lockout::{Failures, LockedOut, LockoutRule};

/// How often a refusal is looked into that somebody else's success has taken back meanwhile.
const LOOKS_MAX: u32 = 4;

/// The statement that counts an attempt under two keys or under none, by these rules.
#[derive(Clone, Debug)]
pub(crate) struct Counting {
    rules: [LockoutRule; 2],
    statement: Arc<str>,
}

impl Counting {
    /// The rule of the first key, which is an account's, and that of the second, an address's.
    pub(crate) fn new(rules: [LockoutRule; 2]) -> Self {
        let [first, second] = rules.each_ref().map(one_more);
        // INVARIANT: on both databases a row is judged as it is once its lock is held, so that whoever asks at the same moment is
        // counted after this one. The count of a row that is locked out becomes NULL, which the table does not take: then neither
        // is counted. All take accounts before addresses, so that nobody waits in a circle.
        let statement = format!(
            "INSERT INTO credential_attempts (key, failures, last_at) VALUES ($1, 1, $3), ($2, 1, $3) \
             ON CONFLICT (key) DO UPDATE SET \
             failures = CASE WHEN excluded.key = $1 THEN {first} ELSE {second} END, \
             last_at = CASE WHEN credential_attempts.last_at > excluded.last_at \
             THEN credential_attempts.last_at ELSE excluded.last_at END \
             RETURNING (SELECT user_id FROM credential_accounts WHERE email = $4), \
             (SELECT org_id FROM credential_accounts WHERE email = $4), \
             (SELECT password_hash FROM credential_accounts WHERE email = $4)"
        );
        Self { rules, statement: statement.into() }
    }
}

/// SQL for the count after one failure more. It is NULL where nobody may try yet, as `LockoutRule::wait` has it.
fn one_more(rule: &LockoutRule) -> String {
    let longest = rule.delay(u32::MAX);
    let mut delay = "CASE credential_attempts.failures".to_owned();
    let growing = (rule.free + 1..).map(|failures| (failures, rule.delay(failures)));
    for (failures, shorter) in growing.take_while(|(_, delay)| *delay < longest) {
        write!(delay, " WHEN {failures} THEN {}", shorter.get()).expect("writing to a String cannot fail");
    }
    write!(delay, " ELSE {} END", longest.get()).expect("writing to a String cannot fail");
    format!(
        "CASE WHEN excluded.last_at - credential_attempts.last_at >= {forgotten} THEN 1 \
         WHEN credential_attempts.failures > {free} AND excluded.last_at < credential_attempts.last_at + {delay} THEN NULL \
         ELSE credential_attempts.failures + 1 END",
        forgotten = rule.forget_after.get(),
        free = rule.free,
    )
}

type FoundRow = (Option<String>, Option<String>, Option<String>);

/// Whose account an attempt is made on, found in the statement that counted it.
pub(crate) type Found = Result<Option<StoredAccount>, CredentialsError>;

impl Credentials {
    /// Counts one attempt under each key and looks up the account of `email` in one statement; or counts it under none where
    /// one of them is locked, and says which. `Err` in what was found: it was counted all the same.
    pub(crate) async fn count_attempt(
        &self,
        counting: &Counting,
        keys: [&str; 2],
        email: Option<&EmailAddress>,
        now: UnixMillis,
    ) -> Result<Result<Found, (usize, LockedOut)>, CredentialsError> {
        for _ in 0..LOOKS_MAX {
            let statement = || AssertSqlSafe(Arc::clone(&counting.statement));
            let counted: Result<Vec<FoundRow>, sqlx::Error> = on_lane!(self.attempts, connection => sqlx::query_as(statement())
                .bind(keys[0])
                .bind(keys[1])
                .bind(millis(now))
                .bind(email.map(EmailAddress::as_str))
                .fetch_all(connection)
                .await);
            match counted {
                Ok(rows) => return Ok(Ok(read_found(rows, email))),
                Err(sqlx::Error::Database(error)) if error.kind() == ErrorKind::NotNullViolation => {}
                Err(error) => return Err(error.into()),
            }
            if let Some(refused) = self.locked_out(counting, keys, now).await? {
                return Ok(Err(refused));
            }
        }
        Ok(Err((0, LockedOut { retry_after: counting.rules[0].first_delay })))
    }

    /// Which key nobody may be tried under yet, and for how long.
    async fn locked_out(
        &self,
        counting: &Counting,
        keys: [&str; 2],
        now: UnixMillis,
    ) -> Result<Option<(usize, LockedOut)>, CredentialsError> {
        let rows: Vec<(String, i64, i64)> = on_either!(self.pool, pool => sqlx::query_as(
            "SELECT key, failures, last_at FROM credential_attempts WHERE key IN ($1, $2)",
        )
        .bind(keys[0])
        .bind(keys[1])
        .fetch_all(pool)
        .await?);
        let found = |key: &str| {
            let (_, failures, last_at) = rows.iter().find(|(of, _, _)| of == key)?;
            let count = u32::try_from(*failures).unwrap_or(u32::MAX);
            Some(Failures { count, last: UnixMillis::new(u64::try_from(*last_at).unwrap_or(0)) })
        };
        let waits = counting.rules.iter().zip(keys).enumerate().find_map(|(which, (rule, key))| {
            let retry_after = rule.wait(found(key)?, now)?;
            Some((which, LockedOut { retry_after }))
        });
        Ok(waits)
    }

    /// Takes one attempt back under both keys, or forgets all of the first. Rows are locked in the order of `count_attempt`.
    pub(crate) async fn take_back(&self, keys: [&str; 2], all_of_first: bool) -> Result<(), CredentialsError> {
        let [first, second] = keys;
        let taken_back = on_lane!(self.attempts, connection => sqlx::query(
            "INSERT INTO credential_attempts (key, failures, last_at) VALUES ($1, 0, 0), ($2, 0, 0) \
             ON CONFLICT (key) DO UPDATE SET failures = CASE \
             WHEN credential_attempts.failures = 0 OR (excluded.key = $1 AND $3) THEN 0 \
             ELSE credential_attempts.failures - 1 END",
        )
        .bind(first)
        .bind(second)
        .bind(all_of_first)
        .execute(connection)
        .await
        .map(drop));
        Ok(taken_back?)
    }
}

fn read_found(rows: Vec<FoundRow>, email: Option<&EmailAddress>) -> Found {
    // The rows say the same.
    let (Some((Some(user), Some(org), Some(password_hash))), Some(email)) = (rows.into_iter().next(), email) else {
        return Ok(None);
    };
    let account = Account {
        user: user.parse().map_err(|_| CredentialsError::Damaged { column: "user_id" })?,
        org: org.parse().map_err(|_| CredentialsError::Damaged { column: "org_id" })?,
        email: email.clone(),
    };
    Ok(Some(StoredAccount { account, password_hash }))
}
