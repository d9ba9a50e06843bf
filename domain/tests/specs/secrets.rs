//! Secrets of projects and workspaces: set in the store's order, given by rules, never under a name of the store again.

use std::collections::BTreeSet;

use envforge_domain::limits::{SECRET_CHANGES_MAX, SECRET_WORKSPACES_MAX, SECRETS_MAX};
use envforge_domain::manifest::{Job, JobKind, Manifest};
use envforge_domain::project::GitCredential;
use envforge_domain::runtime::{Epoch, Runtime, RuntimeCommand, RuntimeEvent, SleepCause, WakeCause};
use envforge_domain::secrets::*;
use proptest::prelude::*;

use crate::given::*;

const OF_PROJECT: fn() -> SecretOwner = || SecretOwner::Project(project(1));
const OF_WORKSPACE: fn() -> SecretOwner = || SecretOwner::Workspace { project: project(1), workspace: workspace(1) };

fn name(text: &str) -> SecretName {
    text.parse().unwrap()
}

fn set(text: &str, generation: u32, version: u64) -> SecretsCommand {
    with_rules(text, generation, version, None)
}

fn with_rules(text: &str, generation: u32, version: u64, rules: Option<SecretRules>) -> SecretsCommand {
    SecretsCommand::Set {
        owner: OF_PROJECT(),
        name: name(text),
        generation,
        version,
        expires_at: None,
        rules,
        by: user(1),
        now: at(5),
    }
}

fn was_set(text: &str, generation: u32, version: u64) -> SecretsEvent {
    SecretsEvent::Set {
        owner: OF_PROJECT(),
        name: name(text),
        generation,
        version,
        expires_at: None,
        by: user(1),
        at: at(5),
    }
}

fn remove(text: &str) -> SecretsCommand {
    SecretsCommand::Remove { name: name(text), by: user(1), now: at(6) }
}

fn removed(text: &str, generation: u32) -> SecretsEvent {
    SecretsEvent::Removed { name: name(text), generation, by: user(1), at: at(6) }
}

fn only(service: &str, rotation: Rotation) -> SecretRules {
    SecretRules { services: BTreeSet::from([service.parse().unwrap()]), workspaces: BTreeSet::new(), rotation }
}

#[test]
fn a_name_is_one_that_envforge_yml_could_declare_and_is_not_repeated_where_it_is_not() {
    for right in ["API_KEY", "_A", "A1"] {
        assert_eq!(name(right).as_str(), right);
    }
    for wrong in ["", "1A", "api_key", "A-B", "A B", "ENVFORGE_X", &"A".repeat(129), "sk_live_4711"] {
        let refused = wrong.parse::<SecretName>().unwrap_err().to_string();
        assert!(wrong.len() < 4 || !refused.contains(wrong) || wrong == "ENVFORGE_X", "{refused}");
    }
}

#[test]
fn versions_are_told_in_the_order_of_the_store_and_a_late_one_is_refused() {
    given::<Secrets>([]).when(set("A", 0, 1)).then([was_set("A", 0, 1)]);
    given::<Secrets>([was_set("A", 0, 1)]).when(set("A", 0, 2)).then([was_set("A", 0, 2)]);
    // A version that was put and never told of is passed over.
    given::<Secrets>([was_set("A", 0, 1)]).when(set("A", 0, 4)).then([was_set("A", 0, 4)]);
    given::<Secrets>([was_set("A", 0, 4)]).when(set("A", 0, 4)).then_nothing();
    given::<Secrets>([was_set("A", 0, 4)]).when(set("A", 0, 3)).then_refused("secret_overtaken");
    given::<Secrets>([was_set("A", 0, 4)]).when(set("B", 0, 1)).then_refused("secret_overtaken");
    given::<Secrets>([was_set("A", 0, 4)]).when(set("B", 1, 1)).then([was_set("B", 1, 1)]);
}

#[test]
fn a_name_that_is_set_again_gets_another_generation_and_no_rules_of_the_one_before() {
    let rules = only("web", Rotation::Restart);
    let history = given::<Secrets>([]).and(with_rules("A", 0, 1, Some(rules))).and(remove("A"));
    assert_eq!(history.state().generation_of(&name("A")), 1);
    assert!(history.state().is_over(&name("A"), 0) && !history.state().is_over(&name("A"), 1));
    given::<Secrets>([was_set("A", 0, 1), removed("A", 0)]).when(set("A", 0, 2)).then_refused("secret_overtaken");
    let again = history.and(set("A", 1, 1));
    let known = again.state().known(&name("A")).unwrap();
    assert_eq!((known.generation, known.version, &known.rules), (1, Some(1), &SecretRules::default()));
    assert!(again.state().is_over(&name("A"), 0) && !again.state().is_over(&name("A"), 1));
}

