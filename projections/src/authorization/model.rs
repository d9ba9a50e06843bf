//! The policy over any history, held against a naive reading of SPEC that shares no code with it.
//!
//! The model keeps nothing: for each question it walks the history backwards to the last thing that was said about each
//! matter. Slow, and short enough to be read beside SPEC, "Identity". Times are minutes after `NOW`.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use envforge_domain::access::{Action, Grant, Grantee, Request, Role, Roles, Scope, authorize};
use envforge_domain::aggregate::Aggregate;
use envforge_domain::commit::{Component, StreamId, Surface};
use envforge_domain::dev_link::{RouteFamilies, RouteFamily};
use envforge_domain::organization::{Organization, OrganizationCommand};
use envforge_domain::root_window::{RootAccess, RootMode, RootPolicy, RootTerms, RootWindowEvent};
use envforge_domain::time::Millis;
use envforge_domain::user::{OpenSession, SessionEnd};
use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::gateway_view::LinkPhase;
use crate::given::*;

const PEOPLE: u128 = 4;
const SETUP: Actor = Actor::System(Component::Setup);
/// The story's sessions last two hours.
const SESSION_MINUTES: u64 = 120;

fn team(number: u128) -> TeamId {
    TeamId::from_uuid(Uuid::from_u128(number))
}

fn window(number: u128) -> RootWindowId {
    RootWindowId::from_uuid(Uuid::from_u128(number))
}

fn minute(minutes: u64) -> UnixMillis {
    NOW.plus(Millis::from_minutes(minutes))
}

/// Something that may happen, of a few people, teams, projects, workspaces and links.
#[derive(Clone, Debug)]
enum Step {
    Organize(OrganizationCommand),
    SignIn(u128),
    SignOut(u128),
    Deactivate(u128),
    /// On workspace 1 of project 1, for so many minutes.
    Issue(u128, u64),
    Revoke(u128),
    /// A root window on workspace 1 of project 1, open for so many minutes at once or waiting for its approval.
    Ask(u128, u64, bool),
    Wait(u64),
}

#[derive(Clone, Copy, Debug)]
struct Question {
    who: u128,
    action: usize,
    project: u128,
    workspace: u128,
    minutes_later: u64,
}

// The naive reading. What SPEC says of each role, for one action of each sort.

#[derive(Clone, Copy, PartialEq)]
enum Where {
    WholeOrganization,
    Project,
    Workspace,
}

/// The action, where it counts, and who may: SPEC, "Roles".
const SPEC: [(Action, Where, &str); 12] = [
    (Action::OrganizationRead, Where::WholeOrganization, "owner admin developer viewer billing explore create mod"),
    (Action::OrganizationChangePolicy, Where::WholeOrganization, "owner admin mod"),
    (Action::TeamAddMember, Where::WholeOrganization, "owner admin mod"),
    (Action::AuditRead, Where::WholeOrganization, "owner admin explore create mod"),
    (Action::UsageRead, Where::WholeOrganization, "owner admin viewer billing explore create mod"),
    (Action::ProjectRead, Where::Project, "owner admin developer viewer explore create mod"),
    (Action::ProjectEdit, Where::Project, "owner admin create mod"),
    (Action::WorkspaceCreate, Where::Project, "owner admin developer create mod"),
    (Action::WorkspaceRead, Where::Workspace, "owner admin developer viewer explore create mod"),
    (Action::RuntimeWake, Where::Workspace, "owner admin developer create mod"),
    (Action::LinkIssue, Where::Workspace, "owner admin developer mod"),
    (Action::LinkRevoke, Where::Workspace, "owner admin developer mod"),
];

/// What was said, in order.
struct Said<'a>(&'a [Recorded]);

