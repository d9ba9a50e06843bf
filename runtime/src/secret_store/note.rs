//! What stands beside a value that was put and of which nobody has seen the log speak yet: enough to know later that it never will.
//!
//! INVARIANT: a value is withdrawn by its note alone. One without a note is one that the log names, or of a version of EnvForge
//! from before notes, and stays.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use envforge_domain::commit::Position;
use envforge_domain::ids::CommandId;
use envforge_domain::secret::TokenDigest;
use envforge_domain::secrets::SecretKey;
use envforge_domain::time::UnixMillis;

/// Of this form. Another one gets another word.
const FORMAT: &str = "envforge-put-1";

/// Which request put a value, when, and where the log stood then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PutNote {
    pub command: CommandId,
    pub at: UnixMillis,
    /// A commit from before the value was put: a log without it is another one, or an older state of the right one.
    pub log: LogMark,
}

/// One commit of one log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogMark {
    pub position: Position,
    pub identity: String,
    /// SHA-256 of the commit as it is stored.
    pub digest: [u8; 32],
}

/// A version that was put and not recorded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unrecorded {
    pub key: SecretKey,
    pub version: u64,
    pub note: PutNote,
}

/// Words on one line, the log's identity last. Nothing of a value.
impl fmt::Display for PutNote {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { command, at, log: LogMark { position, identity, digest } } = self;
        let digest = TokenDigest::from_bytes(*digest).to_hex();
        write!(formatter, "{FORMAT} {command} {} {position} {digest} {identity}", at.get())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is no note of a value that was put")]
pub struct InvalidNote;

impl FromStr for PutNote {
    type Err = InvalidNote;

    fn from_str(text: &str) -> Result<Self, InvalidNote> {
        let words: Vec<&str> = text.splitn(6, ' ').collect();
        let [FORMAT, command, at, position, digest, identity] = *words else { return Err(InvalidNote) };
        let number = |word: &str| word.parse::<u64>().map_err(|_| InvalidNote);
        let log = LogMark {
            position: Position::new(number(position)?),
            identity: identity.to_owned(),
            digest: *TokenDigest::from_hex(digest).ok_or(InvalidNote)?.as_bytes(),
        };
        let at = at.parse().map(UnixMillis::new).map_err(|_| InvalidNote)?;
        Ok(Self { command: command.parse().map_err(|_| InvalidNote)?, at, log })
    }
}

/// Whether all that is kept of a key was never recorded: then a store that removes no single version may remove the key.
pub fn all_unrecorded(kept: impl IntoIterator<Item = u64>, unrecorded: &BTreeSet<u64>) -> bool {
    kept.into_iter().all(|version| unrecorded.contains(&version))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_note_is_read_back_as_it_was_written_and_nothing_else_is_one() {
        let log = LogMark { position: Position::new(7), identity: "a log's name".to_owned(), digest: [9; 32] };
        let command = CommandId::from_uuid(uuid::Uuid::from_u128(1));
        let note = PutNote { command, at: UnixMillis::new(1_795_000_000_000), log };
        let text = note.to_string();
        assert_eq!(text.parse(), Ok(note));
        assert!(text.len() < 300, "a parameter's description has 1,024 characters");
        let wrong = ["", "a description", &text[..60]].map(str::to_owned);
        for wrong in wrong.into_iter().chain([text.replace("-1 ", "-2 "), text.replace("0909", "09zz")]) {
            assert_eq!(wrong.parse::<PutNote>(), Err(InvalidNote), "{wrong}");
        }
    }
}
