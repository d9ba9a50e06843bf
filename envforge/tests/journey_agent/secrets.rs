//! Fifty secrets around NATS, PostgreSQL and an agent's host: each is in the environment of what declares it, and nowhere else.
//!
//! Whatever can be read is searched: what went over NATS and what lies there, all that PostgreSQL was told and keeps, every answer, trace and
//! metric, every file of every process, and all processes of the machine. In each of these places stands a decoy, which the same search
//! has to find.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use envforge_testkit::{NatsOptions, NatsServer, Postgres, PostgresOptions, TestProcess, wait_until};
use serde_json::Value;

use crate::canary::{Canaries, each_file_below, plain, rich};
use crate::site::{DEADLINE, Site, is_dead};
use crate::tty::Tty;

/// What declares secrets, and how many.
const CONSUMERS: [(&str, usize); 3] = [("web", 20), ("worker", 20), ("unit", 10)];
/// Every process says so of itself.
const METRIC: &str = "envforge_metrics_upkeeps_total";

struct Secret {
    name: String,
    value: String,
}

struct Search {
    canaries: Canaries,
    places: usize,
    bytes: usize,
    hits: Vec<String>,
    /// Decoys that were not found where they are.
    blind: Vec<String>,
}

impl Search {
    /// What is found; a secret is a hit. `place` is told without what it holds.
    fn look(&mut self, place: &str, bytes: &[u8]) -> BTreeSet<String> {
        self.places += 1;
        self.bytes += bytes.len();
        let (decoys, secrets): (BTreeSet<_>, BTreeSet<_>) =
            self.canaries.found_in(bytes).into_iter().partition(|found| found.starts_with("decoy"));
        if !secrets.is_empty() {
            self.hits.push(format!("{place}: {secrets:?}"));
        }
        decoys
    }

    /// A place, of one or many parts, in which decoys stand.
    fn search<B: AsRef<[u8]>>(&mut self, place: &str, parts: impl IntoIterator<Item = (String, B)>, decoys: &[&str]) {
        let mut found = BTreeSet::new();
        for (part, bytes) in parts {
            found.extend(self.look(&format!("{place}, {part}"), bytes.as_ref()));
        }
        self.holds(place, &found, decoys);
    }

    fn holds(&mut self, place: &str, found: &BTreeSet<String>, decoys: &[&str]) {
        for decoy in decoys.iter().filter(|decoy| !found.iter().any(|found| found.starts_with(**decoy))) {
            self.blind.push(format!("{decoy} is not found in {place}, where there is {found:?}"));
        }
    }

    fn search_files(&mut self, place: &str, below: &Path, decoys: &[&str]) {
        let mut found = BTreeSet::new();
        each_file_below(below, |path, bytes| {
            found.extend(self.look(&format!("{place}, {}", path.display()), bytes));
        });
        self.holds(place, &found, decoys);
    }

    /// Every process of the machine: those of `consumers` have all of their own, and nothing else has any. Answers their ids.
    fn search_processes(&mut self, consumers: &[&str]) -> BTreeMap<&'static str, Vec<String>> {
        let (mut arguments, mut environments) = (BTreeSet::new(), BTreeSet::new());
        let mut seen = BTreeMap::<_, Vec<_>>::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let pid = entry.file_name().to_string_lossy().into_owned();
            let read = |file: &str| std::fs::read(entry.path().join(file)).unwrap_or_default();
            if !pid.bytes().all(|byte| byte.is_ascii_digit()) {
                continue;
            }
            arguments.extend(self.look("the arguments of a process", &read("cmdline")));
            let mut environment = read("environ");
            // What ends meanwhile, or becomes another program, is read in part.
            if environment != read("environ") {
                environment = read("environ");
            }
            let mut found = self.canaries.found_in(&environment);
            found.retain(|found| !found.starts_with("decoy"));
            let Some((consumer, count)) = consumer_of(&environment).filter(|_| !found.is_empty()) else {
                environments.extend(self.look("the environment of a process", &environment));
                continue;
            };
            let own = format!(" of {consumer} (");
            match found.len() == count && found.iter().all(|found| found.contains(&own)) {
                true => seen.entry(consumer).or_default().push(pid),
                false => self.hits.push(format!("the environment of {consumer} with {found:?}")),
            }
        }
        let running: BTreeSet<_> = seen.keys().copied().collect();
        assert_eq!(running, consumers.iter().copied().collect(), "who runs with what it declares: {:?}", self.hits);
        self.holds("the arguments of processes", &arguments, &["decoy argument"]);
        self.holds("the environments of processes", &environments, &["decoy variable"]);
        seen
    }
}

