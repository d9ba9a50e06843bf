//! Machines: virtual machines of a provider, from the request to the end, each for one organization and one purpose.
//!
//! A machine bears the id of the host that lives on it. What runs there stands on the host's stream (`host`); here is what
//! the provider was asked for and what it said. Strange machines, which carry EnvForge's tags and which nobody asked for,
//! have a stream of their own each, by the provider's key, in no organization.
//!
//! INVARIANT: a machine never changes its organization, its purpose or its instance. Not here: which machines are wanted
//! (the fleet's planner), talking to the provider.

use crate::access::Action;
use crate::aggregate::{Aggregate, Refusal, RefusalKind};
use crate::commit::StreamKind;
use crate::event::Event;
use crate::host::Capacity;
use crate::ids::{HostId, OrgId};
use crate::limits::MACHINE_USE_INTERVAL;
use crate::time::UnixMillis;

/// What a machine is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MachinePurpose {
    /// Shells and checkouts: up for as long as the organization has workspaces.
    Shell,
    /// Runtimes: up while one of them is awake.
    Runtime,
}

impl MachinePurpose {
    pub const ALL: [Self; 2] = [Self::Shell, Self::Runtime];

    pub const fn token(self) -> &'static str {
        match self {
            Self::Shell => "shell",
            Self::Runtime => "runtime",
        }
    }

    pub fn from_token(token: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|purpose| purpose.token() == token)
    }
}

/// What was asked for, and never changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineTerms {
    pub host: HostId,
    pub org: OrgId,
    pub purpose: MachinePurpose,
    /// `aws-ec2`.
    pub provider: String,
    /// The provider's name of the size: `m7g.large`.
    pub shape: String,
    pub capacity: Capacity,
}

/// Why a machine is started, stopped, drained or ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineCause {
    /// A workspace needs it.
    Demand,
    /// The organization's warm pool has too few, or too many.
    WarmPool,
    /// Nothing was awake on it for the grace.
    Idle,
    /// It failed its health checks; another one takes its place.
    Unhealthy,
    /// It was started or stopped by somebody else.
    Drift,
    /// An operator asked for it.
    Operator,
    /// The organization has no workspace any more, or another machine does its work.
    Unused,
    /// It was to hibernate, and the provider does not hibernate it.
    NoHibernation,
    /// Somebody reads the logs of a workspace that lies there, asleep.
    Logs,
    /// Somebody opens a shell of a workspace that lies there.
    Shell,
}

/// Why a provider did not start a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartFailure {
    /// It has no capacity for it now.
    Capacity,
    /// The account's quota is used up.
    Quota,
    /// It refuses the request.
    Refused,
    /// It took the request, and the machine stopped again without having been up.
    StoppedAgain,
}

impl StartFailure {
    pub const fn token(self) -> &'static str {
        match self {
            Self::Capacity => "capacity",
            Self::Quota => "quota",
            Self::Refused => "refused",
            Self::StoppedAgain => "stopped_again",
        }
    }
}

/// How a machine is to be put aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// Memory is lost, disks stay.
    Stop,
    /// Memory is written to the encrypted disk.
    Hibernate,
}

