//! The rights of an organization as they stood at some time, with the events behind them: folded from its stream when somebody
//! asks, which is rare. It costs reading that stream up to then.
//!
//! Not here: what somebody may do now (`authorization`, in memory), and the policy itself (domain).

use std::collections::{BTreeMap, BTreeSet};

use envforge_domain::access::{Grant, Grantee, Role, Scope};
use envforge_domain::aggregate::Aggregate as _;
use envforge_domain::commit::{Position, StreamId};
use envforge_domain::event::Event;
use envforge_domain::ids::{OrgId, ServiceTokenId, TeamId, UserId, WorkspaceId};
use envforge_domain::organization::{OrganizationEvent, OrganizationPolicy};
use envforge_domain::service_token::{ServiceToken, ServiceTokenEvent, ServiceTokens};
use envforge_domain::time::UnixMillis;
use envforge_domain::user::UserEvent;
use envforge_domain::workspace::{AccessMode, WorkspaceEvent};
use envforge_eventlog::{LogError, SharedLog};

/// Commits of one stream that are read for an answer; an organization with as many changes of rights needs another way.
const COMMITS_MAX: usize = 200_000;
const PAGE: usize = 1_000;

/// Up to when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    Position(Position),
    /// By the log's clock, what was recorded at that instant included.
    Time(UnixMillis),
}

#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    #[error("more than {max} changes of rights would have to be read")]
    TooLong { max: usize },
    #[error(transparent)]
    Log(#[from] LogError),
}

/// Rights with the positions of the events that gave them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RightsHistory {
    /// Of the last commit that is in it.
    pub position: Position,
    pub members: BTreeMap<UserId, Position>,
    pub teams: BTreeMap<TeamId, BTreeMap<UserId, Position>>,
    pub grants: BTreeMap<(Grantee, Role, Scope), (Option<UnixMillis>, Position)>,
    pub policy: Option<(OrganizationPolicy, Position)>,
}

impl RightsHistory {
    /// Reads the organization's stream up to then.
    pub async fn read(log: &SharedLog, org: OrgId, until: Until) -> Result<Self, HistoryError> {
        let mut rights = Self::default();
        each(log, &StreamId::organization(org), until, |position, event| {
            rights.position = position;
            if let Event::Organization(event) = event {
                rights.apply(position, event);
            }
        })
        .await?;
        Ok(rights)
    }

    /// What somebody held at `now`.
    pub fn held_by(&self, user: UserId, now: UnixMillis) -> Vec<Held> {
        let mut held = self.grants_of(user);
        held.retain(|held| held.grant.is_live(now));
        held
    }

    /// What somebody was given, their own and through teams, also where it has ended, with the event that gave each and the one
    /// that put them into the team.
    pub fn grants_of(&self, user: UserId) -> Vec<Held> {
        if !self.members.contains_key(&user) {
            return Vec::new();
        }
        let mut grantees: Vec<(Grantee, Option<Position>)> = vec![(Grantee::User(user), None)];
        let teams = self.teams.iter().filter_map(|(team, members)| Some((*team, *members.get(&user)?)));
        grantees.extend(teams.map(|(team, joined)| (Grantee::Team(team), Some(joined))));
        let mut held = Vec::new();
        for (grantee, joined_at) in grantees {
            let of = self.grants.range((grantee, Role::Owner, Scope::Organization)..);
            for ((_, role, scope), (expires_at, given_at)) in of.take_while(|((holder, ..), _)| *holder == grantee) {
                let grant = Grant { grantee, role: *role, scope: *scope, expires_at: *expires_at };
                held.push(Held { grant, given_at: *given_at, joined_at });
            }
        }
        held
    }

    /// Where a grant was given, as it stands.
    pub fn given_at(&self, grant: &Grant) -> Option<Position> {
        let (expires_at, position) = self.grants.get(&(grant.grantee, grant.role, grant.scope))?;
        (*expires_at == grant.expires_at).then_some(*position)
    }

    fn apply(&mut self, position: Position, event: &OrganizationEvent) {
        match event {
            OrganizationEvent::Created { .. }
            | OrganizationEvent::OwnerRecovered { .. }
            | OrganizationEvent::RevocationRecorded { .. } => {}
            OrganizationEvent::MemberAdded { user } => {
                self.members.insert(*user, position);
            }
            OrganizationEvent::MemberRemoved { user } => {
                self.members.remove(user);
                self.teams.values_mut().for_each(|members| {
                    members.remove(user);
                });
                self.grants.retain(|(grantee, ..), _| *grantee != Grantee::User(*user));
            }
            OrganizationEvent::RoleAssigned { grant } => {
                self.grants.insert((grant.grantee, grant.role, grant.scope), (grant.expires_at, position));
            }
            OrganizationEvent::RoleRevoked { grantee, role, scope } => {
                self.grants.remove(&(*grantee, *role, *scope));
            }
            OrganizationEvent::PolicyChanged { policy } => self.policy = Some((policy.clone(), position)),
            OrganizationEvent::TeamCreated { team, .. } => {
                self.teams.insert(*team, BTreeMap::new());
            }
            OrganizationEvent::TeamRenamed { .. } => {}
            OrganizationEvent::TeamDeleted { team } => {
                self.teams.remove(team);
                self.grants.retain(|(grantee, ..), _| *grantee != Grantee::Team(*team));
            }
            OrganizationEvent::TeamMemberAdded { team, user } => {
                self.teams.entry(*team).or_default().insert(*user, position);
            }
            OrganizationEvent::TeamMemberRemoved { team, user } => {
                if let Some(members) = self.teams.get_mut(team) {
                    members.remove(user);
                }
            }
        }
    }
}

