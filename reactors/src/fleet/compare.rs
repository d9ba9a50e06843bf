//! Holds what the provider shows against what the log says: what there is to report, and what there is to do.
//!
//! Level-triggered: nothing here depends on having seen an event, so that a crash between a call and its event, or a call
//! whose answer was lost, is made good by the next look. Pure.
//!
//! INVARIANT: nothing is done to an instance whose tags are not those of the machine that has it, and no instance becomes
//! a machine's unless its tags name that machine and its organization. What shows of a machine that is over is ended only where
//! that machine was never up: nobody's work lies there.

use std::collections::BTreeMap;

use envforge_domain::ids::HostId;
use envforge_domain::machine::{LiveMachine, Machine, MachineEnd, MachineTerms, Power, StopMode};
use envforge_runtime::{Instance, InstanceState};

use super::known::KnownMachine;

/// What the log does not know yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// The instance of a request whose answer was lost.
    Launched {
        host: HostId,
        instance: Instance,
    },
    Started {
        host: HostId,
    },
    Stopped {
        host: HostId,
    },
    Ended {
        host: HostId,
        end: MachineEnd,
    },
    /// The provider does not list it. It may only be late: looked for once more before it counts.
    Missing {
        host: HostId,
        instance: String,
    },
    /// The provider's status checks of it fail. It counts once they have for long enough.
    Impaired {
        host: HostId,
    },
    /// They fail by the log, and pass.
    Recovered {
        host: HostId,
    },
    Strange {
        instance: String,
        reason: String,
    },
}

/// What the provider has to be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    Launch { host: HostId, terms: MachineTerms },
    Start { terms: MachineTerms, instance: String },
    Stop { terms: MachineTerms, instance: String, mode: StopMode },
    Terminate { terms: MachineTerms, instance: String },
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compared {
    pub findings: Vec<Finding>,
    pub acts: Vec<Act>,
}

/// Compares the machines of one provider with its instances.
pub fn compare(provider: &str, machines: &BTreeMap<HostId, KnownMachine>, instances: &[Instance]) -> Compared {
    let mut compared = Compared::default();
    let by_instance: BTreeMap<&str, &KnownMachine> =
        machines.values().filter_map(|known| Some((known.state.instance()?, known))).collect();
    let mut found: BTreeMap<HostId, &Instance> = BTreeMap::new();
    for instance in instances {
        match judge(machines, &by_instance, instance) {
            Judged::Of(host) => {
                // Two instances of one request: the first is the machine's, whichever it is.
                if let Some(first) = found.insert(host, instance) {
                    found.insert(host, first);
                    compared.strange(instance, "another instance was launched for the same machine");
                }
            }
            Judged::Strange(reason) => compared.strange(instance, reason),
            Judged::Late(terms) => compared.acts.push(Act::Terminate { terms, instance: instance.id.clone() }),
            Judged::Past => {}
        }
    }
    let of_provider = |known: &&KnownMachine| known.state.terms().is_some_and(|terms| terms.provider == provider);
    for known in machines.values().filter(of_provider) {
        match &known.state {
            Machine::Requested { terms } => match found.get(&terms.host) {
                Some(instance) => {
                    compared.findings.push(Finding::Launched { host: terms.host, instance: (*instance).clone() });
                }
                None => compared.acts.push(Act::Launch { host: terms.host, terms: terms.clone() }),
            },
            Machine::Live(live) => {
                let listed = instances.iter().any(|instance| instance.id == live.instance);
                match found.get(&live.terms.host) {
                    Some(instance) => compared.live(live, instance),
                    // It is there under tags that are not its own: reported as strange, and left alone.
                    None if listed => {}
                    None => {
                        let (host, instance) = (live.terms.host, live.instance.clone());
                        compared.findings.push(Finding::Missing { host, instance });
                    }
                }
            }
            Machine::Unknown | Machine::Over { .. } | Machine::Strange => {}
        }
    }
    compared
}