#[test]
fn the_log_tells_versions_of_which_it_was_told_from_those_of_which_it_never_was() {
    let of = |events: &[SecretsEvent], text: &str, generation, version| {
        given::<Secrets>(events.iter().cloned()).state().standing(&name(text), generation, version)
    };
    let twice = [was_set("A", 0, 1), was_set("A", 0, 3)];
    for (version, standing) in [
        (1, VersionStanding::Recorded),
        (2, VersionStanding::Absent),
        (3, VersionStanding::Recorded),
        (4, VersionStanding::Absent),
    ] {
        assert_eq!(of(&twice, "A", 0, version), standing, "{version}");
    }
    assert_eq!(of(&twice, "B", 0, 1), VersionStanding::Absent, "a name of which it never heard");
    assert_eq!(of(&twice, "A", 1, 1), VersionStanding::Absent, "a generation that never was");
    let again = [was_set("A", 0, 2), removed("A", 0), was_set("A", 1, 1), was_set("A", 1, 3)];
    assert_eq!(of(&again, "A", 1, 2), VersionStanding::Absent, "the one before had a version of that number");
    assert_eq!(of(&again, "A", 0, 2), VersionStanding::Unknown, "of a generation that is over");
    assert_eq!(of(&[was_set("A", 0, 1), removed("A", 0)], "A", 0, 1), VersionStanding::Unknown);
    // Of what is not remembered any more nothing is said.
    let many: Vec<_> = (1..=SECRET_CHANGES_MAX as u64 + 5).map(|version| was_set("A", 0, 2 * version)).collect();
    assert_eq!(of(&many, "A", 0, 2), VersionStanding::Unknown);
    assert_eq!(of(&many, "A", 0, 3), VersionStanding::Unknown);
    assert_eq!(of(&many, "A", 0, 1_000), VersionStanding::Absent);
    // What was put for a name of which the log never heard is not over, whatever came after it.
    let state = given::<Secrets>([was_set("A", 0, 1), was_set("B", 1, 1)]);
    assert!(!state.state().is_over(&name("C"), 0) && !state.state().is_over(&name("C"), 1));
}

#[test]
fn removing_is_done_once_and_what_never_was_cannot_be_removed() {
    given::<Secrets>([was_set("A", 0, 1)]).when(remove("A")).then([removed("A", 0)]);
    given::<Secrets>([was_set("A", 0, 1), removed("A", 0)]).when(remove("A")).then_nothing();
    given::<Secrets>([]).when(remove("A")).then_refused("secret_unknown");
}

#[test]
fn there_is_a_limit_and_rules_are_bounded() {
    let full = (0..SECRETS_MAX).map(|number| was_set(&format!("S{number}"), u32::try_from(number).unwrap(), 1));
    let next = u32::try_from(SECRETS_MAX).unwrap();
    given::<Secrets>(full.clone()).when(set("MORE", next, 1)).then_refused("too_many_secrets");
    given::<Secrets>(full).when(set("S0", 0, 2)).then([was_set("S0", 0, 2)]);
    let wide = SecretRules {
        workspaces: (0..=SECRET_WORKSPACES_MAX as u128).map(workspace).collect(),
        ..SecretRules::default()
    };
    given::<Secrets>([]).when(with_rules("A", 0, 1, Some(wide))).then_refused("secret_rules_invalid");
    let elsewhere = SecretRules { workspaces: BTreeSet::from([workspace(2)]), ..SecretRules::default() };
    let own = SecretsCommand::Set {
        owner: OF_WORKSPACE(),
        name: name("A"),
        generation: 0,
        version: 1,
        expires_at: None,
        rules: Some(elsewhere),
        by: user(1),
        now: at(5),
    };
    given::<Secrets>([]).when(own).then_refused("secret_rules_invalid");
    let change = |rules| SecretsCommand::ChangeRules { name: name("A"), rules, by: user(1), now: at(7) };
    given::<Secrets>([]).when(change(SecretRules::default())).then_refused("secret_unknown");
    given::<Secrets>([was_set("A", 0, 1)]).when(change(SecretRules::default())).then_nothing();
}

#[test]
fn of_each_secret_the_newest_changes_are_told() {
    let many = (1..=60).map(|version| was_set("A", 0, version));
    let history = given::<Secrets>(many);
    let changes = &history.state().known(&name("A")).unwrap().changes;
    assert_eq!(changes.len(), SECRET_CHANGES_MAX);
    assert_eq!(changes.last().unwrap().deed, SecretDeed::Set { version: 60 });
}

