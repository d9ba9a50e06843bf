//! Processes with roles of their own: whichever API is asked, shells, jobs, logs and what is seen of root windows reach the host,
//! whichever process its agent is connected to.

use std::io::Read as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use envforge_testkit::{NatsServer, Postgres, TestProcess, eventually, free_port, wait_until};

use crate::proxy::Proxy;
use crate::roots::is_root;
use crate::shells::{DANA, DEAD, Team, Tenacious};
use crate::site::{DEADLINE, Site, is_dead};
use crate::tty::Tty;

/// Dana at the second API.
pub(crate) const SECOND: &str = "dana-2";

/// Two processes with the API, two that agents connect to, one for the rest.
struct Cluster {
    nats: NatsServer,
    second_api_port: u16,
    /// Where agents connect, and where processes with the API do.
    agents: [(u16, u16); 2],
}

impl Cluster {
    fn new() -> (Self, Site) {
        let (nats, database) = (NatsServer::start(), Postgres::shared());
        let site = Site::set_up(&nats.url(), database.database_url());
        let agents = [(site.agents_port, free_port()), (free_port(), free_port())];
        (Self { nats, second_api_port: free_port(), agents }, site)
    }

    fn serve(&self, site: &Site, roles: &[&str]) -> Command {
        site.stores(&self.nats.url(), &[&["serve"], roles].concat())
    }

    fn rest(&self, site: &Site) -> TestProcess {
        site.started("rest", &site.serve(&["gateway", "projector"], &self.nats.url(), "127.0.0.1"))
    }

    /// `relays`: the ports at which it finds the processes that agents connect to.
    fn api(&self, site: &Site, number: usize, relays: &[u16]) -> TestProcess {
        let port =
            if number == 0 { site.api().rsplit_once(':').unwrap().1.parse().unwrap() } else { self.second_api_port };
        let relays: Vec<_> = relays.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        let mut command = self.serve(site, &["api"]);
        command.args(["--allow-local-repositories", "--listen", &format!("127.0.0.1:{port}")]);
        command.args(["--relays", &relays.join(",")]);
        site.started(&format!("api-{number}"), &command)
    }

    /// The first API, where agents connect, too.
    fn api_with_agents(&self, site: &Site) -> TestProcess {
        let mut command = self.serve(site, &["api", "agents"]);
        command.args(["--allow-local-repositories", "--listen", site.api().trim_start_matches("http://")]);
        command.args(["--agents-listen", &site.at(), "--relays", &format!("127.0.0.1:{}", self.relays()[1])]);
        site.started("api-agents", &command)
    }

    fn agents(&self, site: &Site, number: usize) -> TestProcess {
        let (agents, relay) = self.agents[number];
        let mut command = self.serve(site, &["agents"]);
        command.args(["--agents-listen", &format!("127.0.0.1:{agents}"), "--relay-listen"]);
        command.arg(format!("127.0.0.1:{relay}"));
        site.started(&format!("agents-{number}"), &command)
    }

    fn relays(&self) -> [u16; 2] {
        self.agents.map(|(_, relay)| relay)
    }

    fn second_api(&self) -> String {
        format!("http://127.0.0.1:{}", self.second_api_port)
    }
}

/// All of it, with an agent at the second process, and Dana signed in at both APIs. `relay` is how the first API reaches that process.
struct World {
    cluster: Cluster,
    team: Team,
    relay: Proxy,
    second: TestProcess,
    agents: Vec<TestProcess>,
    _rest: TestProcess,
}

impl World {
    async fn new() -> Self {
        let (cluster, site) = Cluster::new();
        let relay = Proxy::to(cluster.agents[1].1).await;
        let port = relay.address().rsplit_once(':').unwrap().1.parse().unwrap();
        let rest = cluster.rest(&site);
        let agents = vec![cluster.agents(&site, 0), cluster.agents(&site, 1)];
        let first = cluster.api(&site, 0, &[cluster.relays()[0], port]);
        let second = cluster.api(&site, 1, &cluster.relays());
        site.begin();
        let at = format!("127.0.0.1:{}", cluster.agents[1].0);
        let team = Team::on(site, first, &at).await;
        team.sign_in_as(SECOND, &cluster.second_api());
        let world = Self { cluster, team, relay, second, agents, _rest: rest };
        world.until_reached();
        world
    }

