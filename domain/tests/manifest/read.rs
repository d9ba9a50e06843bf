//! Files that are read, and what they mean.

use envforge_domain::limits;
use envforge_domain::manifest::*;
use envforge_domain::slug::ServiceName;
use envforge_domain::time::Millis;

/// Files that must be read, by name.
pub(crate) const FILES: [(&str, &str); 4] = [
    ("the whole format", WHOLE),
    ("the smallest file", "version: 1\nservices: { web: { command: ./serve } }\n"),
    (
        "JSON is YAML",
        r#"{"version": 1, "services": {"web": {"command": "./serve", "cpu": 2, "environment": {"A": 5}}}}"#,
    ),
    ("other spellings", OTHER),
];

const WHOLE: &str = "\
# What the product documents show.
version: 1
idle_sleep: 15m
on_sleep: { command: \"./scripts/flush.sh\", deadline: 10s }
services:
  web:
    command: python3 web/server.py
    port: PORT
    route: { web: {}, websockets: [/live] }
    readiness: { http: /healthz, interval: 200ms, deadline: 30s }
    cpu: 250m
    memory: 128Mi
    environment: { GREETING: hello }
    secrets: [DATABASE_URL]
    directory: web
  api:
    command: python3 api/server.py
    route: { api: /api, websockets: [/api/live] }
  static:  { command: ./static, route: { assets: /assets } }
  landing: { command: ./landing, route: { marketing: /about } }
  worker:  { command: ./worker, port: none }
resources:
  mail: { kind: mailpit, mode: runtime }
  db: { kind: postgres, mode: customer-cloud }
jobs:
  unit: { command: python3 -m unittest, kind: test }
  review: { command: ./review, kind: agent }
";

const OTHER: &str = "\
---
version: 1
services:
  'web':
    command: |
      set -e
      exec ./serve --port \"$PORT\"
    route: web
    readiness: { deadline: 2m }
    cpu: 0.5
    memory: 1Gi
    environment:
      EMPTY: \"\"
      NUMBER: 8080
      NEGATIVE: -1
      QUOTED: 'no'
      FOLDED: >-
        one
        two
      \"NO\": \"1\"
  second:
    command: ./serve
    port: HTTP_PORT
    route: { web: {}, websockets: [/] }
    readiness: { command: ./ready.sh, interval: 1s }
    cpu: '1'
  one:
    command: ./serve
    route: { api: /api }
  v2-beta:
    command: ./serve
    route: { api: /api/beta, websockets: [/api/beta] }
    readiness: { none: true }
...
";

fn named<'a>(manifest: &'a Manifest, name: &str) -> &'a Service {
    manifest.service(&name.parse::<ServiceName>().unwrap()).unwrap()
}

fn path(text: &str) -> PathPrefix {
    PathPrefix::parse(text).unwrap()
}

