//! The API keeps the word of its own OpenAPI document: schemathesis makes requests of it, well-formed and not, against a
//! running `envforge dev --demo`, and no answer may be a server error or one that the document does not name.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests panic, and hand tools' paths on")]

use std::process::{Command, Stdio};
use std::time::Duration;

use envforge_testkit::tools::Tool;
use envforge_testkit::{TestDir, TestProcess};
use serde_json::{Value, json};

const START_WAIT: Duration = Duration::from_secs(60);
/// Enough for every operation's boundary values and some hundred random requests each.
const FUZZING_S: &str = "40";
/// What an answer may not be: 5xx, a status, type, header or body that stands not in the document.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,\
                      response_headers_conformance,response_schema_conformance";
/// Streams that end only when the client does, and what ends the session under which everything else is asked.
const LEFT_OUT: &str = "/events$|/auth/logout|/me/sessions";

#[tokio::test]
async fn every_answer_is_one_that_the_document_names() {
    let place = TestDir::new();
    let mut command = Command::new(env!("CARGO_BIN_EXE_envforge"));
    command.args(["dev", "--demo", "--json", "--listen", "127.0.0.1:0", "--gateway-listen", "127.0.0.1:0", "--data"]);
    command.arg(place.path().join("data"));
    let mut dev = TestProcess::spawn("envforge dev", &command, place.path());
    let started: Value = dev.wait_ready("the first line", START_WAIT, |process| {
        let out = process.stdout();
        out.contains('\n').then(|| serde_json::from_str(out.lines().next().unwrap()).unwrap())
    });
    let text = |field: &str| started[field].as_str().unwrap().to_owned();
    let api = text("api");
    let credentials = json!({"email": text("owner_email"), "password": text("owner_password")});
    let login = reqwest::Client::new().post(format!("{api}/v1/auth/login")).json(&credentials).send().await.unwrap();
    let session: Value = login.json().await.unwrap();

    let packages = Tool::SchemathesisDir.path();
    let mut schemathesis = Command::new("python3");
    schemathesis.arg(packages.join("bin/schemathesis")).env("PYTHONPATH", &packages).current_dir(place.path());
    schemathesis.args(["run", &format!("{api}/v1/openapi.json"), "--url", &api, "--no-color", "--checks", CHECKS]);
    schemathesis.args(["--header", &format!("Authorization: Bearer {}", session["access_token"].as_str().unwrap())]);
    schemathesis.args([
        "--phases",
        "examples,coverage,fuzzing",
        "--max-time",
        FUZZING_S,
        "--exclude-path-regex",
        LEFT_OUT,
    ]);
    schemathesis.args(["--continue-on-failure", "--request-timeout", "10", "--warnings", "off"]);
    let outcome = schemathesis.stdin(Stdio::null()).output().unwrap();
    let said = String::from_utf8_lossy(&outcome.stdout);
    assert!(outcome.status.success(), "{said}\n{}", String::from_utf8_lossy(&outcome.stderr));
    // A run that asked nothing would be as green.
    let tested = said.lines().find_map(|line| line.trim().strip_prefix("Tested: ")?.parse::<u32>().ok());
    assert!(tested.is_some_and(|tested| tested >= 30), "{said}");
}
