//! A log that does what a test says in one place, and is a real one in every other.

use std::ops::Deref;

use async_trait::async_trait;
use envforge_domain::commit::{Commit, Expectation, Position, Recorded, StreamId};
use envforge_eventlog::{AppendError, Appended, Checkpoint, EventLog, Filter, Follow, Head, LogError, Page, SharedLog};
use futures_util::stream::BoxStream;

/// What a test does to a log: whatever it leaves out goes to the real one.
#[async_trait]
pub trait Interference: Send + Sync + 'static {
    fn real(&self) -> &SharedLog;

    async fn append(&self, commits: Vec<(Commit, Expectation)>) -> Result<Appended, AppendError> {
        self.real().append(commits).await
    }

    async fn read_stream(&self, stream: &StreamId, after: Position, limit: usize) -> Result<Vec<Recorded>, LogError> {
        self.real().read_stream(stream, after, limit).await
    }

    async fn follow(
        &self,
        from: Checkpoint,
        filter: Filter,
    ) -> Result<BoxStream<'static, Result<Follow, LogError>>, LogError> {
        self.real().follow(from, filter).await
    }
}

/// The real log with that done to it.
pub struct InterferedLog<I>(pub I);

impl<I> Deref for InterferedLog<I> {
    type Target = I;

    fn deref(&self) -> &I {
        &self.0
    }
}

#[async_trait]
impl<I: Interference> EventLog for InterferedLog<I> {
    async fn append(&self, commits: Vec<(Commit, Expectation)>) -> Result<Appended, AppendError> {
        self.0.append(commits).await
    }

    async fn read_stream(&self, stream: &StreamId, after: Position, limit: usize) -> Result<Vec<Recorded>, LogError> {
        self.0.read_stream(stream, after, limit).await
    }

    async fn last_of_stream(&self, stream: &StreamId) -> Result<Option<Recorded>, LogError> {
        self.0.real().last_of_stream(stream).await
    }

    async fn last_positions_of(&self, streams: &[StreamId]) -> Result<Vec<Position>, LogError> {
        self.0.real().last_positions_of(streams).await
    }

    async fn read(&self, after: Position, limit: usize, filter: &Filter) -> Result<Page, LogError> {
        self.0.real().read(after, limit, filter).await
    }

    async fn follow(
        &self,
        from: Checkpoint,
        filter: Filter,
    ) -> Result<BoxStream<'static, Result<Follow, LogError>>, LogError> {
        self.0.follow(from, filter).await
    }

    async fn head(&self) -> Result<Head, LogError> {
        self.0.real().head().await
    }
}
