//! Appending: conflicts, repetition, batches, limits.

use envforge_domain::commit::{Commit, Expectation, Position, StreamKind};
use envforge_domain::ids::CommandId;
use envforge_eventlog::{AppendError, Appended};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::commits::{add, after, all, append, at, claim, commit, event, stream, texts};
use crate::site::Site;

pub async fn a_conflict_names_the_stream_and_stores_nothing(site: Site) {
    let log = site.open().await;
    let stream = claim("a");
    assert_eq!(append(&log, &commit(&stream, "1"), after(0)).await.unwrap().last(), at(1));
    assert_eq!(append(&log, &commit(&stream, "2"), after(1)).await.unwrap().last(), at(2));
    for wrong in [0, 1, 3, 100] {
        match append(&log, &commit(&stream, "x"), after(wrong)).await {
            Err(AppendError::Conflict { stream: named, expected }) => {
                assert_eq!((named, expected), (stream.clone(), at(wrong)));
            }
            other => panic!("expected after {wrong}: {other:?}"),
        }
    }
    let unborn = append(&log, &commit(&claim("b"), "x"), after(2)).await;
    assert!(matches!(unborn, Err(AppendError::Conflict { .. })), "{unborn:?}");
    assert_eq!(texts(&all(&log).await), ["1", "2"]);
    assert_eq!(append(&log, &commit(&stream, "3"), after(2)).await.unwrap().last(), at(3));
}

pub async fn a_command_repeated_after_a_lost_answer_gets_its_first_position(site: Site) {
    let log = site.open().await;
    let (first, second) = (commit(&claim("a"), "1"), commit(&claim("a"), "2"));
    append(&log, &first, after(0)).await.unwrap();
    append(&log, &second, after(1)).await.unwrap();
    for (commit, expected, position) in [(&first, 0, 1), (&second, 1, 2)] {
        let answer = append(&log, commit, after(expected)).await.unwrap();
        assert_eq!(answer, Appended { positions: vec![at(position)], duplicate: true });
    }
    assert_eq!(texts(&all(&log).await), ["1", "2"]);
}

pub async fn a_command_repeated_later_gets_its_first_position_though_the_stream_moved_on(site: Site) {
    let log = site.open().await;
    let stream = claim("a");
    add(&log, &stream, "before").await;
    let repeated = commit(&stream, "repeated");
    append(&log, &repeated, after(1)).await.unwrap();
    for number in 0..20 {
        add(&log, &stream, &number.to_string()).await;
        add(&log, &claim("elsewhere"), "x").await;
    }
    let log = site.restart(log).await;
    let answer = append(&log, &repeated, after(1)).await.unwrap();
    assert_eq!(answer, Appended { positions: vec![at(2)], duplicate: true });
    assert_eq!(all(&log).await.len(), 42);
}

pub async fn a_command_repeated_on_the_streams_present_end_gets_its_first_position(site: Site) {
    let log = site.open().await;
    let first = commit(&claim("a"), "1");
    append(&log, &first, after(0)).await.unwrap();
    add(&log, &claim("a"), "2").await;
    let answer = append(&log, &first, after(2)).await.unwrap();
    assert_eq!(answer, Appended { positions: vec![at(1)], duplicate: true });
    assert_eq!(texts(&all(&log).await), ["1", "2"]);
}

pub async fn a_command_may_stand_once_in_each_of_several_streams(site: Site) {
    let log = site.open().await;
    let first = commit(&claim("a"), "a");
    let second = Commit { command: first.command, ..commit(&claim("b"), "b") };
    for (duplicate, commit, position) in
        [(false, &first, 1), (false, &second, 2), (true, &second, 2), (true, &first, 1)]
    {
        let answer = append(&log, commit, after(0)).await.unwrap();
        assert_eq!(answer, Appended { positions: vec![at(position)], duplicate });
    }
    let mixed = vec![
        (Commit { command: first.command, ..commit(&claim("c"), "c") }, after(0)),
        (Commit { command: first.command, ..commit(&claim("b"), "b") }, after(2)),
    ];
    assert!(matches!(log.append(mixed).await, Err(AppendError::CommandReused { .. })));
    assert_eq!(texts(&all(&log).await), ["a", "b"]);
}

