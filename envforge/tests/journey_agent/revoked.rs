//! A host that is trusted no more: from the answer on nobody is led there, whatever still runs on it, and its workspaces wake elsewhere.

use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use envforge_testkit::{eventually, wait_until};
use futures_util::StreamExt as _;
use reqwest::StatusCode;

use crate::proxy::Proxy;
use crate::shells::Team;
use crate::site::{DEADLINE, Site, is_dead};

const MANIFEST: &str = "\
version: 1
services:
  web:
    command: exec python3 app.py
    route: { web: {}, websockets: [/live] }
    readiness: { http: /, interval: 100ms, deadline: 60s }
";
/// Answers with its process id, opens WebSockets, and takes its time where it is asked to.
const APP: &str = r#"
import base64, hashlib, os, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

with open(os.path.join(os.environ["ENVFORGE_DATA_DIR"], "starts"), "a") as starts:
    starts.write(f"{os.getpid()}\n")

class App(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/live":
            key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
            self.send_response(101)
            self.send_header("Upgrade", "websocket")
            self.send_header("Connection", "Upgrade")
            self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
            self.end_headers()
            self.rfile.read()
            return
        if self.path == "/slow":
            time.sleep(100000)
        body = str(os.getpid()).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words):
        pass

ThreadingHTTPServer((os.environ["HOST"], int(os.environ["PORT"])), App).serve_forever()
"#;

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_led_to_a_revoked_host_though_it_runs_on_and_its_workspace_wakes_elsewhere() {
    let (site, dev) = Site::new();
    let proxy = Proxy::to(site.agents_port).await;
    std::fs::write(site.dir.join("orders/app.py"), APP).unwrap();
    site.commit(MANIFEST);
    std::fs::set_permissions(site.dir.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    let token = site.enrolment("builder");
    let agent = site.agent("builder", &proxy.address(), Some(&token));
    site.until_host("builder", "active").await;
    let root = site.dir.join("orders").display().to_string();
    let team = Team::with(site, dev, agent, &root);
    let site = &team.site;
    site.json(&["up"]);
    let started = site.starts_on("builder").pop().unwrap();
    let reviewer = site.reviewer().await;
    assert_eq!(reviewer.asks("/").await, (StatusCode::OK, started.clone()));
    let mut socket = reviewer.socket("/live").await;
    let slow = tokio::spawn({
        let reviewer = reviewer.clone();
        async move { reviewer.asks("/slow").await }
    });
    let mut shell = team.begin(&["shell", "main", "--", "sh", "-c", "echo begun; sleep 100000"]);
    let mut begun = [0; 6];
    std::io::Read::read_exact(shell.stdout.as_mut().unwrap(), &mut begun).unwrap();
    let drained = site.json(&["host", "drain", "builder"]);
    assert_eq!((&drained["state"], &drained["runtimes"]), (&"draining".into(), &0.into()), "{drained}");
    assert_eq!(drained["receipt"]["sockets"], 0, "{drained}");

    // Nobody tells the agent: what it runs goes on.
    proxy.fall_silent();
    let asked = Instant::now();
    let revoked = site.json(&["host", "revoke", "builder"]);
    let took = asked.elapsed();
    // Whoever comes from now on waits until it is awake elsewhere.
    let (status, answered) = reviewer.asks("/").await;
    assert!(!is_dead(&started), "it runs on, and nobody can tell it");
    assert_ne!(answered.trim(), started, "the answer of a host that was revoked before it was asked");
    assert_eq!((&revoked["state"], &revoked["runtimes"]), (&"revoked".into(), &1.into()), "{revoked}");
    let receipt = &revoked["receipt"];
    assert_eq!((&receipt["sockets"], &receipt["shells"]), (&1.into(), &1.into()), "{revoked}");
    assert_eq!((&receipt["gateways_unknown"], &receipt["links"]), (&serde_json::json!([]), &0.into()), "{revoked}");
    assert!(receipt["took_ms"].as_u64().unwrap() < 1_000 && took < Duration::from_secs(5), "{revoked} in {took:?}");
    let end = tokio::time::timeout(Duration::from_secs(1), socket.next()).await.expect("the socket is closed");
    assert!(!matches!(end, Some(Ok(message)) if !message.is_close()));
    let (unanswered, problem) = slow.await.unwrap();
    assert!(unanswered == StatusCode::BAD_GATEWAY && problem.contains("app_unreachable"), "{unanswered} {problem}");
    wait_until("the end of the shell", DEADLINE, || shell.try_wait().unwrap().is_some());

    // On the control plane's own machine, for the same link.
    assert_eq!(status, StatusCode::OK, "{answered}");
    eventually("the wake on another host", DEADLINE, async || {
        let (_, answered) = reviewer.asks("/").await;
        site.starts_on("data").contains(&answered).then_some(())
    })
    .await;
    // The meter has closed at its last word, and what it ran ends when it is heard of again.
    site.json(&["workspace", "sleep", "main"]);
    site.until_phase("asleep").await;
    site.until_metered().await;
    assert_eq!(site.runtime_events().iter().filter(|(name, _)| name.contains("runtime.lost")).count(), 1);
    proxy.mend();
    wait_until("the end of what ran there", DEADLINE, || is_dead(&started));
}