fn manifest(web: &str, worker: &str) -> Manifest {
    Manifest::parse(&format!(
        "version: 1\nservices:\n  web:\n    command: a\n    route: {{ web: {{}} }}\n    readiness: {{ http: / }}\n    secrets: [{web}]\n  \
         worker:\n    command: b\n    secrets: [{worker}]\n"
    ))
    .unwrap()
}

fn view<'a>(of_project: &'a Secrets, of_workspace: &'a Secrets) -> SecretView<'a> {
    SecretView { project: project(1), workspace: workspace(1), of_project, of_workspace, git: None, now: at(6) }
}

#[test]
fn a_workspaces_own_goes_before_its_projects_and_all_that_is_missing_or_forbidden_is_named() {
    let of_project =
        given::<Secrets>([]).and(set("A", 0, 3)).and(with_rules("B", 1, 1, Some(only("web", Rotation::MarkStale))));
    let of_workspace = given::<Secrets>([]).and(set("A", 0, 7)).and(set("LEFT", 1, 1));
    let view = view(of_project.state(), of_workspace.state());
    let consumed = view.resolve(&manifest("A, B", "A")).unwrap();
    let told: Vec<_> =
        consumed.iter().map(|one| (one.consumer.to_string(), one.name.as_str(), one.owner, one.version)).collect();
    let expected = [("web", "A", OF_WORKSPACE(), 7), ("web", "B", OF_PROJECT(), 1), ("worker", "A", OF_WORKSPACE(), 7)];
    assert_eq!(told, expected.map(|(service, name, owner, version)| (service.to_owned(), name, owner, version)));
    let refused = view.resolve(&manifest("A, C", "B, D")).unwrap_err();
    let told: Vec<_> = refused.iter().map(|one| (one.consumer.to_string(), one.name.as_str(), one.problem)).collect();
    let expected = [
        ("web", "C", SecretProblem::Missing),
        ("worker", "B", SecretProblem::Forbidden),
        ("worker", "D", SecretProblem::Missing),
    ];
    assert_eq!(told, expected.map(|(service, name, problem)| (service.to_owned(), name, problem)));
    let sentence = RefusedSecret::told(&refused);
    assert!(
        sentence.contains("C (service `web`) has no value")
            && sentence.contains("B may not be used by service `worker`")
    );
    assert_eq!(view.undeclared(&manifest("A", "B")), [&name("LEFT")]);
}

fn until(text: &str, generation: u32, version: u64, end: u64) -> SecretsCommand {
    let SecretsCommand::Set { owner, name, rules, by, now, .. } = set(text, generation, version) else {
        unreachable!()
    };
    SecretsCommand::Set { owner, name, generation, version, expires_at: Some(at(end)), rules, by, now }
}

#[test]
fn a_value_ends_when_it_was_said_to_and_the_next_one_says_for_itself() {
    given::<Secrets>([]).when(until("A", 0, 1, 5)).then_refused("secret_end_invalid");
    given::<Secrets>([]).when(until("A", 0, 1, u64::MAX)).then_refused("secret_end_invalid");
    let nothing = Secrets::default();
    let secrets = given::<Secrets>([]).and(until("A", 0, 1, 10));
    let problem = |secrets: &Secrets, now| {
        let view = SecretView { now: at(now), ..view(secrets, &nothing) };
        view.resolve(&manifest("A", "")).err().map(|refused| refused[0].problem)
    };
    assert_eq!((problem(secrets.state(), 9), problem(secrets.state(), 10)), (None, Some(SecretProblem::Expired)));
    let consumed = view(secrets.state(), &nothing).resolve(&manifest("A", "")).unwrap().remove(0);
    let later = SecretView { now: at(10), ..view(secrets.state(), &nothing) };
    assert_eq!(later.stale(&consumed), Some(Rotation::MarkStale), "its next wake fails");
    let renewed = given::<Secrets>([]).and(until("A", 0, 1, 10)).and(set("A", 0, 2));
    assert_eq!(problem(renewed.state(), 1_000), None);
}

