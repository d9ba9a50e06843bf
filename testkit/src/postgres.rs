//! A PostgreSQL server of the test's own, from the system's binaries but never the system's cluster.
//!
//! It creates databases; tables are the product's business.

use crate::process::{Account, TestProcess};
use crate::{TestDir, dir, free_port, tools::Tool};
use nix::sys::signal::Signal;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

const START_DEADLINE: Duration = Duration::from_secs(60);
const STOP_DEADLINE: Duration = Duration::from_secs(5);
const USER: &str = "envforge";

/// How the server is set up.
#[derive(Clone, Debug, Default)]
pub struct PostgresOptions {
    /// Whether commits wait for the disk. Off by default: a killed server loses nothing by it, only a machine without power does.
    pub durable: bool,
    /// More settings, as `("max_connections", "20")`.
    pub settings: Vec<(String, String)>,
}

/// A running PostgreSQL on 127.0.0.1 with an empty database. Ends, and takes its data along, on drop.
#[derive(Debug)]
pub struct Postgres {
    process: TestProcess,
    options: PostgresOptions,
    port: u16,
    dir: TestDir,
}

impl Postgres {
    /// Starts one with the default options and returns once it accepts queries.
    ///
    /// # Panics
    /// When PostgreSQL is not installed (says what to run) or does not start.
    pub fn start() -> Self {
        Self::start_with(PostgresOptions::default())
    }

    /// Starts one and returns once it accepts queries.
    ///
    /// # Panics
    /// When PostgreSQL is not installed (says what to run) or does not start.
    pub fn start_with(options: PostgresOptions) -> Self {
        let bin = Tool::PostgresBin.path();
        let (dir, port) = (TestDir::new(), free_port());
        let template = template(&bin);
        let mut copy = Command::new("cp");
        copy.args(["-a", "--reflink=auto"]).arg(template).arg(dir.join("data"));
        run(&mut copy, None, None);
        Self { process: spawn(&bin, &dir, port, &options), options, port, dir }
    }

    /// An empty database on the one server that all tests of this process share; cheaper than a server where nothing kills it.
    ///
    /// # Panics
    /// When PostgreSQL is not installed (says what to run) or does not start.
    pub fn shared() -> PostgresDatabase {
        static SHARED: OnceLock<Postgres> = OnceLock::new();
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let server = SHARED.get_or_init(Postgres::start);
        PostgresDatabase { url: server.create_database(&format!("test_{}", NEXT.fetch_add(1, Ordering::Relaxed))) }
    }

    /// Where clients connect, e.g. `postgres://envforge@127.0.0.1:20124/envforge`.
    pub fn database_url(&self) -> String {
        self.url_of("envforge")
    }

    /// The port on 127.0.0.1; the same after a restart.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Creates an empty database and returns its URL.
    ///
    /// # Panics
    /// When it exists already.
    pub fn create_database(&self, name: &str) -> String {
        let mut create = Command::new(Tool::PostgresBin.path().join("createdb"));
        create
            .args(["--host", "127.0.0.1", "--username", USER, "--port", &self.port.to_string(), name])
            .env_remove("PGPASSWORD");
        run(&mut create, None, None);
        self.url_of(name)
    }

    /// Ends it, all its processes, with SIGKILL. The data stays.
    pub fn kill9(&mut self) {
        self.process.kill_tree();
    }

    /// Starts it again on the same data and port; ends it with SIGKILL first when it still runs. Returns once recovery is done.
    ///
    /// # Panics
    /// When it does not start.
    pub fn restart(&mut self) {
        self.process.kill_tree();
        self.process = spawn(&Tool::PostgresBin.path(), &self.dir, self.port, &self.options);
    }

    /// What it has logged so far.
    pub fn log(&self) -> String {
        self.process.stderr()
    }

    /// Where its files are, e.g. to search what it wrote there.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Every table of the database at `database_url`, as SQL.
    ///
    /// # Panics
    /// When the server does not answer.
    pub fn dump(&self) -> String {
        let mut dump = Command::new(Tool::PostgresBin.path().join("pg_dump"));
        dump.arg("--dbname").arg(self.database_url()).env_remove("PGPASSWORD");
        run(&mut dump, None, None)
    }

    fn url_of(&self, database: &str) -> String {
        format!("postgres://{USER}@127.0.0.1:{}/{database}", self.port)
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // SIGQUIT ends it without a checkpoint, but lets it give back its System V segment; SIGKILL would not.
        self.process.signal(Signal::SIGQUIT);
        if !self.process.ends_within(STOP_DEADLINE) {
            self.process.signal(Signal::SIGKILL);
        }
        release_memory(&self.dir.join("data"));
    }
}

/// Removes the System V segment of a server that was killed on this data folder: the kernel keeps them, 4,096 at most, until somebody does.
pub(crate) fn release_memory(data: &Path) {
    let text = std::fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
    // The seventh line holds key and id of the segment. A server that ended by itself removed the file.
    if let Some(segment) = text.lines().nth(6).and_then(|line| line.split_whitespace().nth(1)) {
        let _ = Command::new("ipcrm").args(["-m", segment]).stderr(Stdio::null()).status();
    }
}

