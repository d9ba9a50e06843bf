//! Hosts: machines that belong to exactly one organization, and what is placed on them.
//!
//! INVARIANT: a host never holds workspaces of two organizations (SPEC, rule 1). Held here, and again by the claim on
//! the machine, by the planner and by the agent.

use std::collections::BTreeMap;

use crate::access::Action;
use crate::aggregate::{Aggregate, Refusal, RefusalKind};
use crate::commit::StreamKind;
use crate::event::Event;
use crate::ids::{HostId, OrgId, WorkspaceId};
use crate::limits;
use crate::secret::TokenDigest;
use crate::slug::HostName;
use crate::time::{Millis, UnixMillis};

/// Who provides a machine whose agent enrolled.
pub const AGENT_PROVIDER: &str = "agent";

/// CPU and memory, as a host offers or a workspace needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Capacity {
    pub cpu_millicores: u32,
    pub memory_mib: u32,
}

impl Capacity {
    pub fn fits_into(&self, room: &Self) -> bool {
        self.cpu_millicores <= room.cpu_millicores && self.memory_mib <= room.memory_mib
    }

    pub fn minus(&self, taken: &Self) -> Self {
        Self {
            cpu_millicores: self.cpu_millicores.saturating_sub(taken.cpu_millicores),
            memory_mib: self.memory_mib.saturating_sub(taken.memory_mib),
        }
    }

