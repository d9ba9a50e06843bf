//! A process that ends with its test.
//!
//! It does not know what the process is, nor when it is ready: servers of tests are built on it.

use crate::tools::on_path;
use crate::wait::{comes_true, wait_for, wait_until};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{OnceLock, mpsc};
use std::time::Duration;

/// The account under which a program runs that refuses root.
#[derive(Clone, Debug)]
pub(crate) struct Account {
    pub(crate) user: u32,
    pub(crate) group: u32,
}

/// A started process in a process group of its own. On drop it and everything it started get SIGKILL.
#[derive(Debug)]
pub struct TestProcess {
    child: Child,
    name: String,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl TestProcess {
    /// Starts `command` with standard input closed and its output in `NAME.stdout` and `NAME.stderr` in `folder` (appended to, so that a
    /// restart keeps what was said before). Program, arguments, working directory and single variables of `command` count; its streams
    /// and `env_clear` do not.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn spawn(name: &str, command: &Command, folder: &Path) -> Self {
        Self::spawn_as(name, command, folder, None)
    }

    pub(crate) fn spawn_as(name: &str, command: &Command, folder: &Path, account: Option<&Account>) -> Self {
        let (stdout, stderr) = (folder.join(format!("{name}.stdout")), folder.join(format!("{name}.stderr")));
        let open = |path: &Path| {
            let file = File::options().create(true).append(true).open(path);
            file.unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()))
        };
        let mut wrapped = wrap(command);
        wrapped.stdin(Stdio::null()).stdout(open(&stdout)).stderr(open(&stderr)).process_group(0);
        if let Some(account) = account {
            wrapped.uid(account.user).gid(account.group);
        }
        let child = spawn_from_lasting_thread(wrapped)
            .unwrap_or_else(|error| panic!("cannot start {name} ({command:?}): {error}"));
        Self { child, name: name.to_owned(), stdout, stderr }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has not ended yet.
    pub fn is_running(&mut self) -> bool {
        self.try_wait().is_none()
    }

    fn try_wait(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap_or_else(|error| panic!("cannot ask for {}: {error}", self.name))
    }

    /// What it has written to standard output so far.
    pub fn stdout(&self) -> String {
        std::fs::read(&self.stdout).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// What it has written to standard error so far.
    pub fn stderr(&self) -> String {
        std::fs::read(&self.stderr).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Sends a signal to this process alone; one that has ended is left alone.
    pub fn signal(&mut self, signal: Signal) {
        if self.is_running() {
            let _ = kill(self.pid(), signal);
        }
    }

    /// SIGKILL to this process alone, as the kernel does when memory runs out: what it started lives on. Returns once it is gone.
    pub fn kill9(&mut self) {
        self.signal(Signal::SIGKILL);
        let _ = self.child.wait();
    }

    /// SIGTERM, then waits for the end.
    ///
    /// # Panics
    /// When it has not ended after `deadline`.
    pub fn terminate(&mut self, deadline: Duration) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait(deadline)
    }

    /// Waits for the end.
    ///
    /// # Panics
    /// When it has not ended after `deadline`.
    pub fn wait(&mut self, deadline: Duration) -> ExitStatus {
        let what = format!("the end of {}", self.name);
        wait_for(&what, deadline, || self.try_wait())
    }

    /// Whether it ends in that time; for drops, which must not panic.
    pub(crate) fn ends_within(&mut self, deadline: Duration) -> bool {
        comes_true(deadline, || !matches!(self.child.try_wait(), Ok(None)))
    }

    /// Waits until `look` finds something. Ends at once, with the last lines of its standard error, when the process ends first.
    ///
    /// # Panics
    /// When the process ended, or after `deadline`.
    pub fn wait_ready<T>(&mut self, what: &str, deadline: Duration, mut look: impl FnMut(&Self) -> Option<T>) -> T {
        let what = format!("{what} of {} (its output: {})", self.name, self.stderr.display());
        wait_for(&what, deadline, || {
            if let Some(found) = look(self) {
                return Some(found);
            }
            if let Some(status) = self.try_wait() {
                let (stdout, stderr) = (self.stdout(), self.stderr());
                panic!(
                    "{} ended ({status}) before it was ready:\n{}\n{}",
                    self.name,
                    last_lines(&stdout),
                    last_lines(&stderr)
                );
            }
            None
        })
    }

    /// SIGKILL to this process and everything below it. Returns once it is gone.
    pub(crate) fn kill_tree(&mut self) {
        let below = descendants(self.child.id());
        if self.try_wait().is_none() {
            let _ = killpg(self.pid(), Signal::SIGKILL);
            let _ = self.child.wait();
        }
        for process in &below {
            let _ = kill(Pid::from_raw(*process as i32), Signal::SIGKILL);
        }
        wait_until("killed processes to be gone", Duration::from_secs(10), || {
            !below.iter().any(|process| is_alive(*process))
        });
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }
}

impl Drop for TestProcess {
    fn drop(&mut self) {
        let below = descendants(self.child.id());
        let running = matches!(self.child.try_wait(), Ok(None));
        // When it ended before, what it left in its group is ours as long as nobody else was given the number.
        if running || !Path::new("/proc").join(self.child.id().to_string()).exists() {
            let _ = killpg(self.pid(), Signal::SIGKILL);
        }
        if running {
            let _ = self.child.wait();
        }
        // Not waited for: a panic in drop would hide the one that ended the test.
        for process in below {
            let _ = kill(Pid::from_raw(process as i32), Signal::SIGKILL);
        }
    }
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}

