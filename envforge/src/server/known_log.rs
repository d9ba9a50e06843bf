//! The log, held against what this installation remembers of it.
//!
//! Whoever restores an older log, or puts another in its place, opens again what was revoked since. A process keeps its
//! views in memory and would not notice after a restart, so nothing starts on a log before it was held against what
//! outlives processes: the checkpoints of the SQL read models, and for roles without a database a small file. Not here:
//! a log that changes while it is followed, which every follower notices by itself.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use envforge_domain::commit::Position;
use envforge_eventlog::{Checkpoint, CheckpointProof, LogError, LogIdentity, SharedLog};
use envforge_projections::Hot;
use envforge_projections::sql::{Database, ModelName};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

/// Between two writes of a checkpoint file.
const KEEP_INTERVAL: Duration = Duration::from_secs(1);

/// What a log is held against before anything starts on it.
pub(crate) struct Memory<'a> {
    /// Read models, where the process has them.
    pub(crate) database: Option<&'a Database>,
    /// The command that folds a read model anew, for errors.
    pub(crate) rebuild: &'a str,
    pub(crate) files: &'a [CheckpointFile],
}

/// A log that is no older than what is remembered of it. A control plane starts on nothing else.
pub(crate) struct KnownLog(SharedLog);

impl KnownLog {
    pub(crate) async fn hold(log: SharedLog, memory: &Memory<'_>) -> anyhow::Result<Self> {
        if let Some(database) = memory.database {
            hold_against_read_models(&log, database, memory.rebuild).await?;
        }
        for file in memory.files {
            hold_against_file(&log, file).await?;
        }
        Ok(Self(log))
    }

    pub(crate) fn log(&self) -> &SharedLog {
        &self.0
    }
}

async fn hold_against_read_models(log: &SharedLog, database: &Database, rebuild: &str) -> anyhow::Result<()> {
    let mut refused = Vec::new();
    let mut why = None;
    for model in ModelName::ALL {
        let checkpoint = database.checkpoint(model).await.context("the read models' checkpoints")?;
        match log.verify(&checkpoint).await {
            Ok(()) => {}
            Err(LogError::NotTheSameLog(error)) => {
                refused.push(model.token());
                why.get_or_insert(error);
            }
            Err(error) => return Err(error).context("the log could not be held against the read models"),
        }
    }
    let Some(why) = why else { return Ok(()) };
    anyhow::bail!(
        "the event log is not the one that the read models know ({}): {why}. Nothing is served from it, since an older \
         log opens again what was revoked. Put the right log back; where this one is right, run `{rebuild}` for each of \
         these read models",
        refused.join(", ")
    )
}

async fn hold_against_file(log: &SharedLog, file: &CheckpointFile) -> anyhow::Result<()> {
    let Some(checkpoint) = file.read()? else { return Ok(()) };
    match log.verify(&checkpoint).await {
        Ok(()) => Ok(()),
        Err(LogError::NotTheSameLog(why)) => anyhow::bail!(
            "the event log is not the one that this role followed before: {why}. Nothing is served from it, since an \
             older log opens again what was revoked. Put the right log back; where this one is right, remove {}",
            file.0.display()
        ),
        Err(error) => Err(error).context("the log could not be held against its checkpoint file"),
    }
}

/// Where a role without a database keeps how far it has followed the log.
#[derive(Clone, Debug)]
pub(crate) struct CheckpointFile(PathBuf);

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    position: u64,
    log_identity: String,
    /// SHA-256 of the commit at `position`, in hexadecimal.
    digest: String,
}

impl CheckpointFile {
    pub(crate) fn of(state: &Path, role: &str) -> Self {
        Self(state.join(format!("{role}.checkpoint.json")))
    }

