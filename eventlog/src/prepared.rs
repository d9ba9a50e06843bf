//! An append that has been checked and encoded, as both backends take it.

use bytes::Bytes;
use envforge_domain::commit::{Commit, Expectation, Position, StreamId};
use envforge_domain::ids::CommandId;
use envforge_domain::limits::BATCH_COMMITS_MAX;

use crate::AppendError;
use crate::schema::{self, EncodeError};

/// One commit in its stored form.
#[derive(Debug)]
pub(crate) struct PreparedCommit {
    pub(crate) stream: StreamId,
    pub(crate) expected: Position,
    pub(crate) payload: Bytes,
}

/// INVARIANT: one to `BATCH_COMMITS_MAX` commits of different streams, all of one command and one request.
#[derive(Debug)]
pub(crate) struct PreparedAppend {
    pub(crate) command: CommandId,
    pub(crate) request_digest: Option<[u8; 32]>,
    pub(crate) commits: Vec<PreparedCommit>,
}

impl PreparedAppend {
    pub(crate) fn new(commits: Vec<(Commit, Expectation)>) -> Result<Self, AppendError> {
        let Some((first, _)) = commits.first() else { return Err(AppendError::Malformed) };
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
        for (commit, Expectation::LastAt(expected)) in commits {
            let repeated = prepared.iter().any(|other| other.stream == commit.stream);
            if repeated || commit.command != command || commit.request_digest != request_digest {
                return Err(AppendError::Malformed);
            }
            let payload = schema::encode(&commit)?;
            prepared.push(PreparedCommit { stream: commit.stream, expected, payload });
        }
        Ok(Self { command, request_digest, commits: prepared })
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
