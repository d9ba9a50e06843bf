//! Root windows of a workspace on an agent's host: what runs as root there is dead when its window ends, whoever is away by then, and
//! the log hears of it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use envforge_testkit::{TestProcess, wait_until};
use jiff::Timestamp;
use rustix::process::Signal;
use serde_json::Value;

use crate::proxy::Proxy;
use crate::shells::{DANA, Team};
use crate::site::{DEADLINE, Site, is_dead};

/// After a window's end.
const DEAD_AFTER: Duration = Duration::from_secs(5);
/// For a window of a minute to end.
const A_MINUTE: Duration = Duration::from_secs(90);

/// Something that runs as root, does not want to end, and changes a file below /etc.
struct Running {
    window: String,
    pids: PathBuf,
    changed: PathBuf,
}

/// Its file is the machine's.
impl Drop for Running {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.changed);
    }
}

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("not root: there is nothing to give here, and nothing was tested");
    }
    root
}

async fn team_at(site: Site, dev: TestProcess, at: &str) -> Team {
    let team = Team::on(site, dev, at).await;
    team.site.json(&["org", "policy", "set", "--root", "workspace_elevation"]);
    team.site.json(&["workspace", "wake", "main"]);
    team.site.until_phase("ready").await;
    team
}

async fn team() -> Team {
    let (site, dev) = Site::new();
    let at = site.at();
    team_at(site, dev, &at).await
}

impl Team {
    /// A window that Dana asked for and the owner approved.
    fn window(&self, length: &str, more: &[&str]) -> String {
        let ask = ["--json", "root", "request", "main", "--reason", "who am I", "--for", length];
        let asked = self.dana(&[&ask[..], more].concat(), "");
        assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
        let asked: Value = serde_json::from_slice(&asked.stdout).unwrap();
        let window = asked["id"].as_str().unwrap().to_owned();
        self.site.json(&["root", "approve", &window]);
        window
    }

    fn running(&self, name: &str, length: &str) -> (Running, Child) {
        let window = self.window(length, &[]);
        let running = Running::of(self, name, &window);
        let child = self.begin(&["root", "run", &window, "--", "/bin/sh", "-c", &running.script()]);
        running.until_all_run();
        (running, child)
    }

    /// The runtime counts as lost where its host was away for about as long as a window of a minute.
    async fn wake_again(&self) {
        self.site.json(&["workspace", "wake", "main"]);
        self.site.until_phase("ready").await;
    }

    fn shown(&self, window: &str) -> Value {
        self.site.json(&["root", "show", window])
    }

    /// Until its end stands in the log.
    #[track_caller]
    fn root_ended(&self, window: &str, outcome: &str) -> Value {
        wait_until(&format!("the outcome {outcome}"), DEADLINE, || {
            self.shown(window)["command"]["outcome"].is_string()
        });
        let shown = self.shown(window);
        assert_eq!(shown["command"]["outcome"], outcome, "{shown}");
        shown
    }
}

impl Running {
    fn of(team: &Team, name: &str, window: &str) -> Self {
        let changed = PathBuf::from(format!("/etc/envforge-test-{}-{name}", std::process::id()));
        Self { window: window.to_owned(), pids: team.site.dir.join(name), changed }
    }

    fn script(&self) -> String {
        let (pids, changed) = (self.pids.display(), self.changed.display());
        format!(
            "trap '' TERM HUP; echo x > {changed}; echo $$ >> {pids}; id -u; sleep 100000 & echo $! >> {pids}; \
             setsid env -i /bin/sh -c 'trap \"\" TERM HUP; echo $$ >> {pids}; sleep 100000 & echo $! >> {pids}; wait' & wait"
        )
    }

