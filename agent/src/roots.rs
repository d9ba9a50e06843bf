//! What runs as root on an agent's host for root windows: the agent's side, which outlives connections, and the control plane's calls.
//!
//! INVARIANT: a window's end is held on its host: by the guard, against the host's own clock, which the control plane was told of when
//! the window was taken. A call that is late on its way gives nobody a moment more. A connection that breaks ends no command (a shell
//! ends with whoever sits before it): the next one finds it by its window. Not here: who may have root (the log).

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use envforge_domain::ids::{RootWindowId, WorkspaceId};
use envforge_domain::root_window::RootOutcome;
use envforge_domain::shell::{ShellFailure, TerminalSize};
use envforge_runtime::{LocalHost, OpenShell, RanRoot, RootOrder, RootWhat, TakenRoot, uptime};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use crate::frame;
use crate::line::HostLine;
use crate::remote::RemoteHost;
use crate::root_wire::{Output, ROOT, RootAnswer, RootCall, RootKill, WindowState, ended, ran, what, words};
use crate::shells::{serve, timed};
use crate::stream::ByteStream;

/// A host that lists more is none.
const WINDOWS_MAX: usize = 10_000;
const TERM_CHARS_MAX: usize = 64;
/// For a shell to be begun and come to: the host waits half of it.
const ATTACH_WAIT: Duration = Duration::from_secs(60);

/// What an agent holds of root windows.
#[derive(Default)]
pub(crate) struct Roots(Mutex<HashMap<RootWindowId, Held>>);

struct Held {
    /// Which of the window's commands.
    number: usize,
    state: State,
}

enum State {
    Taken(TakenRoot),
    Begun(Begun),
}

type Begun = (watch::Sender<Option<RootOutcome>>, watch::Receiver<Option<RanRoot>>);

impl Roots {
    fn held(&self) -> std::sync::MutexGuard<'_, HashMap<RootWindowId, Held>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves one stream.
    pub(crate) async fn serve(
        self: Arc<Self>,
        mut stream: ByteStream,
        host: LocalHost,
        workspace: WorkspaceId,
    ) -> io::Result<()> {
        let answer = match timed(frame::expect(&mut stream)).await? {
            RootCall::Windows => RootAnswer::Windows { windows: self.windows(&host) },
            RootCall::Take { window, epoch, number } => self.take(&host, workspace, (window, number), epoch).await,
            RootCall::Run { window, words, until_uptime_ms } => {
                let what = what(words);
                match self.run(workspace, window, what, Duration::from_millis(until_uptime_ms)) {
                    Some(begun) => return follow(stream, begun).await,
                    None => RootAnswer::Unknown,
                }
            }
            RootCall::Join { window } => match (self.begun(window), host.root_leftovers().get(&window)) {
                (Some(begun), _) => return follow(stream, begun).await,
                (None, Some(left)) => ended(left.clone()),
                (None, None) => RootAnswer::Unknown,
            },
            RootCall::Attach { window, columns, rows, term } => {
                let term: String = term.chars().take(TERM_CHARS_MAX).collect();
                let came = host.attach_root(window, TerminalSize { columns, rows }, term).await;
                return serve(stream, came).await;
            }
            RootCall::Output { window } => {
                let kept = host.root_output(window).map(|(text, dropped)| Output { text, dropped });
                RootAnswer::Output { kept }
            }
            RootCall::Forget { window } => {
                let running = self.begun(window).is_some_and(|(_, ended)| ended.borrow().is_none());
                if running {
                    RootAnswer::Failed { reason: "it still runs".to_owned() }
                } else {
                    self.held().remove(&window);
                    match host.forget_root(window).await {
                        Ok(()) => RootAnswer::Done,
                        Err(error) => RootAnswer::Failed { reason: error.to_string() },
                    }
                }
            }
        };
        frame::write(&mut stream, &answer).await?;
        stream.shutdown().await
    }

