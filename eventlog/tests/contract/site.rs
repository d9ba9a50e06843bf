//! Where a log under test lives: a directory, or a nats-server of its own.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use envforge_eventlog::jetstream::{self, JetStreamLog};
use envforge_eventlog::sqlite::{self, SqliteLog};
use envforge_eventlog::{LogError, SharedLog};
use envforge_testkit::{NatsOptions, NatsServer, TestDir, free_port};

/// Ample: a cluster that lost a server elects new leaders for some seconds, in which nobody hears anything.
pub const DEADLINE: Duration = Duration::from_secs(60);

pub enum Site {
    Sqlite(TestDir),
    /// One server, or a cluster with as many replicas as servers.
    JetStream(Mutex<Vec<NatsServer>>),
}

/// A copy of everything a log has stored.
pub struct OldCopy(TestDir);

impl Site {
    pub fn sqlite() -> Self {
        Self::Sqlite(TestDir::new())
    }

    pub fn jetstream() -> Self {
        Self::JetStream(Mutex::new(vec![NatsServer::start_with(&production())]))
    }

    pub fn jetstream_cluster() -> Self {
        let routes: Vec<String> = (0..3).map(|_| format!("127.0.0.1:{}", free_port())).collect();
        let all = routes.iter().map(|route| format!("nats://{route}")).collect::<Vec<_>>().join(", ");
        let servers = routes.iter().map(|route| {
            let extra_configuration = format!("cluster {{ name: test, listen: \"{route}\", routes: [{all}] }}");
            NatsServer::start_with(&NatsOptions { extra_configuration, ..production() })
        });
        Self::JetStream(Mutex::new(servers.collect()))
    }

    pub async fn open(&self) -> SharedLog {
        open(&self.address()).await
    }

    /// What another process needs to open the same log: a directory, or URLs.
    pub fn address(&self) -> String {
        match self {
            Self::Sqlite(directory) => directory.join("log").display().to_string(),
            Self::JetStream(servers) => {
                servers.lock().unwrap().iter().map(NatsServer::url).collect::<Vec<_>>().join(",")
            }
        }
    }

    pub fn servers(&self) -> std::sync::MutexGuard<'_, Vec<NatsServer>> {
        match self {
            Self::Sqlite(_) => panic!("the embedded log has no server"),
            Self::JetStream(servers) => servers.lock().unwrap(),
        }
    }

    fn stores(&self) -> Vec<PathBuf> {
        match self {
            Self::Sqlite(directory) => vec![directory.join("log")],
            Self::JetStream(servers) => servers.lock().unwrap().iter().map(NatsServer::store_dir).collect(),
        }
    }

    /// Stops whatever has the store open.
    async fn stop(&self, log: SharedLog) {
        drop(log);
        match self {
            // The former owner closes the file in its own time; whoever opens it next waits for the lock.
            Self::Sqlite(_) => open_file(&self.address()).await.close().await,
            Self::JetStream(servers) => servers.lock().unwrap().iter_mut().for_each(NatsServer::kill9),
        }
    }

    async fn start(&self) -> SharedLog {
        if let Self::JetStream(servers) = self {
            servers.lock().unwrap().iter_mut().for_each(NatsServer::restart);
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
        for (index, store) in self.stores().iter().enumerate() {
            copy_tree(store, &copy.join(index.to_string()));
        }
        (self.start().await, OldCopy(copy))
    }

    pub async fn put_back(&self, log: SharedLog, copy: &OldCopy) -> SharedLog {
        self.stop(log).await;
        for (index, store) in self.stores().iter().enumerate() {
            remove_tree(store).await;
            copy_tree(&copy.0.join(index.to_string()), store);
        }
        self.start().await
    }

    /// The same address, but a new log.
    pub async fn begin_anew(&self, log: SharedLog) -> SharedLog {
        self.stop(log).await;
        for store in self.stores() {
            remove_tree(&store).await;
        }
        self.start().await
    }
}

/// Opens the log at an address, as any process would. Waits for a former owner of the file to let go of it.
pub async fn open(address: &str) -> SharedLog {
    if address.starts_with("nats://") {
        let servers: Vec<String> = address.split(',').map(str::to_owned).collect();
        let replicas = servers.len();
        let config = jetstream::Config { servers, replicas, ..jetstream::Config::new(String::new()) };
        return Arc::new(JetStreamLog::open(config).await.unwrap());
    }
    Arc::new(open_file(address).await)
}

async fn open_file(directory: &str) -> SqliteLog {
    open_with(sqlite::Config::new(directory)).await
}

/// Opens an embedded log once its former owner let go of it.
pub async fn open_with(config: sqlite::Config) -> SqliteLog {
    let started = Instant::now();
    loop {
        match SqliteLog::open(config.clone()).await {
            Ok(log) => return log,
            Err(LogError::Open(reason)) if reason.contains("in use") && started.elapsed() < DEADLINE => {
                tokio::time::sleep(Duration::from_millis(5)).await; // pause: between two looks
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// Syncs before each acknowledgement.
fn production() -> NatsOptions {
    NatsOptions { sync_interval: None, ..NatsOptions::default() }
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
        tokio::time::sleep(Duration::from_millis(5)).await; // pause: between two looks
    }
}
