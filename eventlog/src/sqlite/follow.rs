//! Following the embedded log: what is there, then what comes, with signs of life.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use envforge_domain::commit::Position;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use super::file::LogFile;
use super::reader::{Reader, Stored, StoredPage};
use super::recent::RecentCommits;
use crate::measure::Backend;
use crate::{Checkpoint, CheckpointProof, Filter, Follow, LogError, NotTheSameLog};

/// Commits read at once.
const PAGE_COMMITS_MAX: usize = 512;
/// Positions of one page that a filtered follower counts.
const COUNTED_POSITIONS_MAX: u64 = 4_096;
/// Between two signs of life.
const HEARTBEAT: Duration = Duration::from_millis(500);

/// Where a follower finds commits.
pub(super) struct Sources {
    pub(super) file: Arc<LogFile>,
    pub(super) reader: Reader,
    pub(super) recent: Arc<RecentCommits>,
    pub(super) heads: watch::Receiver<Position>,
}

struct Follower {
    from: Sources,
    filter: Filter,
    page: VecDeque<Stored>,
    /// Everything up to here was looked at.
    read_up_to: Position,
    /// The last position of which `Caught` spoke; `None` where something came since.
    caught: Option<Position>,
    /// It has seen the end of the log: what it passed was read from the file, and what comes is taken from memory.
    keeps_up: bool,
    ended: bool,
}

/// Holds the checkpoint against the log, then follows from there.
pub(super) async fn start(
    sources: Sources,
    from: Checkpoint,
    filter: Filter,
) -> Result<BoxStream<'static, Result<Follow, LogError>>, LogError> {
    let Sources { file, reader, heads, .. } = &sources;
    file.check_place()?;
    if let Some(proof) = &from.proof
        && proof.identity != *file.identity()
    {
        let (expected, found) = (proof.identity.clone(), file.identity().clone());
        return Err(LogError::NotTheSameLog(NotTheSameLog::Identity { expected, found }));
    }
    let head = *heads.borrow();
    if from.position > head {
        return Err(LogError::NotTheSameLog(NotTheSameLog::WentBack { checkpoint: from.position, head }));
    }
    if let Some(proof) = &from.proof {
        let stored = reader.at(from.position).await?;
        if stored.is_none_or(|stored| digest(&stored.payload) != proof.digest) {
            return Err(LogError::NotTheSameLog(NotTheSameLog::Rewritten { position: from.position }));
        }
    }
    let follower = Follower {
        read_up_to: from.position,
        from: sources,
        filter,
        page: VecDeque::new(),
        caught: None,
        keeps_up: false,
        ended: false,
    };
    Ok(stream::unfold(follower, |mut follower| async move {
        if follower.ended {
            return None;
        }
        let item = follower.next().await;
        follower.ended = item.is_err();
        Some((item, follower))
    })
    .boxed())
}

impl Follower {
    async fn next(&mut self) -> Result<Follow, LogError> {
        loop {
            if let Some(stored) = self.page.pop_front() {
                self.caught = None;
                return self.deliver(&stored);
            }
            let head = *self.from.heads.borrow_and_update();
            if self.read_up_to < head {
                self.fill(head).await?;
                continue;
            }
            if self.caught != Some(head) {
                self.caught = Some(head);
                self.keeps_up = true;
                self.from.file.check()?;
                return Ok(Follow::Caught { position: head });
            }
            match tokio::time::timeout(HEARTBEAT, self.from.heads.changed()).await {
                Ok(Ok(())) => {}
                Err(_) => self.caught = None,
                Ok(Err(_)) => return Err(LogError::Unavailable("the log was closed".to_owned())),
            }
        }
    }

    async fn fill(&mut self, head: Position) -> Result<(), LogError> {
        let recent =
            self.keeps_up.then(|| self.from.recent.page(self.read_up_to, head, PAGE_COMMITS_MAX, &self.filter));
        let page = match recent.flatten() {
            Some(page) => {
                self.from.file.check()?;
                page
            }
            None => {
                let page = self.from.reader.page(self.read_up_to, head, PAGE_COMMITS_MAX, &self.filter).await?;
                self.from.file.check()?;
                self.check_whole(&page).await?;
                page
            }
        };
        if let Some(last) = page.commits.last() {
            Backend::Sqlite.followed(last.recorded_at);
        }
        self.read_up_to = page.read_up_to;
        self.page = page.commits.into();
        Ok(())
    }

    /// Positions have no gaps: a missing one means that somebody tampered with the file.
    async fn check_whole(&self, page: &StoredPage) -> Result<(), LogError> {
        let positions = page.read_up_to.get() - self.read_up_to.get();
        if self.filter != Filter::everything() {
            // What the filter hides is counted. Not where much is looked at, since that would read all of it: such a
            // stretch was there when the log was opened, and is counted since then.
            if positions <= COUNTED_POSITIONS_MAX {
                let count = self.from.reader.count(self.read_up_to, page.read_up_to).await?;
                if count != positions {
                    let (after, end) = (self.read_up_to, page.read_up_to);
                    let found = format!("{count} commits stand above {after} and up to {end}");
                    return Err(LogError::NotTheSameLog(NotTheSameLog::Replaced { found }));
                }
            }
            return Ok(());
        }
        let mut after = self.read_up_to;
        for stored in &page.commits {
            if stored.position != after.next() {
                let found = stored.position;
                return Err(LogError::NotTheSameLog(NotTheSameLog::Gap { after, found }));
            }
            after = stored.position;
        }
        if after != page.read_up_to {
            let found = format!("nothing stands above {after} although it ended at {}", page.read_up_to);
            return Err(LogError::NotTheSameLog(NotTheSameLog::Replaced { found }));
        }
        Ok(())
    }

    fn deliver(&self, stored: &Stored) -> Result<Follow, LogError> {
        let proof = CheckpointProof { identity: self.from.file.identity().clone(), digest: digest(&stored.payload) };
        let checkpoint = Checkpoint { position: stored.position, proof: Some(proof) };
        Ok(Follow::Commit { recorded: stored.decode()?, checkpoint, bytes: stored.payload.len() })
    }
}

pub(super) fn digest(payload: &[u8]) -> [u8; 32] {
    Sha256::digest(payload).into()
}
