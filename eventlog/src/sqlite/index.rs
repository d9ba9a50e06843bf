//! The index behind the log: where the commits of streams, scopes and commands stand, written in sorted batches.
//!
//! An index that is kept up to date with each append dirties a page for each stream that is appended to. Here commits
//! gather until there are enough of them, are sorted, and are written a slice beside each group of appends, in its
//! transaction: a page is dirtied once a batch, and no append waits for a whole one. After a crash the index is complete up to
//! the position that the file names, and what was written beyond it is written again. Not here: asking it (`reader`, `writer`).

use ahash::AHashMap;
use envforge_domain::commit::Position;
use envforge_domain::ids::CommandId;
use rusqlite::{Connection, Statement};

use super::rows::Rows;

/// Commits of one batch. As many again may gather while it is written, and are looked at when the log is opened.
pub(super) const BATCH_COMMITS: usize = 16_384;
/// Rows of the index that are written beside a group, for each commit of the group: three keep pace, so a batch is written
/// long before the next one is full.
const SLICE_ROWS_PER_COMMIT: usize = 8;
/// The least of them.
const SLICE_ROWS_MIN: usize = 256;

/// Where a commit of a command stands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) position: Position,
    pub(super) stream: i64,
}

/// A commit that the index does not have yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    pub(super) position: Position,
    pub(super) stream: i64,
    pub(super) scope: i64,
    pub(super) command: CommandId,
}

type Commands = AHashMap<CommandId, Vec<Place>>;

/// What a crash left of a batch stands there already.
const INTO_INDEX: &str = "INSERT OR IGNORE";

/// The statements that write the index.
pub(super) struct IndexStatements<'c> {
    streams: Rows<'c>,
    scopes: Rows<'c>,
    commands: Rows<'c>,
    up_to: Statement<'c>,
}

impl<'c> IndexStatements<'c> {
    pub(super) fn prepare(connection: &'c Connection) -> Result<Self, rusqlite::Error> {
        Ok(Self {
            streams: Rows::prepare(connection, INTO_INDEX, "stream_commits (stream, position)", "(?, ?)")?,
            scopes: Rows::prepare(connection, INTO_INDEX, "scope_commits (scope, position)", "(?, ?)")?,
            commands: Rows::prepare(
                connection,
                INTO_INDEX,
                "command_commits (command, stream, position)",
                "(?, ?, ?)",
            )?,
            up_to: connection.prepare("UPDATE indexed SET up_to = ?")?,
        })
    }
}

fn bind_pair(statement: &mut Statement<'_>, at: usize, pair: &(i64, i64)) -> Result<usize, rusqlite::Error> {
    statement.raw_bind_parameter(at, pair.0)?;
    statement.raw_bind_parameter(at + 1, pair.1)?;
    Ok(at + 2)
}

/// What is still to be written.
pub(super) struct Behind {
    fresh: Vec<Entry>,
    fresh_commands: Commands,
    batch: Option<Batch>,
    /// No command above this one stands in the file's index: younger ones, whose ids grow with time, are not looked for.
    last_command: Option<CommandId>,
    batch_commits: usize,
}

struct Batch {
    up_to: Position,
    commands: Commands,
    streams: Vec<(i64, i64)>,
    scopes: Vec<(i64, i64)>,
    by_command: Vec<(CommandId, i64, i64)>,
    /// Rows that are written, over all three lists.
    written: usize,
}

/// How far a transaction took the batch; to be told to `stored` once the transaction is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slice {
    written: usize,
    complete: Option<Position>,
}

impl Behind {
    pub(super) fn new(last_command: Option<CommandId>, batch_commits: usize) -> Self {
        Self { fresh: Vec::new(), fresh_commands: AHashMap::new(), batch: None, last_command, batch_commits }
    }

    pub(super) fn push(&mut self, entry: Entry) {
        self.fresh.push(entry);
        let place = Place { position: entry.position, stream: entry.stream };
        self.fresh_commands.entry(entry.command).or_default().push(place);
    }

    /// Where the command's commits stand that the file's index may not have.
    pub(super) fn places_of(&self, command: CommandId) -> impl Iterator<Item = Place> {
        let leaving = self.batch.as_ref().and_then(|batch| batch.commands.get(&command));
        [leaving, self.fresh_commands.get(&command)].into_iter().flatten().flatten().copied()
    }

    /// Whether the file's index may have the command.
    pub(super) fn may_hold(&self, command: CommandId) -> bool {
        self.last_command.is_some_and(|last| command <= last)
    }

    /// Begins a batch where enough has gathered and none is under way; `true`: it did.
    pub(super) fn begin(&mut self) -> bool {
        if self.batch.is_some() || self.fresh.len() < self.batch_commits {
            return false;
        }
        let fresh = std::mem::take(&mut self.fresh);
        let position = |entry: &Entry| entry.position.get().cast_signed();
        let mut streams: Vec<_> = fresh.iter().map(|entry| (entry.stream, position(entry))).collect();
        let mut scopes: Vec<_> = fresh.iter().map(|entry| (entry.scope, position(entry))).collect();
        let mut by_command: Vec<_> = fresh.iter().map(|entry| (entry.command, entry.stream, position(entry))).collect();
        streams.sort_unstable();
        scopes.sort_unstable();
        by_command.sort_unstable();
        self.last_command = self.last_command.max(by_command.last().map(|(command, ..)| *command));
        self.batch = Some(Batch {
            up_to: fresh.last().map_or(Position::START, |entry| entry.position),
            commands: std::mem::take(&mut self.fresh_commands),
            streams,
            scopes,
            by_command,
            written: 0,
        });
        true
    }

    /// Writes the next rows of the batch, if there is one, beside a group of so many commits.
    pub(super) fn write(
        &self,
        statements: &mut IndexStatements<'_>,
        commits: usize,
    ) -> Result<Option<Slice>, rusqlite::Error> {
        let Some(batch) = &self.batch else { return Ok(None) };
        let total = batch.streams.len() + batch.scopes.len() + batch.by_command.len();
        let rows = SLICE_ROWS_MIN.max(commits * SLICE_ROWS_PER_COMMIT);
        let written = total.min(batch.written + rows);
        // Each list's part of what is written now.
        let part = |from: usize, length: usize| {
            let within = |at: usize| at.saturating_sub(from).min(length);
            within(batch.written)..within(written)
        };
        statements.streams.insert(&batch.streams[part(0, batch.streams.len())], bind_pair)?;
        statements.scopes.insert(&batch.scopes[part(batch.streams.len(), batch.scopes.len())], bind_pair)?;
        let before = batch.streams.len() + batch.scopes.len();
        let commands = &batch.by_command[part(before, batch.by_command.len())];
        statements.commands.insert(commands, |statement, at, (command, stream, position)| {
            statement.raw_bind_parameter(at, command.as_uuid().as_bytes().as_slice())?;
            bind_pair(statement, at + 1, &(*stream, *position))
        })?;
        let complete = (written == total).then_some(batch.up_to);
        if let Some(up_to) = complete {
            statements.up_to.execute([up_to.get().cast_signed()])?;
        }
        Ok(Some(Slice { written, complete }))
    }

    /// The transaction with the slice was stored. Answers up to where the index is complete, where that has changed.
    pub(super) fn stored(&mut self, slice: Slice) -> Option<Position> {
        match &mut self.batch {
            Some(batch) if slice.complete.is_none() => batch.written = slice.written,
            _ => self.batch = None,
        }
        slice.complete
    }
}
