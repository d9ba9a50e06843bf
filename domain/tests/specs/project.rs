//! Projects and where their code is.

use envforge_domain::limits::NAME_CHARS_MAX;
use envforge_domain::project::*;
use proptest::prelude::*;

use crate::given::*;

fn at_home(path: &str) -> Repository {
    Repository::parse(&format!("https://git.example/{path}.git")).unwrap()
}

fn create(name: &str) -> ProjectCommand {
    ProjectCommand::Create {
        project: project(1),
        slug: "orders".parse().unwrap(),
        name: name.to_owned(),
        repository: at_home("orders"),
    }
}

fn created() -> ProjectEvent {
    ProjectEvent::Created {
        project: project(1),
        slug: "orders".parse().unwrap(),
        name: "Orders".to_owned(),
        repository: at_home("orders"),
    }
}

fn edit(name: &str, repository: &str) -> ProjectCommand {
    ProjectCommand::Edit { name: name.to_owned(), repository: at_home(repository), git: GitChange::Keep }
}

#[test]
fn a_project_begins_as_it_was_asked_for_and_only_once() {
    given::<Project>([]).when(create("Orders")).then([created()]);
    given::<Project>([created()]).when(create("Orders")).then_refused("project_exists");
}

#[test]
fn an_edit_that_changes_nothing_is_no_event_and_one_of_nothing_is_refused() {
    given::<Project>([created()]).when(edit("Orders", "orders")).then_nothing();
    for (name, repository) in [("Board", "orders"), ("Orders", "board"), ("Board", "board")] {
        given::<Project>([created()])
            .when(edit(name, repository))
            .then([ProjectEvent::Edited { name: name.to_owned(), repository: at_home(repository) }]);
    }
    given::<Project>([]).when(edit("Board", "board")).then_refused("project_unknown");
}

fn credential(username: &str) -> GitCredential {
    GitCredential { secret: "GIT_TOKEN".parse().unwrap(), username: username.to_owned(), in_shells: false }
}

fn edit_git(repository: Repository, git: GitChange) -> ProjectCommand {
    ProjectCommand::Edit { name: "Orders".to_owned(), repository, git }
}

#[test]
fn git_is_given_a_secret_for_the_repository_that_there_was_over_https_alone() {
    let set = || edit_git(at_home("orders"), GitChange::Set(credential("x-access-token")));
    let was_set = || ProjectEvent::GitCredentialChanged { credential: Some(credential("x-access-token")) };
    let gone = || ProjectEvent::GitCredentialChanged { credential: None };
    given::<Project>([created()]).when(set()).then([was_set()]);
    given::<Project>([created(), was_set()]).when(set()).then_nothing();
    given::<Project>([created(), was_set()]).when(edit("Orders", "orders")).then_nothing();
    given::<Project>([created(), was_set()]).when(edit_git(at_home("orders"), GitChange::Remove)).then([gone()]);
    given::<Project>([created()]).when(edit_git(at_home("orders"), GitChange::Remove)).then_nothing();
    let edited =
        |repository: &Repository| ProjectEvent::Edited { name: "Orders".to_owned(), repository: repository.clone() };
    // Nobody decided to show it to another server.
    let board = at_home("board");
    given::<Project>([created(), was_set()]).when(edit("Orders", "board")).then([edited(&board), gone()]);
    let with_it = edit_git(board.clone(), GitChange::Set(credential("x-access-token")));
    given::<Project>([created(), was_set()]).when(with_it).then([edited(&board)]);
    for elsewhere in ["git@git.example:orders.git", "ssh://git.example/orders", "/srv/orders"] {
        let elsewhere = Repository::parse(elsewhere).unwrap();
        let command = edit_git(elsewhere, GitChange::Set(credential("x-access-token")));
        given::<Project>([created()]).when(command).then_refused("git_credential_invalid");
    }
    for username in ["", "a:b", "a b", "a\nb", "é", &"x".repeat(101)] {
        let command = edit_git(at_home("orders"), GitChange::Set(credential(username)));
        given::<Project>([created()]).when(command).then_refused("git_credential_invalid");
    }
}

#[test]
fn an_edit_keeps_the_projects_slug() {
    let edited = given::<Project>([created()]).and(edit("Board", "board"));
    assert!(matches!(
        edited.state(),
        Project::Active { slug, name, .. } if slug.as_str() == "orders" && name == "Board"
    ));
}

#[test]
fn a_name_has_letters_on_one_line_and_at_most_120_of_them() {
    let (longest, too_long) = ("é".repeat(NAME_CHARS_MAX), "é".repeat(NAME_CHARS_MAX + 1));
    given::<Project>([]).when(create(&longest)).events();
    given::<Project>([created()]).when(edit(&longest, "orders")).events();
    for name in ["", " ", "\t", "a\nb", "a\u{7f}", &too_long] {
        given::<Project>([]).when(create(name)).then_refused("name_invalid");
        given::<Project>([created()]).when(edit(name, "orders")).then_refused("name_invalid");
    }
}

proptest! {
    /// Whatever was accepted evolves, and a project keeps its id and slug.
    #[test]
    fn any_accepted_history_evolves(steps in prop::collection::vec((any::<bool>(), 0..4usize, 0..3usize), 1..30)) {
        let commands = steps.into_iter().map(|(begins, name, repository)| {
            let (name, repository) = (["Orders", "Board", "", "Till"][name], ["orders", "board", "till"][repository]);
            if begins { create(name) } else { edit(name, repository) }
        });
        histories::<Project>(commands, |_, after| {
            if let Project::Active { project: id, slug, name, .. } = after {
                prop_assert_eq!((*id, slug.as_str()), (project(1), "orders"));
                prop_assert!(name_is_valid(name));
            }
            Ok(())
        })?;
    }
}

#[test]
fn a_repository_holds_no_password_and_no_token() {
    for text in [
        "https://git.test/acme/orders",
        "https://git.test/acme/orders@v2",
        "ssh://git@git.test:22/acme/orders",
        "ssh://git.test/acme/orders",
        "git@git.test:acme/orders.git",
        "/srv/orders",
        "file:///srv/orders",
    ] {
        assert_eq!(Repository::parse(text).unwrap().as_str(), text);
    }
    for text in [
        "https://user:hunter2@git.test/p",
        "https://hunter2@git.test/p",
        "https://hunter2@git.test",
        "ssh://git:hunter2@git.test/p",
        "ssh://git:hunter2@git.test",
        "ssh://a:hunter2@b@git.test/p",
        "ssh://git:hunter2@git.test?p",
    ] {
        let error = Repository::parse(text).unwrap_err().to_string();
        assert!(!error.contains("hunter2"), "{error}");
    }
    for text in ["http://git.test/p", "git.test/p", "ssh://git.test/with blank", ""] {
        assert!(Repository::parse(text).is_err(), "{text}");
    }
}

#[test]
fn a_path_of_the_machine_is_told_apart() {
    for text in ["/srv/orders", "file:///srv/orders"] {
        assert!(Repository::parse(text).unwrap().is_local(), "{text}");
    }
    for text in ["https://git.test/p", "ssh://git@git.test/srv", "git@git.test:/srv/orders"] {
        assert!(!Repository::parse(text).unwrap().is_local(), "{text}");
    }
}
