//! Each kind of probe, and what a wake says when one never holds.

use envforge_domain::manifest::Probe;
use envforge_domain::time::Millis;
use envforge_runtime::WakeFailure;

use crate::fixture::*;

/// Answers each request by the status in the path, shows the Host header, and counts requests.
const SERVER: &str = r#"
import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        with open(os.environ["ENVFORGE_DATA_DIR"] + "/host", "w") as file:
            file.write(self.headers["Host"] + "\n")
        self.send_response(int(self.path.strip("/")))
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"#;

#[tokio::test]
async fn http_from_200_to_399_is_ready_and_carries_the_public_host() {
    let (host, repository) = (Host::open().await, Repository::with(&[("server.py", SERVER)]));
    for (epoch, path) in [(1, "/200"), (2, "/302"), (3, "/399")] {
        let mut order = order(&repository, [listening("web", "exec python3 server.py", http(path))]);
        order.epoch = epoch;
        order.public_hosts.insert(name("web"), "web--ws--acme.dev.localhost:7080".to_owned());
        host.wake(order).await.unwrap();
        assert_eq!(host.written(workspace(1), "host").await, "web--ws--acme.dev.localhost:7080");
    }
    host.host.shutdown().await;
}

#[tokio::test]
async fn http_400_is_never_ready_and_the_failure_names_the_last_answer() {
    let (host, repository) = (Host::open().await, Repository::with(&[("server.py", SERVER)]));
    let command = "echo $$ > \"$ENVFORGE_DATA_DIR/pid\"; exec python3 server.py";
    let mut web = listening("web", command, http("/400"));
    web.readiness.deadline = Millis::from_secs(4);
    let failure = host.wake(order(&repository, [web])).await.unwrap_err();
    let WakeFailure::NotReady { service, probe, waited, last } = &failure else { panic!("{failure}") };
    assert_eq!((service.as_str(), probe.as_str(), *waited), ("web", "http GET /400", Millis::from_secs(4)));
    assert_eq!(last, "HTTP status 400");
    assert!(!is_alive(host.pid(workspace(1), "pid").await), "a failed wake leaves nothing running");
}

#[tokio::test]
async fn a_port_that_nobody_listens_on_is_not_ready() {
    let (host, repository) = (Host::open().await, Repository::with(&[]));
    let mut web = listening("web", "exec sleep 1000", Probe::Tcp);
    web.readiness.deadline = Millis::new(300);
    let failure = host.wake(order(&repository, [web])).await.unwrap_err();
    assert!(matches!(&failure, WakeFailure::NotReady { last, .. } if last == "connection refused"), "{failure}");
}

#[tokio::test]
async fn tcp_and_command_probes_hold_once_they_succeed() {
    let (host, repository) = (Host::open().await, Repository::with(&[]));
    let command = format!("trap '' HUP; until test -e go; do sleep 0.02; done; {WEB_SERVER}");
    let web = listening("web", &command, Probe::Tcp);
    let mut worker = service("worker", "touch go; exec sleep 1000");
    worker.readiness =
        ready_by(Probe::Command { command: "test -e go && test \"$ENVFORGE_SERVICE\" = worker".to_owned() });
    let awake = host.wake(order(&repository, [web, worker])).await.unwrap();
    assert_eq!(awake.endpoints.len(), 1, "a service that listens nowhere has no endpoint");
    assert_eq!(get(awake.endpoints[0].1, "/").await.0, 200);
    host.host.shutdown().await;
}

#[tokio::test]
async fn a_port_probe_without_a_port_is_refused_in_words() {
    let (host, repository) = (Host::open().await, Repository::with(&[]));
    let mut app = service("app", "exec sleep 1000");
    app.readiness = ready_by(Probe::Tcp);
    let failure = host.wake(order(&repository, [app])).await.unwrap_err();
    assert_eq!(failure, WakeFailure::ProbeWithoutPort { service: name("app") });
}

#[tokio::test]
async fn a_service_that_ends_before_it_is_ready_fails_the_wake_without_its_output() {
    let (host, repository) = (Host::open().await, Repository::with(&[]));
    let sibling = service("sibling", "echo $$ > \"$ENVFORGE_DATA_DIR/pid\"; exec sleep 1000");
    let mut web =
        listening("web", "test -e \"$ENVFORGE_DATA_DIR/pid\" || sleep 0.5; echo password=hunter2; exit 3", http("/"));
    web.readiness.interval = Millis::new(10);
    let failure = host.wake(order(&repository, [sibling, web])).await.unwrap_err();
    assert_eq!(failure, WakeFailure::Exited { service: name("web"), status: "exit status 3".to_owned() });
    assert!(!failure.to_string().contains("hunter2"));
    let output = host.host.tail_output(workspace(1), &name("web"), 10).await.unwrap();
    assert_eq!(output, ["password=hunter2"], "the team reads it where it is meant to be read");
    assert!(!is_alive(host.pid(workspace(1), "pid").await), "the sibling ended with it");
    assert!(!host.host.is_up(workspace(1), 1));
}

#[tokio::test]
async fn a_signal_is_told_from_an_exit_status() {
    let (host, repository) = (Host::open().await, Repository::with(&[]));
    let web = listening("web", "kill -9 $$", http("/"));
    let failure = host.wake(order(&repository, [web])).await.unwrap_err();
    assert_eq!(failure, WakeFailure::Exited { service: name("web"), status: "signal 9".to_owned() });
}
