//! A workspace's slug made of its branch's name: always a valid one, the same one each time.
//!
//! Not here: the rules themselves, which are the domain's (`envforge_domain::slug`).

use envforge_domain::slug::{LABEL_LENGTH_MAX, OrgSlug, ProjectSlug, SLUG_LENGTH_MAX, WorkspaceSlug};
use sha2::{Digest, Sha256};

/// Hexadecimal digits that keep apart branches whose names come to the same slug.
const MARK_LENGTH: usize = 6;
/// What a name without a single letter or digit becomes, before its mark.
const NAMELESS: &str = "branch";

/// How long a workspace's slug may be so that every host label `<service>--<workspace>--<org>` fits into DNS.
/// Never below what a marked slug needs: then the server says which slug is too long.
pub(crate) fn room(org: &OrgSlug, longest_service: usize) -> usize {
    let taken = org.as_str().len() + longest_service + 4;
    LABEL_LENGTH_MAX.saturating_sub(taken).clamp(MARK_LENGTH + 2, SLUG_LENGTH_MAX)
}

/// The slug of `branch`, at most `room` characters long: `feature/Login_page` becomes `feature-login-page`. A name that loses
/// something other than case and separators, or is too long, gets a mark of its own.
pub(crate) fn workspace_slug(branch: &str, room: usize) -> WorkspaceSlug {
    let (plain, faithful) = hyphenated(branch);
    if faithful && !plain.is_empty() && plain.len() <= room {
        return plain.parse().expect("letters, digits and single hyphens between them, within the length");
    }
    marked_slug(branch, room)
}

/// The slug of `branch` with a mark made of its exact name: for a branch whose plain slug another branch has.
pub(crate) fn marked_slug(branch: &str, room: usize) -> WorkspaceSlug {
    let (plain, _) = hyphenated(branch);
    let plain = if plain.is_empty() { NAMELESS } else { &plain };
    let room = room.clamp(MARK_LENGTH + 2, SLUG_LENGTH_MAX);
    let kept: String = plain.chars().take(room - MARK_LENGTH - 1).collect();
    let mark = &hex::encode(Sha256::digest(branch.as_bytes()))[..MARK_LENGTH];
    let slug = format!("{}-{mark}", kept.trim_end_matches('-'));
    slug.parse().expect("letters, digits and single hyphens between them, within the length")
}

/// The slug of a repository's name: `Orders.git` becomes `orders`.
pub(crate) fn project_slug(name: &str) -> ProjectSlug {
    let (plain, _) = hyphenated(name.strip_suffix(".git").unwrap_or(name));
    let kept: String = plain.chars().take(SLUG_LENGTH_MAX).collect();
    let kept = kept.trim_end_matches('-');
    let slug = if kept.is_empty() { "project" } else { kept };
    slug.parse().expect("letters, digits and single hyphens between them, within the length")
}

/// `name` in lower-case letters, digits and single hyphens, and whether every other character was a separator.
fn hyphenated(name: &str) -> (String, bool) {
    let mut slug = String::with_capacity(name.len());
    let mut faithful = true;
    for character in name.chars() {
        let lower = character.to_ascii_lowercase();
        match lower {
            'a'..='z' | '0'..='9' => slug.push(lower),
            _ => {
                faithful &= matches!(lower, '/' | '-' | '_' | '.' | '+');
                if !slug.is_empty() && !slug.ends_with('-') {
                    slug.push('-');
                }
            }
        }
    }
    slug.truncate(slug.trim_end_matches('-').len());
    (slug, faithful)
}

#[cfg(test)]
mod tests {
    use super::*;
    use envforge_domain::slug::{HostLabel, ServiceName};
    use proptest::prelude::*;

    #[test]
    fn branches_become_what_a_person_would_have_chosen() {
        for (branch, slug) in [
            ("main", "main"),
            ("feature/Login_page", "feature-login-page"),
            ("dependabot/npm_and_yarn/axios-1.7.4", "dependabot-npm-and-yarn-axios-1-7-4"),
            ("--release--1..2--", "release-1-2"),
            ("signed-links", "signed-links"),
        ] {
            assert_eq!(workspace_slug(branch, SLUG_LENGTH_MAX).as_str(), slug);
        }
    }

    #[test]
    fn names_that_lose_something_are_kept_apart_by_a_mark() {
        let (first, second) = (workspace_slug("größe", 40), workspace_slug("grüße", 40));
        assert_ne!(first, second);
        assert!(first.as_str().starts_with("gr-e-") || first.as_str().starts_with("gr-"), "{first}");
        assert!(workspace_slug("日本語", 40).as_str().starts_with("branch-"));
        let long = workspace_slug(&"a-very-long-branch-name/".repeat(4), 40);
        assert_eq!(long.as_str().len(), 40, "{long}");
        assert_ne!(marked_slug("feature/x", 40), marked_slug("feature-x", 40));
    }

    #[test]
    fn repositories_become_project_slugs() {
        for (name, slug) in [("Orders.git", "orders"), ("my.app", "my-app"), ("日本", "project"), ("", "project")] {
            assert_eq!(project_slug(name).as_str(), slug);
        }
    }

    proptest! {
        #[test]
        fn any_branch_gives_a_valid_slug_within_its_room(branch in any::<String>(), room in 0_usize..80) {
            for slug in [workspace_slug(&branch, room.clamp(8, 40)), marked_slug(&branch, room)] {
                prop_assert!(slug.as_str().parse::<WorkspaceSlug>().is_ok());
                prop_assert!(slug.as_str().len() <= room.clamp(MARK_LENGTH + 2, SLUG_LENGTH_MAX));
            }
            prop_assert!(project_slug(&branch).as_str().parse::<ProjectSlug>().is_ok());
        }

        #[test]
        fn branch_names_of_git_give_valid_slugs(branch in "[A-Za-z0-9._/@#-]{1,80}") {
            prop_assert_eq!(workspace_slug(&branch, 40), workspace_slug(&branch, 40));
        }

        #[test]
        fn the_slug_leaves_room_for_the_host_label(
            branch in "[a-z0-9/-]{1,80}", org in "[a-z]{1,24}", service in "[a-z]{3,20}",
        ) {
            prop_assume!(org.parse::<OrgSlug>().is_ok());
            let (org, service): (OrgSlug, ServiceName) = (org.parse().unwrap(), service.parse().unwrap());
            let slug = workspace_slug(&branch, room(&org, service.as_str().len()));
            prop_assert!(HostLabel::new(service, slug, org).is_ok());
        }
    }
}
