//! The host's side of a runtime that a keeper holds: started, talked to, taken over from an earlier process of this host, ended.
//!
//! Layout: `keepers/<workspace>.sock`, where the keeper listens, and `keepers/<workspace>.log`, what it has to say of itself, both
//! private; the runtime's record names the keeper's process. A keeper that does not talk is none: it is ended with all that it holds.
//! Not here: what the keeper does (`keeper`).

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use envforge_domain::ids::WorkspaceId;
use envforge_domain::limits;
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::process::Command;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::environment::{Environment, MARKER_VARIABLE};
use crate::failure::WakeFailure;
use crate::frame;
use crate::keeper::KEEPER;
use crate::keeper_message::{Ask, GREETING_WAIT, ReadyMessage, Say, Start, greet};
use crate::order::{Awake, WakeOrder};
use crate::process::{Family, Identity, KILL_PATIENCE, Marker, Survivors};
use crate::record::{Record, Records, blocking};
use crate::report::Report;
use crate::service::GivenUp;
use crate::unix_user::UserBlock;
use crate::wake::{self, Failed, Runtimes, Stages};
use crate::wire::WakeCall;

/// For processes whose keeper is gone: nobody waits for a tidy end.
const LEFTOVER_GRACE: Duration = Duration::from_secs(2);
/// Whom a keeper was just starting when it was killed becomes in this time what it is found by.
const BECOMING: Duration = Duration::from_millis(50);
/// Beside what hook, grace and force may take: until a keeper has ended its runtime.
const END_SLACK: Duration = Duration::from_secs(15);
const ASKS_MAX: usize = 16;
const SAYS_MAX: usize = 64;

/// A runtime in its keeper's hands. Dropping it leaves both alone.
pub(crate) struct Kept {
    runtimes: Arc<Runtimes>,
    workspace: WorkspaceId,
    epoch: u64,
    keeper: Identity,
    pub(crate) record: KeptRecord,
    /// Where jobs run, and in which environment.
    pub(crate) jobs: Option<(PathBuf, Environment)>,
    says: mpsc::Receiver<Say>,
    _talking: [AbortOnDropHandle<()>; 2],
    /// `None` where a host was opened with less room than it had.
    _room: Option<OwnedSemaphorePermit>,
}

/// By what the processes of a kept runtime are found.
#[derive(Clone)]
pub(crate) struct KeptRecord {
    marker: Marker,
    users: Option<UserBlock>,
    asks: mpsc::Sender<Ask>,
}

/// What a kept runtime has to tell.
pub(crate) enum Happened {
    GaveUp(GivenUp),
    Restarted(Report),
    /// Its keeper ended, or does not talk any more.
    Gone,
}

/// A runtime that was found with its keeper.
pub(crate) enum Found {
    Waking(Kept),
    Up(Kept, Awake),
}

impl KeptRecord {
    pub(crate) fn family_of(&self, service: &str) -> Family {
        Family::of_service(self.marker.clone(), service, self.users.clone())
    }