/// `command` behind `setpriv --pdeathsig`, by which the kernel kills it when this test process dies of whatever cause. The shell between
/// closes a gap: a test that died before `setpriv` spoke to the kernel is no longer the parent, and then nothing is started.
fn wrap(command: &Command) -> Command {
    let mut words: Vec<OsString> = Vec::new();
    if let Some(setpriv) = on_path("setpriv") {
        words.push(setpriv.into());
        words.extend(
            ["--pdeathsig", "KILL", "--", "/bin/sh", "-c", r#"[ "$PPID" = "$0" ] && exec "$@""#].map(OsString::from),
        );
        words.push(std::process::id().to_string().into());
    }
    words.push(command.get_program().to_owned());
    words.extend(command.get_args().map(ToOwned::to_owned));
    let mut wrapped = Command::new(&words[0]);
    wrapped.args(&words[1..]);
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => wrapped.env(name, value),
            None => wrapped.env_remove(name),
        };
    }
    if let Some(folder) = command.get_current_dir() {
        wrapped.current_dir(folder);
    }
    wrapped
}

/// The kernel sends the parent-death signal when the *thread* that started the process ends, and test threads end before the servers that
/// tests of one process share: one thread that lasts as long as the process starts them all.
fn spawn_from_lasting_thread(command: Command) -> io::Result<Child> {
    type Request = (Command, mpsc::SyncSender<io::Result<Child>>);
    static SPAWNER: OnceLock<mpsc::SyncSender<Request>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (sender, requests) = mpsc::sync_channel::<Request>(16);
        std::thread::Builder::new()
            .name("testkit-spawner".into())
            .spawn(move || {
                for (mut command, answer) in requests {
                    let _ = answer.send(command.spawn());
                }
            })
            .expect("a test process may start one thread");
        sender
    });
    let (sender, answer) = mpsc::sync_channel(1);
    spawner.send((command, sender)).expect("the spawner thread never ends");
    answer.recv().expect("the spawner thread answers each request")
}

/// All processes below `process`, nearest first. Empty where there is no /proc.
fn descendants(process: u32) -> Vec<u32> {
    let mut found = vec![process];
    let mut next = 0;
    while next < found.len() {
        let threads = std::fs::read_dir(format!("/proc/{}/task", found[next])).into_iter().flatten().flatten();
        for thread in threads {
            let children = std::fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            found.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
        next += 1;
    }
    found.remove(0);
    found
}

/// A zombie whose parent has not looked yet counts as gone.
fn is_alive(process: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{process}/stat"))
        .is_ok_and(|stat| stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X'])))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TestDir;

    const DEADLINE: Duration = Duration::from_secs(10);

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn what_a_process_started_ends_with_it() {
        let dir = TestDir::new();
        // `setsid` takes the grandchild out of the process group, as an agent does with the services it runs.
        let mut process =
            TestProcess::spawn("parent", &shell("setsid sh -c 'echo $$; exec tail -f /dev/null' & wait"), dir.path());
        let grandchild = process
            .wait_ready("the id of the grandchild", DEADLINE, |process| process.stdout().trim().parse::<u32>().ok());
        assert!(is_alive(grandchild));
        drop(process);
        wait_until("the end of the grandchild", DEADLINE, || !is_alive(grandchild));
    }

    #[test]
    fn kill9_leaves_what_the_process_started() {
        let dir = TestDir::new();
        let mut process = TestProcess::spawn("parent", &shell("tail -f /dev/null & echo $!; wait"), dir.path());
        let child =
            process.wait_ready("the id of the child", DEADLINE, |process| process.stdout().trim().parse::<u32>().ok());
        process.kill9();
        assert!(!process.is_running() && is_alive(child));
        let _ = kill(Pid::from_raw(child as i32), Signal::SIGKILL);
    }

    #[test]
    fn a_process_outlives_the_thread_that_asked_for_it() {
        let dir = TestDir::new();
        let folder = dir.path().to_path_buf();
        let mut process = std::thread::spawn(move || {
            TestProcess::spawn("lasting", &shell("trap 'echo ended' TERM; echo up; while :; do read x; done"), &folder)
        })
        .join()
        .unwrap();
        process.wait_ready("the first word", DEADLINE, |process| process.stdout().contains("up").then_some(()));
        assert!(process.is_running());
    }

    #[test]
    #[should_panic(expected = "no such thing")]
    fn a_process_that_ends_too_early_says_what_it_wrote() {
        let dir = TestDir::new();
        let mut process = TestProcess::spawn("early", &shell("echo no such thing >&2; exit 3"), dir.path());
        process.wait_ready("nothing", DEADLINE, |_| None::<()>);
    }

    #[test]
    fn terminate_gives_the_exit_status_and_drop_ends_what_is_left() {
        let dir = TestDir::new();
        let mut process =
            TestProcess::spawn("polite", &shell("trap 'exit 7' TERM; tail -f /dev/null & echo up; wait"), dir.path());
        process.wait_ready("the first word", DEADLINE, |process| process.stdout().contains("up").then_some(()));
        let left = descendants(process.id());
        assert_eq!(process.terminate(DEADLINE).code(), Some(7));
        assert!(left.iter().any(|process| is_alive(*process)), "the shell leaves its child behind");
        drop(process);
        wait_until("the end of what it left behind", DEADLINE, || !left.iter().any(|process| is_alive(*process)));
    }
}
