//! Shells on this host: a terminal, a command or SSH in a workspace, whether its runtime is awake or not.
//!
//! Layout, beside what the runtime has: `workspaces/<workspace>/shell/{home,work}`, a home and a clone of the repository that are the
//! team's own and that no wake touches, and `shells/<shell>.json`, what to find again after a kill -9. Each shell is a family of processes
//! of its own, with an environment that holds no secret. Lasting terminals are tmux sessions, one server a person and workspace; they end
//! with whoever may no more, and with this process.
//!
//! Not here: whether somebody may (the caller has asked), and carrying bytes (`shell_process`).

mod job;
mod lasting;

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use envforge_domain::ids::{JobRunId, OrgId, ProjectId, ShellId, WorkspaceId};
use envforge_domain::limits::SHELLS_OF_WORKSPACE_MAX;
use envforge_domain::project::GitCredential;
use envforge_domain::shell::{ShellFacts, ShellFailure, ShellInput, ShellOrder, ShellOutput, ShellWhat, TerminalSize};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::accounts;
use crate::checkout::Checkout;
use crate::environment::{Environment, MARKER_VARIABLE};
use crate::failure::{CheckoutFailure, OpenError};
use crate::git_login::{GitLogin, LoginSocket, ShellLogin, ShellLogins};
use crate::output::private_directory;
use crate::process::{Family, Identity, KILL_PATIENCE, Marker, Survivors};
use crate::record::{Records, blocking};
use crate::shell_process::{CHUNKS_MAX, Plan, Started};
use crate::shell_ssh;
use crate::terminal::Who;
use crate::unix_user::{self, Handing, UnixUser, UserBlock};
use crate::wake::Host;

use lasting::{Lasting, Turns, Whose};

pub(crate) use job::{name_of_job, run_job};

/// Shells of all workspaces together.
const SHELLS_MAX: usize = 512;
/// For what an earlier process left behind.
const LEFTOVER_GRACE: Duration = Duration::from_millis(500);
/// Bytes of a path at which sockets may lie, the shortest of common systems.
const SOCKET_PATH_BYTES_MAX: usize = 100;
/// Whom git trusts to vouch for servers, where the host says so.
const CA_VARIABLE: &str = "GIT_SSL_CAINFO";

/// What a host keeps of its shells.
pub(crate) struct Shells {
    records: Records<ShellId, ShellRecord>,
    open: Mutex<HashMap<WorkspaceId, usize>>,
    lasting: Mutex<HashMap<Whose, Lasting>>,
    /// Whoever begins what lasts of somebody, one at a time.
    beginnings: Turns<Whose>,
    /// One clone of a workspace at a time.
    clones: Turns<WorkspaceId>,
    /// Where git asks in the shells that somebody has open in a workspace.
    logins: ShellLogins,
    /// Private, with a path short enough for sockets below it.
    sockets: PathBuf,
    stop: CancellationToken,
    tasks: TaskTracker,
    jobs: Records<JobRunId, JobRecord>,
    /// What has ended and must still be told: of an earlier process of this host, and of this one where `keeps_ends` is set.
    untold: watch::Sender<Vec<UntoldEnd>>,
    /// All of which there is a record, or is about to be: what is open, and whose end is untold.
    known: Mutex<HashMap<EndedShell, ShellPlace>>,
    keeps_ends: AtomicBool,
}

/// What must be found again.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ShellRecord {
    marker: Marker,
    boot: String,
    groups: Vec<Identity>,
    /// Whom it runs as, where workspaces have users of their own.
    block: Option<UserBlock>,
    /// Of a shell that somebody opened; none of what lasts beyond it.
    opened: Option<RecordedPlace>,
}

/// Whose end is to be told, and where.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RecordedPlace {
    org: String,
    project: String,
    workspace: String,
}

impl RecordedPlace {
    fn read(&self) -> Option<ShellPlace> {
        Some(ShellPlace {
            org: self.org.parse().ok()?,
            project: self.project.parse().ok()?,
            workspace: self.workspace.parse().ok()?,
        })
    }
}

