//! Root windows: asked for by one person, answered by another, for one command and a time.

use envforge_domain::access::Action;
use envforge_domain::aggregate::{Aggregate, Refusal};
use envforge_domain::commit::{Actor, Component};
use envforge_domain::ids::UserId;
use envforge_domain::limits::{self, ROOT_SHELLS_MAX};
use envforge_domain::organization::OrganizationPolicy;
use envforge_domain::provenance::{Derived, Independence, Others};
use envforge_domain::root_window::*;
use envforge_domain::runtime::Epoch;
use envforge_domain::time::{Millis, UnixMillis};
use proptest::prelude::*;

use crate::given::*;

const LENGTH: Millis = Millis::from_minutes(20);
const LIMITS: RootLimits = RootLimits { policy: RootPolicy::WorkspaceElevation, length_max: Millis::from_minutes(30) };
const ASKED: UnixMillis = UnixMillis::new(1_000);
const REQUESTER: u128 = 1;
const APPROVER: u128 = 2;

fn by(number: u128) -> Actor {
    Actor::User(user(number))
}

fn request(mode: RootMode, length: Millis, limits: RootLimits) -> RootWindowCommand {
    RootWindowCommand::Request {
        by: by(REQUESTER),
        window: window(1),
        project: project(1),
        workspace: workspace(1),
        mode,
        access: RootAccess::Command,
        reason: "libpq is missing".to_owned(),
        length,
        pending: limits::ROOT_REQUESTS_MAX - 1,
        limits,
        now: ASKED,
    }
}

fn requested(mode: RootMode) -> RootWindowEvent {
    RootWindowEvent::Requested {
        terms: RootTerms {
            window: window(1),
            project: project(1),
            workspace: workspace(1),
            requester: user(REQUESTER),
            mode,
            access: RootAccess::Command,
            reason: "libpq is missing".to_owned(),
            length: LENGTH,
            requested_at: ASKED,
        },
        expires_at: ASKED.plus(limits::ROOT_REQUEST_LIFETIME),
    }
}

fn approve(who: Actor, now: UnixMillis) -> RootWindowCommand {
    RootWindowCommand::Approve { by: who, independence: Independence::Independent, limits: LIMITS, now }
}

fn run_at(who: u128, now: UnixMillis) -> RootWindowCommand {
    let words = vec!["id".to_owned()];
    RootWindowCommand::Run { by: by(who), words, epoch: Some(Epoch(3)), limits: LIMITS, now }
}

fn ended(outcome: RootOutcome, now: UnixMillis) -> RootEnded {
    RootEnded { outcome, code: (outcome == RootOutcome::Exited).then_some(0), at: now, changes: None }
}

fn asked() -> Given<RootWindow> {
    given::<RootWindow>([requested(RootMode::Elevation)])
}

fn approved() -> Given<RootWindow> {
    asked().and(approve(by(APPROVER), at(2_000)))
}

fn opened() -> Given<RootWindow> {
    approved().and(run_at(REQUESTER, at(3_000)))
}

fn broken_glass() -> Given<RootWindow> {
    given::<RootWindow>([]).and(request(RootMode::BreakGlass, LENGTH, LIMITS))
}

fn review(who: Actor) -> RootWindowCommand {
    let (independence, note) = (Independence::Independent, "the disk was full".to_owned());
    RootWindowCommand::Review { by: who, independence, justified: true, note, now: at(9_000) }
}

#[test]
fn a_request_waits_and_burns_no_time_of_its_window() {
    given::<RootWindow>([]).when(request(RootMode::Elevation, LENGTH, LIMITS)).then([requested(RootMode::Elevation)]);
    // Approved hours later, used hours after that: the window has its whole length from its first use.
    let (approved_at, used_at) = (ASKED.plus(Millis::from_hours(20)), ASKED.plus(Millis::from_hours(27)));
    asked().and(approve(by(APPROVER), approved_at)).when(run_at(REQUESTER, used_at)).then([
        RootWindowEvent::Opened { at: used_at, ends_at: used_at.plus(LENGTH) },
        RootWindowEvent::CommandAsked { words: vec!["id".to_owned()], epoch: Epoch(3), at: used_at },
    ]);
}

