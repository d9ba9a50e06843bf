//! What editors do over OpenSSH, VS Code Remote among them: a shell without a terminal gets a script, starts a server that stays, and a
//! dynamic forward reaches its port on loopback; several sessions share one connection.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Stdio};

use envforge_testkit::{free_port, wait_until};

use super::place::{DEADLINE, Place, is_dead};
use super::{HOST, OpenSsh};

/// As an editor's script: puts its server into the home, starts it where none runs, and says where it listens.
const INSTALL: &str = r#"
place="$HOME/.editor-server"
mkdir -p "$place"
cat > "$place/server.py" <<'EOF'
import http.server, os, sys
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"editor server %d" % os.getpid())
server = http.server.HTTPServer(("127.0.0.1", 0), Answer)
with open(sys.argv[1] + ".new", "w") as port:
    port.write(str(server.server_port))
os.rename(sys.argv[1] + ".new", sys.argv[1])
server.serve_forever()
EOF
if ! [ -s "$place/port" ]; then
    setsid nohup python3 "$place/server.py" "$place/port" > "$place/log" 2>&1 < /dev/null &
fi
until [ -s "$place/port" ]; do sleep 0.05; done
echo "listeningOn==$(cat "$place/port")=="
cat > /dev/null
"#;

/// An editor's connection: until it is dropped.
struct Editor {
    ssh: Child,
    socks: u16,
    server: u16,
}

impl Editor {
    fn connect(ssh: &OpenSsh<'_>) -> Self {
        let socks = free_port();
        let mut command = ssh.command("ssh");
        command.args(["-T", "-D", &format!("127.0.0.1:{socks}"), HOST, "bash"]);
        let mut ssh = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        ssh.stdin.as_mut().unwrap().write_all(INSTALL.as_bytes()).unwrap();
        let mut said = BufReader::new(ssh.stdout.take().unwrap()).lines();
        let line = said.by_ref().map(Result::unwrap).find(|line| line.starts_with("listeningOn==")).unwrap();
        let server = line.trim_start_matches("listeningOn==").trim_end_matches("==").parse().unwrap();
        Self { ssh, socks, server }
    }

    /// What a port of the workspace's loopback answers through the forward, by SOCKS 5 (RFC 1928).
    fn get(&self) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.socks)).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        stream.write_all(&[5, 1, 0]).unwrap();
        let mut chosen = [0; 2];
        stream.read_exact(&mut chosen).unwrap();
        assert_eq!(chosen, [5, 0]);
        let [high, low] = self.server.to_be_bytes();
        stream.write_all(&[5, 1, 0, 1, 127, 0, 0, 1, high, low]).unwrap();
        let mut connected = [0; 10];
        stream.read_exact(&mut connected).unwrap();
        assert_eq!(connected[1], 0, "the forward was refused");
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.rsplit("\r\n").next().unwrap().to_owned()
    }
}

impl Drop for Editor {
    fn drop(&mut self) {
        let _ = self.ssh.kill();
        let _ = self.ssh.wait();
    }
}

#[test]
fn an_editors_server_outlives_its_connection_and_is_reached_by_a_dynamic_forward() {
    let place = Place::start();
    let ssh = OpenSsh::of(&place);
    let first = Editor::connect(&ssh);
    let answered = first.get();
    assert!(answered.starts_with("editor server "), "{answered}");
    drop(first);
    let again = Editor::connect(&ssh);
    assert_eq!(again.get(), answered, "the same server, found again");
    assert_eq!(place.json("owner", &["usage"])["items"], serde_json::json!([]), "outside the meter");
}

#[test]
fn what_stays_in_a_sessions_group_ends_with_its_connection_and_what_left_it_with_envforge() {
    let mut place = Place::start();
    let ssh = OpenSsh::of(&place);
    let pids = place.pids().display().to_string();
    let script = format!(
        "trap '' TERM HUP; sleep 100000 & echo $! >> {pids}; setsid sleep 100000 < /dev/null > /dev/null 2>&1 & echo $! >> {pids}; wait"
    );
    let mut session = ssh.command("ssh").args(["-T", HOST, &script]).stdin(Stdio::piped()).spawn().unwrap();
    place.until_they_run(2);
    let [within, left] = <[String; 2]>::try_from(place.processes()).unwrap();
    session.kill().unwrap();
    session.wait().unwrap();
    wait_until("the end of what stayed in the group", DEADLINE, || is_dead(&within));
    assert!(!is_dead(&left));
    drop(ssh);
    assert!(place.dev.terminate(DEADLINE).success(), "{}", place.dev.stderr());
    assert!(is_dead(&left));
}

#[test]
fn several_sessions_share_one_connection() {
    let place = Place::start();
    let ssh = OpenSsh::of(&place);
    let socket = place.dir.join("control");
    let path = format!("ControlPath={}", socket.display());
    let mut command = ssh.command("ssh");
    command.args(["-o", "ControlMaster=yes", "-o", &path, "-N", HOST]).stdin(Stdio::null());
    let mut master = command.spawn().unwrap();
    wait_until("the master's socket", DEADLINE, || socket.exists());
    let running: Vec<_> = (0..4)
        .map(|number| {
            let mut session = ssh.command("ssh");
            session.args(["-o", &path, HOST, &format!("cat; exit {number}")]);
            session.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    for (number, mut session) in (0..).zip(running) {
        session.stdin.take().unwrap().write_all(b"over one connection").unwrap();
        let output = session.wait_with_output().unwrap();
        assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(number), b"over one connection".as_slice()));
    }
    assert!(master.try_wait().unwrap().is_none());
    let connected = place.json("owner", &["audit", "log", "--limit", "50"]).to_string();
    assert_eq!(connected.matches("shell.connected").count(), 1, "{connected}");
    master.kill().unwrap();
    master.wait().unwrap();
}
