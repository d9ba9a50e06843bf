//! From whom people have what they hold: who still stands with one person taken out.

use std::collections::BTreeSet;

use envforge_domain::access::{Action, Grant, Grantee, Resource, Role, Scope};
use envforge_domain::aggregate::Aggregate;
use envforge_domain::commit::{Actor, Commit, Component, Position, Recorded, StreamId, Surface};
use envforge_domain::event::Event;
use envforge_domain::ids::*;
use envforge_domain::invitation::Invitation;
use envforge_domain::organization::*;
use envforge_domain::provenance::{Derived, Provenance, givers, matters};
use envforge_domain::time::UnixMillis;
use envforge_domain::user::{EmailAddress, UserEvent};
use proptest::prelude::*;
use uuid::Uuid;

use crate::given::*;

const SETUP: Actor = Actor::System(Component::Setup);
const IDENTITY: Actor = Actor::System(Component::Identity);
const WHOLE: Scope = Scope::Organization;
/// The founder, and somebody who asks for root.
const FOUNDER: u128 = 1;

fn by(number: u128) -> Actor {
    Actor::User(user(number))
}

fn place() -> Resource {
    Resource::RootWindow { org: org(1), project: project(1), workspace: workspace(1), window: window(1) }
}

fn grant(grantee: Grantee, role: Role, scope: Scope) -> OrganizationEvent {
    OrganizationEvent::RoleAssigned { grant: Grant { grantee, role, scope, expires_at: None } }
}

fn address() -> EmailAddress {
    EmailAddress::parse("somebody@acme.test").unwrap()
}

/// A log, written event by event.
#[derive(Clone, Default)]
struct Log {
    commits: Vec<Recorded>,
}

impl Log {
    fn tell(mut self, stream: StreamId, actor: Actor, at: UnixMillis, event: Event) -> Self {
        let number = self.commits.len() as u128 + 1;
        let commit = Commit {
            id: CommitId::from_uuid(Uuid::from_u128(number)),
            command: CommandId::from_uuid(Uuid::from_u128(number)),
            request_digest: None,
            stream,
            actor,
            surface: Surface::Api,
            correlation: CorrelationId::from_uuid(Uuid::from_u128(number)),
            causation: None,
            decided_at: at,
            events: vec![event],
        };
        let position = Position::new(self.commits.len() as u64 + 1);
        self.commits.push(Recorded { position, recorded_at: at, commit });
        self
    }

    fn org_at(self, at: UnixMillis, actor: Actor, event: OrganizationEvent) -> Self {
        self.tell(StreamId::organization(org(1)), actor, at, event.into())
    }

    fn org(self, actor: Actor, event: OrganizationEvent) -> Self {
        self.org_at(at(100), actor, event)
    }

    fn of(self, whom: u128, actor: Actor, event: UserEvent) -> Self {
        self.tell(StreamId::user(org(1), user(whom)), actor, at(100), event.into())
    }

    fn made(self, whom: u128, actor: Actor) -> Self {
        let created = UserEvent::Created {
            user: user(whom),
            issuer: "local".to_owned(),
            subject: user(whom).to_string(),
            email: address(),
            name: format!("Person {whom}"),
        };
        self.of(whom, actor, created)
    }

    /// An account and membership.
    fn joined(self, whom: u128, actor: Actor) -> Self {
        self.made(whom, actor).org(actor, OrganizationEvent::MemberAdded { user: user(whom) })
    }

    fn role(self, whom: u128, role: Role, scope: Scope, actor: Actor) -> Self {
        self.org(actor, grant(Grantee::User(user(whom)), role, scope))
    }

    /// Account, membership and a role everywhere, all by one.
    fn hired(self, whom: u128, role: Role, actor: Actor) -> Self {
        self.joined(whom, actor).role(whom, role, WHOLE, actor)
    }

    fn founded() -> Self {
        Self::default().hired(FOUNDER, Role::Owner, SETUP)
    }

    fn team(self, number: u128, role: Role, actor: Actor) -> Self {
        self.org(actor, OrganizationEvent::TeamCreated { team: team(number), slug: "crew".parse().unwrap() })
            .org(actor, grant(Grantee::Team(team(number)), role, WHOLE))
    }

    fn in_team(self, whom: u128, number: u128, actor: Actor) -> Self {
        self.org(actor, OrganizationEvent::TeamMemberAdded { team: team(number), user: user(whom) })
    }

