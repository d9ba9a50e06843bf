//! Shells, jobs and logs of a workspace on an agent's host, with the command line as it is everywhere.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use envforge_testkit::tools::Tool;
use envforge_testkit::{TestProcess, wait_until};

use crate::proxy::Proxy;
use crate::site::{DEADLINE, Site, is_dead};
use crate::tty::Tty;

pub(crate) const DANA: &str = "dana@acme.example";
const LOST: &str = ": lost";
/// The workspace, for OpenSSH.
pub(crate) const HOST: &str = "main.acme.envforge";
/// Until what does not want to end was killed.
pub(crate) const DEAD: Duration = Duration::from_secs(3);
const PASSWORD: &str = "plum kite engine 8";
pub(crate) const MANIFEST: &str = "\
version: 1
services:
  web:
    command: echo $$ >> \"$ENVFORGE_DATA_DIR/starts\"; exec python3 -u -m http.server \"$PORT\" --bind \"$HOST\"
    route: { web: {} }
    readiness: { http: /, interval: 100ms, deadline: 60s }
jobs:
  unit: { command: \"echo ran $ENVFORGE_SERVICE; echo bad >&2; test -f envforge.yml; exit 3\", kind: test }
  long: { command: \"echo begun; exec sleep 100000\", kind: agent }
";

/// A site with an agent, a workspace that never woke, and Dana, a developer.
pub(crate) struct Team {
    pub(crate) site: Site,
    pub(crate) dev: TestProcess,
    pub(crate) agent: TestProcess,
}

impl Team {
    pub(crate) async fn start() -> Self {
        let (site, dev) = Site::new();
        let at = site.at();
        Self::on(site, dev, &at).await
    }

    /// The agent connects to `at`.
    pub(crate) async fn on(site: Site, dev: TestProcess, at: &str) -> Self {
        // Nobody else enters here: shells run as the agent's own user, and write where these tests look.
        Self::in_folder(site, dev, at, 0o700).await
    }

    /// As on a machine of its own: where the agent is root, shells are the workspace's user.
    async fn with_users() -> Self {
        let (site, dev) = Site::new();
        let at = site.at();
        Self::in_folder(site, dev, &at, 0o711).await
    }

    async fn in_folder(site: Site, dev: TestProcess, at: &str, mode: u32) -> Self {
        site.commit(MANIFEST);
        std::fs::set_permissions(site.dir.path(), std::fs::Permissions::from_mode(mode)).unwrap();
        let token = site.enrolment("builder");
        let agent = site.agent("builder", at, Some(&token));
        site.until_host("builder", "active").await;
        let root = site.dir.join("orders").display().to_string();
        Self::with(site, dev, agent, &root)
    }

    /// A team whose repository lies there.
    pub(crate) fn with(site: Site, dev: TestProcess, agent: TestProcess, repository: &str) -> Self {
        site.json(&["project", "create", "orders", "--name", "Orders", "--repository", repository]);
        site.json(&["workspace", "create", "--project", "orders", "--branch", "main", "--slug", "main"]);
        site.add_developer(DANA, PASSWORD);
        let team = Self { site, dev, agent };
        team.sign_in();
        team
    }

    pub(crate) fn make_developer(&self) {
        self.site.json(&["org", "role", "assign", DANA, "developer"]);
    }

    pub(crate) fn sign_in(&self) {
        self.sign_in_as("dana", &self.site.api());
    }

    /// Dana, at another API from another machine.
    pub(crate) fn sign_in_as(&self, who: &str, api: &str) {
        self.site.sign_in_as(who, DANA, PASSWORD, api);
    }

    pub(crate) fn run(&self, who: &str, args: &[&str], stdin: &str) -> Output {
        self.site.run(who, args, stdin)
    }

    pub(crate) fn dana(&self, args: &[&str], stdin: &str) -> Output {
        self.run("dana", args, stdin)
    }

    #[track_caller]
    pub(crate) fn refused(&self, args: &[&str]) -> String {
        let output = self.dana(args, "");
        assert_ne!(output.status.code(), Some(0), "{args:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// A command that goes on.
    pub(crate) fn begin(&self, args: &[&str]) -> Child {
        let mut command = self.site.command_of("dana", args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// A program of OpenSSH's with Dana's configuration for it.
    pub(crate) fn openssh(&self, program: &str, args: &[&str], input: &[u8]) -> Output {
        let config = self.site.dir.join("ssh_config");
        std::fs::write(&config, self.dana(&["ssh-config"], "").stdout).unwrap();
        let mut command = std::process::Command::new(Tool::Ssh.path().with_file_name(program));
        for (name, value) in self.site.command_of("dana", &[]).get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command.arg("-F").arg(&config).args(args).current_dir(self.site.dir.path());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (mut stdin, input) = (child.stdin.take().unwrap(), input.to_vec());
        let writing = std::thread::spawn(move || stdin.write_all(&input));
        let output = child.wait_with_output().unwrap();
        let _ = writing.join().unwrap();
        output
    }

    /// Until the workspace's host is there again.
    #[track_caller]
    pub(crate) fn until_reached(&self) {
        wait_until("the host to be reached", DEADLINE, || {
            self.dana(&["shell", "main", "--", "true"], "").status.success()
        });
    }

    pub(crate) fn tty(&self, args: &[&str]) -> Tty {
        Tty::start(self.site.command_of("dana", args))
    }

    /// What the audit says of ends of shells, the newest first.
    pub(crate) fn ends(&self) -> Vec<String> {
        let rows = self.site.json(&["audit", "log", "--type", "shell.disconnected", "--limit", "50"]);
        let items = rows["items"].as_array().unwrap();
        items.iter().map(|row| row["summary"].as_str().unwrap().to_owned()).collect()
    }

    #[track_caller]
    pub(crate) fn ended_as(&self, wanted: &str) {
        wait_until(&format!("`{wanted}` in the audit"), DEADLINE, || {
            self.ends().iter().any(|end| end.contains(wanted))
        });
    }

    pub(crate) fn clones_on(&self, host: &str) -> usize {
        let places = std::fs::read_dir(self.site.dir.join(host).join("runtime/workspaces"));
        places.into_iter().flatten().flatten().filter(|place| place.path().join("shell/work").exists()).count()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_runs_on_an_agents_host_while_the_runtime_sleeps() {
    let team = Team::start().await;
    let script = "cat; echo to-err >&2; ls; git status --short --branch; env; exit 7";
    let output = team.dana(&["shell", "main", "--", "sh", "-c", script], "from here\n");
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!((output.status.code(), err.as_str()), (Some(7), "to-err\n"), "{out}");
    assert!(out.starts_with("from here\nenvforge.yml\n## main...origin/main\n"), "{out}");
    assert_eq!((team.clones_on("builder"), team.clones_on("data")), (1, 0));
    let killed = team.dana(&["shell", "main", "--", "sh", "-c", "kill -9 $$"], "");
    assert_eq!(killed.status.code(), Some(128 + 9));
    assert_eq!(team.dana(&["shell", "main", "--", "/nowhere/at-all"], "").status.code(), Some(127));
    let mut plain = team.tty(&["shell", "main", "--no-tmux"]);
    plain.shows("work#");
    plain.types("stty size\r");
    plain.shows("30 100");
    plain.resize(120, 40);
    wait_until("the new size", DEADLINE, || {
        plain.types("stty size\r");
        plain.text().contains("40 120")
    });
    plain.types("exit 5\r");
    assert_eq!(plain.ends().code(), Some(5));
    assert!(plain.is_cooked());
    assert_eq!(team.site.json(&["usage"])["items"], serde_json::json!([]), "outside the meter");
    wait_until("the end of each in the audit", DEADLINE, || team.ends().len() == 4);
    // It wakes where the team's clone is.
    team.site.json(&["up"]);
    assert_eq!(team.site.starts_on("builder").len(), 1);
}

/// Processes that do not want to end, one of them in a session of its own, and where they write who they are.
pub(crate) struct Tenacious {
    pids: std::path::PathBuf,
}

impl Tenacious {
    pub(crate) fn new(team: &Team, name: &str) -> Self {
        Self { pids: team.site.dir.join(name) }
    }

    pub(crate) fn script(&self) -> String {
        let pids = self.pids.display();
        format!(
            "trap '' TERM HUP; echo $$ >> {pids}; sleep 100000 & echo $! >> {pids}; \
             setsid sh -c 'echo $$ >> {pids}; exec sleep 100000' & wait"
        )
    }

    pub(crate) fn all(&self) -> Vec<String> {
        std::fs::read_to_string(&self.pids).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    #[track_caller]
    pub(crate) fn until_they_run(&self) {
        wait_until("the shell's processes", DEADLINE, || self.all().len() >= 3);
    }

    #[track_caller]
    pub(crate) fn until_dead(&self, within: Duration) -> Duration {
        let begun = Instant::now();
        wait_until("the end of the shell's processes", within, || self.all().iter().all(|pid| is_dead(pid)));
        begun.elapsed()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_over_the_line_ends_within_a_second_of_its_right_and_with_its_client() {
    let team = Team::start().await;
    let tenacious = Tenacious::new(&team, "revoked");
    let client = team.begin(&["shell", "main", "--", "sh", "-c", &tenacious.script()]);
    tenacious.until_they_run();
    team.site.json(&["org", "role", "revoke", DANA, "developer"]);
    let answered = Instant::now();
    let output = client.wait_with_output().unwrap();
    assert!(answered.elapsed() < Duration::from_secs(1), "{:?}", answered.elapsed());
    assert!(String::from_utf8_lossy(&output.stderr).contains("you may not do this any more"));
    tenacious.until_dead(DEAD);
    team.ended_as("right lost");
    team.make_developer();

    // A client that dies without a word takes it along, too.
    let tenacious = Tenacious::new(&team, "left");
    let mut client = team.begin(&["shell", "main", "--", "sh", "-c", &tenacious.script()]);
    tenacious.until_they_run();
    client.kill().unwrap();
    client.wait().unwrap();
    tenacious.until_dead(DEADLINE);
    team.ended_as("its client went away");
    // Signing out everywhere ends a terminal that lasts, and all that it ran.
    let mut terminal = team.tty(&["shell", "main"]);
    terminal.shows("work#");
    let tenacious = Tenacious::new(&team, "lasted");
    terminal.types(&format!("{}\r", tenacious.script()));
    tenacious.until_they_run();
    terminal.signal(rustix::process::Signal::KILL);
    terminal.ends();
    assert!(tenacious.all().iter().all(|pid| !is_dead(pid)), "it lasts");
    team.site.json(&["org", "role", "revoke", DANA, "developer"]);
    tenacious.until_dead(DEAD);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_that_is_still_cloning_ends_with_its_right_and_its_client_on_the_host_too() {
    let (site, dev) = Site::new();
    // A server that takes what git says, and never answers.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("https://localhost:{}/orders", silent.local_addr().unwrap().port());
    let agent = site.agent("builder", &site.at(), Some(&site.enrolment("builder")));
    site.until_host("builder", "active").await;
    let team = Team::with(site, dev, agent, &address);
    // One clones at a time: whoever comes next is there once the one before has let go.
    let git_comes = async || tokio::time::timeout(DEADLINE, silent.accept()).await.unwrap().unwrap();
    let mut clones = Vec::new();
    let client = team.begin(&["shell", "main", "--", "true"]);
    clones.push(git_comes().await);
    team.site.json(&["org", "role", "revoke", DANA, "developer"]);
    let answered = Instant::now();
    let output = client.wait_with_output().unwrap();
    assert!(answered.elapsed() < Duration::from_secs(1), "{:?}", answered.elapsed());
    assert!(String::from_utf8_lossy(&output.stderr).contains("you may not do this any more"));
    team.ended_as("right lost");
    team.make_developer();
    let mut client = team.begin(&["shell", "main", "--", "true"]);
    clones.push(git_comes().await);
    client.kill().unwrap();
    client.wait().unwrap();
    team.ended_as("its client went away");
    let mut client = team.begin(&["shell", "main", "--", "true"]);
    clones.push(git_comes().await);
    client.kill().unwrap();
    client.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_line_breaks_what_a_shell_ran_ends_and_the_log_says_lost() {
    let (site, dev) = Site::new();
    let proxy = Proxy::to(site.agents_port).await;
    let mut team = Team::on(site, dev, &proxy.address()).await;
    // Cut, and silent: nobody hears of that, and the connection's own patience ends it.
    for (name, within) in [("cut", 5), ("silent", 20)] {
        let tenacious = Tenacious::new(&team, name);
        let client = team.begin(&["shell", "main", "--", "sh", "-c", &tenacious.script()]);
        tenacious.until_they_run();
        let before = team.ends().len();
        if name == "cut" {
            proxy.cut()
        } else {
            proxy.fall_silent()
        }
        let took = tenacious.until_dead(DEADLINE);
        assert!(took < Duration::from_secs(within), "{name}: {took:?}");
        let output = client.wait_with_output().unwrap();
        assert_ne!(output.status.code(), Some(0));
        wait_until("its end in the audit", DEADLINE, || team.ends().len() > before);
        assert!(team.ends()[0].contains(LOST), "{:?}", team.ends());
        let told = team.refused(&["shell", "main", "--", "true"]);
        assert!(told.contains("out of reach"), "{told}");
        proxy.mend();
        team.until_reached();
    }
    // A terminal that lasts goes on through a cut; its right that is lost meanwhile ends it once the host is back.
    let mut terminal = team.tty(&["shell", "main"]);
    terminal.shows("work#");
    let tenacious = Tenacious::new(&team, "lasted");
    terminal.types(&format!("{}\r", tenacious.script()));
    tenacious.until_they_run();
    proxy.cut();
    terminal.ends();
    team.site.json(&["org", "role", "revoke", DANA, "developer"]);
    assert!(tenacious.all().iter().all(|pid| !is_dead(pid)), "nobody can tell that host yet");
    proxy.mend();
    tenacious.until_dead(DEADLINE);
    team.make_developer();
    team.until_reached();

    // The control plane dies: what it had opened ends, what lasts does not, and both are known to the next one.
    let mut terminal = team.tty(&["shell", "main"]);
    terminal.shows("work#");
    let lasting = Tenacious::new(&team, "outlived");
    terminal.types(&format!("{}\r", lasting.script()));
    lasting.until_they_run();
    let tenacious = Tenacious::new(&team, "killed");
    let mut client = team.begin(&["shell", "main", "--", "sh", "-c", &tenacious.script()]);
    tenacious.until_they_run();
    let before = team.ends().len();
    team.dev.kill9();
    let took = tenacious.until_dead(DEADLINE);
    assert!(took < Duration::from_secs(5), "{took:?}");
    client.wait().unwrap();
    team.dev = team.site.start().0;
    team.sign_in();
    team.until_reached();
    wait_until("both ends in the audit", DEADLINE, || {
        team.ends().iter().rev().skip(before).filter(|end| end.contains(LOST)).count() == 2
    });
    assert!(lasting.all().iter().all(|pid| !is_dead(pid)), "a restart of the control plane ends nothing that lasts");
    team.site.json(&["org", "role", "revoke", DANA, "developer"]);
    lasting.until_dead(DEAD);
    team.make_developer();

    // The agent dies, and is stopped: what it ran ends with it, or is ended by its next start.
    for asked in [false, true] {
        let tenacious = Tenacious::new(&team, if asked { "stopped" } else { "agent-killed" });
        let client = team.begin(&["shell", "main", "--", "sh", "-c", &tenacious.script()]);
        tenacious.until_they_run();
        if asked {
            assert!(team.agent.terminate(DEADLINE).success(), "{}", team.agent.stderr());
            tenacious.until_dead(DEAD);
        } else {
            team.agent.kill9();
        }
        assert_ne!(client.wait_with_output().unwrap().status.code(), Some(0));
        team.agent = team.site.agent("builder", &proxy.address(), None);
        tenacious.until_dead(DEADLINE);
        team.until_reached();
    }
    team.ended_as("host stopped");
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_and_logs_come_over_the_line_and_openssh_does() {
    Tool::SftpServer.path();
    let team = Team::with_users().await;
    let ran = team.dana(&["run", "unit", "--workspace", "main"], "");
    let (out, err) = (String::from_utf8(ran.stdout).unwrap(), String::from_utf8_lossy(&ran.stderr).into_owned());
    assert_eq!(ran.status.code(), Some(3), "{out}{err}");
    assert!(out.starts_with("ran job:job_") && err.ends_with("bad\n"), "{out}{err}");
    let row = |kind: &str| team.site.json(&["audit", "log", "--type", kind])["items"][0].clone();
    wait_until("the job's end in the audit", DEADLINE, || {
        row("job.finished")["summary"].as_str().is_some_and(|text| text.ends_with("exit status 3"))
    });
    let logs = team.dana(&["logs", "main"], "");
    assert!(String::from_utf8(logs.stdout).unwrap().contains("web | Serving HTTP on 127.0.0.1"));
    let mut long = team.tty(&["run", "long", "--workspace", "main"]);
    long.shows("begun");
    let mut following = team.tty(&["logs", "main", "web", "--follow", "--lines", "1"]);
    following.shows("GET /");
    team.site.json(&["workspace", "sleep", "main"]);
    long.ends();
    team.site.json(&["workspace", "wake", "main"]);
    following.shows("Serving HTTP on 127.0.0.1");

    let ssh = |program: &str, args: &[&str], input: &[u8]| team.openssh(program, args, input);
    let output = ssh("ssh", &[HOST, "cat; echo to-err >&2; pwd; exit 4"], b"from here\n");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!((output.status.code(), &*err), (Some(4), "to-err\n"), "{out}");
    assert!(out.starts_with("from here\n") && out.contains("/builder/runtime/"), "{out}");
    let bytes: Vec<u8> =
        (0..8_000_000_u32).flat_map(|number| (number.wrapping_mul(2_654_435_761)).to_le_bytes()).collect();
    std::fs::write(team.site.dir.join("big"), &bytes).unwrap();
    let copied = ssh("scp", &["-q", "big", &format!("{HOST}:copied")], b"");
    assert_eq!(copied.status.code(), Some(0), "{}", String::from_utf8_lossy(&copied.stderr));
    let fetched = ssh("sftp", &["-q", "-b", "-", HOST], b"get copied fetched\nmkdir made\n");
    assert_eq!(fetched.status.code(), Some(0), "{}", String::from_utf8_lossy(&fetched.stderr));
    assert!(std::fs::read(team.site.dir.join("fetched")).unwrap() == bytes, "32 MB go and come as they are");

    // Whoever may no more sees no more of what is written.
    assert!(following.is_running());
    team.site.json(&["org", "role", "revoke", DANA, "developer"]);
    following.ends();
    assert_eq!(team.dana(&["logs", "main", "web"], "").status.code(), Some(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_typed_and_shown_is_kept_nowhere_and_no_secret_gets_into_a_shell() {
    let team = Team::start().await;
    team.site.commit(&MANIFEST.replace("    readiness", "    secrets: [API_KEY]\n    readiness"));
    team.site.set_secret("API_KEY", "value-of-the-key", &[]);
    team.site.json(&["up"]);
    let script = "read typed; echo \"shown-$typed\"; env; echo bad-$typed >&2";
    let output = team.dana(&["shell", "main", "--", "sh", "-c", script], "canary-of-the-keyboard\n");
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(out.contains("shown-canary-of-the-keyboard") && !out.contains("value-of-the-key"), "{out}");
    let ran = team.dana(&["run", "unit", "--workspace", "main"], "");
    assert!(!String::from_utf8_lossy(&ran.stdout).contains("value-of-the-key"));
    wait_until("the shell's end in the audit", DEADLINE, || team.ends().len() == 1);
    for canary in ["canary-of-the-keyboard", "value-of-the-key"] {
        let mut grep = std::process::Command::new("grep");
        let found = grep.args(["-rl", canary]).arg(team.site.dir.join("builder")).output().unwrap().stdout;
        assert!(found.is_empty(), "{canary}: {}", String::from_utf8_lossy(&found));
    }
    let events = team.site.shown(&["audit", "replay", "--json"]);
    for told in [team.agent.stderr(), team.dev.stderr(), events] {
        assert!(!told.contains("canary-of-the-keyboard") && !told.contains("value-of-the-key"), "{told}");
    }
}
