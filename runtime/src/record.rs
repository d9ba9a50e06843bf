//! What a host must still know after a kill -9: which runtime it started, by which marker its processes are found, and
//! which epoch was put to sleep for good. One file per workspace, replaced atomically and synced.

use std::fmt::Display;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::marker::PhantomData;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use envforge_domain::ids::WorkspaceId;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::failure::OpenError;
use crate::process::{Family, Identity, Marker};
use crate::unix_user::UserBlock;

const RECORD_BYTES_MAX: u64 = 1024 * 1024;
/// Groups of one runtime that are remembered: the newest ones.
const GROUPS_MAX: usize = 256;

/// The content of one file.
#[derive(Clone, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Record {
    /// Something may run.
    Running {
        epoch: u64,
        marker: Marker,
        /// Start times count from this boot.
        boot: String,
        groups: Vec<Identity>,
        /// The process that holds it, where that is not the host itself.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        keeper: Option<Identity>,
    },
    /// Nothing runs, and no epoch up to this one may run again.
    Over { epoch: u64 },
}

/// Where the records of a host lie.
pub(crate) struct Records<K = WorkspaceId, R = Record> {
    directory: PathBuf,
    of: PhantomData<fn(K) -> R>,
}

impl<K, R> Clone for Records<K, R> {
    fn clone(&self) -> Self {
        Self::in_directory(self.directory.clone())
    }
}

impl<K, R> Records<K, R> {
    pub(crate) fn in_directory(directory: PathBuf) -> Self {
        Self { directory, of: PhantomData }
    }
}

impl<K: Display + FromStr, R: Serialize + DeserializeOwned> Records<K, R> {
    /// Every record of the directory. Fails on the first that cannot be read: what it would have named may still run.
    pub(crate) fn read_all(&self) -> Result<Vec<(K, R)>, OpenError> {
        let state = |source| OpenError::State { path: self.directory.clone(), source };
        let mut records = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(state)? {
            let path = entry.map_err(state)?.path();
            let unreadable = |reason: String| OpenError::Record { path: path.clone(), reason };
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("json") => {}
                // A write that never came to its rename.
                Some("new") => {
                    fs::remove_file(&path).map_err(state)?;
                    continue;
                }
                _ => continue,
            }
            let key = path
                .file_stem()
                .and_then(|stem| stem.to_str())
                .and_then(|stem| stem.parse::<K>().ok())
                .ok_or_else(|| unreadable("its name is no id of the kind that it must be".to_owned()))?;
            let mut text = Vec::new();
            File::open(&path)
                .and_then(|file| file.take(RECORD_BYTES_MAX).read_to_end(&mut text))
                .map_err(|error| unreadable(error.to_string()))?;
            let record = serde_json::from_slice(&text).map_err(|error| unreadable(error.to_string()))?;
            records.push((key, record));
        }
        Ok(records)
    }

    /// One record; `None` where there is none.
    pub(crate) fn read(&self, key: &K) -> io::Result<Option<R>> {
        let file = match File::open(self.path(key)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let mut text = Vec::new();
        file.take(RECORD_BYTES_MAX).read_to_end(&mut text)?;
        Ok(Some(serde_json::from_slice(&text)?))
    }

    pub(crate) fn write(&self, key: K, record: &R) -> io::Result<()> {
        let path = self.path(&key);
        let replacement = path.with_extension("new");
        let text = serde_json::to_vec(record)?;
        let mut file = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&replacement)?;
        file.write_all(&text)?;
        file.sync_all()?;
        fs::rename(&replacement, &path)?;
        self.sync()
    }

    pub(crate) fn remove(&self, key: K) -> io::Result<()> {
        match fs::remove_file(self.path(&key)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(()) => self.sync(),
        }
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.directory)?.sync_all()
    }

    fn path(&self, key: &K) -> PathBuf {
        self.directory.join(format!("{key}.json"))
    }
}

/// What a keeper and all that it starts are found by.
#[derive(Clone)]
pub(crate) struct KeeperMark {
    pub(crate) marker: Marker,
    pub(crate) keeper: Identity,
}