    /// The keeper writes it down.
    pub(crate) async fn add_group(&self, leader: Identity) -> io::Result<()> {
        self.asks.send(Ask::Group { leader }).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Kept {
    /// Starts a keeper with an order. `None`: the order is under way.
    async fn start(runtimes: Arc<Runtimes>, order: &WakeOrder, program: &Path) -> Result<Self, WakeFailure> {
        let room = Arc::clone(&runtimes.room)
            .try_acquire_owned()
            .map_err(|_| WakeFailure::HostFull { max: runtimes.config.runtimes_max })?;
        let users = wake::users_of(&runtimes, order).await?;
        let (workspace, epoch) = (order.workspace, order.epoch);
        let marker = Marker::random();
        // INVARIANT: the marker is on disk before the first process that carries it, the keeper, starts.
        let (records, boot) = (runtimes.records.clone(), runtimes.boot.clone());
        let record = Record::Running { epoch, marker: marker.clone(), boot, groups: Vec::new(), keeper: None };
        blocking(move || records.write(workspace, &record)).await.map_err(wake::state)?;
        let started = Place::of(&runtimes, workspace).start(&marker, program).await;
        let started = match started {
            Ok((keeper, mut stream)) => greet(&mut stream).await.map(|()| (keeper, stream)),
            Err(error) => Err(error),
        };
        let (keeper, stream) = match started {
            Ok(started) => started,
            Err(error) => {
                let family = Family::of_runtime(marker, Vec::new(), users);
                let ended = family.end(Duration::ZERO).await;
                ended.map_err(|survivors| WakeFailure::Survivors { count: survivors.count })?;
                return Err(WakeFailure::State { reason: format!("a keeper could not be started: {error}") });
            }
        };
        let kept = Self::over(stream, runtimes, (workspace, epoch), keeper, marker, users, Some(room));
        let config = crate::config::Config::clone(&kept.runtimes.config);
        let start = Start { config, boot: kept.runtimes.boot.clone(), order: WakeCall::of(order) };
        // Where it is gone already, its silence tells.
        let _ = kept.record.asks.send(Ask::Start(Box::new(start))).await;
        Ok(kept)
    }

    fn over(
        stream: UnixStream,
        runtimes: Arc<Runtimes>,
        (workspace, epoch): (WorkspaceId, u64),
        keeper: Identity,
        marker: Marker,
        users: Option<UserBlock>,
        room: Option<OwnedSemaphorePermit>,
    ) -> Self {
        let (reading, writing) = stream.into_split();
        let (asks, asked) = mpsc::channel(ASKS_MAX);
        let (said, says) = mpsc::channel(SAYS_MAX);
        let talking = [tokio::spawn(speak(writing, asked)), tokio::spawn(listen(reading, said))];
        Self {
            runtimes,
            workspace,
            epoch,
            keeper,
            record: KeptRecord { marker, users, asks },
            jobs: None,
            says,
            _talking: talking.map(AbortOnDropHandle::new),
            _room: room,
        }
    }

    /// Takes over a runtime that an earlier process of this host had a keeper start.
    ///
    /// # Errors
    /// Why it is not to be had: its keeper is gone, silent, or of a version that is not spoken here.
    pub(crate) async fn find(
        runtimes: &Arc<Runtimes>,
        workspace: WorkspaceId,
        epoch: u64,
        marker: Marker,
        keeper: Identity,
        users: Option<UserBlock>,
    ) -> io::Result<Found> {
        if !keeper.is_alive() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "its keeper has ended"));
        }
        let place = Place::of(runtimes, workspace);
        let connected = timeout(GREETING_WAIT, place.connect()).await;
        let mut stream = connected.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        greet(&mut stream).await?;
        // Room was given to it when it woke.
        let room = Arc::clone(&runtimes.room).try_acquire_owned().ok();
        let of = (workspace, epoch);
        let mut kept = Self::over(stream, Arc::clone(runtimes), of, keeper, marker, users, room);
        let first =
            timeout(GREETING_WAIT, kept.says.recv()).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?;
        match first {
            Some(Say::Stage(_)) => Ok(Found::Waking(kept)),
            Some(Say::Ready(ready)) => {
                let awake = kept.ready(ready)?;
                Ok(Found::Up(kept, awake))
            }
            Some(Say::Failed { text, .. }) => Err(io::Error::other(format!("its wake has failed meanwhile: {text}"))),
            Some(_) | None => Err(io::Error::new(io::ErrorKind::InvalidData, "its keeper holds nothing")),
        }
    }

    fn ready(&mut self, ready: ReadyMessage) -> io::Result<Awake> {
        let awake = ready.awake()?;
        self.jobs = ready.jobs();
        Ok(awake)
    }

    /// Until its keeper has something to tell. Safe to cancel.
    pub(crate) async fn next(&mut self) -> Happened {
        loop {
            match self.says.recv().await {
                None | Some(Say::Ended { .. } | Say::Failed { .. }) => return Happened::Gone,
                Some(Say::GaveUp { service, reason }) => return Happened::GaveUp(GivenUp { service, reason }),
                Some(Say::Restarted { number, service, status }) => {
                    metrics::counter!("service_restarts_total").increment(1);
                    // Where it is not heard it is said again.
                    let _ = self.record.asks.try_send(Ask::Read { number });
                    let (workspace, epoch) = (self.workspace, self.epoch);
                    return Happened::Restarted(Report::ServiceRestarted { workspace, epoch, service, status });
                }
                Some(Say::Current | Say::Stage(_) | Say::Ready(_)) => {}
            }
        }
    }

    /// Has the keeper end the runtime, and ends both by force where it does not. Nothing of it survives an `Ok`.
    pub(crate) async fn end(&mut self, with_hook: bool) -> Result<(), Survivors> {
        let hook = if with_hook { limits::ON_SLEEP_MAX.to_duration() } else { Duration::ZERO };
        let patience = hook + self.runtimes.config.stop_grace + 2 * KILL_PATIENCE + END_SLACK;
        let asks = self.record.asks.clone();
        let ending = async {
            asks.send(Ask::End { with_hook }).await.ok()?;
            loop {
                match self.says.recv().await? {
                    Say::Ended { survivors } => return Some(survivors),
                    Say::Current
                    | Say::Stage(_)
                    | Say::Ready(_)
                    | Say::Failed { .. }
                    | Say::Restarted { .. }
                    | Say::GaveUp { .. } => {}
                }
            }
        };
        let ended = timeout(patience, ending).await.ok().flatten();
        if ended == Some(0) && self.is_gone().await {
            return Ok(());
        }
        self.end_by_force().await
    }

    /// It ends by itself once it has said so.
    async fn is_gone(&mut self) -> bool {
        let quiet = async { while self.says.recv().await.is_some() {} };
        timeout(END_SLACK, quiet).await.is_ok() && self.keeper.kill().await
    }

    /// Ends keeper and runtime without asking.
    pub(crate) async fn end_by_force(&self) -> Result<(), Survivors> {
        let (records, workspace) = (self.runtimes.records.clone(), self.workspace);
        let groups = blocking(move || records.read(&workspace)).await;
        let groups = match groups {
            Ok(Some(Record::Running { groups, .. })) => groups,
            // The marker finds all but what hides.
            Ok(Some(Record::Over { .. }) | None) | Err(_) => Vec::new(),
        };
        let family = Family::of_runtime(self.record.marker.clone(), groups, self.record.users.clone());
        end_remains(Some(self.keeper), &family).await.map(drop)
    }

    /// For whoever tries again later.
    pub(crate) fn family(&self) -> Family {
        Family::of_runtime(self.record.marker.clone(), Vec::new(), self.record.users.clone())
    }
}