#[test]
fn every_key_of_the_format_is_read() {
    let manifest = Manifest::parse(WHOLE).unwrap();
    let names: Vec<&str> = manifest.services.iter().map(|service| service.name.as_str()).collect();
    assert_eq!(names, ["web", "api", "static", "landing", "worker"]);
    assert_eq!(manifest.idle_sleep, Millis::from_minutes(15));
    let hook = Hook { command: "./scripts/flush.sh".to_owned(), deadline: Millis::from_secs(10) };
    assert_eq!(manifest.on_sleep, Some(hook));
    assert_eq!(
        *named(&manifest, "web"),
        Service {
            name: "web".parse().unwrap(),
            command: "python3 web/server.py".to_owned(),
            directory: Some("web".to_owned()),
            port_variable: Some("PORT".to_owned()),
            route: Route::Web { websockets: vec![path("/live")] },
            readiness: Readiness {
                probe: Probe::Http { path: "/healthz".to_owned() },
                interval: Millis::new(200),
                deadline: Millis::from_secs(30),
            },
            cpu_millicores: 250,
            memory_mib: 128,
            secrets: vec!["DATABASE_URL".to_owned()],
            environment: vec![("GREETING".to_owned(), "hello".to_owned())],
        }
    );
    let api = Route::Api { prefix: path("/api"), websockets: vec![path("/api/live")] };
    assert_eq!(named(&manifest, "api").route, api);
    assert_eq!(named(&manifest, "static").route, Route::Assets { prefix: path("/assets") });
    assert_eq!(named(&manifest, "landing").route, Route::Marketing { prefix: path("/about") });
    assert_eq!(
        manifest.resources,
        [
            Resource { name: "mail".to_owned(), kind: "mailpit".to_owned(), mode: ResourceMode::Runtime },
            Resource { name: "db".to_owned(), kind: "postgres".to_owned(), mode: ResourceMode::CustomerCloud },
        ]
    );
    assert_eq!(
        manifest.jobs,
        [
            Job {
                name: "unit".to_owned(),
                command: "python3 -m unittest".to_owned(),
                kind: JobKind::Test,
                secrets: vec![]
            },
            Job { name: "review".to_owned(), command: "./review".to_owned(), kind: JobKind::Agent, secrets: vec![] },
        ]
    );
}

#[test]
fn what_a_file_leaves_out_has_its_default() {
    let manifest = Manifest::parse(WHOLE).unwrap();
    let worker = named(&manifest, "worker");
    let readiness = |probe| Readiness { probe, interval: Millis::new(200), deadline: Millis::from_secs(30) };
    assert_eq!(
        (&worker.port_variable, &worker.route, &worker.readiness),
        (&None, &Route::None, &readiness(Probe::None))
    );
    let smallest = Manifest::parse("{ version: 1, services: { web: { command: a } } }").unwrap();
    assert_eq!(smallest.idle_sleep, limits::IDLE_SLEEP_DEFAULT);
    assert_eq!((smallest.on_sleep.as_ref(), smallest.resources.len(), smallest.jobs.len()), (None, 0, 0));
    let web = named(&smallest, "web");
    assert_eq!((web.port_variable.as_deref(), &web.route), (Some("PORT"), &Route::None));
    assert_eq!(web.readiness, readiness(Probe::Tcp));
    assert_eq!((web.cpu_millicores, web.memory_mib), (250, 256));
    assert_eq!((&web.directory, web.secrets.len(), web.environment.len()), (&None, 0, 0));
    let defaults = "{ version: 1, services: { web: { command: a } }, on_sleep: { command: b }, resources: { db: { kind: postgres } }, jobs: { unit: { command: c } } }";
    let defaults = Manifest::parse(defaults).unwrap();
    assert_eq!(defaults.on_sleep.unwrap().deadline, Millis::from_secs(10));
    assert_eq!((defaults.resources[0].mode, defaults.jobs[0].kind), (ResourceMode::Runtime, JobKind::Test));
}

#[test]
fn other_spellings_mean_the_same() {
    let manifest = Manifest::parse(OTHER).unwrap();
    let web = named(&manifest, "web");
    assert_eq!(web.command, "set -e\nexec ./serve --port \"$PORT\"\n");
    assert_eq!(web.route, Route::Web { websockets: vec![] });
    assert_eq!((&web.readiness.probe, web.readiness.deadline), (&Probe::Tcp, Millis::from_minutes(2)));
    assert_eq!((web.cpu_millicores, web.memory_mib), (500, 1_024));
    let environment: Vec<(&str, &str)> =
        web.environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(
        environment,
        [("EMPTY", ""), ("NUMBER", "8080"), ("NEGATIVE", "-1"), ("QUOTED", "no"), ("FOLDED", "one two"), ("NO", "1")]
    );
    let second = named(&manifest, "second");
    assert_eq!((second.port_variable.as_deref(), second.cpu_millicores), (Some("HTTP_PORT"), 1_000));
    assert_eq!(second.readiness.probe, Probe::Command { command: "./ready.sh".to_owned() });
}

