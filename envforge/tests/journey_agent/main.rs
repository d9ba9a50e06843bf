//! The story of a host with an agent: it enrols once, workspaces wake on it, and neither the death of the control plane, nor a cut network,
//! nor the agent's own end touches what runs there, while the meter stays exact.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests panic, and hand paths on")]

mod absence;
mod authority;
#[path = "../journey_canary/canary.rs"]
mod canary;
mod edges;
mod git;
mod own_machine;
mod proxy;
mod relays;
mod revoked;
mod roots;
mod secrets;
mod shells;
mod site;
mod survival;
#[path = "../journey_shell/tty.rs"]
mod tty;

use std::time::Duration;

use envforge_aws::{InstancePolicy, SecretReader};
use envforge_testkit::{NatsServer, Postgres, eventually, wait_until};
use nix::sys::signal::Signal;
use proxy::Proxy;
use site::{DEADLINE, Site, is_dead, names_no_machine};

#[tokio::test(flavor = "multi_thread")]
async fn a_workspace_wakes_on_an_agents_host_and_outlives_the_control_plane() {
    let (mut site, mut dev) = Site::new();
    let token = site.enrolment("builder");
    site.until_host("builder", "expected").await;
    let mut agent = site.agent("builder", &site.at(), Some(&token));
    site.until_host("builder", "active").await;
    assert!(names_no_machine(&site.shown(&["host", "ls"])));
    let key = "arn:aws:kms:eu-central-1:123456789012:key/1";
    let asked = ["host", "policy", "--deployment", "production", "--key", key];

    site.json(&["up"]);
    let [started] = &*site.starts_on("builder") else { panic!("{:?}", site.starts_on("builder")) };
    assert!(site.starts_on("data").is_empty(), "the control plane's own machine has nothing of it");
    let machines = InstancePolicy {
        deployment: "production".parse().unwrap(),
        org: site.json(&["org", "show"])["id"].as_str().unwrap().parse().unwrap(),
        key: key.parse().unwrap(),
        secrets: SecretReader::ControlPlane,
        workspaces: [].into(),
        projects: [].into(),
    };
    assert_eq!(site.json(&asked), machines.document().unwrap());
    let alias = ["host", "policy", "--deployment", "production", "--key", "alias/envforge"];
    assert!(site.refused(&alias).contains("an alias is none"));
    assert_eq!(site.app_through_the_gateway().await.trim(), started);

    // Twice: killed, and stopped as an operator stops it.
    for asked in [false, true] {
        if asked {
            assert!(dev.terminate(DEADLINE).success(), "{}", dev.stderr());
        } else {
            dev.kill9();
        }
        assert!(!is_dead(started) && agent.is_running());
        dev = site.start().0;
        assert_eq!(site.app_through_the_gateway().await.trim(), started, "the same process, started once");
    }
    site.json(&["workspace", "sleep", "main"]);
    site.until_phase("asleep").await;
    assert!(is_dead(started));
    site.until_metered().await;
    assert_eq!(site.starts_on("builder").len(), 1);

    // It wakes again, and is drained and revoked: at once, with what runs there.
    site.json(&["up"]);
    let again = site.starts_on("builder").pop().unwrap();
    site.json(&["host", "drain", "builder"]);
    site.until_host("builder", "draining").await;
    assert!(!is_dead(&again), "what is awake stays");
    site.json(&["host", "revoke", "builder"]);
    let ended = agent.wait(DEADLINE);
    assert!(!ended.success());
    assert!(agent.stderr().contains("host_revoked"), "{}", agent.stderr());
    wait_until("the end of what ran there", DEADLINE, || is_dead(&again));
    // Neither with its certificate nor with its token does it come back.
    let mut back =
        envforge_testkit::TestProcess::spawn("back", &site.agent_command("builder", &site.at(), None), site.dir.path());
    assert!(!back.wait(DEADLINE).success());
    assert!(back.stderr().contains("host_revoked"), "{}", back.stderr());
    eventually("the refusals in the audit", DEADLINE, async || {
        let log = site.json(&["audit", "log", "--outcome", "denied"]);
        log.to_string().contains("host_revoked").then_some(())
    })
    .await;
}

