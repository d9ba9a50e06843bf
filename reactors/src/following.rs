//! The log as a reactor hears it: from the first commit on, again from the last one after the log was out of reach.
//!
//! Not here: what a commit means (`world`). An error other than "out of reach" ends it for good: whoever reacts to a log
//! that is not the one it followed, or that it cannot read, does the wrong thing.

use std::time::Duration;

use envforge_eventlog::{Checkpoint, Filter, Follow, LogError, NotTheSameLog, SharedLog};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use tokio::time::Instant;

/// Wait before following again after the log was out of reach; doubled each time up to `RECONNECT_MAX`.
const RECONNECT_MIN: Duration = Duration::from_millis(100);
const RECONNECT_MAX: Duration = Duration::from_secs(5);

type Commits = BoxStream<'static, Result<Follow, LogError>>;

/// One follower, from the first commit on.
pub(crate) struct Following {
    log: SharedLog,
    /// Whose: for traces.
    name: &'static str,
    checkpoint: Checkpoint,
    delay: Duration,
    state: State,
}

enum State {
    Waiting(Instant),
    Connecting(BoxFuture<'static, Result<Commits, LogError>>),
    Following(Commits),
}

impl Following {
    pub(crate) fn new(log: SharedLog, name: &'static str) -> Self {
        let state = State::Waiting(Instant::now());
        Self { log, name, checkpoint: Checkpoint::START, delay: RECONNECT_MIN, state }
    }

    /// What comes next, each commit once. Safe to cancel: nothing is lost and a wait goes on where it was.
    ///
    /// # Errors
    /// When the log cannot be followed any more.
    pub(crate) async fn next(&mut self) -> Result<Follow, LogError> {
        loop {
            match &mut self.state {
                State::Waiting(until) => {
                    tokio::time::sleep_until(*until).await;
                    let (log, checkpoint) = (SharedLog::clone(&self.log), self.checkpoint.clone());
                    let connecting = Box::pin(async move { log.follow(checkpoint, Filter::everything()).await });
                    self.state = State::Connecting(connecting);
                }
                State::Connecting(connecting) => match connecting.await {
                    Ok(commits) => self.state = State::Following(commits),
                    Err(error) => self.lost(error)?,
                },
                State::Following(commits) => match commits.next().await {
                    Some(Ok(Follow::Commit { recorded, checkpoint, bytes })) => {
                        let (after, found) = (self.checkpoint.position, recorded.position);
                        if found <= after {
                            // Folded twice, a commit could count twice.
                            return Err(LogError::NotTheSameLog(NotTheSameLog::Gap { after, found }));
                        }
                        self.checkpoint = checkpoint.clone();
                        self.delay = RECONNECT_MIN;
                        return Ok(Follow::Commit { recorded, checkpoint, bytes });
                    }
                    Some(Ok(caught @ Follow::Caught { .. })) => {
                        self.delay = RECONNECT_MIN;
                        return Ok(caught);
                    }
                    Some(Err(error)) => self.lost(error)?,
                    None => self.lost(LogError::Unavailable("the log's stream ended".to_owned()))?,
                },
            }
        }
    }

    fn lost(&mut self, error: LogError) -> Result<(), LogError> {
        match error {
            LogError::Unavailable(reason) => {
                let (name, delay) = (self.name, self.delay);
                tracing::warn!(name, %reason, ?delay, "the log is out of reach; following again");
                metrics::counter!("envforge_reactor_reconnects_total", "reactor" => name).increment(1);
                self.state = State::Waiting(Instant::now() + delay);
                self.delay = (delay * 2).min(RECONNECT_MAX);
                Ok(())
            }
            error @ (LogError::NotTheSameLog(_)
            | LogError::Undecodable { .. }
            | LogError::Open(_)
            | LogError::Damaged(_)) => Err(error),
        }
    }
}
