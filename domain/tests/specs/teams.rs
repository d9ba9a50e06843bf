//! Teams: on their organization's stream, and nobody's way around what they may grant.

use envforge_domain::access::{Grant, Grantee, Role, Scope};
use envforge_domain::aggregate::Aggregate;
use envforge_domain::commit::{Actor, Component};
use envforge_domain::limits;
use envforge_domain::organization::*;
use proptest::prelude::*;

use crate::given::*;

type Command = OrganizationCommand;

const SETUP: Actor = Actor::System(Component::Setup);

fn by(number: u128) -> Actor {
    Actor::User(user(number))
}

fn create_team(number: u128, slug: &str) -> Command {
    Command::CreateTeam { team: team(number), slug: slug.parse().unwrap() }
}

fn rename(who: u128, number: u128, slug: &str) -> Command {
    Command::RenameTeam { by: by(who), team: team(number), slug: slug.parse().unwrap(), now: at(100) }
}

fn delete(who: u128, number: u128) -> Command {
    Command::DeleteTeam { by: by(who), team: team(number), now: at(100) }
}

fn add(who: u128, to: u128, whom: u128) -> Command {
    Command::AddTeamMember { by: by(who), team: team(to), user: user(whom), now: at(100) }
}

fn take_out(who: u128, of: u128, whom: u128) -> Command {
    Command::RemoveTeamMember { by: by(who), team: team(of), user: user(whom), now: at(100) }
}

fn assign(who: Actor, grantee: Grantee, role: Role, scope: Scope, expires_at: Option<u64>) -> Command {
    Command::AssignRole { by: who, grant: Grant { grantee, role, scope, expires_at: expires_at.map(at) }, now: at(1) }
}

fn give(grantee: Grantee, role: Role) -> Command {
    assign(SETUP, grantee, role, Scope::Organization, None)
}

/// Owner 1, admin 2, mod 3 and developer 4 of an organization with the teams 1 (`alpha`) and 2 (`beta`).
fn organization() -> Given<Organization> {
    let create =
        Command::Create { org: org(1), slug: "acme".parse().unwrap(), name: "Acme".to_owned(), owner: user(1) };
    let members = [(2, Role::Admin), (3, Role::Mod), (4, Role::Developer)];
    let given = members.into_iter().fold(given::<Organization>([]).and(create), |given, (number, role)| {
        given.and(Command::AddMember { user: user(number) }).and(give(Grantee::User(user(number)), role))
    });
    given.and(create_team(1, "alpha")).and(create_team(2, "beta"))
}

fn active(given: &Given<Organization>) -> &ActiveOrganization {
    match given.state() {
        Organization::Active(active) => active,
        Organization::Unknown => panic!("there is no organization"),
    }
}

#[test]
fn a_teams_slug_is_its_own_in_the_organization_and_free_again_after_it() {
    organization().when(create_team(3, "alpha")).then_refused("team_name_taken");
    organization().when(create_team(1, "alpha")).then_nothing();
    organization().when(rename(1, 2, "alpha")).then_refused("team_name_taken");
    organization().when(rename(1, 2, "beta")).then_nothing();
    organization()
        .when(rename(1, 2, "gamma"))
        .then([OrganizationEvent::TeamRenamed { team: team(2), slug: "gamma".parse().unwrap() }]);
    organization()
        .and(rename(1, 2, "gamma"))
        .and(create_team(3, "beta"))
        .and(delete(1, 1))
        .and(create_team(4, "alpha"));
}

#[test]
fn a_team_that_is_not_there_is_refused() {
    for command in [rename(1, 9, "nine"), delete(1, 9), add(1, 9, 4), take_out(1, 9, 4)] {
        organization().when(command).then_refused("team_unknown");
    }
    organization().when(give(Grantee::Team(team(9)), Role::Viewer)).then_refused("team_unknown");
    organization().and(delete(1, 1)).when(give(Grantee::Team(team(1)), Role::Viewer)).then_refused("team_unknown");
    given::<Organization>([]).when(create_team(1, "alpha")).then_refused("organization_unknown");
}

