//! Organizations.

use envforge_domain::access::{Grant, Grantee, Role, Roles, Scope};
use envforge_domain::aggregate::Aggregate;
use envforge_domain::commit::{Actor, Component};
use envforge_domain::organization::*;
use envforge_domain::root_window::RootPolicy;
use envforge_domain::time::Millis;
use proptest::prelude::*;

use crate::given::*;

fn create() -> OrganizationCommand {
    OrganizationCommand::Create { org: org(1), slug: "acme".parse().unwrap(), name: "Acme".to_owned(), owner: user(1) }
}

fn grant(to: u128, role: Role) -> Grant {
    Grant { grantee: Grantee::User(user(to)), role, scope: Scope::Organization, expires_at: None }
}

fn assign(by: u128, grant: Grant) -> OrganizationCommand {
    OrganizationCommand::AssignRole { by: Actor::User(user(by)), grant, now: at(100) }
}

fn revoke(by: u128, from: u128, role: Role) -> OrganizationCommand {
    OrganizationCommand::RevokeRole {
        by: Actor::User(user(by)),
        grantee: Grantee::User(user(from)),
        role,
        scope: Scope::Organization,
        now: at(100),
    }
}

fn remove(by: u128, on: u128) -> OrganizationCommand {
    OrganizationCommand::RemoveMember { by: Actor::User(user(by)), user: user(on), now: at(100) }
}

fn change_policy(policy: OrganizationPolicy) -> OrganizationCommand {
    OrganizationCommand::ChangePolicy { by: Actor::System(Component::Setup), policy, provider: None, now: at(0) }
}

fn with_members(members: &[(u128, Role)]) -> Given<Organization> {
    members.iter().fold(given::<Organization>([]).and(create()), |given, (number, role)| {
        given.and(OrganizationCommand::AddMember { user: user(*number) }).and(OrganizationCommand::AssignRole {
            by: Actor::System(Component::Setup),
            grant: grant(*number, *role),
            now: at(1),
        })
    })
}

#[test]
fn an_organization_begins_with_an_owner() {
    let organization = given::<Organization>([]).and(create());
    let Organization::Active(active) = organization.state() else { panic!() };
    assert_eq!(active.roles_of(user(1), at(1)).collect::<Vec<_>>(), [Role::Owner]);
}

#[test]
fn the_last_owner_stays() {
    given::<Organization>([]).and(create()).when(revoke(1, 1, Role::Owner)).then_refused("last_owner");
    given::<Organization>([]).and(create()).when(remove(1, 1)).then_refused("last_owner");
    let ending = Grant { expires_at: Some(at(5_000)), ..grant(1, Role::Owner) };
    given::<Organization>([]).and(create()).when(assign(1, ending)).then_refused("last_owner");
    with_members(&[(2, Role::Owner)]).when(revoke(1, 1, Role::Owner)).events();
}

#[test]
fn nobody_grants_above_themselves() {
    let members = || with_members(&[(2, Role::Admin), (3, Role::Mod), (4, Role::Developer)]);
    for (by, role) in
        [(2, Role::Owner), (2, Role::Billing), (3, Role::Admin), (3, Role::Owner), (4, Role::Viewer), (9, Role::Viewer)]
    {
        members().when(assign(by, grant(4, role))).then_refused("grant_above_yourself");
    }
    for (by, role) in [(1, Role::Billing), (2, Role::Admin), (3, Role::Create)] {
        members().when(assign(by, grant(4, role))).events();
    }
    members().when(revoke(3, 2, Role::Admin)).then_refused("grant_above_yourself");
}

#[test]
fn nobody_takes_out_whoever_stands_above_them() {
    let members = || {
        with_members(&[
            (2, Role::Admin),
            (3, Role::Mod),
            (4, Role::Developer),
            (5, Role::Billing),
            (6, Role::Owner),
            (7, Role::Admin),
        ])
    };
    for (by, on) in [(2, 1), (2, 5), (2, 6), (3, 1), (3, 2), (3, 4), (3, 5), (4, 3), (5, 4), (9, 4)] {
        members().when(remove(by, on)).then_refused("grant_above_yourself");
    }
    for (by, on) in [(1, 6), (6, 1), (1, 5), (2, 3), (2, 4), (2, 7), (3, 3)] {
        members().when(remove(by, on)).then([OrganizationEvent::MemberRemoved { user: user(on) }]);
    }
    let by_system =
        OrganizationCommand::RemoveMember { by: Actor::System(Component::Setup), user: user(2), now: at(100) };
    members().when(by_system).events();
}