pub async fn a_command_sent_many_times_at_once_is_stored_once(site: Site) {
    let log = site.open().await;
    for round in 0..20 {
        let stream = claim(&format!("r{round}"));
        let commit = commit(&stream, "once");
        let mut senders = JoinSet::new();
        for _ in 0..8 {
            let (log, commit) = (log.clone(), commit.clone());
            senders.spawn(async move { append(&log, &commit, after(0)).await.unwrap() });
        }
        let answers = senders.join_all().await;
        assert!(answers.iter().all(|answer| answer.positions == vec![at(round + 1)]), "{answers:?}");
        assert_eq!(answers.iter().filter(|answer| !answer.duplicate).count(), 1, "{answers:?}");
    }
    assert_eq!(all(&log).await.len(), 20);
}

pub async fn a_command_used_for_another_request_is_refused(site: Site) {
    let log = site.open().await;
    let first = Commit { request_digest: Some([1; 32]), ..commit(&claim("a"), "1") };
    append(&log, &first, after(0)).await.unwrap();
    for request_digest in [Some([2; 32]), None] {
        let other = Commit { request_digest, ..commit(&claim("a"), "2") };
        let other = Commit { command: first.command, ..other };
        for expected in [0, 1] {
            match append(&log, &other, after(expected)).await {
                Err(AppendError::CommandReused { command }) => assert_eq!(command, first.command),
                unexpected => panic!("expected after {expected}: {unexpected:?}"),
            }
        }
    }
    assert_eq!(texts(&all(&log).await), ["1"]);
}

pub async fn of_sixteen_writers_on_one_stream_exactly_one_wins_each_round(site: Site) {
    let log = site.open().await;
    let stream = claim("contested");
    let mut last = Position::START;
    for round in 0..40 {
        let mut writers = JoinSet::new();
        for writer in 0..16 {
            let (log, commit) = (log.clone(), commit(&stream, &format!("{round} by {writer}")));
            writers.spawn(async move { append(&log, &commit, Expectation::LastAt(last)).await });
        }
        let mut winners = Vec::new();
        for answer in writers.join_all().await {
            match answer {
                Ok(appended) => winners.push(appended),
                Err(AppendError::Conflict { expected, .. }) => assert_eq!(expected, last),
                Err(other) => panic!("{other}"),
            }
        }
        assert_eq!(winners.len(), 1, "round {round}: {winners:?}");
        last = winners[0].last();
    }
    assert_eq!(log.read_stream(&stream, Position::START, 100).await.unwrap().len(), 40);
}

fn batch(command: CommandId, parts: &[(&str, u64)]) -> Vec<(Commit, Expectation)> {
    parts.iter().map(|(key, expected)| (Commit { command, ..commit(&claim(key), key) }, after(*expected))).collect()
}

fn command() -> CommandId {
    CommandId::from_uuid(Uuid::now_v7())
}

pub async fn a_batch_is_stored_whole_and_side_by_side(site: Site) {
    let log = site.open().await;
    add(&log, &claim("a"), "a").await;
    let appended = log.append(batch(command(), &[("c", 0), ("a", 1), ("b", 0)])).await.unwrap();
    assert_eq!(appended, Appended { positions: vec![at(2), at(3), at(4)], duplicate: false });
    assert_eq!(texts(&all(&log).await), ["a", "c", "a", "b"]);
    let appended = log.append(batch(command(), &[("a", 3), ("b", 4)])).await.unwrap();
    assert_eq!(appended.positions, [at(5), at(6)]);
}