#[test]
fn members_come_and_go_and_must_be_of_the_organization() {
    organization().when(add(1, 1, 9)).then_refused("member_unknown");
    organization().when(add(1, 1, 4)).then([OrganizationEvent::TeamMemberAdded { team: team(1), user: user(4) }]);
    organization().and(add(1, 1, 4)).when(add(1, 1, 4)).then_nothing();
    organization().when(take_out(1, 1, 4)).then_nothing();
    organization()
        .and(add(1, 1, 4))
        .when(take_out(1, 1, 4))
        .then([OrganizationEvent::TeamMemberRemoved { team: team(1), user: user(4) }]);
}

#[test]
fn roles_through_a_team_count_like_ones_own() {
    let given = organization().and(give(Grantee::Team(team(1)), Role::Admin)).and(add(1, 1, 4));
    assert_eq!(active(&given).roles_of(user(4), at(100)).collect::<Vec<_>>(), [Role::Developer, Role::Admin]);
    // With them, they give what admins give.
    given.when(assign(by(4), Grantee::User(user(3)), Role::Viewer, Scope::Organization, None)).events();
    let left = organization().and(give(Grantee::Team(team(1)), Role::Admin)).and(add(1, 1, 4)).and(take_out(1, 1, 4));
    left.when(assign(by(4), Grantee::User(user(3)), Role::Viewer, Scope::Organization, None))
        .then_refused("grant_above_yourself");
}

#[test]
fn nobody_comes_to_more_than_they_may_grant_by_way_of_a_team() {
    // Owners hold team 1, admins team 2, as far as it goes.
    let teams =
        || organization().and(give(Grantee::Team(team(1)), Role::Owner)).and(give(Grantee::Team(team(2)), Role::Admin));
    for (who, command) in [
        ("an admin puts themselves among the owners", add(2, 1, 2)),
        ("a mod puts themselves among the admins", add(3, 2, 3)),
        ("a mod puts somebody else among the admins", add(3, 2, 4)),
        ("an admin takes an owner out of the owners", take_out(2, 1, 1)),
        ("an admin deletes the owners", delete(2, 1)),
        ("a mod deletes the admins", delete(3, 2)),
        ("an admin renames the owners", rename(2, 1, "interns")),
        ("a developer puts themselves into a team", add(4, 2, 4)),
        ("a stranger does", add(9, 2, 4)),
        (
            "an admin gives a team what is above them",
            assign(by(2), Grantee::Team(team(2)), Role::Owner, Scope::Organization, None),
        ),
        (
            "a mod gives a team what is above them",
            assign(by(3), Grantee::Team(team(2)), Role::Admin, Scope::Organization, None),
        ),
        (
            "a mod takes a team's role that is above them",
            Command::RevokeRole {
                by: by(3),
                grantee: Grantee::Team(team(2)),
                role: Role::Admin,
                scope: Scope::Organization,
                now: at(100),
            },
        ),
    ] {
        let decided = Organization::decide(teams().state(), &command);
        assert!(matches!(decided, Err(OrganizationRefusal::AboveYourself { .. })), "{who}: {decided:?}");
    }
    teams().when(add(1, 1, 2)).events();
    teams().when(add(2, 2, 4)).events();
}

#[test]
fn a_teams_role_for_one_project_stands_above_too_and_one_that_has_ended_does_not() {
    let scoped = |end| assign(SETUP, Grantee::Team(team(1)), Role::Admin, Scope::Project(project(1)), end);
    organization().and(scoped(None)).when(add(3, 1, 4)).then_refused("grant_above_yourself");
    organization().and(scoped(Some(100))).when(add(3, 1, 4)).events();
    let workspace = Scope::Workspace { project: project(1), workspace: workspace(1) };
    let assigned = assign(SETUP, Grantee::Team(team(1)), Role::Developer, workspace, None);
    organization().and(assigned).when(add(3, 1, 4)).then_refused("grant_above_yourself");
}

#[test]
fn nobody_takes_out_whoever_stands_above_them_through_a_team() {
    let given = organization().and(give(Grantee::Team(team(1)), Role::Owner)).and(add(1, 1, 4));
    given.when(Command::RemoveMember { by: by(2), user: user(4), now: at(100) }).then_refused("grant_above_yourself");
}

#[test]
fn an_owner_through_a_team_does_not_make_up_for_the_last_one() {
    let given = || organization().and(give(Grantee::Team(team(1)), Role::Owner)).and(add(1, 1, 2));
    let revoke = Command::RevokeRole {
        by: by(2),
        grantee: Grantee::User(user(1)),
        role: Role::Owner,
        scope: Scope::Organization,
        now: at(100),
    };
    given().when(revoke).then_refused("last_owner");
    given().when(Command::RemoveMember { by: by(2), user: user(1), now: at(100) }).then_refused("last_owner");
    given().when(Command::Retire { by: by(2), user: user(1), now: at(100) }).then_refused("last_owner");
    // The team's own role is no last one.
    given().when(delete(1, 1)).events();
}

