//! Service tokens: nobody's way to more than they may, bounded in number, time and place.

use std::collections::BTreeSet;

use envforge_domain::access::{Action, Scope};
use envforge_domain::aggregate::{Aggregate as _, Refusal as _};
use envforge_domain::limits;
use envforge_domain::organization::OrganizationPolicy;
use envforge_domain::service_token::*;
use envforge_domain::time::{Millis, UnixMillis};
use proptest::prelude::*;

use crate::given::*;

const DAY: Millis = Millis::from_hours(24);
const LONGEST: Millis = Millis::from_hours(24 * 90);

fn create(number: u128, slug: &str) -> ServiceTokenCommand {
    ServiceTokenCommand::Create {
        token: token(number),
        slug: slug.parse().unwrap(),
        actions: [Action::RuntimeWake, Action::WorkspaceRead].into(),
        place: Scope::Organization,
        created_by: user(1),
        lifetime: DAY,
        lifetime_max: LONGEST,
        beyond: None,
        now: at(1_000),
    }
}

fn created(number: u128, slug: &str) -> ServiceTokenEvent {
    ServiceTokenEvent::Created {
        token: token(number),
        slug: slug.parse().unwrap(),
        actions: [Action::RuntimeWake, Action::WorkspaceRead].into(),
        place: Scope::Organization,
        created_by: user(1),
        issued_at: at(1_000),
        expires_at: at(1_000).plus(DAY),
    }
}

fn rotate(number: u128, overlap: Millis, now: UnixMillis) -> ServiceTokenCommand {
    ServiceTokenCommand::Rotate {
        token: token(number),
        lifetime: None,
        lifetime_max: LONGEST,
        overlap,
        beyond: None,
        now,
    }
}

/// What of `create` the tests change.
struct New {
    actions: BTreeSet<Action>,
    place: Scope,
    lifetime: Millis,
    lifetime_max: Millis,
    beyond: Option<Action>,
}

fn changed(change: impl FnOnce(&mut New)) -> ServiceTokenCommand {
    let mut new = New {
        actions: [Action::RuntimeWake, Action::WorkspaceRead].into(),
        place: Scope::Organization,
        lifetime: DAY,
        lifetime_max: LONGEST,
        beyond: None,
    };
    change(&mut new);
    let New { actions, place, lifetime, lifetime_max, beyond } = new;
    let (token, slug) = (token(1), "ci".parse().unwrap());
    let (created_by, now) = (user(1), at(1_000));
    ServiceTokenCommand::Create { token, slug, actions, place, created_by, lifetime, lifetime_max, beyond, now }
}

fn refused(command: ServiceTokenCommand, refusal: &ServiceTokenRefusal) {
    assert_eq!(ServiceTokens::decide(&ServiceTokens::default(), &command), Err(refusal.clone()));
}

#[test]
fn a_token_is_made_for_some_actions_in_a_place_until_a_time() {
    given::<ServiceTokens>([]).when(create(1, "ci")).then([created(1, "ci")]);
    given::<ServiceTokens>([created(1, "ci")])
        .when(create(1, "other"))
        .then_refused(ServiceTokenRefusal::Exists.code());
    let taken = ServiceTokenRefusal::NameTaken { slug: "ci".parse().unwrap() };
    given::<ServiceTokens>([created(1, "ci")]).when(create(2, "ci")).then_refused(taken.code());
    // A name is free again once its token is over.
    let revoked = ServiceTokenEvent::Revoked { token: token(1) };
    given::<ServiceTokens>([created(1, "ci"), revoked]).when(create(2, "ci")).then([created(2, "ci")]);
}

#[test]
fn nobody_makes_or_rotates_a_token_that_may_more_than_they() {
    let above = ServiceTokenRefusal::AboveYourself { action: Action::RuntimeWake };
    let beyond = changed(|new| new.beyond = Some(Action::RuntimeWake));
    given::<ServiceTokens>([]).when(beyond).then_refused(above.code());
    let mut command = rotate(1, DAY, at(2_000));
    if let ServiceTokenCommand::Rotate { beyond, .. } = &mut command {
        *beyond = Some(Action::RuntimeWake);
    }
    given::<ServiceTokens>([created(1, "ci")]).when(command).then_refused(above.code());
}

#[test]
fn a_token_is_for_what_services_do_and_for_what_its_place_holds() {
    refused(changed(|new| new.actions.clear()), &ServiceTokenRefusal::NoActions);
    let action = Action::RoleAssign;
    refused(changed(|new| new.actions = [action].into()), &ServiceTokenRefusal::NotForServices { action });
    for (place, action) in [
        (Scope::Project(project(1)), Action::UsageRead),
        (Scope::Workspace { project: project(1), workspace: workspace(1) }, Action::ProjectRead),
    ] {
        let command = changed(|new| (new.actions, new.place) = ([action].into(), place));
        refused(command, &ServiceTokenRefusal::OutOfPlace { action });
    }
}

#[test]
fn lifetimes_keep_to_the_product_and_to_the_policy_which_may_allow_none() {
    let refused = |lifetime, max, refusal: ServiceTokenRefusal| {
        refused(changed(|new| (new.lifetime, new.lifetime_max) = (lifetime, max)), &refusal);
    };
    let range = |max| ServiceTokenRefusal::Lifetime { min: limits::SERVICE_TOKEN_LIFETIME_MIN, max };
    refused(Millis::from_secs(1), LONGEST, range(LONGEST));
    refused(Millis::new(LONGEST.get() + 1), LONGEST, range(LONGEST));
    let year = limits::SERVICE_TOKEN_LIFETIME_MAX;
    refused(Millis::new(year.get() + 1), Millis::new(u64::MAX), range(year));
    refused(DAY, Millis::ZERO, ServiceTokenRefusal::NotAllowed);
}