#[test]
fn a_role_of_one_project_stands_above_too_and_one_that_has_ended_does_not() {
    let of_project = |expires_at| OrganizationCommand::AssignRole {
        by: Actor::System(Component::Setup),
        grant: Grant { scope: Scope::Project(project(1)), expires_at, ..grant(3, Role::Admin) },
        now: at(1),
    };
    let members = || with_members(&[(2, Role::Mod), (3, Role::Explore)]);
    members().and(of_project(None)).when(remove(2, 3)).then_refused("grant_above_yourself");
    members().and(of_project(Some(at(100)))).when(remove(2, 3)).events();
}

#[test]
fn a_role_that_has_ended_gives_no_right_to_grant() {
    let admin = Grant { expires_at: Some(at(50)), ..grant(2, Role::Admin) };
    let ended = given::<Organization>([])
        .and(create())
        .and(OrganizationCommand::AddMember { user: user(2) })
        .and(OrganizationCommand::AssignRole { by: Actor::System(Component::Setup), grant: admin, now: at(1) });
    ended.when(assign(2, grant(1, Role::Viewer))).then_refused("grant_above_yourself");
}

#[test]
fn owner_and_billing_count_for_the_whole_organization_only() {
    let scoped = Grant { scope: Scope::Project(project(1)), ..grant(1, Role::Billing) };
    given::<Organization>([]).and(create()).when(assign(1, scoped)).then_refused("role_org_wide_only");
}

#[test]
fn removing_a_member_takes_their_roles() {
    let organization = with_members(&[(2, Role::Admin)]).and(remove(1, 2));
    let Organization::Active(active) = organization.state() else { panic!() };
    assert_eq!(active.roles_of(user(2), at(1)).count(), 0);
}

#[test]
fn a_policy_stays_within_the_limits_of_the_product() {
    let policy = OrganizationPolicy { keep_awake_max: Millis::from_hours(1_000), ..OrganizationPolicy::default() };
    given::<Organization>([]).and(create()).when(change_policy(policy)).then_refused("policy_out_of_range");
    let hours = |hours| OrganizationPolicy { session_lifetime_max: Millis::from_hours(hours), ..Default::default() };
    for policy in [hours(0), hours(24 * 31)] {
        given::<Organization>([]).and(create()).when(change_policy(policy)).then_refused("policy_out_of_range");
    }
    let policy = hours(8);
    given::<Organization>([])
        .and(create())
        .when(change_policy(policy.clone()))
        .then([OrganizationEvent::PolicyChanged { policy }]);
}

#[test]
fn only_roles_that_could_give_links_can_be_let_to() {
    let issuers =
        |roles: &[Role]| change_policy(OrganizationPolicy { link_issuers: Roles::of(roles), ..Default::default() });
    let organization = || given::<Organization>([]).and(create());
    organization().when(issuers(&[Role::Owner, Role::Viewer])).then_refused("policy_link_issuers_invalid");
    organization().when(issuers(&[Role::Billing])).then_refused("policy_link_issuers_invalid");
    for allowed in [&[][..], &[Role::Owner], &[Role::Owner, Role::Admin, Role::Developer]] {
        assert_eq!(organization().when(issuers(allowed)).events().len(), 1);
    }
}

#[test]
fn only_owners_open_ways_to_root_and_everybody_else_closes_them() {
    let root = |by: u128, root: RootPolicy, minutes: u64| OrganizationCommand::ChangePolicy {
        by: Actor::User(user(by)),
        policy: OrganizationPolicy { root, root_window_max: Millis::from_minutes(minutes), ..Default::default() },
        provider: None,
        now: at(100),
    };
    let closed = || with_members(&[(2, Role::Admin), (3, Role::Mod)]);
    for by in [2, 3] {
        closed().when(root(by, RootPolicy::BreakGlass, 30)).then_refused("policy_root_owners_only");
    }
    let open = || closed().and(root(1, RootPolicy::BreakGlass, 30));
    open().when(root(2, RootPolicy::WorkspaceElevation, 30)).then_refused("policy_root_owners_only");
    open().when(root(2, RootPolicy::BreakGlass, 31)).then_refused("policy_root_owners_only");
    assert_eq!(open().when(root(2, RootPolicy::BreakGlass, 10)).events().len(), 1);
    assert_eq!(open().when(root(3, RootPolicy::Disabled, 30)).events().len(), 1);
    open().when(root(1, RootPolicy::BreakGlass, 8 * 60 + 1)).then_refused("policy_out_of_range");
}