    /// What `whom` has from `requester` alone.
    fn derived(&self, requester: u128, whom: u128) -> Option<Derived> {
        self.derived_at(requester, whom, at(1_000))
    }

    fn derived_at(&self, requester: u128, whom: u128, now: UnixMillis) -> Option<Derived> {
        let mut left = Provenance::without(user(requester));
        self.commits.iter().for_each(|recorded| left.apply(recorded));
        left.derived(user(whom), Action::RootApprove, &place(), now)
    }

    #[track_caller]
    fn stands(&self, whom: u128, requester: u128) {
        assert_eq!(self.derived(requester, whom), None, "{whom} without {requester}");
    }

    #[track_caller]
    fn owes(&self, whom: u128, requester: u128, what: Derived) {
        assert_eq!(self.derived(requester, whom), Some(what), "{whom} without {requester}");
    }
}

#[test]
fn who_was_made_invited_or_promoted_by_somebody_owes_it_to_them_and_they_owe_nothing_back() {
    let log = Log::founded().hired(2, Role::Admin, by(FOUNDER));
    log.owes(2, FOUNDER, Derived::Account);
    log.stands(FOUNDER, 2);
    // An account of the founder's making, a membership and a role of the admin's.
    let log = log.made(3, by(FOUNDER)).org(by(2), OrganizationEvent::MemberAdded { user: user(3) });
    log.clone().role(3, Role::Admin, WHOLE, by(FOUNDER)).owes(3, 2, Derived::Membership);
    let log = Log::founded().hired(2, Role::Admin, by(FOUNDER)).joined(3, by(FOUNDER));
    log.owes(3, 2, Derived::Role);
    let log = log.role(3, Role::Admin, WHOLE, by(2));
    log.owes(3, 2, Derived::Role);
    log.clone().role(3, Role::Admin, Scope::Project(project(1)), by(FOUNDER)).stands(3, 2);
    // A role that does not allow it, and a place that is another one, help nobody.
    log.clone().role(3, Role::Developer, WHOLE, by(FOUNDER)).owes(3, 2, Derived::Role);
    log.clone().role(3, Role::Admin, Scope::Project(project(2)), by(FOUNDER)).owes(3, 2, Derived::Role);
    let elsewhere = Scope::Workspace { project: project(1), workspace: workspace(2) };
    log.clone().role(3, Role::Admin, elsewhere, by(FOUNDER)).owes(3, 2, Derived::Role);
    let here = Scope::Workspace { project: project(1), workspace: workspace(1) };
    log.clone().role(3, Role::Admin, here, by(FOUNDER)).stands(3, 2);
    // Taken and given anew, it is whose who gave it last.
    let revoked = OrganizationEvent::RoleRevoked { grantee: Grantee::User(user(3)), role: Role::Admin, scope: WHOLE };
    log.org(by(FOUNDER), revoked).role(3, Role::Admin, WHOLE, by(FOUNDER)).stands(3, 2);
}

#[test]
fn what_comes_through_others_is_owed_too_and_what_they_gave_on_their_own_is_not() {
    let chain =
        Log::founded().hired(2, Role::Admin, by(FOUNDER)).hired(3, Role::Admin, by(2)).hired(4, Role::Admin, by(3));
    chain.owes(4, 2, Derived::Account);
    chain.owes(4, 3, Derived::Account);
    chain.stands(2, 4);
    chain.stands(FOUNDER, 3);
    // Somebody's own right to give, later on: what they gave before stays owed.
    let late = Log::founded().joined(3, by(FOUNDER)).hired(2, Role::Admin, by(FOUNDER)).joined(4, by(FOUNDER));
    let late = late.role(3, Role::Admin, WHOLE, by(2)).role(4, Role::Admin, WHOLE, by(3)).role(
        3,
        Role::Owner,
        WHOLE,
        by(FOUNDER),
    );
    late.stands(3, 2);
    late.owes(4, 2, Derived::Role);
    late.role(4, Role::Admin, Scope::Project(project(1)), by(3)).stands(4, 2);
    // Whoever gave on their own right may leave: what they gave stays, for everybody.
    let left = Log::founded().hired(2, Role::Admin, by(FOUNDER)).hired(5, Role::Admin, by(FOUNDER)).hired(
        3,
        Role::Admin,
        by(2),
    );
    let left = left.org(by(FOUNDER), OrganizationEvent::MemberRemoved { user: user(2) });
    left.stands(3, 5);
    left.owes(3, 2, Derived::Account);
    // A moderator makes accounts, and gives nobody what decides, by whomever they are an admin besides.
    let moderated = Log::founded().hired(2, Role::Admin, by(FOUNDER)).hired(3, Role::Mod, by(FOUNDER));
    let moderated = moderated.joined(4, by(3)).role(4, Role::Admin, WHOLE, by(FOUNDER));
    moderated.stands(4, 2);
    moderated.owes(4, 3, Derived::Account);
    let both = moderated.joined(5, by(FOUNDER)).role(3, Role::Admin, WHOLE, by(2)).role(5, Role::Admin, WHOLE, by(3));
    both.owes(5, 2, Derived::Role);
}

