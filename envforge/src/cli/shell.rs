//! `envforge shell` and `envforge run`: this machine's terminal, input and signals, and what runs in a workspace.
//!
//! Not here: the connection (`shell_connection`), and how OpenSSH comes over it (`ssh`).

use std::io::IsTerminal as _;
use std::os::fd::AsFd as _;

use clap::Args;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

use super::Context;
use super::failure::{Exit, Failure};
use super::shell_connection::{Connection, Control, Over, Preparing};
use super::workspace::Meant;

pub(super) const EXAMPLES: &str = "\
Examples:
  envforge shell signed-links                       a terminal that survives disconnects (tmux)
  envforge shell signed-links -- make test          one command: its output, errors and exit status
  tar c src | envforge shell signed-links -- tar x";

/// Ctrl-C that many times ends the command here, whatever becomes of it there.
const INTERRUPTS_MAX: u32 = 3;

#[derive(Args, Debug)]
pub(crate) struct ShellArguments {
    /// Slug or id of the workspace
    workspace: String,
    /// A terminal that ends when you disconnect
    #[arg(long)]
    no_tmux: bool,
    /// A terminal for the command, too
    #[arg(short, long)]
    tty: bool,
    /// Program and arguments instead of a terminal; no shell reads them
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,
}

#[derive(Args, Debug)]
#[command(after_help = "Example:\n  envforge run unit --workspace signed-links")]
pub(crate) struct RunArguments {
    /// Name of the job in envforge.yml
    job: String,
    /// Slug or id of the workspace [default: that of the branch that is checked out here]
    #[arg(long, value_name = "WORKSPACE")]
    workspace: Option<String>,
}

pub(super) async fn run(context: &Context, arguments: ShellArguments) -> Result<Exit, Failure> {
    let ShellArguments { workspace, no_tmux, tty, command } = arguments;
    let org = context.org().await?;
    let here = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    if tty && !here {
        return Err(Failure::usage("there is no terminal here", "leave out --tty"));
    }
    let terminal = tty || here && command.is_empty();
    let mut connection =
        Connection::open(&context.client, &["v1", "orgs", &org, "workspaces", &workspace, "shell"]).await?;
    if terminal {
        let lasting = !no_tmux && command.is_empty();
        return on_terminal(context, connection, lasting, command).await;
    }
    let order = if command.is_empty() {
        // As with ssh: what stands on standard input is what a shell is to do.
        json!({ "open": "command", "words": ["/bin/sh"] })
    } else {
        json!({ "open": "command", "words": command })
    };
    connection.say(&order).await?;
    if let Err(over) = connection.begun(Preparing::told(&context.output)).await? {
        return ended(over);
    }
    let (say, controls) = mpsc::channel(16);
    let carrying = connection.carry(Some(tokio::io::stdin()), tokio::io::stdout(), tokio::io::stderr(), controls);
    let over = tokio::select! {
        outcome = carrying => outcome?,
        outcome = pass_interrupts(&say) => return outcome,
    };
    ended(over)
}

/// Asks for a terminal on a connection, and makes this one it until that is over.
pub(super) async fn on_terminal(
    context: &Context,
    mut connection: Connection,
    lasting: bool,
    command: Vec<String>,
) -> Result<Exit, Failure> {
    let (columns, rows) = size();
    let order = json!({ "open": "terminal", "columns": columns, "rows": rows, "term": term(), "lasting": lasting, "words": command });
    connection.say(&order).await?;
    let opened = match connection.begun(Preparing::told(&context.output)).await? {
        Ok(opened) => opened,
        Err(over) => return ended(over),
    };
    if let Some(notice) = &opened.notice {
        context.output.warn(notice);
    }
    let (say, controls) = mpsc::channel(16);
    let raw = RawMode::begin()?;
    let carrying = connection.carry(Some(tokio::io::stdin()), tokio::io::stdout(), tokio::io::stderr(), controls);
    let outcome = tokio::select! {
        outcome = carrying => outcome,
        outcome = follow_size(&say) => outcome,
    };
    drop(raw);
    if opened.lasting && outcome.as_ref().is_ok_and(|over| over.end == "exited") {
        context.output.note("[it may go on: the same command comes back to it]");
    }
    ended(outcome?)
}

pub(super) async fn run_job(context: &Context, arguments: RunArguments) -> Result<Exit, Failure> {
    let RunArguments { job, workspace } = arguments;
    let org = context.org().await?;
    let workspace = Meant { workspace }.find(context, &org).await?;
    let segments = ["v1", "orgs", &org, "workspaces", &workspace, "jobs", &job, "run"];
    let mut connection = Connection::open(&context.client, &segments).await?;
    let (say, controls) = mpsc::channel(16);
    let begun = tokio::select! {
        begun = connection.begun(Preparing::told(&context.output)) => begun?,
        signal = tokio::signal::ctrl_c() => {
            signal?;
            return Err(Failure::Interrupted);
        }
    };
    if let Err(over) = begun {
        return ended(over);
    }
    let nothing = None::<tokio::io::Empty>;
    let carrying = connection.carry(nothing, tokio::io::stdout(), tokio::io::stderr(), controls);
    let over = tokio::select! {
        outcome = carrying => outcome?,
        outcome = pass_interrupts(&say) => return outcome,
    };
    ended(over)
}

