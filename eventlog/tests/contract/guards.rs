//! Guards: an append that rests on another stream stands before whatever moves that stream, or not at all.

use std::sync::Arc;

use envforge_domain::commit::{Commit, Expectation, Position, Standing, StreamId};
use envforge_domain::ids::CommandId;
use envforge_eventlog::{AppendError, Appended, SharedLog};
use tokio::sync::Barrier;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::commits::{add, after, all, append, at, claim, commit, texts};
use crate::site::Site;

fn guards(stream: &StreamId, last: Position) -> Expectation {
    Expectation::Guards(Standing { stream: stream.clone(), last })
}

/// A commit to `key` after `last`, with a commit beside it for each stream that must not have moved.
fn guarded(key: &str, last: Position, rests_on: &[(StreamId, Position)]) -> Vec<(Commit, Expectation)> {
    let command = CommandId::from_uuid(Uuid::now_v7());
    let of_command = |stream: StreamId, text: &str| Commit { command, ..commit(&stream, text) };
    let mut commits = vec![(of_command(claim(key), key), Expectation::LastAt(last))];
    for (number, (rests_on, last)) in rests_on.iter().enumerate() {
        let beside = claim(&format!("beside-{key}-{number}"));
        commits.push((of_command(beside, "beside"), guards(rests_on, *last)));
    }
    commits
}

fn named(refused: Result<Appended, AppendError>) -> (StreamId, Position) {
    match refused {
        Err(AppendError::RightsMoved { stream, expected }) => (stream, expected),
        other => panic!("{other:?}"),
    }
}

pub async fn a_guarded_append_is_stored_where_the_guarded_streams_have_not_moved(site: Site) {
    let log = site.open().await;
    let (rights, unborn) = (claim("rights"), claim("unborn"));
    let last = add(&log, &rights, "given").await;
    add(&log, &claim("elsewhere"), "x").await;
    let rests_on = [(rights.clone(), last), (unborn.clone(), at(0))];
    let appended = log.append(guarded("a", at(0), &rests_on)).await.unwrap();
    assert_eq!(appended, Appended { positions: vec![at(3), at(4), at(5)], duplicate: false });
    assert_eq!(texts(&all(&log).await), ["given", "x", "a", "beside", "beside"]);
    // A guard moves nothing, neither what it guards nor what it stands in.
    log.append(guarded("a", at(3), &rests_on)).await.unwrap();
    append(&log, &commit(&rights, "taken"), Expectation::LastAt(last)).await.unwrap();
    append(&log, &commit(&unborn, "born"), after(0)).await.unwrap();
}

pub async fn a_guarded_append_is_refused_where_a_guarded_stream_has_moved(site: Site) {
    let log = site.open().await;
    let (rights, other) = (claim("rights"), claim("other"));
    let before = add(&log, &rights, "given").await;
    let now = add(&log, &rights, "taken").await;
    let stands = add(&log, &other, "stands").await;
    for (last, wrong) in [(at(0), before), (at(0), at(0)), (at(0), at(100)), (at(77), before)] {
        // Also where the append's own stream has moved: whose rights are gone learns nothing about it.
        let refused = log.append(guarded("a", last, &[(other.clone(), stands), (rights.clone(), wrong)])).await;
        assert_eq!(named(refused), (rights.clone(), wrong));
    }
    let unborn = log.append(guarded("a", at(0), &[(claim("unborn"), now)])).await;
    assert_eq!(named(unborn), (claim("unborn"), now));
    let conflict = log.append(guarded("a", at(77), &[(rights.clone(), now)])).await;
    assert!(matches!(conflict, Err(AppendError::Conflict { stream, .. }) if stream == claim("a")));
    assert_eq!(texts(&all(&log).await), ["given", "taken", "stands"]);
    log.append(guarded("a", at(0), &[(other, stands), (rights, now)])).await.unwrap();
}

pub async fn a_guarded_append_repeated_gets_its_first_answer_though_the_guarded_stream_moved(site: Site) {
    let log = site.open().await;
    let rights = claim("rights");
    let last = add(&log, &rights, "given").await;
    let commits = guarded("a", at(0), &[(rights.clone(), last)]);
    let first = log.append(commits.clone()).await.unwrap();
    add(&log, &rights, "taken").await;
    let answer = log.append(commits.clone()).await.unwrap();
    assert_eq!(answer, Appended { duplicate: true, ..first.clone() });
    let log = site.restart(log).await;
    add(&log, &claim("a"), "more").await;
    let answer = log.append(commits).await.unwrap();
    assert_eq!(answer, Appended { duplicate: true, ..first });
    assert_eq!(texts(&all(&log).await), ["given", "a", "beside", "taken", "more"]);
}

