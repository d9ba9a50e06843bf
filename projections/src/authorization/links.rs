//! Links as the policy needs them, and the terms on which each stands now: its issuer's right and the organization's policy.

use envforge_domain::access::{Action, Resource};
use envforge_domain::dev_link::RouteFamilies;
use envforge_domain::ids::{LinkId, OrgId, ProjectId, UserId, WorkspaceId};
use envforge_domain::time::UnixMillis;

use super::organization::OrganizationFacts;
use super::people::UserFacts;

#[derive(Clone)]
pub(super) struct LinkFacts {
    pub(super) org: OrgId,
    pub(super) project: ProjectId,
    pub(super) workspace: WorkspaceId,
    /// Of the current share URL.
    pub(super) issued_at: UnixMillis,
    pub(super) expires_at: UnixMillis,
    pub(super) families: RouteFamilies,
    pub(super) open: bool,
    pub(super) issued_by: UserId,
    /// A link stands on its issuer's right: it is held against the policy where the link was issued, and again whenever
    /// that right or the organization's policy changes.
    pub(super) terms: LinkTerms,
}

/// What a link is allowed, whatever it says itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LinkTerms {
    /// Until when its issuer may have issued it. `None` where they may not.
    pub(crate) issuer_until: Option<UnixMillis>,
    /// The end of the longest link that the organization allows.
    pub(crate) longest_until: UnixMillis,
    /// What the organization lets links open.
    pub(crate) families: RouteFamilies,
}

/// The terms of an open link, as of a commit that changed them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LinkRight {
    pub(crate) link: LinkId,
    pub(crate) terms: LinkTerms,
}

impl LinkTerms {
    pub(crate) const NONE: Self =
        Self { issuer_until: None, longest_until: UnixMillis::EPOCH, families: RouteFamilies::NONE };

    /// When the link is over by its terms; `None` where it does not stand at all.
    pub(crate) fn until(&self) -> Option<UnixMillis> {
        self.issuer_until.map(|until| until.min(self.longest_until))
    }
}

impl LinkFacts {
    pub(super) fn resource(&self, link: LinkId) -> Resource {
        Resource::Link { org: self.org, project: self.project, workspace: self.workspace, link }
    }

    /// The terms as these facts make them: what is in force, or what would be.
    pub(super) fn terms_by(
        &self,
        link: LinkId,
        organization: Option<&OrganizationFacts>,
        issuer: Option<&UserFacts>,
    ) -> LinkTerms {
        let Some(organization) = organization else { return LinkTerms::NONE };
        LinkTerms {
            issuer_until: organization.may_until(self.issued_by, issuer, Action::LinkIssue, self.resource(link)),
            longest_until: organization.policy.link_ends_at(self.issued_at),
            families: organization.policy.link_families,
        }
    }

    /// When it is over by these terms.
    pub(super) fn ends_by(&self, terms: &LinkTerms) -> Option<UnixMillis> {
        terms.until().map(|until| until.min(self.expires_at))
    }

    pub(super) fn is_live(&self, now: UnixMillis) -> bool {
        self.open && self.ends_by(&self.terms).is_some_and(|end| now < end)
    }
}