/// A database on the shared server of this process.
#[derive(Clone, Debug)]
pub struct PostgresDatabase {
    url: String,
}

impl PostgresDatabase {
    /// Where clients connect.
    pub fn database_url(&self) -> &str {
        &self.url
    }
}

fn spawn(bin: &Path, dir: &TestDir, port: u16, options: &PostgresOptions) -> TestProcess {
    let data = dir.join("data");
    let durable = if options.durable { "on" } else { "off" };
    let mut command = Command::new(bin.join("postgres"));
    command.arg("-D").arg(&data).current_dir(dir.path());
    let fixed = [
        ("port", port.to_string()),
        ("listen_addresses", "127.0.0.1".into()),
        ("unix_socket_directories", String::new()),
        // Nothing else is relaxed: without synchronous_commit or full_page_writes a SIGKILL would lose or tear what was acknowledged.
        ("fsync", durable.into()),
        ("shared_buffers", "64MB".into()),
        // In the data folder, so that a killed server leaves nothing in /dev/shm.
        ("dynamic_shared_memory_type", "mmap".into()),
        ("max_connections", "60".into()),
    ];
    let given = options.settings.iter().map(|(name, value)| (name.as_str(), value.clone()));
    for (name, value) in fixed.into_iter().chain(given) {
        command.arg("-c").arg(format!("{name}={value}"));
    }
    let mut process = TestProcess::spawn_as("postgres", &command, dir.path(), account().as_ref());
    let server = process.id();
    process.wait_ready("readiness", START_DEADLINE, |_| is_ready(&data, server).then_some(()));
    process
}

/// The first line of `postmaster.pid` names the process, the eighth its state; a file left by a killed server names another process.
fn is_ready(data: &Path, server: u32) -> bool {
    let text = std::fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
    let mut lines = text.lines();
    lines.next().and_then(|line| line.trim().parse().ok()) == Some(server)
        && lines.nth(6).is_some_and(|line| line.trim() == "ready")
}

/// PostgreSQL refuses to run as root: as root we lend it the account it was installed with, or nobody's.
fn account() -> Option<Account> {
    if !nix::unistd::geteuid().is_root() {
        return None;
    }
    let user = ["postgres", "nobody"]
        .into_iter()
        .find_map(|name| nix::unistd::User::from_name(name).ok().flatten())
        .expect("every Unix has the user `nobody`");
    Some(Account { user: user.uid.as_raw(), group: user.gid.as_raw() })
}

/// A data folder fresh from `initdb`, made once per version and machine, since that takes seconds and a copy takes none.
fn template(bin: &Path) -> PathBuf {
    let version = run(Command::new(bin.join("postgres")).arg("--version"), None, None);
    let version = version.split_whitespace().nth(2).unwrap_or("unknown").to_owned();
    let account = account();
    let owner = account.as_ref().map_or_else(|| nix::unistd::geteuid().as_raw(), |account| account.user);
    let finished = dir::base().join(format!("postgres-template-{version}-{owner}"));
    let lock = dir::base().join("postgres-template.lock");
    let lock = File::create(&lock).unwrap_or_else(|error| panic!("cannot write {}: {error}", lock.display()));
    lock.lock().unwrap_or_else(|error| panic!("cannot lock the template of PostgreSQL: {error}"));
    if finished.is_dir() {
        return finished;
    }
    let partial = dir::base().join("postgres-template.partial");
    let _ = std::fs::remove_dir_all(&partial);
    let made = std::fs::create_dir(&partial).and_then(|()| match &account {
        Some(account) => std::os::unix::fs::chown(&partial, Some(account.user), Some(account.group)),
        None => Ok(()),
    });
    made.unwrap_or_else(|error| panic!("cannot make {}: {error}", partial.display()));
    let mut initdb = Command::new(bin.join("initdb"));
    initdb.arg("--pgdata").arg(&partial).args(["--username", USER, "--auth=trust", "--encoding=UTF8", "--no-locale"]);
    // Segments of 1 MiB make a copy small: 16 MiB, the default, is most of an empty cluster.
    initdb.args(["--no-sync", "--wal-segsize=1", "--no-instructions"]).current_dir("/");
    run(&mut initdb, account.as_ref(), None);
    let mut single = Command::new(bin.join("postgres"));
    single.args(["--single", "-D"]).arg(&partial).arg("postgres").current_dir("/");
    run(&mut single, account.as_ref(), Some("CREATE DATABASE envforge\n"));
    std::fs::rename(&partial, &finished).unwrap_or_else(|error| panic!("cannot make {}: {error}", finished.display()));
    finished
}

/// Runs to the end and returns standard output.
fn run(command: &mut Command, account: Option<&Account>, input: Option<&str>) -> String {
    use std::io::Write;
    if let Some(account) = account {
        command.uid(account.user).gid(account.group);
    }
    let stdin = if input.is_some() { Stdio::piped() } else { Stdio::null() };
    let child = command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
    if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
        // A program that ends without reading says why on standard error, which is shown below.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().unwrap_or_else(|error| panic!("cannot wait for {command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?} failed ({}):\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}