    fn read(&self) -> anyhow::Result<Option<Checkpoint>> {
        let damaged = || format!("{} is no checkpoint; remove it where the log is known to be right", self.0.display());
        let text = match std::fs::read_to_string(&self.0) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| self.0.display().to_string()),
        };
        let kept: Kept = serde_json::from_str(&text).with_context(damaged)?;
        let mut digest = [0; 32];
        hex::decode_to_slice(&kept.digest, &mut digest).with_context(damaged)?;
        let proof = Some(CheckpointProof { identity: LogIdentity(kept.log_identity), digest });
        Ok(Some(Checkpoint { position: Position::new(kept.position), proof }))
    }

    /// Puts the checkpoint in the file's place at once: a crash leaves the old or the new one.
    fn write(&self, checkpoint: &Checkpoint) -> std::io::Result<()> {
        let Some(proof) = &checkpoint.proof else { return Ok(()) };
        let kept = Kept {
            position: checkpoint.position.get(),
            log_identity: proof.identity.0.clone(),
            digest: hex::encode(proof.digest),
        };
        let text = serde_json::to_vec(&kept)?;
        // Two processes of one role on this machine may share the folder.
        let draft = self.0.with_extension(format!("{}.new", std::process::id()));
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
        file.write_all(&text)?;
        file.sync_all()?;
        std::fs::rename(&draft, &self.0)?;
        self.0.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    }
}

/// The checkpoint files of a process, written while its views move on.
pub(crate) struct Keeper {
    files: Vec<CheckpointFile>,
    hot: Arc<Hot>,
    kept: Position,
}

impl Keeper {
    /// Writes the files a first time, so that a folder of no use is found at the start.
    pub(crate) async fn start(state: &Path, files: Vec<CheckpointFile>, hot: Arc<Hot>) -> anyhow::Result<Self> {
        if !files.is_empty() {
            let folder = || format!("the state folder {}; choose another with --state", state.display());
            DirBuilder::new().recursive(true).mode(0o700).create(state).with_context(folder)?;
        }
        let mut keeper = Self { files, hot, kept: Position::START };
        let checkpoint = keeper.hot.checkpoint();
        keeper.keep(checkpoint).await.with_context(|| format!("the state folder {}", state.display()))?;
        Ok(keeper)
    }

    /// Until `stop`, and once more then.
    pub(crate) async fn run(mut self, stop: CancellationToken) -> anyhow::Result<()> {
        while !self.files.is_empty() && !stop.is_cancelled() {
            match stop.run_until_cancelled(self.hot.checkpoint_beyond(self.kept)).await {
                Some(Ok(checkpoint)) => self.keep_or_warn(checkpoint).await,
                // The views have stopped; they say why, and refuse everything.
                Some(Err(_)) | None => break,
            }
            stop.run_until_cancelled(tokio::time::sleep(KEEP_INTERVAL)).await;
        }
        stop.cancelled().await;
        let last = self.hot.checkpoint();
        self.keep_or_warn(last).await;
        Ok(())
    }

    async fn keep_or_warn(&mut self, checkpoint: Checkpoint) {
        // An older file still finds every older log but the newest ones: no reason to stop serving.
        if let Err(error) = self.keep(checkpoint).await {
            metrics::counter!("envforge_checkpoint_file_failures_total").increment(1);
            tracing::error!(%error, "the log's checkpoint could not be written");
        }
    }

    async fn keep(&mut self, checkpoint: Checkpoint) -> anyhow::Result<()> {
        if checkpoint.position <= self.kept || self.files.is_empty() {
            return Ok(());
        }
        let (position, files) = (checkpoint.position, self.files.clone());
        let write = move || files.iter().try_for_each(|file| file.write(&checkpoint));
        tokio::task::spawn_blocking(write).await??;
        self.kept = position;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_checkpoint_is_read_back_as_it_was_written_and_a_damaged_one_is_refused() {
        let state = tempfile::tempdir().unwrap();
        let file = CheckpointFile::of(state.path(), "gateway");
        assert_eq!(file.read().unwrap(), None);
        let proof = Some(CheckpointProof { identity: LogIdentity("one".to_owned()), digest: [7; 32] });
        let checkpoint = Checkpoint { position: Position::new(12), proof };
        file.write(&checkpoint).unwrap();
        assert_eq!(file.read().unwrap(), Some(checkpoint));
        assert_eq!(std::fs::read_dir(state.path()).unwrap().count(), 1, "no draft is left");
        std::fs::write(state.path().join("gateway.checkpoint.json"), "{\"position\":1").unwrap();
        assert!(file.read().unwrap_err().to_string().contains("is no checkpoint"));
    }
}