impl From<ShellPlace> for RecordedPlace {
    fn from(place: ShellPlace) -> Self {
        let ShellPlace { org, project, workspace } = place;
        Self { org: org.to_string(), project: project.to_string(), workspace: workspace.to_string() }
    }
}

/// Where a shell, or a job, was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShellPlace {
    pub org: OrgId,
    pub project: ProjectId,
    pub workspace: WorkspaceId,
}

/// What has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EndedShell {
    Shell(ShellId),
    Job(JobRunId),
}

/// An end that the log may not know yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UntoldEnd {
    pub what: EndedShell,
    pub place: ShellPlace,
    /// Of an earlier process: when this one began.
    pub since: Instant,
}

/// A job that ran when this host was killed has no process of its own to be found: the runtime's marker finds it. This says of
/// which run to tell.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct JobRecord {
    place: RecordedPlace,
}

/// A shell that is open. Dropping `input` ends it, and all that it started.
pub struct OpenShell {
    pub facts: ShellFacts,
    pub input: mpsc::Sender<ShellInput>,
    /// Ends with `Over`.
    pub output: mpsc::Receiver<ShellOutput>,
}

/// One more open shell of a workspace, until it is dropped.
struct Place {
    host: Arc<Host>,
    workspace: WorkspaceId,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.host.shells.open();
        if let Some(count) = open.get_mut(&self.workspace) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.workspace);
            }
        }
    }
}

impl Shells {
    /// Ends what an earlier process left behind.
    pub(crate) async fn open_in(state_dir: &Path, boot: &str, users: bool) -> Result<Self, OpenError> {
        let directory = state_dir.join("shells");
        let state = |source| OpenError::State { path: directory.clone(), source };
        private_directory(&directory).map_err(state)?;
        let records: Records<ShellId, ShellRecord> = Records::in_directory(directory.clone());
        let since = Instant::now();
        let mut untold = Vec::new();
        for (shell, record) in records.read_all()? {
            let groups = if record.boot == boot { record.groups } else { Vec::new() };
            let family = Family::marked(record.marker, groups, record.block);
            family.end(LEFTOVER_GRACE).await.map_err(|survivors| OpenError::Survivors {
                count: survivors.count,
                waited: envforge_domain::time::Millis::from_secs(KILL_PATIENCE.as_secs()),
            })?;
            match record.opened.as_ref().and_then(RecordedPlace::read) {
                Some(place) => {
                    tracing::warn!(%shell, "a shell that an earlier process left behind was ended");
                    untold.push(UntoldEnd { what: EndedShell::Shell(shell), place, since });
                }
                None => records.remove(shell).map_err(state)?,
            }
        }
        let directory = state_dir.join("jobs");
        private_directory(&directory).map_err(state)?;
        let jobs: Records<JobRunId, JobRecord> = Records::in_directory(directory.clone());
        let ended = |(run, record): (JobRunId, JobRecord)| {
            Some(UntoldEnd { what: EndedShell::Job(run), place: record.place.read()?, since })
        };
        untold.extend(jobs.read_all()?.into_iter().filter_map(ended));
        Ok(Self {
            records,
            open: Mutex::default(),
            lasting: Mutex::default(),
            beginnings: Turns::default(),
            clones: Turns::default(),
            logins: ShellLogins::default(),
            sockets: sockets(state_dir, users).map_err(state)?,
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            jobs,
            known: Mutex::new(untold.iter().map(|end: &UntoldEnd| (end.what, end.place)).collect()),
            untold: watch::channel(untold).0,
            keeps_ends: AtomicBool::new(false),
        })
    }

