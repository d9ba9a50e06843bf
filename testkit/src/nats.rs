//! A nats-server with JetStream of the test's own.
//!
//! It makes no stream and no connection: that is the product's business.

use crate::process::TestProcess;
use crate::{TestDir, free_port, tools::Tool};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

const START_DEADLINE: Duration = Duration::from_secs(30);

/// How the server is set up.
#[derive(Clone, Debug)]
pub struct NatsOptions {
    /// How often JetStream's files are synced to disk; `None`: before each acknowledgement, as in production.
    pub sync_interval: Option<Duration>,
    /// The most memory that memory streams may take, in bytes.
    pub memory_bytes_max: u64,
    /// The most disk that file streams may take, in bytes.
    pub store_bytes_max: u64,
    /// Lines added to the configuration file as they stand, e.g. an `authorization { ... }` block.
    pub extra_configuration: String,
}

impl Default for NatsOptions {
    /// Syncs every two minutes (nats-server's own default): a killed server loses nothing by it, only a machine without power does.
    fn default() -> Self {
        Self {
            sync_interval: Some(Duration::from_secs(120)),
            memory_bytes_max: 256 << 20,
            store_bytes_max: 4 << 30,
            extra_configuration: String::new(),
        }
    }
}

/// A running nats-server on 127.0.0.1. Ends, and takes its store along, on drop.
#[derive(Debug)]
pub struct NatsServer {
    process: TestProcess,
    port: u16,
    monitor_port: u16,
    dir: TestDir,
}

impl NatsServer {
    /// Starts one with the default options and returns once JetStream is on.
    ///
    /// # Panics
    /// When nats-server is not installed (says what to run) or does not start.
    pub fn start() -> Self {
        Self::start_with(&NatsOptions::default())
    }

    /// Starts one and returns once JetStream is on.
    ///
    /// # Panics
    /// When nats-server is not installed (says what to run) or does not start.
    pub fn start_with(options: &NatsOptions) -> Self {
        let (dir, port, monitor_port) = (TestDir::new(), free_port(), free_port());
        let configuration = configuration(options, port, monitor_port, &dir);
        let path = dir.join("nats.conf");
        std::fs::write(&path, configuration).unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
        Self { process: spawn(&dir, port), port, monitor_port, dir }
    }

    /// Whether the server says that it is healthy: of a cluster's, that it has all that its streams have (`/healthz`, what
    /// NATS names for going on with the next server of a rolling restart).
    pub fn is_healthy(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.monitor_port)) else { return false };
        let mut status = String::new();
        stream.set_read_timeout(Some(Duration::from_secs(5))).is_ok()
            && stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").is_ok()
            && BufReader::new(stream).read_line(&mut status).is_ok()
            && status.contains(" 200 ")
    }

    /// Where clients connect, e.g. `nats://127.0.0.1:20123`.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// The port on 127.0.0.1; the same after a restart.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The process id, e.g. to stop it with SIGSTOP and make it a server that does not answer.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Ends it with SIGKILL, as at any moment of its work. The store stays.
    pub fn kill9(&mut self) {
        self.process.kill9();
    }

    /// Starts it again on the same store and port; ends it with SIGKILL first when it still runs.
    ///
    /// # Panics
    /// When it does not start.
    pub fn restart(&mut self) {
        self.process.kill9();
        self.process = spawn(&self.dir, self.port);
    }

    /// Ends it with SIGKILL and throws its store away, as when a disk was replaced; `restart` then begins from nothing.
    pub fn lose_store(&mut self) {
        self.process.kill9();
        let store = self.dir.join("store");
        std::fs::remove_dir_all(&store).unwrap_or_else(|error| panic!("cannot remove {}: {error}", store.display()));
    }

    /// The folder of its store, e.g. to put an older copy in its place.
    pub fn store_dir(&self) -> std::path::PathBuf {
        self.dir.join("store")
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.process.stderr()
    }
}

fn configuration(options: &NatsOptions, port: u16, monitor_port: u16, dir: &TestDir) -> String {
    let sync = match options.sync_interval {
        None => "always".to_owned(),
        Some(interval) => format!("\"{}ms\"", interval.as_millis()),
    };
    let mut text = String::new();
    let _ = writeln!(text, "listen: \"127.0.0.1:{port}\"");
    let _ = writeln!(text, "http: \"127.0.0.1:{monitor_port}\"");
    let _ = writeln!(text, "server_name: \"test-{port}\"");
    let _ = writeln!(text, "jetstream {{");
    let _ = writeln!(text, "  store_dir: \"{}\"", dir.join("store").display());
    let _ = writeln!(text, "  sync_interval: {sync}");
    let _ = writeln!(text, "  max_memory_store: {}", options.memory_bytes_max);
    let _ = writeln!(text, "  max_file_store: {}", options.store_bytes_max);
    let _ = writeln!(text, "}}");
    let _ = writeln!(text, "{}", options.extra_configuration);
    text
}

fn spawn(dir: &TestDir, port: u16) -> TestProcess {
    let mut command = Command::new(Tool::NatsServer.path());
    command.arg("--config").arg(dir.join("nats.conf")).current_dir(dir.path());
    let mut process = TestProcess::spawn("nats-server", &command, dir.path());
    process.wait_ready("JetStream", START_DEADLINE, |_| jetstream_is_on(port).then_some(()));
    process
}

/// The server greets each connection with a line `INFO {...}`; it says there whether JetStream is on.
fn jetstream_is_on(port: u16) -> bool {
    let Ok(stream) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    if stream.set_read_timeout(Some(Duration::from_secs(1))).is_err() {
        return false;
    }
    let mut greeting = String::new();
    BufReader::new(stream).read_line(&mut greeting).is_ok() && greeting.replace(' ', "").contains("\"jetstream\":true")
}
