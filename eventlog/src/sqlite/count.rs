//! Counts, while the log is in use, what stood in its file when it was opened: positions have no gaps, and followers of a part
//! of the log could not see one among what they do not ask for.
//!
//! Opening looks at the end alone, so that it takes no longer for a long log; this is the rest of it, a little at a time. Where a
//! commit is missing the log is condemned: nothing is appended any more and followers end.

use std::sync::Arc;
use std::time::Duration;

use envforge_domain::commit::Position;

use super::file::LogFile;
use super::reader::Reader;
use crate::{LogError, NotTheSameLog};

/// Positions looked at at once.
const POSITIONS: u64 = 4_096;
/// Between two looks: others want the disk.
const PAUSE: Duration = Duration::from_millis(5);

pub(super) async fn count(file: Arc<LogFile>, reader: Reader, applied: Position) {
    let mut after = Position::START;
    while after < applied {
        let end = applied.min(Position::new(after.get() + POSITIONS));
        match missing(&reader, after, end).await {
            Ok(None) => after = end,
            Ok(Some(error)) => return file.condemn(LogError::NotTheSameLog(error)),
            // Whoever reads there is told as well.
            Err(error) => return tracing::error!(%error, "the log could not be counted above {after}"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn missing(reader: &Reader, after: Position, end: Position) -> Result<Option<NotTheSameLog>, LogError> {
    if reader.count(after, end).await? == end.get() - after.get() {
        return Ok(None);
    }
    Ok(Some(match reader.gap(after, end).await? {
        Some((after, found)) => NotTheSameLog::Gap { after, found },
        None => NotTheSameLog::Replaced { found: format!("commits are missing below {end}") },
    }))
}
