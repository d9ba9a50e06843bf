//! The story of machines, with each role of the control plane in a process of its own: `envforge up` asks EC2 for one from nothing, its
//! agent enrols by what user data says and lies ready, the workspace wakes there, also by a link; a developer works in its shell, which is
//! on a machine of its own, whether the runtime sleeps or not, and has root for a while on the runtime's; agents and every role are
//! killed; the machine stops after the grace and starts again; drained, it is ended. And a second organization beside it, on machines of
//! its own. Logs and shells of what sleeps on a machine that is off: `asleep`.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests panic, and hand tools' paths on")]

mod asleep;
mod boot;
mod cloud;
mod neighbour;
mod network;
mod people;
#[path = "../journey_agent/site.rs"]
#[allow(dead_code, reason = "the story of agents uses the rest")]
mod site;
#[path = "../journey_shell/tty.rs"]
#[allow(dead_code, reason = "the story of shells uses the rest")]
mod tty;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use envforge_domain::ids::OrgId;
use envforge_domain::machine::MachinePurpose;
use envforge_testkit::{NatsServer, Postgres, TestProcess, eventually, free_port, wait_until};

use cloud::Cloud;
use neighbour::{Launched, Log};
use people::{Changed, Dana};
use site::{DEADLINE, Site, is_dead};

const GRACE: Duration = Duration::from_secs(6);
/// As what runs for a branch: not root.
const SOMEBODY: u32 = 1_900_000_001;
const NEIGHBOUR: &str = "\
version: 1
services:
  web:
    command: test \"$HOST\" != 127.0.0.1 && exec python3 -m http.server \"$PORT\" --bind \"$HOST\"
    route: { web: {} }
    readiness: { http: /, interval: 100ms, deadline: 60s }
  database:
    command: test \"$HOST\" = 127.0.0.1 && exec python3 -m http.server \"$PORT\" --bind \"$HOST\"
    readiness: { tcp: true, interval: 100ms, deadline: 60s }
";

/// What an operator writes.
fn fleet_file(site: &Site, cloud: &Cloud, key: &str, shell_shape: &str) -> std::path::PathBuf {
    let file = site.dir.join("fleet.toml");
    let text = format!(
        r#"
deployment = "test"
region = "eu-central-1"
agents_url = "https://{}:{}"
image = "ami-12345678"
secrets_key = "{key}"
look_seconds = 1

[machines]
shapes = ["m7g.large"]
shell_shape = "{shell_shape}"
machines_max = 3
grace_seconds = {}
boot_deadline_seconds = 120
agent_deadline_seconds = 10

[shapes."m7g.large"]
cpu_millicores = 8000
memory_mib = 7168

[shapes."t4g.small"]
cpu_millicores = 1800
memory_mib = 1536
"#,
        cloud.gateway(),
        site.agents_port,
        GRACE.as_secs()
    );
    std::fs::write(&file, text).unwrap();
    file
}

async fn until_state(cloud: &Cloud, instance: &str, state: &str) {
    eventually(&format!("{instance} is {state}"), DEADLINE, async || {
        cloud.instances().iter().any(|(id, now)| id == instance && now == state).then_some(())
    })
    .await;
}

/// The instances that are not ended, of those.
fn living(cloud: &Cloud, of: &[String]) -> Vec<String> {
    let living = cloud.instances().into_iter().filter(|(id, state)| state != "terminated" && of.contains(id));
    living.map(|(id, _)| id).collect()
}

