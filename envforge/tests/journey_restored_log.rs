//! A log that was put back to an older state is not served: what was revoked since would open again.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests panic, and hand paths on")]

use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use envforge_domain::claim::ClaimEvent;
use envforge_domain::commit::{Actor, Commit, Expectation, Position, StreamId, StreamKind, Surface};
use envforge_domain::event::Event;
use envforge_domain::ids::{CommandId, CommitId, CorrelationId, OrgId};
use envforge_domain::time::UnixMillis;
use envforge_eventlog::SharedLog;
use envforge_eventlog::jetstream::{Config, JetStreamLog};
use envforge_testkit::{NatsServer, Postgres, TestDir, TestProcess, wait_for};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(60);

fn copy_tree(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

fn dev_command(place: &TestDir) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_envforge"));
    command.args(["dev", "--demo", "--json", "--listen", "127.0.0.1:0", "--gateway-listen", "127.0.0.1:0", "--data"]);
    command.arg(place.join("data"));
    command
}

fn start(name: &str, place: &TestDir, command: &Command) -> (TestProcess, Value) {
    let mut process = TestProcess::spawn(name, command, place.path());
    let first_line = process.wait_ready("the first line", DEADLINE, |process| {
        let out = process.stdout();
        out.contains('\n').then(|| serde_json::from_str(out.lines().next().unwrap()).unwrap())
    });
    (process, first_line)
}

/// Starts a process that must end by itself with an error, and answers what it said.
fn refusal(name: &str, place: &TestDir, command: &Command) -> String {
    let mut process = TestProcess::spawn(name, command, place.path());
    let status = process.wait(DEADLINE);
    let said = process.stderr();
    assert!(!status.success(), "{name} ended well: {said}");
    assert!(!process.stdout().contains('\n'), "{name} said that it runs: {}", process.stdout());
    said
}

fn envforge(place: &TestDir, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_envforge"));
    command.args(args).env("ENVFORGE_CONFIG_DIR", place.join("config")).current_dir(place.path());
    command.env_remove("ENVFORGE_API").env_remove("ENVFORGE_ORG");
    command.output().unwrap()
}

#[test]
fn dev_refuses_an_old_log_under_newer_read_models() {
    let place = TestDir::new();
    let data = place.join("data");
    let (mut first, started) = start("first", &place, &dev_command(&place));
    let password_file = place.join("password");
    std::fs::write(&password_file, started["owner_password"].as_str().unwrap()).unwrap();
    let link = started["link_id"].as_str().unwrap().to_owned();
    assert!(first.terminate(DEADLINE).success(), "{}", first.stderr());
    copy_tree(&data.join("log"), &place.join("old-log"));

    let (mut second, started) = start("second", &place, &dev_command(&place));
    let api = started["api"].as_str().unwrap();
    let email = started["owner_email"].as_str().unwrap();
    let login = format!(
        "{} login --api {api} --email {email} --password-stdin < {}",
        env!("CARGO_BIN_EXE_envforge"),
        password_file.display()
    );
    let login =
        Command::new("sh").args(["-c", &login]).env("ENVFORGE_CONFIG_DIR", place.join("config")).output().unwrap();
    assert!(login.status.success(), "{}", String::from_utf8_lossy(&login.stderr));
    let revoked = envforge(&place, &["link", "revoke", &link, "--json"]);
    assert!(revoked.status.success(), "{}", String::from_utf8_lossy(&revoked.stderr));
    wait_for("the read models to show the link revoked", DEADLINE, || {
        let shown = envforge(&place, &["link", "show", &link, "--json"]);
        String::from_utf8_lossy(&shown.stdout).contains("\"revoked\"").then_some(())
    });
    assert!(second.terminate(DEADLINE).success(), "{}", second.stderr());

    copy_tree(&data.join("log"), &place.join("new-log"));
    copy_tree(&place.join("old-log"), &data.join("log"));
    let said = refusal("third", &place, &dev_command(&place));
    assert!(said.contains("the event log is not the one that the read models know"), "{said}");
    assert!(said.contains("it ends at") && said.contains("the checkpoint stands at"), "{said}");
    assert!(said.contains("envforge projections rebuild"), "it says what to do: {said}");

    // With the right log back, it goes on.
    copy_tree(&place.join("new-log"), &data.join("log"));
    let (mut fourth, _) = start("fourth", &place, &dev_command(&place));
    assert!(fourth.terminate(DEADLINE).success(), "{}", fourth.stderr());
}

