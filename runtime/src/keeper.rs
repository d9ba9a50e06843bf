//! The keeper of one runtime: a process in a session of its own that holds what a wake started, and outlives the host that started it.
//!
//! It is this very program (`keeper_main`), one for each wake. Its host talks to it over a unix socket: the order with its secrets comes
//! over that, once, and stays in memory. What happens while nobody listens is kept and told to the next host of the same state
//! directory. It ends with its runtime; where nobody came back for long, or nobody could any more, it puts the runtime to sleep first.
//!
//! Not here: which wake (`kept` is the host's side), what a wake does (`wake`), what ends a runtime (`running`).

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{DumpableBehavior, set_dumpable_behavior, setsid};
use rustix::stdio::dup2_stdin;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::frame;
use crate::keeper_message::{Ask, ReadyMessage, Say, Start, greet};
use crate::order::{Awake, Stage, WakeOrder};
use crate::port::Ports;
use crate::process::{Identity, Marker, Survivors};
use crate::record::{KeeperMark, Records};
use crate::report::{Report, Reports};
use crate::running::Running;
use crate::service::GivenUp;
use crate::unix_user::UnixUsers;
use crate::wake::{self, Failed, Runtimes, Stages};

/// First argument of the binary by which it becomes a keeper. No verb: people never type it.
pub(crate) const KEEPER: &str = "keeper";
/// As the kernel calls it; it takes no more letters.
const NAME: &str = "envforge-keeper";
/// From the start to the order.
const ORDER_WAIT: Duration = Duration::from_secs(10);
/// Between two looks whether a host could still find this keeper.
const TICK: Duration = Duration::from_secs(5);
/// What happened and was not taken yet: the newest.
const UNREAD_MAX: usize = 64;
/// On their way to the host: more than is ever said at a time.
const SAYS_MAX: usize = 4 * UNREAD_MAX;
const ASKS_MAX: usize = 16;
/// For the last word to be read.
const FAREWELL: Duration = Duration::from_secs(2);

/// Whether this process was started to be a keeper; then it is one until it ends. `arguments`: the whole command line. `trace` has
/// traces go to standard error.
pub fn keeper_main(arguments: impl IntoIterator<Item = OsString>, trace: impl FnOnce()) -> Option<ExitCode> {
    let mut arguments = arguments.into_iter().skip(1);
    if arguments.next()?.to_str()? != KEEPER {
        return None;
    }
    let (socket, marker) = (arguments.next()?, arguments.next()?);
    trace();
    Some(match begin(socket.into(), marker) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "this keeper ends");
            ExitCode::FAILURE
        }
    })
}

fn begin(socket: PathBuf, marker: OsString) -> io::Result<()> {
    // For `ps` and `pkill`: the program's file has another name, or none.
    std::fs::write("/proc/self/comm", NAME)?;
    // A session of its own: neither a terminal nor whoever signals the host's group reaches it.
    setsid()?;
    let marker = marker.into_string().ok().and_then(|marker| Marker::try_from(marker).ok());
    let (Some(marker), Some(keeper)) = (marker, Identity::own()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a keeper is started by a host alone"));
    };
    // What it listens on came as standard input, so that nobody has to wait for it to be there.
    let listener = std::os::unix::net::UnixListener::from(io::stdin().as_fd().try_clone_to_owned()?);
    dup2_stdin(std::fs::File::open("/dev/null")?)?;
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(async {
        let listener = UnixListener::from_std(listener)?;
        let terminate = signal(SignalKind::terminate())?;
        let mut keeper = Keeper {
            socket,
            mark: KeeperMark { marker, keeper },
            state: State::New,
            host: None,
            alone_since: Instant::now(),
            alone_max: ORDER_WAIT,
            reports: Reports::new(UNREAD_MAX),
            unread: VecDeque::new(),
            said: 0,
        };
        keeper.keep(listener, terminate).await
    });
    runtime.shutdown_timeout(FAREWELL);
    ended
}