#[test]
fn the_policy_says_which_windows_there_are_and_how_long() {
    let refused = |mode, length, limits, code| {
        given::<RootWindow>([]).when(request(mode, length, limits)).then_refused(code);
    };
    let limits_of = |policy| RootLimits { policy, ..LIMITS };
    for mode in [RootMode::Elevation, RootMode::BreakGlass] {
        refused(mode, LENGTH, limits_of(RootPolicy::Disabled), "root_not_allowed");
        refused(mode, Millis::from_minutes(31), LIMITS, "root_window_length_out_of_range");
        refused(mode, Millis::from_secs(59), LIMITS, "root_window_length_out_of_range");
    }
    refused(RootMode::Elevation, LENGTH, limits_of(RootPolicy::BreakGlass), "root_not_allowed");
    let wide = RootLimits { length_max: Millis::from_hours(24), ..LIMITS };
    refused(RootMode::Elevation, Millis::from_hours(9), wide, "root_window_length_out_of_range");
    assert_eq!(OrganizationPolicy::default().root, RootPolicy::Disabled, "root is closed by default");
    // Tightened between request and approval, and between approval and use.
    let now = limits_of(RootPolicy::BreakGlass);
    let independence = Independence::Independent;
    asked()
        .when(RootWindowCommand::Approve { by: by(APPROVER), independence, limits: now, now: at(2_000) })
        .then_refused("root_not_allowed");
    let words = vec!["id".to_owned()];
    let late = RootWindowCommand::Run { by: by(REQUESTER), words, epoch: Some(Epoch(3)), limits: now, now: at(3_000) };
    approved().when(late).then_refused("root_not_allowed");
}

#[test]
fn a_reason_is_asked_for_and_has_its_limits() {
    for reason in [String::new(), " ".to_owned(), "a\nb".to_owned(), "x".repeat(limits::REASON_CHARS_MAX + 1)] {
        let mut command = request(RootMode::Elevation, LENGTH, LIMITS);
        if let RootWindowCommand::Request { reason: given, .. } = &mut command {
            *given = reason;
        }
        given::<RootWindow>([]).when(command).then_refused("reason_invalid");
    }
}

#[test]
fn whoever_has_asked_for_much_waits_for_an_answer_first_but_for_an_emergency() {
    let asking = |mode| {
        let mut command = request(mode, LENGTH, LIMITS);
        if let RootWindowCommand::Request { pending, .. } = &mut command {
            *pending += 1;
        }
        given::<RootWindow>([]).when(command)
    };
    asking(RootMode::Elevation).then_refused("root_requests_too_many");
    let opened = RootWindowEvent::Opened { at: ASKED, ends_at: ASKED.plus(LENGTH) };
    asking(RootMode::BreakGlass).then([requested(RootMode::BreakGlass), opened]);
}

#[test]
fn nobody_answers_their_own_request_and_no_program_answers_any() {
    asked().when(approve(by(REQUESTER), at(2_000))).then_refused("root_own_request");
    let deny = RootWindowCommand::Deny { by: by(REQUESTER), reason: None, now: at(2_000) };
    asked().when(deny).then_refused("root_own_request");
    let others = [
        Actor::ServiceToken(token(1)),
        Actor::LinkVisitor { link: link(1), session: None },
        Actor::Agent(host(1)),
        Actor::System(Component::Timer),
        Actor::Anonymous,
    ];
    for other in others {
        asked().when(approve(other, at(2_000))).then_refused("root_people_only");
        let mut command = request(RootMode::BreakGlass, LENGTH, LIMITS);
        if let RootWindowCommand::Request { by, .. } = &mut command {
            *by = other;
        }
        given::<RootWindow>([]).when(command).then_refused("root_people_only");
    }
    let window = asked().and(approve(by(APPROVER), at(2_000)));
    assert!(matches!(window.state(), RootWindow::Approved { approver, .. } if *approver == user(APPROVER)));
}

#[test]
fn a_request_and_an_approval_lapse_by_themselves() {
    let lapsed = ASKED.plus(limits::ROOT_REQUEST_LIFETIME);
    asked().when(approve(by(APPROVER), lapsed)).then_refused("root_window_expired");
    asked().when(RootWindowCommand::Expire { now: at(2_000) }).then_refused("root_window_not_over");
    asked().when(RootWindowCommand::Expire { now: lapsed }).then([RootWindowEvent::Expired]);
    let unused = at(2_000).plus(limits::ROOT_APPROVAL_LIFETIME);
    approved().when(run_at(REQUESTER, unused)).then_refused("root_window_expired");
    approved().when(RootWindowCommand::Expire { now: unused }).then([RootWindowEvent::Expired]);
    assert_eq!(asked().state().phase(lapsed), Some(RootPhase::Expired), "with or without the closing event");
}

