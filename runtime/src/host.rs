//! The agent on this machine: many workspaces' runtimes below one state directory.
//!
//! Layout: `lock`, `runtimes/<workspace>.json` and `root/<window>.json` (what to find again after a kill -9), and per workspace
//! `workspaces/<workspace>/{checkout,repository.git,home,data,output}`. All directories are private to this user.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use envforge_domain::ids::{RootWindowId, UserId, WorkspaceId};
use envforge_domain::job_run::JobOrder;
use envforge_domain::root_window::RootOutcome;
use envforge_domain::secret::Secret;
use envforge_domain::shell::{LastingShell, LogChunk, LogPlace, ShellFailure, ShellOrder, TerminalSize};
use envforge_domain::slug::ServiceName;
use envforge_domain::time::Millis;
use futures_util::future::join_all;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use crate::config::Config;
use crate::failure::{LastingSurvives, OpenError, OutputError, SleepFailure, WakeFailure};
use crate::git_login::ShellLogin;
use crate::kept::{self, Kept};
use crate::order::{Awake, Stage, WakeOrder};
use crate::output::{self, private_directory};
use crate::port::Ports;
use crate::process::{self, Family, KILL_PATIENCE, Survivors};
use crate::record::{self, Record, Records};
use crate::report::Reports;
use crate::root::{self, RanRoot, RootRuns, TakenRoot};
use crate::shell::{self, EndedShell, OpenShell, ShellPlace, Shells, UntoldEnd};
use crate::unix_user::UnixUsers;
use crate::wake::{Host, Runtimes};
use crate::workspace::{Message, Started, Workspace};

/// For processes that an earlier run left behind: their supervisor is gone, so nobody waits for a tidy end.
const LEFTOVER_GRACE: Duration = Duration::from_secs(2);

/// Runs the workspaces of this machine. Clones share one host. Dropping the last one ends everything that no
/// keeper holds; `leave` waits for it, and `shutdown` ends what keepers hold, too.
#[derive(Clone)]
pub struct LocalHost(Arc<Inner>);

struct Inner {
    host: Arc<Host>,
    workspaces: Mutex<Workspaces>,
}

struct Workspaces {
    actors: HashMap<WorkspaceId, Actor>,
    /// Epochs that were over when the host was opened.
    over: HashMap<WorkspaceId, u64>,
    closed: bool,
}

#[derive(Clone)]
struct Actor {
    messages: mpsc::Sender<Message>,
    up: watch::Receiver<Option<u64>>,
    commit: watch::Receiver<Option<String>>,
}

impl From<Started> for Actor {
    fn from(Started { messages, up, commit }: Started) -> Self {
        Self { messages, up, commit }
    }
}

/// A runtime of an earlier process that was found and ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    pub workspace: WorkspaceId,
    pub epoch: u64,
    /// How many processes of it still ran.
    pub processes: usize,
}

