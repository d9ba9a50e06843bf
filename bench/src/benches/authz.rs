//! Decisions: the policy over the hot view of 10,000 users, 1,000 teams, 1,000 projects and 100,000 grants

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use envforge_domain::access::{Action, Grant, Grantee, Request, Resource, Role, Scope, authorize};
use envforge_domain::commit::{Actor, Position, Recorded, StreamId, Surface};
use envforge_domain::event::Event;
use envforge_domain::ids::{ProjectId, SessionId, TeamId, UserId, WorkspaceId};
use envforge_domain::organization::OrganizationEvent;
use envforge_domain::time::{Millis, UnixMillis};
use envforge_domain::user::{EmailAddress, OpenSession, UserEvent};
use envforge_eventlog::SharedLog;
use envforge_projections::Hot;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Extent;
use crate::commits::{commit, now, org, organization_created};
use crate::machine::{self, Cores};
use crate::memory_log::MemoryLog;
use crate::verdict::{Goal, Series, Verdicts};

const USERS: u64 = 10_000;
const TEAMS: u64 = 1_000;
const TEAMS_OF_USER: u64 = 10;
const PROJECTS: u64 = 1_000;
const WORKSPACES_OF_PROJECT: u64 = 20;
const GRANTS: u64 = 100_000;
/// Of the grants, those of teams; the others are people's own.
const GRANTS_OF_TEAMS: u64 = 30_000;
/// The first team holds that many, as one that reaches everything piece by piece.
const GRANTS_OF_FIRST_TEAM: u64 = 2_000;
/// Different questions, asked one after the other so that no answer is still at hand from the last one.
const QUESTIONS: usize = 200_000;
/// Decisions that are timed together: a clock is read in a good part of what one takes.
const TOGETHER: usize = 16;
const DEADLINE: Duration = Duration::from_secs(600);

pub(crate) fn run(cores: &Cores, extent: &Extent, verdicts: &mut Verdicts) -> Result<()> {
    println!(
        "authz: {USERS} users, each in {TEAMS_OF_USER} of {TEAMS} teams; {PROJECTS} projects with {WORKSPACES_OF_PROJECT} \
         workspaces each; {GRANTS} grants, {GRANTS_OF_TEAMS} of them of teams"
    );
    println!("(facts and decision, in one thread on all cores; {TOGETHER} different questions are timed together)");
    cores.use_all()?;
    let runtime = machine::runtime()?;
    let at = now();
    let begun = Instant::now();
    let history = history(at)?;
    println!("history of {} commits made in {:.1} s", history.len(), begun.elapsed().as_secs_f64());
    let head = Position::new(history.len() as u64);
    let log: SharedLog = Arc::new(MemoryLog::new(history));
    let begun = Instant::now();
    let hot = runtime.block_on(async {
        let hot = Hot::start(log, CancellationToken::new());
        hot.wait_for(head, DEADLINE).await.map(|()| hot)
    })?;
    println!("folded in {:.2} s", begun.elapsed().as_secs_f64());

    let questions = questions();
    let mut names = [
        ("any person", 0..USERS),
        // The first ones are in the team with thousands of grants.
        ("somebody with thousands of grants", 0..FIRST_TEAM_MEMBERS),
    ]
    .map(|(name, whom)| {
        (name, whom, Series::new(format!("{name}: median"), "us"), Series::new(format!("{name}: p99"), "us"))
    });
    for _ in 0..extent.rounds {
        for (_, whom, medians, p99s) in &mut names {
            let mut took: Vec<f64> = Vec::with_capacity(questions.len() / TOGETHER);
            let mut allowed = 0_u64;
            for together in questions.chunks(TOGETHER) {
                let begun = Instant::now();
                for question in together {
                    allowed += u64::from(decide(&hot, &question.of(whom), at));
                }
                took.push(begun.elapsed().as_secs_f64() * 1e6 / together.len() as f64);
            }
            ensure!(
                black_box(allowed) > 0 && allowed < questions.len() as u64,
                "{allowed} were allowed: nothing was decided"
            );
            took.sort_unstable_by(f64::total_cmp);
            medians.push(took[took.len() / 2]);
            p99s.push(took[took.len() * 99 / 100]);
        }
    }
    for (name, _, medians, p99s) in &names {
        println!("{medians}\n{p99s}");
        verdicts.judge(&format!("one decision about {name}, median"), medians.median(), "us", Goal::AtMost(1.0));
    }
    Ok(())
}

/// Users with numbers below are members of the first team.
const FIRST_TEAM_MEMBERS: u64 = USERS / TEAMS;

#[derive(Clone, Copy)]
struct Question {
    user: u64,
    action: Action,
    project: u64,
    workspace: u64,
}

impl Question {
    /// The same question of somebody of this range.
    fn of(self, whom: &std::ops::Range<u64>) -> Self {
        Self { user: whom.start + self.user % (whom.end - whom.start), ..self }
    }
}