#[test]
fn only_the_requester_uses_a_window_and_only_for_one_command() {
    asked().when(run_at(REQUESTER, at(2_000))).then_refused("root_not_approved");
    approved().when(run_at(APPROVER, at(3_000))).then_refused("root_not_yours");
    opened().when(run_at(REQUESTER, at(4_000))).then_refused("root_window_used");
    let asleep = RootWindowCommand::Run {
        by: by(REQUESTER),
        words: vec!["id".to_owned()],
        epoch: None,
        limits: LIMITS,
        now: at(3_000),
    };
    approved().when(asleep).then_refused("root_runtime_not_ready");
    let words =
        [vec![], vec![String::new()], vec!["x".repeat(4_001)], vec!["a\0b".to_owned()], vec!["x".to_owned(); 65]];
    for words in words {
        let command =
            RootWindowCommand::Run { by: by(REQUESTER), words, epoch: Some(Epoch(3)), limits: LIMITS, now: at(3_000) };
        approved().when(command).then_refused("root_command_invalid");
    }
}

#[test]
fn a_command_is_taken_once_and_its_end_closes_the_window_with_a_closeout() {
    let taken = opened().and(RootWindowCommand::ReportStarted { now: at(3_100) });
    opened()
        .when(RootWindowCommand::ReportStarted { now: at(3_100) })
        .then([RootWindowEvent::CommandStarted { at: at(3_100) }]);
    taken.when(RootWindowCommand::ReportStarted { now: at(3_200) }).then_refused("root_window_used");
    let end = ended(RootOutcome::Exited, at(5_000));
    let taken = opened().and(RootWindowCommand::ReportStarted { now: at(3_100) });
    let closeout = RootCloseout {
        requester: user(REQUESTER),
        approver: Some(user(APPROVER)),
        mode: RootMode::Elevation,
        access: RootAccess::Command,
        opened_at: at(3_000),
        closed_at: at(5_000),
        commands: vec![RootCommand {
            words: vec!["id".to_owned()],
            epoch: Epoch(3),
            asked_at: at(3_000),
            started_at: Some(at(3_100)),
            ended: Some(end.clone()),
        }],
    };
    taken
        .when(RootWindowCommand::ReportEnded { ended: end.clone() })
        .then([RootWindowEvent::CommandEnded { ended: end.clone() }, RootWindowEvent::Closed { closeout }]);
    let over = opened().and(RootWindowCommand::ReportEnded { ended: end.clone() });
    over.when(RootWindowCommand::ReportEnded { ended: end }).then_nothing();
}

#[test]
fn what_a_command_changed_is_told_within_limits() {
    let told = |files: usize, chars: usize| {
        let change = |_| FileChange { path: "x".repeat(chars), kind: FileChangeKind::Added };
        let changes = RootChanges { files: (0..files).map(change).collect(), ..RootChanges::default() };
        let ended = RootEnded { changes: Some(changes), ..ended(RootOutcome::Exited, at(5_000)) };
        RootWindowCommand::ReportEnded { ended }
    };
    let (max, max_chars) = (limits::ROOT_CHANGES_MAX, limits::ROOT_CHANGE_CHARS_MAX);
    assert_eq!(opened().when(told(max, max_chars)).events().len(), 2);
    opened().when(told(max + 1, 1)).then_refused("root_changes_too_many");
    opened().when(told(1, max_chars + 1)).then_refused("root_changes_too_many");
}

#[test]
fn a_revoked_or_withdrawn_window_is_over_at_once_and_its_commands_end_follows() {
    let revoke = RootWindowCommand::Revoke { by: by(APPROVER), reason: None, now: at(4_000) };
    let withdraw = RootWindowCommand::Withdraw { by: by(REQUESTER), now: at(4_000) };
    for (command, phase) in [(revoke.clone(), RootPhase::Revoked), (withdraw.clone(), RootPhase::Withdrawn)] {
        let over = opened().and(command.clone());
        assert_eq!(over.state().phase(at(4_000)), Some(phase));
        over.when(run_at(REQUESTER, at(4_001))).then_refused("root_window_over");
        let end = ended(RootOutcome::Revoked, at(4_100));
        let over = opened().and(command.clone());
        over.when(RootWindowCommand::ReportEnded { ended: end.clone() })
            .then([RootWindowEvent::CommandEnded { ended: end }]);
        for waiting in [asked(), approved()] {
            let over = waiting.and(command.clone());
            assert_eq!(over.state().phase(at(4_000)), Some(phase));
            over.when(approve(by(APPROVER), at(4_001))).then_refused("root_window_over");
        }
    }
    let others = RootWindowCommand::Withdraw { by: by(APPROVER), now: at(4_000) };
    opened().when(others).then_refused("root_not_yours");
    // Even a revoker who asked for the window themselves: it only ends.
    let own = RootWindowCommand::Revoke { by: by(REQUESTER), reason: None, now: at(4_000) };
    assert_eq!(opened().when(own).events().len(), 2);
}

