//! Idempotency keys: remembered once, by whoever asks first, and forgotten in time.

use envforge_domain::commit::Position;
use envforge_domain::ids::CommandId;
use envforge_domain::time::{Millis, UnixMillis};
use envforge_projections::sql::{KeyUse, ModelName};
use uuid::Uuid;

use crate::harness::{Harness, Kind};
use crate::world::*;

const NOW: UnixMillis = UnixMillis::new(EIGHT);
const AGAIN: KeyUse = KeyUse::Again { satisfied_at: None };

fn command(number: u128) -> CommandId {
    CommandId::from_uuid(Uuid::from_u128(number))
}

pub async fn of_many_who_use_a_key_at_once_one_is_first(kind: Kind) {
    let harness = Harness::new(kind).await;
    let other = harness.connect_again().await;
    for round in 0..10 {
        let uses = (0..8).map(|number| {
            let database = if number % 2 == 0 { &harness.database } else { &other };
            async move { database.request_keys().first_use(command(round), [number % 4; 32], NOW).await.unwrap() }
        });
        let uses = futures_util::future::join_all(uses).await;
        let count = |wanted| uses.iter().filter(|found| **found == wanted).count();
        assert_eq!((count(KeyUse::First), count(AGAIN), count(KeyUse::OtherRequest)), (1, 1, 6), "{uses:?}");
    }
}

pub async fn what_changed_nothing_is_remembered_once(kind: Kind) {
    let harness = Harness::new(kind).await;
    let keys = harness.database.request_keys();
    assert_eq!(keys.first_use(command(1), [1; 32], NOW).await.unwrap(), KeyUse::First);
    keys.satisfied(command(1), Position::new(7)).await.unwrap();
    keys.satisfied(command(1), Position::new(9)).await.unwrap();
    let satisfied = KeyUse::Again { satisfied_at: Some(Position::new(7)) };
    assert_eq!(keys.first_use(command(1), [1; 32], NOW).await.unwrap(), satisfied);
    assert_eq!(keys.first_use(command(1), [2; 32], NOW).await.unwrap(), KeyUse::OtherRequest);
}

pub async fn old_keys_are_forgotten_and_what_they_changed_is_not(kind: Kind) {
    let harness = Harness::new(kind).await;
    let world = World::acme();
    let head = world.log.reveal_all();
    harness.project(&world.shared(), ModelName::CommandIds, head).await;
    let keys = harness.database.request_keys();
    let commits = world.log.commits();
    let known = commits.iter().find(|recorded| recorded.commit.request_digest.is_some()).unwrap();
    let (changed, digest) = (known.commit.command, known.commit.request_digest.unwrap());
    let later = NOW.plus(Millis::from_hours(1));
    keys.first_use(command(1), [1; 32], NOW).await.unwrap();
    keys.first_use(command(2), [1; 32], later).await.unwrap();
    assert_eq!(keys.sweep(later).await.unwrap(), 1);
    assert_eq!(keys.sweep(later).await.unwrap(), 0);
    assert_eq!(keys.first_use(command(1), [2; 32], later).await.unwrap(), KeyUse::First, "it is forgotten");
    assert_eq!(keys.first_use(command(2), [2; 32], later).await.unwrap(), KeyUse::OtherRequest, "it is not");
    // Of this one nobody keeps a row here; the log knows it.
    for _ in 0..2 {
        assert_eq!(keys.first_use(changed, [9; 32], later).await.unwrap(), KeyUse::OtherRequest);
        assert_eq!(keys.first_use(changed, digest, later).await.unwrap(), AGAIN);
    }
}