    pub fn plus(&self, more: &Self) -> Self {
        Self {
            cpu_millicores: self.cpu_millicores.saturating_add(more.cpu_millicores),
            memory_mib: self.memory_mib.saturating_add(more.memory_mib),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostEvent {
    /// `machine` is the provider's own key of the machine, the same as in its claim.
    Registered {
        host: HostId,
        org: OrgId,
        provider: String,
        machine: String,
        capacity: Capacity,
    },
    Placed {
        workspace: WorkspaceId,
        needs: Capacity,
    },
    Released {
        workspace: WorkspaceId,
    },
    Retired,
    /// An agent may enrol as this host once, until then. The token itself is shown to whoever asked for it and never stored.
    EnrolmentIssued {
        host: HostId,
        org: OrgId,
        name: HostName,
        token: TokenDigest,
        expires_at: UnixMillis,
    },
    /// An agent used the token. Certificates of earlier enrolments count for nothing from here on.
    Enrolled {
        enrolment: u32,
        certificate: TokenDigest,
        certificate_expires_at: UnixMillis,
        agent_version: String,
    },
    /// Said once in `limits::RENEWAL_RECORD_INTERVAL` at most, however often an agent renews.
    CertificateRenewed {
        certificate: TokenDigest,
        certificate_expires_at: UnixMillis,
    },
    /// A process that agents connect to looked for the agent of a machine that is up. It is there where `away` is zero, else it is missed:
    /// for so long another one got through to that process, which was there all the time; one look's length where none did.
    AgentLookedFor {
        away: Millis,
    },
    /// Nothing more is placed there.
    Draining,
    /// Its agent is trusted no more, and neither is what it says of runtimes.
    Revoked,
}

/// What an agent says of itself when it enrols.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enrolling {
    pub host: HostId,
    pub org: OrgId,
    pub token: TokenDigest,
    pub machine: String,
    pub capacity: Capacity,
    pub certificate: TokenDigest,
    pub certificate_expires_at: UnixMillis,
    pub agent_version: String,
    pub now: UnixMillis,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostCommand {
    Register {
        host: HostId,
        org: OrgId,
        provider: String,
        machine: String,
        capacity: Capacity,
    },
    Place {
        workspace: WorkspaceId,
        org: OrgId,
        needs: Capacity,
    },
    Release {
        workspace: WorkspaceId,
    },
    Retire,
    /// For a new host, or once more for one whose agent lost its certificate.
    IssueEnrolment {
        host: HostId,
        org: OrgId,
        name: HostName,
        token: TokenDigest,
        lifetime: Millis,
        now: UnixMillis,
    },
    Enrol(Enrolling),
    RecordRenewal {
        enrolment: u32,
        certificate: TokenDigest,
        certificate_expires_at: UnixMillis,
        now: UnixMillis,
    },
    /// What came of looking for its agent; see [`HostEvent::AgentLookedFor`].
    RecordLook {
        away: Millis,
    },
    Drain,
    Revoke,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Host {
    #[default]
    Unknown,
    /// An agent may enrol as it; none has.
    Expected(ExpectedHost),
    Active(ActiveHost),
    Retired,
    Revoked,
}

/// An enrolment that an agent may use once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enrolment {
    pub token: TokenDigest,
    pub expires_at: UnixMillis,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpectedHost {
    pub host: HostId,
    pub org: OrgId,
    pub name: HostName,
    pub enrolment: Enrolment,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActiveHost {
    pub host: HostId,
    pub org: OrgId,
    pub machine: String,
    pub capacity: Capacity,
    pub placed: BTreeMap<WorkspaceId, Capacity>,
    /// Nothing more is placed here.
    pub draining: bool,
    /// `None` for a host without an agent of its own: it is this machine's.
    pub agent: Option<TrustedAgent>,
}

/// What is known of a host's agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustedAgent {
    pub name: HostName,
    /// Which enrolment its certificates must be of; 1 is the first, 0 none yet.
    pub enrolment: u32,
    /// The token of that enrolment, which is used up.
    pub used: Option<TokenDigest>,
    /// Another enrolment that was issued since.
    pub next: Option<Enrolment>,
    /// When a certificate's end was last recorded, and that end.
    pub certificate_expires_at: UnixMillis,
}

impl ActiveHost {
    pub fn room(&self) -> Capacity {
        self.placed.values().fold(self.capacity, |room, taken| room.minus(taken))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostRefusal {
    #[error("there is no such host")]
    Unknown,
    #[error("the host is registered already")]
    Registered,
    #[error("the host is retired")]
    Retired,
    #[error("the host belongs to another organization")]
    CrossOrganization,
    #[error("the workspace needs {} millicores and {} MiB, the host has {} and {} left", .needs.cpu_millicores, .needs.memory_mib, .room.cpu_millicores, .room.memory_mib)]
    NoRoom { needs: Capacity, room: Capacity },
    #[error("the host still holds {count} workspaces; release them first")]
    NotEmpty { count: usize },
    #[error("the host is being drained: nothing more is placed on it")]
    Draining,
    #[error("the host was revoked")]
    Revoked,
    #[error("a host without an agent belongs to its machine: it enrols nowhere")]
    NoAgent,
    #[error("an enrolment may be used for {min} to {max}")]
    EnrolmentLifetime { min: Millis, max: Millis },
    #[error("this enrolment token is not of this host and organization: issue one with `envforge host enrol`")]
    EnrolmentUnknown,
    #[error("this enrolment token was used already: it works once")]
    EnrolmentUsed,
    #[error("this enrolment token has expired: issue another one")]
    EnrolmentExpired,
    #[error("this host is another machine: issue an enrolment for a host of its own")]
    OtherMachine,
    #[error("this certificate is of an enrolment that another one has replaced")]
    EnrolmentReplaced,
}

impl Refusal for HostRefusal {
    fn code(&self) -> &'static str {
        match self {
            Self::Unknown => "host_unknown",
            Self::Registered => "host_registered",
            Self::Retired => "host_retired",
            Self::CrossOrganization => "host_cross_organization",
            Self::NoRoom { .. } => "host_no_room",
            Self::NotEmpty { .. } => "host_not_empty",
            Self::Draining => "host_draining",
            Self::Revoked => "host_revoked",
            Self::NoAgent => "host_without_agent",
            Self::EnrolmentLifetime { .. } => "enrolment_lifetime",
            Self::EnrolmentUnknown => "enrolment_unknown",
            Self::EnrolmentUsed => "enrolment_used",
            Self::EnrolmentExpired => "enrolment_expired",
            Self::OtherMachine => "host_other_machine",
            Self::EnrolmentReplaced => "enrolment_replaced",
        }
    }

    fn kind(&self) -> RefusalKind {
        match self {
            Self::Unknown => RefusalKind::NotFound,
            Self::Registered
            | Self::NoRoom { .. }
            | Self::NotEmpty { .. }
            | Self::Draining
            | Self::NoAgent
            | Self::OtherMachine => RefusalKind::Conflict,
            Self::Retired | Self::Revoked | Self::EnrolmentUsed | Self::EnrolmentExpired => RefusalKind::Gone,
            Self::CrossOrganization | Self::EnrolmentUnknown | Self::EnrolmentReplaced => RefusalKind::Forbidden,
            Self::EnrolmentLifetime { .. } => RefusalKind::Invalid,
        }
    }

    fn bounds(&self) -> Vec<(&'static str, u64)> {
        match self {
            Self::EnrolmentLifetime { min, max } => vec![("min_ms", min.get()), ("max_ms", max.get())],
            Self::Unknown
            | Self::Registered
            | Self::Retired
            | Self::CrossOrganization
            | Self::NoRoom { .. }
            | Self::NotEmpty { .. }
            | Self::Draining
            | Self::Revoked
            | Self::NoAgent
            | Self::EnrolmentUnknown
            | Self::EnrolmentUsed
            | Self::EnrolmentExpired
            | Self::OtherMachine
            | Self::EnrolmentReplaced => vec![],
        }
    }
}

impl Aggregate for Host {
    const KIND: StreamKind = StreamKind::Host;
    type State = Self;
    type Command = HostCommand;
    type Event = HostEvent;
    type Refusal = HostRefusal;

    fn decide(state: &Self, command: &HostCommand) -> Result<Vec<HostEvent>, HostRefusal> {
        match (state, command) {
            (Self::Unknown, HostCommand::Register { host, org, provider, machine, capacity }) => {
                Ok(vec![HostEvent::Registered {
                    host: *host,
                    org: *org,
                    provider: provider.clone(),
                    machine: machine.clone(),
                    capacity: *capacity,
                }])
            }
            (Self::Active(active), HostCommand::Register { host, org, machine, .. })
                if active.host == *host && active.org == *org && active.machine == *machine =>
            {
                Ok(vec![])
            }
            (Self::Active(_) | Self::Expected(_), HostCommand::Register { .. }) => Err(HostRefusal::Registered),
            (Self::Active(active), HostCommand::Place { workspace, org, needs }) => {
                if active.org != *org {
                    return Err(HostRefusal::CrossOrganization);
                }
                if active.placed.get(workspace) == Some(needs) {
                    return Ok(vec![]);
                }
                if active.draining {
                    return Err(HostRefusal::Draining);
                }
                let mut without = active.clone();
                without.placed.remove(workspace);
                let room = without.room();
                if !needs.fits_into(&room) {
                    return Err(HostRefusal::NoRoom { needs: *needs, room });
                }
                Ok(vec![HostEvent::Placed { workspace: *workspace, needs: *needs }])
            }
            (Self::Active(active), HostCommand::Release { workspace }) => {
                Ok(if active.placed.contains_key(workspace) {
                    vec![HostEvent::Released { workspace: *workspace }]
                } else {
                    vec![]
                })
            }
            (Self::Active(active), HostCommand::Retire) => match active.placed.len() {
                0 => Ok(vec![HostEvent::Retired]),
                count => Err(HostRefusal::NotEmpty { count }),
            },
            (Self::Expected(_), HostCommand::Retire) => Ok(vec![HostEvent::Retired]),
            (_, HostCommand::IssueEnrolment { host, org, name, token, lifetime, now }) => {
                state.issue(*host, *org, name, *token, *lifetime, *now)
            }
            (_, HostCommand::Enrol(enrolling)) => state.enrol(enrolling),
            (
                Self::Active(ActiveHost { agent: Some(agent), .. }),
                HostCommand::RecordRenewal { enrolment, certificate, certificate_expires_at, now },
            ) => {
                if agent.enrolment != *enrolment {
                    return Err(HostRefusal::EnrolmentReplaced);
                }
                // What was recorded last says when: its end lies a certificate's life behind it.
                let gained = certificate_expires_at.since(agent.certificate_expires_at);
                if gained < limits::RENEWAL_RECORD_INTERVAL || *certificate_expires_at <= *now {
                    return Ok(vec![]);
                }
                Ok(vec![HostEvent::CertificateRenewed {
                    certificate: *certificate,
                    certificate_expires_at: *certificate_expires_at,
                }])
            }
            (Self::Active(ActiveHost { agent: Some(_), .. }), HostCommand::RecordLook { away }) => {
                Ok(vec![HostEvent::AgentLookedFor { away: *away }])
            }
            (
                Self::Active(_) | Self::Expected(_),
                HostCommand::RecordRenewal { .. } | HostCommand::RecordLook { .. },
            ) => Err(HostRefusal::NoAgent),
            (Self::Active(active), HostCommand::Drain) => {
                Ok(if active.draining { vec![] } else { vec![HostEvent::Draining] })
            }
            (Self::Active(ActiveHost { agent: Some(_), .. }) | Self::Expected(_), HostCommand::Revoke) => {
                Ok(vec![HostEvent::Revoked])
            }
            (Self::Active(_), HostCommand::Revoke) => Err(HostRefusal::NoAgent),
            (Self::Retired, HostCommand::Retire) | (Self::Revoked, HostCommand::Revoke) => Ok(vec![]),
            // Its room is nobody's any more.
            (Self::Revoked, HostCommand::Release { .. }) => Ok(vec![]),
            (
                Self::Revoked,
                HostCommand::Register { .. }
                | HostCommand::Place { .. }
                | HostCommand::Retire
                | HostCommand::RecordRenewal { .. }
                | HostCommand::RecordLook { .. }
                | HostCommand::Drain,
            ) => Err(HostRefusal::Revoked),
            (
                Self::Retired,
                HostCommand::Register { .. }
                | HostCommand::Place { .. }
                | HostCommand::Release { .. }
                | HostCommand::RecordRenewal { .. }
                | HostCommand::RecordLook { .. }
                | HostCommand::Drain
                | HostCommand::Revoke,
            ) => Err(HostRefusal::Retired),
            (
                Self::Unknown,
                HostCommand::Place { .. }
                | HostCommand::Release { .. }
                | HostCommand::Retire
                | HostCommand::RecordRenewal { .. }
                | HostCommand::RecordLook { .. }
                | HostCommand::Drain
                | HostCommand::Revoke,
            )
            | (Self::Expected(_), HostCommand::Place { .. } | HostCommand::Release { .. } | HostCommand::Drain) => {
                Err(HostRefusal::Unknown)
            }
        }
    }

    fn evolve(state: Self, event: &HostEvent) -> Self {
        match (state, event) {
            (state, HostEvent::Registered { host, org, machine, capacity, .. }) => {
                let agent = match state {
                    // Who was expected has come; `Enrolled` follows in the same commit.
                    Self::Expected(expected) => Some(TrustedAgent {
                        name: expected.name,
                        enrolment: 0,
                        used: None,
                        next: Some(expected.enrolment),
                        certificate_expires_at: UnixMillis::EPOCH,
                    }),
                    Self::Unknown | Self::Active(_) | Self::Retired | Self::Revoked => None,
                };
                Self::Active(ActiveHost {
                    host: *host,
                    org: *org,
                    machine: machine.clone(),
                    capacity: *capacity,
                    placed: BTreeMap::new(),
                    draining: false,
                    agent,
                })
            }
            (Self::Active(mut active), HostEvent::Placed { workspace, needs }) => {
                active.placed.insert(*workspace, *needs);
                Self::Active(active)
            }
            (Self::Active(mut active), HostEvent::Released { workspace }) => {
                active.placed.remove(workspace);
                Self::Active(active)
            }
            (Self::Active(_) | Self::Expected(_), HostEvent::Retired) => Self::Retired,
            (Self::Active(_) | Self::Expected(_), HostEvent::Revoked) => Self::Revoked,
            (Self::Active(mut active), HostEvent::Draining) => {
                active.draining = true;
                Self::Active(active)
            }
            (Self::Active(mut active), HostEvent::EnrolmentIssued { name, token, expires_at, .. }) => {
                if let Some(agent) = &mut active.agent {
                    agent.name = name.clone();
                    agent.next = Some(Enrolment { token: *token, expires_at: *expires_at });
                }
                Self::Active(active)
            }
            (Self::Unknown | Self::Expected(_), HostEvent::EnrolmentIssued { host, org, name, token, expires_at }) => {
                Self::Expected(ExpectedHost {
                    host: *host,
                    org: *org,
                    name: name.clone(),
                    enrolment: Enrolment { token: *token, expires_at: *expires_at },
                })
            }
            (Self::Active(mut active), HostEvent::Enrolled { enrolment, certificate_expires_at, .. }) => {
                if let Some(agent) = &mut active.agent {
                    agent.enrolment = *enrolment;
                    agent.used = agent.next.take().map(|used| used.token);
                    agent.certificate_expires_at = *certificate_expires_at;
                }
                // It comes back empty and willing.
                active.draining = false;
                Self::Active(active)
            }
            (Self::Active(mut active), HostEvent::CertificateRenewed { certificate_expires_at, .. }) => {
                if let Some(agent) = &mut active.agent {
                    agent.certificate_expires_at = *certificate_expires_at;
                }
                Self::Active(active)
            }
            // Whoever looks after machines counts it.
            (state, HostEvent::AgentLookedFor { .. }) => state,
            (
                state @ (Self::Unknown | Self::Expected(_) | Self::Retired | Self::Revoked),
                HostEvent::Placed { .. }
                | HostEvent::Released { .. }
                | HostEvent::Retired
                | HostEvent::EnrolmentIssued { .. }
                | HostEvent::Enrolled { .. }
                | HostEvent::CertificateRenewed { .. }
                | HostEvent::Draining
                | HostEvent::Revoked,
            ) => state,
        }
    }

    fn event_of(event: &Event) -> Option<&HostEvent> {
        if let Event::Host(event) = event { Some(event) } else { None }
    }

    fn action_of(command: &HostCommand) -> Action {
        match command {
            HostCommand::Register { .. } | HostCommand::Retire => Action::HostRegister,
            HostCommand::Place { .. } | HostCommand::Release { .. } => Action::HostPlace,
            HostCommand::IssueEnrolment { .. } => Action::HostEnrol,
            HostCommand::Enrol(_) | HostCommand::RecordRenewal { .. } | HostCommand::RecordLook { .. } => {
                Action::HostRegister
            }
            HostCommand::Drain => Action::HostDrain,
            HostCommand::Revoke => Action::HostRevoke,
        }
    }
}

impl Host {
    fn issue(
        &self,
        host: HostId,
        org: OrgId,
        name: &HostName,
        token: TokenDigest,
        lifetime: Millis,
        now: UnixMillis,
    ) -> Result<Vec<HostEvent>, HostRefusal> {
        match self {
            Self::Unknown | Self::Expected(_) | Self::Active(ActiveHost { agent: Some(_), .. }) => {}
            Self::Active(_) => return Err(HostRefusal::NoAgent),
            Self::Retired => return Err(HostRefusal::Retired),
            Self::Revoked => return Err(HostRefusal::Revoked),
        }
        let (min, max) = (limits::ENROLMENT_LIFETIME_MIN, limits::ENROLMENT_LIFETIME_MAX);
        if lifetime < min || lifetime > max {
            return Err(HostRefusal::EnrolmentLifetime { min, max });
        }
        let (name, expires_at) = (name.clone(), now.plus(lifetime));
        Ok(vec![HostEvent::EnrolmentIssued { host, org, name, token, expires_at }])
    }

    /// Whether a token lets an agent enrol now. `HostCommand::Enrol` asks the same before all else.
    ///
    /// # Errors
    /// Why not.
    pub fn opens_to(&self, token: TokenDigest, now: UnixMillis) -> Result<(), HostRefusal> {
        let (open, used) = match self {
            Self::Expected(expected) => (Some(&expected.enrolment), None),
            Self::Active(ActiveHost { agent: Some(agent), .. }) => (agent.next.as_ref(), agent.used),
            Self::Unknown | Self::Active(_) => (None, None),
            Self::Retired => return Err(HostRefusal::Retired),
            Self::Revoked => return Err(HostRefusal::Revoked),
        };
        match open {
            _ if used == Some(token) => Err(HostRefusal::EnrolmentUsed),
            Some(open) if open.token == token && now < open.expires_at => Ok(()),
            Some(open) if open.token == token => Err(HostRefusal::EnrolmentExpired),
            Some(_) | None => Err(HostRefusal::EnrolmentUnknown),
        }
    }

    fn enrol(&self, enrolling: &Enrolling) -> Result<Vec<HostEvent>, HostRefusal> {
        self.opens_to(enrolling.token, enrolling.now)?;
        let enrolled = |enrolment| HostEvent::Enrolled {
            enrolment,
            certificate: enrolling.certificate,
            certificate_expires_at: enrolling.certificate_expires_at,
            agent_version: enrolling.agent_version.clone(),
        };
        match self {
            Self::Expected(expected) => {
                if expected.org != enrolling.org || expected.host != enrolling.host {
                    return Err(HostRefusal::EnrolmentUnknown);
                }
                let registered = HostEvent::Registered {
                    host: enrolling.host,
                    org: enrolling.org,
                    provider: AGENT_PROVIDER.to_owned(),
                    machine: enrolling.machine.clone(),
                    capacity: enrolling.capacity,
                };
                Ok(vec![registered, enrolled(1)])
            }
            Self::Active(ActiveHost { org, host, machine, agent: Some(agent), .. }) => {
                if *org != enrolling.org || *host != enrolling.host {
                    return Err(HostRefusal::EnrolmentUnknown);
                }
                if *machine != enrolling.machine {
                    return Err(HostRefusal::OtherMachine);
                }
                Ok(vec![enrolled(agent.enrolment.saturating_add(1))])
            }
            Self::Unknown | Self::Active(_) => Err(HostRefusal::EnrolmentUnknown),
            Self::Retired => Err(HostRefusal::Retired),
            Self::Revoked => Err(HostRefusal::Revoked),
        }
    }
}

impl From<HostEvent> for Event {
    fn from(event: HostEvent) -> Self {
        Self::Host(event)
    }
}
