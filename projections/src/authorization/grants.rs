//! An organization's grants, kept twice: by who holds them, for lists, and by where they reach, for decisions.
//!
//! People and teams are small numbers in here. A decision knows the few numbers that stand for somebody and looks them up
//! among the grants of one place; what anybody holds elsewhere is never touched, however much it is.

use ahash::AHashMap;
use envforge_domain::access::{Grant, Grantee, Resource, Role, Scope};
use envforge_domain::time::UnixMillis;

/// A grantee as a number. It stays theirs when they hold nothing any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Holder(u32);

#[derive(Clone, Default)]
pub(super) struct Grants {
    holders: AHashMap<Grantee, Holder>,
    /// By holder, sorted by scope and role.
    held: Vec<Vec<Grant>>,
    /// By holder: what reaches the whole organization. Of those there are too many for one place.
    everywhere: Vec<Vec<Held>>,
    /// What reaches a project or a workspace.
    places: AHashMap<Scope, Place>,
}

/// The part of a grant that its place and its holder do not say.
#[derive(Clone, Copy)]
struct Held {
    role: Role,
    expires_at: Option<UnixMillis>,
}

/// The grants of one place, sorted by holder and role. INVARIANT: both lists are of one length.
#[derive(Clone, Default)]
struct Place {
    holders: Vec<Holder>,
    held: Vec<Held>,
}

impl Holder {
    fn index(self) -> usize {
        // A `u32` fits a `usize` wherever this runs.
        self.0 as usize
    }
}

impl Held {
    fn of(grant: &Grant) -> Self {
        Self { role: grant.role, expires_at: grant.expires_at }
    }

    fn grant(self, grantee: Grantee, scope: Scope) -> Grant {
        Grant { grantee, role: self.role, scope, expires_at: self.expires_at }
    }
}

impl Place {
    /// Where a holder's grant of a role is, or would be.
    fn find(&self, holder: Holder, role: Role) -> Result<usize, usize> {
        let from = self.holders.partition_point(|other| *other < holder);
        let of_holder = self.holders[from..].partition_point(|other| *other == holder);
        let found = self.held[from..from + of_holder].binary_search_by_key(&role, |held| held.role);
        found.map(|at| from + at).map_err(|at| from + at)
    }

    fn put(&mut self, holder: Holder, held: Held) {
        match self.find(holder, held.role) {
            Ok(at) => self.held[at] = held,
            Err(at) => {
                self.holders.insert(at, holder);
                self.held.insert(at, held);
            }
        }
    }

    fn take(&mut self, holder: Holder, role: Role) {
        if let Ok(at) = self.find(holder, role) {
            self.holders.remove(at);
            self.held.remove(at);
        }
    }
}

impl Grants {
    /// The number of a grantee; a new one where they have none.
    pub(super) fn holder(&mut self, grantee: Grantee) -> Holder {
        if let Some(known) = self.holders.get(&grantee) {
            return *known;
        }
        // A log of four billion grantees does not fit any memory.
        let holder = Holder(u32::try_from(self.held.len()).unwrap_or(u32::MAX));
        self.holders.insert(grantee, holder);
        self.held.push(Vec::new());
        self.everywhere.push(Vec::new());
        holder
    }

    /// What a grantee holds, sorted by scope and role.
    pub(super) fn of(&self, grantee: Grantee) -> &[Grant] {
        self.holders.get(&grantee).map(|holder| self.held[holder.index()].as_slice()).unwrap_or_default()
    }

    pub(super) fn put(&mut self, grant: Grant) {
        let holder = self.holder(grant.grantee);
        let held = &mut self.held[holder.index()];
        match held.binary_search_by(|other| (other.scope, other.role).cmp(&(grant.scope, grant.role))) {
            Ok(at) => held[at] = grant,
            Err(at) => held.insert(at, grant),
        }
        if grant.scope != Scope::Organization {
            self.places.entry(grant.scope).or_default().put(holder, Held::of(&grant));
            return;
        }
        let everywhere = &mut self.everywhere[holder.index()];
        match everywhere.iter_mut().find(|held| held.role == grant.role) {
            Some(held) => *held = Held::of(&grant),
            None => everywhere.push(Held::of(&grant)),
        }
    }

    pub(super) fn take(&mut self, grantee: Grantee, role: Role, scope: Scope) {
        let Some(holder) = self.holders.get(&grantee).copied() else { return };
        self.held[holder.index()].retain(|held| (held.scope, held.role) != (scope, role));
        self.take_from_place(holder, role, scope);
    }

    pub(super) fn take_all(&mut self, grantee: Grantee) {
        let Some(holder) = self.holders.get(&grantee).copied() else { return };
        for grant in std::mem::take(&mut self.held[holder.index()]) {
            self.take_from_place(holder, grant.role, grant.scope);
        }
    }

    fn take_from_place(&mut self, holder: Holder, role: Role, scope: Scope) {
        if scope == Scope::Organization {
            self.everywhere[holder.index()].retain(|held| held.role != role);
        } else if let Some(place) = self.places.get_mut(&scope) {
            place.take(holder, role);
            if place.holders.is_empty() {
                self.places.remove(&scope);
            }
        }
    }