impl LocalHost {
    /// Opens the state directory, made if need be, takes over the runtimes whose keepers live, and ends what else an earlier
    /// process left behind there. One [`Leftover`] for each other runtime that was not put to sleep, also when none of its
    /// processes was alive any more: for the control plane all of them are down.
    ///
    /// # Errors
    /// See [`OpenError`]; nothing is started and the directory is released again.
    pub async fn open(config: Config) -> Result<(Self, Vec<Leftover>), OpenError> {
        config.check()?;
        if !process::is_supported() {
            return Err(OpenError::NoProcesses);
        }
        let root = config.state_dir.clone();
        let state = |source| OpenError::State { path: root.clone(), source };
        let runtimes = root.join("runtimes");
        private_directory(&runtimes).map_err(state)?;
        private_directory(&root.join("workspaces")).map_err(state)?;
        let lock = hold(root.join("lock"))?;
        let boot = record::boot().map_err(state)?;
        let records = Records::in_directory(runtimes);
        kept::make_directories(&root).map_err(state)?;
        let users = UnixUsers::open_as_configured(&config)?;
        let root_runs = RootRuns::open(&root, &boot).await?;
        let shells = Shells::open_in(&root, &boot, users.is_some()).await?;
        let config = Arc::new(config);
        let runtimes = Arc::new(Runtimes {
            ports: Ports::default(),
            changes: watch::channel(0).0,
            room: Arc::new(Semaphore::new(config.runtimes_max)),
            reports: Reports::new(config.reports_max),
            users: users.clone(),
            records: records.clone(),
            boot: boot.clone(),
            keeper: None,
            config: Arc::clone(&config),
            _lock: Some(lock),
        });
        let mut over = HashMap::new();
        let mut leftovers = Vec::new();
        let mut found = Vec::new();
        for (workspace, record) in records.read_all()? {
            match record {
                Record::Over { epoch } => {
                    over.insert(workspace, epoch);
                }
                Record::Running { epoch, marker, boot: of_boot, groups, keeper } => {
                    // After a reboot no process is left, and start times would count from another instant.
                    let (groups, keeper) = if of_boot == boot { (groups, keeper) } else { (Vec::new(), None) };
                    let known =
                        users.as_ref().map(|users| users.known(workspace)).transpose().map_err(state)?.flatten();
                    let family = Family::of_runtime(marker.clone(), groups, known.clone());
                    if let Some(keeper) = keeper
                        && config.keeper.is_some()
                    {
                        match Kept::find(&runtimes, workspace, epoch, marker.clone(), keeper, known.clone()).await {
                            Ok(one) => {
                                tracing::info!(%workspace, epoch, "a runtime of an earlier process goes on");
                                for run in shells.jobs_left_in(workspace) {
                                    // Nobody reads any more what it says.
                                    let job =
                                        Family::of_service(marker.clone(), &shell::name_of_job(run), known.clone());
                                    job.end(LEFTOVER_GRACE).await.map_err(survivors)?;
                                }
                                found.push((workspace, (epoch, one)));
                                continue;
                            }
                            Err(why) => tracing::warn!(%workspace, epoch, %why, "a runtime cannot be taken over"),
                        }
                    }
                    let processes = kept::end_remains(keeper, &family).await.map_err(survivors)?;
                    metrics::counter!("leftovers_total").increment(1);
                    tracing::warn!(%workspace, epoch, processes, "a runtime that an earlier process left behind was ended");
                    leftovers.push((workspace, Leftover { workspace, epoch, processes }));
                }
            }
        }
        // Only now: a start that fails half-way must find all of them again.
        for (workspace, _) in &leftovers {
            records.remove(*workspace).map_err(state)?;
        }
        kept::clear(&records, &root).map_err(state)?;
        let taken = found.into_iter().map(|(workspace, found)| {
            (workspace, Workspace::start(Arc::clone(&runtimes), workspace, None, Some(found)))
        });
        let actors = taken.map(|(workspace, started)| (workspace, Actor::from(started))).collect();
        let host = Host { config, boot, users, root: root_runs, shells, runtimes };
        let workspaces = Mutex::new(Workspaces { actors, over, closed: false });
        let inner = Inner { host: Arc::new(host), workspaces };
        Ok((Self(Arc::new(inner)), leftovers.into_iter().map(|(_, leftover)| leftover).collect()))
    }

    /// Checks out the branch's tip, starts the services, and answers when every declared readiness holds. `stages` follows.
    ///
    /// Wakes and sleeps of one workspace happen one after the other; those of different workspaces at the same time. An
    /// order for the epoch that is waking joins it; for one that is up it answers at once; for a newer epoch it ends the
    /// older one first. Dropping the future does not end the wake: [`LocalHost::sleep`] does.
    ///
    /// # Errors
    /// See [`WakeFailure`]; nothing of the wake is left running.
    pub async fn wake(&self, order: WakeOrder, stages: watch::Sender<Stage>) -> Result<Awake, WakeFailure> {
        let (workspace, epoch) = (order.workspace, order.epoch);
        tracing::info!(%workspace, epoch, "a wake is ordered");
        let actor = self.actor(workspace).ok_or(WakeFailure::ShuttingDown)?;
        let (reply, answer) = oneshot::channel();
        let message = Message::Wake { order: Box::new(order), stages, reply };
        actor.messages.send(message).await.map_err(|_| WakeFailure::ShuttingDown)?;
        let woken = answer.await.unwrap_or(Err(WakeFailure::ShuttingDown));
        if woken.is_ok() {
            tracing::info!(%workspace, epoch, "a runtime is ready");
        }
        woken
    }