fn claim(key: &str) -> Commit {
    let id = || uuid::Uuid::now_v7();
    Commit {
        id: CommitId::from_uuid(id()),
        command: CommandId::from_uuid(id()),
        request_digest: None,
        stream: StreamId::new(OrgId::SYSTEM, StreamKind::Claim, key).unwrap(),
        actor: Actor::Anonymous,
        surface: Surface::Api,
        correlation: CorrelationId::from_uuid(id()),
        causation: None,
        decided_at: UnixMillis::new(1_795_000_000_000),
        events: vec![Event::Claim(ClaimEvent::Taken { holder: "test".to_owned() })],
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_with_and_without_a_database_refuse_an_old_nats_log_after_postgres_or_a_file_saw_a_newer_one() {
    let place = TestDir::new();
    let mut nats = NatsServer::start();
    let database = Postgres::shared();
    let url_file = place.join("database-url");
    std::fs::write(&url_file, database.database_url()).unwrap();
    let command = |verb: &[&str], nats: &NatsServer| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_envforge"));
        command.args(verb).args(["--nats", &nats.url(), "--log", "warn"]);
        command.arg("--database-url-file").arg(&url_file).arg("--keys").arg(place.join("keys"));
        command
    };
    let serve = |role: &str, nats: &NatsServer| {
        let mut command = command(&["serve", role], nats);
        command.args(["--listen", "127.0.0.1:0", "--gateway-listen", "127.0.0.1:0"]);
        command.args(["--gateway-url", "http://dev.localhost:7080"]).arg("--runtime").arg(place.join("runtime"));
        command
    };
    let setup = command(&["setup", "--org", "acme", "--owner-email", "owner@example.org", "--json"], &nats);
    let set_up = { setup }.output().unwrap();
    assert!(set_up.status.success(), "{}", String::from_utf8_lossy(&set_up.stderr));

    let old = place.join("old-store");
    nats.kill9();
    copy_tree(&nats.store_dir(), &old);
    nats.restart();
    let log: SharedLog = Arc::new(JetStreamLog::open(Config::new(nats.url())).await.unwrap());
    let newest = log.append(vec![(claim("newer"), Expectation::LastAt(Position::START))]).await.unwrap().last();
    drop(log);
    for role in ["reactors", "gateway", "projector"] {
        let (mut process, _) = start(role, &place, &serve(role, &nats));
        if role == "projector" {
            let url = database.database_url();
            let models = envforge_projections::sql::Database::connect_postgres(url).await.unwrap();
            for model in envforge_projections::sql::ModelName::ALL {
                models.wait_for(model, newest, DEADLINE).await.unwrap();
            }
            models.close().await;
        }
        assert!(process.terminate(DEADLINE).success(), "{}", process.stderr());
    }

    nats.kill9();
    copy_tree(&old, &nats.store_dir());
    nats.restart();
    for (role, by) in [
        ("gateway", "this role followed before"),
        ("reactors", "this role followed before"),
        ("projector", "the read models know"),
        ("api", "the read models know"),
    ] {
        let said = refusal(&format!("{role}-on-the-old-log"), &place, &serve(role, &nats));
        assert!(said.contains(&format!("the event log is not the one that {by}")), "{role}: {said}");
        assert!(said.contains("the checkpoint stands at"), "{role}: {said}");
    }
    // What a refusal tells to remove is enough.
    std::fs::remove_file(place.join("keys/state/gateway.checkpoint.json")).unwrap();
    let (mut gateway, _) = start("gateway-once-more", &place, &serve("gateway", &nats));
    assert!(gateway.terminate(DEADLINE).success(), "{}", gateway.stderr());
}