#[test]
fn through_a_team_both_its_role_and_the_place_in_it_have_to_be_anothers_gift() {
    let people = Log::founded().hired(2, Role::Admin, by(FOUNDER)).joined(3, by(FOUNDER));
    people.clone().team(1, Role::Admin, by(2)).in_team(3, 1, by(FOUNDER)).owes(3, 2, Derived::Role);
    people.clone().team(1, Role::Admin, by(FOUNDER)).in_team(3, 1, by(2)).owes(3, 2, Derived::Role);
    let both = people.clone().team(1, Role::Admin, by(FOUNDER)).in_team(3, 1, by(FOUNDER));
    both.stands(3, 2);
    let out = OrganizationEvent::TeamMemberRemoved { team: team(1), user: user(3) };
    both.clone().org(by(2), out).in_team(3, 1, by(2)).owes(3, 2, Derived::Role);
    both.clone().org(by(2), OrganizationEvent::TeamDeleted { team: team(1) }).owes(3, 2, Derived::Role);
    // Who could put nobody in without an admin's role of the requester's gift does not stand behind it.
    let lent = people.hired(4, Role::Mod, by(FOUNDER)).role(4, Role::Admin, WHOLE, by(2));
    lent.team(1, Role::Admin, by(FOUNDER)).in_team(3, 1, by(4)).owes(3, 2, Derived::Role);
}

#[test]
fn an_invitation_is_whose_who_made_it_whoever_wrote_the_acceptance() {
    let invite = |log: Log, inviter: u128, whom: u128| {
        let invitation = Invitation {
            user: user(whom),
            email: address(),
            roles: Vec::new(),
            invited_by: user(inviter),
            expires_at: at(5_000),
        };
        let log = log.of(whom, by(inviter), UserEvent::Invited { invitation });
        let log = log.of(whom, IDENTITY, UserEvent::InvitationAccepted);
        log.hired(whom, Role::Admin, IDENTITY)
    };
    let log = Log::founded().hired(2, Role::Admin, by(FOUNDER));
    invite(log.clone(), 2, 3).owes(3, 2, Derived::Account);
    invite(log.clone(), 2, 3).role(3, Role::Owner, WHOLE, by(FOUNDER)).owes(3, 2, Derived::Account);
    invite(log.clone(), FOUNDER, 3).stands(3, 2);
    // By somebody who was let in by the requester.
    invite(invite(log.clone(), 2, 3), 3, 4).owes(4, 2, Derived::Account);
    // Whom an identity provider sends nobody invited.
    let sent = log.joined(3, IDENTITY).role(3, Role::Developer, WHOLE, IDENTITY);
    sent.owes(3, 2, Derived::Role);
    sent.clone().role(3, Role::Admin, WHOLE, by(2)).owes(3, 2, Derived::Role);
    sent.role(3, Role::Admin, WHOLE, by(FOUNDER)).stands(3, 2);
}

#[test]
fn who_comes_back_owes_it_to_whoever_let_them_in_again() {
    let log = Log::founded().hired(2, Role::Admin, by(FOUNDER)).hired(3, Role::Admin, by(FOUNDER));
    let removed = || OrganizationEvent::MemberRemoved { user: user(3) };
    let again = || OrganizationEvent::MemberAdded { user: user(3) };
    log.stands(3, 2);
    let back = log.clone().org(by(2), removed()).org(by(2), again());
    back.owes(3, 2, Derived::Membership);
    back.role(3, Role::Admin, WHOLE, by(FOUNDER)).owes(3, 2, Derived::Membership);
    let back = log.clone().org(by(2), removed()).org(by(FOUNDER), again()).role(3, Role::Admin, WHOLE, by(FOUNDER));
    back.stands(3, 2);
    let open = |log: Log, who: Actor| log.of(3, who, UserEvent::Deactivated).of(3, who, UserEvent::Reactivated);
    open(log.clone(), by(2)).owes(3, 2, Derived::Account);
    open(open(log.clone(), by(2)), by(FOUNDER)).stands(3, 2);
    log.clone().of(3, by(FOUNDER), UserEvent::Deactivated).owes(3, 2, Derived::Account);
    // Nobody sets another's password; were there a way, it would be a way into the account.
    log.clone().of(3, by(3), UserEvent::PasswordChanged).stands(3, 2);
    log.of(3, by(2), UserEvent::PasswordChanged).owes(3, 2, Derived::Account);
}