pub async fn guards_that_say_nothing_are_malformed(site: Site) {
    let log = site.open().await;
    let rights = claim("rights");
    let last = add(&log, &rights, "given").await;
    let alone = vec![(commit(&claim("a"), "a"), guards(&rights, last))];
    let twice = guarded("a", at(0), &[(rights.clone(), last), (rights.clone(), last)]);
    let of_what_it_writes = guarded("a", at(0), &[(claim("a"), at(0))]);
    let mut of_what_another_writes = guarded("a", at(0), &[(rights.clone(), last)]);
    let command = of_what_another_writes[0].0.command;
    of_what_another_writes.push((Commit { command, ..commit(&rights, "x") }, Expectation::LastAt(last)));
    for commits in [alone, twice, of_what_it_writes, of_what_another_writes] {
        let refused = log.append(commits).await;
        assert!(matches!(refused, Err(AppendError::Malformed)), "{refused:?}");
    }
    assert_eq!(all(&log).await.len(), 1);
}

pub async fn appends_that_rest_on_the_same_stream_do_not_refuse_each_other(site: Site) {
    let log = site.open().await;
    let rights = claim("rights");
    let last = add(&log, &rights, "given").await;
    let mut writers = JoinSet::new();
    for writer in 0..16 {
        let (log, rights) = (log.clone(), rights.clone());
        writers.spawn(async move {
            let mut own = at(0);
            for _ in 0..4 {
                let commits = guarded(&format!("w{writer}"), own, &[(rights.clone(), last)]);
                own = log.append(commits).await.unwrap().positions[0];
            }
        });
    }
    writers.join_all().await;
    assert_eq!(all(&log).await.len(), 1 + 16 * 4 * 2);
}

/// Moves the rights once, as plain or guarded append; answers where.
async fn revoke(
    log: &SharedLog,
    rights: &StreamId,
    last: Position,
    account: &(StreamId, Position),
    alone: bool,
) -> Position {
    if alone {
        return append(log, &commit(rights, "taken"), Expectation::LastAt(last)).await.unwrap().last();
    }
    let command = CommandId::from_uuid(Uuid::now_v7());
    let revoking = Commit { command, ..commit(rights, "taken") };
    let beside = Commit { command, ..commit(&claim("beside-revoking"), "beside") };
    let commits = vec![(revoking, Expectation::LastAt(last)), (beside, guards(&account.0, account.1))];
    log.append(commits).await.unwrap().positions[0]
}

pub async fn of_a_guarded_append_and_a_revocation_at_once_the_append_never_stands_behind(site: Site) {
    const WRITERS: usize = 3;
    let log = site.open().await;
    let (rights, account) = (claim("rights"), claim("account"));
    let mut last = add(&log, &rights, "given").await;
    let account = (account.clone(), add(&log, &account, "signed in").await);
    let mut own = [Position::START; WRITERS];
    let (mut stored, mut refused) = (0, 0);
    for round in 0..100 {
        let barrier = Arc::new(Barrier::new(WRITERS + 1));
        let mut writers = JoinSet::new();
        for (writer, own) in own.iter().copied().enumerate() {
            let (log, barrier, rests_on) =
                (log.clone(), Arc::clone(&barrier), [(rights.clone(), last), account.clone()]);
            writers.spawn(async move {
                barrier.wait().await;
                // One after the other, so that some come before the revocation, some behind and some beside it.
                for _ in 0..writer {
                    tokio::task::yield_now().await;
                }
                (writer, log.append(guarded(&format!("w{writer}"), own, &rests_on)).await)
            });
        }
        barrier.wait().await;
        let taken = revoke(&log, &rights, last, &account, round % 2 == 0).await;
        for (writer, answer) in writers.join_all().await {
            match answer {
                Ok(appended) => {
                    assert!(appended.last() < taken, "round {round}: {appended:?} behind {taken}");
                    own[writer] = appended.positions[0];
                    stored += 1;
                }
                Err(AppendError::RightsMoved { stream, .. }) => {
                    assert_eq!(stream, rights);
                    refused += 1;
                }
                Err(other) => panic!("{other}"),
            }
        }
        last = taken;
    }
    assert!(stored > 0 && refused > 0, "{stored} stored and {refused} refused: nothing raced");
    // Guards moved nothing, and each revocation was stored once.
    let moves = all(&log).await.iter().filter(|recorded| recorded.commit.stream == rights).count();
    assert_eq!(moves, 101);
}
