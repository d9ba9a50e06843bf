//! Workspaces, branches and repositories.

use envforge_domain::claim::*;
use envforge_domain::project::Repository;
use envforge_domain::workspace::Branch;

use crate::given::*;
use envforge_domain::access::Action;

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
    let error = Repository::parse("https://user:hunter2@example.org/x.git").unwrap_err();
    assert!(!error.to_string().contains("hunter2"));
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