    fn all(&self) -> Vec<String> {
        std::fs::read_to_string(&self.pids).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    #[track_caller]
    fn until_all_run(&self) {
        wait_until("what runs as root", DEADLINE, || self.all().len() >= 4);
    }

    fn is_alive(&self) -> bool {
        self.all().iter().any(|pid| !is_dead(pid))
    }

    #[track_caller]
    fn until_dead(&self, within: Duration) {
        wait_until("the end of what ran as root", within, || !self.is_alive());
    }

    /// Dead at most five seconds after the window's end, and not before it.
    #[track_caller]
    fn dies_with_its_window(&self, shown: &Value) {
        let ends_at: Timestamp = shown["ends_at"].as_str().unwrap().parse().unwrap();
        self.until_dead(A_MINUTE);
        let late = Timestamp::now().as_millisecond() - ends_at.as_millisecond();
        println!("dead {late} ms after the end of its window");
        assert!((-1_000..=i64::try_from(DEAD_AFTER.as_millis()).unwrap()).contains(&late), "{late} ms");
    }

    fn is_told_as_changed(&self, shown: &Value) {
        let path = self.changed.display().to_string();
        assert!(shown["command"]["changes"].to_string().contains(&path), "{shown}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn root_on_an_agents_host_ends_with_whatever_takes_it_away_and_its_output_comes_over_the_line() {
    if !is_root() {
        return;
    }
    let mut team = team().await;
    let window = team.window("20m", &[]);
    let script = "id -u; echo by $ENVFORGE_ROOT_WINDOW; echo to-err >&2; exit 3";
    let out = team.dana(&["--json", "root", "run", &window, "--", "/bin/sh", "-c", script], "");
    let told = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(told.contains(&format!("0\\nby {window}\\nto-err\\n")), "{told}{}", String::from_utf8_lossy(&out.stderr));
    let shown = team.root_ended(&window, "exited");
    assert_eq!((&shown["phase"], &shown["command"]["code"]), (&"closed".into(), &3.into()));

    for (end, outcome) in [
        (&["root", "revoke"][..], "revoked"),
        (&["org", "role", "revoke", DANA, "developer"], "right_lost"),
        (&["org", "policy", "set", "--root", "disabled"], "right_lost"),
        (&["workspace", "sleep", "main"], "runtime_gone"),
    ] {
        let (running, mut child) = team.running(outcome, "20m");
        let window = [end, &[&*running.window]].concat();
        team.site.json(if end[0] == "root" { &window } else { end });
        running.until_dead(DEAD_AFTER);
        let shown = team.root_ended(&running.window, outcome);
        running.is_told_as_changed(&shown);
        child.wait().unwrap();
        std::fs::remove_file(&running.pids).unwrap();
        team.make_developer();
        team.site.json(&["org", "policy", "set", "--root", "workspace_elevation"]);
    }
    team.site.json(&["workspace", "wake", "main"]);
    team.site.until_phase("ready").await;

    // The agent dies: what it ran as root dies with it, and its next start says so. A stop that is asked for says more.
    for (asked, outcome) in [(false, "lost"), (true, "host_stopped")] {
        let (running, mut child) = team.running(outcome, "20m");
        let since = Instant::now();
        if asked {
            assert!(team.agent.terminate(DEADLINE).success(), "{}", team.agent.stderr());
        } else {
            team.agent.kill9();
        }
        running.until_dead(DEAD_AFTER);
        println!("dead {:?} after the agent", since.elapsed());
        let at = team.site.at();
        team.agent = team.site.agent("builder", &at, None);
        let shown = team.root_ended(&running.window, outcome);
        assert_eq!(shown["phase"], "closed");
        child.wait().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_end_of_a_window_whose_client_was_killed_everything_is_dead() {
    if !is_root() {
        return;
    }
    let team = team().await;
    let (running, mut child) = team.running("client", "1m");
    let shown = team.shown(&running.window);
    child.kill().unwrap();
    child.wait().unwrap();
    // A shell of another window, beside it.
    let window = team.window("1m", &["--mode", "shell"]);
    assert_eq!(team.shown(&window)["access"], "shell", "whoever decides sees it");
    let refused = team.dana(&["root", "run", &window, "--", "id"], "");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("is for a shell"));
    let mut terminal = team.tty(&["root", "shell", &window]);
    terminal.shows("# ");
    let typed = Running::of(&team, "typed", &window);
    terminal.types(&format!("{}\r", typed.script()));
    typed.until_all_run();
    let mut second = team.tty(&["root", "shell", &window]);
    second.shows("it has had");
    assert_ne!(second.ends().code(), Some(0), "nobody comes to it twice");
    let shown_typed = team.shown(&window);

    running.dies_with_its_window(&shown);
    running.is_told_as_changed(&team.root_ended(&running.window, "deadline"));
    typed.dies_with_its_window(&shown_typed);
    assert_eq!(terminal.ends().code(), Some(1));
    terminal.shows("the root window's time is over");
    let shown = team.root_ended(&window, "deadline");
    typed.is_told_as_changed(&shown);
    assert_eq!(shown["command"]["words"], serde_json::json!([]));
    // What was typed stands nowhere.
    let events = team.site.shown(&["audit", "replay", "--json"]);
    assert!(!events.contains("setsid env -i /bin/sh -c 'trap \\\"\\\" TERM HUP; echo $$ >> /tmp/typed"), "{events}");
    let closed = team.site.json(&["audit", "log", "--type", "root_window.closed"]);
    assert!(closed.to_string().contains("a shell, for "), "{closed}");

    // Whoever sits before one is told what became of its window.
    for (end, told) in [("revoke", "was revoked"), ("withdraw", "was given up")] {
        let window = team.window("20m", &["--mode", "shell"]);
        let mut terminal = team.tty(&["root", "shell", &window]);
        terminal.shows("# ");
        if end == "revoke" {
            team.site.json(&["root", "revoke", &window]);
        } else {
            assert!(team.dana(&["root", "withdraw", &window], "").status.success());
        }
        assert_eq!(terminal.ends().code(), Some(1));
        terminal.shows(&format!("the root window {told}"));
    }

    // One that its person leaves is over, and so is its window.
    let window = team.window("20m", &["--mode", "shell"]);
    let mut terminal = team.tty(&["root", "shell", &window]);
    terminal.shows("# ");
    terminal.types("id -u; stty size; tty; exit 7\r");
    assert_eq!(terminal.ends().code(), Some(7));
    let text = terminal.text();
    assert!(text.contains("0\r\n30 100\r\n/dev/pts/"), "{text}");
    assert_eq!(team.root_ended(&window, "exited")["phase"], "closed");
    let window = team.window("20m", &["--mode", "shell"]);
    let mut terminal = team.tty(&["root", "shell", &window]);
    terminal.shows("# ");
    terminal.signal(Signal::KILL);
    terminal.ends();
    team.root_ended(&window, "signalled");
    // Whoever lost their connection comes back for as long as the window is open, and leaves when they leave.
    assert_eq!(team.shown(&window)["phase"], "open");
    let mut again = team.tty(&["root", "shell", &window]);
    again.shows("# ");
    again.types("exit 3\r");
    assert_eq!(again.ends().code(), Some(3));
    assert_eq!(team.root_ended(&window, "exited")["phase"], "closed");
    let closed = team.site.json(&["audit", "log", "--type", "root_window.closed"]);
    let summary = closed["items"][0]["summary"].as_str().unwrap();
    assert_eq!(summary.matches("a shell, for ").count(), 2, "{summary}");
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_end_of_a_window_everything_is_dead_behind_a_cut_network_too() {
    if !is_root() {
        return;
    }
    let (site, dev) = Site::new();
    let proxy = Proxy::to(site.agents_port).await;
    let team = team_at(site, dev, &proxy.address()).await;
    let (running, mut child) = team.running("cut", "1m");
    let shown = team.shown(&running.window);
    proxy.cut();
    child.kill().unwrap();
    child.wait().unwrap();
    running.dies_with_its_window(&shown);
    assert!(team.shown(&running.window)["command"]["outcome"].is_null(), "nobody knows yet");
    proxy.mend();
    let shown = team.root_ended(&running.window, "deadline");
    running.is_told_as_changed(&shown);
    team.wake_again().await;
    // One that is revoked behind a cut is dead once the line is back.
    let (running, mut child) = team.running("revoked", "20m");
    proxy.cut();
    team.site.json(&["root", "revoke", &running.window]);
    assert!(running.is_alive());
    proxy.mend();
    running.until_dead(DEADLINE);
    running.is_told_as_changed(&team.root_ended(&running.window, "revoked"));
    child.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_end_of_a_window_everything_is_dead_though_the_control_plane_was_killed() {
    if !is_root() {
        return;
    }
    let mut team = team().await;
    let (running, mut child) = team.running("control-plane", "1m");
    let shown = team.shown(&running.window);
    team.dev.kill9();
    child.wait().unwrap();
    running.dies_with_its_window(&shown);
    team.dev = team.site.start().0;
    let shown = team.root_ended(&running.window, "deadline");
    running.is_told_as_changed(&shown);
    assert_eq!(shown["phase"], "closed");
    team.wake_again().await;
    // One that ends by itself while nobody listens is told, too, with what it said.
    team.sign_in();
    let window = team.window("20m", &[]);
    let go = team.site.dir.join("go");
    let script = format!("while ! test -e {}; do sleep 0.1; done; echo done-meanwhile; exit 4", go.display());
    let begun = team.dana(&["root", "run", &window, "--detach", "--", "/bin/sh", "-c", &script], "");
    assert!(begun.status.success(), "{}", String::from_utf8_lossy(&begun.stderr));
    wait_until("its start", DEADLINE, || team.shown(&window)["command"]["started_at"].is_string());
    team.dev.kill9();
    std::fs::write(&go, "").unwrap();
    team.dev = team.site.start().0;
    assert_eq!(team.root_ended(&window, "exited")["command"]["code"], 4);
}

/// Everything below a folder, given to nobody.
fn given_away(folder: &Path) {
    assert!(Command::new("chown").args(["-R", "65534:65534"]).arg(folder).status().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_not_root_gives_none_and_says_so() {
    if !is_root() {
        return;
    }
    use std::os::unix::fs::PermissionsExt as _;
    let (site, dev) = Site::new();
    // Reached by whoever the agent is.
    std::fs::set_permissions(site.dir.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
    let (program, folder) = (site.dir.join("envforge"), site.dir.join("nobody"));
    std::fs::copy(env!("CARGO_BIN_EXE_envforge"), &program).unwrap();
    std::fs::create_dir(&folder).unwrap();
    // Git serves nobody what is somebody else's.
    let origin = folder.join("origin.git");
    let cloned = Command::new("git").args(["clone", "-q", "--bare"]).arg(site.dir.join("orders")).arg(&origin).status();
    assert!(cloned.unwrap().success());
    std::fs::copy(site.enrolment("builder"), folder.join("token")).unwrap();
    given_away(&folder);
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program);
    command.args(["agent", "--json", "--log-format", "text", "--control-plane", &site.at(), "--enrolment-file"]);
    command.arg(folder.join("token")).arg("--data").arg(folder.join("agent"));
    command.env("HOME", &folder).stdin(Stdio::null());
    let agent = site.started("builder", &command);
    site.until_host("builder", "active").await;
    let team = Team::with(site, dev, agent, &origin.display().to_string());
    team.site.json(&["org", "policy", "set", "--root", "workspace_elevation"]);
    team.site.json(&["workspace", "wake", "main"]);
    team.site.until_phase("ready").await;
    let window = team.window("20m", &[]);
    let refused = team.dana(&["root", "run", &window, "--", "id", "-u"], "");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("EnvForge is not root"), "nothing is pretended");
    team.root_ended(&window, "no_root");
    let window = team.window("20m", &["--mode", "shell"]);
    let mut terminal = team.tty(&["root", "shell", &window]);
    terminal.shows("EnvForge is not root");
    terminal.ends();
    team.root_ended(&window, "no_root");
    let shell = team.dana(&["shell", "main", "--", "id", "-u"], "");
    assert_eq!(String::from_utf8_lossy(&shell.stdout).trim(), "65534");
}