    fn windows(&self, host: &LocalHost) -> BTreeMap<String, WindowState> {
        let left = host.root_leftovers().keys().map(|window| (window.to_string(), WindowState::Left));
        let mut windows: BTreeMap<_, _> = left.collect();
        for (window, held) in self.held().iter() {
            let state = match held.state {
                State::Taken(_) => WindowState::Taken,
                State::Begun(_) => WindowState::Begun,
            };
            windows.insert(window.to_string(), state);
        }
        windows
    }

    async fn take(
        &self,
        host: &LocalHost,
        workspace: WorkspaceId,
        (window, number): (RootWindowId, usize),
        epoch: u64,
    ) -> RootAnswer {
        if let Some(refusal) = host.root_refusal() {
            return RootAnswer::NoRoot { outcome: refusal.token().to_owned() };
        }
        if !host.is_up(workspace, epoch) {
            return RootAnswer::Failed { reason: "the runtime is not up here".to_owned() };
        }
        // The log asks for another one only after it has heard how the one before ended, whether this host was told so or not.
        if self.has_ended_before(window, number) {
            self.held().remove(&window);
            if let Err(error) = host.forget_root(window).await {
                return RootAnswer::Failed { reason: error.to_string() };
            }
        }
        // Whoever took it may have been gone before the log heard of it: what was not begun is taken again.
        let known = self.held().get(&window).map(|held| matches!(held.state, State::Taken(_)));
        let taken = match known {
            Some(true) => Ok(()),
            Some(false) => return RootAnswer::Begun,
            // Whoever was quicker keeps it.
            None => host.take_root(window).await.map(|taken| {
                self.held().entry(window).or_insert(Held { number, state: State::Taken(taken) });
            }),
        };
        match taken.and_then(|()| uptime()) {
            Ok(up) => RootAnswer::Taken { uptime_ms: u64::try_from(up.as_millis()).unwrap_or(u64::MAX) },
            Err(error) => RootAnswer::Failed { reason: error.to_string() },
        }
    }

    fn has_ended_before(&self, window: RootWindowId, number: usize) -> bool {
        self.held().get(&window).is_some_and(|held| match &held.state {
            State::Taken(_) => false,
            State::Begun((_, ended)) => held.number < number && ended.borrow().is_some(),
        })
    }

    fn begun(&self, window: RootWindowId) -> Option<Begun> {
        match &self.held().get(&window)?.state {
            State::Taken(_) => None,
            State::Begun(begun) => Some(begun.clone()),
        }
    }

    /// Begins what was taken; what runs already is joined. It goes on whatever becomes of the stream.
    fn run(&self, workspace: WorkspaceId, window: RootWindowId, what: RootWhat, until: Duration) -> Option<Begun> {
        let mut held = self.held();
        let (kill, asked) = watch::channel(None);
        let (told, ended) = watch::channel(None);
        let (number, taken) = match held.remove(&window)? {
            Held { number, state: State::Taken(taken) } => (number, taken),
            Held { number, state: State::Begun(begun) } => {
                held.insert(window, Held { number, state: State::Begun(begun.clone()) });
                return Some(begun);
            }
        };
        held.insert(window, Held { number, state: State::Begun((kill.clone(), ended.clone())) });
        tokio::spawn(async move {
            let ran = taken.run(RootOrder { workspace, what, until }, asked).await;
            told.send_replace(Some(ran));
        });
        Some((kill, ended))
    }
}

/// Says the end once it is there, and hears why it is to come.
async fn follow(stream: ByteStream, (kill, mut has_ended): Begun) -> io::Result<()> {
    let (mut reading, mut writing) = tokio::io::split(stream);
    let hearing = async {
        loop {
            let RootKill { outcome } = frame::expect(&mut reading).await?;
            let outcome = RootOutcome::from_token(&outcome).unwrap_or(RootOutcome::Lost);
            // The first reason stays.
            kill.send_if_modified(|known| {
                let first = known.is_none();
                *known = known.or(Some(outcome));
                first
            });
        }
    };
    let ended = async {
        let ran = has_ended.wait_for(Option::is_some).await.map(|ran| ran.clone());
        ran.ok().flatten().ok_or_else(|| io::Error::other("nobody runs it any more"))
    };
    let ran = tokio::select! {
        ran = ended => ran?,
        gone = hearing => return gone,
    };
    frame::write(&mut writing, &self::ended(ran)).await?;
    writing.shutdown().await
}

