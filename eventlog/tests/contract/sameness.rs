//! A follower whose log was swapped, put back or made anew fails closed, saying so.

use envforge_domain::commit::Position;
use envforge_eventlog::{Checkpoint, CheckpointProof, Filter, LogError, LogIdentity, NotTheSameLog, SharedLog};

use crate::commits::{Follower, add, at, claim, refusal};
use crate::site::Site;

async fn checkpoint_at(log: &SharedLog, position: Position) -> Checkpoint {
    let mut follower = Follower::start(log, Checkpoint::START, Filter::everything()).await;
    loop {
        let (recorded, checkpoint) = follower.next_commit().await;
        if recorded.position == position {
            return checkpoint;
        }
    }
}

pub async fn a_checkpoint_of_another_log_is_refused(site: Site) {
    let log = site.open().await;
    add(&log, &claim("a"), "1").await;
    let checkpoint = checkpoint_at(&log, at(1)).await;
    let was = log.head().await.unwrap().identity;
    let log = site.begin_anew(log).await;
    for _ in 0..2 {
        let expected = was.clone();
        match refusal(&log, checkpoint.clone()).await {
            LogError::NotTheSameLog(NotTheSameLog::Identity { expected: named, found }) => {
                assert_eq!(named, expected);
                assert_eq!(found, log.head().await.unwrap().identity);
            }
            other => panic!("{other}"),
        }
        add(&log, &claim("a"), "1").await;
    }
    let mut follower = Follower::start(&log, Checkpoint::START, Filter::everything()).await;
    follower.next_commit().await;
}

pub async fn a_log_that_went_back_is_refused(site: Site) {
    let log = site.open().await;
    for number in 0..5 {
        add(&log, &claim("a"), &number.to_string()).await;
    }
    let (log, copy) = site.copy(log).await;
    let kept = checkpoint_at(&log, at(5)).await;
    for number in 5..8 {
        add(&log, &claim("a"), &number.to_string()).await;
    }
    let lost = checkpoint_at(&log, at(8)).await;
    let log = site.put_back(log, &copy).await;
    assert_eq!(
        refusal(&log, lost).await,
        LogError::NotTheSameLog(NotTheSameLog::WentBack { checkpoint: at(8), head: at(5) })
    );
    let mut follower = Follower::start(&log, kept, Filter::everything()).await;
    add(&log, &claim("a"), "new").await;
    assert_eq!(follower.next_texts(1).await, ["new"]);
}

pub async fn a_log_that_went_back_and_grew_again_is_refused(site: Site) {
    let log = site.open().await;
    for number in 0..5 {
        add(&log, &claim("a"), &number.to_string()).await;
    }
    let (log, copy) = site.copy(log).await;
    for number in 5..8 {
        add(&log, &claim("a"), &number.to_string()).await;
    }
    let lost = checkpoint_at(&log, at(8)).await;
    let log = site.put_back(log, &copy).await;
    for number in 5..12 {
        add(&log, &claim("a"), &number.to_string()).await;
    }
    assert_eq!(refusal(&log, lost).await, LogError::NotTheSameLog(NotTheSameLog::Rewritten { position: at(8) }));
}

pub async fn a_checkpoint_beyond_the_head_is_refused(site: Site) {
    let log = site.open().await;
    add(&log, &claim("a"), "1").await;
    let identity = log.head().await.unwrap().identity;
    for proof in [None, Some(CheckpointProof { identity, digest: [0; 32] })] {
        let beyond = Checkpoint { position: at(2), proof };
        assert_eq!(
            refusal(&log, beyond).await,
            LogError::NotTheSameLog(NotTheSameLog::WentBack { checkpoint: at(2), head: at(1) })
        );
    }
    let stranger = CheckpointProof { identity: LogIdentity("another".to_owned()), digest: [0; 32] };
    let refused = refusal(&log, Checkpoint { position: at(1), proof: Some(stranger) }).await;
    assert!(matches!(refused, LogError::NotTheSameLog(NotTheSameLog::Identity { .. })), "{refused}");
}

pub async fn the_identity_stays_over_restarts(site: Site) {
    let log = site.open().await;
    add(&log, &claim("a"), "1").await;
    let head = log.head().await.unwrap();
    let log = site.restart(log).await;
    assert_eq!(log.head().await.unwrap(), head);
}
