//! Crashes after ready: restarts, their budget, ports that others took.

use std::fs;
use std::net::TcpListener;
use std::time::Duration;

use envforge_domain::manifest::Probe;
use envforge_runtime::{Report, WakeFailure, WakeOrder};

use crate::fixture::*;

#[tokio::test]
async fn a_crashed_service_comes_back_on_the_same_port_and_the_report_says_how_it_ended() {
    let (host, repository) = (Host::open().await, Repository::with(&[("index.html", "up\n")]));
    let command = format!("echo $$ > \"$ENVFORGE_DATA_DIR/pid\"; {WEB_SERVER}");
    let awake = host.wake(order(&repository, [listening("web", &command, http("/"))])).await.unwrap();
    let pid = host.pid(workspace(1), "pid").await;
    fs::remove_file(host.data(workspace(1)).join("pid")).unwrap();
    kill(pid, "KILL");
    let report = tokio::time::timeout(PATIENCE, host.host.reports().next()).await.unwrap();
    let restarted = Report::ServiceRestarted {
        workspace: workspace(1),
        epoch: 1,
        service: name("web"),
        status: "signal 9".to_owned(),
    };
    assert_eq!(report, restarted);
    assert_ne!(host.pid(workspace(1), "pid").await, pid);
    let address = awake.endpoints[0].1;
    eventually("the port answers again", || std::net::TcpStream::connect(address).is_ok()).await;
    assert_eq!(get(address, "/").await.0, 200);
    assert!(host.host.is_up(workspace(1), 1));
    host.host.shutdown().await;
}

#[tokio::test]
async fn what_a_crashed_service_leaves_behind_is_ended_before_it_starts_again() {
    let (host, repository) = (Host::open().await, Repository::with(&[]));
    // The server is a child in a session of its own; the service itself ends when told to.
    let command = "echo $$ > \"$ENVFORGE_DATA_DIR/pid\"; \
                   setsid python3 -m http.server --bind 127.0.0.1 \"$PORT\" & echo $! >> \"$ENVFORGE_DATA_DIR/children\"; wait";
    let awake = host.wake(order(&repository, [listening("web", command, http("/"))])).await.unwrap();
    let child: u32 = host.written(workspace(1), "children").await.lines().next().unwrap().parse().unwrap();
    kill(host.pid(workspace(1), "pid").await, "KILL");
    tokio::time::timeout(PATIENCE, host.host.reports().next()).await.unwrap();
    assert!(!is_alive(child));
    let address = awake.endpoints[0].1;
    eventually("the second server got the port", || std::net::TcpStream::connect(address).is_ok()).await;
    host.host.shutdown().await;
}

#[tokio::test]
async fn a_service_that_keeps_crashing_fails_its_runtime_and_its_siblings_end() {
    let host = Host::configured(|config| config.restarts_max = 3).await;
    let repository = Repository::with(&[]);
    let sibling = service("sibling", "echo $$ > \"$ENVFORGE_DATA_DIR/sibling\"; exec sleep 1000");
    // Up for the wake, and from then on never again.
    let crashing =
        service("app", "echo start >> \"$ENVFORGE_DATA_DIR/starts\"; until test -e crash; do sleep 0.01; done; exit 7");
    let order = order(&repository, [sibling, crashing]);
    host.wake(order.clone()).await.unwrap();
    let sibling = host.pid(workspace(1), "sibling").await;
    fs::write(host.place(workspace(1)).join("checkout/crash"), "").unwrap();
    let reports = host.host.reports();
    let mut restarts = 0;
    let failed = loop {
        match tokio::time::timeout(PATIENCE, reports.next()).await.unwrap() {
            Report::ServiceRestarted { .. } => restarts += 1,
            failed => break failed,
        }
    };
    assert_eq!(restarts, 3);
    let Report::RuntimeFailed { workspace: failed, epoch: 1, service, reason } = failed else { panic!("{failed:?}") };
    assert_eq!((failed, service), (workspace(1), name("app")));
    assert_eq!(reason, "it ended with exit status 7 after 3 restarts within the window");
    assert!(!host.host.is_up(workspace(1), 1));
    eventually("the sibling ends", || !is_alive(sibling)).await;
    assert_eq!(fs::read_to_string(host.data(workspace(1)).join("starts")).unwrap().lines().count(), 4);
    // The epoch is over; a sleep finds nothing to do; the next epoch may try.
    assert_eq!(host.wake(order.clone()).await, Err(WakeFailure::Stale { epoch: 1, current: 1 }));
    host.host.sleep(workspace(1), 1).await.unwrap();
    host.wake(WakeOrder { epoch: 2, ..order }).await.unwrap();
    host.host.shutdown().await;
}

