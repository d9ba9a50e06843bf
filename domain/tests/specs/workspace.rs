//! Workspaces, branches, repositories and claimed names.

use envforge_domain::access::Action;
use envforge_domain::aggregate::Refusal;
use envforge_domain::claim::*;
use envforge_domain::manifest::Manifest;
use envforge_domain::project::Repository;
use envforge_domain::workspace::*;
use proptest::prelude::*;

use crate::given::*;

const SHORT: &str = "version: 1\nservices:\n  web: { command: serve, route: web }\n";
const OTHER: &str = "version: 1\nservices:\n  web: { command: serve --fast, route: web }\n";

fn manifest(text: &str) -> Manifest {
    Manifest::parse(text).unwrap()
}

/// A manifest with one service of `length` characters that has this route.
fn with_service(length: usize, route: &str) -> Manifest {
    let name = "s".repeat(length);
    manifest(&format!("version: 1\nservices:\n  {name}: {{ command: serve, route: {route} }}\n"))
}

fn create(slug: &str, manifest: Manifest) -> WorkspaceCommand {
    WorkspaceCommand::Create {
        workspace: workspace(1),
        project: project(1),
        org_slug: "acme".parse().unwrap(),
        slug: slug.parse().unwrap(),
        branch: Branch::parse("main").unwrap(),
        manifest,
        access_mode: AccessMode::SignedLinks,
    }
}

fn created() -> WorkspaceEvent {
    WorkspaceEvent::Created {
        workspace: workspace(1),
        project: project(1),
        slug: "main".parse().unwrap(),
        branch: Branch::parse("main").unwrap(),
        manifest: manifest(SHORT),
        access_mode: AccessMode::SignedLinks,
    }
}

fn change_manifest(manifest: Manifest) -> WorkspaceCommand {
    WorkspaceCommand::ChangeManifest { org_slug: "acme".parse().unwrap(), manifest }
}

fn change_access(access_mode: AccessMode) -> WorkspaceCommand {
    WorkspaceCommand::ChangeAccessMode { access_mode }
}

#[test]
fn a_workspace_begins_as_it_was_asked_for_and_only_once() {
    given::<Workspace>([]).when(create("main", manifest(SHORT))).then([created()]);
    given::<Workspace>([created()]).when(create("main", manifest(SHORT))).then_refused("workspace_exists");
    given::<Workspace>([created(), WorkspaceEvent::Archived])
        .when(create("main", manifest(SHORT)))
        .then_refused("workspace_exists");
}

#[test]
fn a_manifest_or_access_mode_that_stays_the_same_is_no_event() {
    given::<Workspace>([created()]).when(change_manifest(manifest(SHORT))).then_nothing();
    given::<Workspace>([created()])
        .when(change_manifest(manifest(OTHER)))
        .then([WorkspaceEvent::ManifestChanged { manifest: manifest(OTHER) }]);
    given::<Workspace>([created()]).when(change_access(AccessMode::SignedLinks)).then_nothing();
    let closed = given::<Workspace>([created()]).and(change_access(AccessMode::TailscaleOnly));
    assert!(matches!(closed.state(), Workspace::Active(active) if active.access_mode == AccessMode::TailscaleOnly));
    closed
        .when(change_access(AccessMode::SignedLinks))
        .then([WorkspaceEvent::AccessModeChanged { access_mode: AccessMode::SignedLinks }]);
}

#[test]
fn an_archived_workspace_takes_no_change_and_keeps_its_name() {
    let archived = || given::<Workspace>([created()]).and(WorkspaceCommand::Archive);
    archived().when(WorkspaceCommand::Archive).then_nothing();
    archived().when(change_manifest(manifest(OTHER))).then_refused("workspace_archived");
    archived().when(change_access(AccessMode::TailscaleOnly)).then_refused("workspace_archived");
    assert!(matches!(archived().state(), Workspace::Archived { slug, .. } if slug.as_str() == "main"));
}

#[test]
fn a_workspace_that_never_was_takes_no_command_but_its_creation() {
    let unknown = || given::<Workspace>([]);
    unknown().when(WorkspaceCommand::Archive).then_refused("workspace_unknown");
    unknown().when(change_manifest(manifest(SHORT))).then_refused("workspace_unknown");
    unknown().when(change_access(AccessMode::SignedLinks)).then_refused("workspace_unknown");
}

/// `service--workspace--org`: 63 characters are a DNS label, 64 are none.
#[test]
fn a_routed_service_whose_host_label_is_too_long_is_refused_when_it_is_declared() {
    // 40 + 2 + 15 + 2 + 4 = 63 with `acme`.
    let (fits, too_long) = ("w".repeat(15), "w".repeat(16));
    given::<Workspace>([]).when(create(&fits, with_service(40, "web"))).events();
    given::<Workspace>([]).when(create(&too_long, with_service(40, "web"))).then_refused("host_label_too_long");
    given::<Workspace>([]).when(create(&too_long, with_service(39, "web"))).events();
    // Without a route there is no host.
    given::<Workspace>([]).when(create(&too_long, with_service(40, "none"))).events();
    // Any route is reached on a host.
    given::<Workspace>([])
        .when(create(&too_long, with_service(40, "{ api: /api }")))
        .then_refused("host_label_too_long");

    let existing = || given::<Workspace>([]).and(create(&too_long, with_service(39, "web")));
    existing().when(change_manifest(with_service(40, "web"))).then_refused("host_label_too_long");
    existing().when(change_manifest(with_service(40, "none"))).events();
    let refusal = WorkspaceRefusal::from(
        envforge_domain::slug::HostLabel::new(
            "s".repeat(40).parse().unwrap(),
            too_long.parse().unwrap(),
            "acme".parse().unwrap(),
        )
        .unwrap_err(),
    );
    assert_eq!(refusal.bounds(), [("length", 64), ("max", 63)]);
    assert!(refusal.to_string().contains("by 1"), "{refusal}");
}

