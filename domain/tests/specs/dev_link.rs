//! Signed dev links.

use envforge_domain::dev_link::*;
use envforge_domain::limits::HANDOFF_LIFETIME;
use envforge_domain::runtime::Epoch;
use envforge_domain::secret::TokenDigest;
use envforge_domain::time::Millis;
use proptest::prelude::*;

use crate::given::*;

const NOW: u64 = 1_000_000;
const END: u64 = NOW + 7_200_000;

fn limits() -> LinkLimits {
    LinkLimits {
        lifetime_max: Millis::from_hours(24),
        families_allowed: RouteFamilies::ALL,
        families_declared: [RouteFamily::Web, RouteFamily::Api, RouteFamily::Websockets].into_iter().collect(),
    }
}

fn families(list: &[RouteFamily]) -> RouteFamilies {
    list.iter().copied().collect()
}

fn issue() -> DevLinkCommand {
    DevLinkCommand::Issue {
        link: link(1),
        project: project(1),
        workspace: workspace(1),
        service: service("web"),
        families: families(&[RouteFamily::Web, RouteFamily::Api]),
        lifetime: Millis::from_hours(2),
        label: "for Dana".to_owned(),
        wake_budget: Some(2),
        issued_by: user(1),
        limits: limits(),
        now: at(NOW),
    }
}

fn issued() -> DevLinkEvent {
    DevLinkEvent::Issued {
        link: link(1),
        project: project(1),
        workspace: workspace(1),
        service: service("web"),
        families: families(&[RouteFamily::Web, RouteFamily::Api]),
        issued_at: at(NOW),
        expires_at: at(END),
        label: "for Dana".to_owned(),
        wake_budget: Some(2),
        issued_by: user(1),
    }
}

fn open(number: u128, generation: u32, now: u64) -> DevLinkCommand {
    DevLinkCommand::OpenSession {
        handoff: handoff(number),
        handoff_expires_at: at(now + 20_000),
        session: session(number),
        cookie: TokenDigest::of(&number.to_be_bytes()),
        generation: Generation(generation),
        now: at(now),
    }
}

fn revoked() -> DevLinkEvent {
    DevLinkEvent::Revoked { reason: None }
}

#[test]
fn a_link_is_issued_with_what_was_granted() {
    given::<DevLink>([]).when(issue()).then([issued()]);
}

#[test]
fn a_link_may_not_open_what_the_manifest_does_not_declare() {
    let DevLinkCommand::Issue {
        link,
        project,
        workspace,
        service,
        lifetime,
        label,
        wake_budget,
        issued_by,
        limits,
        now,
        ..
    } = issue()
    else {
        unreachable!()
    };
    let families = RouteFamilies::ALL;
    given::<DevLink>([])
        .when(DevLinkCommand::Issue {
            families,
            link,
            project,
            workspace,
            service,
            lifetime,
            label,
            wake_budget,
            issued_by,
            limits,
            now,
        })
        .then_refused("link_families_not_declared");
}

#[test]
fn a_link_may_not_outlive_the_organizations_maximum() {
    for lifetime in [Millis::ZERO, Millis::from_secs(59), Millis::from_hours(25)] {
        let DevLinkCommand::Issue {
            link,
            project,
            workspace,
            service,
            families,
            label,
            wake_budget,
            issued_by,
            limits,
            now,
            ..
        } = issue()
        else {
            unreachable!()
        };
        given::<DevLink>([])
            .when(DevLinkCommand::Issue {
                lifetime,
                families,
                link,
                project,
                workspace,
                service,
                label,
                wake_budget,
                issued_by,
                limits,
                now,
            })
            .then_refused("link_lifetime_out_of_range");
    }
}

#[test]
fn the_first_session_is_the_first_use() {
    let opened = given::<DevLink>([issued()]).when(open(1, 1, NOW)).events();
    assert_eq!(opened[0], DevLinkEvent::FirstUsed { at: at(NOW) });
    assert!(matches!(&opened[1], DevLinkEvent::SessionOpened { expires_at, .. } if *expires_at == at(END)));
    let second = given::<DevLink>([issued()]).and(open(1, 1, NOW)).when(open(2, 1, NOW)).events();
    assert_eq!(second.len(), 1);
}