struct Keeper {
    socket: PathBuf,
    mark: KeeperMark,
    state: State,
    host: Option<Connection>,
    /// Since when there is no connection.
    alone_since: Instant,
    alone_max: Duration,
    reports: Reports,
    unread: VecDeque<(u64, Report)>,
    said: u64,
}

enum State {
    New,
    Waking(Waking),
    Up(Box<Up>),
    /// Nothing is left of it, but for so many processes.
    Over {
        failure: Failure,
        survivors: usize,
    },
}

struct Waking {
    task: JoinHandle<Result<(Running, Awake), Failed>>,
    cancel: CancellationToken,
    stage: watch::Receiver<Stage>,
}

struct Up {
    running: Running,
    ready: ReadyMessage,
    gave_up: Option<GivenUp>,
}

struct Failure {
    text: String,
    may_pass_on_retry: bool,
}

/// A host that listens.
struct Connection {
    asks: mpsc::Receiver<Ask>,
    says: mpsc::Sender<Say>,
    writer: JoinHandle<()>,
    _reader: AbortOnDropHandle<()>,
}

enum Event {
    Connected(UnixStream),
    Asked(Option<Ask>),
    Stage,
    WakeEnded(Result<(Running, Awake), Failed>),
    GaveUp(GivenUp),
    Happened(Report),
    Terminated,
    Tick,
}

impl Connection {
    fn over(stream: UnixStream) -> Self {
        let (reading, writing) = stream.into_split();
        let (asked, asks) = mpsc::channel(ASKS_MAX);
        let (says, said) = mpsc::channel(SAYS_MAX);
        let reader = AbortOnDropHandle::new(tokio::spawn(listen(reading, asked)));
        Self { asks, says, writer: tokio::spawn(speak(writing, said)), _reader: reader }
    }
}

async fn listen(mut from: OwnedReadHalf, asked: mpsc::Sender<Ask>) {
    while let Ok(ask) = frame::expect_call(&mut from).await {
        if asked.send(ask).await.is_err() {
            return;
        }
    }
}

async fn speak(mut to: OwnedWriteHalf, mut said: mpsc::Receiver<Say>) {
    while let Some(say) = said.recv().await {
        if frame::write(&mut to, &say).await.is_err() {
            return;
        }
    }
}