#[test]
fn a_deleted_team_takes_its_roles_along() {
    let given = organization().and(give(Grantee::Team(team(1)), Role::Admin)).and(add(1, 1, 4)).and(delete(1, 1));
    assert_eq!(active(&given).roles_of(user(4), at(100)).collect::<Vec<_>>(), [Role::Developer]);
    assert!(active(&given).grants.keys().all(|(grantee, _, _)| *grantee != Grantee::Team(team(1))));
}

#[test]
fn whoever_is_taken_out_of_the_organization_is_out_of_its_teams() {
    let given = organization().and(add(1, 1, 4)).and(Command::RemoveMember { by: by(1), user: user(4), now: at(100) });
    assert!(active(&given).teams.values().all(|team| team.members.is_empty()));
    // And is not in them again by coming back.
    let back = given.and(Command::AddMember { user: user(4) });
    assert_eq!(active(&back).teams_of(user(4)).count(), 0);
}

#[test]
fn whoever_is_deactivated_leaves_their_teams_and_is_no_owner_any_more() {
    let retire = |who, whom| Command::Retire { by: by(who), user: user(whom), now: at(100) };
    organization().and(add(1, 1, 4)).and(add(1, 2, 4)).when(retire(2, 4)).then([
        OrganizationEvent::TeamMemberRemoved { team: team(1), user: user(4) },
        OrganizationEvent::TeamMemberRemoved { team: team(2), user: user(4) },
    ]);
    organization().when(retire(2, 4)).then_nothing();
    organization().when(retire(2, 1)).then_refused("grant_above_yourself");
    organization().and(give(Grantee::User(user(2)), Role::Owner)).when(retire(2, 1)).then([
        OrganizationEvent::RoleRevoked {
            grantee: Grantee::User(user(1)),
            role: Role::Owner,
            scope: Scope::Organization,
        },
    ]);
}

#[test]
fn there_are_limits_on_teams_and_on_who_is_in_them() {
    let full = (3..=limits::TEAMS_MAX as u128).map(|number| create_team(number, &format!("team-{number}")));
    full.fold(organization(), Given::and).when(create_team(0, "one-more")).then_refused("too_many_teams");
    let everywhere = (3..=limits::TEAMS_OF_MEMBER_MAX as u128 + 1).fold(organization(), |given, number| {
        given.and(create_team(number, &format!("team-{number}"))).and(add(1, number, 4))
    });
    everywhere.and(add(1, 1, 4)).when(add(1, 2, 4)).then_refused("member_of_too_many_teams");
    let crowd = (10..10 + limits::TEAM_MEMBERS_MAX as u128).flat_map(|number| {
        let user = user(number);
        [OrganizationEvent::MemberAdded { user }, OrganizationEvent::TeamMemberAdded { team: team(1), user }]
    });
    let state = crowd.fold(organization().state().clone(), |state, event| Organization::evolve(state, &event));
    let refused = Organization::decide(&state, &add(1, 1, 4));
    assert_eq!(refused, Err(OrganizationRefusal::TeamFull { max: limits::TEAM_MEMBERS_MAX }));
}

/// Any command about members, teams and roles, of a few people, teams and roles.
fn any_command() -> impl Strategy<Value = Command> {
    let slug = |number: u128| format!("team-{number}").parse().unwrap();
    let parts = (0..10u8, 1..5u128, 1..5u128, 1..4u128, 0..8usize, 0..3u8, prop::option::of(90..110u64));
    parts.prop_map(move |(verb, who, whom, on, role, scope, end)| {
        let (now, role) = (at(100), Role::ALL[role]);
        let grantee = if whom % 2 == 0 { Grantee::Team(team(on)) } else { Grantee::User(user(whom)) };
        let scope = match scope {
            0 => Scope::Organization,
            1 => Scope::Project(project(on)),
            _ => Scope::Workspace { project: project(1), workspace: workspace(on) },
        };
        match verb {
            0 => Command::AddMember { user: user(whom) },
            1 => Command::RemoveMember { by: by(who), user: user(whom), now },
            2 => Command::CreateTeam { team: team(on), slug: slug(whom) },
            3 => Command::RenameTeam { by: by(who), team: team(on), slug: slug(whom), now },
            4 => Command::DeleteTeam { by: by(who), team: team(on), now },
            5 | 6 => Command::AddTeamMember { by: by(who), team: team(on), user: user(whom), now },
            7 => Command::RemoveTeamMember { by: by(who), team: team(on), user: user(whom), now },
            8 => Command::Retire { by: by(who), user: user(whom), now },
            _ => {
                let grant = Grant { grantee, role, scope, expires_at: end.map(at) };
                Command::AssignRole { by: by(who), grant, now }
            }
        }
    })
}