#[test]
fn a_windows_end_holds_by_itself_and_the_host_gets_a_moment_to_say_how_its_command_ended() {
    let end = at(3_000).plus(LENGTH);
    opened().when(RootWindowCommand::ReportStarted { now: end }).then_refused("root_window_over");
    opened().when(RootWindowCommand::Expire { now: end }).then_refused("root_window_not_over");
    let closed = opened().when(RootWindowCommand::Expire { now: end.plus(limits::ROOT_CLOSEOUT_PATIENCE) }).events();
    assert!(matches!(&closed[..], [RootWindowEvent::Closed { closeout }] if closeout.closed_at == end));
    // Without a command there is nobody to wait for.
    let end = ASKED.plus(LENGTH);
    broken_glass().when(run_at(REQUESTER, end)).then_refused("root_window_over");
    assert_eq!(broken_glass().when(RootWindowCommand::Expire { now: end }).events().len(), 1);
    let policy = OrganizationPolicy { root: RootPolicy::BreakGlass, ..OrganizationPolicy::default() };
    assert_eq!(broken_glass().state().ends_at(&policy), Some(end));
    let shorter = OrganizationPolicy { root_window_max: Millis::from_minutes(5), ..policy.clone() };
    assert_eq!(broken_glass().state().ends_at(&shorter), Some(ASKED.plus(Millis::from_minutes(5))));
    assert_eq!(opened().state().ends_at(&policy), Some(UnixMillis::EPOCH), "the policy allows break-glass alone");
}

#[test]
fn a_break_glass_window_opens_at_once_and_is_reviewed_by_somebody_else_when_it_is_over() {
    given::<RootWindow>([])
        .when(request(RootMode::BreakGlass, LENGTH, LIMITS))
        .then([requested(RootMode::BreakGlass), RootWindowEvent::Opened { at: ASKED, ends_at: ASKED.plus(LENGTH) }]);
    broken_glass().when(review(by(APPROVER))).then_refused("root_window_not_over");
    let over = || broken_glass().and(RootWindowCommand::Expire { now: ASKED.plus(LENGTH) });
    assert_eq!(over().state().phase(at(0)), Some(RootPhase::ReviewPending));
    over().when(review(by(REQUESTER))).then_refused("root_own_request");
    let reviewed = over().and(review(by(APPROVER)));
    assert_eq!(reviewed.state().phase(at(0)), Some(RootPhase::Reviewed));
    reviewed.when(review(by(3))).then_refused("root_reviewed_already");
    let elevation = opened().and(RootWindowCommand::ReportEnded { ended: ended(RootOutcome::Exited, at(5_000)) });
    elevation.when(review(by(APPROVER))).then_refused("root_nothing_to_review");
    assert_eq!(RootMode::BreakGlass.ground(), Action::RootBreakGlass);
}

fn depends(people: Vec<(UserId, String)>, nobody: bool) -> Independence {
    Independence::Depends { on: Derived::Account, others: Others { people, nobody } }
}

#[test]
fn whoever_owes_it_to_the_requester_that_they_could_decide_neither_approves_nor_reviews() {
    let approving =
        |independence| RootWindowCommand::Approve { by: by(APPROVER), independence, limits: LIMITS, now: at(2_000) };
    let reviewing = |independence| {
        let note = "the disk was full".to_owned();
        RootWindowCommand::Review { by: by(APPROVER), independence, justified: true, note, now: at(9_000) }
    };
    let over = || broken_glass().and(RootWindowCommand::Expire { now: ASKED.plus(LENGTH) });
    let told = |people: &[&str], nobody| {
        let people: Vec<_> = people.iter().map(|name| (user(9), (*name).to_owned())).collect();
        let dependent = depends(people.clone(), nobody);
        asked().when(approving(dependent.clone())).then_refused("root_decider_depends");
        // What is approved already is not approved once more by just anybody.
        approved().when(approving(dependent.clone())).then_refused("root_decider_depends");
        over().when(reviewing(dependent.clone())).then_refused("root_decider_depends");
        let refusal = RootWindow::decide(asked().state(), &approving(dependent)).unwrap_err();
        assert_eq!(refusal.people(), people);
        refusal.to_string()
    };
    assert!(told(&[], true).contains("recover-owner"));
    assert!(told(&[], false).ends_with("an owner or admin can who does not have theirs from them"));
    assert!(told(&["Ada"], false).ends_with("; Ada can"));
    assert!(told(&["Ada", "Bea", "Cleo"], false).ends_with("; Ada, Bea and Cleo can"));
    // Who asked themselves is told so, and saying no is anybody's who may.
    let own = RootWindowCommand::Approve {
        by: by(REQUESTER),
        independence: depends(vec![], true),
        limits: LIMITS,
        now: at(2_000),
    };
    asked().when(own).then_refused("root_own_request");
}

