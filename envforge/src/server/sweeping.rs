//! Forgets what nobody can use any more: expired refresh tokens, and old idempotency keys.

use std::sync::Arc;
use std::time::Duration;

use envforge_domain::time::SharedClock;
use envforge_identity::sign_in::Identity;
use envforge_projections::sql::{Database, REQUEST_KEYS_KEPT};
use tokio_util::sync::CancellationToken;

const INTERVAL: Duration = Duration::from_hours(1);

/// Sweeps at once and then every hour, until `stop`. Several processes may do it side by side.
pub(crate) async fn sweep(identity: Arc<Identity>, database: Database, clock: SharedClock, stop: CancellationToken) {
    let mut tick = tokio::time::interval(INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => once(&identity, &database, &clock).await,
        }
    }
}

async fn once(identity: &Identity, database: &Database, clock: &SharedClock) {
    let now = clock.now();
    let tokens = identity.self_hosted().credentials().sweep(now).await.map_err(|error| error.to_string());
    let keys = database.request_keys().sweep(now.minus(REQUEST_KEYS_KEPT)).await.map_err(|error| error.to_string());
    let provider =
        identity.self_hosted().credentials().sweep_provider_tables(now).await.map_err(|error| error.to_string());
    for (what, swept) in [("refresh_tokens", tokens), ("request_keys", keys), ("provider_tables", provider)] {
        match swept {
            Ok(count) => metrics::counter!("envforge_swept_total", "what" => what).increment(count),
            // What is left over does no harm; the next hour takes it along.
            Err(error) => tracing::warn!(error, what, "what has expired could not be swept"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use envforge_domain::commit::Surface;
    use envforge_domain::ids::{CommandId, OrgId, SessionId, UserId};
    use envforge_domain::session::OpenSession;
    use envforge_domain::time::{Clock, Millis};
    use envforge_identity::clock::SkippingClock;
    use envforge_identity::credentials::Credentials;
    use envforge_identity::key_ring::SigningKeys;
    use envforge_identity::sessions::{RefreshError, SESSION_LIFETIME};
    use envforge_identity::sign_in::Config;
    use envforge_identity::tokens::{Description, Session};
    use envforge_projections::sql::KeyUse;
    use uuid::Uuid;

    use super::*;

    #[tokio::test]
    async fn what_has_expired_is_forgotten_and_the_rest_stays() {
        let directory = tempfile::tempdir().unwrap();
        let credentials = Credentials::open_sqlite(&directory.path().join("credentials.sqlite")).await.unwrap();
        let config = Config {
            issuer: "http://envforge.test".into(),
            audience: "envforge".into(),
            keys: SigningKeys::Hs256 { key_file: directory.path().join("access.key") },
            bcrypt_cost: 4,
            hash_workers: 1,
            hash_waiting_max: 4,
        };
        let identity = Arc::new(Identity::open(config, credentials).unwrap());
        let database = Database::connect_sqlite(&directory.path().join("read-models.sqlite")).await.unwrap();
        let clock = Arc::new(SkippingClock::new());
        let shared: SharedClock = clock.clone();
        let id = Uuid::from_u128(7);
        let open = async || {
            let session = Session {
                user: UserId::from_uuid(id),
                org: OrgId::from_uuid(id),
                session: SessionId::from_uuid(Uuid::now_v7()),
                expires_at: clock.now().plus(SESSION_LIFETIME),
            };
            let opened = OpenSession::of_local_account(Surface::Api, clock.now(), session.expires_at);
            let description = Description::default();
            identity.sessions().open(&session, &opened, &description, clock.now()).await.unwrap().refresh
        };
        let command = |number| CommandId::from_uuid(Uuid::from_u128(number));
        let used = async |number, digest| {
            database.request_keys().first_use(command(number), [digest; 32], clock.now()).await.unwrap()
        };
        let old = open().await;
        assert_eq!(used(1, 1).await, KeyUse::First);
        clock.skip(SESSION_LIFETIME);
        clock.skip(Millis::from_secs(60));
        let young = open().await;
        assert_eq!(used(2, 1).await, KeyUse::First);

        let stop = CancellationToken::new();
        let sweeping = tokio::spawn(sweep(Arc::clone(&identity), database.clone(), shared, stop.clone()));
        envforge_testkit::eventually("the sweep", Duration::from_secs(20), async || {
            (used(1, 2).await == KeyUse::First).then_some(())
        })
        .await;
        assert_eq!(used(2, 2).await, KeyUse::OtherRequest);
        assert!(matches!(identity.sessions().session_of(&old, clock.now()).await, Err(RefreshError::Invalid)));
        assert!(identity.sessions().session_of(&young, clock.now()).await.is_ok());
        let credentials = identity.self_hosted().credentials();
        assert_eq!(credentials.sweep(clock.now()).await.unwrap(), 0, "the old token is gone already");
        stop.cancel();
        sweeping.await.unwrap();
    }
}