/// What a host knows of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoteWindow {
    /// It was taken, and nothing was run.
    Taken,
    /// It runs, or has ended: `RemoteHost::join_root` says how.
    Begun,
    /// An earlier process of the agent's had it; it is dead.
    Left,
}

/// Why a host did not take what a window is to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotTaken {
    /// It runs nothing as root.
    NoRoot(RootOutcome),
    /// That was begun already: `RemoteHost::join_root` says how it ends.
    Begun,
}

/// A window that an agent's host has taken.
pub struct RemoteRoot {
    host: RemoteHost,
    workspace: WorkspaceId,
    window: RootWindowId,
    /// What the host's clock said, and when that was here, at the latest.
    uptime: Duration,
    told_at: Instant,
}

impl HostLine {
    async fn root(&self, workspace: WorkspaceId, call: &RootCall) -> io::Result<ByteStream> {
        let mut stream = self.open_stream(self.header(workspace, ROOT)).await?;
        frame::write(&mut stream, call).await?;
        Ok(stream)
    }

    async fn ask_root(&self, workspace: WorkspaceId, call: &RootCall) -> io::Result<RootAnswer> {
        timed(async { frame::expect(&mut self.root(workspace, call).await?).await }).await
    }

    /// See `LocalHost::root_output`.
    ///
    /// # Errors
    /// Where the host does not answer.
    pub async fn root_output(&self, workspace: WorkspaceId, window: RootWindowId) -> io::Result<Option<(String, u64)>> {
        match self.ask_root(workspace, &RootCall::Output { window }).await? {
            RootAnswer::Output { kept } => Ok(kept.map(|Output { text, dropped }| (text, dropped))),
            answer => Err(unexpected(answer)),
        }
    }

    /// See `LocalHost::attach_root`. It ends with the connection.
    ///
    /// # Errors
    /// See `ShellFailure`.
    pub async fn attach_root(
        &self,
        workspace: WorkspaceId,
        window: RootWindowId,
        size: TerminalSize,
        term: String,
    ) -> Result<OpenShell, ShellFailure> {
        let TerminalSize { columns, rows } = size;
        let call = RootCall::Attach { window, columns, rows, term };
        let coming = self.begin_shell(ROOT, (self.org(), workspace), &call, None);
        timeout(ATTACH_WAIT, coming).await.map_err(|_| ShellFailure::OutOfReach)?
    }
}