#[test]
fn a_handoff_works_once() {
    given::<DevLink>([issued()]).and(open(1, 1, NOW)).when(open(1, 1, NOW + 5)).then_refused("handoff_used");
}

#[test]
fn a_handoff_that_is_late_or_lives_too_long_is_refused() {
    for expires_at in [NOW, NOW - 1, NOW + HANDOFF_LIFETIME.get() + 1] {
        given::<DevLink>([issued()])
            .when(DevLinkCommand::OpenSession {
                handoff: handoff(9),
                handoff_expires_at: at(expires_at),
                session: session(9),
                cookie: TokenDigest::of(b"9"),
                generation: Generation(1),
                now: at(NOW),
            })
            .then_refused("handoff_expired");
    }
}

#[test]
fn rotation_ends_older_tokens_and_their_sessions() {
    let rotate = DevLinkCommand::Rotate { lifetime: None, limits: limits(), now: at(NOW + 10) };
    given::<DevLink>([issued()])
        .and(open(1, 1, NOW))
        .and(rotate)
        .when(open(2, 1, NOW + 20))
        .then_refused("link_rotated");
    let rotate = DevLinkCommand::Rotate { lifetime: None, limits: limits(), now: at(NOW + 10) };
    let after = given::<DevLink>([issued()]).and(open(1, 1, NOW)).and(rotate);
    assert!(matches!(after.state(), DevLink::Active(active) if active.sessions.is_empty()));
}

#[test]
fn nothing_opens_after_the_end() {
    given::<DevLink>([issued()]).when(open(1, 1, END)).then_refused("link_expired");
    given::<DevLink>([issued(), revoked()]).when(open(1, 1, NOW)).then_refused("link_revoked");
    given::<DevLink>([issued(), DevLinkEvent::Expired]).when(open(1, 1, NOW)).then_refused("link_expired");
    given::<DevLink>([]).when(open(1, 1, NOW)).then_refused("link_unknown");
}

#[test]
fn revoking_twice_changes_nothing_and_an_expired_link_can_still_be_revoked() {
    given::<DevLink>([issued(), revoked()]).when(DevLinkCommand::Revoke { reason: None }).then_nothing();
    given::<DevLink>([issued(), DevLinkEvent::Expired]).when(DevLinkCommand::Revoke { reason: None }).then([revoked()]);
}

#[test]
fn a_link_expires_only_when_its_time_is_over() {
    given::<DevLink>([issued()]).when(DevLinkCommand::Expire { now: at(END - 1) }).then_refused("link_not_yet_expired");
    given::<DevLink>([issued()]).when(DevLinkCommand::Expire { now: at(END) }).then([DevLinkEvent::Expired]);
}

#[test]
fn an_end_that_was_moved_counts_and_a_link_ends_once() {
    let rotate = |lifetime, now| DevLinkCommand::Rotate { lifetime: Some(lifetime), limits: limits(), now: at(now) };
    let expire = |now| DevLinkCommand::Expire { now: at(now) };
    let later = || given::<DevLink>([issued()]).and(rotate(Millis::from_hours(3), NOW));
    later().when(expire(END)).then_refused("link_not_yet_expired");
    later().when(expire(END + 3_600_000)).then([DevLinkEvent::Expired]);
    let sooner = given::<DevLink>([issued()]).and(rotate(Millis::from_hours(1), NOW));
    sooner.when(expire(END - 3_600_000)).then([DevLinkEvent::Expired]);
    given::<DevLink>([issued(), DevLinkEvent::Expired]).when(expire(END)).then_nothing();
    given::<DevLink>([issued(), revoked()]).when(expire(END)).then_nothing();
    given::<DevLink>([]).when(expire(END)).then_refused("link_unknown");
}