fn command() -> impl Strategy<Value = RootWindowCommand> {
    let when = || (0..200_000_000_u64).prop_map(at);
    let who = || {
        prop_oneof![
            6 => (1..4_u128).prop_map(by),
            1 => Just(Actor::ServiceToken(token(1))),
            1 => Just(Actor::System(Component::Timer)),
        ]
    };
    let limits = || {
        (0..3_usize, 1..60_u64).prop_map(|(policy, minutes)| RootLimits {
            policy: RootPolicy::ALL[policy],
            length_max: Millis::from_minutes(minutes),
        })
    };
    let reason = || prop::option::of("[a-z]{0,6}");
    let independence = || prop_oneof![3 => Just(Independence::Independent), 1 => Just(depends(Vec::new(), true))];
    prop_oneof![
        (who(), any::<bool>(), 0..40_u64, limits(), when()).prop_map(|(by, elevation, minutes, limits, now)| {
            RootWindowCommand::Request {
                by,
                window: window(1),
                project: project(1),
                workspace: workspace(1),
                mode: if elevation { RootMode::Elevation } else { RootMode::BreakGlass },
                access: if minutes % 2 == 0 { RootAccess::Command } else { RootAccess::Shell },
                reason: "because".to_owned(),
                length: Millis::from_minutes(minutes),
                pending: 0,
                limits,
                now,
            }
        }),
        (who(), independence(), limits(), when())
            .prop_map(|(by, independence, limits, now)| RootWindowCommand::Approve { by, independence, limits, now }),
        (who(), reason(), when()).prop_map(|(by, reason, now)| RootWindowCommand::Deny { by, reason, now }),
        (who(), when()).prop_map(|(by, now)| RootWindowCommand::Withdraw { by, now }),
        (who(), reason(), when()).prop_map(|(by, reason, now)| RootWindowCommand::Revoke { by, reason, now }),
        (who(), prop::option::of(Just(Epoch(1))), limits(), when()).prop_map(|(by, epoch, limits, now)| {
            let words = if now.get() % 2 == 0 { vec!["id".to_owned()] } else { vec![] };
            RootWindowCommand::Run { by, words, epoch, limits, now }
        }),
        when().prop_map(|now| RootWindowCommand::ReportStarted { now }),
        (0..11_usize, when())
            .prop_map(|(outcome, now)| RootWindowCommand::ReportEnded { ended: ended(RootOutcome::ALL[outcome], now) }),
        when().prop_map(|now| RootWindowCommand::Expire { now }),
        (who(), independence(), any::<bool>(), when()).prop_map(|(by, independence, justified, now)| {
            RootWindowCommand::Review { by, independence, justified, note: "seen".to_owned(), now }
        }),
    ]
}

#[test]
fn a_window_for_a_shell_runs_no_command_and_one_for_a_command_no_shell() {
    let mut asked = request(RootMode::BreakGlass, LENGTH, LIMITS);
    if let RootWindowCommand::Request { access, .. } = &mut asked {
        *access = RootAccess::Shell;
    }
    let open = || given::<RootWindow>([]).and(asked.clone());
    open().when(run_at(REQUESTER, at(3_000))).then_refused("root_window_for_shell");
    let shell =
        |now| RootWindowCommand::Run { by: by(REQUESTER), words: vec![], epoch: Some(Epoch(3)), limits: LIMITS, now };
    let told = RootWindowEvent::CommandAsked { words: vec![], epoch: Epoch(3), at: at(3_000) };
    open().when(shell(at(3_000))).then([told]);
    // One shell at a time, as one command.
    open().and(shell(at(3_000))).when(shell(at(3_100))).then_refused("root_window_used");
    approved().when(shell(at(3_000))).then_refused("root_command_invalid");
}

