//! Shells of a workspace with the command line against `envforge dev`: commands, terminals that last, OpenSSH, jobs and logs; what
//! ends them, and that nothing of them stays.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests panic, and hand paths on")]

mod editors;
mod ends;
mod hostile;
mod place;
mod tty;

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};

use envforge_testkit::tools::Tool;
use envforge_testkit::wait_until;
use place::{DEADLINE, Place};
use rustix::process::Signal;
use sha2::{Digest as _, Sha256};
use tty::Tty;

const BIG: usize = 100_000_000;
/// Through OpenSSH, whose ciphers and ours take turns on the same cores.
const BIG_OVER_SSH: usize = 32_000_000;

/// Bytes of all values that follow no short pattern.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252_u64;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn digest(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

#[test]
fn a_command_passes_bytes_and_exit_status_while_the_runtime_sleeps_and_the_meter_stands_still() {
    let place = Place::start();
    let script = "cat; echo to-err >&2; ls; git status --short --branch; env; exit 7";
    let output = place.client("dana", &["shell", "main", "--", "sh", "-c", script], "from here\n");
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!((output.status.code(), err.as_str()), (Some(7), "to-err\n"), "{out}");
    assert!(out.starts_with("from here\nenvforge.yml\n## main...origin/main\n"), "{out}");
    assert!(!out.contains("CANARY"), "nothing of EnvForge's own environment: {out}");
    let config = place.client("dana", &["shell", "main", "--", "cat", ".git/config"], "");
    let config = String::from_utf8(config.stdout).unwrap();
    assert!(config.contains("url = ") && !config.contains('@'), "no credentials: {config}");
    let killed = place.client("dana", &["shell", "main", "--", "sh", "-c", "kill -9 $$"], "");
    assert_eq!(killed.status.code(), Some(128 + 9));
    let missing = place.client("dana", &["shell", "main", "--", "/nowhere/at-all"], "");
    assert_eq!(missing.status.code(), Some(127));
    // Without a command and a terminal: what a shell reads.
    let read = place.client("dana", &["shell", "main"], "echo $((6 * 7)); exit 4");
    assert_eq!((read.status.code(), read.stdout), (Some(4), b"42\n".to_vec()));

    let file = place.dir.join("big");
    let bytes = noise(BIG);
    std::fs::write(&file, &bytes).unwrap();
    let there = place.client("dana", &["shell", "main", "--", "cat", file.to_str().unwrap()], "");
    assert_eq!((there.status.code(), there.stdout.len()), (Some(0), BIG));
    assert!(there.stdout == bytes, "100 MB come as they are");
    let mut command = place.command("dana", &["shell", "main", "--", "sha256sum"]);
    let and_back = command.stdin(std::fs::File::open(&file).unwrap()).output().unwrap();
    assert_eq!(
        String::from_utf8(and_back.stdout).unwrap(),
        format!("{}  -\n", digest(&bytes)),
        "100 MB go as they are"
    );

    let runtime = place.json("owner", &["workspace", "show", "main"]);
    assert!(runtime.to_string().contains("asleep"), "{runtime}");
    assert_eq!(place.json("owner", &["usage"])["items"], serde_json::json!([]), "outside the meter");
    let woken = place.json("owner", &["audit", "log", "--type", "runtime.wake_requested"]);
    assert_eq!(woken["items"], serde_json::json!([]), "a shell wakes nothing");
    let opened = place.json("owner", &["audit", "log", "--type", "shell.connected"]);
    let (row, all) = (&opened["items"][0], opened["items"].as_array().unwrap());
    assert_eq!((all.len(), &row["actor"]["name"], &row["surface"]), (7, &"Dana".into(), &"cli".into()), "{row}");
    place.ended_as("The shell of Dana in workspace main is over after");
    wait_until("the end of each in the audit", DEADLINE, || place.ends().len() == 7);
}