    fn open(&self) -> std::sync::MutexGuard<'_, HashMap<WorkspaceId, usize>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn login_inside(
        &self,
        order: &ShellOrder,
        login: GitLogin,
        user: Option<UnixUser>,
    ) -> Result<Arc<LoginSocket>, ShellFailure> {
        let whose = (order.workspace, order.user);
        let path = self.sockets.join(format!("{}.git", name_of(whose)));
        let opened = self.logins.open(whose, path, order.repository.as_str(), login, user);
        opened.map_err(|failure| ShellFailure::Checkout { reason: failure.to_string() })
    }

    /// From here on each end is kept until somebody says that it was told.
    pub(crate) fn keep_ends(&self) {
        self.keeps_ends.store(true, Ordering::Release);
    }

    pub(crate) fn untold(&self) -> watch::Receiver<Vec<UntoldEnd>> {
        self.untold.subscribe()
    }

    /// What is open or about to be, and what has ended and must still be told.
    pub(crate) fn known(&self) -> Vec<(EndedShell, ShellPlace)> {
        self.all_known().iter().map(|(what, place)| (*what, *place)).collect()
    }

    fn all_known(&self) -> std::sync::MutexGuard<'_, HashMap<EndedShell, ShellPlace>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Jobs of a workspace that an earlier process ran.
    pub(crate) fn jobs_left_in(&self, workspace: WorkspaceId) -> Vec<JobRunId> {
        let job = |end: &UntoldEnd| match end.what {
            EndedShell::Job(run) if end.place.workspace == workspace => Some(run),
            EndedShell::Job(_) | EndedShell::Shell(_) => None,
        };
        self.untold.borrow().iter().filter_map(job).collect()
    }

    /// Something has ended in order: whoever carried it tells.
    async fn ended(&self, what: EndedShell, place: ShellPlace) {
        if self.keeps_ends.load(Ordering::Acquire) {
            self.untold.send_modify(|untold| untold.push(UntoldEnd { what, place, since: Instant::now() }));
        } else if let Err(error) = self.told(what).await {
            tracing::warn!(?what, %error, "the record of a shell was not removed");
        }
    }

    /// Nothing of it has to be told any more.
    pub(crate) async fn told(&self, what: EndedShell) -> io::Result<()> {
        match what {
            EndedShell::Shell(shell) => self.forget(shell).await?,
            EndedShell::Job(run) => self.forget_job(run).await?,
        }
        self.all_known().remove(&what);
        self.untold.send_if_modified(|untold| {
            let before = untold.len();
            untold.retain(|end| end.what != what);
            untold.len() < before
        });
        Ok(())
    }

    async fn forget_job(&self, run: JobRunId) -> io::Result<()> {
        let jobs = self.jobs.clone();
        blocking(move || jobs.remove(run)).await
    }

    /// Nothing of it has to be found again.
    async fn forget(&self, shell: ShellId) -> io::Result<()> {
        let records = self.records.clone();
        blocking(move || records.remove(shell)).await
    }

    /// Ends all shells, those that last included, and opens no more.
    pub(crate) async fn shut_down(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        let lasting: Vec<Whose> = self.all_lasting().keys().copied().collect();
        let ended = lasting.into_iter().map(|(workspace, user)| self.end_of(workspace, user));
        for survivors in futures_util::future::join_all(ended).await.into_iter().filter_map(Result::err) {
            tracing::error!(count = survivors.count, "what lasts does not end; the next start tries again");
        }
        let _ = fs::remove_dir_all(&self.sockets);
    }
}
/// Where tmux listens: below the state directory, or where paths are short. Other users enter it where workspaces have their own.
fn sockets(state_dir: &Path, users: bool) -> io::Result<PathBuf> {
    use std::os::unix::ffi::OsStrExt as _;
    let own = state_dir.join("sockets");
    let path = if own.as_os_str().as_bytes().len() + ShellId::PREFIX.len() + 40 < SOCKET_PATH_BYTES_MAX {
        own
    } else {
        use sha2::Digest as _;
        let name: [u8; 32] = sha2::Sha256::digest(state_dir.as_os_str().as_bytes()).into();
        let name: String = name.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        std::env::temp_dir().join(format!("envforge-{}-{name}", rustix::process::geteuid().as_raw()))
    };
    match fs::remove_dir_all(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Made anew: nobody else's directory of that name is taken.
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new().mode(if users { 0o711 } else { 0o700 }).create(&path)?;
    Ok(path)
}

/// Opens a shell. INVARIANT: its marker is on disk before the first process that carries it starts.
/// `login`: what git is given.
pub(crate) async fn open(
    host: Arc<Host>,
    order: ShellOrder,
    login: Option<ShellLogin>,
) -> Result<OpenShell, ShellFailure> {
    let place = take_place(&host, order.workspace)?;
    let helper = host.config.root_guard.clone().ok_or_else(|| not_started(&"this host has no program for it"))?;
    let directories = Directories::of(&host, order.workspace).await.map_err(|error| not_started(&error))?;
    let opening = Opening { host: Arc::clone(&host), order, helper, directories, git: None };
    let ShellOrder { shell, org, project, workspace, .. } = opening.order;
    let recorded = Recorded::new(&host, EndedShell::Shell(shell), ShellPlace { org, project, workspace });
    let record = opening.record().await.map_err(|error| not_started(&error))?;
    // What git cannot carry it is not given, and the shell opens all the same.
    let unfit = login.as_ref().is_some_and(|git| !GitCredential::carries(&git.login.value));
    let login = login.filter(|_| !unfit);
    clone(&host, &opening.order, &opening.directories, login.as_ref().map(|git| &git.login)).await?;
    let git = match login.filter(|git| git.inside) {
        None => None,
        Some(git) => Some(host.shells.login_inside(&opening.order, git.login, opening.directories.user())?),
    };
    let opening = Opening { git: git.clone(), ..opening };
    let (input, fed) = mpsc::channel(CHUNKS_MAX);
    let (said, output) = mpsc::channel(CHUNKS_MAX);
    let stop = host.shells.stop.child_token();
    let (mut facts, carrying) = opening.begin(&record, fed, said, stop).await?;
    if unfit {
        let lacks = "git has no credential here: its secret holds a line break, and git carries a password of one line";
        facts.notice = Some(facts.notice.map_or(lacks.to_owned(), |notice| format!("{lacks}; {notice}")));
    }
    // INVARIANT: nothing is waited for between the start and this. Whoever drops this future later drops `input`, and that ends it.
    host.shells.tasks.clone().spawn(async move {
        let ended = carrying.await;
        drop((place, git));
        recorded.over(ended);
    });
    Ok(OpenShell { facts, input, output })
}

/// A shell or job that is written down, or about to be. Dropped where it is over, however it came to that.
struct Recorded {
    host: Arc<Host>,
    what: EndedShell,
    place: ShellPlace,
    /// Something of it runs: the next start finds it.
    stays: bool,
}

impl Recorded {
    fn new(host: &Arc<Host>, what: EndedShell, place: ShellPlace) -> Self {
        host.shells.all_known().insert(what, place);
        Self { host: Arc::clone(host), what, place, stays: false }
    }

    fn over(mut self, ended: Result<(), Survivors>) {
        self.stays = ended.is_err();
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        if self.stays {
            return;
        }
        let (host, what, place) = (Arc::clone(&self.host), self.what, self.place);
        self.host.shells.tasks.spawn(async move { host.shells.ended(what, place).await });
    }
}

fn take_place(host: &Arc<Host>, workspace: WorkspaceId) -> Result<Place, ShellFailure> {
    if host.shells.stop.is_cancelled() {
        return Err(ShellFailure::ShuttingDown);
    }
    let mut open = host.shells.open();
    if open.values().sum::<usize>() >= SHELLS_MAX {
        return Err(ShellFailure::TooMany { max: SHELLS_MAX, of_workspace: false });
    }
    let count = open.entry(workspace).or_default();
    if *count >= SHELLS_OF_WORKSPACE_MAX {
        return Err(ShellFailure::TooMany { max: SHELLS_OF_WORKSPACE_MAX, of_workspace: true });
    }
    *count += 1;
    drop(open);
    Ok(Place { host: Arc::clone(host), workspace })
}

pub(crate) fn not_started(reason: &dyn std::fmt::Display) -> ShellFailure {
    ShellFailure::NotStarted { reason: reason.to_string() }
}

/// What a workspace's shells have in common.
#[derive(Clone)]
pub(crate) struct Directories {
    pub(crate) home: PathBuf,
    pub(crate) work: PathBuf,
    /// Whose they are, and who works there.
    block: Option<UserBlock>,
    /// Where that somebody has a name.
    accounts: Option<PathBuf>,
}

impl Directories {
    /// Made where they are not there.
    async fn of(host: &Host, workspace: WorkspaceId) -> io::Result<Self> {
        let place = host.place(workspace);
        let root = place.join("shell");
        let block = block_of(host, workspace).await?;
        let mut directories = Self { home: root.join("home"), work: root.join("work"), block, accounts: None };
        let (made, above) = (directories.clone(), place.clone());
        blocking(move || {
            let Some(block) = &made.block else { return private_directory(&made.home) };
            let entered = UnixUser { uid: 0, gid: block.shell().gid };
            unix_user::directory_of(&above, entered, 0o710)?;
            unix_user::directory_of(&root, entered, 0o710)?;
            unix_user::directory_of(&made.home, block.shell(), 0o700)
        })
        .await?;
        directories.accounts = accounts::written(place, directories.block.clone(), login_shell().remove(0)).await?;
        Ok(directories)
    }

    fn user(&self) -> Option<UnixUser> {
        self.block.as_ref().map(UserBlock::shell)
    }

    fn who(&self) -> Who<'_> {
        (self.user(), self.accounts.as_deref())
    }
}