    #[track_caller]
    fn until_reached(&self) {
        self.team.until_reached();
        wait_until("the host to be reached from the second API", DEADLINE, || {
            self.second(&["shell", "main", "--", "true"], "").status.success()
        });
    }

    fn second(&self, args: &[&str], stdin: &str) -> std::process::Output {
        self.team.run(SECOND, args, stdin)
    }
}

/// Bytes pass both ways, and the status comes back.
pub(crate) fn runs_a_command(team: &Team, who: &str) {
    let script = "cat; echo to-err >&2; ls; exit 7";
    let output = team.run(who, &["shell", "main", "--", "sh", "-c", script], "from here\n");
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!((output.status.code(), err.as_str()), (Some(7), "to-err\n"), "{who}: {out}");
    assert_eq!(out, "from here\nenvforge.yml\n", "{who}");
    let killed = team.run(who, &["shell", "main", "--", "sh", "-c", "kill -9 $$"], "");
    assert_eq!(killed.status.code(), Some(128 + 9));
}

pub(crate) fn runs_a_job_and_shows_logs(team: &Team, who: &str) {
    let ran = team.run(who, &["run", "unit", "--workspace", "main"], "");
    let (out, err) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert_eq!(ran.status.code(), Some(3), "{out}{err}");
    assert!(out.starts_with("ran job:job_") && err.ends_with("bad\n"), "{out}{err}");
    let logs = team.run(who, &["logs", "main"], "");
    assert!(String::from_utf8_lossy(&logs.stdout).contains("web | Serving HTTP on 127.0.0.1"));
}