#[test]
fn what_the_operator_recovered_is_nobodys_gift() {
    let log = Log::founded().hired(2, Role::Admin, by(FOUNDER)).hired(3, Role::Owner, by(2));
    log.owes(3, FOUNDER, Derived::Account);
    let recovered = log.clone().org(SETUP, OrganizationEvent::OwnerRecovered { user: user(3) });
    recovered.stands(3, FOUNDER);
    recovered.stands(3, 2);
    recovered.clone().org(by(2), OrganizationEvent::MemberRemoved { user: user(3) }).owes(
        3,
        FOUNDER,
        Derived::Membership,
    );
    // The word alone, from anybody else, is worth nothing.
    log.org(by(FOUNDER), OrganizationEvent::OwnerRecovered { user: user(3) }).owes(3, FOUNDER, Derived::Account);
    let new = Log::founded().made(4, SETUP).org(SETUP, OrganizationEvent::OwnerRecovered { user: user(4) });
    let new = new.org(SETUP, OrganizationEvent::MemberAdded { user: user(4) }).role(4, Role::Owner, WHOLE, SETUP);
    new.stands(4, FOUNDER);
}

#[test]
fn a_role_counts_while_it_is_live_for_deciding_and_for_giving() {
    let until = |grantee: u128, role, end: u64| OrganizationEvent::RoleAssigned {
        grant: Grant { grantee: Grantee::User(user(grantee)), role, scope: WHOLE, expires_at: Some(at(end)) },
    };
    let log = Log::founded().hired(2, Role::Admin, by(FOUNDER)).joined(3, by(FOUNDER));
    let log = log.org(by(FOUNDER), until(3, Role::Admin, 500));
    assert_eq!(log.derived_at(2, 3, at(499)), None);
    assert_eq!(log.derived_at(2, 3, at(500)), Some(Derived::Role));
    // What they gave when only the requester's role was left is the requester's.
    let log = log.role(3, Role::Admin, Scope::Project(project(1)), by(2)).joined(4, by(FOUNDER));
    let give = || grant(Grantee::User(user(4)), Role::Admin, WHOLE);
    log.clone().org_at(at(499), by(3), give()).stands(4, 2);
    log.clone().org_at(at(500), by(3), give()).owes(4, 2, Derived::Role);
    // Whoever gives it another end has given it.
    log.org(by(2), until(3, Role::Admin, 900)).owes(3, 2, Derived::Role);
}

#[test]
fn programs_and_strangers_give_nothing_and_nobody_stands_without_their_own_stream() {
    for stranger in [Actor::ServiceToken(token(1)), Actor::Agent(host(1)), Actor::Anonymous] {
        Log::founded().hired(2, Role::Admin, stranger).owes(2, 9, Derived::Account);
        Log::founded().joined(2, by(FOUNDER)).role(2, Role::Admin, WHOLE, stranger).owes(2, 9, Derived::Role);
    }
    let unread = Log::founded().org(by(FOUNDER), OrganizationEvent::MemberAdded { user: user(2) }).role(
        2,
        Role::Admin,
        WHOLE,
        by(FOUNDER),
    );
    unread.owes(2, 9, Derived::Account);
}

/// Something that one person gives another.
#[derive(Clone, Copy, Debug)]
enum Gift {
    Hire(u128, Role),
    Role(u128, Role, bool),
    TeamRole(Role),
    Join(u128),
    Reopen(u128),
    Readd(u128),
}

const ROLES: [Role; 4] = [Role::Owner, Role::Admin, Role::Mod, Role::Developer];