impl Said<'_> {
    /// The last event for which `about` has an answer.
    fn last<T>(&self, about: impl Fn(&Event, &Recorded) -> Option<T>) -> Option<T> {
        let commits = self.0.iter().rev();
        let mut events =
            commits.flat_map(|recorded| recorded.commit.events.iter().rev().map(move |event| (event, recorded)));
        events.find_map(|(event, recorded)| about(event, recorded))
    }

    fn of_organization<T>(&self, about: impl Fn(&OrganizationEvent) -> Option<T>) -> Option<T> {
        self.last(|event, _| if let Event::Organization(event) = event { about(event) } else { None })
    }

    fn of_person<T>(&self, who: UserId, about: impl Fn(&UserEvent, UnixMillis) -> Option<T>) -> Option<T> {
        self.last(|event, recorded| match event {
            Event::User(event) if recorded.commit.stream.key() == who.to_string() => {
                about(event, recorded.commit.decided_at)
            }
            _ => None,
        })
    }

    fn policy(&self) -> OrganizationPolicy {
        let changed = self.of_organization(|event| match event {
            OrganizationEvent::PolicyChanged { policy } => Some(policy.clone()),
            _ => None,
        });
        changed.unwrap_or_default()
    }

    fn is_member(&self, who: UserId) -> bool {
        self.of_organization(|event| match event {
            OrganizationEvent::MemberAdded { user } if *user == who => Some(true),
            OrganizationEvent::MemberRemoved { user } if *user == who => Some(false),
            _ => None,
        }) == Some(true)
    }

    fn is_active(&self, who: UserId) -> bool {
        self.of_person(who, |event, _| matches!(event, UserEvent::Deactivated).then_some(())).is_none()
    }

    fn is_in(&self, who: UserId, of: TeamId) -> bool {
        self.of_organization(|event| match event {
            OrganizationEvent::TeamMemberAdded { team, user } if (*team, *user) == (of, who) => Some(true),
            OrganizationEvent::TeamMemberRemoved { team, user } if (*team, *user) == (of, who) => Some(false),
            OrganizationEvent::TeamDeleted { team } if *team == of => Some(false),
            OrganizationEvent::MemberRemoved { user } if *user == who => Some(false),
            _ => None,
        }) == Some(true)
    }

    /// The end of a grant that was given and not taken; `Some(None)` where it has none.
    fn grant(&self, to: Grantee, what: Role, at: Scope) -> Option<Option<UnixMillis>> {
        self.of_organization(|event| match event {
            OrganizationEvent::RoleAssigned { grant } if (grant.grantee, grant.role, grant.scope) == (to, what, at) => {
                Some(Some(grant.expires_at))
            }
            OrganizationEvent::RoleRevoked { grantee, role, scope } if (*grantee, *role, *scope) == (to, what, at) => {
                Some(None)
            }
            OrganizationEvent::MemberRemoved { user } if to == Grantee::User(*user) => Some(None),
            OrganizationEvent::TeamDeleted { team } if to == Grantee::Team(*team) => Some(None),
            _ => None,
        })?
    }

    /// Until when somebody may do something there: the latest end of what lets them, `None` where nothing does.
    fn may_until(&self, who: UserId, question: (Action, Where, &str), on: u128, at: u128) -> Option<UnixMillis> {
        let (action, reach, roles) = question;
        let mut scopes = vec![Scope::Organization];
        if reach != Where::WholeOrganization {
            scopes.push(Scope::Project(project(on)));
        }
        if reach == Where::Workspace {
            scopes.push(Scope::Workspace { project: project(on), workspace: workspace(at) });
        }
        let mut until = None;
        for role in roles.split(' ').map(|role| role.parse::<Role>().unwrap()) {
            if action == Action::LinkIssue && !self.policy().link_issuers.contains(role) {
                continue;
            }
            for scope in &scopes {
                let teams = (1..=3).map(team).filter(|team| self.is_in(who, *team)).map(Grantee::Team);
                for grantee in teams.chain([Grantee::User(who)]) {
                    if let Some(end) = self.grant(grantee, role, *scope) {
                        until = until.max(Some(end.unwrap_or(UnixMillis::new(u64::MAX))));
                    }
                }
            }
        }
        until
    }

    fn is_signed_in(&self, who: UserId, by: SessionId, now: UnixMillis) -> bool {
        let removed_after = |opened: u64| {
            self.last(|event, recorded| match event {
                Event::Organization(OrganizationEvent::MemberRemoved { user }) if *user == who => {
                    Some(recorded.position.get() > opened)
                }
                _ => None,
            }) == Some(true)
        };
        let opened = self.last(|event, recorded| match event {
            Event::User(UserEvent::SessionOpened { session, expires_at, .. }) if *session == by => {
                Some(Some((recorded.commit.decided_at, *expires_at, recorded.position.get())))
            }
            Event::User(UserEvent::SessionEnded { session, .. }) if *session == by => Some(None),
            Event::User(UserEvent::Deactivated) if recorded.commit.stream.key() == who.to_string() => Some(None),
            _ => None,
        });
        let Some(Some((opened, expires_at, position))) = opened else { return false };
        let policy = self.policy();
        let providers = &policy.identity_providers;
        let longest = UnixMillis::new(opened.get() + policy.session_lifetime_max.get());
        now < expires_at
            && now < longest
            && !removed_after(position)
            && (providers.is_empty() || providers.iter().any(|provider| provider == "local"))
    }

    fn may(&self, who: UserId, session: SessionId, question: &Question, now: UnixMillis) -> bool {
        let asked = SPEC[question.action];
        self.is_member(who)
            && self.is_active(who)
            && self.is_signed_in(who, session, now)
            && self.may_until(who, asked, question.project, question.workspace).is_some_and(|until| now < until)
    }

    /// Until when a link that was not revoked stands, and what it opens.
    fn link(&self, number: u128) -> Option<(UnixMillis, RouteFamilies)> {
        let (by, issued_at, expires_at) = self.last(|event, recorded| match event {
            Event::DevLink(event) if recorded.commit.stream.key() == link(number).to_string() => match event {
                DevLinkEvent::Issued { issued_by, issued_at, expires_at, .. } => {
                    Some(Some((*issued_by, *issued_at, *expires_at)))
                }
                _ => Some(None),
            },
            _ => None,
        })??;
        let policy = self.policy();
        let issuing = *SPEC.iter().find(|(action, ..)| *action == Action::LinkIssue).unwrap();
        let issuer_until = self.may_until(by, issuing, 1, 1).filter(|_| self.is_member(by) && self.is_active(by))?;
        let longest = UnixMillis::new(issued_at.get() + policy.link_lifetime_max.get());
        Some((expires_at.min(issuer_until).min(longest), policy.link_families))
    }
}

