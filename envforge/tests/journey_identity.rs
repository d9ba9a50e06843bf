//! People come in, go, and get back in: the command line against a real `envforge dev`.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests panic, and hand paths on")]

use std::io::{Read, Write};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use envforge_testkit::{TestDir, TestProcess};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(60);
const OWNER: &str = "owner@envforge.localhost";
const PASSWORD: &str = "plum kite engine 7";
const ANOTHER: &str = "fjord lattice oak 42";

struct World {
    dir: TestDir,
    dev: Option<TestProcess>,
    starts: u32,
    api: String,
    /// What `dev` said of the owner's password, at the first start alone.
    password: Option<String>,
}

impl World {
    fn start() -> Self {
        let mut world = Self { dir: TestDir::new(), dev: None, starts: 0, api: String::new(), password: None };
        world.start_dev(&[]);
        world
    }

    fn start_dev(&mut self, more: &[&str]) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_envforge"));
        command.args(["dev", "--json", "--bcrypt-cost", "10", "--listen", "127.0.0.1:0"]).args(more);
        command.args(["--gateway-listen", "127.0.0.1:0", "--data"]).arg(self.dir.join("data"));
        // What each start says goes into a file of its own.
        self.starts += 1;
        let mut dev = TestProcess::spawn(&format!("envforge dev {}", self.starts), &command, self.dir.path());
        let started: Value = dev.wait_ready("the first line", DEADLINE, |process| {
            let out = process.stdout();
            out.contains('\n').then(|| serde_json::from_str(out.lines().next().unwrap()).unwrap())
        });
        self.api = started["api"].as_str().unwrap().to_owned();
        self.password = started["owner_password"].as_str().map(str::to_owned).or(self.password.take());
        self.dev = Some(dev);
    }

    fn stop(&mut self) {
        self.dev.take().unwrap().terminate(DEADLINE);
    }

    /// The body of a document that anybody may read.
    fn get(&self, path: &str) -> String {
        let host = self.api.strip_prefix("http://").unwrap();
        let mut stream = std::net::TcpStream::connect(host).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer.split_once("\r\n\r\n").unwrap().1.to_owned()
    }

    /// One command of one person, who has a machine of their own.
    fn run(&self, who: &str, args: &[&str], stdin: &str) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_envforge"));
        command.args(args).env("ENVFORGE_CONFIG_DIR", self.dir.join(who)).current_dir(self.dir.path());
        command.env_remove("ENVFORGE_API").env_remove("ENVFORGE_ORG");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    /// The JSON of a command that must succeed: its last line.
    fn json(&self, who: &str, args: &[&str], stdin: &str) -> Value {
        let output = self.run(who, &[args, &["--json"]].concat(), stdin);
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        serde_json::from_str(text.lines().last().unwrap()).unwrap_or_else(|error| panic!("{args:?}: {error}: {text}"))
    }

    /// The code of the error of a command that must fail.
    fn refused(&self, who: &str, args: &[&str], stdin: &str) -> String {
        let output = self.run(who, &[args, &["--json"]].concat(), stdin);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_ne!(output.status.code(), Some(0), "{args:?}");
        let error: Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        error["error"]["code"].as_str().unwrap_or_default().to_owned()
    }

    fn login(&self, who: &str, email: &str, password: &str) -> Value {
        self.json(who, &["login", "--api", &self.api, "--email", email, "--password-stdin"], password)
    }
}

#[test]
fn somebody_is_invited_joins_changes_their_password_and_is_closed_out() {
    let world = World::start();
    world.login("owner", OWNER, world.password.as_ref().unwrap());
    let invite = ["org", "invite", "create", "--email", "grace@example.com", "--role", "developer"];
    let invited = world.json("owner", &invite, "");
    let token = invited["token"].as_str().unwrap();
    let listed = world.run("owner", &["org", "invite", "ls"], "");
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(
        listed.contains("grace@example.com") && listed.contains("developer") && !listed.contains(token),
        "{listed}"
    );

    let join = ["join", "--api", &world.api, "--name", "Grace", "--stdin"];
    let joined = world.json("grace", &join, &format!("{token}\n{PASSWORD}\n"));
    assert_eq!(joined["user"]["email"], "grace@example.com");
    assert_eq!(world.refused("eve", &join, &format!("{token}\n{ANOTHER}\n")), "invitation_unknown");
    world.login("elsewhere", "grace@example.com", PASSWORD);
    let sessions = world.json("grace", &["session", "ls"], "");
    let sessions = sessions["items"].as_array().unwrap();
    assert_eq!(sessions.len(), 2);
    assert!(sessions.iter().all(|session| session["surface"] == "cli"), "{sessions:?}");
    assert!(sessions[0]["client"].as_str().unwrap().starts_with("envforge-cli/"), "{sessions:?}");
    assert_eq!(sessions.iter().filter(|session| session["current"] == true).count(), 1);

    let changed = world.json("grace", &["password", "--stdin"], &format!("{PASSWORD}\n{ANOTHER}\n"));
    assert_eq!(changed["revoked"]["sessions"], 2);
    assert!(changed["signed_in"]["access_token"].is_null(), "tokens are not shown: {changed}");
    assert_eq!(world.json("grace", &["session", "ls"], "")["items"].as_array().unwrap().len(), 1);
    world.refused("elsewhere", &["session", "ls"], "");

    let closed = world.json("owner", &["org", "user", "deactivate", "grace@example.com"], "");
    assert_eq!(closed["sessions"], 1);
    assert_eq!(world.refused("grace", &["session", "ls"], ""), "account_deactivated");
    world.json("owner", &["org", "user", "reactivate", "grace@example.com"], "");
    world.login("grace", "grace@example.com", ANOTHER);
    let out = world.json("grace", &["session", "revoke-all"], "");
    assert_eq!(out["sessions"], 1);
    let rows = world.json("owner", &["audit", "log", "--limit", "100"], "").to_string();
    for secret in [token, PASSWORD, ANOTHER] {
        assert!(!rows.contains(secret));
    }
    assert!(rows.contains("Invited grace@example.com with developer"), "{rows}");
}

