//! Where a log under test lives: a directory, or a nats-server of its own.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use envforge_eventlog::jetstream::{self, JetStreamLog};
use envforge_eventlog::sqlite::{self, SqliteLog};
use envforge_eventlog::{LogError, SharedLog};
use envforge_testkit::{NatsOptions, NatsServer, TestDir};

pub const DEADLINE: Duration = Duration::from_secs(30);

pub enum Site {
    Sqlite(TestDir),
    JetStream(Box<Mutex<NatsServer>>),
}

/// A copy of everything a log has stored.
pub struct OldCopy(TestDir);

impl Site {
    pub fn sqlite() -> Self {
        Self::Sqlite(TestDir::new())
    }

    /// Syncs before each acknowledgement, as in production.
    pub fn jetstream() -> Self {
        let options = NatsOptions { sync_interval: None, ..NatsOptions::default() };
        Self::JetStream(Box::new(Mutex::new(NatsServer::start_with(&options))))
    }

    pub async fn open(&self) -> SharedLog {
        open(&self.address()).await
    }

    /// What another process needs to open the same log: a directory or a URL.
    pub fn address(&self) -> String {
        match self {
            Self::Sqlite(directory) => directory.join("log").display().to_string(),
            Self::JetStream(server) => server.lock().unwrap().url(),
        }
    }

    pub fn server(&self) -> std::sync::MutexGuard<'_, NatsServer> {
        match self {
            Self::Sqlite(_) => panic!("the embedded log has no server"),
            Self::JetStream(server) => server.lock().unwrap(),
        }
    }

    fn store(&self) -> PathBuf {
        match self {
            Self::Sqlite(directory) => directory.join("log"),
            Self::JetStream(server) => server.lock().unwrap().store_dir(),
        }
    }

    /// Stops whatever has the store open.
    async fn stop(&self, log: SharedLog) {
        drop(log);
        match self {
            // The writer closes the file after its last sender is gone; whoever opens it next waits for the lock.
            Self::Sqlite(_) => drop(open(&self.address()).await),
            Self::JetStream(server) => server.lock().unwrap().kill9(),
        }
    }

    async fn start(&self) -> SharedLog {
        if let Self::JetStream(server) = self {
            server.lock().unwrap().restart();
        }
        self.open().await
    }

    /// Kills the server, or closes the file, and opens the log again.
    pub async fn restart(&self, log: SharedLog) -> SharedLog {
        self.stop(log).await;
        self.start().await
    }

    pub async fn copy(&self, log: SharedLog) -> (SharedLog, OldCopy) {
        self.stop(log).await;
        let copy = TestDir::new();
        copy_tree(&self.store(), &copy.join("copy"));
        (self.start().await, OldCopy(copy))
    }

    pub async fn put_back(&self, log: SharedLog, copy: &OldCopy) -> SharedLog {
        self.stop(log).await;
        remove_tree(&self.store()).await;
        copy_tree(&copy.0.join("copy"), &self.store());
        self.start().await
    }

    /// The same address, but a new log.
    pub async fn begin_anew(&self, log: SharedLog) -> SharedLog {
        self.stop(log).await;
        remove_tree(&self.store()).await;
        self.start().await
    }
}

/// Opens the log at an address, as any process would. Waits for a former owner of the file to let go of it.
pub async fn open(address: &str) -> SharedLog {
    if address.starts_with("nats://") {
        return Arc::new(JetStreamLog::open(jetstream::Config::new(address)).await.unwrap());
    }
    let started = Instant::now();
    loop {
        match SqliteLog::open(sqlite::Config::new(address)).await {
            Ok(log) => return Arc::new(log),
            Err(LogError::Open(reason)) if reason.contains("in use") && started.elapsed() < DEADLINE => {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Whoever had the store open may still be busy closing it.
async fn remove_tree(path: &Path) {
    let started = Instant::now();
    while let Err(error) = std::fs::remove_dir_all(path) {
        assert!(started.elapsed() < DEADLINE, "cannot remove {}: {error}", path.display());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
