//! Shells and jobs that are open by the log, and which of them are lost by what hosts know.
//!
//! The log knows of each before its host does, and its host before anything runs. Pure. Not here: whose host's word counts (`world`),
//! asking it, and telling (`shell_leftovers`).

use std::collections::{HashMap, HashSet};

use envforge_domain::ids::{HostId, JobRunId, OrgId, ShellId};
use envforge_domain::job_run::JobRunEvent;
use envforge_domain::limits::{JOB_RUN_MAX, SHELL_OPEN_MAX};
use envforge_domain::shell::ShellEvent;
use envforge_domain::time::{Millis, UnixMillis};
use envforge_runtime::{EndedShell, ShellPlace};

/// For what was begun before whoever looks: an earlier process's, or on its way through another process now.
const LEFT_BEHIND_AGE: Millis = Millis::from_secs(30);
/// For what was begun since: it may wait for its secrets and its host's answer.
const ON_ITS_WAY_MAX: Millis = Millis::from_minutes(5);
/// Looks in a row at which a host knows nothing of it: an end that whoever carried it is about to tell is theirs to tell.
const LOOKS: u32 = 3;
/// After the longest that anything may be open.
const OVER_TIME_GRACE: Millis = Millis::from_hours(1);

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OpenShell {
    pub(crate) place: ShellPlace,
    /// Of a shell that named it.
    pub(crate) host: Option<HostId>,
    /// By the clock of whoever carries it.
    pub(crate) since: UnixMillis,
}

impl OpenShell {
    /// Whoever carried it would have ended it by now.
    pub(crate) fn is_over_time(&self, what: EndedShell, now: UnixMillis) -> bool {
        let longest = match what {
            EndedShell::Shell(_) => SHELL_OPEN_MAX,
            EndedShell::Job(_) => JOB_RUN_MAX,
        };
        self.since.plus(longest).plus(OVER_TIME_GRACE) <= now
    }
}

/// The fold.
#[derive(Default)]
pub(crate) struct OpenShells(HashMap<EndedShell, OpenShell>);

impl OpenShells {
    pub(crate) fn apply_shell(&mut self, org: OrgId, shell: ShellId, event: &ShellEvent) {
        match event {
            ShellEvent::Connected { terms } => {
                let place = ShellPlace { org, project: terms.project, workspace: terms.workspace };
                let open = OpenShell { place, host: terms.host, since: terms.at };
                self.0.insert(EndedShell::Shell(shell), open);
            }
            ShellEvent::Disconnected { .. } => {
                self.0.remove(&EndedShell::Shell(shell));
            }
        }
    }

    pub(crate) fn apply_job(&mut self, org: OrgId, run: JobRunId, event: &JobRunEvent) {
        match event {
            JobRunEvent::Started { terms } => {
                let place = ShellPlace { org, project: terms.project, workspace: terms.workspace };
                self.0.insert(EndedShell::Job(run), OpenShell { place, host: None, since: terms.at });
            }
            JobRunEvent::Finished { .. } => {
                self.0.remove(&EndedShell::Job(run));
            }
        }
    }

    pub(crate) fn get(&self, what: EndedShell) -> Option<&OpenShell> {
        self.0.get(&what)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (EndedShell, OpenShell)> {
        self.0.iter().map(|(what, open)| (*what, *open))
    }
}

/// What one who looks at a host again and again has missed there.
pub(crate) struct Looks {
    begun: UnixMillis,
    missed: HashMap<EndedShell, u32>,
}

impl Looks {
    pub(crate) fn new(begun: UnixMillis) -> Self {
        Self { begun, missed: HashMap::new() }
    }