// What really is.

impl Story {
    fn take(&mut self, step: Step, sessions: &mut Vec<u128>, links: &mut u128) {
        match step {
            Step::Organize(mut command) => {
                // The steps do not know the time.
                if let OrganizationCommand::AssignRole { now, .. } = &mut command {
                    *now = self.now;
                }
                let history = self.history.iter().flat_map(|recorded| &recorded.commit.events);
                let state = Organization::fold(history);
                let decided = Organization::decide(&state, &command).unwrap_or_default();
                if !decided.is_empty() {
                    let events = decided.into_iter().map(Event::from).collect();
                    self.append(StreamId::organization(org(1)), events);
                }
            }
            Step::SignIn(who) => {
                let number = 100 + sessions.len() as u128;
                sessions[who as usize] = number;
                sessions.push(number);
                let expires_at = self.now.plus(Millis::from_minutes(SESSION_MINUTES));
                let opened = OpenSession::of_local_account(Surface::Api, self.now, expires_at);
                let opened = UserEvent::session_opened(session(number), opened);
                if Said(&self.history).is_active(user(who)) {
                    self.of_user(who, opened);
                }
            }
            Step::SignOut(who) => {
                let session = session(sessions[who as usize]);
                self.of_user(who, UserEvent::SessionEnded { session, reason: SessionEnd::LoggedOut });
            }
            Step::Deactivate(who) => self.of_user(who, UserEvent::Deactivated),
            Step::Issue(who, minutes) => {
                *links += 1;
                let issued = DevLinkEvent::Issued {
                    link: link(*links),
                    project: project(1),
                    workspace: workspace(1),
                    service: "web".parse().unwrap(),
                    families: RouteFamilies::ALL,
                    issued_at: self.now,
                    expires_at: self.now.plus(Millis::from_minutes(minutes)),
                    label: "review".to_owned(),
                    wake_budget: None,
                    issued_by: user(who),
                };
                self.on_link(*links, issued);
            }
            Step::Revoke(number) if number <= *links => {
                self.on_link(number, DevLinkEvent::Revoked { reason: None });
            }
            Step::Revoke(_) => {}
            Step::Ask(who, minutes, opens) => {
                let number = 1 + self.history.len() as u128;
                let (window, length) = (window(number), Millis::from_minutes(minutes));
                let terms = RootTerms {
                    window,
                    project: project(1),
                    workspace: workspace(1),
                    requester: user(who),
                    mode: if opens { RootMode::BreakGlass } else { RootMode::Elevation },
                    access: RootAccess::Command,
                    reason: "because".to_owned(),
                    length,
                    requested_at: self.now,
                };
                let expires_at = self.now.plus(Millis::from_hours(24));
                let mut events = vec![RootWindowEvent::Requested { terms, expires_at }];
                if opens {
                    events.push(RootWindowEvent::Opened { at: self.now, ends_at: self.now.plus(length) });
                }
                let events = events.into_iter().map(Event::from).collect();
                self.append(StreamId::root_window(org(1), window), events);
            }
            Step::Wait(minutes) => self.now = self.now.plus(Millis::from_minutes(minutes)),
        }
    }
}

