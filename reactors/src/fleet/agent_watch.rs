//! Which agents of a provider's machines are away, as one of the processes that agents connect to sees it.
//!
//! Time counts only where the process was there and looked: what stands still, is down, or cannot read the log misses nobody. And it counts
//! against an agent only while another one gets through: where none does it is the way in. Pure; the caller looks at regular intervals.
//! Not here: what becomes of a machine whose agent stays away (`plan`).

use std::collections::HashMap;

use envforge_domain::commit::Position;
use envforge_domain::ids::{HostId, OrgId};
use envforge_domain::time::Millis;

/// Looks between two times that the log is told of an agent that is there.
const LOOKS_BETWEEN: u64 = 5;
/// Looks in vain before the log is told: by then it would have heard of an agent that is connected to another process.
const LOOKS_IN_VAIN: u64 = LOOKS_BETWEEN + 1;

/// A machine that is up and whose agent has enrolled, at one look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Looked {
    pub org: OrgId,
    pub host: HostId,
    /// The agent is connected to this process, and heard.
    pub is_here: bool,
    /// Where the log says for the last time that it is connected, to whichever process.
    pub heard_at: Position,
}

/// What the log is to be told: zero of an agent that is there, at least one interval of one that is missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    pub org: OrgId,
    pub host: HostId,
    pub away: Millis,
}

/// One process's memory of its looks.
pub struct AgentWatch {
    interval: Millis,
    hosts: HashMap<HostId, Watched>,
}

#[derive(Clone, Copy, Default)]
struct Watched {
    heard_at: Position,
    /// Looks in vain in a row.
    vain: u64,
    /// Those of them at which another agent was here.
    counted: u64,
    /// Looks since the log was last told that it is there; `None` where it has to be.
    quiet: Option<u64>,
}

impl AgentWatch {
    /// `interval`: between two looks.
    pub fn new(interval: Millis) -> Self {
        Self { interval, hosts: HashMap::new() }
    }

    /// One look at all of them.
    pub fn look(&mut self, looked: &[Looked]) -> Vec<Told> {
        let before = std::mem::take(&mut self.hosts);
        let one_is_here = looked.iter().any(|at| at.is_here);
        let mut told = Vec::new();
        for at in looked {
            let mut watched = before.get(&at.host).copied().unwrap_or_default();
            let (org, host) = (at.org, at.host);
            if at.is_here {
                let quiet = watched.quiet.map(|quiet| quiet + 1).filter(|quiet| *quiet < LOOKS_BETWEEN);
                if quiet.is_none() {
                    told.push(Told { org, host, away: Millis::ZERO });
                }
                let quiet = Some(quiet.unwrap_or_default());
                watched = Watched { heard_at: at.heard_at, vain: 0, counted: 0, quiet };
            } else {
                let elsewhere = at.heard_at != watched.heard_at;
                let vain = if elsewhere { 0 } else { watched.vain + 1 };
                let counted = if elsewhere { 0 } else { watched.counted + u64::from(one_is_here) };
                if vain >= LOOKS_IN_VAIN {
                    let away = Millis::new(self.interval.get().saturating_mul(counted.max(1)));
                    told.push(Told { org, host, away });
                }
                watched = Watched { heard_at: at.heard_at, vain, counted, quiet: None };
            }
            self.hosts.insert(host, watched);
        }
        told
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use uuid::Uuid;

    use super::*;

    const MINUTE: Millis = Millis::from_minutes(1);

    fn looked(is_here: bool, heard_at: u64) -> Looked {
        let (org, host) = (OrgId::from_uuid(Uuid::from_u128(1)), HostId::from_uuid(Uuid::from_u128(2)));
        Looked { org, host, is_here, heard_at: Position::new(heard_at) }
    }

    /// What is told of it, while another agent is here all the time.
    fn away(watch: &mut AgentWatch, looked: Looked) -> Option<Millis> {
        let host = HostId::from_uuid(Uuid::from_u128(3));
        let other = Looked { host, is_here: true, ..looked };
        watch.look(&[looked, other]).iter().find(|told| told.host == looked.host).map(|told| told.away)
    }

    #[test]
    fn an_agent_that_is_here_is_told_at_once_and_now_and_then() {
        let mut watch = AgentWatch::new(MINUTE);
        let told: Vec<_> = (0..11).map(|_| away(&mut watch, looked(true, 0)).is_some()).collect();
        let first_of_five: Vec<_> = (0..11).map(|look| look % 5 == 0).collect();
        assert_eq!(told, first_of_five);
    }

    #[test]
    fn an_agent_that_stays_away_is_told_with_how_long_until_it_is_back() {
        let mut watch = AgentWatch::new(MINUTE);
        away(&mut watch, looked(true, 0));
        // Its own word has come back to this process by the first of these looks.
        let told: Vec<_> = (0..9).map(|_| away(&mut watch, looked(false, 7))).collect();
        let minutes = |minutes| Some(Millis::from_minutes(minutes));
        assert_eq!(told, [None, None, None, None, None, None, minutes(6), minutes(7), minutes(8)]);
        assert_eq!(away(&mut watch, looked(true, 7)), Some(Millis::ZERO));
        assert_eq!(away(&mut watch, looked(false, 9)), None, "from the beginning");
    }

    #[test]
    fn an_agent_that_is_connected_to_another_process_is_missed_by_none() {
        let mut watch = AgentWatch::new(MINUTE);
        for look in 0..100 {
            // The other one tells it at every fifth of its looks.
            assert_eq!(away(&mut watch, looked(false, look / 5)), None);
        }
    }

    #[test]
    fn a_machine_that_was_off_meanwhile_is_looked_for_anew() {
        let mut watch = AgentWatch::new(MINUTE);
        (0..5).for_each(|_| assert_eq!(away(&mut watch, looked(false, 0)), None));
        watch.look(&[]);
        (0..5).for_each(|_| assert_eq!(away(&mut watch, looked(false, 0)), None));
    }
    #[test]
    fn where_none_gets_through_they_are_missed_and_no_time_counts_against_them() {
        let mut watch = AgentWatch::new(MINUTE);
        let other = |is_here| Looked { host: HostId::from_uuid(Uuid::from_u128(3)), ..looked(is_here, 0) };
        for _ in 0..100 {
            let told = watch.look(&[looked(false, 0), other(false)]);
            assert!(told.iter().all(|told| told.away == MINUTE), "{told:?}");
        }
        // One is back: from here on it counts against the other one.
        for minutes in 1..=3 {
            let told = watch.look(&[looked(false, 0), other(true)]);
            assert_eq!(told.iter().find(|told| told.away > Millis::ZERO).unwrap().away, Millis::from_minutes(minutes));
        }
        // Nobody can say of the only one whether it is the way in.
        let mut watch = AgentWatch::new(MINUTE);
        let told: Vec<_> =
            (0..100).filter_map(|_| watch.look(&[looked(false, 0)]).first().map(|told| told.away)).collect();
        assert_eq!(told, [MINUTE; 95]);
    }
}