/// From narrower to wider: what the manifest declares for the service, and what of it the organization allows.
#[test]
fn an_allowlist_stays_within_manifest_and_organization() {
    use RouteFamily::{Api, Assets, Marketing, Web, Websockets};
    let change = |list: &[RouteFamily], allowed: &[RouteFamily]| DevLinkCommand::ChangeAllowlist {
        families: families(list),
        limits: LinkLimits { families_allowed: families(allowed), ..limits() },
        now: at(NOW),
    };
    let link = || given::<DevLink>([issued()]);
    link().when(change(&[], &[Web, Api])).then_refused("link_without_families");
    link().when(change(&[Web, Assets], &RouteFamily::ALL)).then_refused("link_families_not_declared");
    link().when(change(&[Marketing], &[])).then_refused("link_families_not_declared");
    link().when(change(&[Web, Websockets], &[Web, Api])).then_refused("link_families_not_allowed");
    link().when(change(&[Web], &[])).then_refused("link_families_not_allowed");
    link().when(change(&[Web, Api], &[Web, Api])).then_nothing();
    for wanted in [&[Web][..], &[Websockets], &[Web, Api, Websockets]] {
        link()
            .when(change(wanted, &RouteFamily::ALL))
            .then([DevLinkEvent::AllowlistChanged { families: families(wanted) }]);
    }
}

#[test]
fn an_allowlist_changes_until_the_end_and_not_from_then_on() {
    let change = |now| DevLinkCommand::ChangeAllowlist {
        families: families(&[RouteFamily::Web]),
        limits: limits(),
        now: at(now),
    };
    given::<DevLink>([issued()]).when(change(END - 1)).events();
    given::<DevLink>([issued()]).when(change(END)).then_refused("link_expired");
    given::<DevLink>([issued(), DevLinkEvent::Expired]).when(change(NOW)).then_refused("link_expired");
    given::<DevLink>([issued(), revoked()]).when(change(NOW)).then_refused("link_revoked");
    given::<DevLink>([]).when(change(NOW)).then_refused("link_unknown");
}

#[test]
fn the_wake_budget_counts_wakes_not_requests() {
    let spend = |epoch| DevLinkCommand::SpendWake { epoch: Epoch(epoch), session: session(1), now: at(NOW) };
    let used =
        given::<DevLink>([issued()]).and(open(1, 1, NOW)).and(spend(1)).and(spend(1)).and(spend(2)).and(spend(2));
    used.when(spend(3)).then_refused("wake_budget_spent");
}

#[test]
fn only_a_live_session_may_spend_the_wake_budget() {
    given::<DevLink>([issued()])
        .when(DevLinkCommand::SpendWake { epoch: Epoch(1), session: session(1), now: at(NOW) })
        .then_refused("link_session_unknown");
}

fn any_command() -> impl Strategy<Value = DevLinkCommand> {
    let time = NOW - 10..END + 10;
    prop_oneof![
        Just(issue()),
        (1..6u128, 1..4u32, time.clone()).prop_map(|(number, generation, now)| open(number, generation, now)),
        (1..32u8, time.clone()).prop_map(|(bits, now)| DevLinkCommand::ChangeAllowlist {
            families: RouteFamily::ALL.into_iter().filter(|family| bits & (1 << *family as u8) != 0).collect(),
            limits: limits(),
            now: at(now),
        }),
        time.clone().prop_map(|now| DevLinkCommand::Rotate { lifetime: None, limits: limits(), now: at(now) }),
        (1..5u64, 1..6u128, time.clone()).prop_map(|(epoch, number, now)| DevLinkCommand::SpendWake {
            epoch: Epoch(epoch),
            session: session(number),
            now: at(now),
        }),
        time.prop_map(|now| DevLinkCommand::Expire { now: at(now) }),
        Just(DevLinkCommand::Revoke { reason: None }),
        Just(DevLinkCommand::RecordBlocked {
            attempts: vec![BlockedAttempts { code: "outside_link".to_owned(), count: 1, requests: vec![] }],
            since: at(NOW),
            until: at(NOW + 1),
        }),
    ]
}

proptest! {
    /// Whatever was accepted evolves; a link that ended never comes back; budgets and sessions keep their bounds.
    #[test]
    fn any_accepted_history_evolves(commands in prop::collection::vec(any_command(), 1..40)) {
        let mut ended = false;
        histories::<DevLink>(commands, |_, after| {
            match after {
                DevLink::Active(active) => {
                    prop_assert!(!ended);
                    prop_assert!(active.wakes_spent <= active.wake_budget.unwrap_or(u32::MAX));
                    prop_assert!(limits().families_declared.intersection(active.families) == active.families);
                }
                DevLink::Expired { .. } | DevLink::Revoked { .. } => ended = true,
                DevLink::Unknown => prop_assert!(!ended),
            }
            Ok(())
        })?;
    }
}
