//! A pseudo-terminal: this side's end of it, and the program that makes the other end its own.
//!
//! A process gets a controlling terminal by becoming the leader of a session and opening it, which only the process
//! itself can do. So this very program is started in between (`shell_main`) and becomes the command.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use envforge_domain::shell::TerminalSize;
use rustix::fs::{Mode, OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::{setsid, umask};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::unix::AsyncFd;
use tokio::process::Command;

use crate::accounts;
use crate::unix_user::UnixUser;

/// First argument of the binary by which it becomes what a shell runs. No verb: people never type it.
const EXEC: &str = "shell-exec";
/// In the place of a terminal: none.
const NO_TERMINAL: &str = "-";
/// In the place of a user: whoever runs this.
const NOBODY: &str = "-";

/// This side's end. Closing it hangs up.
pub(crate) struct Terminal(AsyncFd<OwnedFd>);

impl Terminal {
    /// A new one, and the path of its other end.
    pub(crate) fn open(size: TerminalSize) -> io::Result<(Self, PathBuf)> {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&ours)?;
        unlockpt(&ours)?;
        let path = ptsname(&ours, Vec::new())?;
        let path = PathBuf::from(OsString::from(path.to_str().map_err(io::Error::other)?));
        fcntl_setfl(&ours, fcntl_getfl(&ours)? | OFlags::NONBLOCK)?;
        #[allow(
            deprecated,
            reason = "its successor needs `unsafe`; an OwnedFd is what it says, which is all that is asked for"
        )]
        let terminal = Self(AsyncFd::new(ours)?);
        terminal.resize(size)?;
        Ok((terminal, path))
    }

    pub(crate) fn resize(&self, size: TerminalSize) -> io::Result<()> {
        let size = Winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(tcsetwinsize(self.0.as_fd(), size)?)
    }

    /// Waits until there is something; then as much as there is and fits. 0 once nobody holds the other end any more.
    pub(crate) async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.0.readable().await?;
            match ready.try_io(|terminal| Ok(read_all(terminal, buffer)?)) {
                Ok(Err(error)) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => return Ok(0),
                Ok(read) => return read,
                Err(_would_block) => {}
            }
        }
    }

    pub(crate) async fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            let mut ready = self.0.writable().await?;
            if let Ok(written) = ready.try_io(|terminal| Ok(rustix::io::write(terminal, bytes)?)) {
                return written;
            }
        }
    }
}

/// The kernel gives at most a page of it at once, whatever waits behind.
fn read_all(terminal: &impl AsFd, buffer: &mut [u8]) -> rustix::io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match rustix::io::read(terminal, &mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            // Nothing more for now, or the end: it comes again when it is asked for.
            Err(_) if filled > 0 => break,
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Who something runs as, where that is not EnvForge's own user, and where that user has a name (`accounts`).
pub(crate) type Who<'a> = (Option<UnixUser>, Option<&'a Path>);

/// Runs words in a session of their own, on a terminal where one is named, by way of `helper`; as somebody else where there is
/// a user. The helper becomes that user last: it need not be able to enter where the helper lies.
pub(crate) fn in_own_session(
    helper: &Path,
    terminal: Option<&Path>,
    (user, accounts): Who<'_>,
    words: &[String],
) -> Command {
    let user = user.map_or_else(|| NOBODY.to_owned(), |user| format!("{}:{}", user.uid, user.gid));
    let mut command = Command::new(helper);
    let (nowhere, unnamed) = (Path::new(NO_TERMINAL), Path::new(NOBODY));
    command.arg(EXEC).arg(terminal.unwrap_or(nowhere)).arg(user).arg(accounts.unwrap_or(unnamed)).args(words);
    command
}

/// Whether this process was started to become what a shell runs; then it becomes that. `arguments`: the whole command line.
pub fn shell_main(arguments: impl IntoIterator<Item = OsString>) -> Option<ExitCode> {
    let mut arguments = arguments.into_iter().skip(1);
    if arguments.next()?.to_str()? != EXEC {
        return None;
    }
    let (terminal, user, accounts) = (arguments.next()?, arguments.next()?, arguments.next()?);
    let program = arguments.next()?;
    if accounts != NOBODY {
        // Without a name it runs all the same; where nothing may be mounted that is how it is.
        let _ = accounts::enter(Path::new(&accounts));
    }
    let mut becoming = std::process::Command::new(&program);
    becoming.args(arguments);
    if let Err(error) = take(&terminal, read_user(&user), &mut becoming) {
        eprintln!("envforge: no session or terminal of its own: {error}");
        return Some(ExitCode::from(126));
    }
    let error = becoming.exec();
    eprintln!("envforge: {}: {error}", Path::new(&program).display());
    Some(ExitCode::from(if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 }))
}

/// `None` where what runs stays who it is.
fn read_user(text: &OsString) -> Option<UnixUser> {
    let (uid, gid) = text.to_str()?.split_once(':')?;
    Some(UnixUser { uid: uid.parse().ok()?, gid: gid.parse().ok()? })
}

fn take(terminal: &OsString, user: Option<UnixUser>, becoming: &mut std::process::Command) -> io::Result<()> {
    setsid()?;
    if let Some(UnixUser { uid, gid }) = user {
        // std clears the supplementary groups with it.
        becoming.uid(uid).gid(gid);
        // Everybody of the workspace's group may write what it makes.
        umask(Mode::from_raw_mode(0o002));
    }
    if terminal != NO_TERMINAL {
        control(Path::new(terminal), user)?;
    }
    Ok(())
}

/// Opened by the leader of a session that has none, a terminal becomes its controlling terminal; and its three streams.
pub(crate) fn control(terminal: &Path, user: Option<UnixUser>) -> io::Result<()> {
    let terminal = OpenOptions::new().read(true).write(true).open(terminal)?;
    if let Some(user) = user {
        user.own(&terminal)?;
    }
    dup2_stdin(&terminal)?;
    dup2_stdout(&terminal)?;
    dup2_stderr(&terminal)?;
    Ok(())
}
