//! Machines that fail or are not needed any more: what is tried for them, and how they end.
//!
//! INVARIANT: a disk that may hold people's work is ended only on evidence about that very machine: people drained or revoked it, the
//! provider's checks of it fail again after a stop and a start, it stops again after each start while others come up, or its agent is
//! missed after a stop and a start, too, while others of its organization came the same way. A way in, a quota or a right that fails is
//! none. Not here: a machine that the provider says is gone (`compare`).

use envforge_domain::machine::{Machine, MachineCause, Power, StopMode};

use super::{AgentState, MachineView, Planner, Step, Token, WhyGivenUp};

/// So many starts must have failed before a machine is replaced for it, however long they took.
const STARTS_BEFORE_GIVEN_UP: u32 = 8;

impl Planner<'_> {
    /// Machines that fail or are not needed any more, on their way out.
    pub(super) fn leave(&mut self) {
        let mut leaving = false;
        for machine in self.ours.clone() {
            let host = machine.host;
            let gone = matches!(machine.state, Machine::Over { .. });
            // INVARIANT: room is given back only once nothing can run in it.
            if gone || matches!(machine.power(), Some(Power::Off(_) | Power::Ending)) {
                for workspace in &machine.stale {
                    self.step(Step::Release { workspace: *workspace, host });
                }
            }
            if gone {
                let over = matches!(machine.agent, AgentState::Absent | AgentState::Revoked | AgentState::Retired);
                if !over && machine.placed.is_empty() {
                    self.step(Step::Retire { host });
                }
                continue;
            }
            let Some(live) = machine.live() else { continue };
            let leaves_for = self.leaves_for(machine);
            if !live.draining {
                let boot = self.policy.boot_deadline;
                match leaves_for {
                    Some(cause) => self.step(Step::Drain { host, cause }),
                    None if machine.is_overdue(boot, self.now) => {
                        self.step(Step::GiveUp { host, why: WhyGivenUp::NotEnrolled { deadline: boot } });
                    }
                    None if machine.is_impaired(self.policy.impaired_after, self.now) => self.heal(machine),
                    None if !leaving => leaving = self.fetch(machine),
                    None => {}
                }
                continue;
            }
            let cause = leaves_for.unwrap_or(MachineCause::Unused);
            if machine.placed.is_empty() {
                if live.power != Power::Ending && !self.waits_for_shells(machine) {
                    self.step(Step::Terminate { host, cause });
                }
            } else if live.unhealthy && machine.stale.len() == machine.placed.len() && machine.is_on() {
                // Its agent gives nothing back any more: off, nothing can run there.
                self.step(Step::Stop { host, mode: StopMode::Stop, cause });
            }
        }
    }

    /// Why it has to go, where it has to.
    pub(super) fn leaves_for(&self, machine: &MachineView) -> Option<MachineCause> {
        if machine.live().is_some_and(|live| live.unhealthy) || self.never_starts(machine) {
            Some(MachineCause::Unhealthy)
        } else if machine.is_given_up_by_people() {
            Some(MachineCause::Operator)
        } else {
            (self.fleet.workspaces == 0 && machine.placed.is_empty()).then_some(MachineCause::Unused)
        }
    }

    /// It stops again after each start, and has for long; it is not the key of all disks, since another machine came up meanwhile.
    fn never_starts(&self, machine: &MachineView) -> bool {
        let failures = machine.starts.stopped_again;
        let came_up =
            |other: &&MachineView| other.host != machine.host && other.is_on() && other.up_at > failures.first_at();
        !machine.is_on()
            && failures.last_for(STARTS_BEFORE_GIVEN_UP, self.policy.start_patience)
            && self.ours.iter().any(came_up)
    }

    /// A machine whose checks fail is stopped once: its disks stay, and it starts on other hardware, as a rule.
    /// Where that did not help it goes.
    fn heal(&mut self, machine: &MachineView) {
        let host = machine.host;
        if machine.was_stopped_as_unhealthy(self.now) {
            self.step(Step::GiveUpChecks { host });
        } else if machine.is_quiet() {
            self.step(Step::Stop { host, mode: StopMode::Stop, cause: MachineCause::Unhealthy });
        }
    }

    /// A machine whose agent is missed, with nothing awake there: the log says first that what may be awake is lost. It is stopped once, so
    /// that it starts anew when it is needed, and goes where that did not help. Whether it goes.
    fn fetch(&mut self, machine: &MachineView) -> bool {
        let (host, deadline) = (machine.host, self.policy.agent_deadline);
        let empty = machine.stale.len() == machine.placed.len();
        if !machine.is_missed() || !empty {
            return false;
        }
        let others_got_through = machine.away >= deadline;
        if machine.was_stopped_in_vain(self.now) {
            // One after the other, and the next one once those that come are here.
            let settled = self.ours.iter().all(|other| other.host == host || !other.is_unsettled(self.policy));
            let goes = others_got_through && settled && self.others_came_the_same_way(machine);
            if goes {
                self.step(Step::GiveUp { host, why: WhyGivenUp::AgentAway { deadline } });
            }
            return goes;
        }
        // Where there is no other agent nobody can say whether it is the way in.
        let is_only_one = self.fleet.agents_wanted <= 1 && machine.missed_for >= deadline;
        if (others_got_through || is_only_one) && machine.is_quiet() {
            self.step(Step::Stop { host, mode: StopMode::Stop, cause: MachineCause::Unhealthy });
        }
        false
    }

    /// Whether another agent of the organization has come since this one could have: enrolled, where this one has to.
    fn others_came_the_same_way(&self, machine: &MachineView) -> bool {
        let since = match machine.token {
            Token::Unneeded => machine.up_at,
            Token::Needed { ready_since: Some(since) } if self.now.since(since) >= self.policy.boot_deadline => {
                since.max(machine.up_at)
            }
            Token::Needed { .. } => return false,
        };
        let came_at = |other: &MachineView| match machine.token {
            Token::Unneeded => other.heard_at,
            Token::Needed { .. } => other.enrolled_at,
        };
        let mut others = self.ours.iter().filter(|other| other.host != machine.host);
        others.any(|other| other.is_ready() && !other.is_missed() && came_at(other) > since)
    }

    /// People are at work there. Nothing new comes, and a host that is trusted no more is not waited for.
    fn waits_for_shells(&self, machine: &MachineView) -> bool {
        let trusted = !matches!(machine.agent, AgentState::Revoked | AgentState::Retired);
        let patient = machine.drained_at.is_none_or(|at| self.now.since(at) < self.policy.shell_patience);
        machine.is_on() && machine.open_shells > 0 && trusted && patient
    }
}
