//! The story of a machine: `envforge up` asks EC2 for one from nothing, its agent enrols by what user data says and lies ready, the
//! workspace wakes there, also by a link; agent and control plane are killed; the machine stops after the grace and starts again;
//! drained, it is ended. And a second organization beside it, on a machine of its own.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests panic, and hand tools' paths on")]

mod boot;
mod cloud;
mod neighbour;
mod network;
#[path = "../journey_agent/site.rs"]
#[allow(dead_code, reason = "the story of agents uses the rest")]
mod site;

use std::process::Command;
use std::time::Duration;

use envforge_domain::ids::OrgId;
use envforge_testkit::{NatsServer, Postgres, eventually};

use cloud::Cloud;
use neighbour::Log;
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
fn fleet_file(site: &Site, cloud: &Cloud, key: &str) -> std::path::PathBuf {
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
machines_max = 3
grace_seconds = {}
boot_deadline_seconds = 120

[shapes."m7g.large"]
cpu_millicores = 8000
memory_mib = 7168
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

/// The instances that are not ended.
fn living(cloud: &Cloud) -> Vec<String> {
    let living = cloud.instances().into_iter().filter(|(_, state)| state != "terminated");
    living.map(|(id, _)| id).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn up_asks_ec2_for_a_machine_which_serves_one_organization_and_stops_when_nothing_is_awake() {
    if let Some(why) = network::missing() {
        println!("{why}: nothing of this story was told");
        return;
    }
    let (nats, database) = (NatsServer::start(), Postgres::shared());
    let site = Site::set_up(&nats.url(), database.database_url());
    let cloud = Cloud::new(&site.dir.join("disks")).await;
    let mut roles = site.started("roles", &site.roles(&nats.url(), &cloud.gateway()));
    site.begin();
    let log = Log::open(&nats.url()).await;
    let (acme, globex) = (log.first_organization().await, OrgId::from_uuid(uuid::Uuid::now_v7()));
    for org in [acme, globex] {
        cloud.moto.pull("profile", &format!(r#"{{"name":"envforge-test-{org}"}}"#));
    }
    let file = fleet_file(&site, &cloud, &cloud.key().await);
    let fleet_command = || {
        let mut command: Command = site.stores(&nats.url(), &["serve", "fleet"]);
        command.arg("--fleet").arg(&file).envs(cloud.environment());
        command
    };
    let mut fleet = site.started("fleet", &fleet_command());
    assert_eq!(cloud.instances(), []);

    // From nothing.
    site.json(&["up"]);
    let [instance] = living(&cloud).try_into().unwrap();
    let starts = || {
        let places =
            std::fs::read_dir(cloud.disk(&instance).join("var/lib/envforge-agent/runtime/workspaces")).unwrap();
        let read =
            |place: std::fs::DirEntry| std::fs::read_to_string(place.path().join("data/starts")).unwrap_or_default();
        let all = places.flatten().map(read).collect::<String>();
        all.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let started = starts().pop().unwrap();
    assert_eq!(site.app_through_the_gateway().await.trim(), started);
    eventually("the token is taken away", DEADLINE, async || cloud.parameters().await.is_empty().then_some(())).await;
    let hosts = site.json(&["host", "ls"]);
    let [host] = hosts["items"].as_array().unwrap().as_slice() else { panic!("{hosts}") };
    let host = host["name"].as_str().unwrap().to_owned();
    assert!(!hosts.to_string().contains(&instance) && !hosts.to_string().contains(&cloud.gateway()), "{hosts}");

    // The machine's role is root's alone, also after something took the rule away that says so.
    assert!(cloud.reaches_metadata(&instance, 0) && !cloud.reaches_metadata(&instance, SOMEBODY));
    cloud.without_rules(&instance);
    assert!(cloud.reaches_metadata(&instance, SOMEBODY));
    eventually("the agent's next start brings it back", DEADLINE, async || {
        (!cloud.reaches_metadata(&instance, SOMEBODY)).then_some(())
    })
    .await;
    assert_eq!(site.app_through_the_gateway().await.trim(), started, "what is awake went on");

    // The agent and all of the control plane are killed; what is awake goes on.
    cloud.kill_agent(&instance);
    roles.kill9();
    fleet.kill9();
    assert!(!is_dead(&started));
    roles = site.started("roles-2", &site.roles(&nats.url(), &cloud.gateway()));
    fleet = site.started("fleet-2", &fleet_command());
    assert_eq!(site.app_through_the_gateway().await.trim(), started, "the same process, started once");
    site.json(&["workspace", "sleep", "main"]);
    site.until_phase("asleep").await;
    assert!(is_dead(&started));
    site.until_metered().await;

    // Woken by a link while the machine is up; nothing awake on it, it stops; a link starts it again.
    assert_eq!(site.app_through_the_gateway().await.lines().count(), 2);
    site.json(&["workspace", "sleep", "main"]);
    until_state(&cloud, &instance, "stopped").await;
    assert_eq!(site.app_through_the_gateway().await.lines().count(), 3, "the disk is the same");
    assert_eq!((living(&cloud), cloud.boots(&instance)), (vec![instance.clone()], 2));

    // A second organization gets a machine of its own, and neither sees the other's.
    let repository = site.dir.join("orders").to_str().unwrap().to_owned();
    let theirs = log.neighbour(globex, &repository, NEIGHBOUR).await;
    let their_host = eventually("the neighbour is up", DEADLINE, async || log.ready_on(theirs).await).await;
    let owners = log.owners().await;
    assert_eq!(owners[&their_host], globex);
    assert_eq!(owners[&format!("aws-ec2-{instance}")], acme);
    assert_eq!(living(&cloud).len(), 2);
    assert_eq!(site.json(&["host", "ls"])["items"].as_array().unwrap().len(), 1, "theirs is not shown");

    // Emptied by a person, it is ended, and the next wake gets another one.
    site.json(&["host", "drain", &host]);
    site.json(&["workspace", "sleep", "main"]);
    until_state(&cloud, &instance, "terminated").await;
    site.until_metered().await;
    site.json(&["up"]);
    let mine: Vec<_> =
        log.owners().await.into_iter().filter(|(key, of)| key.starts_with("aws-ec2-") && *of == acme).collect();
    assert_eq!(mine.len(), 2);
    site.json(&["workspace", "sleep", "main"]);
    site.until_phase("asleep").await;
    site.until_metered().await;

    // No token was seen by anybody.
    for told in [cloud.said(), roles.stderr(), fleet.stderr(), site.shown(&["audit", "replay", "--json"])] {
        assert!(!told.contains("envforge-enrol-1"), "{told}");
    }
    assert!(roles.terminate(DEADLINE).success() && fleet.terminate(DEADLINE).success(), "{}", fleet.stderr());
}