impl Keeper {
    async fn keep(&mut self, listener: UnixListener, mut terminate: Signal) -> io::Result<()> {
        let (greeted, mut hosts) = mpsc::channel(1);
        let _accepting = AbortOnDropHandle::new(tokio::spawn(accept(listener, greeted)));
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let asks = self.host.as_mut().map(|host| &mut host.asks);
            let event = tokio::select! {
                biased;
                _ = terminate.recv() => Event::Terminated,
                Some(stream) = hosts.recv() => Event::Connected(stream),
                event = next_of(&mut self.state) => event,
                report = self.reports.next() => Event::Happened(report),
                ask = async { match asks { Some(asks) => asks.recv().await, None => std::future::pending().await } } => Event::Asked(ask),
                _ = tick.tick() => Event::Tick,
            };
            match event {
                Event::Connected(stream) => self.connected(stream),
                Event::Asked(None) => {
                    self.host = None;
                    self.alone_since = Instant::now();
                }
                Event::Asked(Some(Ask::Start(start))) => self.start(*start)?,
                Event::Asked(Some(Ask::Group { leader })) => self.add_group(leader).await,
                Event::Asked(Some(Ask::Read { number })) => self.unread.retain(|(said, _)| *said > number),
                Event::Asked(Some(Ask::End { with_hook })) => return self.end(with_hook).await,
                Event::Stage => self.tell_stage(),
                Event::WakeEnded(result) => self.finish_wake(result),
                Event::GaveUp(given_up) => self.give_up(given_up).await,
                Event::Happened(report) => self.happened(report),
                Event::Terminated => {
                    tracing::info!("told to end: the runtime goes to sleep");
                    return self.end(true).await;
                }
                Event::Tick => {
                    if let Some(why) = self.is_forsaken() {
                        tracing::warn!(why, "the runtime goes to sleep");
                        return self.end(true).await;
                    }
                }
            }
        }
    }

    /// Why nobody will come any more.
    fn is_forsaken(&self) -> Option<&'static str> {
        if self.host.is_none() && self.alone_since.elapsed() >= self.alone_max {
            return Some("no host has come for as long as a keeper waits");
        }
        let gone =
            matches!(std::fs::symlink_metadata(&self.socket), Err(error) if error.kind() == io::ErrorKind::NotFound);
        gone.then_some("the host's state directory is gone")
    }

    /// The newest host is the one: there is one of a state directory at a time.
    fn connected(&mut self, stream: UnixStream) {
        self.host = Some(Connection::over(stream));
        let unread: Vec<Say> = self.unread.iter().filter_map(say_of).collect();
        match &self.state {
            State::New => {}
            State::Waking(_) => self.tell_stage(),
            State::Up(up) => {
                let (ready, gave_up) = (up.ready.clone(), up.gave_up.as_ref().map(say_given_up));
                self.say(Say::Ready(ready));
                unread.into_iter().for_each(|say| self.say(say));
                if let Some(gave_up) = gave_up {
                    self.say(gave_up);
                }
            }
            State::Over { failure, survivors } => self.say(failed(failure, *survivors)),
        }
        self.say(Say::Current);
    }

    /// A host that takes nothing is none.
    fn say(&mut self, say: Say) {
        if let Some(host) = &self.host
            && let Err(mpsc::error::TrySendError::Full(_)) = host.says.try_send(say)
        {
            tracing::warn!("a host takes nothing any more");
            self.host = None;
            self.alone_since = Instant::now();
        }
    }

    fn tell_stage(&mut self) {
        if let State::Waking(waking) = &mut self.state {
            let stage = waking.stage.borrow_and_update().clone();
            self.say(Say::Stage((&stage).into()));
        }
    }

    fn start(&mut self, start: Start) -> io::Result<()> {
        if !matches!(self.state, State::New) {
            return Ok(());
        }
        let invalid = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
        let order: WakeOrder = start.order.order().map_err(invalid)?;
        let config = Arc::new(start.config);
        // The order is in this process's memory: neither its own user's other processes nor a core dump shows it.
        set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
        self.alone_max = config.alone_max;
        let users = UnixUsers::open_as_configured(&config).map_err(|error| invalid(error.to_string()))?;
        let runtimes = Runtimes {
            ports: Ports::shared(config.state_dir.join("ports")),
            changes: watch::channel(0).0,
            room: Arc::new(Semaphore::new(1)),
            reports: self.reports.clone(),
            users,
            records: Records::in_directory(config.state_dir.join("runtimes")),
            boot: start.boot,
            keeper: Some(self.mark.clone()),
            config,
            _lock: None,
        };
        let (stages, stage) = watch::channel(Stage::CheckingOut);
        let cancel = CancellationToken::new();
        let waking = wake::wake(Arc::new(runtimes), order, Stages::new(stages), cancel.clone());
        self.state = State::Waking(Waking { task: tokio::spawn(waking), cancel, stage });
        Ok(())
    }

    fn finish_wake(&mut self, result: Result<(Running, Awake), Failed>) {
        match result {
            Ok((running, awake)) => {
                let ready = ReadyMessage::of(&awake, running.jobs.as_ref());
                self.say(Say::Ready(ready.clone()));
                self.state = State::Up(Box::new(Up { running, ready, gave_up: None }));
            }
            Err(Failed { failure, stuck }) => {
                let (text, may_pass_on_retry) = (failure.to_string(), failure.may_pass_on_retry());
                let failure = Failure { text, may_pass_on_retry };
                let survivors = usize::from(stuck.is_some());
                self.say(failed(&failure, survivors));
                self.state = State::Over { failure, survivors };
            }
        }
    }

    /// Ends the runtime at once, whether somebody hears of it or not.
    async fn give_up(&mut self, given_up: GivenUp) {
        self.say(say_given_up(&given_up));
        if let State::Up(up) = &mut self.state {
            up.gave_up = Some(given_up);
            if let Err(Survivors { count }) = up.running.end().await {
                tracing::error!(count, "processes of a failed runtime do not end");
            }
        }
    }

    fn happened(&mut self, report: Report) {
        self.said += 1;
        let unread = (self.said, report);
        if let Some(say) = say_of(&unread) {
            self.say(say);
        }
        if self.unread.len() >= UNREAD_MAX {
            self.unread.pop_front();
        }
        self.unread.push_back(unread);
    }

    async fn add_group(&mut self, leader: Identity) {
        if let State::Up(up) = &self.state
            && let Err(error) = up.running.record.add_group(leader).await
        {
            tracing::warn!(%error, "a process group could not be recorded");
        }
    }

    /// Ends the runtime, says so, and is done.
    async fn end(&mut self, with_hook: bool) -> io::Result<()> {
        let ended = match std::mem::replace(&mut self.state, State::New) {
            State::New => Ok(()),
            State::Over { survivors: 0, .. } => Ok(()),
            State::Over { survivors, .. } => Err(Survivors { count: survivors }),
            State::Waking(waking) => {
                waking.cancel.cancel();
                match waking.task.await {
                    // It has become ready in the same moment.
                    Ok(Ok((mut running, _))) => running.end().await,
                    Ok(Err(Failed { stuck: None, .. })) => Ok(()),
                    Ok(Err(Failed { stuck: Some(_), .. })) | Err(_) => Err(Survivors { count: 1 }),
                }
            }
            State::Up(mut up) if with_hook && up.gave_up.is_none() => up.running.sleep().await,
            State::Up(mut up) => up.running.end().await,
        };
        let survivors = ended.map_or_else(|survivors| survivors.count, |()| 0);
        self.say(Say::Ended { survivors });
        if let Some(Connection { says, writer, .. }) = self.host.take() {
            drop(says);
            // Whoever reads no more is not waited for.
            let _ = timeout(FAREWELL, writer).await;
        }
        Ok(())
    }
}