/// The ids of a workspace, where it has users of its own.
async fn block_of(host: &Host, workspace: WorkspaceId) -> io::Result<Option<UserBlock>> {
    match host.users.clone() {
        None => Ok(None),
        Some(users) => blocking(move || users.of(workspace, &[]).map(Some)).await,
    }
}

/// Makes the team's own clone where there is none. It is never touched again: what is in it is theirs.
async fn clone(
    host: &Arc<Host>,
    order: &ShellOrder,
    directories: &Directories,
    login: Option<&GitLogin>,
) -> Result<(), ShellFailure> {
    let _turn = host.shells.clones.take(order.workspace).await;
    if let Ok(found) = fs::metadata(&directories.work) {
        // Made while shells ran as EnvForge itself.
        if let Some(block) = directories.block.clone().filter(|block| !block.holds(found.uid())) {
            let work = directories.work.clone();
            let handed = blocking(move || unix_user::hand_over(&work, &block, Handing::Checkout)).await;
            handed.map_err(|error| not_started(&error))?;
        }
        return Ok(());
    }
    let marker = Marker::random();
    let checkout_failed = |failure: CheckoutFailure| ShellFailure::Checkout { reason: failure.to_string() };
    let login = match login {
        None => None,
        Some(login) => {
            let address = order.repository.as_str();
            let socket = LoginSocket::for_envforge(&host.config, address, login.clone());
            Some(socket.map_err(checkout_failed)?)
        }
    };
    let checkout = Checkout {
        config: &host.config,
        marker: &marker,
        repository: directories.work.join(".git"),
        tree: directories.work.clone(),
        index: PathBuf::new(),
        block: directories.block.as_ref(),
        login: login.as_ref(),
    };
    let cloned = checkout.clone_anew(order.repository.as_str(), order.branch.as_str()).await;
    cloned.map_err(checkout_failed)
}