#[test]
fn an_owner_gets_back_in_from_the_machine_while_dev_is_stopped() {
    let mut world = World::start();
    let data = world.dir.join("data");
    let data = data.to_str().unwrap().to_owned();
    world.login("owner", OWNER, world.password.as_ref().unwrap());
    let recover = |email| ["recover-owner", "--data", &data, "--email", email];
    // The log has one holder.
    let held = world.run("root", &recover(OWNER), "");
    assert_ne!(held.status.code(), Some(0), "{}", String::from_utf8_lossy(&held.stdout));
    world.stop();
    let same = world.json("root", &recover(OWNER), "");
    let new = world.json("root", &recover("dana@example.com"), "");
    world.start_dev(&[]);
    // The session of before has ended, and the old password is nobody's.
    let before = world.run("owner", &["session", "ls", "--api", &world.api], "");
    assert_ne!(before.status.code(), Some(0));
    let login = ["login", "--api", &world.api, "--email", OWNER, "--password-stdin"];
    assert_eq!(world.refused("owner", &login, world.password.as_ref().unwrap()), "wrong_credentials");
    world.login("owner", OWNER, same["password"].as_str().unwrap());
    world.login("dana", "dana@example.com", new["password"].as_str().unwrap());
    let members = world.json("dana", &["org", "member", "ls"], "").to_string();
    assert_eq!(members.matches("\"owner\"").count(), 2, "{members}");
    let rows = world.json("dana", &["audit", "log", "--limit", "100"], "");
    let recovered = |row: &&Value| row["type"] == "organization.owner_recovered.v1";
    let rows: Vec<_> = rows["items"].as_array().unwrap().iter().filter(recovered).collect();
    assert_eq!(rows.len(), 2, "{rows:?}");
    assert!(rows.iter().all(|row| row["surface"] == "cli"), "{rows:?}");
}

#[test]
fn access_tokens_of_a_key_ring_are_verified_by_others_with_the_published_keys() {
    let mut world = World::start();
    let password = world.password.clone().unwrap();
    assert_eq!(world.get("/.well-known/jwks.json"), r#"{"keys":[]}"#);
    world.stop();
    world.start_dev(&["--access-tokens", "eddsa"]);
    world.login("owner", OWNER, &password);
    world.json("owner", &["session", "ls"], "");
    let published: Value = serde_json::from_str(&world.get("/.well-known/jwks.json")).unwrap();
    let key = &published["keys"][0];
    assert_eq!(
        (key["kty"].as_str(), key["crv"].as_str(), key["alg"].as_str()),
        (Some("OKP"), Some("Ed25519"), Some("EdDSA"))
    );
    let credentials = std::fs::read_to_string(world.dir.join("owner").join("credentials.json")).unwrap();
    let credentials: Value = serde_json::from_str(&credentials).unwrap();
    let token = credentials["accounts"][&world.api]["access_token"].as_str().unwrap().to_owned();
    // A token of a key says its name in its header.
    assert!(token.starts_with("eyJ0eXAiOiJhdCtqd3QiLCJhbGciOiJFZERTQSIsImtpZCI6"), "{}", &token[..48]);
    let keys = world.dir.join("data").join("keys");
    let rotated = world.json("root", &["rotate-key", "--keys", keys.to_str().unwrap()], "");
    assert!(rotated["kid"].as_str().is_some_and(|kid| kid.len() == 16), "{rotated}");
    world.json("owner", &["session", "ls"], "");
}