#[test]
fn what_a_project_names_for_git_is_gits_alone_and_rules_that_name_services_are_for_those() {
    let secrets = given::<Secrets>([]).and(set("TOKEN", 0, 1)).and(with_rules(
        "WEB",
        1,
        1,
        Some(only("web", Rotation::MarkStale)),
    ));
    let nothing = Secrets::default();
    let named = |text: &str| GitCredential { secret: name(text), username: "git".to_owned(), in_shells: false };
    let (token, web) = (named("TOKEN"), named("WEB"));
    let with = |git| SecretView { git: Some(git), ..view(secrets.state(), &nothing) };
    let consumed = with(&token).resolve(&manifest("WEB", "")).unwrap();
    let told: Vec<_> = consumed.iter().map(|one| (one.consumer.to_string(), one.name.to_string())).collect();
    let expected = [("web", "WEB"), ("git:repository", "TOKEN")];
    assert_eq!(told, expected.map(|(consumer, name)| (consumer.to_owned(), name.to_owned())));
    let refused = with(&token).resolve(&manifest("TOKEN", "")).unwrap_err();
    assert_eq!((refused.len(), refused[0].problem), (1, SecretProblem::Forbidden));
    assert_eq!(with(&web).resolve_git().unwrap().unwrap_err().problem, SecretProblem::Forbidden);
    let job = |text: &str| Job {
        name: "unit".to_owned(),
        command: "true".to_owned(),
        kind: JobKind::Test,
        secrets: vec![text.to_owned()],
    };
    assert_eq!(with(&token).resolve_job(&job("TOKEN")).unwrap_err()[0].problem, SecretProblem::Forbidden);
    assert_eq!(with(&token).resolve_job(&job("WEB")).unwrap_err()[0].problem, SecretProblem::Forbidden);
    let given = with(&web).resolve_job(&job("TOKEN")).unwrap();
    assert_eq!((given.len(), given[0].consumer.to_string()), (1, "job:unit".to_owned()));
    assert_eq!(given[0].consumer.to_string().parse(), Ok(given[0].consumer.clone()));
    assert!("job:".parse::<SecretConsumer>().is_err() && "git:other".parse::<SecretConsumer>().is_err());
}

#[test]
fn what_runs_with_something_else_than_the_next_wake_would_get_is_stale() {
    let of_project = given::<Secrets>([]).and(set("A", 0, 1));
    let nothing = Secrets::default();
    let consumed = view(of_project.state(), &nothing).resolve(&manifest("A", "A")).unwrap().remove(0);
    let stale = |of_project: &Secrets, of_workspace: &Secrets| view(of_project, of_workspace).stale(&consumed);
    assert_eq!(stale(of_project.state(), &nothing), None);
    let rotated = given::<Secrets>([was_set("A", 0, 1)]).and(set("A", 0, 2));
    assert_eq!(stale(rotated.state(), &nothing), Some(Rotation::MarkStale));
    let restarts = SecretRules { rotation: Rotation::Restart, ..SecretRules::default() };
    let restarting = given::<Secrets>([was_set("A", 0, 1)]).and(with_rules("A", 0, 2, Some(restarts)));
    assert_eq!(stale(restarting.state(), &nothing), Some(Rotation::Restart));
    // Nothing is restarted into a wake that fails.
    let gone = given::<Secrets>([was_set("A", 0, 1), removed("A", 0)]);
    assert_eq!(stale(gone.state(), &nothing), Some(Rotation::MarkStale));
    let closed =
        given::<Secrets>([was_set("A", 0, 1)]).and(with_rules("A", 0, 2, Some(only("other", Rotation::Restart))));
    assert_eq!(stale(closed.state(), &nothing), Some(Rotation::MarkStale));
    let own = given::<Secrets>([]).and(set("A", 0, 1));
    assert_eq!(stale(of_project.state(), own.state()), Some(Rotation::MarkStale), "the workspace got its own");
}

fn requested() -> RuntimeEvent {
    let cause = WakeCause::Person(user(1));
    RuntimeEvent::WakeRequested { epoch: Epoch(1), workspace: workspace(1), project: project(1), cause }
}

fn chosen() -> RuntimeEvent {
    RuntimeEvent::HostChosen { epoch: Epoch(1), host: host(1) }
}

fn consumed(count: usize) -> Vec<ConsumedSecret> {
    let one = |number| ConsumedSecret {
        consumer: SecretConsumer::Service(service("web")),
        name: name(&format!("S{number}")),
        owner: OF_PROJECT(),
        generation: 0,
        version: 1,
    };
    (0..count).map(one).collect()
}