/// Which of those that declare secrets a process belongs to, and how many it declares.
fn consumer_of(environment: &[u8]) -> Option<(&'static str, usize)> {
    let service =
        environment.split(|byte| *byte == 0).find_map(|variable| variable.strip_prefix(b"ENVFORGE_SERVICE="))?;
    // A job is called by its run there.
    let name = if service.starts_with(b"job:") { &b"unit"[..] } else { service };
    CONSUMERS.into_iter().find(|(consumer, _)| consumer.as_bytes() == name)
}

/// Random values, one of which every notation escapes, within and before what is looked for.
fn values(canaries: &mut Canaries) -> BTreeMap<&'static str, Vec<Secret>> {
    let value = |number| match number {
        0 => format!("{}\"\\ é<&/+%'{}", &plain()[..9], &plain()[..9]),
        1 => rich(),
        _ => plain(),
    };
    let mut of = |consumer: &'static str, count| {
        let secret = |number| Secret { name: name_of(consumer, number), value: value(number) };
        let secrets: Vec<_> = (0..count).map(secret).collect();
        secrets.iter().for_each(|secret| canaries.plant(&format!("{} of {consumer}", secret.name), &secret.value));
        (consumer, secrets)
    };
    CONSUMERS.into_iter().map(|(consumer, count)| of(consumer, count)).collect()
}

fn name_of(consumer: &str, number: usize) -> String {
    format!("CANARY_{}_{number}", consumer.to_uppercase())
}

/// Both `web` and `unit` say `output`; `unit` runs until there is a file in the folder `gate`.
fn manifest(output: &str, gate: &Path) -> String {
    let [web, worker, unit] = CONSUMERS.map(|(consumer, count)| {
        let names: Vec<_> = (0..count).map(|number| name_of(consumer, number)).collect();
        format!("[{}]", names.join(", "))
    });
    let gate = gate.display();
    format!(
        "\
version: 1
services:
  web:
    command: echo {output}; echo $$ >> \"$ENVFORGE_DATA_DIR/starts\"; cd \"$ENVFORGE_DATA_DIR\"; exec python3 -m http.server \"$PORT\" --bind \"$HOST\"
    route: {{ web: {{}} }}
    readiness: {{ http: /, interval: 100ms, deadline: 60s }}
    secrets: {web}
  worker:
    command: exec sleep 100000
    readiness: {{ none: true }}
    secrets: {worker}
jobs:
  unit: {{ command: 'echo {output}; touch {gate}/begun || exit 9; while ! test -e {gate}/open; do sleep 0.1; done; echo done', secrets: {unit} }}
"
    )
}