#[test]
fn limits_are_inclusive() {
    let cpu = |text: &str| {
        let manifest =
            Manifest::parse(&format!("{{ version: 1, services: {{ web: {{ command: a, cpu: {text} }} }} }}"));
        manifest.map(|manifest| manifest.services[0].cpu_millicores).ok()
    };
    let found = ["10m", "0.01", "64", "64000m", "9m", "64.001", "64001m", "0.125", "1.5"].map(cpu);
    assert_eq!(found, [Some(10), Some(10), Some(64_000), Some(64_000), None, None, None, Some(125), Some(1_500)]);
    let memory = |text: &str| {
        let manifest =
            Manifest::parse(&format!("{{ version: 1, services: {{ web: {{ command: a, memory: {text} }} }} }}"));
        manifest.map(|manifest| manifest.services[0].memory_mib).ok()
    };
    assert_eq!(
        ["16Mi", "512Gi", "15Mi", "513Gi", "99999999999Gi"].map(memory),
        [Some(16), Some(524_288), None, None, None]
    );
    let idle = |text: &str| {
        let manifest =
            Manifest::parse(&format!("{{ version: 1, idle_sleep: {text}, services: {{ web: {{ command: a }} }} }}"));
        manifest.map(|manifest| manifest.idle_sleep.get()).ok()
    };
    let found = ["30s", "24h", "1440m", "29999ms", "86401s", "18446744073709551615h"].map(idle);
    assert_eq!(found, [Some(30_000), Some(86_400_000), Some(86_400_000), None, None, None]);
}

#[test]
fn the_canonical_text_writes_every_default_out() {
    let text =
        "{ version: 1, services: { web: { command: 'say \"hi\"', environment: { 'NO': \"1\\n\" }, secrets: [KEY] } } }";
    insta::assert_snapshot!(Manifest::parse(text).unwrap().render(), @r#"
    version: 1
    idle_sleep: 15m
    services:
      web:
        command: "say \"hi\""
        port: PORT
        route: none
        readiness:
          tcp: true
          interval: 200ms
          deadline: 30s
        cpu: 250m
        memory: 256Mi
        environment:
          "NO": "1\n"
        secrets:
          - KEY
    "#);
}

#[test]
fn the_digest_ignores_spelling_and_sees_meaning() {
    let digest = |text: &str| Manifest::parse(text).unwrap().digest().to_string();
    let first = digest("version: 1\nservices: { web: { command: a, cpu: 0.25 } } # short\n");
    assert_eq!(first, digest("version: 1\nidle_sleep: 900s\nservices:\n  web:\n    cpu: 250m\n    command: \"a\"\n"));
    assert_ne!(first, digest("version: 1\nservices: { web: { command: b } }\n"));
    // Written down: the digest of a stored manifest must never change.
    assert_eq!(first, "8f409b1af092edcdf39390ad4e1f82e6fdc051e67746516359390b098e1b5109");
}

#[test]
fn the_example_of_the_reference_is_read() {
    let reference = include_str!("../../../docs/envforge-yml.md");
    let mut examples = 0;
    for block in reference.split("```yaml\n").skip(1) {
        let text = block.split("```").next().unwrap();
        Manifest::parse(text).unwrap_or_else(|errors| panic!("{errors}\n{text}"));
        examples += 1;
    }
    assert!(examples >= 1);
}

#[test]
fn the_errors_of_the_reference_are_what_the_parser_says() {
    let reference = include_str!("../../../docs/envforge-yml.md");
    let block = |fence: &str| reference.split(fence).nth(1).unwrap().split("```").next().unwrap();
    let errors = Manifest::parse(block("```yml\n")).unwrap_err();
    assert_eq!(block("```text\n"), format!("{errors}\n"));
}
