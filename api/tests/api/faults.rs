//! The real log, with a network that fails when a test says so.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use envforge_domain::commit::{Commit, Expectation, Position, Recorded, StreamId, StreamKind};
use envforge_eventlog::{AppendError, Appended, Checkpoint, Filter, Follow, LogError, SharedLog};
use envforge_testkit::Interference;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use tokio::sync::watch;

/// What fails right now.
pub(crate) struct Faults {
    users_unreadable: AtomicBool,
    /// Whoever follows everything, as the views of rights do, hears nothing while it is set.
    views_held: watch::Sender<bool>,
    /// Appends that begin with a stream of this kind do not reach the log.
    unappendable: std::sync::Mutex<Option<StreamKind>>,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            users_unreadable: AtomicBool::new(false),
            views_held: watch::Sender::new(false),
            unappendable: std::sync::Mutex::default(),
        }
    }
}

impl Faults {
    /// Users' streams cannot be read, or can again.
    pub(crate) fn users_unreadable(&self, unreadable: bool) {
        self.users_unreadable.store(unreadable, Ordering::SeqCst);
    }

    /// Nothing is appended to streams of this kind, as if the process had died before.
    pub(crate) fn unappendable(&self, kind: Option<StreamKind>) {
        *self.unappendable.lock().unwrap() = kind;
    }

    /// The views of rights learn nothing new, or go on.
    pub(crate) fn hold_views(&self, held: bool) {
        self.views_held.send_replace(held);
    }
}

pub(crate) struct FaultyLog {
    pub(crate) log: SharedLog,
    pub(crate) faults: Arc<Faults>,
}

#[async_trait]
impl Interference for FaultyLog {
    fn real(&self) -> &SharedLog {
        &self.log
    }

    async fn append(&self, commits: Vec<(Commit, Expectation)>) -> Result<Appended, AppendError> {
        let unappendable = *self.faults.unappendable.lock().unwrap();
        if commits.first().is_some_and(|(commit, _)| Some(commit.stream.kind()) == unappendable) {
            return Err(AppendError::Log(LogError::Unavailable("the network is gone".to_owned())));
        }
        self.log.append(commits).await
    }

    async fn read_stream(&self, stream: &StreamId, after: Position, limit: usize) -> Result<Vec<Recorded>, LogError> {
        if stream.kind() == StreamKind::User && self.faults.users_unreadable.load(Ordering::SeqCst) {
            return Err(LogError::Unavailable("the network is gone".to_owned()));
        }
        self.log.read_stream(stream, after, limit).await
    }

    async fn follow(
        &self,
        from: Checkpoint,
        filter: Filter,
    ) -> Result<BoxStream<'static, Result<Follow, LogError>>, LogError> {
        let follow = self.log.follow(from, filter.clone()).await?;
        if filter != Filter::everything() {
            return Ok(follow);
        }
        let faults = Arc::clone(&self.faults);
        Ok(Box::pin(follow.then(move |next| {
            let mut held = faults.views_held.subscribe();
            async move {
                // While the sender lives this ends with the test's word alone.
                let _ = held.wait_for(|held| !held).await;
                next
            }
        })))
    }
}