enum Judged {
    /// The instance of this machine.
    Of(HostId),
    /// Of a machine that is over and never was up: it shows too late.
    Late(MachineTerms),
    /// Ended, of a machine that is over or of none: nobody's concern any more.
    Past,
    Strange(&'static str),
}

fn judge(
    machines: &BTreeMap<HostId, KnownMachine>,
    by_instance: &BTreeMap<&str, &KnownMachine>,
    instance: &Instance,
) -> Judged {
    let over = instance.state.is_over();
    let strange = |reason| if over { Judged::Past } else { Judged::Strange(reason) };
    let is_late = |known: &KnownMachine, terms: &MachineTerms| !over && !known.was_up && instance.tags.are_of(terms);
    // Whose it is according to the log goes before what its tags say.
    if let Some(known) = by_instance.get(instance.id.as_str()).copied() {
        return match &known.state {
            Machine::Over { terms, .. } if is_late(known, terms) => Judged::Late(terms.clone()),
            Machine::Live(live) if instance.tags.are_of(&live.terms) => Judged::Of(live.terms.host),
            // What has ended is reported whatever its tags have become.
            Machine::Live(live) if over => Judged::Of(live.terms.host),
            Machine::Live(_) => Judged::Strange("its tags are not those of the machine that it was launched for"),
            Machine::Unknown | Machine::Requested { .. } | Machine::Over { .. } | Machine::Strange => {
                strange("its machine is over")
            }
        };
    }
    let Some(known) = instance.tags.host.and_then(|host| machines.get(&host)) else {
        return strange("no machine was requested for its host");
    };
    match &known.state {
        Machine::Requested { terms } if instance.tags.are_of(terms) => Judged::Of(terms.host),
        Machine::Requested { .. } => strange("its tags are not those of the machine that was requested for its host"),
        Machine::Live(_) => strange("another instance was launched for its machine"),
        // Its launch was taken for one that failed.
        Machine::Over { terms, instance: None } if is_late(known, terms) => Judged::Late(terms.clone()),
        Machine::Unknown | Machine::Over { .. } | Machine::Strange => strange("its machine is over"),
    }
}

impl Compared {
    fn strange(&mut self, instance: &Instance, reason: &str) {
        self.findings.push(Finding::Strange { instance: instance.id.clone(), reason: reason.to_owned() });
    }

    fn live(&mut self, live: &LiveMachine, instance: &Instance) {
        let host = live.terms.host;
        let (terms, id) = (live.terms.clone(), live.instance.clone());
        match (live.power, instance.state) {
            (Power::Ending, InstanceState::Terminated) => {
                self.findings.push(Finding::Ended { host, end: MachineEnd::Terminated });
            }
            (_, InstanceState::Terminated) => self.findings.push(Finding::Ended { host, end: MachineEnd::Vanished }),
            (_, InstanceState::Ending) => {}
            (Power::Ending, _) => self.acts.push(Act::Terminate { terms, instance: id }),
            (Power::Starting | Power::Off(_), InstanceState::Running) => self.findings.push(Finding::Started { host }),
            (Power::Starting, InstanceState::Stopped) => self.acts.push(Act::Start { terms, instance: id }),
            (Power::On | Power::Stopping(_), InstanceState::Stopped) => self.findings.push(Finding::Stopped { host }),
            (Power::Stopping(mode), InstanceState::Running) => {
                self.acts.push(Act::Stop { terms, instance: id, mode });
            }
            (Power::On, InstanceState::Running) => {
                if instance.impaired && !live.unhealthy {
                    self.findings.push(Finding::Impaired { host });
                } else if live.impaired && !instance.impaired {
                    self.findings.push(Finding::Recovered { host });
                }
            }
            // On its way to where it is to be, or about to be there.
            (Power::Starting | Power::Stopping(_) | Power::Off(_) | Power::On, InstanceState::Pending)
            | (Power::Starting | Power::Stopping(_) | Power::Off(_) | Power::On, InstanceState::Stopping)
            | (Power::Off(_), InstanceState::Stopped) => {}
        }
    }
}