impl RemoteHost {
    /// The windows that the host knows of.
    ///
    /// # Errors
    /// Where the host does not answer.
    pub async fn root_windows(&self) -> io::Result<HashMap<RootWindowId, RemoteWindow>> {
        let nowhere = WorkspaceId::from_uuid(uuid::Uuid::nil());
        let answer = self.line().ask_root(nowhere, &RootCall::Windows).await?;
        let RootAnswer::Windows { windows } = answer else { return Err(unexpected(answer)) };
        if windows.len() > WINDOWS_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "more windows than a host has"));
        }
        let known = windows.into_iter().filter_map(|(window, state)| {
            let state = match state {
                WindowState::Taken => RemoteWindow::Taken,
                WindowState::Begun => RemoteWindow::Begun,
                WindowState::Left => RemoteWindow::Left,
            };
            Some((window.parse().ok()?, state))
        });
        Ok(known.collect())
    }

    /// See `LocalHost::take_root`. `number`: which of the window's commands, counted from 0.
    ///
    /// # Errors
    /// Where it is not known whether it was taken.
    pub async fn take_root(
        &self,
        workspace: WorkspaceId,
        (window, number): (RootWindowId, usize),
        epoch: u64,
    ) -> io::Result<Result<RemoteRoot, NotTaken>> {
        match self.line().ask_root(workspace, &RootCall::Take { window, epoch, number }).await? {
            RootAnswer::Taken { uptime_ms } => {
                let (uptime, told_at) = (Duration::from_millis(uptime_ms), Instant::now());
                Ok(Ok(RemoteRoot { host: self.clone(), workspace, window, uptime, told_at }))
            }
            RootAnswer::NoRoot { outcome } => Ok(Err(NotTaken::NoRoot(ran(&outcome, None, None, None).outcome))),
            RootAnswer::Begun => Ok(Err(NotTaken::Begun)),
            answer => Err(unexpected(answer)),
        }
    }

    /// Waits for the end of what runs in a window. `None` where nothing was begun there.
    ///
    /// # Errors
    /// Where the connection is gone; it goes on there.
    pub async fn join_root(
        &self,
        workspace: WorkspaceId,
        window: RootWindowId,
        kill: watch::Receiver<Option<RootOutcome>>,
    ) -> io::Result<Option<RanRoot>> {
        wait(timed(self.line().root(workspace, &RootCall::Join { window })).await?, kill).await
    }

    /// See `LocalHost::forget_root`.
    ///
    /// # Errors
    /// Where the host does not answer, or cannot.
    pub async fn forget_root(&self, workspace: WorkspaceId, window: RootWindowId) -> io::Result<()> {
        match self.line().ask_root(workspace, &RootCall::Forget { window }).await? {
            RootAnswer::Done => Ok(()),
            answer => Err(unexpected(answer)),
        }
    }
}

impl RemoteRoot {
    /// Runs it to its end, at most for `remaining` from now on: no delay on the way makes that longer. `None` where the host knows of
    /// no such window any more.
    ///
    /// # Errors
    /// Where the connection is gone; it goes on there.
    pub async fn run(
        self,
        what: &RootWhat,
        remaining: Duration,
        kill: watch::Receiver<Option<RootOutcome>>,
    ) -> io::Result<Option<RanRoot>> {
        // The host's clock is at least that far by now.
        let until = self.uptime + self.told_at.elapsed() + remaining;
        let until_uptime_ms = u64::try_from(until.as_millis()).unwrap_or(u64::MAX);
        let call = RootCall::Run { window: self.window, words: words(what), until_uptime_ms };
        wait(timed(self.host.line().root(self.workspace, &call)).await?, kill).await
    }
}

async fn wait(stream: ByteStream, mut kill: watch::Receiver<Option<RootOutcome>>) -> io::Result<Option<RanRoot>> {
    let (mut reading, mut writing) = tokio::io::split(stream);
    let hearing = frame::expect(&mut reading);
    let killing = async {
        let asked = kill.wait_for(Option::is_some).await.map(|outcome| *outcome);
        if let Ok(Some(outcome)) = asked {
            frame::write(&mut writing, &RootKill { outcome: outcome.token().to_owned() }).await?;
        }
        // Its end is told all the same.
        std::future::pending::<io::Result<RootAnswer>>().await
    };
    let answer = tokio::select! {
        answer = hearing => answer?,
        failed = killing => failed?,
    };
    match answer {
        RootAnswer::Ended { outcome, code, changes } => {
            let asked = *kill.borrow();
            Ok(Some(ran(&outcome, code, changes, asked)))
        }
        RootAnswer::Unknown => Ok(None),
        answer => Err(unexpected(answer)),
    }
}

fn unexpected(answer: RootAnswer) -> io::Error {
    match answer {
        RootAnswer::Failed { reason } => io::Error::other(crate::wire::shortened(reason)),
        _ => io::Error::new(io::ErrorKind::InvalidData, "a host answered something else than was asked"),
    }
}