/// Each role in a process of its own, the projector beside the gateway.
struct Roles {
    site: Arc<Site>,
    nats: String,
    agents_at: String,
    relay_port: u16,
    running: Vec<(&'static str, TestProcess)>,
    starts: u32,
}

impl Roles {
    const ALL: [&'static str; 3] = ["agents", "api", "gateway"];

    fn start(site: &Arc<Site>, nats: String, agents_at: String) -> Self {
        let (site, relay_port) = (Arc::clone(site), free_port());
        let mut roles = Self { site, nats, agents_at, relay_port, running: Vec::new(), starts: 0 };
        Self::ALL.into_iter().for_each(|role| roles.begin(role));
        roles
    }

    fn begin(&mut self, role: &'static str) {
        self.starts += 1;
        let roles = if role == "gateway" { &["gateway", "projector"][..] } else { &[role] };
        let mut command = self.site.serve(roles, &self.nats, &self.agents_at);
        let relay = format!("127.0.0.1:{}", self.relay_port);
        match role {
            "agents" => command.args(["--relay-listen", &relay, "--agent-look-seconds", "1"]),
            "api" => command.args(["--relays", &relay]),
            _ => &mut command,
        };
        self.running.push((role, self.site.started(&format!("{role}-{}", self.starts), &command)));
    }

    /// kill -9, and another one in its place.
    fn kill_and_begin(&mut self, role: &'static str) {
        let at = self.running.iter().rposition(|(running, _)| *running == role).unwrap();
        self.running[at].1.kill9();
        self.begin(role);
    }

    fn said(&self) -> String {
        self.running.iter().map(|(_, process)| process.stderr()).collect()
    }
}

/// A control plane over a cloud, and a workspace that `envforge up` has just woken on a machine of it.
struct World {
    roles: Roles,
    fleet: TestProcess,
    fleet_file: PathBuf,
    cloud: Cloud,
    log: Log,
    dana: Dana,
    acme: OrgId,
    globex: OrgId,
    /// Of the runtime, its host's id, and the process that its service is.
    instance: String,
    host: String,
    started: String,
    /// The machine that shells are on.
    shells: String,
    site: Arc<Site>,
    nats: NatsServer,
}

impl World {
    /// `None` where this machine can have no others on it.
    async fn up() -> Option<Self> {
        Self::up_with("t4g.small").await
    }