#[test]
fn identity_providers_are_named_by_their_issuers_and_nobody_locks_themselves_out() {
    let providers = |providers: &[&str], own: Option<&str>| OrganizationCommand::ChangePolicy {
        by: Actor::System(Component::Setup),
        now: at(0),
        policy: OrganizationPolicy {
            identity_providers: providers.iter().map(|provider| (*provider).to_owned()).collect(),
            ..Default::default()
        },
        provider: own.map(str::to_owned),
    };
    let organization = || given::<Organization>([]).and(create());
    for wrong in ["", "acme", "https://", "ftp://acme.test", "https://acme.test/a b"] {
        organization().when(providers(&[wrong], None)).then_refused("policy_identity_providers_invalid");
    }
    let many: Vec<_> = (0..9).map(|number| format!("https://{number}.test")).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    organization().when(providers(&many, None)).then_refused("policy_identity_providers_invalid");
    let auth0 = "https://acme.eu.auth0.com/";
    organization().when(providers(&[auth0], Some(LOCAL_PROVIDER))).then_refused("policy_locks_you_out");
    organization().when(providers(&[auth0, LOCAL_PROVIDER], Some(LOCAL_PROVIDER))).events();
    organization().when(providers(&[auth0], Some(auth0))).events();
    // Nobody named means everybody, as in the beginning.
    organization().when(providers(&[], Some(LOCAL_PROVIDER))).then_nothing();
}

proptest! {
    /// Whoever takes somebody out could have taken every role of theirs one by one.
    #[test]
    fn taking_out_reaches_no_further_than_taking_roles(
        grants in prop::collection::vec((1..6u128, 0..8usize), 0..20), by in 1..6u128, on in 1..6u128,
    ) {
        let given = grants.iter().fold(given::<Organization>([]).and(create()), |given, (to, role)| {
            given.and(OrganizationCommand::AddMember { user: user(*to) }).and(OrganizationCommand::AssignRole {
                by: Actor::System(Component::Setup),
                grant: grant(*to, Role::ALL[*role]),
                now: at(1),
            })
        });
        let state = given.state();
        let Organization::Active(active) = state else { panic!() };
        let taken = Organization::decide(state, &remove(by, on)).is_ok_and(|events| !events.is_empty());
        if taken {
            for role in active.roles_of(user(on), at(100)) {
                let one_by_one = Organization::decide(state, &revoke(by, on, role));
                prop_assert!(one_by_one.is_ok(), "{role} could not be taken");
            }
        }
    }

    /// However members and roles change, an owner without an end remains.
    #[test]
    fn there_is_always_an_owner(steps in prop::collection::vec((0..4u8, 1..4u128, 1..4u128, 0..8usize), 1..60)) {
        let changes = steps.into_iter().map(|(verb, by, on, role)| {
            let role = Role::ALL[role];
            match verb {
                0 => OrganizationCommand::AddMember { user: user(on) },
                1 => remove(by, on),
                2 => assign(by, grant(on, role)),
                _ => revoke(by, on, role),
            }
        });
        histories::<Organization>(std::iter::once(create()).chain(changes), |_, after| {
            let Organization::Active(active) = after else { panic!() };
            let endless = |member| active.roles_of(member, at(u64::MAX)).any(|role| role == Role::Owner);
            prop_assert!(active.members.iter().any(|member| endless(*member)));
            Ok(())
        })?;
    }

    #[test]
    fn any_accepted_history_evolves(
        steps in prop::collection::vec((0..6u8, 1..4u128, 1..4u128, 0..8usize, prop::option::of(90..110u64), any::<bool>()), 1..60),
    ) {
        let commands = steps.into_iter().map(|(verb, by, on, role, end, on_project)| {
            let role = Role::ALL[role];
            let scope = if on_project { Scope::Project(project(1)) } else { Scope::Organization };
            match verb {
                0 => create(),
                1 => OrganizationCommand::AddMember { user: user(on) },
                2 => remove(by, on),
                3 => assign(by, Grant { scope, expires_at: end.map(at), ..grant(on, role) }),
                4 => revoke(by, on, role),
                _ => change_policy(OrganizationPolicy {
                    keep_awake_max: Millis::from_hours(on as u64 * 5),
                    ..Default::default()
                }),
            }
        });
        histories::<Organization>(commands, |_, after| {
            let Organization::Active(active) = after else { return Ok(()) };
            for (grantee, role, scope) in active.grants.keys() {
                if let Grantee::User(user) = grantee {
                    prop_assert!(active.members.contains(user), "{:?} of somebody who is no member", role);
                }
                prop_assert!(*scope == Scope::Organization || !role.only_org_wide());
            }
            Ok(())
        })?;
    }
}
