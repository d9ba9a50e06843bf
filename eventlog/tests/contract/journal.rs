//! What the embedded log's journal has and its file does not: found again, or missed with a word.

use std::path::PathBuf;
use std::sync::Arc;

use envforge_eventlog::sqlite::{Config, SqliteLog};
use envforge_eventlog::{LogError, NotTheSameLog, SharedLog};
use envforge_testkit::TestDir;

use crate::commits::{add, all, claim};
use crate::crash::{Acknowledged, read_acknowledged, spawn_writer, verify};
use crate::site::{Site, open_with};

/// A log whose writer was killed, with commits that stand in the journal alone.
async fn killed() -> (Site, Vec<Acknowledged>) {
    let site = Site::sqlite();
    let child = spawn_writer(&site.address(), u64::MAX, None);
    let acknowledged = tokio::task::spawn_blocking(|| read_acknowledged(child, Some(100))).await.unwrap();
    (site, acknowledged)
}

fn journals(site: &Site) -> Vec<PathBuf> {
    let files = std::fs::read_dir(site.address()).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("events.journal-")).collect()
}

async fn refused(site: &Site) -> LogError {
    SqliteLog::open(Config::new(site.address())).await.err().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_whose_journal_is_missing_is_not_opened() {
    let (site, acknowledged) = killed().await;
    let aside = TestDir::new();
    let journals = journals(&site);
    assert!(!journals.is_empty());
    for (number, journal) in journals.iter().enumerate() {
        std::fs::rename(journal, aside.join(number.to_string())).unwrap();
    }
    let error = refused(&site).await;
    let LogError::Open(reason) = &error else { panic!("{error}") };
    assert!(reason.contains("events.sqlite is missing: the last commits that were acknowledged"), "{reason}");
    for (number, journal) in journals.iter().enumerate() {
        std::fs::rename(aside.join(number.to_string()), journal).unwrap();
    }
    verify(&all(&site.open().await).await, &acknowledged);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_beside_another_ones_journal_is_not_opened() {
    let (site, _) = killed().await;
    let (another, acknowledged) = killed().await;
    for journal in journals(&site) {
        let there = PathBuf::from(another.address()).join(journal.file_name().unwrap());
        let kept = std::fs::read(&there).unwrap();
        std::fs::copy(&journal, &there).unwrap();
        let error = refused(&another).await;
        assert!(matches!(error, LogError::NotTheSameLog(NotTheSameLog::Replaced { .. })), "{error}");
        std::fs::write(&there, kept).unwrap();
    }
    verify(&all(&another.open().await).await, &acknowledged);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_whose_journal_is_damaged_is_not_opened_and_left_as_it_is() {
    let (site, acknowledged) = killed().await;
    let journals = journals(&site);
    let newest = journals.iter().max_by_key(|path| std::fs::metadata(path).unwrap().modified().unwrap()).unwrap();
    let kept = std::fs::read(newest).unwrap();
    let mut bytes = kept.clone();
    // The last sector of the last frame but one.
    let frames: Vec<_> = (512..bytes.len()).step_by(512).filter(|at| bytes[*at..].starts_with(b"EFJF")).collect();
    let last = frames[frames.len() - 1];
    bytes[last - 512..last].fill(0xff);
    std::fs::write(newest, &bytes).unwrap();
    let error = refused(&site).await;
    assert!(matches!(&error, LogError::Damaged(reason) if reason.contains("what stood between")), "{error}");
    assert_eq!(std::fs::read(newest).unwrap(), bytes);
    std::fs::write(newest, kept).unwrap();
    verify(&all(&site.open().await).await, &acknowledged);
}

/// A copy of the file of a log that was closed is a copy of the log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_log_has_no_journal() {
    let site = Site::sqlite();
    let log = site.open().await;
    for number in 0..5 {
        add(&log, &claim("a"), &number.to_string()).await;
    }
    assert!(!journals(&site).is_empty());
    let log = {
        drop(log);
        let mut log = SqliteLog::open(Config::new(site.address())).await;
        while matches!(&log, Err(LogError::Open(reason)) if reason.contains("in use")) {
            log = SqliteLog::open(Config::new(site.address())).await;
        }
        log.unwrap()
    };
    log.close().await;
    assert_eq!(journals(&site), Vec::<PathBuf>::new());
    let copy = TestDir::new();
    std::fs::copy(PathBuf::from(site.address()).join("events.sqlite"), copy.join("events.sqlite")).unwrap();
    for directory in [copy.path(), site.address().as_ref()] {
        let log: SharedLog = Arc::new(open_with(Config::new(directory)).await);
        assert_eq!(all(&log).await.len(), 5, "{}", directory.display());
    }
}