#[tokio::test]
async fn a_port_that_another_program_took_is_replaced_and_siblings_learn_the_new_one() {
    let (host, repository) = (Host::open().await, Repository::with(&[]));
    // The first start passes its port to the test, waits until the test listens there, then fails as servers do.
    let command = "echo $PORT >> \"$ENVFORGE_DATA_DIR/ports\"; \
                   if test ! -e \"$ENVFORGE_DATA_DIR/taken\"; then \
                     until test -e \"$ENVFORGE_DATA_DIR/taken\"; do sleep 0.01; done; fi; \
                   exec python3 -m http.server --bind 127.0.0.1 \"$PORT\"";
    let sibling = service("sibling", "echo $ENVFORGE_SERVICE_WEB_PORT >> \"$ENVFORGE_DATA_DIR/told\"; exec sleep 1000");
    let thief = async {
        let first: u16 = host.written(workspace(1), "ports").await.parse().unwrap();
        let listener = TcpListener::bind(("127.0.0.1", first)).unwrap();
        fs::write(host.data(workspace(1)).join("taken"), "").unwrap();
        listener
    };
    // A probe of the port would find the thief; this one asks for the service itself.
    let probe = Probe::Command { command: "test \"$(wc -l < \"$ENVFORGE_DATA_DIR/ports\")\" = 2".to_owned() };
    let (awake, listener) =
        tokio::join!(host.wake(order(&repository, [listening("web", command, probe), sibling])), thief);
    let port = awake.unwrap().endpoints[0].1.port();
    let ports = host.written(workspace(1), "ports").await;
    let ports: Vec<u16> = ports.lines().map(|port| port.parse().unwrap()).collect();
    assert_eq!(ports, [listener.local_addr().unwrap().port(), port]);
    let told = host.written(workspace(1), "told").await;
    assert_eq!(told.lines().last(), Some(port.to_string().as_str()));
    host.host.shutdown().await;
}

#[tokio::test]
async fn restarts_wait_longer_each_time() {
    let host = Host::configured(|config| {
        config.restarts_max = 3;
        config.restart_delay_min = Duration::from_millis(100);
        config.restart_delay_max = Duration::from_secs(10);
    })
    .await;
    let repository = Repository::with(&[]);
    let crashing = service("app", "until test -e crash; do sleep 0.01; done; exit 1");
    host.wake(order(&repository, [crashing])).await.unwrap();
    fs::write(host.place(workspace(1)).join("checkout/crash"), "").unwrap();
    let reports = host.host.reports();
    let begin = std::time::Instant::now();
    while !matches!(tokio::time::timeout(PATIENCE, reports.next()).await.unwrap(), Report::RuntimeFailed { .. }) {}
    // At least half of 100 + 200 + 400 ms.
    assert!(begin.elapsed() >= Duration::from_millis(350), "{:?}", begin.elapsed());
    host.host.shutdown().await;
}

fn kill(pid: u32, signal: &str) {
    let killed = std::process::Command::new("kill").args(["-s", signal, &pid.to_string()]).status().unwrap();
    assert!(killed.success());
}
