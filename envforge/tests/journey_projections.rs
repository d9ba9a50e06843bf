//! `envforge projections` on the data of a stopped `dev`, and on NATS and PostgreSQL beside a running projector.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests panic, and hand paths on")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use envforge_testkit::{NatsOptions, NatsServer, Postgres, TestDir, TestProcess, wait_for};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(60);
const MODELS: [&str; 4] = ["directory", "audit", "meter", "command_ids"];

/// Which control plane, as arguments.
struct Place(Vec<String>);

impl Place {
    fn run(&self, args: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_envforge"));
        command.arg("projections").args(args).args(&self.0).output().unwrap()
    }

    fn output(&self, args: &[&str]) -> (String, String) {
        let output = self.run(args);
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let (stdout, stderr) = (text(output.stdout), text(output.stderr));
        assert!(output.status.success(), "{args:?}: {stderr}");
        (stdout, stderr)
    }

    /// Name, position and end of the log of each read model.
    fn ls(&self) -> Vec<(String, u64, u64)> {
        let (lines, _) = self.output(&["ls", "--json"]);
        let values = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let number = |value: &Value| value.as_u64().unwrap();
        values
            .map(|it| (it["name"].as_str().unwrap().to_owned(), number(&it["position"]), number(&it["log"])))
            .collect()
    }

    fn rebuild_all(&self) {
        for model in MODELS {
            let (said, progress) = self.output(&["rebuild", model]);
            assert!(said.starts_with(&format!("Rebuilt {model} up to position ")), "{said}");
            assert!(said.contains("the rows are the same"), "{said}");
            assert!(progress.contains(&format!("Rebuilding {model}: ")), "progress without a terminal: {progress}");
        }
        let (line, progress) = self.output(&["rebuild", "audit", "--json"]);
        let rebuilt: Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&rebuilt["name"], &rebuilt["unchanged"]), (&"audit".into(), &true.into()), "{rebuilt}");
        assert_eq!(rebuilt["generation"], 3, "one per rebuild");
        assert_eq!(rebuilt["compared_at"], rebuilt["switched_at"]);
        assert!(!progress.contains("Rebuilding"), "programs get one line: {progress}");
        let unknown = self.run(&["rebuild", "billing"]);
        assert!(!unknown.status.success());
        let said = String::from_utf8_lossy(&unknown.stderr).into_owned();
        assert!(said.contains("`billing` is not a read model: directory, audit, meter or command_ids"), "{said}");
    }
}

fn start(name: &str, folder: &Path, command: &Command) -> TestProcess {
    let mut process = TestProcess::spawn(name, command, folder);
    process.wait_ready("the first line", DEADLINE, |process| process.stdout().contains('\n').then_some(()));
    process
}

#[test]
fn the_read_models_of_a_stopped_dev_are_listed_and_rebuilt() {
    let dir = TestDir::new();
    let data = dir.join("data");
    let mut command = Command::new(env!("CARGO_BIN_EXE_envforge"));
    command.args(["dev", "--json", "--listen", "127.0.0.1:0", "--gateway-listen", "127.0.0.1:0", "--data"]).arg(&data);
    let mut dev = start("dev", dir.path(), &command);
    let place = Place(vec!["--data".to_owned(), data.display().to_string()]);
    let busy = place.run(&["ls"]);
    let said = String::from_utf8_lossy(&busy.stderr).into_owned();
    assert!(!busy.status.success() && said.contains("in use by another process"), "{said}");
    assert!(dev.terminate(DEADLINE).success(), "{}", dev.stderr());

    let listed = place.ls();
    assert_eq!(listed.iter().map(|(name, ..)| name.as_str()).collect::<Vec<_>>(), MODELS);
    assert!(listed.iter().all(|(_, position, log)| *log > 0 && position <= log), "{listed:?}");
    let (table, _) = place.output(&["ls"]);
    assert!(table.contains("directory") && table.contains(" of "), "{table}");
    place.rebuild_all();
    // The next start goes on from the rebuilt rows.
    let mut dev = start("dev-again", dir.path(), &command);
    assert!(dev.terminate(DEADLINE).success(), "{}", dev.stderr());
}