/// A shell on its way to be open.
pub(crate) struct Opening {
    pub(crate) host: Arc<Host>,
    pub(crate) order: ShellOrder,
    pub(crate) helper: PathBuf,
    pub(crate) directories: Directories,
    /// Where git asks inside, for as long as the person has a shell open here.
    git: Option<Arc<LoginSocket>>,
}

impl Opening {
    async fn record(&self) -> io::Result<ShellRecord> {
        let ShellOrder { org, project, workspace, .. } = self.order;
        let opened = Some(ShellPlace { org, project, workspace }.into());
        let record = self.unopened(Marker::random());
        let record = ShellRecord { opened, ..record };
        self.write(self.order.shell, &record).await?;
        Ok(record)
    }

    fn unopened(&self, marker: Marker) -> ShellRecord {
        let (boot, block) = (self.host.boot.clone(), self.directories.block.clone());
        ShellRecord { marker, boot, groups: Vec::new(), block, opened: None }
    }

    /// What carries a marker here, or stands in one of these groups.
    pub(crate) fn family(&self, marker: Marker, groups: Vec<Identity>) -> Family {
        Family::marked(marker, groups, self.directories.block.clone())
    }

    async fn write(&self, key: ShellId, record: &ShellRecord) -> io::Result<()> {
        let (records, record) = (self.host.shells.records.clone(), record.clone());
        blocking(move || records.write(key, &record)).await
    }

