//! An audit so long that a page of it can be empty although there is more: the command line goes on until it has found what fits.
//!
//! The log is real as far as it goes. Behind it the read model is told of nine thousand parts in which nobody did anything,
//! which a log would take some thirty million commits to have.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests panic, and hand paths on")]

use std::process::Command;
use std::time::Duration;

use envforge_testkit::{TestDir, TestProcess, eventually, free_port};
use futures_util::future::join_all;
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(60);
const PASSWORD: &str = "correct horse battery staple 9";
const OWNER: &str = "owner@example.org";
/// Commits of one part of the audit; what lies in a part that is complete is found by its postings alone.
const PART: u64 = 4_096;

const TELL_OF_MORE_PARTS: &str = "
import sqlite3, sys
database = sqlite3.connect(sys.argv[1])
(generation,) = database.execute('SELECT MAX(generation) FROM audit_parts WHERE part = 0').fetchone()
database.executemany(
    'INSERT INTO audit_parts (generation, part, recorded_from, recorded_to) VALUES (?, ?, 0, 9000000000000)',
    [(generation, part) for part in range(1, 9001)])
database.commit()
";

const MANIFEST: &str = "version: 1\nservices:\n  web:\n    command: exec python3 -m http.server\n    \
                        route: { web: {} }\n    readiness: { http: / }\n";

fn start(dir: &TestDir, port: u16, time: &str) -> TestProcess {
    let mut command = Command::new(env!("CARGO_BIN_EXE_envforge"));
    command.args(["dev", "--json", "--log", "warn", "--owner-email", OWNER, "--gateway-listen", "127.0.0.1:0"]);
    command.arg("--listen").arg(format!("127.0.0.1:{port}")).arg("--data").arg(dir.join("data"));
    command.arg("--owner-password-file").arg(dir.join("password"));
    let logs = dir.join(time);
    std::fs::create_dir(&logs).unwrap();
    let mut dev = TestProcess::spawn("envforge dev", &command, &logs);
    dev.wait_ready("the first line", DEADLINE, |process| process.stdout().contains('\n').then_some(()));
    dev
}

async fn audit(client: &reqwest::Client, api: &str, token: &str, query: &str) -> Value {
    let url = format!("{api}/v1/orgs/acme/audit?{query}");
    let answer = client.get(url).bearer_auth(token).send().await.unwrap();
    assert_eq!(answer.status(), 200, "{query}");
    answer.json().await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_lies_behind_empty_pages_of_the_audit_is_found_by_the_command_line() {
    let (dir, port) = (TestDir::new(), free_port());
    std::fs::write(dir.join("password"), PASSWORD).unwrap();
    let api = format!("http://127.0.0.1:{port}");
    let mut dev = start(&dir, port, "first");
    let client = reqwest::Client::new();
    let login = json!({ "email": OWNER, "password": PASSWORD });
    let answer = client.post(format!("{api}/v1/auth/login")).json(&login).send().await.unwrap();
    let token = answer.json::<Value>().await.unwrap()["access_token"].as_str().unwrap().to_owned();
    let post = async |path: &str, body: Value| -> u64 {
        let url = format!("{api}/v1/orgs/acme/{path}");
        let answer = client.post(url).bearer_auth(&token).json(&body).send().await.unwrap();
        assert_eq!(answer.status(), 201, "{path}");
        answer.headers()["envforge-position"].to_str().unwrap().parse().unwrap()
    };
    let repository = "https://git.example.org/app.git";
    post("projects", json!({ "slug": "app", "name": "App", "repository": repository })).await;
    let workspace = json!({ "project": "app", "slug": "main", "branch": "main", "manifest": MANIFEST });
    let mut position = post("workspaces", workspace).await;
    while position < PART + 8 {
        let links = (0..16).map(|_| post("workspaces/main/links", json!({ "service": "web" })));
        position = join_all(links).await.into_iter().max().unwrap();
    }
    let founded = "type=organization.created&limit=10";
    eventually("the first part of the audit", DEADLINE, async || {
        let newest = audit(&client, &api, &token, "limit=1").await;
        (newest["items"][0]["position"].as_u64()? >= position).then_some(())
    })
    .await;
    let before = audit(&client, &api, &token, founded).await;
    assert_eq!(before["items"].as_array().unwrap().len(), 1, "{before}");

    assert!(dev.terminate(DEADLINE).success(), "{}", dev.stderr());
    let database = dir.join("data/read-models.sqlite");
    let told = Command::new("python3").arg("-c").arg(TELL_OF_MORE_PARTS).arg(&database).output().unwrap();
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    let mut dev = start(&dir, port, "second");

    let first = audit(&client, &api, &token, founded).await;
    assert_eq!(first["items"], json!([]), "{first}");
    assert!(first["next"].is_string(), "there is more to look into: {first}");
    let envforge = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_envforge"));
        command.args(args).env("ENVFORGE_CONFIG_DIR", dir.join("config")).env("ENVFORGE_API", &api);
        command.env_remove("ENVFORGE_ORG").current_dir(dir.path());
        command
    };
    let mut login = envforge(&["login", "--email", OWNER, "--password-stdin"]);
    let signed_in = login.stdin(std::fs::File::open(dir.join("password")).unwrap()).output().unwrap();
    assert!(signed_in.status.success(), "{}", String::from_utf8_lossy(&signed_in.stderr));
    let log = envforge(&["audit", "log", "--type", "organization.created", "--json"]).output().unwrap();
    assert!(log.status.success(), "{}", String::from_utf8_lossy(&log.stderr));
    let shown: Value = serde_json::from_slice(&log.stdout).unwrap();
    assert_eq!((&shown["items"], &shown["next"]), (&before["items"], &Value::Null), "{shown}");
    assert!(dev.terminate(DEADLINE).success(), "{}", dev.stderr());
}
