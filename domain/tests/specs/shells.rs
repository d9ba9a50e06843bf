//! Shells and runs of jobs: each begins once, ends once, and says by itself whose it was.

use envforge_domain::access::{Action, Principal, Role};
use envforge_domain::job_run::*;
use envforge_domain::manifest::JobKind;
use envforge_domain::shell::*;
use envforge_domain::time::{Millis, UnixMillis};
use proptest::prelude::*;

use crate::given::*;

fn terms() -> ShellTerms {
    ShellTerms {
        shell: shell(1),
        project: project(1),
        workspace: workspace(1),
        user: user(1),
        session: session(1),
        kind: ShellKind::Terminal,
        host: Some(host(1)),
        git: None,
        at: at(1_000),
    }
}

fn over(end: ShellEnd, code: Option<u32>, at: UnixMillis) -> ShellEnded {
    ShellEnded { end, code, at, duration: Millis::new(4_000) }
}

fn job() -> JobRunTerms {
    JobRunTerms {
        run: run(1),
        project: project(1),
        workspace: workspace(1),
        name: "unit".to_owned(),
        command: "make test".to_owned(),
        kind: JobKind::Test,
        by: user(1),
        commit: "0123456789abcdef0123456789abcdef01234567".to_owned(),
        secrets: Vec::new(),
        at: at(1_000),
    }
}

#[test]
fn a_shell_is_opened_once_and_its_end_says_whose_it_was_and_for_how_long() {
    let connect = || ShellCommand::Connect { terms: terms() };
    let disconnect = |end, code| ShellCommand::Disconnect { end, code, now: at(5_000) };
    given::<Shell>([]).when(connect()).then([ShellEvent::Connected { terms: terms() }]);
    given::<Shell>([]).and(connect()).when(connect()).then_refused("shell_exists");
    given::<Shell>([]).when(disconnect(ShellEnd::Closed, None)).then_refused("shell_unknown");
    given::<Shell>([]).and(connect()).when(disconnect(ShellEnd::Exited, Some(3))).then([ShellEvent::Disconnected {
        user: user(1),
        workspace: workspace(1),
        ended: over(ShellEnd::Exited, Some(3), at(5_000)),
    }]);
    // Whoever comes second, as the next start after a kill, changes nothing.
    let ended = given::<Shell>([]).and(connect()).and(disconnect(ShellEnd::RightLost, None));
    ended.when(disconnect(ShellEnd::Lost, None)).then_nothing();
}

#[test]
fn a_job_is_started_once_and_its_end_is_evidence() {
    let start = || JobRunCommand::Start { terms: job() };
    let finish = |end, code| JobRunCommand::Finish { end, code, now: at(5_000) };
    given::<JobRun>([]).when(start()).then([JobRunEvent::Started { terms: job() }]);
    given::<JobRun>([]).and(start()).when(start()).then_refused("job_run_exists");
    given::<JobRun>([]).when(finish(ShellEnd::Lost, None)).then_refused("job_run_unknown");
    given::<JobRun>([]).and(start()).when(finish(ShellEnd::Signalled, Some(9))).then([JobRunEvent::Finished {
        by: user(1),
        workspace: workspace(1),
        name: "unit".to_owned(),
        ended: over(ShellEnd::Signalled, Some(9), at(5_000)),
    }]);
    given::<JobRun>([])
        .and(start())
        .and(finish(ShellEnd::Exited, Some(0)))
        .when(finish(ShellEnd::Lost, None))
        .then_nothing();
}

#[test]
fn no_link_comes_to_a_shell_and_billing_viewers_and_explorers_run_nothing() {
    for action in [Action::ShellOpen, Action::LogsRead, Action::JobRun] {
        assert!(action.row().surfaces_of(Principal::LinkVisitor).is_empty(), "{}", action.token());
        for role in [Role::Billing, Role::Viewer, Role::Explore] {
            assert!(!action.row().roles.contains(&role), "{} by {}", action.token(), role.token());
        }
    }
    assert!(Action::ShellOpen.row().surfaces_of(Principal::ServiceToken).is_empty());
}

proptest! {
    #[test]
    fn any_accepted_history_evolves(steps in prop::collection::vec((any::<bool>(), 0..14_usize, 0..100_u64), 0..12)) {
        let commands = steps.into_iter().map(|(connect, end, seconds)| match connect {
            true => ShellCommand::Connect { terms: terms() },
            false => ShellCommand::Disconnect { end: ShellEnd::ALL[end], code: None, now: at(seconds * 1_000) },
        });
        histories::<Shell>(commands, |_, _| Ok(()))?;
    }
}