/// Sets all of them, every other one as the workspace's own, and does to two more what else can be done to a secret.
fn set(site: &Site, secrets: &BTreeMap<&'static str, Vec<Secret>>, spare: &[String; 2]) {
    let set = |name: &str, owner: [&str; 2], value: &str| {
        let output = site.client(&["secret", "set", name, owner[0], owner[1]], value);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let owners = [["--project", "orders"], ["--workspace", "main"]];
    for (number, secret) in secrets.values().flatten().enumerate() {
        set(&secret.name, owners[number % 2], &secret.value);
    }
    spare.iter().for_each(|value| set("SPARE", owners[0], value));
    site.json(&["secret", "rm", "SPARE", "--project", "orders", "--yes"]);
    // Who mistakes the value for the name is told so, without it.
    site.refused(&["secret", "set", &spare[0]]);
}

/// What the API itself answers, to every question of its description whose ids are known.
async fn api_answers(site: &Site) -> Vec<(String, String)> {
    let (client, token) = (site.browser(), site.access_token().await);
    let get = async |path: &str| {
        let answer = client.get(format!("{}{path}", site.api())).bearer_auth(&token).send().await.unwrap();
        format!("{} {:?}\n{}", answer.status(), answer.headers().clone(), answer.text().await.unwrap())
    };
    let document = get("/v1/openapi.json").await;
    let document: Value = serde_json::from_str(document.split_once('\n').unwrap().1).unwrap();
    let link = site.json(&["link", "ls"])["items"][0]["id"].as_str().unwrap().to_owned();
    let secret = name_of("web", 0);
    let known = [("org", "acme"), ("project", "orders"), ("workspace", "main"), ("service", "web")];
    let mut answers = Vec::new();
    for (path, _) in document["paths"].as_object().unwrap().iter().filter(|(_, of)| of.get("get").is_some()) {
        let path = known
            .into_iter()
            .chain([("link", &*link), ("secret", &*secret)])
            .fold(path.clone(), |path, (name, id)| path.replace(&format!("{{{name}}}"), id));
        if !path.contains('{') {
            let answer = get(&path).await;
            answers.push((path, answer));
        }
    }
    assert!(answers.len() > 20, "only {} questions", answers.len());
    answers
}

/// As people read them, and as programs do.
fn ask(site: &Site, output: &str) {
    wait_until("the service's output", DEADLINE, || site.shown(&["logs", "main", "web"]).contains(output));
    let history = |number| ["secret", "history", number];
    for verb in [
        &["secret", "ls"][..],
        &["secret", "ls", "--project", "orders"],
        &[&history(&name_of("web", 0))[..], &["--project", "orders"]].concat(),
        &[&history("SPARE")[..], &["--project", "orders"]].concat(),
        &["workspace", "show", "main"],
        &["workspace", "access", "main"],
        &["link", "ls"],
        &["host", "ls"],
        &["usage"],
        &["audit", "log", "--limit", "200"],
    ] {
        site.shown(verb);
        site.json(verb);
    }
    site.shown(&["audit", "replay", "--json"]);
}

/// Everything that somebody in the workspace's shell can read, in a command and on a terminal. Answers what the terminal showed.
fn look_from_a_shell(site: &Site, decoy: &str) -> String {
    // Where EnvForge is not root, a shell's user is the services' user.
    let processes = if rustix::process::geteuid().is_root() { "cat /proc/[0-9]*/environ 2>/dev/null;" } else { "" };
    let script = format!("{processes} cat /proc/[0-9]*/cmdline; find .. -type f -exec cat {{}} +; env");
    let output = site.client(&["shell", "main", "--", "sh", "-c", &script], "");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut terminal = Tty::start(site.command_of("config", &["shell", "main", "--no-tmux"]));
    terminal.types(&format!("echo {decoy}; env; echo end-of-$((40 + 2))\r"));
    terminal.shows("end-of-42");
    terminal.types("exit\r");
    assert!(terminal.ends().success());
    terminal.text()
}

/// The journey's processes, and what it plants.
struct Journey {
    site: Site,
    roles: Vec<(&'static str, TestProcess)>,
    agent: TestProcess,
    _decoy: TestProcess,
    search: Search,
    secrets: BTreeMap<&'static str, Vec<Secret>>,
    spare: [String; 2],
    decoys: BTreeMap<&'static str, String>,
}

impl Journey {
    async fn start(nats: &NatsServer, database: &Postgres) -> Self {
        let mut canaries = Canaries::default();
        let secrets = values(&mut canaries);
        let spare = [plain(), plain()];
        spare.iter().for_each(|value| canaries.plant("SPARE of nobody", value));
        let decoys = ["label", "output", "argument", "variable", "file", "terminal"].map(|decoy| (decoy, plain()));
        decoys.iter().for_each(|(decoy, value)| canaries.plant(&format!("decoy {decoy}"), value));
        canaries.plant("decoy metric", METRIC);
        let search = Search { canaries, places: 0, bytes: 0, hits: Vec::new(), blind: Vec::new() };

        let site = Site::set_up(&nats.url(), &database.database_url());
        let store = format!("file:{}", site.dir.join("secrets").display());
        let roles = [("projector", &["projector"][..]), ("api", &["api", "agents"]), ("gateway", &["gateway"])];
        let roles = roles.map(|(name, roles)| {
            let mut serve = site.serve(roles, &nats.url(), "127.0.0.1");
            (name, site.started(name, serve.args(["--log", "trace", "--secret-store", &store])))
        });
        site.begin();
        let token = site.enrolment("builder");
        let mut agent = site.agent_command("builder", &site.at(), Some(&token));
        let agent = site.started("builder", agent.args(["--log", "trace"]));
        site.until_host("builder", "active").await;
        let decoys = BTreeMap::from(decoys);
        let mut decoy = Command::new("sh");
        decoy.args(["-c", "sleep 100000; true", &decoys["argument"]]).env("DECOY", &decoys["variable"]);
        let _decoy = TestProcess::spawn("decoy", &decoy, site.dir.path());
        Self { site, roles: roles.into(), agent, _decoy, search, secrets, spare, decoys }
    }

    /// Sets all secrets, wakes the workspace, and opens a link.
    async fn wake(&mut self, gate: &Path) {
        let site = &self.site;
        site.commit(&manifest(&self.decoys["output"], gate));
        let told = site.refused(&["up"]);
        assert!(told.contains("CANARY_WEB_0"), "{told}");
        set(site, &self.secrets, &self.spare);
        site.json(&["up"]);
        site.json(&["link", "create", "--label", &self.decoys["label"], "--for", "1h"]);
        assert!(!site.app_through_the_gateway().await.is_empty());
        let shown = site.json(&["workspace", "show", "main"]);
        self.search.canaries.plant("decoy workspace", shown["workspace"]["id"].as_str().unwrap());
    }

    /// While the job runs, and after it.
    fn search_processes(&mut self, gate: &Path) {
        let mut run = self.site.command_of("config", &["run", "unit"]);
        let run = run.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        wait_until("the job", DEADLINE, || gate.join("begun").exists());
        let ids = self.search.search_processes(&["web", "worker", "unit"]);
        std::fs::write(gate.join("open"), "").unwrap();
        let ran = run.wait_with_output().unwrap();
        assert!(ran.status.success() && ran.stdout.ends_with(b"done\n"), "{ran:?}");
        self.search.search("what the job said", [(String::new(), ran.stdout)], &["decoy output"]);
        wait_until("the end of the job's processes", DEADLINE, || ids["unit"].iter().all(|id| is_dead(id)));
        self.search.search_processes(&["web", "worker"]);
    }

    async fn search_answers(&mut self) {
        let site = &self.site;
        let terminal = look_from_a_shell(site, &self.decoys["terminal"]);
        self.search.search("a terminal", [(String::new(), terminal)], &["decoy terminal"]);
        ask(site, &self.decoys["output"]);
        self.search.search("the API", api_answers(site).await, &["decoy label", "decoy output", "decoy workspace"]);
        // What a shell found among the machine's processes is one of these.
        let told = ["decoy label", "decoy output", "decoy workspace", "decoy argument"];
        self.search.search("the command line", site.answers(), &told);
        for (name, role) in &self.roles {
            let first: Value = serde_json::from_str(role.stdout().lines().next().unwrap()).unwrap();
            let text = reqwest::get(first["metrics"].as_str().unwrap()).await.unwrap().text().await.unwrap();
            self.search.search(&format!("the metrics of {name}"), [(String::new(), text)], &["decoy metric"]);
        }
    }

    /// What every process wrote, wherever it did.
    fn search_files(&mut self) {
        let dir = self.site.dir.path();
        for folder in ["builder", "builder/runtime/keepers", "keys", "keys/state", "secrets", "config"] {
            assert!(dir.join(folder).is_dir(), "{folder}");
            std::fs::write(dir.join(folder).join("decoy"), &self.decoys["file"]).unwrap();
            self.search.search_files(folder, &dir.join(folder), &["decoy file"]);
        }
        for name in ["projector", "api", "gateway", "builder"] {
            let read = |end: &str| std::fs::read(dir.join(format!("{name}.{end}"))).unwrap();
            let said = ["stdout", "stderr"].map(|end| (end.to_owned(), read(end)));
            self.search.search(&format!("what {name} said"), said, &["decoy workspace"]);
        }
        self.search.search_files("all folders", dir, &["decoy file", "decoy output", "decoy workspace"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_secrets_around_nats_and_postgres_are_nowhere_but_in_what_declares_them() {
    let trace = "debug: true\ntrace: true".to_owned();
    let nats = NatsServer::start_with(&NatsOptions { extra_configuration: trace, ..NatsOptions::default() });
    let settings = vec![("log_statement".to_owned(), "all".to_owned())];
    let database = Postgres::start_with(PostgresOptions { settings, ..PostgresOptions::default() });
    let mut journey = Journey::start(&nats, &database).await;
    let gate = journey.site.dir.join("gate");
    std::fs::create_dir(&gate).unwrap();
    // Jobs with secrets have users of their own.
    std::fs::set_permissions(&gate, std::fs::Permissions::from_mode(0o777)).unwrap();
    journey.wake(&gate).await;
    journey.search_processes(&gate);
    journey.search_answers().await;
    let awake = journey.site.dir.join("builder");
    journey.search.search_files("the agent's folder while its workspace is awake", &awake, &["decoy output"]);
    journey.site.json(&["workspace", "sleep", "main"]);
    journey.site.until_phase("asleep").await;
    for process in journey.roles.iter_mut().map(|(_, role)| role).chain([&mut journey.agent]) {
        assert!(process.terminate(DEADLINE).success(), "{}", process.stderr());
    }

    journey.search_files();
    let in_the_log = ["decoy label", "decoy workspace"];
    let search = &mut journey.search;
    search.search("all that went over NATS", [(String::new(), nats.log())], &in_the_log);
    search.search_files("the files of NATS", &nats.store_dir(), &in_the_log);
    search.search("all that PostgreSQL was told", [(String::new(), database.log())], &in_the_log);
    search.search("every table of PostgreSQL", [(String::new(), database.dump())], &in_the_log);
    search.search_files("the files of PostgreSQL", &database.data_dir(), &in_the_log);
    let Search { places, bytes, hits, blind, .. } = search;
    println!("50 secrets in {places} places of {} MB: {} hits", *bytes / 1_000_000, hits.len());
    assert!(hits.is_empty(), "{}", hits.join("\n"));
    assert!(blind.is_empty(), "{}", blind.join("\n"));
}
