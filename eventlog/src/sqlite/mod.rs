//! The embedded log: one SQLite file, one writer with group commit, readers of their own.
//!
//! What it promises: write-ahead log with `synchronous=FULL`, so an acknowledged append survives kill -9 and power loss;
//! positions without gaps; one process at a time. Not here: stored forms (`schema`).

mod checkpoint;
mod count;
mod file;
mod follow;
mod format;
mod group;
mod index;
mod loaded;
mod reader;
mod recent;
mod rows;
mod tail;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use envforge_domain::commit::{Commit, Expectation, Position, Recorded, StreamId};
use envforge_domain::time::SharedClock;
use futures_util::stream::BoxStream;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use self::file::LogFile;
use self::follow::Sources;
use self::reader::{Reader, Stored};
use self::recent::RecentCommits;
use self::writer::{Job, Opened, Orders};
use crate::clock::SystemClock;
use crate::measure::Backend;
use crate::prepared::PreparedAppend;
use crate::{AppendError, Appended, Checkpoint, EventLog, Filter, Follow, Head, LogError, Page};

/// Appends that may wait for the writer.
const QUEUE_APPENDS_MAX: usize = 1_024;
/// Stored bytes that may wait for the writer, in KiB.
const QUEUE_KIB_MAX: u32 = 64 * 1024;

#[derive(Clone)]
pub struct Config {
    /// The log's own directory; made with mode 0700 where it does not exist.
    pub directory: PathBuf,
    /// Reading connections.
    pub readers: u32,
    /// An append that is not stored by then answers `Unknown`.
    pub append_timeout: Duration,
    /// Stamps what is recorded. `recorded_at` does not go back even where this does.
    pub clock: SharedClock,
    /// Commits that gather before the index is brought up to them: so many, and as many again, are looked at when the log
    /// is opened.
    pub index_batch_commits: usize,
}

impl Config {
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            readers: 4,
            append_timeout: Duration::from_secs(10),
            clock: Arc::new(SystemClock),
            index_batch_commits: index::BATCH_COMMITS,
        }
    }
}

/// The embedded log.
pub struct SqliteLog {
    file: Arc<LogFile>,
    reader: Reader,
    recent: Arc<RecentCommits>,
    heads: watch::Receiver<Position>,
    /// `None` once it is being closed.
    jobs: Option<mpsc::Sender<Job>>,
    queue_kib: Arc<Semaphore>,
    append_timeout: Duration,
    /// Comes when the writer has closed the file.
    closed: oneshot::Receiver<()>,
    count: JoinHandle<()>,
}

impl Drop for SqliteLog {
    fn drop(&mut self) {
        self.count.abort();
    }
}

impl SqliteLog {
    /// Opens the log, or makes a new one. Fails with `LogError::Open` when another process has it, when a newer EnvForge
    /// wrote it, or when the file cannot be used.
    pub async fn open(config: Config) -> Result<Self, LogError> {
        let (jobs, queue) = mpsc::channel(QUEUE_APPENDS_MAX);
        let orders = Orders {
            directory: config.directory,
            clock: config.clock,
            index_batch_commits: config.index_batch_commits.max(1),
        };
        let (Opened { file, tail, recent, heads }, closed) = writer::start(orders, queue).await?;
        let indexed = tail.indexed();
        let reader = Reader::open(&file, tail, config.readers.max(1)).await?;
        Ok(Self {
            count: tokio::spawn(count::count(Arc::clone(&file), reader.clone(), indexed)),
            file,
            reader,
            recent,
            heads,
            jobs: Some(jobs),
            queue_kib: Arc::new(Semaphore::new(QUEUE_KIB_MAX as usize)),
            append_timeout: config.append_timeout,
            closed,
        })
    }

    /// Stores what is queued, closes the file, lets go of the lock. Followers of this log must be gone.
    pub async fn close(mut self) {
        drop(self.jobs.take());
        self.count.abort();
        self.reader.close().await;
        if (&mut self.closed).await.is_err() {
            tracing::error!("the log's writer ended badly");
        }
    }

    async fn append_prepared(&self, append: PreparedAppend) -> Result<Appended, AppendError> {
        let gone = || AppendError::Log(LogError::Unavailable("the log's writer has ended".to_owned()));
        let kib = u32::try_from(append.bytes() / 1024 + 1).unwrap_or(QUEUE_KIB_MAX).min(QUEUE_KIB_MAX);
        let permit = Arc::clone(&self.queue_kib).acquire_many_owned(kib).await.map_err(|_| gone())?;
        let (reply, answer) = oneshot::channel();
        let jobs = self.jobs.as_ref().ok_or_else(gone)?;
        jobs.send(Job { append, reply, _bytes: permit }).await.map_err(|_| gone())?;
        answer.await.unwrap_or(Err(AppendError::Unknown))
    }

    fn decode(stored: &[Stored]) -> Result<Vec<Recorded>, LogError> {
        stored.iter().map(Stored::decode).collect()
    }
}

#[async_trait]
impl EventLog for SqliteLog {
    async fn append(&self, commits: Vec<(Commit, Expectation)>) -> Result<Appended, AppendError> {
        let started = Instant::now();
        let result = match PreparedAppend::new(commits) {
            Err(error) => Err(error),
            Ok(append) => tokio::time::timeout(self.append_timeout, self.append_prepared(append))
                .await
                .unwrap_or(Err(AppendError::Unknown)),
        };
        Backend::Sqlite.appended(started, &result);
        result
    }

    async fn read_stream(&self, stream: &StreamId, after: Position, limit: usize) -> Result<Vec<Recorded>, LogError> {
        self.file.check_fault()?;
        Self::decode(&self.reader.stream(stream, after, limit).await?)
    }

    async fn last_of_stream(&self, stream: &StreamId) -> Result<Option<Recorded>, LogError> {
        self.file.check_fault()?;
        self.reader.last_of_stream(stream).await?.as_ref().map(Stored::decode).transpose()
    }

    async fn last_positions_of(&self, streams: &[StreamId]) -> Result<Vec<Position>, LogError> {
        self.file.check()?;
        self.reader.last_positions_of(streams).await
    }

    async fn read(&self, after: Position, limit: usize, filter: &Filter) -> Result<Page, LogError> {
        let head = *self.heads.borrow();
        let page = self.reader.page(after, head, limit, filter).await?;
        let commits = Self::decode(&page.commits)?;
        Ok(Page { commits, read_up_to: page.read_up_to, at_head: page.read_up_to >= head })
    }

    async fn follow(
        &self,
        from: Checkpoint,
        filter: Filter,
    ) -> Result<BoxStream<'static, Result<Follow, LogError>>, LogError> {
        let sources = Sources {
            file: Arc::clone(&self.file),
            reader: self.reader.clone(),
            recent: Arc::clone(&self.recent),
            heads: self.heads.clone(),
        };
        follow::start(sources, from, filter).await
    }

    async fn head(&self) -> Result<Head, LogError> {
        self.file.check()?;
        Ok(Head { identity: self.file.identity().clone(), position: *self.heads.borrow() })
    }
}