    /// What these grantees hold that may count for a resource. `grantees` are sorted by holder.
    pub(super) fn reaching(&self, grantees: &[(Holder, Grantee)], resource: &Resource) -> Vec<Grant> {
        let mut found = Vec::with_capacity(4);
        for (holder, grantee) in grantees {
            let everywhere = &self.everywhere[holder.index()];
            found.extend(everywhere.iter().map(|held| held.grant(*grantee, Scope::Organization)));
        }
        let Some(project) = resource.project() else { return found };
        self.at(Scope::Project(project), grantees, &mut found);
        let Some(workspace) = resource.workspace() else { return found };
        self.at(Scope::Workspace { project, workspace }, grantees, &mut found);
        found
    }

    fn at(&self, scope: Scope, grantees: &[(Holder, Grantee)], found: &mut Vec<Grant>) {
        let Some(place) = self.places.get(&scope) else { return };
        let mut from = 0;
        for (holder, grantee) in grantees {
            from += place.holders[from..].partition_point(|other| other < holder);
            while place.holders.get(from) == Some(holder) {
                found.push(place.held[from].grant(*grantee, scope));
                from += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use envforge_domain::ids::{OrgId, ProjectId, TeamId, UserId, WorkspaceId};
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Put(Grant),
        Take(Grantee, Role, Scope),
        TakeAll(Grantee),
    }

    fn grantee(number: u128) -> Grantee {
        let id = Uuid::from_u128(number);
        if number < 4 { Grantee::User(UserId::from_uuid(id)) } else { Grantee::Team(TeamId::from_uuid(id)) }
    }

    fn project(number: u128) -> ProjectId {
        ProjectId::from_uuid(Uuid::from_u128(number))
    }

    fn workspace(number: u128) -> WorkspaceId {
        WorkspaceId::from_uuid(Uuid::from_u128(number))
    }

    fn scope() -> impl Strategy<Value = Scope> {
        prop_oneof![
            Just(Scope::Organization),
            (0..2_u128).prop_map(|of| Scope::Project(project(of))),
            (0..2_u128, 0..2_u128)
                .prop_map(|(of, at)| Scope::Workspace { project: project(of), workspace: workspace(at) }),
        ]
    }

    fn step() -> impl Strategy<Value = Step> {
        let roles = proptest::sample::select(vec![Role::Viewer, Role::Developer, Role::Owner]);
        let end = proptest::option::of((0..9_u64).prop_map(UnixMillis::new));
        let whole = ((0..7_u128).prop_map(grantee), roles, scope(), end, 0..6);
        whole.prop_map(|(grantee, role, scope, expires_at, kind)| match kind {
            0 => Step::Take(grantee, role, scope),
            1 => Step::TakeAll(grantee),
            _ => Step::Put(Grant { grantee, role, scope, expires_at }),
        })
    }

    fn reaches(grant: &Grant, resource: &Resource) -> bool {
        match grant.scope {
            Scope::Organization => true,
            Scope::Project(project) => resource.project() == Some(project),
            Scope::Workspace { project, workspace } => {
                (resource.project(), resource.workspace()) == (Some(project), Some(workspace))
            }
        }
    }

    proptest! {
        /// Against a plain list of what was given and not taken.
        #[test]
        fn grants_are_found_by_place_and_by_holder(steps in proptest::collection::vec(step(), 0..60)) {
            let mut grants = Grants::default();
            let mut plain: Vec<Grant> = Vec::new();
            for step in steps {
                match step {
                    Step::Put(grant) => {
                        plain.retain(|held| (held.grantee, held.role, held.scope) != (grant.grantee, grant.role, grant.scope));
                        plain.push(grant);
                        grants.put(grant);
                    }
                    Step::Take(grantee, role, scope) => {
                        plain.retain(|held| (held.grantee, held.role, held.scope) != (grantee, role, scope));
                        grants.take(grantee, role, scope);
                    }
                    Step::TakeAll(grantee) => {
                        plain.retain(|held| held.grantee != grantee);
                        grants.take_all(grantee);
                    }
                }
            }
            let org = OrgId::from_uuid(Uuid::nil());
            let resources = [
                Resource::Organization(org),
                Resource::Project { org, project: project(0) },
                Resource::Workspace { org, project: project(0), workspace: workspace(1) },
            ];
            // Somebody who is in two teams, and a team.
            for who in [vec![1, 5, 6], vec![4]] {
                let mut grantees: Vec<_> = who.iter().map(|number| grantee(*number)).map(|of| (grants.holder(of), of)).collect();
                grantees.sort_unstable_by_key(|(holder, _)| *holder);
                for resource in &resources {
                    let found = grants.reaching(&grantees, resource);
                    let expected = plain.iter().filter(|held| grantees.iter().any(|(_, of)| *of == held.grantee) && reaches(held, resource));
                    prop_assert_eq!(found.len(), found.iter().collect::<std::collections::HashSet<_>>().len());
                    prop_assert_eq!(found.iter().map(|grant| format!("{grant:?}")).collect::<BTreeSet<_>>(), expected.map(|grant| format!("{grant:?}")).collect());
                }
                for (_, of) in grantees {
                    let mut expected: Vec<_> = plain.iter().filter(|held| held.grantee == of).copied().collect();
                    expected.sort_unstable_by_key(|held| (held.scope, held.role));
                    prop_assert_eq!(grants.of(of), expected);
                }
            }
        }
    }
}
