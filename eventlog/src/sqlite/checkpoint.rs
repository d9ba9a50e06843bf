//! Copying the write-ahead log into the file, beside the writer instead of within it.
//!
//! SQLite copies within the commit that finds the write-ahead log long, and whoever appends then waits for thousands of pages and
//! two syncs. Here a thread with a connection of its own copies them while appends go on. What was written meanwhile it copies
//! once more, until little is left; that the writer copies itself, between two groups, because the write-ahead log begins anew
//! only when all of it was copied. Not here: what an append waits for (`writer`).

use std::cell::Cell;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread::JoinHandle;

use rusqlite::Connection;

use super::file::LogFile;
use crate::LogError;

/// Pages after which copying begins.
const BEGIN_PAGES: u32 = 4_000;
/// Pages that the writer copies itself: as many take about as long as a few appends.
const LITTLE_PAGES: u32 = 400;
/// Pages that come before another try, where readers of older pages or the disk were in the way.
const ANOTHER_TRY_PAGES: u32 = 1_000;
/// Pages at which the writer copies all of it, however long appends wait: the other thread does not get ahead of it.
const TOO_MANY_PAGES: u32 = 64_000;

thread_local! {
    /// Pages of the write-ahead log at the last commit of this thread's connection.
    static PAGES: Cell<u32> = const { Cell::new(0) };
}

/// The writer's end of it. The thread ends with it.
pub(super) struct Checkpoints {
    /// `None` once it is ending.
    begin: Option<SyncSender<()>>,
    /// Pages that the thread has copied.
    copied: Receiver<Result<u32, rusqlite::Error>>,
    under_way: bool,
    /// Pages at which copying begins next.
    begin_at: u32,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Checkpoints {
    fn drop(&mut self) {
        drop(self.begin.take());
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that copies the write-ahead log ended badly");
        }
    }
}

impl Checkpoints {
    /// `writes`: the connection of the thread that calls this, and the only one that writes.
    pub(super) fn start(file: &LogFile, writes: &Connection) -> Result<Self, LogError> {
        let connection = file.checkpointing()?;
        // In the place of SQLite's own, which would copy within the commit.
        writes.wal_hook(Some(|_, pages| {
            PAGES.set(pages.cast_unsigned());
            Ok(())
        }));
        // One at a time.
        let (begin, begun) = sync_channel::<()>(1);
        let (told, copied) = sync_channel(1);
        let thread = std::thread::Builder::new().name("envforge-wal".to_owned()).spawn(move || {
            while begun.recv().is_ok() {
                if told.send(copy(&connection)).is_err() {
                    break;
                }
            }
        });
        let thread = thread.map_err(|error| LogError::Open(format!("no thread for the write-ahead log: {error}")))?;
        Ok(Self { begin: Some(begin), copied, under_way: false, begin_at: BEGIN_PAGES, thread: Some(thread) })
    }

    /// After a commit.
    pub(super) fn committed(&mut self, writes: &Connection) {
        let pages = PAGES.get();
        if pages < BEGIN_PAGES {
            // It began anew.
            self.begin_at = BEGIN_PAGES;
        }
        let left = match self.copied.try_recv() {
            Ok(copied) => {
                self.under_way = false;
                self.settled(copied, pages).map(|copied| pages.saturating_sub(copied))
            }
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => {
                (pages >= self.begin_at && !self.under_way).then_some(pages)
            }
        };
        match left {
            None => {}
            Some(left) if left <= LITTLE_PAGES || left >= TOO_MANY_PAGES => {
                self.begin_at = pages + ANOTHER_TRY_PAGES;
                self.settled(copy(writes), pages);
            }
            Some(_) => self.under_way = self.begin.as_ref().is_some_and(|begin| begin.try_send(()).is_ok()),
        }
    }

    fn settled(&mut self, copied: Result<u32, rusqlite::Error>, pages: u32) -> Option<u32> {
        copied
            .inspect_err(|error| {
                self.begin_at = pages + ANOTHER_TRY_PAGES;
                tracing::warn!(%error, pages, "the write-ahead log could not be copied into the log's file");
            })
            .ok()
    }
}

/// Copies what no reader is in the way of, syncing both. Answers how many pages of the write-ahead log were copied by now.
fn copy(connection: &Connection) -> Result<u32, rusqlite::Error> {
    connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| {
        let pages: i64 = row.get(2)?;
        Ok(u32::try_from(pages).unwrap_or(0))
    })
}
