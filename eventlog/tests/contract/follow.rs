//! Following: what is there, what comes, signs of life, going on.

use std::time::Instant;

use envforge_domain::commit::{Expectation, Position, StreamKind};
use envforge_eventlog::{Checkpoint, Filter, Follow};
use tokio::task::JoinSet;

use crate::commits::{A_SECOND, Follower, add, append, at, claim, commit, org, stream, text};
use crate::site::Site;

pub async fn a_follower_gets_what_is_there_and_then_what_comes(site: Site) {
    let log = site.open().await;
    let mut early = Follower::start(&log, Checkpoint::START, Filter::everything()).await;
    for number in 0..5 {
        add(&log, &claim("a"), &number.to_string()).await;
    }
    let mut late = Follower::start(&log, Checkpoint::START, Filter::everything()).await;
    for follower in [&mut early, &mut late] {
        assert_eq!(follower.next_texts(5).await, ["0", "1", "2", "3", "4"]);
    }
    for number in 5..8 {
        add(&log, &claim("b"), &number.to_string()).await;
        for follower in [&mut early, &mut late] {
            let (recorded, checkpoint) = follower.next_commit().await;
            assert_eq!((text(&recorded), recorded.position), (number.to_string().as_str(), at(number + 1)));
            assert_eq!(checkpoint.proof.unwrap().identity, log.head().await.unwrap().identity);
        }
    }
}

pub async fn a_follower_goes_on_after_its_checkpoint(site: Site) {
    let log = site.open().await;
    for number in 0..6 {
        add(&log, &claim("a"), &number.to_string()).await;
    }
    let mut follower = Follower::start(&log, Checkpoint::START, Filter::everything()).await;
    let mut checkpoints = vec![Checkpoint::START];
    for _ in 0..6 {
        checkpoints.push(follower.next_commit().await.1);
    }
    for (read, checkpoint) in checkpoints.into_iter().enumerate() {
        let mut follower = Follower::start(&log, checkpoint, Filter::everything()).await;
        let rest: Vec<String> = (read..6).map(|number| number.to_string()).collect();
        assert_eq!(follower.next_texts(rest.len()).await, rest);
        assert!(follower.until_caught(at(6)).await.is_empty());
    }
}

pub async fn an_idle_follower_hears_at_least_once_a_second_that_nothing_came(site: Site) {
    let log = site.open().await;
    let mut follower = Follower::start(&log, Checkpoint::START, Filter::everything()).await;
    for position in 0..3 {
        follower.until_caught(at(position)).await;
        let mut last = Instant::now();
        for _ in 0..3 {
            let heard = follower.next().await.unwrap().unwrap();
            assert_eq!(heard, Follow::Caught { position: at(position) });
            // Half a second is left for a busy machine.
            assert!(last.elapsed() < A_SECOND + A_SECOND / 2, "{:?}", last.elapsed());
            last = Instant::now();
        }
        add(&log, &claim("a"), "x").await;
    }
}

pub async fn a_filtered_follower_gets_its_commits_and_hears_of_the_whole_log(site: Site) {
    let log = site.open().await;
    let links = Filter { org: Some(org(1)), kinds: vec![StreamKind::DevLink, StreamKind::Runtime] };
    let organization = Filter { org: Some(org(1)), kinds: vec![] };
    let kinds = Filter { org: None, kinds: vec![StreamKind::DevLink] };
    let mut followers = Vec::new();
    for filter in [links, organization, kinds] {
        followers.push((Follower::start(&log, Checkpoint::START, filter.clone()).await, filter));
    }
    for round in 0..3_u64 {
        let mut position = Position::START;
        let mut added = Vec::new();
        for (organization, kind) in [
            (1, StreamKind::Claim),
            (1, StreamKind::DevLink),
            (2, StreamKind::DevLink),
            (1, StreamKind::Runtime),
            (2, StreamKind::Runtime),
        ] {
            let stream = stream(organization, kind, "s");
            position = add(&log, &stream, &round.to_string()).await;
            added.push((stream, position));
        }
        assert_eq!(position, at((round + 1) * 5));
        for (follower, filter) in &mut followers {
            let commits = follower.until_caught(position).await;
            let got: Vec<_> = commits.iter().map(|recorded| (&recorded.commit.stream, recorded.position)).collect();
            let expected: Vec<_> =
                added.iter().filter(|(stream, _)| filter.accepts(stream)).map(|(s, p)| (s, *p)).collect();
            assert_eq!(got, expected, "{filter:?}");
        }
    }
}

pub async fn a_follower_goes_on_after_a_restart_without_loss_or_repetition(site: Site) {
    let mut log = site.open().await;
    let (mut checkpoint, mut seen) = (Checkpoint::START, Vec::new());
    for round in 0..4_u64 {
        for number in 0..5 {
            add(&log, &claim("a"), &format!("{round}.{number}")).await;
        }
        let mut follower = Follower::start(&log, checkpoint.clone(), Filter::everything()).await;
        // It falls behind on purpose: two are left for after the restart.
        for _ in 0..if round == 0 { 3 } else { 5 } {
            let (recorded, next) = follower.next_commit().await;
            seen.push(recorded.position.get());
            checkpoint = next;
        }
        drop(follower);
        log = site.restart(log).await;
    }
    let mut follower = Follower::start(&log, checkpoint, Filter::everything()).await;
    seen.extend(follower.until_caught(at(20)).await.iter().map(|recorded| recorded.position.get()));
    assert_eq!(seen, (1..=20).collect::<Vec<u64>>());
}

pub async fn followers_do_not_disturb_each_other(site: Site) {
    let log = site.open().await;
    let mut slow = Follower::start(&log, Checkpoint::START, Filter::everything()).await;
    add(&log, &claim("a"), "first").await;
    slow.next_commit().await;
    for number in 0..50 {
        let mut quick = Follower::start(&log, Checkpoint::START, Filter::everything()).await;
        add(&log, &claim("a"), &number.to_string()).await;
        quick.next_commit().await;
    }
    let commits = slow.until_caught(at(51)).await;
    let positions: Vec<u64> = commits.iter().map(|recorded| recorded.position.get()).collect();
    assert_eq!(positions, (2..=51).collect::<Vec<u64>>());
}

pub async fn a_follower_keeps_up_with_concurrent_writers(site: Site) {
    let log = site.open().await;
    let mut follower = Follower::start(&log, Checkpoint::START, Filter::everything()).await;
    let mut writers = JoinSet::new();
    for writer in 0..8 {
        let log = log.clone();
        writers.spawn(async move {
            let (stream, mut last) = (claim(&format!("w{writer}")), Position::START);
            for number in 0..100 {
                let commit = commit(&stream, &number.to_string());
                last = append(&log, &commit, Expectation::LastAt(last)).await.unwrap().last();
            }
        });
    }
    let mut next_of = std::collections::HashMap::new();
    for position in 1..=800 {
        let (recorded, _) = follower.next_commit().await;
        assert_eq!(recorded.position, at(position));
        let next: &mut u32 = next_of.entry(recorded.commit.stream.clone()).or_default();
        assert_eq!(text(&recorded), next.to_string());
        *next += 1;
    }
    writers.join_all().await;
}