/// The record of a runtime that may run, kept up to date as groups come.
#[derive(Clone)]
pub(crate) struct RunningRecord(Arc<Inner>);

struct Inner {
    records: Records,
    workspace: WorkspaceId,
    epoch: u64,
    marker: Marker,
    boot: String,
    groups: Mutex<Vec<Identity>>,
    users: Option<UserBlock>,
    keeper: Option<Identity>,
}

impl RunningRecord {
    /// INVARIANT: the marker is on disk before the first process that carries it starts. A keeper carries the marker itself.
    pub(crate) async fn begin(
        records: Records,
        workspace: WorkspaceId,
        epoch: u64,
        boot: String,
        users: Option<UserBlock>,
        keeper: Option<KeeperMark>,
    ) -> io::Result<Self> {
        let (marker, keeper) = match keeper {
            Some(KeeperMark { marker, keeper }) => (marker, Some(keeper)),
            None => (Marker::random(), None),
        };
        let groups = Mutex::default();
        let record = Self(Arc::new(Inner { records, workspace, epoch, marker, boot, groups, users, keeper }));
        record.write().await?;
        Ok(record)
    }

    pub(crate) fn marker(&self) -> &Marker {
        &self.0.marker
    }

    /// All processes of the runtime.
    pub(crate) fn family(&self) -> Family {
        Family::of_runtime(self.0.marker.clone(), self.groups().clone(), self.0.users.clone())
    }

    /// The processes of one service.
    pub(crate) fn family_of(&self, service: &str) -> Family {
        Family::of_service(self.0.marker.clone(), service, self.0.users.clone())
    }

    pub(crate) async fn add_group(&self, leader: Identity) -> io::Result<()> {
        {
            let mut groups = self.groups();
            if groups.len() >= GROUPS_MAX {
                groups.remove(0);
            }
            groups.push(leader);
        }
        self.write().await
    }

    fn groups(&self) -> std::sync::MutexGuard<'_, Vec<Identity>> {
        self.0.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn write(&self) -> io::Result<()> {
        let inner = Arc::clone(&self.0);
        blocking(move || {
            // Held while writing: two services that start at once must not replace the file by an older one.
            let groups = inner.groups.lock().unwrap_or_else(PoisonError::into_inner);
            let record = Record::Running {
                epoch: inner.epoch,
                marker: inner.marker.clone(),
                boot: inner.boot.clone(),
                groups: groups.clone(),
                keeper: inner.keeper,
            };
            inner.records.write(inner.workspace, &record)
        })
        .await
    }
}

/// Names the current boot, so that start times of another one are not compared with this one's.
pub(crate) fn boot() -> io::Result<String> {
    fs::read_to_string(Path::new("/proc/sys/kernel/random/boot_id")).map(|text| text.trim().to_owned())
}

/// Runs file work where it may block.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(io::Error::other(error)),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn workspace() -> WorkspaceId {
        WorkspaceId::from_uuid(uuid::Uuid::from_u128(7))
    }

    #[test]
    fn a_record_is_read_back_and_half_a_write_is_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let records: Records = Records::in_directory(directory.path().to_owned());
        records.write(workspace(), &Record::Over { epoch: 3 }).unwrap();
        fs::write(directory.path().join(format!("{}.new", workspace())), b"{\"sta").unwrap();
        let read = records.read_all().unwrap();
        assert!(matches!(read.as_slice(), [(id, Record::Over { epoch: 3 })] if *id == workspace()));
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_record_that_cannot_be_read_stops_the_start_and_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let records: Records = Records::in_directory(directory.path().to_owned());
        for text in ["", "{}", r#"{"state":"running","epoch":1,"marker":"","boot":"b","groups":[]}"#] {
            let path = directory.path().join(format!("{}.json", workspace()));
            fs::write(&path, text).unwrap();
            match records.read_all() {
                Err(OpenError::Record { path: named, .. }) => assert_eq!(named, path),
                _ => panic!("`{text}` was accepted"),
            }
        }
    }
}