#[test]
fn read_models_are_rebuilt_over_nats_with_credentials_and_postgres_while_the_projector_runs() {
    let dir = TestDir::new();
    let fixtures = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/nats_credentials");
    let credentials = fixtures.join("user.creds").display().to_string();
    let extra_configuration = std::fs::read_to_string(fixtures.join("server.conf")).unwrap();
    let nats = NatsServer::start_with(&NatsOptions { extra_configuration, ..NatsOptions::default() });
    let database = Postgres::shared();
    let url_file = dir.join("database-url");
    std::fs::write(&url_file, database.database_url()).unwrap();
    let stores = |with_credentials: bool| {
        let mut stores = vec!["--nats".to_owned(), nats.url()];
        stores.extend(["--database-url-file".to_owned(), url_file.display().to_string()]);
        if with_credentials {
            stores.extend(["--nats-credentials".to_owned(), credentials.clone()]);
        }
        stores
    };
    let command = |verb: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_envforge"));
        command.args(verb).args(stores(true)).arg("--keys").arg(dir.join("keys"));
        command
    };
    let setup = |org: &str| {
        let owner = format!("owner@{org}.example");
        let output = command(&["setup", "--org", org, "--owner-email", &owner, "--json"]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    setup("acme");
    let refused = Place(stores(false)).run(&["ls"]);
    assert!(!refused.status.success(), "without credentials");
    let mut projector = start("projector", dir.path(), &command(&["serve", "projector"]));

    let place = Place(stores(true));
    let folded = |what: &str| {
        wait_for(what, DEADLINE, || {
            let listed = place.ls();
            listed.iter().all(|(_, position, log)| position == log).then_some(listed[0].2)
        })
    };
    assert!(folded("the projector to fold what setup appended") > 0);
    place.rebuild_all();
    assert!(projector.is_running(), "{}", projector.stderr());
    // The projector goes on with what was rebuilt beside it.
    let before = place.ls()[0].2;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(append_a_commit(&nats.url(), Path::new(&credentials)));
    assert_eq!(folded("the projector to go on"), before + 1);
    assert!(projector.terminate(DEADLINE).success(), "{}", projector.stderr());
}

async fn append_a_commit(url: &str, credentials: &Path) {
    use envforge_domain::claim::ClaimEvent;
    use envforge_domain::commit::{Actor, Commit, Expectation, Position, StreamId, StreamKind, Surface};
    use envforge_domain::event::Event;
    use envforge_domain::ids::{CommandId, CommitId, CorrelationId, OrgId};
    use envforge_domain::time::UnixMillis;
    use envforge_eventlog::EventLog as _;
    use envforge_eventlog::jetstream::{Config, Credentials, JetStreamLog};

    let config = Config { credentials: Credentials::File(credentials.to_owned()), ..Config::new(url) };
    let log = JetStreamLog::open(config).await.unwrap();
    let commit = Commit {
        id: CommitId::from_uuid(uuid::Uuid::now_v7()),
        command: CommandId::from_uuid(uuid::Uuid::now_v7()),
        request_digest: None,
        stream: StreamId::new(OrgId::SYSTEM, StreamKind::Claim, "later").unwrap(),
        actor: Actor::Anonymous,
        surface: Surface::Api,
        correlation: CorrelationId::from_uuid(uuid::Uuid::now_v7()),
        causation: None,
        decided_at: UnixMillis::new(1_795_000_000_000),
        events: vec![Event::Claim(ClaimEvent::Taken { holder: "test".to_owned() })],
    };
    log.append(vec![(commit, Expectation::LastAt(Position::START))]).await.unwrap();
}