/// Looks the facts up and asks the policy.
fn decide(hot: &Hot, question: &Question, now: UnixMillis) -> bool {
    let project = project(question.project);
    let resource = match question.action {
        Action::ProjectRead => Resource::Project { org: org(), project },
        Action::MemberRead => Resource::Organization(org()),
        _ => Resource::Workspace { org: org(), project, workspace: workspace(question.project, question.workspace) },
    };
    let actor = Actor::User(user(question.user));
    let facts = hot.authorization.facts(&actor, Some(session(question.user)), &resource, now);
    let request = Request { actor, action: question.action, resource, surface: Surface::Api, now };
    authorize(&facts, &request).is_ok()
}

fn id(kind: u64, number: u64) -> Uuid {
    // Near numbers must not be near each other in a table.
    let mixed = (number.wrapping_add(kind << 40)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    Uuid::from_u128(u128::from(number) << 64 | u128::from(mixed ^ (mixed >> 29)))
}

fn user(number: u64) -> UserId {
    UserId::from_uuid(id(101, number))
}

fn session(number: u64) -> SessionId {
    SessionId::from_uuid(id(102, number))
}

fn team(number: u64) -> TeamId {
    TeamId::from_uuid(id(103, number))
}

fn project(number: u64) -> ProjectId {
    ProjectId::from_uuid(id(104, number))
}

fn workspace(of: u64, number: u64) -> WorkspaceId {
    WorkspaceId::from_uuid(id(105, of * WORKSPACES_OF_PROJECT + number))
}

/// Numbers that look like chance and are the same in each run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

fn teams_of(number: u64) -> impl Iterator<Item = u64> {
    (0..TEAMS_OF_USER).map(move |turn| (number / FIRST_TEAM_MEMBERS + turn * 97) % TEAMS)
}

fn scope(numbers: &mut Numbers) -> Scope {
    let of = numbers.below(PROJECTS);
    match numbers.below(10) {
        0 => Scope::Organization,
        1..=6 => Scope::Project(project(of)),
        _ => Scope::Workspace { project: project(of), workspace: workspace(of, numbers.below(WORKSPACES_OF_PROJECT)) },
    }
}

fn history(at: UnixMillis) -> Result<Vec<Recorded>> {
    let mut commits = vec![organization_created()];
    let mut number = 1 << 32;
    let mut id_of_commit = || {
        number += 1;
        id(106, number)
    };
    let stream = StreamId::organization(org());
    let organize = |id, event| commit(stream.clone(), id, at, vec![Event::Organization(event)]);
    for number in 0..USERS {
        let created = UserEvent::Created {
            user: user(number),
            issuer: "local".to_owned(),
            subject: user(number).to_string(),
            email: EmailAddress::parse(&format!("person{number}@example.com"))?,
            name: format!("Person {number}"),
        };
        let opened = OpenSession::of_local_account(Surface::Api, at, at.plus(Millis::from_hours(24)));
        let opened = UserEvent::session_opened(session(number), opened);
        let events = vec![Event::User(created), Event::User(opened)];
        commits.push(commit(StreamId::user(org(), user(number)), id_of_commit(), at, events));
        commits.push(organize(id_of_commit(), OrganizationEvent::MemberAdded { user: user(number) }));
    }
    for number in 0..TEAMS {
        let slug = format!("team-{number}").parse()?;
        commits.push(organize(id_of_commit(), OrganizationEvent::TeamCreated { team: team(number), slug }));
    }
    for number in 0..USERS {
        for of in teams_of(number) {
            let added = OrganizationEvent::TeamMemberAdded { team: team(of), user: user(number) };
            commits.push(organize(id_of_commit(), added));
        }
    }
    let mut numbers = Numbers(7);
    let roles = [Role::Viewer, Role::Developer, Role::Explore, Role::Create];
    let mut given = std::collections::HashSet::new();
    while (given.len() as u64) < GRANTS {
        let so_far = given.len() as u64;
        let grantee = match so_far {
            0..GRANTS_OF_FIRST_TEAM => Grantee::Team(team(0)),
            GRANTS_OF_FIRST_TEAM..GRANTS_OF_TEAMS => Grantee::Team(team(numbers.below(TEAMS))),
            _ => Grantee::User(user(numbers.below(USERS))),
        };
        let role = roles[numbers.below(roles.len() as u64) as usize];
        let grant = Grant { grantee, role, scope: scope(&mut numbers), expires_at: None };
        if given.insert(grant) {
            commits.push(organize(id_of_commit(), OrganizationEvent::RoleAssigned { grant }));
        }
    }
    let recorded = |(commit, position)| Recorded { position: Position::new(position), recorded_at: at, commit };
    Ok(commits.into_iter().zip(1..).map(recorded).collect())
}

fn questions() -> Vec<Question> {
    let mut numbers = Numbers(11);
    let actions =
        [Action::RuntimeWake, Action::WorkspaceRead, Action::LinkIssue, Action::ProjectRead, Action::MemberRead];
    let question = |_| Question {
        user: numbers.below(USERS),
        action: actions[numbers.below(actions.len() as u64) as usize],
        project: numbers.below(PROJECTS),
        workspace: numbers.below(WORKSPACES_OF_PROJECT),
    };
    (0..QUESTIONS).map(question).collect()
}