fn any_command() -> impl Strategy<Value = WorkspaceCommand> {
    let mode = prop_oneof![Just(AccessMode::SignedLinks), Just(AccessMode::TailscaleOnly)];
    prop_oneof![
        Just(create("main", manifest(SHORT))),
        prop_oneof![Just(SHORT), Just(OTHER)].prop_map(|text| change_manifest(manifest(text))),
        (3..41usize).prop_map(|length| change_manifest(with_service(length, "web"))),
        mode.prop_map(change_access),
        Just(WorkspaceCommand::Archive),
    ]
}

proptest! {
    /// Whatever was accepted evolves, an archived workspace stays so, and its identity never changes.
    #[test]
    fn any_accepted_history_evolves(commands in prop::collection::vec(any_command(), 1..40)) {
        let mut archived = false;
        histories::<Workspace>(commands, |_, after| {
            let slug = match after {
                Workspace::Unknown => None,
                Workspace::Active(active) => Some(&active.slug),
                Workspace::Archived { slug, .. } => Some(slug),
            };
            prop_assert!(slug.is_none_or(|slug| slug.as_str() == "main"));
            let is_archived = matches!(after, Workspace::Archived { .. });
            prop_assert!(is_archived || !archived);
            archived = is_archived;
            Ok(())
        })?;
    }

    #[test]
    fn any_accepted_history_of_a_name_evolves(steps in prop::collection::vec((any::<bool>(), 0..3usize), 1..20)) {
        let commands = steps.into_iter().map(|(take, who)| {
            let (holder, for_action) = (["a", "b", "c"][who].to_owned(), Action::WorkspaceCreate);
            if take { ClaimCommand::Take { holder, for_action } } else { ClaimCommand::Retire { holder, for_action } }
        });
        let mut holder = None::<String>;
        histories::<Claim>(commands, |_, after| {
            // Whoever has a name keeps it, also beyond its end: nobody else ever gets it.
            let (Claim::Held { holder: has } | Claim::Retired { holder: has }) = after else { return Ok(()) };
            prop_assert_eq!(holder.get_or_insert_with(|| has.clone()), has);
            Ok(())
        })?;
    }
}

#[test]
fn branch_names_that_git_refuses_or_takes_for_options_are_refused() {
    for text in [
        "",
        "-x",
        "--upload-pack=touch",
        "a..b",
        "a b",
        "a:b",
        "a~1",
        "/a",
        "a/",
        "a.lock",
        "@",
        "a@{1}",
        "a\\b",
        "a\0",
    ] {
        assert!(Branch::parse(text).is_err(), "{text}");
    }
    for text in ["main", "feature/signed-links", "a.b", "ünïcode", "v1"] {
        assert!(Branch::parse(text).is_ok(), "{text}");
    }
}

#[test]
fn a_repository_with_credentials_is_refused_without_repeating_them() {
    for text in [
        "https://user:hunter2@example.org/x.git",
        "https://hunter2@example.org/x.git",
        "https://user:hunter2@example.org",
        "ssh://git:hunter2@example.org/x.git",
        "file://user:hunter2@example.org/x",
        "http://user:hunter2@example.org/x.git",
        "HTTPS://user:hunter2@example.org/x.git",
        "user:hunter2@example.org/x.git",
        "https://user:p@hunter2@example.org/x.git",
    ] {
        let error = Repository::parse(text).unwrap_err().to_string();
        assert!(!error.contains("hunter2"), "{error}");
    }
    for text in ["", "ext::sh -c touch% x", "-x", "http://example.org/x", "ftp://x/y", "relative/path"] {
        assert!(Repository::parse(text).is_err(), "{text}");
    }
    for text in
        ["https://example.org/x.git", "ssh://git@example.org/x", "git@example.org:x/y.git", "/srv/x", "file:///srv/x"]
    {
        assert!(Repository::parse(text).is_ok(), "{text}");
    }
}

#[test]
fn a_retired_name_is_never_taken_again() {
    let take = |holder: &str| ClaimCommand::Take { holder: holder.to_owned(), for_action: Action::WorkspaceCreate };
    let retire =
        |holder: &str| ClaimCommand::Retire { holder: holder.to_owned(), for_action: Action::WorkspaceArchive };
    given::<Claim>([]).and(take("a")).when(take("b")).then_refused("name_taken");
    given::<Claim>([]).and(take("a")).when(take("a")).then_nothing();
    given::<Claim>([]).and(take("a")).when(retire("b")).then_refused("name_not_held");
    given::<Claim>([]).and(take("a")).and(retire("a")).when(take("a")).then_refused("name_retired");
    given::<Claim>([]).and(take("a")).and(retire("a")).when(take("b")).then_refused("name_retired");
}