/// How a machine came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineEnd {
    /// As it was asked for.
    Terminated,
    /// The provider does not know it any more, or ended it by itself.
    Vanished,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MachineEvent {
    /// The launch's token is made of the id of this event's commit.
    Requested {
        terms: MachineTerms,
        cause: MachineCause,
    },
    /// The provider made this instance for the request.
    Launched {
        instance: String,
    },
    /// The provider will not make one for this request.
    LaunchFailed {
        reason: String,
    },
    StartRequested {
        cause: MachineCause,
    },
    Started,
    /// It is off as before; whoever wants it up asks anew.
    StartFailed {
        why: StartFailure,
        reason: String,
    },
    StopRequested {
        mode: StopMode,
        cause: MachineCause,
    },
    Stopped {
        mode: StopMode,
    },
    /// The provider's status checks of it fail, and have for long enough to be believed: no runtime comes there until they pass.
    ChecksFailed,
    ChecksPassed,
    /// It failed its health checks for long enough to be replaced.
    Unhealthy {
        reason: String,
    },
    /// Takes no more workspaces; ends once those on it are elsewhere.
    Draining {
        cause: MachineCause,
    },
    TerminationRequested {
        cause: MachineCause,
    },
    Terminated {
        end: MachineEnd,
    },
    /// Somebody needed it up then, with nothing awake there: it is not stopped for idleness for `limits::MACHINE_USE_LASTS`.
    Used {
        cause: MachineCause,
        at: UnixMillis,
    },
    /// An instance with EnvForge's tags that no request explains. It is never adopted and never touched.
    StrangeReported {
        instance: String,
        reason: String,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MachineCommand {
    Request {
        terms: MachineTerms,
        cause: MachineCause,
    },
    /// `org` and `host` as the instance's own tags say, read after the launch.
    ReportLaunched {
        instance: String,
        org: OrgId,
        host: HostId,
    },
    ReportLaunchFailed {
        reason: String,
    },
    Start {
        cause: MachineCause,
    },
    ReportStarted,
    ReportStartFailed {
        why: StartFailure,
        reason: String,
    },
    Stop {
        mode: StopMode,
        cause: MachineCause,
    },
    ReportStopped,
    /// What the provider's status checks of one that is up say.
    ReportChecks {
        failing: bool,
    },
    ReportUnhealthy {
        reason: String,
    },
    Drain {
        cause: MachineCause,
    },
    /// `placed`: how many workspaces the host's stream still has on it.
    Terminate {
        cause: MachineCause,
        placed: usize,
    },
    ReportTerminated {
        end: MachineEnd,
    },
    /// Keeps up what is up, for somebody who is there; starts nothing.
    Use {
        cause: MachineCause,
        now: UnixMillis,
    },
    ReportStrange {
        instance: String,
        reason: String,
    },
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Machine {
    #[default]
    Unknown,
    /// Asked for; the provider has not answered yet.
    Requested {
        terms: MachineTerms,
    },
    Live(LiveMachine),
    Over {
        terms: MachineTerms,
        /// `None` where none was ever launched.
        instance: Option<String>,
    },
    /// A strange one.
    Strange,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveMachine {
    pub terms: MachineTerms,
    pub instance: String,
    pub power: Power,
    /// Its status checks fail, since it was last up.
    pub impaired: bool,
    pub unhealthy: bool,
    pub draining: bool,
    /// When somebody last said that they need it up, with nothing awake there.
    pub used_at: UnixMillis,
}

/// Where a live machine stands between on and off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    Starting,
    On,
    Stopping(StopMode),
    Off(StopMode),
    Ending,
}

impl Machine {
    pub fn terms(&self) -> Option<&MachineTerms> {
        match self {
            Self::Requested { terms } | Self::Over { terms, .. } => Some(terms),
            Self::Live(live) => Some(&live.terms),
            Self::Unknown | Self::Strange => None,
        }
    }

    pub fn instance(&self) -> Option<&str> {
        match self {
            Self::Live(live) => Some(&live.instance),
            Self::Over { instance, .. } => instance.as_deref(),
            Self::Unknown | Self::Requested { .. } | Self::Strange => None,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MachineRefusal {
    #[error("there is no such machine")]
    Unknown,
    #[error("the machine was requested already, on other terms")]
    Requested,
    #[error("no instance was launched for the machine yet")]
    NotLaunched,
    #[error("another instance was launched for the machine already")]
    OtherInstance,
    #[error("the machine belongs to another organization")]
    CrossOrganization,
    #[error("the machine is draining or failed its health checks; it is not started again")]
    Leaving,
    #[error("only a draining machine is terminated; drain it first")]
    NotDraining,
    #[error("the machine still holds {count} workspaces; release them first")]
    NotEmpty { count: usize },
    #[error("the machine is gone")]
    Over,
}

impl Refusal for MachineRefusal {
    fn code(&self) -> &'static str {
        match self {
            Self::Unknown => "machine_unknown",
            Self::Requested => "machine_requested",
            Self::NotLaunched => "machine_not_launched",
            Self::OtherInstance => "machine_other_instance",
            Self::CrossOrganization => "machine_cross_organization",
            Self::Leaving => "machine_leaving",
            Self::NotDraining => "machine_not_draining",
            Self::NotEmpty { .. } => "machine_not_empty",
            Self::Over => "machine_over",
        }
    }

    fn kind(&self) -> RefusalKind {
        match self {
            Self::Unknown => RefusalKind::NotFound,
            Self::Requested
            | Self::NotLaunched
            | Self::OtherInstance
            | Self::Leaving
            | Self::NotDraining
            | Self::NotEmpty { .. } => RefusalKind::Conflict,
            Self::CrossOrganization => RefusalKind::Forbidden,
            Self::Over => RefusalKind::Gone,
        }
    }
}

impl Aggregate for Machine {
    const KIND: StreamKind = StreamKind::Machine;
    type State = Self;
    type Command = MachineCommand;
    type Event = MachineEvent;
    type Refusal = MachineRefusal;

    fn decide(state: &Self, command: &MachineCommand) -> Result<Vec<MachineEvent>, MachineRefusal> {
        match (state, command) {
            (Self::Unknown, MachineCommand::Request { terms, cause }) => {
                Ok(vec![MachineEvent::Requested { terms: terms.clone(), cause: *cause }])
            }
            (Self::Unknown | Self::Strange, MachineCommand::ReportStrange { instance, reason }) => {
                Ok(if matches!(state, Self::Strange) {
                    vec![]
                } else {
                    vec![MachineEvent::StrangeReported { instance: instance.clone(), reason: reason.clone() }]
                })
            }
            (
                Self::Requested { terms } | Self::Live(LiveMachine { terms, .. }) | Self::Over { terms, .. },
                MachineCommand::Request { terms: asked, .. },
            ) => {
                if terms == asked {
                    Ok(vec![])
                } else if terms.org == asked.org {
                    Err(MachineRefusal::Requested)
                } else {
                    Err(MachineRefusal::CrossOrganization)
                }
            }
            (Self::Requested { terms }, command) => terms.decide_requested(command),
            (Self::Live(live), command) => live.decide(command),
            (Self::Over { instance, .. }, MachineCommand::ReportLaunched { instance: reported, .. }) => {
                if instance.as_ref() == Some(reported) { Ok(vec![]) } else { Err(MachineRefusal::Over) }
            }
            (Self::Over { .. }, MachineCommand::ReportTerminated { .. } | MachineCommand::Terminate { .. }) => {
                Ok(vec![])
            }
            (Self::Over { instance: None, .. }, MachineCommand::ReportLaunchFailed { .. }) => Ok(vec![]),
            (
                Self::Over { .. },
                MachineCommand::ReportLaunchFailed { .. }
                | MachineCommand::Start { .. }
                | MachineCommand::ReportStarted
                | MachineCommand::ReportStartFailed { .. }
                | MachineCommand::Stop { .. }
                | MachineCommand::ReportStopped
                | MachineCommand::ReportChecks { .. }
                | MachineCommand::ReportUnhealthy { .. }
                | MachineCommand::Drain { .. }
                | MachineCommand::Use { .. }
                | MachineCommand::ReportStrange { .. },
            ) => Err(MachineRefusal::Over),
            (
                Self::Unknown | Self::Strange,
                MachineCommand::Request { .. }
                | MachineCommand::ReportLaunched { .. }
                | MachineCommand::ReportLaunchFailed { .. }
                | MachineCommand::Start { .. }
                | MachineCommand::ReportStarted
                | MachineCommand::ReportStartFailed { .. }
                | MachineCommand::Stop { .. }
                | MachineCommand::ReportStopped
                | MachineCommand::ReportChecks { .. }
                | MachineCommand::ReportUnhealthy { .. }
                | MachineCommand::Drain { .. }
                | MachineCommand::Terminate { .. }
                | MachineCommand::Use { .. }
                | MachineCommand::ReportTerminated { .. },
            ) => Err(MachineRefusal::Unknown),
        }
    }

    fn evolve(state: Self, event: &MachineEvent) -> Self {
        match (state, event) {
            (_, MachineEvent::Requested { terms, .. }) => Self::Requested { terms: terms.clone() },
            (_, MachineEvent::StrangeReported { .. }) => Self::Strange,
            (Self::Requested { terms }, MachineEvent::Launched { instance }) => Self::Live(LiveMachine {
                terms,
                instance: instance.clone(),
                power: Power::Starting,
                impaired: false,
                unhealthy: false,
                draining: false,
                used_at: UnixMillis::EPOCH,
            }),
            (Self::Requested { terms }, MachineEvent::LaunchFailed { .. }) => Self::Over { terms, instance: None },
            (Self::Live(live), MachineEvent::Terminated { .. }) => {
                Self::Over { terms: live.terms, instance: Some(live.instance) }
            }
            (Self::Live(mut live), event) => {
                live.evolve(event);
                Self::Live(live)
            }
            (
                state @ (Self::Unknown | Self::Requested { .. } | Self::Over { .. } | Self::Strange),
                MachineEvent::Launched { .. }
                | MachineEvent::LaunchFailed { .. }
                | MachineEvent::StartRequested { .. }
                | MachineEvent::Started
                | MachineEvent::StartFailed { .. }
                | MachineEvent::StopRequested { .. }
                | MachineEvent::Stopped { .. }
                | MachineEvent::ChecksFailed
                | MachineEvent::ChecksPassed
                | MachineEvent::Unhealthy { .. }
                | MachineEvent::Draining { .. }
                | MachineEvent::TerminationRequested { .. }
                | MachineEvent::Used { .. }
                | MachineEvent::Terminated { .. },
            ) => state,
        }
    }

    fn event_of(event: &Event) -> Option<&MachineEvent> {
        if let Event::Machine(event) = event { Some(event) } else { None }
    }

    fn action_of(command: &MachineCommand) -> Action {
        match command {
            MachineCommand::Request { .. }
            | MachineCommand::Start { .. }
            | MachineCommand::Stop { .. }
            | MachineCommand::Drain { .. }
            | MachineCommand::Terminate { .. }
            | MachineCommand::Use { .. } => Action::MachineManage,
            MachineCommand::ReportLaunched { .. }
            | MachineCommand::ReportLaunchFailed { .. }
            | MachineCommand::ReportStarted
            | MachineCommand::ReportStartFailed { .. }
            | MachineCommand::ReportStopped
            | MachineCommand::ReportChecks { .. }
            | MachineCommand::ReportUnhealthy { .. }
            | MachineCommand::ReportTerminated { .. }
            | MachineCommand::ReportStrange { .. } => Action::MachineReport,
        }
    }
}

impl MachineTerms {
    fn decide_requested(&self, command: &MachineCommand) -> Result<Vec<MachineEvent>, MachineRefusal> {
        match command {
            MachineCommand::ReportLaunched { instance, org, host } => {
                if *org != self.org || *host != self.host {
                    return Err(MachineRefusal::CrossOrganization);
                }
                Ok(vec![MachineEvent::Launched { instance: instance.clone() }])
            }
            MachineCommand::ReportLaunchFailed { reason } => {
                Ok(vec![MachineEvent::LaunchFailed { reason: reason.clone() }])
            }
            MachineCommand::Request { .. }
            | MachineCommand::Start { .. }
            | MachineCommand::ReportStarted
            | MachineCommand::ReportStartFailed { .. }
            | MachineCommand::Stop { .. }
            | MachineCommand::ReportStopped
            | MachineCommand::ReportChecks { .. }
            | MachineCommand::ReportUnhealthy { .. }
            | MachineCommand::Drain { .. }
            | MachineCommand::Terminate { .. }
            | MachineCommand::Use { .. }
            | MachineCommand::ReportTerminated { .. }
            | MachineCommand::ReportStrange { .. } => Err(MachineRefusal::NotLaunched),
        }
    }
}

impl LiveMachine {
    /// Whether somebody who needs it up has to say so: nobody has just now. What was said by a clock that is ahead counts for nothing.
    pub fn is_to_be_told_of_use(&self, now: UnixMillis) -> bool {
        self.used_at > now || now.since(self.used_at) >= MACHINE_USE_INTERVAL
    }

    fn decide(&self, command: &MachineCommand) -> Result<Vec<MachineEvent>, MachineRefusal> {
        let ending = self.power == Power::Ending;
        match command {
            MachineCommand::ReportLaunched { instance, org, host } => {
                if *org != self.terms.org || *host != self.terms.host {
                    Err(MachineRefusal::CrossOrganization)
                } else if *instance == self.instance {
                    Ok(vec![])
                } else {
                    Err(MachineRefusal::OtherInstance)
                }
            }
            // A launch of the same token was given up while another one's answer came through.
            MachineCommand::ReportLaunchFailed { .. } => Err(MachineRefusal::OtherInstance),
            MachineCommand::Start { cause } => match self.power {
                Power::Ending => Err(MachineRefusal::Leaving),
                Power::Starting | Power::On => Ok(vec![]),
                Power::Stopping(_) | Power::Off(_) if self.draining || self.unhealthy => Err(MachineRefusal::Leaving),
                Power::Stopping(_) | Power::Off(_) => Ok(vec![MachineEvent::StartRequested { cause: *cause }]),
            },
            MachineCommand::ReportStarted => Ok(match self.power {
                Power::Starting => vec![MachineEvent::Started],
                // Somebody else started it.
                Power::Off(_) => {
                    vec![MachineEvent::StartRequested { cause: MachineCause::Drift }, MachineEvent::Started]
                }
                Power::On | Power::Stopping(_) | Power::Ending => vec![],
            }),
            MachineCommand::ReportStartFailed { why, reason } => Ok(match self.power {
                Power::Starting => vec![MachineEvent::StartFailed { why: *why, reason: reason.clone() }],
                Power::On | Power::Stopping(_) | Power::Off(_) | Power::Ending => vec![],
            }),
            MachineCommand::Stop { mode, cause } => Ok(match self.power {
                Power::Starting | Power::On => vec![MachineEvent::StopRequested { mode: *mode, cause: *cause }],
                Power::Stopping(StopMode::Hibernate) if *mode == StopMode::Stop => {
                    vec![MachineEvent::StopRequested { mode: *mode, cause: *cause }]
                }
                Power::Stopping(_) | Power::Off(_) | Power::Ending => vec![],
            }),
            MachineCommand::ReportStopped => Ok(match self.power {
                Power::Stopping(mode) => vec![MachineEvent::Stopped { mode }],
                // Somebody else stopped it, or it stopped itself.
                Power::On => vec![
                    MachineEvent::StopRequested { mode: StopMode::Stop, cause: MachineCause::Drift },
                    MachineEvent::Stopped { mode: StopMode::Stop },
                ],
                Power::Starting | Power::Off(_) | Power::Ending => vec![],
            }),
            MachineCommand::ReportChecks { failing } => Ok(match (self.power, self.impaired, *failing) {
                (Power::On, false, true) => vec![MachineEvent::ChecksFailed],
                (Power::On, true, false) => vec![MachineEvent::ChecksPassed],
                (Power::On, true, true) | (Power::On, false, false) => vec![],
                (Power::Starting | Power::Stopping(_) | Power::Off(_) | Power::Ending, _, _) => vec![],
            }),
            MachineCommand::ReportUnhealthy { reason } => Ok(if self.unhealthy || ending {
                vec![]
            } else {
                vec![MachineEvent::Unhealthy { reason: reason.clone() }]
            }),
            MachineCommand::Drain { cause } => {
                Ok(if self.draining || ending { vec![] } else { vec![MachineEvent::Draining { cause: *cause }] })
            }
            MachineCommand::Terminate { cause, placed } => {
                if ending {
                    Ok(vec![])
                } else if !self.draining {
                    Err(MachineRefusal::NotDraining)
                } else if *placed > 0 {
                    Err(MachineRefusal::NotEmpty { count: *placed })
                } else {
                    Ok(vec![MachineEvent::TerminationRequested { cause: *cause }])
                }
            }
            MachineCommand::ReportTerminated { end } => Ok(vec![MachineEvent::Terminated { end: *end }]),
            MachineCommand::Use { cause, now } => Ok(match self.power {
                Power::Starting | Power::On if self.is_to_be_told_of_use(*now) => {
                    vec![MachineEvent::Used { cause: *cause, at: *now }]
                }
                Power::Starting | Power::On | Power::Stopping(_) | Power::Off(_) | Power::Ending => vec![],
            }),
            MachineCommand::Request { .. } => Err(MachineRefusal::Requested),
            // Its own instance is not strange to it.
            MachineCommand::ReportStrange { .. } => Err(MachineRefusal::Requested),
        }
    }

    fn evolve(&mut self, event: &MachineEvent) {
        match event {
            MachineEvent::StartRequested { .. } => self.power = Power::Starting,
            MachineEvent::Started => (self.power, self.impaired) = (Power::On, false),
            MachineEvent::ChecksFailed => self.impaired = true,
            MachineEvent::ChecksPassed => self.impaired = false,
            // Whether its memory was still on its disk is not known any more.
            MachineEvent::StartFailed { .. } => self.power = Power::Off(StopMode::Stop),
            MachineEvent::StopRequested { mode, .. } => self.power = Power::Stopping(*mode),
            MachineEvent::Stopped { mode } => self.power = Power::Off(*mode),
            MachineEvent::Unhealthy { .. } => self.unhealthy = true,
            MachineEvent::Draining { .. } => self.draining = true,
            MachineEvent::TerminationRequested { .. } => self.power = Power::Ending,
            MachineEvent::Used { at, .. } => self.used_at = *at,
            MachineEvent::Requested { .. }
            | MachineEvent::Launched { .. }
            | MachineEvent::LaunchFailed { .. }
            | MachineEvent::Terminated { .. }
            | MachineEvent::StrangeReported { .. } => {}
        }
    }
}

impl From<MachineEvent> for Event {
    fn from(event: MachineEvent) -> Self {
        Self::Machine(event)
    }
}