    /// One look. `open`: by the log, as it was before the host was asked what is `known` to it. Answers those that are lost.
    pub(crate) fn look(
        &mut self,
        open: &[(EndedShell, OpenShell)],
        known: &HashSet<EndedShell>,
        now: UnixMillis,
    ) -> Vec<(EndedShell, ShellPlace)> {
        let missed: HashMap<_, _> = open
            .iter()
            .filter(|(what, _)| !known.contains(what))
            .map(|(what, _)| (*what, self.missed.get(what).copied().unwrap_or_default().saturating_add(1)))
            .collect();
        self.missed = missed;
        let is_lost = |(what, shell): &&(EndedShell, OpenShell)| {
            let age = if shell.since < self.begun { LEFT_BEHIND_AGE } else { ON_ITS_WAY_MAX };
            self.missed.get(what).is_some_and(|looks| *looks >= LOOKS) && shell.since.plus(age) <= now
        };
        open.iter().filter(is_lost).map(|(what, shell)| (*what, shell.place)).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use envforge_domain::ids::{ProjectId, SessionId, UserId, WorkspaceId};
    use envforge_domain::job_run::JobRunTerms;
    use envforge_domain::manifest::JobKind;
    use envforge_domain::shell::{ShellEnd, ShellEnded, ShellKind, ShellTerms};
    use proptest::collection::vec;
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    const BEGUN: UnixMillis = UnixMillis::new(1_800_000_000_000);

    fn number(number: u8) -> Uuid {
        Uuid::from_u128(u128::from(number))
    }

    fn place() -> ShellPlace {
        let (org, project) = (OrgId::from_uuid(number(1)), ProjectId::from_uuid(number(2)));
        ShellPlace { org, project, workspace: WorkspaceId::from_uuid(number(3)) }
    }

    fn shell(id: u8) -> EndedShell {
        EndedShell::Shell(ShellId::from_uuid(number(id)))
    }

    fn open(since: UnixMillis) -> OpenShell {
        OpenShell { place: place(), host: None, since }
    }

    /// Begins, or ends, one of a few shells and jobs.
    fn apply(fold: &mut OpenShells, what: EndedShell, begins: bool) {
        let (user, place, at) = (UserId::from_uuid(number(4)), place(), BEGUN);
        let ShellPlace { org, project, workspace } = place;
        let ended = ShellEnded { end: ShellEnd::Exited, code: Some(0), at, duration: Millis::new(0) };
        match (what, begins) {
            (EndedShell::Shell(shell), true) => {
                let (session, kind) = (SessionId::from_uuid(number(5)), ShellKind::Terminal);
                let terms = ShellTerms { shell, project, workspace, user, session, kind, host: None, git: None, at };
                fold.apply_shell(org, shell, &ShellEvent::Connected { terms });
            }
            (EndedShell::Shell(shell), false) => {
                fold.apply_shell(org, shell, &ShellEvent::Disconnected { user, workspace, ended });
            }
            (EndedShell::Job(run), true) => {
                let (name, command, commit) = ("test".to_owned(), "true".to_owned(), "c0ffee".to_owned());
                let (kind, secrets) = (JobKind::Test, Vec::new());
                let terms = JobRunTerms { run, project, workspace, name, command, kind, by: user, commit, secrets, at };
                fold.apply_job(org, run, &JobRunEvent::Started { terms });
            }
            (EndedShell::Job(run), false) => {
                let name = "test".to_owned();
                fold.apply_job(org, run, &JobRunEvent::Finished { by: user, workspace, name, ended });
            }
        }
    }

    fn whats() -> impl Strategy<Value = EndedShell> {
        (0..4_u8, any::<bool>()).prop_map(|(id, is_shell)| {
            if is_shell { shell(id) } else { EndedShell::Job(JobRunId::from_uuid(number(id))) }
        })
    }

    proptest! {
        #[test]
        fn open_is_what_was_begun_and_not_ended_since(happened in vec((whats(), any::<bool>()), 0..40)) {
            let mut fold = OpenShells::default();
            let mut last = HashMap::new();
            for (what, begins) in happened {
                apply(&mut fold, what, begins);
                last.insert(what, begins);
            }
            let found: HashMap<_, _> = fold.iter().collect();
            last.retain(|_, begins| *begins);
            prop_assert_eq!(found.keys().collect::<HashSet<_>>(), last.keys().collect::<HashSet<_>>());
            prop_assert!(found.values().all(|shell| *shell == open(BEGUN)));
        }

        /// Each look: seconds since the last one, and whether the host knows it.
        #[test]
        fn lost_is_what_is_old_enough_and_was_missed_at_each_of_the_last_looks(
            before in any::<bool>(),
            looks in vec((0..120_u64, any::<bool>()), 1..20),
        ) {
            let since = if before { UnixMillis::new(BEGUN.get() - 1) } else { BEGUN };
            let age = if before { LEFT_BEHIND_AGE } else { ON_ITS_WAY_MAX };
            let (mut looking, mut now, mut missed) = (Looks::new(BEGUN), BEGUN, 0);
            for (seconds, knows) in looks {
                now = now.plus(Millis::from_secs(seconds));
                missed = if knows { 0 } else { missed + 1 };
                let known = if knows { HashSet::from([shell(1)]) } else { HashSet::from([shell(2)]) };
                let lost = looking.look(&[(shell(1), open(since))], &known, now);
                let wanted = missed >= LOOKS && now.since(since) >= age;
                prop_assert_eq!(lost, if wanted { vec![(shell(1), place())] } else { vec![] });
            }
        }
    }

    #[test]
    fn what_has_an_end_in_the_log_is_not_missed_any_more() {
        let mut looking = Looks::new(BEGUN);
        let now = BEGUN.plus(Millis::from_hours(1));
        let before = [(shell(1), open(UnixMillis::new(1)))];
        for _ in 1..LOOKS {
            assert_eq!(looking.look(&before, &HashSet::new(), now), []);
        }
        assert_eq!(looking.look(&[], &HashSet::new(), now), []);
        assert_eq!(looking.look(&before, &HashSet::new(), now), [], "it was begun anew, as it were");
    }

    #[test]
    fn nothing_is_open_for_longer_than_it_may() {
        let job = EndedShell::Job(JobRunId::from_uuid(number(1)));
        for (what, longest) in [(shell(1), SHELL_OPEN_MAX), (job, JOB_RUN_MAX)] {
            assert!(!open(BEGUN).is_over_time(what, BEGUN.plus(longest)));
            assert!(open(BEGUN).is_over_time(what, BEGUN.plus(longest).plus(OVER_TIME_GRACE)));
        }
    }
}
