//! Signed dev links: issue, use, sessions, allowlist, rotate, expire, revoke.
//!
//! A link opens the app surface of one service of one workspace until one instant. The log holds what was granted and
//! digests of session cookies, never a token or a cookie.

use std::collections::BTreeMap;

use crate::access::Action;
use crate::aggregate::{Aggregate, Refusal, RefusalKind};
use crate::commit::StreamKind;
use crate::denial::{KIND_REQUESTS_MAX, RefusedRequest};
use crate::event::Event;
use crate::ids::{HandoffId, LinkId, ProjectId, SessionId, UserId, WorkspaceId};
use crate::limits;
use crate::project::name_is_valid;
use crate::revocation::Receipt;
use crate::runtime::{Epoch, reason_is_valid};
use crate::secret::TokenDigest;
use crate::slug::ServiceName;
use crate::time::{Millis, UnixMillis};

/// One family of app-surface routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RouteFamily {
    Web,
    Api,
    Assets,
    Websockets,
    Marketing,
}

impl RouteFamily {
    pub const ALL: [Self; 5] = [Self::Web, Self::Api, Self::Assets, Self::Websockets, Self::Marketing];

    pub const fn token(self) -> &'static str {
        match self {
            Self::Web => "web",
            Self::Api => "api",
            Self::Assets => "assets",
            Self::Websockets => "websockets",
            Self::Marketing => "marketing",
        }
    }

    pub fn from_token(token: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|family| family.token() == token)
    }
}

/// A set of route families.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct RouteFamilies(u8);

impl RouteFamilies {
    pub const NONE: Self = Self(0);
    pub const ALL: Self = Self(0b1_1111);

    pub const fn with(self, family: RouteFamily) -> Self {
        Self(self.0 | 1 << family as u8)
    }