fn gift() -> impl Strategy<Value = (u128, Gift)> {
    let role = || (0..ROLES.len()).prop_map(|index| ROLES[index]);
    let whom = || 2..7_u128;
    let gifts = prop_oneof![
        3 => (whom(), role()).prop_map(|(whom, role)| Gift::Hire(whom, role)),
        3 => (whom(), role(), any::<bool>()).prop_map(|(whom, role, everywhere)| Gift::Role(whom, role, everywhere)),
        1 => role().prop_map(Gift::TeamRole),
        2 => whom().prop_map(Gift::Join),
        1 => whom().prop_map(Gift::Reopen),
        1 => whom().prop_map(Gift::Readd),
    ];
    (1..7_u128, gifts)
}

fn tell(log: Log, giver: u128, gift: Gift) -> Log {
    let giver = by(giver);
    match gift {
        Gift::Hire(whom, role) => log.hired(whom, role, giver),
        Gift::Role(whom, role, everywhere) => {
            let somewhere = if role.only_org_wide() || everywhere { WHOLE } else { Scope::Project(project(1)) };
            log.role(whom, role, somewhere, giver)
        }
        Gift::TeamRole(role) => log.org(giver, grant(Grantee::Team(team(1)), role, WHOLE)),
        Gift::Join(whom) => log.in_team(whom, 1, giver),
        Gift::Reopen(whom) => log.of(whom, giver, UserEvent::Reactivated),
        Gift::Readd(whom) => log.org(giver, OrganizationEvent::MemberAdded { user: user(whom) }),
    }
}

/// The organization as it would have come to be without one person: every gift decided anew by the organization itself, in
/// order, with theirs left out. Who was hired is somebody from then on.
struct Counterfactual {
    organization: Organization,
    accounts: BTreeSet<u128>,
}

impl Counterfactual {
    fn founded() -> Self {
        let create = OrganizationCommand::Create {
            org: org(1),
            slug: "acme".parse().unwrap(),
            name: "Acme".into(),
            owner: user(FOUNDER),
        };
        let mut founded = Self { organization: Organization::Unknown, accounts: BTreeSet::from([FOUNDER]) };
        founded.carry_out(&create);
        founded
    }

    /// Whether it changed anything.
    fn carry_out(&mut self, command: &OrganizationCommand) -> bool {
        let events = Organization::decide(&self.organization, command).unwrap_or_default();
        let state = std::mem::take(&mut self.organization);
        self.organization = events.iter().fold(state, Organization::evolve);
        !events.is_empty()
    }

    fn may(&self, giver: u128, action: Action) -> bool {
        let Organization::Active(organization) = &self.organization else { return false };
        self.accounts.contains(&giver) && organization.beyond_doing(by(giver), [&action], WHOLE, at(100)).is_none()
    }

    /// Whether it could be given whole, and would change anything.
    fn takes(&self, giver: u128, gift: Gift) -> bool {
        let mut trial = Self { organization: self.organization.clone(), accounts: self.accounts.clone() };
        match gift {
            Gift::Hire(whom, _) => !self.accounts.contains(&whom) && trial.give(giver, gift),
            _ => trial.give(giver, gift),
        }
    }

    /// Gives what of it can be given; whether all of it was.
    fn give(&mut self, giver: u128, gift: Gift) -> bool {
        let (now, actor) = (at(100), by(giver));
        let assign = |grantee, role, scope| OrganizationCommand::AssignRole {
            by: actor,
            grant: Grant { grantee, role, scope, expires_at: None },
            now,
        };
        match gift {
            Gift::Hire(whom, role) => {
                if !self.may(giver, Action::MemberAdd) {
                    return false;
                }
                self.accounts.insert(whom);
                self.carry_out(&OrganizationCommand::AddMember { user: user(whom) });
                self.carry_out(&assign(Grantee::User(user(whom)), role, WHOLE))
            }
            Gift::Role(whom, role, everywhere) => {
                let scope = if role.only_org_wide() || everywhere { WHOLE } else { Scope::Project(project(1)) };
                self.may(giver, Action::RoleAssign) && self.carry_out(&assign(Grantee::User(user(whom)), role, scope))
            }
            Gift::TeamRole(_) | Gift::Join(_) | Gift::Reopen(_) | Gift::Readd(_) => false,
        }
    }

    fn decides(&self, whom: u128) -> bool {
        let Organization::Active(organization) = &self.organization else { return false };
        let here = Scope::Workspace { project: project(1), workspace: workspace(1) };
        self.accounts.contains(&whom)
            && organization.beyond_doing(by(whom), [&Action::RootApprove], here, at(100)).is_none()
    }
}