/// Whoever lost their connection comes back while the window is open; whoever left is gone.
#[test]
fn a_shell_that_was_lost_or_never_came_leaves_its_window_open_and_one_that_was_left_closes_it() {
    let mut asked = request(RootMode::BreakGlass, LENGTH, LIMITS);
    if let RootWindowCommand::Request { access, .. } = &mut asked {
        *access = RootAccess::Shell;
    }
    let shell =
        |now| RootWindowCommand::Run { by: by(REQUESTER), words: vec![], epoch: Some(Epoch(3)), limits: LIMITS, now };
    let end = |outcome, code, now| RootWindowCommand::ReportEnded { ended: RootEnded { code, ..ended(outcome, now) } };
    let opened = || given::<RootWindow>([]).and(asked.clone()).and(shell(at(3_000)));
    for (outcome, code) in [
        (RootOutcome::Signalled, Some(HANG_UP)),
        (RootOutcome::Lost, None),
        (RootOutcome::HostStopped, None),
        (RootOutcome::NotStarted, None),
    ] {
        let lost = || opened().and(end(outcome, code, at(4_000)));
        assert!(matches!(lost().state(), RootWindow::Open(_)), "{outcome:?}");
        lost().when(end(outcome, code, at(4_500))).then_nothing();
        let again = || lost().and(shell(at(5_000)));
        assert!(matches!(again().state(), RootWindow::Open(open) if open.before.len() == 1));
        // The closeout names both.
        let over = again().when(end(RootOutcome::Exited, Some(0), at(6_000))).events();
        let Some(RootWindowEvent::Closed { closeout }) = over.last() else { panic!("{over:?}") };
        let outcomes: Vec<_> = closeout.commands.iter().map(|shell| shell.ended.as_ref().unwrap().outcome).collect();
        assert_eq!(outcomes, [outcome, RootOutcome::Exited]);
    }
    for (outcome, code) in [
        (RootOutcome::Exited, Some(1)),
        (RootOutcome::Signalled, Some(9)),
        (RootOutcome::Deadline, None),
        (RootOutcome::RuntimeGone, None),
    ] {
        let over = opened().and(end(outcome, code, at(4_000)));
        assert!(matches!(over.state(), RootWindow::Over(_)), "{outcome:?}");
    }
    // The window's end is what it was, with nobody in it too.
    let ends_at = ASKED.plus(LENGTH);
    let empty = || opened().and(end(RootOutcome::Lost, None, at(4_000)));
    empty().when(shell(ends_at)).then_refused("root_window_over");
    let closed = empty().and(RootWindowCommand::Expire { now: ends_at });
    assert!(matches!(closed.state(), RootWindow::Over(_)));
    // A command that was lost is not run again.
    let command = self::opened().and(end(RootOutcome::Lost, None, at(4_000)));
    assert!(matches!(command.state(), RootWindow::Over(_)));
    let many = (0..ROOT_SHELLS_MAX).fold(given::<RootWindow>([]).and(asked.clone()), |history, number| {
        let now = 3_000 + 10 * u64::try_from(number).unwrap();
        history.and(shell(at(now))).and(end(RootOutcome::Lost, None, at(now + 5)))
    });
    many.when(shell(at(9_000))).then_refused("root_window_used");
}

proptest! {
    #[test]
    fn any_accepted_history_evolves(commands in prop::collection::vec(command(), 1..60)) {
        histories::<RootWindow>(commands, |before, after| {
            // Nobody approves or reviews what they asked for themselves, on any way through any history.
            let approver = match after {
                RootWindow::Approved { approver, .. } => Some(*approver),
                RootWindow::Open(open) => open.approver,
                RootWindow::Over(over) => over.approver,
                RootWindow::Unknown | RootWindow::Requested { .. } => None,
            };
            let requester = after.terms().map(|terms| terms.requester);
            prop_assert!(approver.is_none() || approver != requester);
            if let RootWindow::Over(over) = after {
                prop_assert!(over.reviewed.is_none_or(|(reviewer, _)| Some(reviewer) != requester));
            }
            // No elevation is ever open without an approver.
            if let RootWindow::Open(open) = after {
                prop_assert!(open.approver.is_some() || open.terms.mode == RootMode::BreakGlass);
                prop_assert!(open.ends_at == open.opened_at.plus(open.terms.length));
            }
            // What is over stays over.
            prop_assert!(!matches!(before, RootWindow::Over(_)) || matches!(after, RootWindow::Over(_)));
            Ok(())
        })?;
    }
}