/// What comes of the runtime itself. Safe to cancel.
async fn next_of(state: &mut State) -> Event {
    match state {
        State::New | State::Over { .. } => std::future::pending().await,
        State::Waking(waking) => tokio::select! {
            biased;
            ended = &mut waking.task => Event::WakeEnded(wake::settle(ended)),
            Ok(()) = waking.stage.changed() => Event::Stage,
        },
        State::Up(up) => match up.running.given_up.recv().await {
            Some(given_up) => Event::GaveUp(given_up),
            None => std::future::pending().await,
        },
    }
}

/// One host after the other: whoever does not greet as one holds up the next for as long as a greeting may take.
async fn accept(listener: UnixListener, greeted: mpsc::Sender<UnixStream>) {
    loop {
        match listener.accept().await {
            Ok((mut stream, _)) => match greet(&mut stream).await {
                Ok(()) => {
                    if greeted.send(stream).await.is_err() {
                        return;
                    }
                }
                Err(error) => tracing::warn!(%error, "somebody came who is no host of this keeper"),
            },
            Err(error) => {
                tracing::warn!(%error, "a connection could not be taken");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

fn say_of((number, report): &(u64, Report)) -> Option<Say> {
    match report {
        Report::ServiceRestarted { service, status, .. } => {
            Some(Say::Restarted { number: *number, service: service.clone(), status: status.clone() })
        }
        // Of a whole host's making.
        Report::RuntimeFailed { .. } => None,
    }
}

fn say_given_up(given_up: &GivenUp) -> Say {
    Say::GaveUp { service: given_up.service.clone(), reason: given_up.reason.clone() }
}

fn failed(failure: &Failure, survivors: usize) -> Say {
    Say::Failed { text: failure.text.clone(), may_pass_on_retry: failure.may_pass_on_retry, survivors }
}