#[test]
fn an_organization_has_so_many_tokens_that_are_not_over() {
    let max = limits::SERVICE_TOKENS_MAX;
    let all: Vec<_> = (1..=max as u128).map(|number| created(number, &format!("token-{number}"))).collect();
    let full = ServiceTokenRefusal::TooMany { max };
    given::<ServiceTokens>(all.clone()).when(create(1_000, "one-more")).then_refused(full.code());
    let one_less = all.into_iter().chain([ServiceTokenEvent::Revoked { token: token(7) }]);
    given::<ServiceTokens>(one_less).when(create(1_000, "one-more")).then([created(1_000, "one-more")]);
}

#[test]
fn a_rotated_token_has_two_secrets_for_a_while_and_neither_lives_longer_than_it_was_made_for() {
    let now = at(1_000).plus(Millis::from_hours(23));
    let rotated = ServiceTokenEvent::Rotated {
        token: token(1),
        generation: 2,
        issued_at: now,
        expires_at: now.plus(DAY),
        former_until: at(1_000).plus(DAY),
    };
    given::<ServiceTokens>([created(1, "ci")]).when(rotate(1, DAY, now)).then([rotated.clone()]);
    let history = given::<ServiceTokens>([created(1, "ci"), rotated]);
    let known = &history.state().tokens[&token(1)];
    let admitted = |now| [1, 2, 3].map(|generation| known.admits(generation, now));
    assert_eq!(admitted(now), [true, true, false]);
    assert_eq!(admitted(at(1_000).plus(DAY)), [false, true, false]);
    // Rotated once more, the first one is over whatever was promised.
    let twice = history.and(rotate(1, Millis::ZERO, now));
    let known = &twice.state().tokens[&token(1)];
    assert_eq!([1, 2, 3].map(|generation| known.admits(generation, now)), [false, false, true]);
}

#[test]
fn what_is_over_is_neither_rotated_nor_revoked_twice() {
    let revoked = ServiceTokenEvent::Revoked { token: token(1) };
    let history = || given::<ServiceTokens>([created(1, "ci"), revoked.clone()]);
    history().when(rotate(1, DAY, at(2_000))).then_refused(ServiceTokenRefusal::Over.code());
    history().when(ServiceTokenCommand::Revoke { token: token(1) }).then_nothing();
    given::<ServiceTokens>([created(1, "ci")])
        .when(rotate(1, DAY, at(1_000).plus(DAY)))
        .then_refused(ServiceTokenRefusal::Over.code());
    let unknown = ServiceTokenCommand::Revoke { token: token(9) };
    given::<ServiceTokens>([created(1, "ci")]).when(unknown).then_refused(ServiceTokenRefusal::Unknown.code());
    let longer = Millis::new(limits::SERVICE_TOKEN_OVERLAP_MAX.get() + 1);
    let too_long = ServiceTokenRefusal::Overlap { max: limits::SERVICE_TOKEN_OVERLAP_MAX };
    given::<ServiceTokens>([created(1, "ci")]).when(rotate(1, longer, at(2_000))).then_refused(too_long.code());
}

#[test]
fn a_tightened_policy_ends_tokens_and_a_loosened_one_gives_them_back() {
    let history = given::<ServiceTokens>([created(1, "ci")]);
    let known = &history.state().tokens[&token(1)];
    let policy =
        |hours| OrganizationPolicy { service_token_lifetime_max: Millis::from_hours(hours), ..Default::default() };
    let now = at(1_000).plus(Millis::from_hours(2));
    assert_eq!(known.over(&policy(3), now), None);
    assert_eq!(known.over(&policy(2), now), Some(ServiceTokenOver::Policy));
    assert_eq!(known.over(&policy(0), at(1_000)), Some(ServiceTokenOver::Policy));
    assert_eq!(known.over(&policy(48), at(1_000).plus(DAY)), Some(ServiceTokenOver::Expired));
}

fn command() -> impl Strategy<Value = ServiceTokenCommand> {
    let number = || 1..6_u128;
    let instant = || (0..200_000_000_u64).prop_map(at);
    prop_oneof![
        (number(), number(), instant(), any::<bool>()).prop_map(|(id, slug, when, beyond)| {
            let mut command = create(id, &format!("token-{slug}"));
            if let ServiceTokenCommand::Create { now, beyond: above, .. } = &mut command {
                *now = when;
                *above = beyond.then_some(Action::RuntimeWake);
            }
            command
        }),
        (number(), instant(), 0..200_u64).prop_map(|(id, now, hours)| rotate(id, Millis::from_hours(hours), now)),
        number().prop_map(|id| ServiceTokenCommand::Revoke { token: token(id) }),
    ]
}

proptest! {
    #[test]
    fn any_accepted_history_evolves(commands in prop::collection::vec(command(), 0..40)) {
        histories::<ServiceTokens>(commands, |before, after| {
            for (id, token) in &before.tokens {
                let since = after.tokens.get(id);
                prop_assert!(since.is_some_and(|since| since.generation >= token.generation), "a token is forgotten early");
                prop_assert!(since.is_some_and(|since| since.revoked || !token.revoked), "what was revoked stays so");
            }
            Ok(())
        })?;
    }
}