fn grantee() -> impl Strategy<Value = Grantee> {
    prop_oneof![
        (1..=PEOPLE).prop_map(|who| Grantee::User(user(who))),
        (1..4u128).prop_map(|of| Grantee::Team(team(of)))
    ]
}

fn scope() -> impl Strategy<Value = Scope> {
    let assigned =
        (1..3u128, 1..3u128).prop_map(|(on, at)| Scope::Workspace { project: project(on), workspace: workspace(at) });
    prop_oneof![Just(Scope::Organization), (1..3u128).prop_map(|on| Scope::Project(project(on))), assigned]
}

fn policy() -> impl Strategy<Value = OrganizationPolicy> {
    let issuers = prop::sample::subsequence(vec![Role::Owner, Role::Admin, Role::Developer, Role::Mod], 0..=4);
    let families = prop::sample::subsequence(RouteFamily::ALL.to_vec(), 0..=5);
    let providers = prop::sample::subsequence(vec!["local", "https://id.test/"], 0..=2);
    let root = (0..3_usize, 1..60_u64);
    let settings = (issuers, families, providers, 15..180u64, 1..180u64, root);
    settings.prop_map(|(issuers, families, providers, signed_in, link, (root, open))| OrganizationPolicy {
        root: RootPolicy::ALL[root],
        root_window_max: Millis::from_minutes(open),
        link_issuers: issuers.into_iter().collect::<Roles>(),
        link_families: families.into_iter().collect(),
        identity_providers: providers.into_iter().map(str::to_owned).collect(),
        session_lifetime_max: Millis::from_minutes(signed_in),
        link_lifetime_max: Millis::from_minutes(link),
        ..OrganizationPolicy::default()
    })
}

fn step() -> impl Strategy<Value = Step> {
    let person = || (1..=PEOPLE).prop_map(user);
    let of = || (1..4u128).prop_map(team);
    let organize = prop_oneof![
        person().prop_map(|user| OrganizationCommand::AddMember { user }),
        person().prop_map(|user| OrganizationCommand::RemoveMember { by: SETUP, user, now: NOW }),
        (1..4u128).prop_map(|number| OrganizationCommand::CreateTeam {
            team: team(number),
            slug: format!("team-{number}").parse().unwrap(),
        }),
        of().prop_map(|team| OrganizationCommand::DeleteTeam { by: SETUP, team, now: NOW }),
        (of(), person()).prop_map(|(team, user)| OrganizationCommand::AddTeamMember {
            by: SETUP,
            team,
            user,
            now: NOW
        }),
        (of(), person()).prop_map(|(team, user)| OrganizationCommand::RemoveTeamMember {
            by: SETUP,
            team,
            user,
            now: NOW
        }),
        (grantee(), 0..8usize, scope(), prop::option::of(1..300u64)).prop_map(|(grantee, role, scope, end)| {
            let grant = Grant { grantee, role: Role::ALL[role], scope, expires_at: end.map(minute) };
            OrganizationCommand::AssignRole { by: SETUP, grant, now: NOW }
        }),
        (grantee(), 0..8usize, scope()).prop_map(|(grantee, role, scope)| OrganizationCommand::RevokeRole {
            by: SETUP,
            grantee,
            role: Role::ALL[role],
            scope,
            now: NOW,
        }),
        policy().prop_map(|policy| OrganizationCommand::ChangePolicy { by: SETUP, policy, provider: None, now: NOW }),
    ];
    prop_oneof![
        8 => organize.prop_map(Step::Organize),
        1 => (1..=PEOPLE).prop_map(Step::SignIn),
        1 => (1..=PEOPLE).prop_map(Step::SignOut),
        1 => (2..=PEOPLE).prop_map(Step::Deactivate),
        2 => (1..=PEOPLE, 1..240u64).prop_map(|(who, minutes)| Step::Issue(who, minutes)),
        1 => (1..6u128).prop_map(Step::Revoke),
        2 => (1..=PEOPLE, 1..60u64, any::<bool>()).prop_map(|(who, minutes, opens)| Step::Ask(who, minutes, opens)),
        1 => (0..60u64).prop_map(Step::Wait),
    ]
}

