//! A log that holds its commits in memory, so that what follows it is measured and nothing else. It takes no appends.

use std::sync::Arc;

use async_trait::async_trait;
use envforge_domain::commit::{Commit, Expectation, Position, Recorded, StreamId};
use envforge_eventlog::{
    AppendError, Appended, Checkpoint, CheckpointProof, EventLog, Filter, Follow, Head, LogError, LogIdentity, Page,
};
use futures_util::stream::{self, BoxStream, StreamExt};

/// Commits that stand at positions 1 and up.
pub(crate) struct MemoryLog {
    commits: Arc<Vec<Recorded>>,
}

impl MemoryLog {
    pub(crate) fn new(commits: Vec<Recorded>) -> Self {
        Self { commits: Arc::new(commits) }
    }

    fn identity() -> LogIdentity {
        LogIdentity("memory".to_owned())
    }

    fn position(&self) -> Position {
        self.commits.last().map_or(Position::START, |last| last.position)
    }

    fn above(&self, after: Position) -> &[Recorded] {
        let skipped = usize::try_from(after.get()).unwrap_or(usize::MAX).min(self.commits.len());
        &self.commits[skipped..]
    }
}

#[async_trait]
impl EventLog for MemoryLog {
    async fn append(&self, _: Vec<(Commit, Expectation)>) -> Result<Appended, AppendError> {
        Err(LogError::Unavailable("this log is read only".to_owned()).into())
    }

    async fn read_stream(&self, stream: &StreamId, after: Position, limit: usize) -> Result<Vec<Recorded>, LogError> {
        let of_stream = self.above(after).iter().filter(|recorded| recorded.commit.stream == *stream);
        Ok(of_stream.take(limit).cloned().collect())
    }

    async fn last_of_stream(&self, stream: &StreamId) -> Result<Option<Recorded>, LogError> {
        Ok(self.commits.iter().rev().find(|recorded| recorded.commit.stream == *stream).cloned())
    }

    async fn last_positions_of(&self, streams: &[StreamId]) -> Result<Vec<Position>, LogError> {
        let last_of = |stream: &StreamId| {
            let last = self.commits.iter().rev().find(|recorded| recorded.commit.stream == *stream);
            last.map_or(Position::START, |last| last.position)
        };
        Ok(streams.iter().map(last_of).collect())
    }

    async fn read(&self, after: Position, limit: usize, filter: &Filter) -> Result<Page, LogError> {
        let accepted = self.above(after).iter().filter(|recorded| filter.accepts(&recorded.commit.stream));
        let commits: Vec<Recorded> = accepted.take(limit).cloned().collect();
        let complete = commits.len() < limit;
        let read_up_to =
            if complete { self.position().max(after) } else { commits.last().map_or(after, |last| last.position) };
        Ok(Page { commits, read_up_to, at_head: read_up_to >= self.position() })
    }

    async fn follow(
        &self,
        from: Checkpoint,
        filter: Filter,
    ) -> Result<BoxStream<'static, Result<Follow, LogError>>, LogError> {
        let (commits, head) = (Arc::clone(&self.commits), self.position());
        let begin = usize::try_from(from.position.get()).unwrap_or(usize::MAX);
        let commits = stream::iter(begin..self.commits.len()).map(move |index| commits[index].clone());
        let commits = commits.filter(move |recorded| {
            let accepted = filter.accepts(&recorded.commit.stream);
            std::future::ready(accepted)
        });
        let commits = commits.map(|recorded| {
            let proof = CheckpointProof { identity: Self::identity(), digest: [0; 32] };
            let checkpoint = Checkpoint { position: recorded.position, proof: Some(proof) };
            // Unknown without encoding it, which is not what is measured here.
            Ok(Follow::Commit { recorded, checkpoint, bytes: 0 })
        });
        // A sign of life now and then, as every log gives: views that hear nothing refuse.
        let idle = stream::unfold((), move |()| async move {
            tokio::time::sleep(std::time::Duration::from_millis(500)).await;
            Some((Ok(Follow::Caught { position: head }), ()))
        });
        let caught = stream::once(async move { Ok(Follow::Caught { position: head }) });
        Ok(commits.chain(caught).chain(idle).boxed())
    }

    async fn head(&self) -> Result<Head, LogError> {
        Ok(Head { identity: Self::identity(), position: self.position() })
    }
}