/// Each service writes what it found in its environment when it started.
const WITH_SECRETS: &str = "\
version: 1
services:
  web:
    command: env > \"$ENVFORGE_DATA_DIR/web.env\"; exec python3 -m http.server \"$PORT\" --bind \"$HOST\"
    route: { web: {} }
    readiness: { http: /, interval: 100ms, deadline: 60s }
    secrets: [API_KEY]
  worker:
    command: env > \"$ENVFORGE_DATA_DIR/worker.env\"; exec sleep 100000
    readiness: { none: true }
";

#[tokio::test(flavor = "multi_thread")]
async fn secrets_reach_services_on_an_agents_host_and_a_new_version_restarts_them() {
    let (site, dev) = Site::new();
    let token = site.enrolment("builder");
    let agent = site.agent("builder", &site.at(), Some(&token));
    site.until_host("builder", "active").await;
    site.commit(WITH_SECRETS);
    let told = site.refused(&["up"]);
    assert!(told.contains("API_KEY"), "{told}");
    assert!(!site.dir.join("builder/runtime/workspaces").read_dir().is_ok_and(|mut places| places.next().is_some()));
    site.set_secret("API_KEY", "first-value-of-the-key", &["--on-rotation", "restart"]);
    site.json(&["up"]);
    let environment = |service: &str| {
        let place = std::fs::read_dir(site.dir.join("builder/runtime/workspaces")).unwrap().next().unwrap().unwrap();
        std::fs::read_to_string(place.path().join(format!("data/{service}.env"))).unwrap()
    };
    assert!(environment("web").contains("API_KEY=first-value-of-the-key\n"), "{}", environment("web"));
    assert!(!environment("worker").contains("API_KEY"), "{}", environment("worker"));

    site.set_secret("API_KEY", "second-value-of-the-key", &["--on-rotation", "restart"]);
    wait_until("the start with the new version", DEADLINE, || {
        environment("web").contains("API_KEY=second-value-of-the-key\n")
    });
    site.until_phase("ready").await;
    assert!(!environment("worker").contains("API_KEY"), "{}", environment("worker"));
    for told in [agent.stdout(), agent.stderr(), dev.stdout(), dev.stderr(), site.shown(&["audit", "replay", "--json"])]
    {
        assert!(!told.contains("value-of-the-key"), "{told}");
    }
    for file in ["web", "worker"].map(|service| format!("{service}.env")) {
        let place = std::fs::read_dir(site.dir.join("builder/runtime/workspaces")).unwrap().next().unwrap().unwrap();
        std::fs::remove_file(place.path().join("data").join(file)).unwrap();
    }
    // Neither the agent nor what it keeps of a runtime writes a value down.
    let grep =
        std::process::Command::new("grep").args(["-rl", "value-of-the-key"]).arg(site.dir.join("builder")).output();
    let found = grep.unwrap().stdout;
    assert!(found.is_empty(), "{}", String::from_utf8_lossy(&found));
}