    /// INVARIANT: once something has started nothing is waited for any more. Whoever carries it has to have it by then.
    async fn begin(
        self,
        record: &ShellRecord,
        input: mpsc::Receiver<ShellInput>,
        output: mpsc::Sender<ShellOutput>,
        stop: CancellationToken,
    ) -> Result<(ShellFacts, BoxFuture<'static, Result<(), Survivors>>), ShellFailure> {
        let mut facts = ShellFacts::default();
        let (words, terminal, term) = match &self.order.what {
            ShellWhat::Command { words } => (words.clone(), None, None),
            ShellWhat::Terminal { size, term, lasting, words } => {
                let words = if !words.is_empty() {
                    words.clone()
                } else if !*lasting {
                    login_shell()
                } else {
                    match self.lasting_session(*size).await {
                        Ok(words) => {
                            facts.lasting = true;
                            words
                        }
                        Err(reason) => {
                            facts.notice = Some(format!("{reason}: this terminal ends when you disconnect"));
                            login_shell()
                        }
                    }
                };
                (words, Some(*size), Some(term.as_str()))
            }
            ShellWhat::Ssh { client_key } => {
                let server = shell_ssh::Server::new(&self, client_key).await?;
                facts.lasting = true;
                facts.host_key = Some(server.host_key());
                return Ok((facts, server.serve(self, input, output, stop).map(Ok).boxed()));
            }
        };
        let environment = self.environment(&record.marker, term);
        let started = self.start(&words, terminal, &environment).map_err(|error| not_started(&error))?;
        let mut record = record.clone();
        record.groups.extend(started.leader());
        let family = self.family(record.marker.clone(), record.groups.clone());
        let carrying = async move {
            let writing = async {
                // The marker finds all but what hides; the group is for that.
                if let Err(error) = self.write(self.order.shell, &record).await {
                    tracing::warn!(%error, "a shell could not be written down more exactly");
                }
            };
            tokio::join!(started.carry(family, input, output, stop), writing).0
        };
        Ok((facts, carrying.boxed()))
    }

    pub(crate) fn start(
        &self,
        words: &[String],
        terminal: Option<TerminalSize>,
        environment: &Environment,
    ) -> io::Result<Started> {
        let (directory, who) = (&self.directories.work, self.directories.who());
        Plan { helper: &self.helper, words, directory, environment, terminal, who }.start()
    }

    /// Built from nothing: no secret, and nothing of EnvForge's own.
    pub(crate) fn environment(&self, marker: &Marker, term: Option<&str>) -> Environment {
        let config = &self.host.config;
        let mut environment = Environment::default();
        for (name, value) in &config.service_environment {
            environment.set(name, value);
        }
        environment.set("PATH", &config.path);
        environment.set("LANG", "C.UTF-8");
        environment.set("HOME", self.directories.home.to_string_lossy());
        environment.set("SHELL", login_shell().remove(0));
        environment.set("ENVFORGE_WORKSPACE", self.order.workspace.to_string());
        environment.set(MARKER_VARIABLE, marker.as_str());
        if let Some(term) = term {
            environment.set("TERM", term);
        }
        for (name, value) in self.git.as_ref().map(|git| git.environment()).unwrap_or_default() {
            environment.set(name, value);
        }
        for (name, value) in config.git_environment.iter().filter(|(name, _)| name == CA_VARIABLE) {
            environment.set(name, value);
        }
        environment
    }
}

/// A person's socket for a workspace.
fn name_of((workspace, user): Whose) -> String {
    use sha2::Digest as _;
    let name: [u8; 32] = sha2::Sha256::digest(format!("{workspace} {user}")).into();
    name.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// The shell that this system has, as a login shell would be started.
pub(crate) fn login_shell() -> Vec<String> {
    let bash = Path::new("/bin/bash");
    vec![if bash.exists() { "/bin/bash" } else { "/bin/sh" }.to_owned()]
}