/// What ran there decides the exit code; whatever else ended it is an error.
fn ended(over: Over) -> Result<Exit, Failure> {
    let code = |code: Option<u32>| code.and_then(|code| u8::try_from(code).ok()).unwrap_or(255);
    let what = match over.end.as_str() {
        "exited" => return Ok(Exit::Passed(code(over.code))),
        "signalled" => return Ok(Exit::Passed(code(over.code).saturating_add(128))),
        "session_ended" => "your session was ended",
        "right_lost" => "you may not do this any more",
        "workspace_archived" => "the workspace was archived",
        "rights_unknown" => "whether you may still do this cannot be made sure of right now",
        "runtime_gone" => "the runtime did not stay awake",
        "host_stopped" => "its host was stopped",
        // Of a root window's shell.
        "deadline" => "the root window's time is over",
        "revoked" => "the root window was revoked",
        "withdrawn" => "the root window was given up",
        "time_over" => "the longest time for it is over",
        "lost" => "its host is gone, or the line to it",
        other => &format!("it ended: {}", other.replace('_', " ")),
    };
    Err(Failure::failed(format!("it is over: {what}"), "`envforge audit log` says more"))
}

fn term() -> String {
    #[allow(clippy::disallowed_methods, reason = "what this terminal is stands in no configuration")]
    let term = std::env::var("TERM").unwrap_or_default();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"+-._".contains(&byte);
    if !term.is_empty() && term.len() <= 64 && term.bytes().all(plain) { term } else { "xterm-256color".to_owned() }
}

/// Columns and rows.
fn size() -> (u16, u16) {
    match rustix::termios::tcgetwinsize(std::io::stdout()) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (size.ws_col, size.ws_row),
        _ => (80, 24),
    }
}

/// Tells each new size, and returns where somebody asks this process to end.
async fn follow_size(say: &mpsc::Sender<Control>) -> Result<Over, Failure> {
    let mut changed = signal(SignalKind::window_change())?;
    let mut ends = Ends::listen()?;
    loop {
        tokio::select! {
            Some(()) = changed.recv() => {
                let (columns, rows) = size();
                // Full: a later size follows.
                let _ = say.try_send(Control::Resize { columns, rows });
            }
            () = ends.asked() => return Err(Failure::Interrupted),
        }
    }
}

/// Passes Ctrl-C on, and returns where it is repeated, or where somebody asks this process to end.
async fn pass_interrupts(say: &mpsc::Sender<Control>) -> Result<Exit, Failure> {
    let mut interrupts = signal(SignalKind::interrupt())?;
    let mut ends = Ends::listen_but_interrupt()?;
    let mut count = 0;
    loop {
        tokio::select! {
            Some(()) = interrupts.recv() => {
                count += 1;
                if count == INTERRUPTS_MAX {
                    return Err(Failure::Interrupted);
                }
                let _ = say.try_send(Control::Signal("INT"));
            }
            () = ends.asked() => return Err(Failure::Interrupted),
        }
    }
}

/// Signals that ask this process to end. While they are listened to, the terminal is given back before it does.
struct Ends(Vec<Signal>);

impl Ends {
    fn listen() -> std::io::Result<Self> {
        let mut ends = Self::listen_but_interrupt()?;
        ends.0.push(signal(SignalKind::interrupt())?);
        Ok(ends)
    }

    fn listen_but_interrupt() -> std::io::Result<Self> {
        let kinds = [SignalKind::terminate(), SignalKind::hangup(), SignalKind::quit()];
        kinds.into_iter().map(signal).collect::<std::io::Result<_>>().map(Self)
    }

    async fn asked(&mut self) {
        let asked = self.0.iter_mut().map(|signal| Box::pin(signal.recv()));
        let _ = futures_util::future::select_all(asked).await;
    }
}

/// Keys go as they are typed; when this is dropped, by a panic too, the terminal is what it was.
struct RawMode(Termios);

impl RawMode {
    fn begin() -> Result<Self, Failure> {
        let stdin = std::io::stdin();
        let before = tcgetattr(stdin.as_fd()).map_err(std::io::Error::from)?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        let this = Self(before);
        tcsetattr(stdin.as_fd(), SetArg::TCSADRAIN, &raw).map_err(std::io::Error::from)?;
        Ok(this)
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin().as_fd(), SetArg::TCSADRAIN, &self.0);
    }
}