#[test]
fn a_terminal_survives_a_disconnect_and_two_clients_share_it() {
    Tool::Tmux.path();
    let place = Place::start();
    let open = || Tty::start(place.command("dana", &["shell", "main"]));
    let mut first = open();
    first.shows("work#");
    assert!(!first.is_cooked(), "keys go as they are typed");
    first.types("KEPT=still-here; stty size; echo begun-$KEPT\r");
    first.shows("begun-still-here");
    // tmux has a line of its own.
    first.shows("29 100");
    first.resize(120, 40);
    wait_until("the new size", DEADLINE, || {
        first.types("stty size\r");
        first.text().contains("39 120")
    });
    // The client dies without a word; what ran goes on.
    first.signal(Signal::KILL);
    first.ends();
    let mut second = open();
    second.types("echo again-$KEPT\r");
    second.shows("again-still-here");
    let third = open();
    third.shows("again-still-here");
    second.types("echo both-$KEPT\r");
    second.shows("both-still-here");
    third.shows("both-still-here");
    // Told to end, the program gives the terminal back first.
    third.signal(Signal::TERM);
    let mut third = third;
    third.ends();
    assert!(third.is_cooked());
    // tmux's own way to leave.
    second.types("\x02d");
    assert_eq!(second.ends().code(), Some(0));
    second.shows("the same command comes back to it");
    assert!(second.is_cooked());
    place.ended_as("its client went away");

    let mut plain = Tty::start(place.command("dana", &["shell", "main", "--no-tmux"]));
    plain.shows("work#");
    plain.types("tty; echo ${TMUX:-none}; exit 5\r");
    assert_eq!(plain.ends().code(), Some(5));
    assert!(plain.text().contains("/dev/pts/") && plain.text().contains("none"), "{}", plain.text());
    assert!(plain.is_cooked());
    let mut with =
        Tty::start(place.command("dana", &["shell", "main", "--tty", "--", "sh", "-c", "stty size; exit 6"]));
    assert_eq!(with.ends().code(), Some(6));
    with.shows("30 100");
}

/// OpenSSH with what `ssh-config` says to it.
struct OpenSsh<'a> {
    place: &'a Place,
    config: String,
}

impl<'a> OpenSsh<'a> {
    fn of(place: &'a Place) -> Self {
        let printed = place.client("dana", &["ssh-config"], "");
        assert_eq!(printed.status.code(), Some(0), "{}", String::from_utf8_lossy(&printed.stderr));
        let config = place.dir.join("ssh_config");
        std::fs::write(&config, printed.stdout).unwrap();
        Self { place, config: config.display().to_string() }
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(Tool::Ssh.path().with_file_name(program));
        command.args(["-F", &self.config]).current_dir(self.place.dir.path());
        self.place.signed_in_as(&mut command, "dana");
        command
    }

    fn run(&self, program: &str, args: &[&str], input: &[u8]) -> std::process::Output {
        let mut command = self.command(program);
        command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let writing = std::thread::spawn(move || stdin.write_all(&input));
        let output = child.wait_with_output().unwrap();
        let _ = writing.join().unwrap();
        output
    }
}

const HOST: &str = "main.acme.envforge";

#[test]
fn unmodified_openssh_scp_sftp_and_rsync_come_to_a_workspace_that_sleeps() {
    let (rsync, _) = (Tool::Rsync.path(), Tool::SftpServer.path());
    let place = Place::start();
    let ssh = OpenSsh::of(&place);
    let key = place.dir.join("dana").join("ssh_key");
    assert_eq!(key.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let output = ssh.run("ssh", &[HOST, "cat; echo to-err >&2; pwd; exit 4"], b"from here\n");
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr).into_owned());
    assert_eq!((output.status.code(), err.as_str()), (Some(4), "to-err\n"), "{out}");
    assert!(out.starts_with("from here\n") && out.ends_with("/shell/work\n"), "{out}");
    // The host's key came over the API's connection, and is what OpenSSH was made to hold it against.
    let known = std::fs::read_to_string(place.dir.join("dana").join("ssh_known_hosts")).unwrap();
    assert!(known.starts_with("main.acme.envforge ssh-ed25519 AAAA"), "{known}");

    let bytes = noise(BIG_OVER_SSH);
    let echoed = ssh.run("ssh", &[HOST, "cat"], &bytes);
    assert!(echoed.stdout == bytes, "all of it goes and comes as it is");
    std::fs::write(place.dir.join("big"), &bytes).unwrap();
    let copied = ssh.run("scp", &["-q", "big", &format!("{HOST}:copied")], b"");
    assert_eq!(copied.status.code(), Some(0), "{}", String::from_utf8_lossy(&copied.stderr));
    let sum = ssh.run("ssh", &[HOST, "sha256sum < copied"], b"");
    assert_eq!(String::from_utf8(sum.stdout).unwrap(), format!("{}  -\n", digest(&bytes)));
    let fetched = ssh.run("sftp", &["-q", "-b", "-", HOST], b"get envforge.yml fetched\nmkdir made\n");
    assert_eq!(fetched.status.code(), Some(0), "{}", String::from_utf8_lossy(&fetched.stderr));
    let here = std::fs::read(place.dir.join("orders").join("envforge.yml")).unwrap();
    assert_eq!(std::fs::read(place.dir.join("fetched")).unwrap(), here);
    std::fs::create_dir_all(place.dir.join("tree").join("below")).unwrap();
    std::fs::write(place.dir.join("tree").join("below").join("file"), "in a tree").unwrap();
    let mut synced = Command::new(rsync);
    synced.args(["-a", "-e"]).arg(format!("{} -F {}", Tool::Ssh.path().display(), ssh.config));
    synced.args(["tree/", &format!("{HOST}:made/")]).current_dir(place.dir.path());
    place.signed_in_as(&mut synced, "dana");
    assert!(synced.status().unwrap().success());
    let read = ssh.run("ssh", &[HOST, "cat made/below/file"], b"");
    assert_eq!(read.stdout, b"in a tree");

    let mut command = ssh.command("ssh");
    command.args(["-tt", HOST, "stty size; tty; exit 9"]);
    let mut terminal = Tty::start(command);
    assert_eq!(terminal.ends().code(), Some(9));
    assert!(terminal.text().contains("30 100") && terminal.text().contains("/dev/pts/"), "{}", terminal.text());

    // Ports of this loopback are forwarded, others' are not.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || listener.accept().unwrap().0.write_all(b"answered").unwrap());
    let through = ssh.run("ssh", &["-W", &format!("localhost:{port}"), HOST], b"");
    assert_eq!(through.stdout, b"answered");
    let beyond = ssh.run("ssh", &["-W", "192.0.2.1:80", HOST], b"");
    assert!(String::from_utf8_lossy(&beyond.stderr).contains("administratively prohibited"));

    // Another key is worth nothing on this connection.
    let other = place.dir.join("other_key");
    let made = Command::new(Tool::Ssh.path().with_file_name("ssh-keygen"))
        .args(["-q", "-t", "ed25519", "-N", "", "-f"])
        .arg(&other)
        .status();
    assert!(made.unwrap().success());
    let other_config = place.dir.join("other_config");
    let text = std::fs::read_to_string(&ssh.config).unwrap();
    std::fs::write(&other_config, text.replace(&key.display().to_string(), &other.display().to_string())).unwrap();
    let wrong = OpenSsh { place: &place, config: other_config.display().to_string() };
    let refused = wrong.run("ssh", &[HOST, "true"], b"");
    assert_eq!(refused.status.code(), Some(255));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("Permission denied (publickey)"));
    assert_eq!(place.json("owner", &["usage"])["items"], serde_json::json!([]), "outside the meter");
}