/// Ends a keeper, and then what it held. How many processes there were beside it.
pub(crate) async fn end_remains(keeper: Option<Identity>, family: &Family) -> Result<usize, Survivors> {
    if let Some(keeper) = keeper
        && keeper.is_alive()
    {
        if !keeper.kill().await {
            return Err(Survivors { count: 1 });
        }
        tokio::time::sleep(BECOMING).await;
    }
    family.end(LEFTOVER_GRACE).await
}

/// A wake by a keeper. Runs in a task of its own, as `wake::wake`; where that is aborted, the keeper goes on.
pub(crate) async fn wake(
    runtimes: Arc<Runtimes>,
    order: WakeOrder,
    program: PathBuf,
    stages: Stages,
    cancel: CancellationToken,
) -> Result<(Kept, Awake), Failed> {
    let kept = Kept::start(runtimes, &order, &program).await?;
    // The keeper has it; nobody else needs its secrets.
    drop(order);
    follow(kept, stages, cancel).await
}

/// The rest of a wake that a keeper is at.
pub(crate) async fn follow(mut kept: Kept, stages: Stages, cancel: CancellationToken) -> Result<(Kept, Awake), Failed> {
    loop {
        let say = tokio::select! {
            biased;
            () = cancel.cancelled() => break finish(kept, WakeFailure::Cancelled).await,
            say = kept.says.recv() => say,
        };
        match say {
            Some(Say::Stage(stage)) => stages.set(stage.into()),
            Some(Say::Ready(ready)) => match kept.ready(ready) {
                Ok(awake) => {
                    stages.set(crate::order::Stage::Ready);
                    break Ok((kept, awake));
                }
                Err(error) => break finish(kept, wake::state(error)).await,
            },
            Some(Say::Failed { text, may_pass_on_retry, .. }) => {
                break finish(kept, WakeFailure::OnHost { text, may_pass_on_retry }).await;
            }
            Some(Say::Current | Say::Restarted { .. } | Say::GaveUp { .. }) => {}
            Some(Say::Ended { .. }) | None => {
                let reason = "its keeper ended unexpectedly".to_owned();
                break finish(kept, WakeFailure::State { reason }).await;
            }
        }
    }
}