    /// Runs `on_sleep` (bounded), then ends every process: SIGTERM, and SIGKILL after the grace. Cancels a wake that is
    /// under way. Does nothing where the epoch is over already. No epoch up to this one wakes again, also after a restart.
    ///
    /// # Errors
    /// See [`SleepFailure`]; asking again is right for each of them.
    pub async fn sleep(&self, workspace: WorkspaceId, epoch: u64) -> Result<(), SleepFailure> {
        self.ask(workspace, |reply| Message::Sleep { epoch, reply }).await
    }

    /// Ends the workspace's runtime and removes everything that the host keeps of it: checkout, data, output.
    ///
    /// # Errors
    /// See [`SleepFailure`]; asking again is right for each of them.
    pub async fn remove(&self, workspace: WorkspaceId) -> Result<(), SleepFailure> {
        self.ask(workspace, |reply| Message::Remove { reply }).await
    }

    async fn ask(
        &self,
        workspace: WorkspaceId,
        message: impl FnOnce(oneshot::Sender<Result<(), SleepFailure>>) -> Message,
    ) -> Result<(), SleepFailure> {
        let actor = self.actor(workspace).ok_or(SleepFailure::ShuttingDown)?;
        let (reply, answer) = oneshot::channel();
        actor.messages.send(message(reply)).await.map_err(|_| SleepFailure::ShuttingDown)?;
        answer.await.unwrap_or(Err(SleepFailure::ShuttingDown))
    }

    /// What happened without being asked for. All handles read one bounded queue.
    pub fn reports(&self) -> Reports {
        self.0.host.runtimes.reports.clone()
    }

    /// Whether that epoch is ready and not being put to sleep: what a lease may be renewed for.
    pub fn is_up(&self, workspace: WorkspaceId, epoch: u64) -> bool {
        self.workspaces().actors.get(&workspace).is_some_and(|actor| *actor.up.borrow() == Some(epoch))
    }

    /// The epoch that is ready here, whatever anybody asked for.
    pub fn epoch_up(&self, workspace: WorkspaceId) -> Option<u64> {
        self.workspaces().actors.get(&workspace).and_then(|actor| *actor.up.borrow())
    }

    /// Everything that is ready here.
    pub fn epochs_up(&self) -> Vec<(WorkspaceId, u64)> {
        let workspaces = self.workspaces();
        let up = workspaces.actors.iter().filter_map(|(workspace, actor)| Some((*workspace, (*actor.up.borrow())?)));
        up.collect()
    }

    /// How often what is ready here changed: whoever reads this before `epochs_up` has a list that is at least as new.
    pub fn changes(&self) -> u64 {
        *self.0.host.runtimes.changes.borrow()
    }