#[test]
fn what_a_wake_is_given_is_recorded_by_its_host_alone_and_stays_with_the_runtime() {
    let report = |number, count| RuntimeCommand::ReportSecrets {
        epoch: Epoch(1),
        host: host(number),
        consumed: consumed(count),
    };
    given::<Runtime>([requested()]).when(report(1, 1)).then_refused("runtime_other_host");
    given::<Runtime>([requested(), chosen()]).when(report(2, 1)).then_refused("runtime_other_host");
    given::<Runtime>([requested(), chosen()]).when(report(1, 1_001)).then_refused("runtime_too_many_secrets");
    let events = given::<Runtime>([requested(), chosen()]).when(report(1, 250)).events();
    assert_eq!(events.len(), 3, "no event is too large");
    let waking = given::<Runtime>([requested(), chosen()]).and(report(1, 250));
    let Runtime::Waking { secrets, .. } = waking.state() else { panic!("it is waking") };
    assert_eq!(*secrets, consumed(250));
    waking.when(report(1, 250)).then_nothing();
    let ready = RuntimeEvent::Ready { epoch: Epoch(1), commit: "c".to_owned(), services: vec![], lease_until: at(9) };
    let history = given::<Runtime>([requested(), chosen()]).and(report(1, 2));
    let resolved = RuntimeEvent::SecretsResolved { epoch: Epoch(1), consumed: consumed(2) };
    let Runtime::Waking { .. } = history.state() else { panic!("it is waking") };
    let up = given::<Runtime>([requested(), chosen(), resolved, ready]);
    let Runtime::Ready(state) = up.state() else { panic!("it is ready") };
    assert_eq!(state.secrets, consumed(2));
    let restart = RuntimeCommand::Restart { epoch: Epoch(1), name: name("S1"), by: user(7) };
    up.when(restart).then([
        RuntimeEvent::SleepRequested { epoch: Epoch(1), cause: SleepCause::SecretRotated { name: name("S1") } },
        RuntimeEvent::WakeQueued { cause: WakeCause::Person(user(7)) },
    ]);
}

#[test]
fn a_wake_that_secrets_stop_fails_with_their_names_beside_a_sentence() {
    let refused: Vec<_> = (0..7)
        .map(|number| RefusedSecret {
            consumer: SecretConsumer::Service(service("web")),
            name: name(&format!("S{number}")),
            problem: SecretProblem::Missing,
        })
        .collect();
    let report = RuntimeCommand::ReportSecretsRefused { epoch: Epoch(1), host: host(1), refused: refused.clone() };
    let events = given::<Runtime>([requested()]).when(report.clone()).events();
    let [RuntimeEvent::SecretsRefused { refused: named, .. }, RuntimeEvent::Failed { reason, .. }] = events.as_slice()
    else {
        panic!("{events:?}")
    };
    assert!(reason.contains("S0 (service `web`) has no value") && reason.contains("and 2 more"), "{reason}");
    assert_eq!(*named, refused);
    let failed = given::<Runtime>(events.iter().cloned().fold(vec![requested()], |mut all, event| {
        all.push(event);
        all
    }));
    assert!(matches!(failed.state(), Runtime::Failed { refused: named, .. } if *named == refused));
    failed.when(report).then_nothing();
}

fn any_command() -> impl Strategy<Value = SecretsCommand> {
    let names = || prop_oneof![Just("A"), Just("B"), Just("C")];
    let rules =
        || prop_oneof![Just(None), Just(Some(only("web", Rotation::Restart))), Just(Some(SecretRules::default()))];
    prop_oneof![
        4 => (names(), 0..6_u32, 1..6_u64, rules()).prop_map(|(name, generation, version, rules)| with_rules(name, generation, version, rules)),
        2 => names().prop_map(remove),
        1 => (names(), rules()).prop_map(|(text, rules)| SecretsCommand::ChangeRules {
            name: name(text), rules: rules.unwrap_or_default(), by: user(2), now: at(8),
        }),
    ]
}

proptest! {
    /// No name of the store is used for another value, and versions only grow within a generation.
    #[test]
    fn any_accepted_history_evolves(commands in prop::collection::vec(any_command(), 0..60)) {
        histories::<Secrets>(commands, |before, after| {
            for text in ["A", "B", "C"] {
                let secret = name(text);
                if let (Some(was), Some(is)) = (before.known(&secret), after.known(&secret)) {
                    prop_assert!(is.generation >= was.generation);
                    if let (Some(older), Some(newer)) = (was.version, is.version) {
                        prop_assert!(is.generation > was.generation || newer >= older);
                        prop_assert!(is.generation == was.generation, "what is held keeps its generation");
                    }
                    if was.version.is_none() && is.version.is_some() {
                        prop_assert!(is.generation > was.generation, "a removed name's generation came back");
                    }
                }
                if let Some(is) = after.known(&secret) {
                    prop_assert!(!(is.version.is_some() && after.is_over(&secret, is.generation)), "a held value would be cleared");
                }
            }
            Ok(())
        })?;
    }
}
