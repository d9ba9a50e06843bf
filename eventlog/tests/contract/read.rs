//! Reading streams and pages.

use envforge_domain::commit::{Position, StreamKind};
use envforge_eventlog::{Filter, SharedLog};

use crate::commits::{add, after, all, append, at, claim, commit, org, stream, text, texts};
use crate::site::Site;

pub async fn a_stream_comes_back_in_the_order_of_its_appends(site: Site) {
    let log = site.open().await;
    for number in 0..30 {
        add(&log, &claim("a"), &format!("a{number}")).await;
        add(&log, &claim("b"), &format!("b{number}")).await;
    }
    for key in ["a", "b"] {
        let commits = log.read_stream(&claim(key), Position::START, 100).await.unwrap();
        let expected: Vec<String> = (0..30).map(|number| format!("{key}{number}")).collect();
        assert_eq!(texts(&commits), expected);
        assert!(commits.iter().all(|recorded| recorded.commit.stream == claim(key)));
    }
}

pub async fn positions_grow_by_one_over_all_streams_and_times_never_go_back(site: Site) {
    let log = site.open().await;
    let before = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis();
    for number in 0..40_u32 {
        add(&log, &claim(&format!("k{}", number % 7)), &number.to_string()).await;
    }
    let commits = all(&log).await;
    let positions: Vec<u64> = commits.iter().map(|recorded| recorded.position.get()).collect();
    assert_eq!(positions, (1..=40).collect::<Vec<u64>>());
    assert!(commits.is_sorted_by_key(|recorded| recorded.recorded_at));
    assert!(u128::from(commits[0].recorded_at.get()) >= before);
    let head = log.head().await.unwrap();
    assert_eq!(head.position, at(40));
}

pub async fn a_stream_is_read_in_pages(site: Site) {
    let log = site.open().await;
    for number in 0..10 {
        add(&log, &claim("a"), &number.to_string()).await;
        add(&log, &claim("b"), "x").await;
    }
    let first = log.read_stream(&claim("a"), Position::START, 4).await.unwrap();
    assert_eq!(texts(&first), ["0", "1", "2", "3"]);
    let second = log.read_stream(&claim("a"), first[3].position, 4).await.unwrap();
    assert_eq!(texts(&second), ["4", "5", "6", "7"]);
    let third = log.read_stream(&claim("a"), second[3].position, 4).await.unwrap();
    assert_eq!(texts(&third), ["8", "9"]);
    assert!(log.read_stream(&claim("a"), third[1].position, 4).await.unwrap().is_empty());
    assert!(log.read_stream(&claim("a"), Position::START, 0).await.unwrap().is_empty());
}

pub async fn a_stream_without_commits_is_empty(site: Site) {
    let log = site.open().await;
    for _ in 0..2 {
        assert!(log.read_stream(&claim("nothing"), Position::START, 10).await.unwrap().is_empty());
        assert_eq!(log.last_of_stream(&claim("nothing")).await.unwrap(), None);
        assert_eq!(log.last_position_of(&[claim("nothing")]).await.unwrap(), Position::START);
        add(&log, &claim("something"), "x").await;
    }
}

pub async fn the_last_commit_and_the_last_of_several_streams_are_known_at_once(site: Site) {
    let log = site.open().await;
    for number in 0..20 {
        let position = add(&log, &claim("a"), &number.to_string()).await;
        let last = log.last_of_stream(&claim("a")).await.unwrap().unwrap();
        assert_eq!((text(&last), last.position), (number.to_string().as_str(), position));
    }
    add(&log, &claim("b"), "b").await;
    add(&log, &claim("c"), "c").await;
    let last_of = async |keys: &[&str]| {
        let streams: Vec<_> = keys.iter().map(|key| claim(key)).collect();
        log.last_position_of(&streams).await.unwrap()
    };
    assert_eq!(last_of(&["a"]).await, at(20));
    assert_eq!(last_of(&["a", "b", "nothing"]).await, at(21));
    assert_eq!(last_of(&["c", "a"]).await, at(22));
    assert_eq!(last_of(&[]).await, Position::START);
}