    /// Tells of each change.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.0.host.runtimes.changes.subscribe()
    }

    /// The last lines of a service's output on this host, oldest first: at most `lines`, 10,000, and 1 MiB. For the
    /// workspace's team alone: output may hold secrets, and no link ever reaches it.
    ///
    /// # Errors
    /// [`OutputError::None`] where the service never wrote here.
    pub async fn tail_output(
        &self,
        workspace: WorkspaceId,
        service: &ServiceName,
        lines: usize,
    ) -> Result<Vec<String>, OutputError> {
        let (directory, name, files_max) = self.output_of(workspace, service);
        record::blocking(move || output::tail(&directory, &name, lines, files_max))
            .await
            .map_err(OutputError::Read)?
            .ok_or_else(|| OutputError::None { service: service.clone() })
    }

    /// What a service has written, as [`LocalHost::tail_output`] but byte by byte, and where it goes on. `None` where it never
    /// wrote here.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub async fn tail_log(
        &self,
        workspace: WorkspaceId,
        service: &ServiceName,
        lines: usize,
    ) -> io::Result<Option<LogChunk>> {
        let (directory, name, files_max) = self.output_of(workspace, service);
        record::blocking(move || {
            let tail = output::tail_from(&directory, &name, lines, files_max)?;
            Ok(tail.map(|(bytes, next)| LogChunk { bytes, next, gap: false }))
        })
        .await
    }

    /// What it has written since.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub async fn log_since(
        &self,
        workspace: WorkspaceId,
        service: &ServiceName,
        from: LogPlace,
    ) -> io::Result<LogChunk> {
        let (directory, name, files_max) = self.output_of(workspace, service);
        record::blocking(move || output::since(&directory, &name, from, files_max)).await
    }

    fn output_of(&self, workspace: WorkspaceId, service: &ServiceName) -> (PathBuf, String, u32) {
        let directory = self.0.host.place(workspace).join("output");
        (directory, service.as_str().to_owned(), self.0.host.config.log_files_max)
    }

    /// The commit that is checked out where the runtime is up here.
    pub fn commit_up(&self, workspace: WorkspaceId) -> Option<String> {
        let workspaces = self.workspaces();
        let actor = workspaces.actors.get(&workspace)?;
        actor.up.borrow().as_ref()?;
        actor.commit.borrow().clone()
    }

    /// Why this host runs nothing as root: EnvForge is not root itself, or has no guard for it. `None` where it does.
    pub fn root_refusal(&self) -> Option<RootOutcome> {
        root::refusal(&self.0.host)
    }

    /// The users of this host's workspaces, where each service has one of its own.
    pub fn unix_users(&self) -> Option<&UnixUsers> {
        self.0.host.users.as_ref()
    }

    /// Takes a root window's command for this host: from here on it is found again after a kill -9.
    ///
    /// # Errors
    /// Where the record cannot be written; nothing was taken.
    pub async fn take_root(&self, window: RootWindowId) -> io::Result<TakenRoot> {
        root::take(Arc::clone(&self.0.host), window).await
    }

    /// Windows whose command an earlier process of this host had taken, which were ended when this one was opened, and what changed
    /// on the host since their beginning.
    pub fn root_leftovers(&self) -> &BTreeMap<RootWindowId, RanRoot> {
        self.0.host.root.leftovers()
    }

    /// The end of what a window's command has written, at most 64 KiB, and how many bytes came before. For the requester
    /// alone; kept for the newest commands of this process.
    pub fn root_output(&self, window: RootWindowId) -> Option<(String, u64)> {
        self.0.host.root.output(window)
    }

    /// Comes to the shell of a window that was taken, or is about to be: waits a while for it. Once in a window.
    ///
    /// # Errors
    /// `NotStarted` where there is none to come to.
    pub async fn attach_root(
        &self,
        window: RootWindowId,
        size: TerminalSize,
        term: String,
    ) -> Result<OpenShell, ShellFailure> {
        self.0.host.root.doors().knock(window, size, term).await
    }

    /// The end of a window's command stands in the log: nothing of it has to be found again.
    ///
    /// # Errors
    /// Where the record cannot be removed; the next start then looks for what is no more.
    pub async fn forget_root(&self, window: RootWindowId) -> io::Result<()> {
        self.0.host.root.forget(window).await
    }

    /// Opens a shell in a workspace, whatever its runtime does. The workspace's clone is made where there is none. `login`: what git
    /// is given for that clone and, where the project says so, inside.
    ///
    /// # Errors
    /// See [`ShellFailure`]; nothing runs then.
    pub async fn open_shell(&self, order: ShellOrder, login: Option<ShellLogin>) -> Result<OpenShell, ShellFailure> {
        shell::open(Arc::clone(&self.0.host), order, login).await
    }

    /// Ends what lasts of somebody's shells in a workspace beyond their connections.
    ///
    /// # Errors
    /// Where it does not end: it stays among what lasts here, and asking again is right.
    pub async fn end_lasting_shells(&self, workspace: WorkspaceId, user: UserId) -> Result<(), LastingSurvives> {
        let ended = self.0.host.shells.end_of(workspace, user).await;
        ended.map_err(|Survivors { count }| LastingSurvives { count })
    }

    /// What lasts here beyond connections, with each sign-in that attached to it. Also what is being ended, until it has.
    pub async fn lasting_shells(&self) -> Vec<LastingShell> {
        self.0.host.shells.lasting()
    }

    /// Keeps the end of each shell and job until [`LocalHost::told`]: for a host whose control plane may be gone when it ends.
    pub fn keep_ends(&self) {
        self.0.host.shells.keep_ends();
    }

    /// Ends of shells and jobs that the log may not know: of an earlier process of this host, and those that are kept.
    pub fn untold_ends(&self) -> watch::Receiver<Vec<UntoldEnd>> {
        self.0.host.shells.untold()
    }

    /// Shells and jobs that are open here or about to be, and those whose ends are untold.
    pub fn known_shells(&self) -> Vec<(EndedShell, ShellPlace)> {
        self.0.host.shells.known()
    }

    /// An end stands in the log: nothing of it has to be found or told again.
    ///
    /// # Errors
    /// Where the record cannot be removed; the next start then tells it again, which changes nothing.
    pub async fn told(&self, what: EndedShell) -> io::Result<()> {
        self.0.host.shells.told(what).await
    }

    /// Runs a job where the runtime is up. `secrets`: what it is given, by name.
    ///
    /// # Errors
    /// See [`ShellFailure`]; nothing runs then.
    pub async fn run_job(&self, order: JobOrder, secrets: BTreeMap<String, Secret>) -> Result<OpenShell, ShellFailure> {
        let actor = self.actor(order.workspace).ok_or(ShellFailure::ShuttingDown)?;
        let (reply, answer) = oneshot::channel();
        actor.messages.send(Message::Job { reply }).await.map_err(|_| ShellFailure::ShuttingDown)?;
        let place = answer.await.ok().flatten().ok_or(ShellFailure::NotAwake)?;
        shell::run_job(Arc::clone(&self.0.host), order, secrets, place).await
    }

    /// Ends everything that this host started, `on_sleep` included, and refuses what comes after.
    pub async fn shutdown(&self) {
        self.close(|reply| Message::Shutdown { reply }).await;
    }

    /// Ends shells and jobs, leaves to their keepers what these hold, and refuses what comes after: the next process that opens the
    /// state directory takes it over. What no keeper holds is ended.
    pub async fn leave(&self) {
        self.close(|reply| Message::Leave { reply }).await;
    }

    /// Ends shells, jobs and what runs as root, and begins no more: while somebody can still be told how they ended.
    pub async fn end_shells(&self) {
        tokio::join!(self.0.host.shells.shut_down(), self.0.host.root.shut_down());
    }

    async fn close(&self, message: fn(oneshot::Sender<()>) -> Message) {
        let actors: Vec<Actor> = {
            let mut workspaces = self.workspaces();
            workspaces.closed = true;
            workspaces.actors.drain().map(|(_, actor)| actor).collect()
        };
        tokio::join!(self.0.host.shells.shut_down(), self.0.host.root.shut_down());
        join_all(actors.into_iter().map(|actor| async move {
            let (reply, ended) = oneshot::channel();
            if actor.messages.send(message(reply)).await.is_ok() {
                // The actor gone without a word has ended what it had.
                let _ = ended.await;
            }
        }))
        .await;
    }

    /// `None` once the host is shutting down.
    fn actor(&self, id: WorkspaceId) -> Option<Actor> {
        let mut workspaces = self.workspaces();
        if workspaces.closed {
            return None;
        }
        if let Some(actor) = workspaces.actors.get(&id) {
            return Some(actor.clone());
        }
        let over = workspaces.over.remove(&id);
        let actor = Actor::from(Workspace::start(Arc::clone(&self.0.host.runtimes), id, over, None));
        workspaces.actors.insert(id, actor.clone());
        Some(actor)
    }

    fn workspaces(&self) -> std::sync::MutexGuard<'_, Workspaces> {
        self.0.workspaces.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn survivors(survivors: Survivors) -> OpenError {
    let waited = Millis::new(u64::try_from(KILL_PATIENCE.as_millis()).unwrap_or(u64::MAX));
    OpenError::Survivors { count: survivors.count, waited }
}

fn hold(path: PathBuf) -> Result<File, OpenError> {
    let state = |source: io::Error| OpenError::State { path: path.clone(), source };
    let file = OpenOptions::new().create(true).write(true).truncate(false).mode(0o600).open(&path).map_err(state)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::Held { path: path.parent().unwrap_or(&path).to_owned() }),
        Err(TryLockError::Error(error)) => Err(state(error)),
    }
}
