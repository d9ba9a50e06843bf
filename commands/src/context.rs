//! What a decision must be told and may not find out itself: the time, the request it answers, and fresh ids.

use envforge_domain::commit::Position;
use envforge_domain::ids::{CommandId, CommitId, CorrelationId};
use envforge_domain::time::UnixMillis;
use uuid::Uuid;

/// The request that a commit will answer.
#[derive(Clone, Copy, Debug)]
pub struct Context {
    /// The same id again gets the first answer again.
    pub command: CommandId,
    /// SHA-256 of the request, where a client may repeat it: another digest under the same id is refused.
    pub request_digest: Option<[u8; 32]>,
    /// Whoever keeps account of requests has seen this one before. Its first answer is then looked for in the whole
    /// stream, however long ago that was.
    pub repeated: Option<Repeated>,
    pub correlation: CorrelationId,
    pub causation: Option<CommitId>,
    pub now: UnixMillis,
}

/// What is known of a request that came before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repeated {
    /// It was carried out and changed nothing, as of this position. `None`: it changed something, was refused, or broke off.
    pub satisfied_at: Option<Position>,
}

impl Context {
    /// A request of its own, with fresh ids.
    pub fn new(now: UnixMillis) -> Self {
        let id = Uuid::now_v7();
        Self {
            command: CommandId::from_uuid(id),
            request_digest: None,
            repeated: None,
            correlation: CorrelationId::from_uuid(id),
            causation: None,
            now,
        }
    }

    /// What EnvForge does because of a commit. The command id is derived from that commit and a purpose, so that
    /// whoever repeats the reaction repeats the same command.
    pub fn caused_by(commit: CommitId, correlation: CorrelationId, purpose: &str, now: UnixMillis) -> Self {
        Self {
            command: CommandId::from_uuid(derived_uuid(commit.as_uuid().as_bytes(), purpose)),
            request_digest: None,
            repeated: None,
            correlation,
            causation: Some(commit),
            now,
        }
    }

    /// The id of the thing that this request creates: the command's own bits, so that a repeated request meets the
    /// same stream.
    pub const fn new_id(&self) -> Uuid {
        *self.command.as_uuid()
    }
}

/// A UUIDv8 (RFC 9562, custom) from a hash: the same inputs, the same id.
pub fn derived_uuid(seed: &[u8], purpose: &str) -> Uuid {
    use sha2::{Digest, Sha256};
    let mut hasher = Sha256::new();
    hasher.update((seed.len() as u64).to_be_bytes());
    hasher.update(seed);
    hasher.update(purpose.as_bytes());
    let digest: [u8; 32] = hasher.finalize().into();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}
