//! The machine of a `serve reactors` in a process of its own, without an agent: whichever API is asked, shells, jobs, logs and what is seen
//! of root windows reach it, as they reach an agent's host.

use std::process::Command;
use std::time::{Duration, Instant};

use envforge_testkit::{GitServer, NatsServer, Postgres, TestProcess, free_port, wait_until};
use tokio::net::TcpStream;

use crate::canary::plain;
use crate::relays::{SECOND, runs_a_command, runs_a_job_and_shows_logs, runs_as_root};
use crate::shells::{DANA, DEAD, HOST, MANIFEST, Team, Tenacious};
use crate::site::{DEADLINE, Site, is_dead};
use crate::tty::Tty;

/// Where the reactors keep workspaces, as the team's helpers name a host.
const HERE: &str = ".";
/// Dana at the API that is told of nothing.
const UNTOLD: &str = "dana-3";
/// Of strangers who say nothing: more than may be connected, as the listener once counted them.
const STRANGERS: usize = 300;

struct Ports {
    relay: u16,
    second_api: u16,
    third_api: u16,
}

/// Two processes with the API, one with reactors, one for the rest. The team's agent is the process with reactors.
struct World {
    nats: NatsServer,
    ports: Ports,
    team: Team,
    second: TestProcess,
    _rest: TestProcess,
}

fn serve(nats: &NatsServer, site: &Site, roles: &[&str]) -> Command {
    let mut command = site.stores(&nats.url(), &[&["serve"], roles].concat());
    command.arg("--secret-store").arg(format!("file:{}", site.dir.join("secrets").display()));
    command
}

fn api(nats: &NatsServer, site: &Site, port: u16, relay: Option<u16>) -> TestProcess {
    let mut command = serve(nats, site, &["api"]);
    command.args(["--allow-local-repositories", "--listen", &format!("127.0.0.1:{port}")]);
    if let Some(relay) = relay {
        command.args(["--relays", &format!("127.0.0.1:{relay}")]);
    }
    site.started(&format!("api-{port}"), &command)
}

/// With whom git believes about servers there.
fn reactors(nats: &NatsServer, site: &Site, name: &str, relay: u16) -> TestProcess {
    let mut command = serve(nats, site, &["reactors"]);
    command.args(["--relay-listen", &format!("127.0.0.1:{relay}"), "--services-as-own-user", "--runtime"]);
    command.arg(site.dir.join("runtime")).env("GIT_SSL_CAINFO", site.dir.join("authority.pem"));
    site.started(name, &command)
}