pub async fn a_batch_with_one_conflict_stores_nothing(site: Site) {
    let log = site.open().await;
    add(&log, &claim("taken"), "taken").await;
    for parts in [[("a", 0), ("taken", 0)], [("taken", 0), ("a", 0)], [("a", 7), ("b", 0)]] {
        let wrong = if parts[1].0 == "b" { "a" } else { "taken" };
        match log.append(batch(command(), &parts)).await {
            Err(AppendError::Conflict { stream, .. }) => assert_eq!(stream, claim(wrong)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(texts(&all(&log).await), ["taken"]);
    log.append(batch(command(), &[("a", 0), ("taken", 1)])).await.unwrap();
    assert_eq!(texts(&all(&log).await), ["taken", "a", "taken"]);
}

pub async fn a_batch_repeated_gets_its_first_positions(site: Site) {
    let log = site.open().await;
    let (command, parts) = (command(), [("a", 0), ("b", 0), ("c", 0)]);
    log.append(batch(command, &parts)).await.unwrap();
    let again = log.append(batch(command, &parts)).await.unwrap();
    assert_eq!(again, Appended { positions: vec![at(1), at(2), at(3)], duplicate: true });
    for key in ["a", "b", "c"] {
        add(&log, &claim(key), "more").await;
    }
    let log = site.restart(log).await;
    let again = log.append(batch(command, &parts)).await.unwrap();
    assert_eq!(again, Appended { positions: vec![at(1), at(2), at(3)], duplicate: true });
    let another_order = log.append(batch(command, &[("c", 0), ("a", 0), ("b", 0)])).await.unwrap();
    assert_eq!(another_order, Appended { positions: vec![at(1), at(2), at(3)], duplicate: true });
    let mut other = batch(command, &parts);
    for (commit, _) in &mut other {
        commit.request_digest = Some([9; 32]);
    }
    assert!(matches!(log.append(other).await, Err(AppendError::CommandReused { .. })));
    assert_eq!(all(&log).await.len(), 6);
}

pub async fn of_sixteen_batches_for_one_claim_exactly_one_wins_each_round(site: Site) {
    let log = site.open().await;
    for round in 0..10 {
        let mut writers = JoinSet::new();
        for writer in 0..16 {
            let log = log.clone();
            let (own, name) = (format!("w{round}-{writer}"), format!("name{round}"));
            writers.spawn(async move { log.append(batch(command(), &[(&own, 0), (&name, 0)])).await });
        }
        let answers = writers.join_all().await;
        assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1, "round {round}: {answers:?}");
        for answer in answers {
            assert!(matches!(answer, Ok(_) | Err(AppendError::Conflict { .. })), "{answer:?}");
        }
    }
    let commits = all(&log).await;
    assert_eq!(commits.len(), 20);
    for pair in commits.chunks(2) {
        assert_eq!(pair[0].commit.command, pair[1].commit.command);
    }
}

pub async fn what_is_too_large_is_refused_with_its_limit(site: Site) {
    let log = site.open().await;
    let too_large = async |commits: Vec<(Commit, Expectation)>| match log.append(commits).await {
        Err(AppendError::TooLarge { what, unit, found, limit }) => (what, unit, found, limit),
        other => panic!("{other:?}"),
    };
    let small = event(StreamKind::Claim, "x");
    let many = Commit { events: vec![small; 65], ..commit(&claim("a"), "") };
    assert_eq!(too_large(vec![(many, after(0))]).await, ("a commit", "events", 65, 64));
    let frame = br#"{"type":"claim.taken.v1","data":{"holder":""}}"#.len();
    let long = commit(&claim("a"), &"x".repeat(65_536 - frame + 1));
    assert_eq!(too_large(vec![(long, after(0))]).await, ("an event", "bytes", 65_537, 65_536));
    let heavy = Commit { events: vec![event(StreamKind::Claim, &"x".repeat(60_000)); 9], ..commit(&claim("a"), "") };
    let (what, unit, _, limit) = too_large(vec![(heavy, after(0))]).await;
    assert_eq!((what, unit, limit), ("a commit", "bytes", 524_288));
    let keys: Vec<String> = (0..17).map(|number| format!("k{number}")).collect();
    let parts: Vec<(&str, u64)> = keys.iter().map(|key| (key.as_str(), 0)).collect();
    assert_eq!(too_large(batch(command(), &parts)).await, ("a batch", "commits", 17, 16));
    assert!(all(&log).await.is_empty());
}

pub async fn what_is_malformed_is_refused(site: Site) {
    let log = site.open().await;
    let command = command();
    let empty = Commit { events: vec![], ..commit(&claim("a"), "") };
    let foreign = Commit { stream: stream(1, StreamKind::Host, "a"), ..commit(&claim("a"), "") };
    let mut two_commands = batch(command, &[("a", 0), ("b", 0)]);
    two_commands[1].0.command = CommandId::from_uuid(Uuid::now_v7());
    for commits in [
        vec![],
        vec![(empty, after(0))],
        vec![(foreign, after(0))],
        batch(command, &[("a", 0), ("a", 1)]),
        two_commands,
    ] {
        assert!(matches!(log.append(commits).await, Err(AppendError::Malformed)));
    }
    assert!(all(&log).await.is_empty());
}

pub async fn the_largest_commit_is_stored_and_read_back(site: Site) {
    let log = site.open().await;
    let events = vec![event(StreamKind::Claim, &"ü".repeat(4_000)); 64];
    let largest = Commit { events, ..commit(&claim("a"), "") };
    append(&log, &largest, after(0)).await.unwrap();
    assert_eq!(log.last_of_stream(&claim("a")).await.unwrap().unwrap().commit, largest);
    assert_eq!(all(&log).await[0].commit, largest);
}