proptest! {
    #[test]
    fn any_accepted_history_of_teams_evolves(commands in prop::collection::vec(any_command(), 1..80)) {
        let create =
            Command::Create { org: org(1), slug: "acme".parse().unwrap(), name: "Acme".to_owned(), owner: user(1) };
        histories::<Organization>(std::iter::once(create).chain(commands), |_, after| {
            let Organization::Active(active) = after else { return Ok(()) };
            for team in active.teams.values() {
                prop_assert!(team.members.is_subset(&active.members), "a stranger in a team");
                prop_assert_eq!(active.teams.values().filter(|other| other.slug == team.slug).count(), 1);
            }
            for (grantee, role, scope) in active.grants.keys() {
                match grantee {
                    Grantee::User(user) => prop_assert!(active.members.contains(user)),
                    Grantee::Team(team) => prop_assert!(active.teams.contains_key(team)),
                }
                prop_assert!(*scope == Scope::Organization || !role.only_org_wide());
            }
            let owner = |member| active.grants.get(&(Grantee::User(member), Role::Owner, Scope::Organization));
            prop_assert!(active.members.iter().any(|member| owner(*member) == Some(&None)), "nobody owns it");
            Ok(())
        })?;
    }

    /// Whatever somebody does with teams and roles, nobody holds afterwards what that person could not have given, beyond
    /// what was held before. An independent reading of "nobody grants above themselves".
    #[test]
    fn no_command_gives_anybody_more_than_its_author_could_give(
        commands in prop::collection::vec(any_command(), 1..60), last in any_command(),
    ) {
        let create =
            Command::Create { org: org(1), slug: "acme".parse().unwrap(), name: "Acme".to_owned(), owner: user(1) };
        let state = std::iter::once(create).chain(commands).fold(Organization::Unknown, |state, command| {
            let events = Organization::decide(&state, &command).unwrap_or_default();
            events.iter().fold(state, Organization::evolve)
        });
        let author = match &last {
            Command::RemoveMember { by, .. } | Command::RenameTeam { by, .. } | Command::DeleteTeam { by, .. }
            | Command::AddTeamMember { by, .. } | Command::RemoveTeamMember { by, .. } | Command::AssignRole { by, .. }
            | Command::Retire { by, .. } => *by,
            _ => return Ok(()),
        };
        let Actor::User(author) = author else { return Ok(()) };
        // Naive: every pair of a person and a role at a place, however they come to it.
        let held = |state: &Organization| -> std::collections::BTreeSet<_> {
            let Organization::Active(active) = state else { return Default::default() };
            let mut held = std::collections::BTreeSet::new();
            for ((grantee, role, scope), end) in &active.grants {
                if end.is_some_and(|end| end <= at(100)) {
                    continue;
                }
                for member in &active.members {
                    let theirs = match grantee {
                        Grantee::User(user) => user == member,
                        Grantee::Team(team) => active.teams[team].members.contains(member),
                    };
                    if theirs {
                        held.insert((*member, *role, *scope));
                    }
                }
            }
            held
        };
        let before = held(&state);
        let mut may_give = std::collections::BTreeSet::<Role>::new();
        for (member, role, scope) in &before {
            if *member == author && *scope == Scope::Organization {
                may_give.extend(role.may_grant().iter().copied());
            }
        }
        let events = Organization::decide(&state, &last).unwrap_or_default();
        let after = held(&events.iter().fold(state, Organization::evolve));
        for gained in after.difference(&before).chain(before.difference(&after)) {
            prop_assert!(may_give.contains(&gained.1), "{:?} changed {:?}", author, gained);
        }
    }
}