/// Of root windows: a command with its output, asked for at one API, and a shell at the other one, where there is root to give.
pub(crate) async fn runs_as_root(team: &Team) {
    if !is_root() {
        return;
    }
    team.site.json(&["org", "policy", "set", "--root", "workspace_elevation"]);
    team.site.until_phase("ready").await;
    let window = team.window("20m", &[]);
    let script = "id -u; echo to-err >&2; exit 3";
    let out = team.dana(&["--json", "root", "run", &window, "--", "/bin/sh", "-c", script], "");
    let told = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(told.contains("\"0\\nto-err\\n"), "{told}{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(team.root_ended(&window, "exited")["command"]["code"], 3);
    let window = team.window("20m", &["--mode", "shell"]);
    let mut terminal = Tty::start(team.site.command_of(SECOND, &["root", "shell", &window]));
    terminal.shows("# ");
    terminal.types("id -u; stty size; exit 7\r");
    assert_eq!(terminal.ends().code(), Some(7));
    assert!(terminal.text().contains("0\r\n30 100\r\n"), "{}", terminal.text());
    assert_eq!(team.root_ended(&window, "exited")["phase"], "closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shell_works_whichever_api_is_asked_and_wherever_the_agent_is_connected() {
    let mut world = World::new().await;
    for who in ["dana", SECOND] {
        runs_a_command(&world.team, who);
    }
    assert_eq!(world.team.clones_on("builder"), 1);

    // Its process is killed: the agent comes back to the other one, and both APIs find it there.
    world.agents[1].kill9();
    assert!(world.team.agent.terminate(DEADLINE).success(), "{}", world.team.agent.stderr());
    let refused = world.team.refused(&["shell", "main", "--", "true"]);
    assert!(refused.contains("out of reach"), "{refused}");
    world.team.agent = world.team.site.agent("builder", &world.team.site.at(), None);
    world.until_reached();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_passes_through_another_process_ends_with_its_right_and_with_each_part_of_its_way() {
    let mut world = World::new().await;
    let team = &world.team;
    let tenacious = Tenacious::new(team, "revoked");
    let client = team.begin(&["shell", "main", "--", "sh", "-c", &tenacious.script()]);
    tenacious.until_they_run();
    team.site.json(&["org", "role", "revoke", DANA, "developer"]);
    let answered = Instant::now();
    let output = client.wait_with_output().unwrap();
    assert!(answered.elapsed() < Duration::from_secs(1), "{:?}", answered.elapsed());
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("you may not do this any more"), "{told}");
    println!("dead {:?} after the answer", tenacious.until_dead(DEAD) + answered.elapsed());
    team.ended_as("right lost");
    team.make_developer();
    let tenacious = Tenacious::new(team, "left");
    let mut client = team.begin(&["shell", "main", "--", "sh", "-c", &tenacious.script()]);
    tenacious.until_they_run();
    client.kill().unwrap();
    client.wait().unwrap();
    tenacious.until_dead(DEADLINE);
    team.ended_as("its client went away");

    // The way from the first API breaks, or falls silent; the second one's does not.
    for (name, within) in [("cut", 5), ("silent", 20)] {
        let (tenacious, beside) = (Tenacious::new(team, name), Tenacious::new(team, &format!("{name}-beside")));
        let client = team.begin(&["shell", "main", "--", "sh", "-c", &tenacious.script()]);
        let mut other = Tty::start(team.site.command_of(SECOND, &["shell", "main", "--no-tmux"]));
        other.shows("work#");
        other.types(&format!("{}\r", beside.script()));
        tenacious.until_they_run();
        beside.until_they_run();
        if name == "cut" {
            world.relay.cut()
        } else {
            world.relay.fall_silent()
        }
        let took = tenacious.until_dead(DEADLINE);
        assert!(took < Duration::from_secs(within), "{name}: {took:?}");
        assert_ne!(client.wait_with_output().unwrap().status.code(), Some(0));
        let refused = team.refused(&["shell", "main", "--", "true"]);
        assert!(refused.contains("out of reach"), "{refused}");
        assert!(beside.all().iter().all(|pid| !is_dead(pid)), "the other API's goes on");
        drop(other);
        beside.until_dead(DEADLINE);
        world.relay.mend();
        team.until_reached();
    }

    // The API that was asked is killed: what it had opened ends, what lasts does not, and the other API holds that to its right.
    let mut terminal = team.tty(&["shell", "main"]);
    terminal.shows("work#");
    let lasting = Tenacious::new(team, "outlived");
    terminal.types(&format!("{}\r", lasting.script()));
    lasting.until_they_run();
    let tenacious = Tenacious::new(team, "killed");
    let mut client = team.begin(&["shell", "main", "--", "sh", "-c", &tenacious.script()]);
    tenacious.until_they_run();
    team.site.sign_in_owner_as("owner-2", &world.cluster.second_api());
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
    assert!(team.run("owner-2", &["org", "role", "assign", DANA, "developer"], "").status.success());

    // The process in between is killed, and so are shells of the other API.
    let tenacious = Tenacious::new(team, "between");
    let mut command = team.site.command_of(SECOND, &["shell", "main", "--", "sh", "-c", &tenacious.script()]);
    let client = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    tenacious.until_they_run();
    world.agents[1].kill9();
    let took = tenacious.until_dead(DEADLINE);
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert_ne!(client.wait_with_output().unwrap().status.code(), Some(0));
    // Back where it was, it is found again, and each process stops when it is asked to.
    world.agents[1] = world.cluster.agents(&world.team.site, 1);
    wait_until("the host to be reached from the second API", DEADLINE, || {
        world.second(&["shell", "main", "--", "true"], "").status.success()
    });
    for process in world.agents.iter_mut().chain([&mut world.second]) {
        assert!(process.terminate(DEADLINE).success(), "{}", process.stderr());
    }
}

/// A line of a process's metrics that has all of these words.
async fn shows(process: &TestProcess, words: &[&str]) -> bool {
    let said: serde_json::Value = serde_json::from_str(process.stdout().lines().next().unwrap()).unwrap();
    let shown = reqwest::get(said["metrics"].as_str().unwrap()).await.unwrap().text().await.unwrap();
    shown.lines().any(|line| words.iter().all(|word| line.contains(word)))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_came_back_elsewhere_is_asked_there_though_its_process_did_not_notice() {
    let (cluster, site) = Cluster::new();
    let line = Proxy::to(site.agents_port).await;
    let _rest = cluster.rest(&site);
    let other = cluster.agents(&site, 1);
    let here = cluster.api_with_agents(&site);
    site.begin();
    let team = Team::on(site, here, &line.address()).await;
    team.until_reached();
    const PASSED: &str = "envforge_relay_streams_total";
    assert!(!shows(&other, &[PASSED]).await, "it was connected here");

    line.move_to(cluster.agents[1].0);
    let known = ["lasting", "\"passed\""];
    eventually("the agent at the other process", DEADLINE, async || shows(&other, &known).await.then_some(())).await;
    assert!(team.dana(&["shell", "main", "--", "true"], "").status.success());
    assert!(shows(&team.dev, &["envforge_agents_connected 1"]).await, "its old connection is not known to be dead");
    let passed = [PASSED, "\"shell\"", "\"passed\""];
    eventually("a shell that passed", DEADLINE, async || shows(&other, &passed).await.then_some(())).await;

    // Whoever asked may let go in the middle of it, too.
    let mut client = team.begin(&["shell", "main", "--", "sh", "-c", "yes"]);
    client.stdout.as_mut().unwrap().read_exact(&mut [0; 2]).unwrap();
    client.kill().unwrap();
    client.wait().unwrap();
    team.ended_as("its client went away");
    let (all, open) = ([PASSED], ["envforge_relay_streams_open 0"]);
    eventually("the end of all streams", DEADLINE, async || shows(&other, &open).await.then_some(())).await;
    assert!(shows(&other, &all).await && !shows(&other, &[PASSED, "\"broken\""]).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lasts_ends_with_the_last_sign_in_through_whichever_api_it_attached() {
    let world = World::new().await;
    let team = &world.team;
    let mut first = team.tty(&["shell", "main"]);
    first.shows("work#");
    let lasting = Tenacious::new(team, "shared");
    first.types(&format!("{}\r", lasting.script()));
    lasting.until_they_run();
    let mut second = Tty::start(team.site.command_of(SECOND, &["shell", "main"]));
    second.shows("setsid");
    assert!(team.dana(&["logout"], "").status.success());
    first.ends();
    tokio::time::sleep(DEAD).await; // pause: what would end by then goes on
    assert!(lasting.all().iter().all(|pid| !is_dead(pid)), "the other sign-in stands");
    assert!(second.is_running());
    assert!(team.run(SECOND, &["logout"], "").status.success());
    second.ends();
    lasting.until_dead(DEAD);
}

#[tokio::test(flavor = "multi_thread")]
async fn jobs_logs_and_root_windows_pass_through_another_process() {
    let world = World::new().await;
    let team = &world.team;
    for who in ["dana", SECOND] {
        runs_a_job_and_shows_logs(team, who);
    }
    let mut long = team.tty(&["run", "long", "--workspace", "main"]);
    long.shows("begun");
    let mut following = Tty::start(team.site.command_of(SECOND, &["logs", "main", "web", "--follow", "--lines", "1"]));
    following.shows("GET /");
    team.site.json(&["workspace", "sleep", "main"]);
    long.ends();
    team.site.json(&["workspace", "wake", "main"]);
    following.shows("Serving HTTP on 127.0.0.1");
    let mut plain = team.tty(&["shell", "main", "--no-tmux"]);
    plain.shows("work#");
    plain.resize(120, 40);
    wait_until("the new size", DEADLINE, || {
        plain.types("stty size\r");
        plain.text().contains("40 120")
    });
    plain.types("exit 5\r");
    assert_eq!(plain.ends().code(), Some(5));

    runs_as_root(team).await;
    team.site.json(&["org", "role", "revoke", DANA, "developer"]);
    following.ends();
}