async fn finish(mut kept: Kept, failure: WakeFailure) -> Result<(Kept, Awake), Failed> {
    let stuck = kept.end(false).await.is_err().then(|| kept.family());
    Err(Failed { failure, stuck })
}

/// Where a workspace's keeper is talked to.
struct Place {
    directory: PathBuf,
    workspace: WorkspaceId,
}

impl Place {
    fn of(runtimes: &Runtimes, workspace: WorkspaceId) -> Self {
        Self { directory: runtimes.config.state_dir.join("keepers"), workspace }
    }

    fn socket(&self) -> PathBuf {
        self.directory.join(format!("{}.sock", self.workspace))
    }

    /// The socket by a path that is short however deep the state directory lies, for as long as the file is open.
    fn short(&self) -> io::Result<(File, PathBuf)> {
        let directory = File::open(&self.directory)?;
        let path = format!("/proc/self/fd/{}/{}.sock", directory.as_raw_fd(), self.workspace);
        Ok((directory, path.into()))
    }

    async fn connect(&self) -> io::Result<UnixStream> {
        let (_directory, path) = self.short()?;
        UnixStream::connect(path).await
    }

    /// Starts a keeper that listens here, and connects to it.
    async fn start(&self, marker: &Marker, program: &Path) -> io::Result<(Identity, UnixStream)> {
        let socket = self.socket();
        match fs::remove_file(&socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = {
            let (_directory, path) = self.short()?;
            std::os::unix::net::UnixListener::bind(path)?
        };
        fs::set_permissions(&socket, Permissions::from_mode(0o600))?;
        // Anew for each keeper: what it may say is bounded by what may happen in one wake.
        let log = self.directory.join(format!("{}.log", self.workspace));
        let log = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(log)?;
        let mut command = Command::new(program);
        command
            .arg0("envforge")
            .arg(KEEPER)
            .arg(&socket)
            .arg(marker.as_str())
            .env_clear()
            .env(MARKER_VARIABLE, marker.as_str())
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(listener)))
            .stdout(Stdio::null())
            .stderr(Stdio::from(log));
        // Dropped without being waited for: tokio reaps it where it ends before we do.
        let child = command.spawn()?;
        drop(command);
        let keeper = child.id().and_then(Identity::of).ok_or(io::ErrorKind::NotFound)?;
        Ok((keeper, self.connect().await?))
    }
}

async fn speak(mut to: OwnedWriteHalf, mut asked: mpsc::Receiver<Ask>) {
    while let Some(ask) = asked.recv().await {
        if frame::write_call(&mut to, &ask).await.is_err() {
            return;
        }
    }
}

async fn listen(mut from: OwnedReadHalf, said: mpsc::Sender<Say>) {
    while let Ok(say) = frame::expect(&mut from).await {
        if said.send(say).await.is_err() {
            return;
        }
    }
}

/// The directories that keepers need.
pub(crate) fn make_directories(state_dir: &Path) -> io::Result<()> {
    ["keepers", "ports"].iter().try_for_each(|name| crate::output::private_directory(&state_dir.join(name)))
}

/// What is left of keepers whose workspaces have none any more.
pub(crate) fn clear(records: &Records, state_dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(state_dir.join("keepers"))? {
        let path = entry?.path();
        let of = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse::<WorkspaceId>().ok());
        if let Some(workspace) = of
            && !matches!(records.read(&workspace)?, Some(Record::Running { .. }))
        {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}