#[test]
fn jobs_wake_the_runtime_run_in_its_checkout_and_are_evidence_and_logs_are_followed() {
    let place = Place::start();
    let ran = place.client("dana", &["run", "unit", "--workspace", "main"], "");
    let (out, err) = (String::from_utf8(ran.stdout).unwrap(), String::from_utf8_lossy(&ran.stderr).into_owned());
    assert_eq!(ran.status.code(), Some(3), "{out}{err}");
    assert!(out.starts_with("ran job:job_") && err.ends_with("bad\n"), "{out}{err}");
    let row = |kind: &str| place.json("owner", &["audit", "log", "--type", kind])["items"][0].clone();
    let started = row("job.started");
    assert_eq!(started["actor"]["name"], "Dana", "{started}");
    assert!(
        started["summary"].as_str().unwrap().contains("Ran the test unit in workspace main: echo ran"),
        "{started}"
    );
    wait_until("the job's end in the audit", DEADLINE, || {
        row("job.finished")["summary"]
            .as_str()
            .is_some_and(|text| text.contains("unit of Dana") && text.ends_with("exit status 3"))
    });
    assert!(row("runtime.wake_requested")["summary"].as_str().unwrap().contains("for the job unit of Dana"));
    let unknown = place.client("dana", &["run", "none", "--workspace", "main"], "");
    assert_eq!(unknown.status.code(), Some(4), "{}", String::from_utf8_lossy(&unknown.stderr));

    let logs = place.client("dana", &["logs", "main"], "");
    assert!(String::from_utf8(logs.stdout).unwrap().contains("web | Serving HTTP on 127.0.0.1"));
    let long = Tty::start(place.command("dana", &["run", "long", "--workspace", "main"]));
    long.shows("begun");
    let following = Tty::start(place.command("dana", &["logs", "main", "web", "--follow", "--lines", "1"]));
    following.shows("GET /");
    // The runtime goes to sleep: the job with it, and the log waits for what comes.
    place.json("owner", &["workspace", "sleep", "main"]);
    let mut long = long;
    long.ends();
    place.json("owner", &["workspace", "wake", "main"]);
    following.shows("Serving HTTP on 127.0.0.1");
    let mut following = following;
    assert!(following.is_running());
    place.json("owner", &["org", "role", "revoke", place::DANA, "developer"]);
    following.ends();
    let refused = place.client("dana", &["logs", "main", "web"], "");
    assert_eq!(refused.status.code(), Some(3));
}