impl World {
    /// `prepare` answers where the repository is.
    fn start(prepare: impl FnOnce(&Site) -> String) -> Self {
        use std::os::unix::fs::PermissionsExt as _;
        let (nats, database) = (NatsServer::start(), Postgres::shared());
        let site = Site::set_up(&nats.url(), database.database_url());
        // Nobody else enters here: shells run as the reactors' own user, and write where these tests look.
        std::fs::set_permissions(site.dir.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
        let ports = Ports { relay: free_port(), second_api: free_port(), third_api: free_port() };
        let first_api = site.api().rsplit_once(':').unwrap().1.parse().unwrap();
        let rest = site.started("rest", &site.serve(&["gateway", "projector"], &nats.url(), "127.0.0.1"));
        let first = api(&nats, &site, first_api, Some(ports.relay));
        let second = api(&nats, &site, ports.second_api, Some(ports.relay));
        site.begin();
        let repository = prepare(&site);
        let reactors = reactors(&nats, &site, "reactors-1", ports.relay);
        let team = Team::with(site, first, reactors, &repository);
        team.sign_in_as(SECOND, &format!("http://127.0.0.1:{}", ports.second_api));
        Self { nats, ports, team, second, _rest: rest }
    }

    /// With the repository on the machine itself.
    fn new() -> Self {
        let world = Self::start(|site| {
            site.commit(MANIFEST);
            site.dir.join("orders").display().to_string()
        });
        world.until_reached();
        world
    }

    #[track_caller]
    fn until_reached(&self) {
        for who in ["dana", SECOND] {
            wait_until("the machine to be reached", DEADLINE, || {
                self.team.run(who, &["shell", "main", "--", "true"], "").status.success()
            });
        }
    }

    fn start_reactors(&self) -> TestProcess {
        reactors(&self.nats, &self.team.site, "reactors-2", self.ports.relay)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_machine_of_reactors_elsewhere_is_reached_from_any_api_also_after_they_were_killed() {
    let mut world = World::new();
    let team = &world.team;
    for who in ["dana", SECOND] {
        runs_a_command(team, who);
    }
    assert_eq!(team.clones_on(HERE), 1);
    let mut plain = team.tty(&["shell", "main", "--no-tmux"]);
    plain.shows("work#");
    plain.resize(120, 40);
    wait_until("the new size", DEADLINE, || {
        plain.types("stty size\r");
        plain.text().contains("40 120")
    });
    plain.types("echo kept > kept; exit 5\r");
    assert_eq!(plain.ends().code(), Some(5));
    // An API that is told of nothing says what is missing.
    let _untold = api(&world.nats, &team.site, world.ports.third_api, None);
    team.sign_in_as(UNTOLD, &format!("http://127.0.0.1:{}", world.ports.third_api));
    for asked in [&["shell", "main", "--", "true"][..], &["logs", "main", "web"]] {
        let refused = team.run(UNTOLD, asked, "");
        let told = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && told.contains("--relays") && told.contains("--relay-listen"), "{told}");
    }

    // Killed with what it runs: whoever waits hears of it, and whoever asks is told at once.
    let tenacious = Tenacious::new(team, "killed");
    let client = team.begin(&["shell", "main", "--", "sh", "-c", &tenacious.script()]);
    tenacious.until_they_run();
    let killed = Instant::now();
    world.team.agent.kill9();
    assert_ne!(client.wait_with_output().unwrap().status.code(), Some(0));
    println!("its client ended {:?} after the kill", killed.elapsed());
    let team = &world.team;
    let refused = team.refused(&["shell", "main", "--", "true"]);
    assert!(refused.contains("out of reach"), "{refused}");
    println!("somebody else was told {:?} after the kill", killed.elapsed());
    assert!(killed.elapsed() < Duration::from_secs(5), "{:?}", killed.elapsed());
    // The command line asks for them again, as long as it was told to.
    let refused = team.refused(&["logs", "main", "web"]);
    assert!(refused.contains("out of reach"), "{refused}");
    team.ended_as(": lost");
    // Strangers who say nothing keep nobody from coming back.
    world.team.agent = world.start_reactors();
    let at = ("127.0.0.1", world.ports.relay);
    let mut strangers = Vec::new();
    for _ in 0..STRANGERS {
        strangers.push(TcpStream::connect(at).await.unwrap());
    }
    let begun = Instant::now();
    world.until_reached();
    println!("reached {:?} after the start, beside {STRANGERS} strangers", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    tenacious.until_dead(DEADLINE);
    let team = &world.team;
    assert_eq!(team.dana(&["shell", "main", "--", "cat", "kept"], "").stdout, b"kept\n", "the same clone");
    assert_eq!(team.clones_on(HERE), 1);

    // Stopped as an operator stops it, it says how what it ran has ended.
    let tenacious = Tenacious::new(team, "stopped");
    let client = team.begin(&["shell", "main", "--", "sh", "-c", &tenacious.script()]);
    tenacious.until_they_run();
    assert!(world.team.agent.terminate(DEADLINE).success(), "{}", world.team.agent.stderr());
    assert_ne!(client.wait_with_output().unwrap().status.code(), Some(0));
    tenacious.until_dead(DEAD);
    world.team.ended_as("host stopped");
    assert!(world.second.terminate(DEADLINE).success(), "{}", world.second.stderr());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_on_the_machine_of_reactors_elsewhere_ends_with_its_right_and_with_its_api() {
    let mut world = World::new();
    let team = &world.team;
    let (tenacious, beside) = (Tenacious::new(team, "revoked"), Tenacious::new(team, "lasted"));
    let client = team.begin(&["shell", "main", "--", "sh", "-c", &tenacious.script()]);
    let mut terminal = Tty::start(team.site.command_of(SECOND, &["shell", "main"]));
    terminal.shows("work#");
    terminal.types(&format!("{}\r", beside.script()));
    tenacious.until_they_run();
    beside.until_they_run();
    let revoked = team.site.json(&["org", "role", "revoke", DANA, "developer"]);
    let answered = Instant::now();
    let output = client.wait_with_output().unwrap();
    assert!(answered.elapsed() < Duration::from_secs(1), "{:?}", answered.elapsed());
    assert!(String::from_utf8_lossy(&output.stderr).contains("you may not do this any more"));
    assert_eq!(revoked["receipt"]["shells"], 2, "{revoked}");
    println!("dead {:?} after the answer", tenacious.until_dead(DEAD) + answered.elapsed());
    beside.until_dead(DEAD);
    terminal.ends();
    team.ended_as("right lost");
    team.make_developer();

    // The API that was asked is killed: what it had opened ends, and the log says so; what lasts goes on, and the other one holds it to
    // its right.
    let mut terminal = team.tty(&["shell", "main"]);
    terminal.shows("work#");
    let lasting = Tenacious::new(team, "outlived");
    terminal.types(&format!("{}\r", lasting.script()));
    lasting.until_they_run();
    let tenacious = Tenacious::new(team, "killed");
    let mut client = team.begin(&["shell", "main", "--", "sh", "-c", &tenacious.script()]);
    tenacious.until_they_run();
    let second_api = format!("http://127.0.0.1:{}", world.ports.second_api);
    team.site.sign_in_owner_as("owner-2", &second_api);
    world.team.dev.kill9();
    let team = &world.team;
    let took = tenacious.until_dead(DEADLINE);
    assert!(took < Duration::from_secs(5), "{took:?}");
    client.wait().unwrap();
    terminal.ends();
    assert!(lasting.all().iter().all(|pid| !is_dead(pid)), "it lasts");
    let revoked = team.run("owner-2", &["org", "role", "revoke", DANA, "developer"], "");
    assert!(revoked.status.success(), "{}", String::from_utf8_lossy(&revoked.stderr));
    lasting.until_dead(DEADLINE);
    wait_until("the ends of what the killed API had opened", DEADLINE, || {
        let log = ["--json", "audit", "log", "--type", "shell.disconnected", "--limit", "50"];
        let rows = team.run("owner-2", &log, "");
        String::from_utf8_lossy(&rows.stdout).matches(": lost").count() == 2
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_with_secrets_logs_and_root_windows_reach_the_machine_of_reactors_elsewhere() {
    let (of_git, of_job) = (plain(), plain());
    let server = GitServer::start("x-access-token", &of_git);
    let mut world = World::start(|site| {
        let given = "  given: { command: \"echo given-$JOB_TOKEN\", kind: test, secrets: [JOB_TOKEN] }\n";
        site.commit(&format!("{MANIFEST}{given}"));
        server.add("orders", &site.dir.join("orders"));
        std::fs::copy(server.authority(), site.dir.join("authority.pem")).unwrap();
        server.url("localhost", "orders")
    });
    let team = &world.team;
    team.site.set_secret("JOB_TOKEN", &of_job, &[]);
    team.site.set_secret("GIT_TOKEN", &of_git, &[]);
    team.site.json(&["project", "edit", "orders", "--git-credential", "GIT_TOKEN", "--git-in-shells"]);
    world.until_reached();
    for who in ["dana", SECOND] {
        runs_a_job_and_shows_logs(team, who);
        let ran = team.run(who, &["run", "given", "--workspace", "main"], "");
        let (out, err) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
        assert_eq!((ran.status.code(), &*out), (Some(0), &*format!("given-{of_job}\n")), "{err}");
        let fetched = team.run(who, &["shell", "main", "--", "sh", "-c", "git fetch -q && echo fetched"], "");
        assert_eq!(fetched.stdout, b"fetched\n", "{}", String::from_utf8_lossy(&fetched.stderr));
    }
    let output = team.openssh("ssh", &[HOST, "cat; echo to-err >&2; exit 4"], b"from here\n");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!((output.status.code(), &*out, &*err), (Some(4), "from here\n", "to-err\n"));

    let mut long = team.tty(&["run", "long", "--workspace", "main"]);
    long.shows("begun");
    let mut following = Tty::start(team.site.command_of(SECOND, &["logs", "main", "web", "--follow", "--lines", "1"]));
    following.shows("GET /");
    team.site.json(&["workspace", "sleep", "main"]);
    long.ends();
    team.site.until_phase("asleep").await;
    let logs = team.dana(&["logs", "main", "web"], "");
    assert!(String::from_utf8_lossy(&logs.stdout).contains("Serving HTTP on"), "asleep, too");
    team.site.json(&["workspace", "wake", "main"]);
    following.shows("Serving HTTP on 127.0.0.1");
    runs_as_root(team).await;
    team.site.json(&["org", "role", "revoke", DANA, "developer"]);
    following.ends();

    // Neither process has written a value down, or told it.
    let events = team.site.shown(&["audit", "replay", "--json"]);
    assert!(world.second.terminate(DEADLINE).success(), "{}", world.second.stderr());
    for value in [&of_git, &of_job] {
        let grep = Command::new("grep").args(["-rlaF", value]).arg(world.team.site.dir.path()).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&grep.stdout), "", "files that hold it");
        assert!(!events.contains(value.as_str()));
    }
}
