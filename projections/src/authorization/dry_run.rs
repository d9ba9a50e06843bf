//! What a change of roles or of the policy would end: the same functions as ever, on a copy of the organization's facts.

use envforge_domain::commit::Surface;
use envforge_domain::dev_link::RouteFamilies;
use envforge_domain::ids::{LinkId, OrgId, ProjectId, SessionId, UserId, WorkspaceId};
use envforge_domain::organization::OrganizationEvent;
use envforge_domain::time::UnixMillis;

use super::{AuthorizationView, RootWindowConsequence, SessionOver};

/// What would end, sorted by id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Consequences {
    pub links: Vec<LinkConsequence>,
    pub sessions: Vec<SessionConsequence>,
    pub root_windows: Vec<RootWindowConsequence>,
}

/// A live link that would be worth less.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkConsequence {
    pub link: LinkId,
    pub project: ProjectId,
    pub workspace: WorkspaceId,
    pub issued_by: UserId,
    /// When it would be over: at once, where that is not later than the question.
    pub ends_at: UnixMillis,
    /// What it would open no more, beside its end.
    pub families_lost: RouteFamilies,
    /// Never empty.
    pub reasons: Vec<LinkLoss>,
}

/// Why a link would be worth less.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LinkLoss {
    /// Whoever issued it could not issue it any more.
    IssuerMayNot,
    /// Whoever issued it could issue it for a shorter time only.
    IssuerUntil,
    /// It lives longer than the longest link allowed.
    TooLong,
    /// It opens what links may not.
    Families,
}

/// A session that would be over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionConsequence {
    pub user: UserId,
    pub session: SessionId,
    /// Where it counts.
    pub surface: Surface,
    pub reason: SessionOver,
}

impl AuthorizationView {
    /// What these events would end in an organization, had they happened now.
    pub fn consequences(&self, org: OrgId, events: &[OrganizationEvent], now: UnixMillis) -> Consequences {
        let inner = self.inner.read();
        let Some(before) = inner.organizations.get(&org) else { return Consequences::default() };
        let mut after = before.clone();
        for event in events {
            after.apply(event);
        }
        let mut links = Vec::new();
        for link in inner.links_by_org.get(&org).into_iter().flatten() {
            let Some(facts) = inner.links.get(link) else { continue };
            if !facts.is_live(now) || inner.closed_workspaces.contains(&facts.workspace) {
                continue;
            }
            let terms = facts.terms_by(*link, Some(&after), inner.users.get(&facts.issued_by));
            let opens = |families: RouteFamilies| facts.families.intersection(families);
            let families_lost = opens(facts.terms.families).minus(terms.families);
            let (ends, would_end) = (facts.ends_by(&facts.terms), facts.ends_by(&terms));
            let mut reasons = Vec::new();
            match terms.issuer_until {
                None => reasons.push(LinkLoss::IssuerMayNot),
                until if until < ends => reasons.push(LinkLoss::IssuerUntil),
                Some(_) => {}
            }
            if Some(terms.longest_until) < ends {
                reasons.push(LinkLoss::TooLong);
            }
            if !families_lost.is_empty() {
                reasons.push(LinkLoss::Families);
            }
            if !reasons.is_empty() {
                links.push(LinkConsequence {
                    link: *link,
                    project: facts.project,
                    workspace: facts.workspace,
                    issued_by: facts.issued_by,
                    ends_at: would_end.unwrap_or(now).max(now),
                    families_lost,
                    reasons,
                });
            }
        }
        links.sort_unstable_by_key(|link| link.link);
        let mut sessions = Vec::new();
        for user in before.members() {
            let Some(person) = inner.users.get(&user).filter(|person| person.org == org) else { continue };
            for (session, facts) in &person.sessions {
                if person.session_over(&before.policy, facts, now).is_some() {
                    continue;
                }
                if let Some(reason) = person.session_over(&after.policy, facts, now) {
                    sessions.push(SessionConsequence { user, session: *session, surface: facts.surface, reason });
                }
            }
        }
        sessions.sort_unstable_by_key(|session| (session.user, session.session));
        let root_windows = inner.root_window_consequences(before, &after, now);
        Consequences { links, sessions, root_windows }
    }
}
