//! An append that has been checked and encoded, as both backends take it.

use bytes::Bytes;
use envforge_domain::commit::{Commit, Expectation, Standing, StreamId};
use envforge_domain::ids::CommandId;
use envforge_domain::limits::BATCH_COMMITS_MAX;

use crate::AppendError;
use crate::schema::{self, EncodeError};

/// One commit in its stored form.
#[derive(Debug)]
pub(crate) struct PreparedCommit {
    pub(crate) stream: StreamId,
    pub(crate) expectation: Expectation,
    pub(crate) payload: Bytes,
}

/// INVARIANT: one to `BATCH_COMMITS_MAX` commits of different streams, all of one command and one request. No two of
/// them expect something of the same stream, and none guards a stream that another one writes. The first, by which a
/// repeated append is known again, expects where its own stream ends.
#[derive(Debug)]
pub(crate) struct PreparedAppend {
    pub(crate) command: CommandId,
    pub(crate) request_digest: Option<[u8; 32]>,
    pub(crate) commits: Vec<PreparedCommit>,
}

impl PreparedAppend {
    pub(crate) fn new(commits: Vec<(Commit, Expectation)>) -> Result<Self, AppendError> {
        let Some((first, expectation)) = commits.first() else { return Err(AppendError::Malformed) };
        if matches!(expectation, Expectation::Guards(_)) {
            return Err(AppendError::Malformed);
        }
        let (command, request_digest) = (first.command, first.request_digest);
        if commits.len() > BATCH_COMMITS_MAX {
            return Err(AppendError::TooLarge {
                what: "a batch",
                unit: "commits",
                found: commits.len(),
                limit: BATCH_COMMITS_MAX,
            });
        }
        let mut prepared: Vec<PreparedCommit> = Vec::with_capacity(commits.len());
        for (commit, expectation) in commits {
            let repeated = prepared.iter().any(|other| other.stream == commit.stream);
            if repeated || commit.command != command || commit.request_digest != request_digest {
                return Err(AppendError::Malformed);
            }
            let payload = schema::encode(&commit)?;
            prepared.push(PreparedCommit { stream: commit.stream, expectation, payload });
        }
        for (index, commit) in prepared.iter().enumerate() {
            let Expectation::Guards(guarded) = &commit.expectation else { continue };
            let written = prepared.iter().any(|other| other.stream == guarded.stream);
            let again = prepared.iter().skip(index + 1).any(
                |other| matches!(&other.expectation, Expectation::Guards(guard) if guard.stream == guarded.stream),
            );
            if written || again {
                return Err(AppendError::Malformed);
            }
        }
        Ok(Self { command, request_digest, commits: prepared })
    }

    /// The streams that must not have moved.
    pub(crate) fn guards(&self) -> impl Iterator<Item = &Standing> {
        self.commits.iter().filter_map(|commit| match &commit.expectation {
            Expectation::Guards(guarded) => Some(guarded),
            Expectation::LastAt(_) => None,
        })
    }

    pub(crate) fn bytes(&self) -> usize {
        self.commits.iter().map(|commit| commit.payload.len()).sum()
    }
}

impl From<EncodeError> for AppendError {
    fn from(error: EncodeError) -> Self {
        match error {
            EncodeError::TooLarge { what, unit, found, limit } => Self::TooLarge { what, unit, found, limit },
            EncodeError::NoEvents | EncodeError::WrongStream { .. } => Self::Malformed,
        }
    }
}