proptest! {
    /// The rule, held against the organization itself deciding all over again without the requester.
    #[test]
    fn who_stands_is_who_would_hold_it_in_the_organization_without_the_requester(
        gifts in prop::collection::vec(gift(), 0..40), requester in 1..7_u128,
    ) {
        let (mut real, mut left, mut log) = (Counterfactual::founded(), Counterfactual::founded(), Log::founded());
        for (giver, gift) in gifts {
            // What changed nothing stands in no log, and counts for nothing later on.
            if !real.takes(giver, gift) {
                continue;
            }
            real.give(giver, gift);
            log = tell(log, giver, gift);
            if giver != requester {
                left.give(giver, gift);
            }
        }
        for whom in (1..7_u128).filter(|whom| *whom != requester) {
            prop_assert_eq!(log.derived(requester, whom).is_none(), left.decides(whom), "{} without {}", whom, requester);
        }
    }

    #[test]
    fn nothing_that_the_requester_gives_makes_anybody_stand(
        gifts in prop::collection::vec(gift(), 0..25),
        theirs in prop::collection::vec((gift(), any::<prop::sample::Index>()), 1..8),
        requester in 2..7_u128,
    ) {
        let written = |gifts: &[(u128, Gift)]| gifts.iter().fold(Log::founded(), |log, (giver, gift)| tell(log, *giver, *gift));
        let before = written(&gifts);
        let mut more = gifts;
        for ((_, gift), index) in theirs {
            let index = index.index(more.len() + 1);
            more.insert(index, (requester, gift));
        }
        let after = written(&more);
        for whom in 1..7_u128 {
            if before.derived(requester, whom).is_some() {
                prop_assert!(after.derived(requester, whom).is_some(), "{whom} stands by the gift of {requester}");
            }
        }
    }

    #[test]
    fn people_are_told_apart_by_what_they_were_given_alone(
        gifts in prop::collection::vec(gift(), 0..30), requester in 1..7_u128, shift in 1..100_u128,
    ) {
        // Other ids, in another order: the founder keeps theirs, who is somebody else.
        let other = |number: u128| if number == FOUNDER { FOUNDER } else { 1_000 - number * shift };
        let renamed = |gift| match gift {
            Gift::Hire(whom, role) => Gift::Hire(other(whom), role),
            Gift::Role(whom, role, everywhere) => Gift::Role(other(whom), role, everywhere),
            Gift::TeamRole(role) => Gift::TeamRole(role),
            Gift::Join(whom) => Gift::Join(other(whom)),
            Gift::Reopen(whom) => Gift::Reopen(other(whom)),
            Gift::Readd(whom) => Gift::Readd(other(whom)),
        };
        let log = gifts.iter().fold(Log::founded(), |log, (giver, gift)| tell(log, *giver, *gift));
        let again = gifts.iter().fold(Log::founded(), |log, (giver, gift)| tell(log, other(*giver), renamed(*gift)));
        for whom in 1..7_u128 {
            prop_assert_eq!(log.derived(requester, whom), again.derived(other(requester), other(whom)));
        }
    }

    /// Reading the streams of a person's givers, and of theirs, is enough to answer about them.
    #[test]
    fn a_persons_givers_and_theirs_are_all_that_has_to_be_read(
        gifts in prop::collection::vec(gift(), 0..30), requester in 1..7_u128, whom in 1..7_u128,
    ) {
        let log = gifts.into_iter().fold(Log::founded(), |log, (giver, gift)| tell(log, giver, gift));
        let is_of = |recorded: &&Recorded, stream: &StreamId| recorded.commit.stream == *stream;
        let on = |stream: &StreamId| log.commits.iter().filter(|recorded| is_of(recorded, stream)).cloned().collect::<Vec<_>>();
        let organization = on(&StreamId::organization(org(1)));
        let (mut wanted, mut read) = (BTreeSet::from([user(whom)]), BTreeSet::from([user(requester)]));
        let mut part = Log { commits: organization.clone() };
        while let Some(next) = wanted.pop_first() {
            if read.insert(next) {
                let own = on(&StreamId::user(org(1), next));
                wanted.extend(givers(next, &organization));
                wanted.extend(givers(next, &own));
                part.commits.extend(own);
            }
        }
        part.commits.retain(|recorded| recorded.commit.events.iter().any(matters));
        part.commits.sort_by_key(|recorded| recorded.position);
        if whom != requester {
            prop_assert_eq!(part.derived(requester, whom), log.derived(requester, whom));
        }
    }
}