    pub const fn contains(self, family: RouteFamily) -> bool {
        self.0 & (1 << family as u8) != 0
    }

    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub const fn minus(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    pub fn iter(self) -> impl Iterator<Item = RouteFamily> {
        RouteFamily::ALL.into_iter().filter(move |family| self.contains(*family))
    }

    /// Tokens joined by commas, in a fixed order.
    pub fn display(self) -> String {
        self.iter().map(RouteFamily::token).collect::<Vec<_>>().join(", ")
    }
}

impl FromIterator<RouteFamily> for RouteFamilies {
    fn from_iter<T: IntoIterator<Item = RouteFamily>>(families: T) -> Self {
        families.into_iter().fold(Self::NONE, Self::with)
    }
}

/// Counts the tokens of one link: rotation makes every older one void.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Generation(pub u32);

/// Why a live session of a link ended with something other than the link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockedAttempts {
    /// The denial's code.
    pub code: String,
    pub count: u32,
    /// Some of them, in the order of time: the newest.
    pub requests: Vec<RefusedRequest>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DevLinkEvent {
    Issued {
        link: LinkId,
        project: ProjectId,
        workspace: WorkspaceId,
        service: ServiceName,
        families: RouteFamilies,
        issued_at: UnixMillis,
        expires_at: UnixMillis,
        label: String,
        /// Wakes that this link may cause; `None` for no limit of its own.
        wake_budget: Option<u32>,
        issued_by: UserId,
    },
    /// The first session of all.
    FirstUsed {
        at: UnixMillis,
    },
    SessionOpened {
        session: SessionId,
        handoff: HandoffId,
        cookie: TokenDigest,
        generation: Generation,
        expires_at: UnixMillis,
    },
    AllowlistChanged {
        families: RouteFamilies,
    },
    /// Older tokens and their sessions are void from here on.
    Rotated {
        generation: Generation,
        issued_at: UnixMillis,
        expires_at: UnixMillis,
    },
    WakeSpent {
        epoch: Epoch,
        session: SessionId,
    },
    AttemptsBlocked {
        attempts: Vec<BlockedAttempts>,
        since: UnixMillis,
        until: UnixMillis,
    },
    Expired,
    Revoked {
        reason: Option<String>,
    },
    RevocationRecorded {
        receipt: Receipt,
    },
}

/// What limits a link beyond itself: looked-up facts that ride in the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkLimits {
    /// The organization's longest link.
    pub lifetime_max: Millis,
    /// What the organization allows.
    pub families_allowed: RouteFamilies,
    /// What the workspace's manifest declares for this service.
    pub families_declared: RouteFamilies,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DevLinkCommand {
    Issue {
        link: LinkId,
        project: ProjectId,
        workspace: WorkspaceId,
        service: ServiceName,
        families: RouteFamilies,
        lifetime: Millis,
        label: String,
        wake_budget: Option<u32>,
        issued_by: UserId,
        limits: LinkLimits,
        now: UnixMillis,
    },
    OpenSession {
        handoff: HandoffId,
        handoff_expires_at: UnixMillis,
        session: SessionId,
        cookie: TokenDigest,
        generation: Generation,
        now: UnixMillis,
    },
    ChangeAllowlist {
        families: RouteFamilies,
        limits: LinkLimits,
        now: UnixMillis,
    },
    /// Keeps the end where `lifetime` is `None`.
    Rotate {
        lifetime: Option<Millis>,
        limits: LinkLimits,
        now: UnixMillis,
    },
    SpendWake {
        epoch: Epoch,
        session: SessionId,
        now: UnixMillis,
    },
    RecordBlocked {
        attempts: Vec<BlockedAttempts>,
        since: UnixMillis,
        until: UnixMillis,
    },
    /// Refused before its time.
    Expire {
        now: UnixMillis,
    },
    Revoke {
        reason: Option<String>,
    },
    /// Of a revoked link; of any other there is nothing to write down.
    RecordRevocation {
        receipt: Receipt,
    },
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DevLink {
    #[default]
    Unknown,
    Active(ActiveLink),
    Expired {
        link: LinkId,
        project: ProjectId,
        workspace: WorkspaceId,
    },
    Revoked {
        link: LinkId,
        project: ProjectId,
        workspace: WorkspaceId,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActiveLink {
    pub link: LinkId,
    pub project: ProjectId,
    pub workspace: WorkspaceId,
    pub service: ServiceName,
    pub families: RouteFamilies,
    pub generation: Generation,
    /// When the current generation was issued.
    pub issued_at: UnixMillis,
    pub expires_at: UnixMillis,
    pub wake_budget: Option<u32>,
    pub wakes_spent: u32,
    pub last_wake: Option<Epoch>,
    pub first_used: bool,
    /// Sessions of the current generation.
    pub sessions: BTreeMap<SessionId, UnixMillis>,
    /// Handoffs that were redeemed and could still be presented, with the time after which they cannot.
    pub redeemed: BTreeMap<HandoffId, UnixMillis>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DevLinkRefusal {
    #[error("there is no such link")]
    Unknown,
    #[error("the link exists already")]
    Exists,
    #[error("the link is revoked; issue a new one")]
    Revoked,
    #[error("the link has expired; issue a new one")]
    Expired,
    #[error("the link has not expired yet")]
    NotYetExpired,
    #[error("a link may live for {min} to {max}")]
    LifetimeOutOfRange { min: Millis, max: Millis },
    #[error("a link must open at least one route family: web, api, assets, websockets or marketing")]
    NoFamilies,
    #[error("the organization does not allow these route families: {}", .families.display())]
    FamiliesNotAllowed { families: RouteFamilies },
    #[error("`envforge.yml` declares no such routes for this service: {}", .families.display())]
    FamiliesNotDeclared { families: RouteFamilies },
    #[error("a label must have 1 to {max} characters")]
    Label { max: usize },
    #[error("a reason must have 1 to {max} characters")]
    Reason { max: usize },
    #[error("this share link was replaced by a newer one")]
    Rotated,
    #[error("this handoff was used already; open the share link again")]
    HandoffUsed,
    #[error("this handoff is older than {max}; open the share link again")]
    HandoffExpired { max: Millis },
    #[error("the link has {max} open sessions, more are not possible")]
    TooManySessions { max: usize },
    #[error("the link has spent its {budget} wakes")]
    WakeBudgetSpent { budget: u32 },
    #[error("a wake budget must be between 1 and {max}")]
    WakeBudgetOutOfRange { max: u32 },
    #[error("this session does not belong to the link's current generation")]
    SessionUnknown,
}

/// Largest wake budget.
pub const WAKE_BUDGET_MAX: u32 = 10_000;
/// Kinds of blocked attempts in one report.
pub const BLOCKED_KINDS_MAX: usize = 32;

impl Refusal for DevLinkRefusal {
    fn code(&self) -> &'static str {
        match self {
            Self::Unknown => "link_unknown",
            Self::Exists => "link_exists",
            Self::Revoked => "link_revoked",
            Self::Expired => "link_expired",
            Self::NotYetExpired => "link_not_yet_expired",
            Self::LifetimeOutOfRange { .. } => "link_lifetime_out_of_range",
            Self::NoFamilies => "link_without_families",
            Self::FamiliesNotAllowed { .. } => "link_families_not_allowed",
            Self::FamiliesNotDeclared { .. } => "link_families_not_declared",
            Self::Label { .. } => "link_label_invalid",
            Self::Reason { .. } => "reason_invalid",
            Self::Rotated => "link_rotated",
            Self::HandoffUsed => "handoff_used",
            Self::HandoffExpired { .. } => "handoff_expired",
            Self::TooManySessions { .. } => "link_too_many_sessions",
            Self::WakeBudgetSpent { .. } => "wake_budget_spent",
            Self::WakeBudgetOutOfRange { .. } => "wake_budget_out_of_range",
            Self::SessionUnknown => "link_session_unknown",
        }
    }

    fn kind(&self) -> RefusalKind {
        match self {
            Self::Unknown => RefusalKind::NotFound,
            Self::Exists | Self::NotYetExpired => RefusalKind::Conflict,
            Self::Revoked
            | Self::Expired
            | Self::Rotated
            | Self::HandoffUsed
            | Self::HandoffExpired { .. }
            | Self::SessionUnknown => RefusalKind::Gone,
            Self::LifetimeOutOfRange { .. }
            | Self::NoFamilies
            | Self::FamiliesNotDeclared { .. }
            | Self::Label { .. }
            | Self::Reason { .. }
            | Self::WakeBudgetOutOfRange { .. } => RefusalKind::Invalid,
            Self::FamiliesNotAllowed { .. } | Self::TooManySessions { .. } | Self::WakeBudgetSpent { .. } => {
                RefusalKind::Forbidden
            }
        }
    }

    fn bounds(&self) -> Vec<(&'static str, u64)> {
        match self {
            Self::LifetimeOutOfRange { min, max } => vec![("min_ms", min.get()), ("max_ms", max.get())],
            Self::WakeBudgetOutOfRange { max } => vec![("min", 1), ("max", u64::from(*max))],
            Self::WakeBudgetSpent { budget } => vec![("budget", u64::from(*budget))],
            Self::Label { max } | Self::Reason { max } => vec![("max_chars", *max as u64)],
            Self::TooManySessions { max } => vec![("max", *max as u64)],
            Self::HandoffExpired { max } => vec![("max_ms", max.get())],
            Self::Unknown
            | Self::Exists
            | Self::Revoked
            | Self::Expired
            | Self::NotYetExpired
            | Self::NoFamilies
            | Self::FamiliesNotAllowed { .. }
            | Self::FamiliesNotDeclared { .. }
            | Self::Rotated
            | Self::HandoffUsed
            | Self::SessionUnknown => vec![],
        }
    }
}

fn check_families(families: RouteFamilies, limits: &LinkLimits) -> Result<(), DevLinkRefusal> {
    if families.is_empty() {
        return Err(DevLinkRefusal::NoFamilies);
    }
    let undeclared = families.minus(limits.families_declared);
    if !undeclared.is_empty() {
        return Err(DevLinkRefusal::FamiliesNotDeclared { families: undeclared });
    }
    let refused = families.minus(limits.families_allowed);
    if !refused.is_empty() {
        return Err(DevLinkRefusal::FamiliesNotAllowed { families: refused });
    }
    Ok(())
}

fn check_lifetime(lifetime: Millis, limits: &LinkLimits) -> Result<(), DevLinkRefusal> {
    let (min, max) = (limits::LINK_LIFETIME_MIN, limits.lifetime_max);
    if lifetime < min || lifetime > max {
        return Err(DevLinkRefusal::LifetimeOutOfRange { min, max });
    }
    Ok(())
}

impl Aggregate for DevLink {
    const KIND: StreamKind = StreamKind::DevLink;
    type State = Self;
    type Command = DevLinkCommand;
    type Event = DevLinkEvent;
    type Refusal = DevLinkRefusal;

    fn decide(state: &Self, command: &DevLinkCommand) -> Result<Vec<DevLinkEvent>, DevLinkRefusal> {
        match (state, command) {
            (
                Self::Unknown,
                DevLinkCommand::Issue {
                    link,
                    project,
                    workspace,
                    service,
                    families,
                    lifetime,
                    label,
                    wake_budget,
                    issued_by,
                    limits,
                    now,
                },
            ) => {
                check_families(*families, limits)?;
                check_lifetime(*lifetime, limits)?;
                if !name_is_valid(label) {
                    return Err(DevLinkRefusal::Label { max: limits::NAME_CHARS_MAX });
                }
                if wake_budget.is_some_and(|budget| budget == 0 || budget > WAKE_BUDGET_MAX) {
                    return Err(DevLinkRefusal::WakeBudgetOutOfRange { max: WAKE_BUDGET_MAX });
                }
                Ok(vec![DevLinkEvent::Issued {
                    link: *link,
                    project: *project,
                    workspace: *workspace,
                    service: service.clone(),
                    families: *families,
                    issued_at: *now,
                    expires_at: now.plus(*lifetime),
                    label: label.clone(),
                    wake_budget: *wake_budget,
                    issued_by: *issued_by,
                }])
            }
            (Self::Active(_) | Self::Expired { .. } | Self::Revoked { .. }, DevLinkCommand::Issue { .. }) => {
                Err(DevLinkRefusal::Exists)
            }
            (Self::Active(active), command) => decide_active(active, command),
            // Facts that the gateway noticed may be recorded after the end.
            (Self::Expired { .. } | Self::Revoked { .. }, DevLinkCommand::RecordBlocked { attempts, since, until }) => {
                Ok(record_blocked(attempts, *since, *until))
            }
            (Self::Revoked { .. }, DevLinkCommand::RecordRevocation { receipt }) => {
                Ok(vec![DevLinkEvent::RevocationRecorded { receipt: receipt.clone() }])
            }
            (Self::Expired { .. }, DevLinkCommand::Expire { .. } | DevLinkCommand::RecordRevocation { .. }) => {
                Ok(vec![])
            }
            (Self::Revoked { .. }, DevLinkCommand::Expire { .. } | DevLinkCommand::Revoke { .. }) => Ok(vec![]),
            // A revoked link shows as revoked even where its time is over too: somebody closed it on purpose.
            (Self::Expired { .. }, DevLinkCommand::Revoke { reason }) => revoke(reason),
            (
                Self::Expired { .. },
                DevLinkCommand::OpenSession { .. }
                | DevLinkCommand::ChangeAllowlist { .. }
                | DevLinkCommand::Rotate { .. }
                | DevLinkCommand::SpendWake { .. },
            ) => Err(DevLinkRefusal::Expired),
            (
                Self::Revoked { .. },
                DevLinkCommand::OpenSession { .. }
                | DevLinkCommand::ChangeAllowlist { .. }
                | DevLinkCommand::Rotate { .. }
                | DevLinkCommand::SpendWake { .. },
            ) => Err(DevLinkRefusal::Revoked),
            (
                Self::Unknown,
                DevLinkCommand::OpenSession { .. }
                | DevLinkCommand::ChangeAllowlist { .. }
                | DevLinkCommand::Rotate { .. }
                | DevLinkCommand::SpendWake { .. }
                | DevLinkCommand::RecordBlocked { .. }
                | DevLinkCommand::Expire { .. }
                | DevLinkCommand::Revoke { .. }
                | DevLinkCommand::RecordRevocation { .. },
            ) => Err(DevLinkRefusal::Unknown),
        }
    }

    fn evolve(state: Self, event: &DevLinkEvent) -> Self {
        match (state, event) {
            (
                _,
                DevLinkEvent::Issued {
                    link,
                    project,
                    workspace,
                    service,
                    families,
                    issued_at,
                    expires_at,
                    wake_budget,
                    ..
                },
            ) => Self::Active(ActiveLink {
                link: *link,
                project: *project,
                workspace: *workspace,
                service: service.clone(),
                families: *families,
                generation: Generation(1),
                issued_at: *issued_at,
                expires_at: *expires_at,
                wake_budget: *wake_budget,
                wakes_spent: 0,
                last_wake: None,
                first_used: false,
                sessions: BTreeMap::new(),
                redeemed: BTreeMap::new(),
            }),
            (Self::Active(ActiveLink { link, project, workspace, .. }), DevLinkEvent::Expired) => {
                Self::Expired { link, project, workspace }
            }
            (
                Self::Active(ActiveLink { link, project, workspace, .. }) | Self::Expired { link, project, workspace },
                DevLinkEvent::Revoked { .. },
            ) => Self::Revoked { link, project, workspace },
            (Self::Active(active), event) => Self::Active(evolve_active(active, event)),
            (
                state @ (Self::Unknown | Self::Expired { .. } | Self::Revoked { .. }),
                DevLinkEvent::FirstUsed { .. }
                | DevLinkEvent::SessionOpened { .. }
                | DevLinkEvent::AllowlistChanged { .. }
                | DevLinkEvent::Rotated { .. }
                | DevLinkEvent::WakeSpent { .. }
                | DevLinkEvent::AttemptsBlocked { .. }
                | DevLinkEvent::Expired
                | DevLinkEvent::Revoked { .. }
                | DevLinkEvent::RevocationRecorded { .. },
            ) => state,
        }
    }

    fn event_of(event: &Event) -> Option<&DevLinkEvent> {
        if let Event::DevLink(event) = event { Some(event) } else { None }
    }

    fn action_of(command: &DevLinkCommand) -> Action {
        match command {
            DevLinkCommand::Issue { .. } => Action::LinkIssue,
            DevLinkCommand::OpenSession { .. } => Action::LinkOpenSession,
            DevLinkCommand::ChangeAllowlist { .. } => Action::LinkChangeAllowlist,
            DevLinkCommand::Rotate { .. } => Action::LinkRotate,
            // Spending the budget is part of waking: one right for both.
            DevLinkCommand::SpendWake { .. } => Action::RuntimeWake,
            DevLinkCommand::RecordBlocked { .. } => Action::LinkRecordUse,
            DevLinkCommand::Expire { .. } => Action::LinkExpire,
            DevLinkCommand::Revoke { .. } | DevLinkCommand::RecordRevocation { .. } => Action::LinkRevoke,
        }
    }
}

fn revoke(reason: &Option<String>) -> Result<Vec<DevLinkEvent>, DevLinkRefusal> {
    if reason.as_deref().is_some_and(|reason| !reason_is_valid(reason)) {
        return Err(DevLinkRefusal::Reason { max: limits::REASON_CHARS_MAX });
    }
    Ok(vec![DevLinkEvent::Revoked { reason: reason.clone() }])
}

fn record_blocked(attempts: &[BlockedAttempts], since: UnixMillis, until: UnixMillis) -> Vec<DevLinkEvent> {
    let newest = |kind: &BlockedAttempts| {
        let left_out = kind.requests.len().saturating_sub(KIND_REQUESTS_MAX);
        BlockedAttempts { requests: kind.requests[left_out..].to_vec(), ..kind.clone() }
    };
    let attempts = attempts.iter().filter(|kind| kind.count > 0).take(BLOCKED_KINDS_MAX);
    let attempts: Vec<_> = attempts.map(newest).collect();
    if attempts.is_empty() { vec![] } else { vec![DevLinkEvent::AttemptsBlocked { attempts, since, until }] }
}

fn decide_active(active: &ActiveLink, command: &DevLinkCommand) -> Result<Vec<DevLinkEvent>, DevLinkRefusal> {
    let unexpired = |now: &UnixMillis| if *now < active.expires_at { Ok(()) } else { Err(DevLinkRefusal::Expired) };
    match command {
        DevLinkCommand::Issue { .. } => Err(DevLinkRefusal::Exists),
        DevLinkCommand::OpenSession { handoff, handoff_expires_at, session, cookie, generation, now } => {
            unexpired(now)?;
            if active.redeemed.contains_key(handoff) {
                return Err(DevLinkRefusal::HandoffUsed);
            }
            if *handoff_expires_at <= *now || handoff_expires_at.since(*now) > limits::HANDOFF_LIFETIME {
                return Err(DevLinkRefusal::HandoffExpired { max: limits::HANDOFF_LIFETIME });
            }
            if *generation != active.generation {
                return Err(DevLinkRefusal::Rotated);
            }
            if active.sessions.len() >= limits::LINK_SESSIONS_MAX {
                return Err(DevLinkRefusal::TooManySessions { max: limits::LINK_SESSIONS_MAX });
            }
            let mut events = Vec::with_capacity(2);
            if !active.first_used {
                events.push(DevLinkEvent::FirstUsed { at: *now });
            }
            events.push(DevLinkEvent::SessionOpened {
                session: *session,
                handoff: *handoff,
                cookie: *cookie,
                generation: *generation,
                expires_at: active.expires_at,
            });
            Ok(events)
        }
        DevLinkCommand::ChangeAllowlist { families, limits, now } => {
            unexpired(now)?;
            check_families(*families, limits)?;
            Ok(if *families == active.families {
                vec![]
            } else {
                vec![DevLinkEvent::AllowlistChanged { families: *families }]
            })
        }
        DevLinkCommand::Rotate { lifetime, limits, now } => {
            unexpired(now)?;
            let expires_at = match lifetime {
                Some(lifetime) => {
                    check_lifetime(*lifetime, limits)?;
                    now.plus(*lifetime)
                }
                None => active.expires_at,
            };
            let generation = Generation(active.generation.0 + 1);
            Ok(vec![DevLinkEvent::Rotated { generation, issued_at: *now, expires_at }])
        }
        DevLinkCommand::SpendWake { epoch, session, now } => {
            unexpired(now)?;
            if !active.sessions.contains_key(session) {
                return Err(DevLinkRefusal::SessionUnknown);
            }
            if active.last_wake >= Some(*epoch) {
                return Ok(vec![]);
            }
            if let Some(budget) = active.wake_budget
                && active.wakes_spent >= budget
            {
                return Err(DevLinkRefusal::WakeBudgetSpent { budget });
            }
            Ok(vec![DevLinkEvent::WakeSpent { epoch: *epoch, session: *session }])
        }
        DevLinkCommand::RecordBlocked { attempts, since, until } => Ok(record_blocked(attempts, *since, *until)),
        DevLinkCommand::Expire { now } => {
            if *now < active.expires_at {
                return Err(DevLinkRefusal::NotYetExpired);
            }
            Ok(vec![DevLinkEvent::Expired])
        }
        DevLinkCommand::Revoke { reason } => revoke(reason),
        DevLinkCommand::RecordRevocation { .. } => Ok(vec![]),
    }
}

fn evolve_active(mut active: ActiveLink, event: &DevLinkEvent) -> ActiveLink {
    match event {
        DevLinkEvent::Issued { .. } | DevLinkEvent::Expired | DevLinkEvent::Revoked { .. } => {}
        DevLinkEvent::AttemptsBlocked { .. } | DevLinkEvent::RevocationRecorded { .. } => {}
        DevLinkEvent::FirstUsed { .. } => active.first_used = true,
        DevLinkEvent::SessionOpened { session, handoff, expires_at, .. } => {
            active.sessions.insert(*session, *expires_at);
            active.redeemed.insert(*handoff, *expires_at);
            // A handoff lives for seconds; the oldest of so many cannot be presented any more. UUIDv7 sorts by age.
            while active.redeemed.len() > limits::LINK_SESSIONS_MAX {
                active.redeemed.pop_first();
            }
        }
        DevLinkEvent::AllowlistChanged { families } => active.families = *families,
        DevLinkEvent::Rotated { generation, issued_at, expires_at } => {
            active.generation = *generation;
            active.issued_at = *issued_at;
            active.expires_at = *expires_at;
            active.sessions.clear();
        }
        DevLinkEvent::WakeSpent { epoch, .. } => {
            active.wakes_spent += 1;
            active.last_wake = Some(*epoch);
        }
    }
    active
}

impl From<DevLinkEvent> for Event {
    fn from(event: DevLinkEvent) -> Self {
        Self::DevLink(event)
    }
}