fn question() -> impl Strategy<Value = Question> {
    (1..=PEOPLE, 0..SPEC.len(), 1..3u128, 1..3u128, 0..240u64).prop_map(
        |(who, action, project, workspace, minutes_later)| Question { who, action, project, workspace, minutes_later },
    )
}

fn ask(story: &Story, question: &Question, session: SessionId, now: UnixMillis) -> bool {
    let (action, reach, _) = SPEC[question.action];
    let org = org(1);
    let project = project(question.project);
    let resource = match reach {
        Where::WholeOrganization => Resource::Organization(org),
        Where::Project => Resource::Project { org, project },
        Where::Workspace => Resource::Workspace { org, project, workspace: workspace(question.workspace) },
    };
    let actor = Actor::User(user(question.who));
    let facts = story.hot.authorization.facts(&actor, Some(session), &resource, now);
    authorize(&facts, &Request { actor, action, resource, surface: Surface::Api, now }).is_ok()
}

/// Owner 1 and three people who have signed in and hold nothing yet; workspace 1 of project 1.
fn beginning() -> (Story, Vec<u128>) {
    let mut story = Story::empty();
    story.organization(1, "acme");
    for who in 2..=PEOPLE {
        story.person(who);
        story.in_organization(OrganizationEvent::MemberAdded { user: user(who) });
    }
    story.project(1);
    story.workspace(1, "signed-links");
    (story, (0..=PEOPLE).collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn the_views_and_the_policy_agree_with_a_naive_reading_of_any_history(
        steps in prop::collection::vec(step(), 1..60), questions in prop::collection::vec(question(), 40),
    ) {
        let (mut story, mut sessions) = beginning();
        let mut links = 0;
        for step in steps {
            story.take(step, &mut sessions, &mut links);
        }
        let said = Said(&story.history);
        for question in &questions {
            let session = session(sessions[question.who as usize]);
            let now = story.now.plus(Millis::from_minutes(question.minutes_later));
            let naive = said.may(user(question.who), session, question, now);
            prop_assert_eq!(ask(&story, question, session, now), naive, "{:?} {:?}", SPEC[question.action].0, question);
            for number in 1..=links {
                let stands = said.link(number).filter(|(end, _)| now < *end);
                let actor = Actor::LinkVisitor { link: link(number), session: None };
                let facts = story.hot.authorization.facts(&actor, None, &Resource::Organization(org(1)), now);
                let ActorFacts::Link { live, .. } = facts.actor else { panic!("link {number} is not known") };
                prop_assert_eq!(live, stands.is_some(), "link {} for commands", number);
                let view = story.hot.gateway.link(link(number)).unwrap();
                let open = view.phase == LinkPhase::Active && now < view.expires_at;
                prop_assert_eq!(open, stands.is_some(), "link {} at the gateway", number);
                if let Some((_, families)) = stands {
                    prop_assert_eq!(view.families, families, "what link {} opens", number);
                }
            }
        }
    }

    /// A dry run tells just what the change then does, and the same log gives the same answers again.
    #[test]
    fn a_dry_run_tells_what_the_change_then_ends(
        steps in prop::collection::vec(step(), 1..50), change in step(), minutes in 0..120u64,
    ) {
        let (mut story, mut sessions) = beginning();
        let mut links = 0;
        for step in steps {
            story.take(step, &mut sessions, &mut links);
        }
        let (Step::Organize(command), now) = (change, story.now.plus(Millis::from_minutes(minutes))) else {
            return Ok(());
        };
        story.now = now;
        let seen = |story: &Story| {
            let live = |number: &u128| {
                let view = story.hot.gateway.link(link(*number)).unwrap();
                (view.phase == LinkPhase::Active && now < view.expires_at)
                    .then(|| (*number, view.expires_at, view.families))
            };
            let signed_in = |(who, number): (u128, u128)| {
                let live = story.hot.authorization.session_live(user(who), session(number), now);
                live.then_some((user(who), session(number)))
            };
            let everybody = (1..=PEOPLE).map(|who| (who, sessions[who as usize])).chain((1..=PEOPLE).map(|who| (who, who)));
            let signed_in: std::collections::BTreeSet<_> = everybody.filter_map(signed_in).collect();
            ((1..=links).filter_map(|number| live(&number)).collect::<Vec<_>>(), signed_in)
        };
        let (links_before, sessions_before) = seen(&story);
        let windows = |story: &Story| {
            let all = story.hot.authorization.root_windows(org(1)).into_iter();
            all.filter(|known| known.stands(now)).map(|known| (known.window, known.ends_at)).collect::<BTreeMap<_, _>>()
        };
        let windows_before = windows(&story);
        let removes = matches!(command, OrganizationCommand::RemoveMember { .. });
        let at = story.history.len();
        let foretold = {
            let history = story.history.iter().flat_map(|recorded| &recorded.commit.events);
            let mut asked = command.clone();
            if let OrganizationCommand::AssignRole { now, .. } = &mut asked {
                *now = story.now;
            }
            let events = Organization::decide(&Organization::fold(history), &asked).unwrap_or_default();
            story.hot.authorization.consequences(org(1), &events, now)
        };
        let asked_nothing = story.history.len();
        story.take(Step::Organize(command), &mut sessions.clone(), &mut links.clone());
        prop_assert_eq!(at, asked_nothing, "a dry run writes nothing");
        let (links_after, sessions_after) = seen(&story);
        let windows_after = windows(&story);
        for (window, ends_at) in &windows_before {
            let told = foretold.root_windows.iter().find(|told| told.window == *window);
            match (windows_after.get(window), told) {
                (Some(end), None) => prop_assert!(end >= ends_at),
                (Some(end), Some(told)) => prop_assert_eq!(Some(told.ends_at), *end),
                (None, Some(told)) => prop_assert!(told.ends_at <= now),
                (None, None) => prop_assert!(false, "{} ended and nobody had said so", window),
            }
        }
        for told in &foretold.root_windows {
            prop_assert!(windows_before.contains_key(&told.window), "a window that was over");
        }
        for (number, ends_at, families) in &links_before {
            let after = links_after.iter().find(|(other, ..)| other == number);
            let told = foretold.links.iter().find(|told| told.link == link(*number));
            match (after, told) {
                (Some((_, end, opens)), None) => {
                    prop_assert!(end >= ends_at && families.minus(*opens).is_empty());
                }
                (Some((_, end, opens)), Some(told)) => {
                    prop_assert_eq!(told.families_lost, families.minus(*opens));
                    prop_assert_eq!(told.ends_at, (*end).max(now));
                }
                (None, Some(told)) => prop_assert!(told.ends_at <= now),
                (None, None) => prop_assert!(false, "link {} ended and nobody had said so", number),
            }
        }
        for told in &foretold.links {
            prop_assert!(links_before.iter().any(|(number, ..)| link(*number) == told.link), "a link that was over");
        }
        // Taking somebody out ends their sessions as such; a dry run tells what roles and policies end.
        if !removes {
            let ended: std::collections::BTreeSet<_> = sessions_before.difference(&sessions_after).copied().collect();
            let told: std::collections::BTreeSet<_> =
                foretold.sessions.iter().map(|told| (told.user, told.session)).collect();
            prop_assert!(ended.is_subset(&told), "{:?} were not foretold in {:?}", ended, told);
            for (user, session) in &told {
                prop_assert!(!story.hot.authorization.session_live(*user, *session, now));
            }
        }
        let again = crate::hot::Hot::unfed(crate::hot::HotConfig::default());
        story.history.iter().for_each(|recorded| again.fold(recorded));
        for number in 1..=links {
            let (first, second) = (story.hot.gateway.link(link(number)).unwrap(), again.gateway.link(link(number)).unwrap());
            prop_assert_eq!(
                (first.phase, first.expires_at, first.families),
                (second.phase, second.expires_at, second.families)
            );
        }
    }
}