    async fn up_with(shell_shape: &str) -> Option<Self> {
        if let Some(why) = network::missing() {
            println!("{why}: nothing of this story was told");
            return None;
        }
        let (nats, database) = (NatsServer::start(), Postgres::shared());
        let site = Arc::new(Site::set_up(&nats.url(), database.database_url()));
        let cloud = Cloud::new(&site.dir.join("disks")).await;
        let roles = Roles::start(&site, nats.url(), cloud.gateway());
        site.begin();
        let dana = Dana::join(&site);
        let log = Log::open(&nats.url()).await;
        let (acme, globex) = (log.first_organization().await, OrgId::from_uuid(uuid::Uuid::now_v7()));
        for org in [acme, globex] {
            cloud.moto.pull("profile", &format!(r#"{{"name":"envforge-test-{org}"}}"#));
        }
        let fleet_file = fleet_file(&site, &cloud, &cloud.key().await, shell_shape);
        let fleet = site.started("fleet", &fleet_command(&site, &nats, &cloud, &fleet_file));
        assert_eq!(cloud.instances(), []);

        // From nothing.
        site.json(&["up"]);
        let machine = async |purpose: MachinePurpose| {
            eventually("the machine", DEADLINE, async || {
                log.launched(acme).await.into_iter().find(|launched| launched.purpose == purpose)
            })
            .await
        };
        let Launched { instance, host, .. } = machine(MachinePurpose::Runtime).await;
        let purpose = if shell_shape == "none" { MachinePurpose::Runtime } else { MachinePurpose::Shell };
        let shells = machine(purpose).await.instance;
        let started = starts(&cloud, &instance).pop().unwrap();
        Some(Self {
            roles,
            fleet,
            fleet_file,
            cloud,
            log,
            dana,
            acme,
            globex,
            instance,
            host,
            started,
            shells,
            site,
            nats,
        })
    }

    fn kill_fleet(&mut self) {
        self.fleet.kill9();
        let command = fleet_command(&self.site, &self.nats, &self.cloud, &self.fleet_file);
        self.fleet = self.site.started("fleet-2", &command);
    }

    /// The process that was started first still answers.
    async fn goes_on(&self) {
        assert!(!is_dead(&self.started));
        assert_eq!(self.site.app_through_the_gateway().await.trim(), self.started, "the same process, started once");
    }

    #[track_caller]
    fn until_shells(&self) {
        wait_until("the machine for shells", DEADLINE * 2, || {
            self.dana.does(&["shell", "main", "--", "true"], "").status.success()
        });
    }

    async fn sleeps(&self) {
        self.site.json(&["workspace", "sleep", "main"]);
        self.site.until_phase("asleep").await;
        assert!(is_dead(&self.started));
        self.site.until_metered().await;
    }

    /// Everything stops as it is asked to, and no token was seen by anybody.
    fn ends(mut self) {
        let replayed = self.site.shown(&["audit", "replay", "--json"]);
        for told in [self.cloud.said(), self.roles.said(), self.fleet.stderr(), replayed] {
            assert!(!told.contains("envforge-enrol-1"), "{told}");
        }
        assert!(self.fleet.terminate(DEADLINE).success(), "{}", self.fleet.stderr());
        for role in Roles::ALL {
            let (_, mut process) = self.roles.running.pop().unwrap_or_else(|| panic!("{role}"));
            assert!(process.terminate(DEADLINE).success(), "{}", process.stderr());
        }
    }
}

fn fleet_command(site: &Site, nats: &NatsServer, cloud: &Cloud, file: &Path) -> Command {
    let mut command: Command = site.stores(&nats.url(), &["serve", "fleet"]);
    command.arg("--fleet").arg(file).envs(cloud.environment());
    command
}

/// What the service wrote of its starts on an instance's disk.
fn starts(cloud: &Cloud, instance: &str) -> Vec<String> {
    let places = std::fs::read_dir(cloud.disk(instance).join("var/lib/envforge-agent/runtime/workspaces")).unwrap();
    let read = |place: std::fs::DirEntry| std::fs::read_to_string(place.path().join("data/starts")).unwrap_or_default();
    places.flatten().map(read).collect::<String>().lines().map(str::to_owned).collect()
}

/// How many clones of shells are on an instance's disk.
fn clones(cloud: &Cloud, instance: &str) -> usize {
    let places = std::fs::read_dir(cloud.disk(instance).join("var/lib/envforge-agent/runtime/workspaces"));
    let is_clone = |place: &std::fs::DirEntry| place.path().join("shell/work/envforge.yml").exists();
    places.into_iter().flatten().flatten().filter(is_clone).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn up_asks_ec2_for_a_machine_which_serves_one_organization_and_stops_when_nothing_is_awake() {
    let Some(mut world) = World::up().await else { return };
    world.goes_on().await;
    eventually("the tokens are taken away", DEADLINE, async || world.cloud.parameters().await.is_empty().then_some(()))
        .await;
    let hosts = world.site.json(&["host", "ls"]).to_string();
    assert!(!hosts.contains(&world.instance) && !hosts.contains(&world.cloud.gateway()), "{hosts}");

    // The team's shell is on the machine for shells, by an API to which no agent is connected.
    world.until_shells();
    let script = "cat; echo to-err >&2; ls; echo kept > kept; exit 7";
    assert_eq!(world.dana.shell(script, "from here\n"), "from here\nenvforge.yml\n");
    assert_eq!([&world.shells, &world.instance].map(|instance| clones(&world.cloud, instance)), [1, 0]);
    let logs = world.dana.does(&["logs", "main"], "");
    assert!(String::from_utf8_lossy(&logs.stdout).contains("web | "), "{logs:?}");

    // The machine's role is root's alone, also after something took the rule away that says so.
    let instance = world.instance.clone();
    assert!(world.cloud.reaches_metadata(&instance, 0) && !world.cloud.reaches_metadata(&instance, SOMEBODY));
    world.cloud.without_rules(&instance);
    assert!(world.cloud.reaches_metadata(&instance, SOMEBODY));
    eventually("the agent's next start brings it back", DEADLINE, async || {
        (!world.cloud.reaches_metadata(&instance, SOMEBODY)).then_some(())
    })
    .await;
    world.goes_on().await;

    // The agents and each role are killed; what is awake goes on.
    world.cloud.kill_agent(&world.instance);
    world.cloud.kill_agent(&world.shells);
    Roles::ALL.into_iter().for_each(|role| world.roles.kill_and_begin(role));
    world.kill_fleet();
    world.goes_on().await;
    world.until_shells();
    world.sleeps().await;

    // Woken by a link while the machine is up; nothing awake on it, it stops.
    let (site, cloud, log, dana, instance) = (&world.site, &world.cloud, &world.log, &world.dana, &world.instance);
    assert_eq!(site.app_through_the_gateway().await.lines().count(), 2);
    site.json(&["workspace", "sleep", "main"]);
    until_state(cloud, instance, "stopped").await;
    site.until_metered().await;

    // The shell is there while the runtime sleeps and its machine is off, and outside the meter.
    let metered = site.json(&["usage"])["items"].clone();
    assert_eq!(dana.shell("cat kept; echo to-err >&2; exit 7", ""), "kept\n", "the clone is where it was");
    let mut terminal = dana.tty(&["shell", "main", "--no-tmux"]);
    // As the workspace's user, or as root where the system has none for it.
    wait_until("a prompt", DEADLINE, || terminal.text().contains("work$ ") || terminal.text().contains("work# "));
    terminal.types("stty size; exit 5\r");
    assert_eq!(terminal.ends().code(), Some(5));
    assert!(terminal.text().contains("30 100"), "{}", terminal.text());
    assert_eq!(site.json(&["usage"])["items"], metered);
    assert!(cloud.instances().contains(&(instance.clone(), "stopped".to_owned())), "it woke nothing");

    // A link starts it again.
    assert_eq!(site.app_through_the_gateway().await.lines().count(), 3, "the disk is the same");
    assert_eq!(cloud.boots(instance), 2);

    // A second organization gets machines of its own, and neither sees the other's.
    let repository = site.dir.join("orders").to_str().unwrap().to_owned();
    let theirs = log.neighbour(world.globex, &repository, NEIGHBOUR).await;
    let their_host = eventually("the neighbour is up", DEADLINE, async || log.ready_on(theirs).await).await;
    let owners = log.owners().await;
    assert_eq!(owners[&their_host], world.globex);
    assert_eq!(owners[&format!("aws-ec2-{instance}")], world.acme);
    let mine: Vec<_> = log.launched(world.acme).await.into_iter().map(|launched| launched.instance).collect();
    assert_eq!((living(cloud, &mine).len(), mine.len()), (2, 2), "one for runtimes, one for shells");
    let hosts = site.json(&["host", "ls"])["items"].as_array().unwrap().clone();
    assert_eq!(hosts.len(), 2, "theirs are not shown");

    // Emptied by a person, it is ended, and the next wake gets another one.
    let of_runtimes = hosts.iter().find(|shown| shown["id"] == world.host.as_str()).unwrap();
    site.json(&["host", "drain", of_runtimes["name"].as_str().unwrap()]);
    site.json(&["workspace", "sleep", "main"]);
    until_state(cloud, instance, "terminated").await;
    site.until_metered().await;
    site.json(&["up"]);
    let mine: Vec<_> =
        log.owners().await.into_iter().filter(|(key, of)| key.starts_with("aws-ec2-") && *of == world.acme).collect();
    assert_eq!(mine.len(), 3, "the one for shells is the same");

    // Its agent hangs. What is awake goes on until the log says that it is lost; then the machine is stopped, and started for the next wake.
    let mine: Vec<_> = log.launched(world.acme).await.into_iter().map(|launched| launched.instance).collect();
    let hung = living(cloud, &mine).into_iter().find(|id| *id != world.shells).unwrap();
    cloud.freeze_agent(&hung);
    tokio::time::sleep(Duration::from_secs(15)).await; // pause: for longer than an agent may be away where nothing is awake
    assert!(living(cloud, &mine).contains(&hung));
    site.app_through_the_gateway().await;
    let boots = cloud.boots(&hung);
    eventually("the machine of the agent that hangs is stopped", 2 * DEADLINE, async || {
        cloud.instances().contains(&(hung.clone(), "stopped".to_owned())).then_some(())
    })
    .await;
    site.until_metered().await;
    site.json(&["up"]);
    assert_eq!(cloud.boots(&hung), boots + 1, "with its disk");
    site.json(&["workspace", "sleep", "main"]);
    site.until_phase("asleep").await;
    site.until_metered().await;
    world.ends();
}

#[tokio::test(flavor = "multi_thread")]
async fn root_on_a_machine_is_asked_for_approved_by_another_and_over_at_its_end_whoever_is_killed_meanwhile() {
    let Some(mut world) = World::up().await else { return };
    world.site.json(&["org", "policy", "set", "--root", "workspace_elevation"]);
    let (by_command, by_shell, late) = (Changed::named("command"), Changed::named("shell"), Changed::named("late"));
    let window = world.dana.window(&["--for", "20m"]);
    let script = format!("id -u; echo x > {}; exit 3", by_command.path().display());
    let ran = world.dana.does(&["--json", "root", "run", &window, "--", "/bin/sh", "-c", &script], "");
    assert!(String::from_utf8_lossy(&ran.stdout).contains("\"0\\n"), "{ran:?}");
    let closed = world.dana.closed(&window, "exited");
    assert_eq!(closed["command"]["code"], 3);
    by_command.is_told(&closed);
    let window = world.dana.window(&["--for", "20m", "--mode", "shell"]);
    let mut terminal = world.dana.tty(&["root", "shell", &window]);
    terminal.shows("# ");
    terminal.types(&format!("id -u; stty size; echo x > {}; exit 4\r", by_shell.path().display()));
    assert_eq!(terminal.ends().code(), Some(4), "{}", terminal.text());
    assert!(terminal.text().contains("0\r\n30 100\r\n"), "{}", terminal.text());
    by_shell.is_told(&world.dana.closed(&window, "exited"));

    // Each role is killed while something runs as root until its window's end; what is awake goes on.
    let window = world.dana.window(&["--for", "1m"]);
    let pids = world.site.dir.join("root-pids");
    let script = format!(
        "trap '' TERM HUP; echo x > {}; echo $$ >> {pids}; setsid sleep 100000 & echo $! >> {pids}; wait",
        late.path().display(),
        pids = pids.display()
    );
    let begun = world.dana.does(&["root", "run", &window, "--detach", "--", "/bin/sh", "-c", &script], "");
    assert!(begun.status.success(), "{begun:?}");
    wait_until("what runs as root", DEADLINE, || {
        std::fs::read_to_string(&pids).is_ok_and(|all| all.lines().count() == 2)
    });
    Roles::ALL.into_iter().for_each(|role| world.roles.kill_and_begin(role));
    world.kill_fleet();
    world.goes_on().await;
    people::until_dead(&pids);
    let closed = world.dana.closed(&window, "deadline");
    late.is_told(&closed);
    println!("the window ended at {}, what ran in it at {}", closed["ends_at"], closed["command"]["ended_at"]);

    // The agent is killed, and takes what it runs as root along; nothing else of the machine hears of it. Whoever lost their shell gets
    // another one.
    let window = world.dana.window(&["--for", "20m", "--mode", "shell"]);
    let mut terminal = world.dana.tty(&["root", "shell", &window]);
    terminal.shows("# ");
    world.cloud.kill_agent(&world.instance);
    terminal.ends();
    assert_eq!(world.dana.ended(&window, "lost")["phase"], "open");
    world.goes_on().await;
    let mut terminal = world.dana.tty(&["root", "shell", &window]);
    terminal.shows("# ");
    terminal.types("exit 3\r");
    assert_eq!(terminal.ends().code(), Some(3));
    world.dana.closed(&window, "exited");
    world.sleeps().await;
    world.ends();
}