pub async fn the_log_is_read_in_pages_to_its_head(site: Site) {
    let log = site.open().await;
    let empty = log.read(Position::START, 10, &Filter::everything()).await.unwrap();
    assert!(empty.commits.is_empty() && empty.at_head);
    assert_eq!(empty.read_up_to, Position::START);
    for number in 0..25 {
        add(&log, &claim(&format!("k{}", number % 3)), &number.to_string()).await;
    }
    let (mut after, mut seen) = (Position::START, Vec::new());
    for (length, at_head) in [(10, false), (10, false), (5, true), (0, true)] {
        let page = log.read(after, 10, &Filter::everything()).await.unwrap();
        assert_eq!((page.commits.len(), page.at_head), (length, at_head));
        after = page.read_up_to;
        seen.extend(page.commits.iter().map(|recorded| recorded.position.get()));
    }
    assert_eq!(seen, (1..=25).collect::<Vec<u64>>());
    assert_eq!(after, at(25));
}

async fn fill(log: &SharedLog) {
    for round in 0..12 {
        for organization in [1, 2, 3] {
            for kind in [StreamKind::Claim, StreamKind::DevLink, StreamKind::Runtime] {
                let text = format!("{organization} {} {round}", kind.token());
                add(log, &stream(organization, kind, &format!("s{}", round % 2)), &text).await;
            }
        }
    }
}

pub async fn filters_by_organization_and_kind_hold_over_pages(site: Site) {
    let log = site.open().await;
    fill(&log).await;
    let everything = all(&log).await;
    assert_eq!(everything.len(), 108);
    for filter in [
        Filter { org: Some(org(2)), kinds: vec![] },
        Filter { org: Some(org(2)), kinds: vec![StreamKind::Runtime] },
        Filter { org: Some(org(3)), kinds: vec![StreamKind::Runtime, StreamKind::Claim] },
        Filter { org: None, kinds: vec![StreamKind::DevLink] },
        Filter { org: None, kinds: vec![StreamKind::DevLink, StreamKind::Claim, StreamKind::Host] },
        Filter { org: None, kinds: StreamKind::ALL.to_vec() },
    ] {
        let expected: Vec<_> =
            everything.iter().filter(|recorded| filter.accepts(&recorded.commit.stream)).cloned().collect();
        for limit in [1, 5, 1_000] {
            let (mut found, mut after) = (Vec::new(), Position::START);
            loop {
                let page = log.read(after, limit, &filter).await.unwrap();
                assert!(page.commits.len() <= limit);
                assert!(page.read_up_to >= after);
                found.extend(page.commits);
                after = page.read_up_to;
                if page.at_head {
                    break;
                }
            }
            assert_eq!(found, expected, "{filter:?} by {limit}");
            assert_eq!(after, at(108));
        }
    }
}

pub async fn a_filter_that_nothing_passes_reaches_the_head(site: Site) {
    let log = site.open().await;
    for number in 0..5 {
        add(&log, &claim("a"), &number.to_string()).await;
    }
    for filter in [
        Filter { org: Some(org(9)), kinds: vec![] },
        Filter { org: Some(org(1)), kinds: vec![StreamKind::Host] },
        Filter { org: None, kinds: vec![StreamKind::User, StreamKind::Host] },
    ] {
        let page = log.read(at(1), 2, &filter).await.unwrap();
        assert!(page.commits.is_empty() && page.at_head, "{page:?}");
        assert_eq!(page.read_up_to, at(5));
    }
}

pub async fn pages_of_large_commits_lose_nothing(site: Site) {
    let log = site.open().await;
    let large = "x".repeat(60_000);
    for number in 0..40 {
        let mut commit = commit(&claim("a"), &large);
        commit.events = vec![commit.events[0].clone(); 8];
        append(&log, &commit, after(number)).await.unwrap();
    }
    let positions: Vec<u64> = all(&log).await.iter().map(|recorded| recorded.position.get()).collect();
    assert_eq!(positions, (1..=40).collect::<Vec<u64>>());
    assert_eq!(log.read_stream(&claim("a"), Position::START, 30).await.unwrap().len(), 30);
    let commits = log.read_stream(&claim("a"), Position::START, 100).await.unwrap();
    assert_eq!(commits.len(), 40, "fewer than the limit means the stream's end");
}