/// As many as one process may have open; were each given one of the turns at which certificates are signed, for as long as a handshake may
/// take, an agent would come in after half a minute.
#[tokio::test(flavor = "multi_thread")]
async fn strangers_who_say_nothing_keep_no_agent_out() {
    let (site, _dev) = Site::new();
    let token = site.enrolment("builder");
    let mut strangers = Vec::new();
    for number in 0..900_u16 {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(([127, 0, 1, u8::try_from(number % 3).unwrap() + 1], 0).into()).unwrap();
        strangers.push(socket.connect(([127, 0, 0, 1], site.agents_port).into()).await.unwrap());
    }
    let begun = std::time::Instant::now();
    let _agent = site.agent("builder", &site.at(), Some(&token));
    site.until_host("builder", "active").await;
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    // The server hangs up on them.
    for mut stranger in strangers {
        let mut heard = [0; 16];
        let ended = tokio::io::AsyncReadExt::read(&mut stranger, &mut heard);
        assert!(matches!(tokio::time::timeout(DEADLINE, ended).await.unwrap(), Ok(0) | Err(_)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cut_network_ends_nothing_and_what_was_asked_for_meanwhile_is_done() {
    let (site, _dev) = Site::new();
    let proxy = Proxy::to(site.agents_port).await;
    let token = site.enrolment("builder");
    let mut agent = site.agent("builder", &proxy.address(), Some(&token));
    site.until_host("builder", "active").await;
    site.json(&["up"]);
    let started = site.starts_on("builder").pop().unwrap();
    proxy.cut();
    assert_eq!(site.app_through_the_gateway().await.trim(), started, "the gateway needs no agent");
    proxy.mend();
    // What is asked for while nobody is there is done when somebody is.
    proxy.cut();
    site.json(&["workspace", "sleep", "main"]);
    assert!(!is_dead(&started));
    proxy.mend();
    site.until_phase("asleep").await;
    assert!(is_dead(&started));
    site.until_metered().await;
    assert!(agent.is_running());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_serves_roles_over_nats_and_postgres_that_run_nothing_themselves() {
    let (nats, database) = (NatsServer::start(), Postgres::shared());
    let (site, _roles) = Site::over(&nats.url(), database.database_url());
    let token = site.enrolment("builder");
    let _agent = site.agent("builder", &site.at(), Some(&token));
    site.until_host("builder", "active").await;
    site.json(&["up"]);
    let started = site.starts_on("builder").pop().unwrap();
    assert_eq!(site.app_through_the_gateway().await.trim(), started);
    site.json(&["workspace", "sleep", "main"]);
    site.until_phase("asleep").await;
    site.until_metered().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_works_once_and_a_certificate_for_as_long_as_it_says() {
    let (site, _dev) = Site::with_certificates_of(4);
    let token = site.enrolment("builder");
    let mut agent = site.agent("builder", &site.at(), Some(&token));
    site.until_host("builder", "active").await;
    let identity = || std::fs::read_to_string(site.dir.join("builder/agent.json")).unwrap();
    let first = identity();

    // Somebody who copied the token comes too late; a changed token is no token.
    for (name, text, refusal) in [
        ("thief", std::fs::read_to_string(&token).unwrap(), "enrolment_used"),
        ("forger", std::fs::read_to_string(&token).unwrap().replace("hst_", "hst_0"), "enrolment token"),
    ] {
        let copy = site.dir.join(format!("{name}-token"));
        std::fs::write(&copy, text).unwrap();
        let command = site.agent_command(name, &site.at(), Some(&copy));
        let mut refused = envforge_testkit::TestProcess::spawn(name, &command, site.dir.path());
        assert!(!refused.wait(DEADLINE).success());
        assert!(format!("{}{}", refused.stdout(), refused.stderr()).contains(refusal), "{}", refused.stderr());
        assert!(!site.dir.join(name).join("agent.json").exists());
    }
    eventually("the refusal in the audit", DEADLINE, async || {
        let log = site.json(&["audit", "log", "--outcome", "denied"]);
        log.to_string().contains("enrolment_used").then_some(())
    })
    .await;

    // Renewed over and over, on one connection, while a workspace is awake.
    site.json(&["up"]);
    let started = site.starts_on("builder").pop().unwrap();
    wait_until("a renewed certificate", DEADLINE, || identity() != first);
    let second = identity();
    wait_until("another one", DEADLINE, || identity() != second);
    assert_eq!(site.app_through_the_gateway().await.trim(), started);
    assert_eq!(agent.stderr().matches("out of reach").count(), 0, "{}", agent.stderr());

    // Held up for longer than its certificate lives, it has no right to renew it.
    agent.signal(Signal::SIGSTOP);
    tokio::time::sleep(Duration::from_secs(6)).await; // pause: for longer than a certificate's life
    agent.signal(Signal::SIGCONT);
    assert!(!agent.wait(DEADLINE).success());
    assert!(agent.stderr().contains("certificate"), "{}", agent.stderr());
    // Another enrolment of the same name gives it a new one.
    let token = site.enrolment("builder");
    let _agent = site.agent("builder", &site.at(), Some(&token));
    site.until_host("builder", "active").await;
    // Nobody has decided meanwhile that what runs there is to end.
    site.until_phase("ready").await;
    assert_eq!(site.app_through_the_gateway().await.trim(), started);
    site.json(&["workspace", "sleep", "main"]);
    site.until_phase("asleep").await;
    assert_eq!((site.starts_on("builder"), is_dead(&started)), (vec![started], true));
}