/// A grant that somebody held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    pub grant: Grant,
    /// The event that gave it.
    pub given_at: Position,
    /// The event that put them into the team that holds it.
    pub joined_at: Option<Position>,
}

/// Since which event somebody's account was open then; `None` where it was not.
pub async fn active_since(
    log: &SharedLog,
    org: OrgId,
    user: UserId,
    until: Until,
) -> Result<Option<Position>, HistoryError> {
    let mut active = None;
    each(log, &StreamId::user(org, user), until, |position, event| match event {
        Event::User(UserEvent::Created { .. } | UserEvent::Reactivated) => active = Some(position),
        Event::User(UserEvent::Deactivated) => active = None,
        _ => {}
    })
    .await?;
    Ok(active)
}

/// Whether whoever made a token was a member with an open account ever since: who leaves takes their tokens along, also if
/// they come back.
pub fn stayed(made: Position, member_since: Option<Position>, active_since: Option<Position>) -> bool {
    [member_since, active_since].into_iter().all(|since| since.is_some_and(|since| since < made))
}

/// Whether links could open a workspace then: it was there, not archived, and not for Tailscale alone. `None`: there was no such
/// workspace yet.
pub async fn was_open_to_links(
    log: &SharedLog,
    org: OrgId,
    workspace: WorkspaceId,
    until: Until,
) -> Result<Option<bool>, HistoryError> {
    let mut open = None;
    each(log, &StreamId::workspace(org, workspace), until, |_, event| match event {
        Event::Workspace(
            WorkspaceEvent::Created { access_mode, .. } | WorkspaceEvent::AccessModeChanged { access_mode },
        ) => open = Some(*access_mode == AccessMode::SignedLinks),
        Event::Workspace(WorkspaceEvent::Archived) => open = Some(false),
        _ => {}
    })
    .await?;
    Ok(open)
}

/// The organization's service tokens as they were then, with the event that made each.
pub async fn service_tokens(
    log: &SharedLog,
    org: OrgId,
    until: Until,
) -> Result<Vec<(Position, ServiceTokenId, ServiceToken)>, HistoryError> {
    let (mut tokens, mut made) = (ServiceTokens::default(), BTreeMap::new());
    each(log, &StreamId::service_tokens(org), until, |position, event| {
        if let Some(event) = ServiceTokens::event_of(event) {
            if let ServiceTokenEvent::Created { token, .. } = event {
                made.insert(*token, position);
            }
            tokens = ServiceTokens::evolve(std::mem::take(&mut tokens), event);
        }
    })
    .await?;
    let with_event = |(id, token)| Some((*made.get(&id)?, id, token));
    Ok(tokens.tokens.into_iter().filter_map(with_event).collect())
}

/// The people who held any live grant then, once each.
pub fn holders(rights: &RightsHistory) -> BTreeSet<UserId> {
    let mut people = BTreeSet::new();
    for (grantee, ..) in rights.grants.keys() {
        match grantee {
            Grantee::User(user) => {
                people.insert(*user);
            }
            Grantee::Team(team) => people.extend(rights.teams.get(team).into_iter().flat_map(BTreeMap::keys).copied()),
        }
    }
    people
}

/// Goes through a stream up to then, in order.
pub(crate) async fn each(
    log: &SharedLog,
    stream: &StreamId,
    until: Until,
    mut take: impl FnMut(Position, &Event),
) -> Result<(), HistoryError> {
    let (mut after, mut count) = (Position::START, 0);
    loop {
        let page = log.read_stream(stream, after, PAGE).await?;
        for recorded in &page {
            let beyond = match until {
                Until::Position(position) => recorded.position > position,
                Until::Time(time) => recorded.recorded_at > time,
            };
            if beyond {
                return Ok(());
            }
            recorded.commit.events.iter().for_each(|event| take(recorded.position, event));
        }
        count += page.len();
        match page.last() {
            Some(last) if page.len() == PAGE => after = last.position,
            Some(_) | None => return Ok(()),
        }
        if count >= COMMITS_MAX {
            return Err(HistoryError::TooLong { max: COMMITS_MAX });
        }
    }
}
