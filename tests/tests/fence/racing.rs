//! Workers, their programs with service tokens, and revokers on four nodes, at random. The whole log is read afterwards and each
//! commit of a person or a program held against the rights that stood at its position, by a model that knows nothing of permits
//! and guards.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use envforge_commands::{CommandError, Context, organizations, service_tokens};
use envforge_domain::access::{Action, Grantee, Resource, Role};
use envforge_domain::commit::{Actor, Position, Recorded, StreamId, StreamKind};
use envforge_domain::decision::DecisionEvent;
use envforge_domain::event::Event;
use envforge_domain::ids::{CommandId, ProjectId, ServiceTokenId, SessionId, UserId};
use envforge_domain::organization::{OrganizationCommand, OrganizationEvent};
use envforge_domain::service_token::ServiceTokenEvent;
use envforge_domain::user::UserEvent;
use envforge_projections::AuthorizeError;
use parking_lot::Mutex;
use tokio::task::JoinSet;

use crate::house::{NOW, Node, Site, acme, assign, end, grant, history, open, person, remove, revoke};

const NODES: usize = 4;
const WORKERS: usize = 6;
const REVOKERS: usize = 2;
/// Questions to the policy for one change of a token.
const PERMITS_MAX: usize = 16;
const QUIET_MAX: Duration = Duration::from_millis(20);
/// As many times as often as planned everybody tries at most.
const LONGER_MAX: usize = 20;

/// SplitMix64: the same seed, the same choices.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % sides as u64) as usize
    }
}

struct Worker {
    user: UserId,
    role: Role,
    project: ProjectId,
    session: Mutex<SessionId>,
}

/// A program that acts in its own name, on the right of whoever made its token.
struct Program {
    creator: Arc<Worker>,
    /// Its token, and which of the token's secrets it shows.
    secret: Mutex<(ServiceTokenId, u32)>,
}

impl Program {
    const ACTION: Action = Action::ProjectEdit;
}

#[derive(Default)]
struct Tally {
    done: AtomicUsize,
    moved: AtomicUsize,
    denied: AtomicUsize,
    taken: AtomicUsize,
    done_by_programs: AtomicUsize,
    refused_to_programs: AtomicUsize,
    made: AtomicUsize,
    rotated: AtomicUsize,
    /// The secret with which a program gave each command.
    shown: Mutex<BTreeMap<CommandId, u32>>,
}

impl Tally {
    /// Whether there was something to judge of everything.
    fn raced(&self) -> bool {
        let [done, moved, denied, taken, by_programs, refused, made, rotated] = self.of();
        let people = done > 0 && moved + denied > 0 && taken > 0;
        people && by_programs >= 5 && refused > 0 && made > WORKERS && rotated > 0
    }

    /// Whether somebody who has tried so often goes on: for longer than planned where others had no turn yet.
    fn goes_on(&self, number: usize, tries: usize) -> bool {
        number < tries || number < tries * LONGER_MAX && !self.raced()
    }

    fn of(&self) -> [usize; 8] {
        [
            &self.done,
            &self.moved,
            &self.denied,
            &self.taken,
            &self.done_by_programs,
            &self.refused_to_programs,
            &self.made,
            &self.rotated,
        ]
        .map(|count| count.load(Ordering::Relaxed))
    }
}

/// Whoever may not now asks again when the node has heard of something, so that others get on meanwhile.
async fn something_new(node: &Node) {
    let hot = node.authorizer.hot();
    // Nothing may come any more.
    let _ = hot.wait_for(hot.position().next(), QUIET_MAX).await;
}

async fn work(nodes: Arc<Vec<Node>>, worker: Arc<Worker>, tally: Arc<Tally>, seed: u64, tries: usize) {
    let mut dice = Dice(seed);
    for number in (0..).take_while(|number| tally.goes_on(*number, tries)) {
        let node = &nodes[dice.roll(NODES)];
        let session = *worker.session.lock();
        let adds_member = worker.role == Role::Admin && dice.roll(2) == 0;
        let (action, resource) = if adds_member {
            (Action::MemberAdd, Resource::Organization(acme()))
        } else {
            (Action::ProjectEdit, Resource::Project { org: acme(), project: worker.project })
        };
        let permit = match node.permit(worker.user, session, action, resource).await {
            Ok(permit) => permit,
            Err(AuthorizeError::Denied(_)) => {
                tally.denied.fetch_add(1, Ordering::Relaxed);
                something_new(node).await;
                continue;
            }
            Err(error) => panic!("{error}"),
        };
        // As long as other work takes between a permit and its append.
        for _ in 0..dice.roll(20) {
            tokio::task::yield_now().await;
        }
        let (context, name) = (Context::new(NOW), format!("{} {number}", worker.user));
        let outcome = if adds_member {
            node.add_member(&permit, &context, person(&name)).await
        } else {
            node.edit_project(&permit, &context, worker.project, name).await
        };
        match outcome {
            Ok(_) => tally.done.fetch_add(1, Ordering::Relaxed),
            Err(CommandError::RightsMoved { .. } | CommandError::Contended) => {
                tally.moved.fetch_add(1, Ordering::Relaxed)
            }
            Err(error) => panic!("{error}"),
        };
    }
}

async fn run(nodes: Arc<Vec<Node>>, program: Arc<Program>, tally: Arc<Tally>, seed: u64, tries: usize) {
    let mut dice = Dice(seed);
    for number in (0..).take_while(|number| tally.goes_on(*number, tries)) {
        let node = &nodes[dice.roll(NODES)];
        let (token, generation) = *program.secret.lock();
        let project = program.creator.project;
        let resource = Resource::Project { org: acme(), project };
        let permit = match node.permit_of_program(token, generation, Program::ACTION, resource).await {
            Ok(Some(permit)) => permit,
            Ok(None) | Err(AuthorizeError::Denied(_)) => {
                tally.refused_to_programs.fetch_add(1, Ordering::Relaxed);
                something_new(node).await;
                continue;
            }
            Err(error) => panic!("{error}"),
        };
        for _ in 0..dice.roll(20) {
            tokio::task::yield_now().await;
        }
        let (context, name) = (Context::new(NOW), format!("{token} {number}"));
        tally.shown.lock().insert(context.command, generation);
        match node.edit_project(&permit, &context, project, name).await {
            Ok(_) => tally.done_by_programs.fetch_add(1, Ordering::Relaxed),
            Err(CommandError::RightsMoved { .. } | CommandError::Contended) => {
                tally.refused_to_programs.fetch_add(1, Ordering::Relaxed)
            }
            Err(error) => panic!("{error}"),
        };
    }
}

/// Its creator makes a program another token, as soon as they may.
async fn renew_token(node: &Node, program: &Program, tally: &Tally) {
    let (action, former) = (Action::ServiceTokenCreate, *program.secret.lock());
    for _ in 0..PERMITS_MAX {
        let (creator, session) = (program.creator.user, *program.creator.session.lock());
        match node.permit(creator, session, action, Resource::Organization(acme())).await {
            Ok(permit) => {
                let number = tally.made.fetch_add(1, Ordering::Relaxed);
                match node.make_token(&permit, creator, number, Program::ACTION).await {
                    Ok(token) => return *program.secret.lock() = (token, 1),
                    Err(CommandError::RightsMoved { .. } | CommandError::Refused(_) | CommandError::Contended) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            Err(AuthorizeError::Denied(_)) => something_new(node).await,
            Err(error) => panic!("{error}"),
        }
        // Somebody else saw to it.
        if *program.secret.lock() != former {
            return;
        }
    }
}

/// A person revokes a program's token, or gives it another secret.
async fn change_token(
    node: &Node,
    other: &Node,
    by: (UserId, SessionId),
    program: &Program,
    tally: &Tally,
    revokes: bool,
) {
    let (token, _) = *program.secret.lock();
    let action = if revokes { Action::ServiceTokenRevoke } else { Action::ServiceTokenRotate };
    // Their own rights move all the time as well: they ask again, as the API does.
    for _ in 0..PERMITS_MAX {
        let permit = node.permit(by.0, by.1, action, Resource::Organization(acme())).await.unwrap();
        let outcome = if revokes {
            let revoked = service_tokens::revoke(&node.commands, &permit, &Context::new(NOW), token).await;
            revoked.map(|_| None)
        } else {
            node.rotate_token(&permit, token).await.map(Some)
        };
        match outcome {
            Ok(Some(generation)) => {
                tally.rotated.fetch_add(1, Ordering::Relaxed);
                // The program goes on with the former secret for a while.
                tokio::task::yield_now().await;
                *program.secret.lock() = (token, generation);
                return;
            }
            Err(CommandError::RightsMoved { .. } | CommandError::Contended) => {}
            Ok(None) | Err(CommandError::Refused(_)) => break,
            Err(error) => panic!("{error}"),
        }
    }
    tokio::task::yield_now().await;
    if revokes {
        renew_token(other, program, tally).await;
    }
}

/// Takes one right after another and gives it back, until there is nobody left who works.
async fn take_and_give(
    nodes: Arc<Vec<Node>>,
    workers: Vec<Arc<Worker>>,
    programs: Vec<Arc<Program>>,
    by: (UserId, SessionId),
    tally: Arc<Tally>,
    seed: u64,
    working: Arc<AtomicUsize>,
) {
    let mut dice = Dice(seed);
    let mut sessions = 0;
    while working.load(Ordering::Relaxed) > 0 {
        let worker = &workers[dice.roll(workers.len())];
        let (node, other) = (&nodes[dice.roll(NODES)], &nodes[dice.roll(NODES)]);
        let granted = grant(worker.user, worker.role);
        match dice.roll(5) {
            0 => {
                // A person takes it, whose own rights move all the time as well.
                let on_org = Resource::Organization(acme());
                let permit = node.permit(by.0, by.1, Action::RoleRevoke, on_org).await.unwrap();
                let command = revoke(Actor::User(by.0), granted);
                match organizations::change(&node.commands, &permit, &Context::new(NOW), &command).await {
                    Ok(_) | Err(CommandError::RightsMoved { .. } | CommandError::Refused(_)) => {}
                    Err(error) => panic!("{error}"),
                }
                tokio::task::yield_now().await;
                settle(other.organize(assign(granted)).await);
            }
            1 => {
                settle(node.organize(remove(worker.user)).await);
                tokio::task::yield_now().await;
                settle(other.organize(OrganizationCommand::AddMember { user: worker.user }).await);
                settle(other.organize(assign(granted)).await);
                renew(other, worker, seed, &mut sessions).await;
                // They took their token along for good.
                if let Some(program) = programs.iter().find(|program| program.creator.user == worker.user) {
                    renew_token(other, program, &tally).await;
                }
            }
            2 => {
                let program = &programs[dice.roll(programs.len())];
                change_token(node, other, by, program, &tally, true).await;
            }
            3 => {
                let program = &programs[dice.roll(programs.len())];
                change_token(node, other, by, program, &tally, false).await;
            }
            _ => {
                let session = *worker.session.lock();
                settle(node.account(worker.user, end(session)).await);
                tokio::task::yield_now().await;
                renew(other, worker, seed, &mut sessions).await;
            }
        }
        tally.taken.fetch_add(1, Ordering::Relaxed);
    }
}

/// Two revokers meet on the same worker: one may find nothing left to take or to give.
fn settle(outcome: Result<envforge_commands::Done, CommandError>) {
    match outcome {
        Ok(_) | Err(CommandError::Refused(_) | CommandError::Contended) => {}
        Err(error) => panic!("{error}"),
    }
}

async fn renew(node: &Node, worker: &Worker, seed: u64, sessions: &mut usize) {
    *sessions += 1;
    let session = SessionId::from_uuid(envforge_commands::context::derived_uuid(
        &seed.to_be_bytes(),
        &format!("{} {sessions}", worker.user),
    ));
    let ended = std::mem::replace(&mut *worker.session.lock(), session);
    settle(node.account(worker.user, end(ended)).await);
    settle(node.account(worker.user, open(session)).await);
}

pub async fn nothing_of_a_person_stands_behind_what_took_their_right_away(site: impl Future<Output = Site>) {
    let site = site.await;
    let mut nodes = Vec::new();
    for _ in 0..NODES {
        nodes.push(Node::start(&site.log).await);
    }
    let owner = nodes[0].found().await;
    let mut workers = Vec::new();
    for number in 0..WORKERS {
        let role = if number % 2 == 0 { Role::Create } else { Role::Admin };
        let (user, session) = nodes[0].hire(&format!("worker-{number}"), role).await;
        let project = nodes[0].project(&format!("project-{number}"), owner).await;
        workers.push(Arc::new(Worker { user, role, project, session: Mutex::new(session) }));
    }
    let (nodes, tally) = (Arc::new(nodes), Arc::new(Tally::default()));
    let mut programs = Vec::new();
    for creator in workers.iter().filter(|worker| worker.role == Role::Admin) {
        let none = ServiceTokenId::from_uuid(uuid::Uuid::nil());
        let program = Program { creator: Arc::clone(creator), secret: Mutex::new((none, 0)) };
        renew_token(&nodes[0], &program, &tally).await;
        programs.push(Arc::new(program));
    }
    let working = Arc::new(AtomicUsize::new(WORKERS + programs.len()));
    let mut tasks = JoinSet::new();
    for (number, program) in programs.iter().enumerate() {
        let (nodes, program, tally) = (Arc::clone(&nodes), Arc::clone(program), Arc::clone(&tally));
        let (working, tries) = (Arc::clone(&working), site.tries);
        tasks.spawn(async move {
            run(nodes, program, tally, 100 + number as u64, tries).await;
            working.fetch_sub(1, Ordering::Relaxed);
        });
    }
    for (number, worker) in workers.iter().enumerate() {
        let (nodes, worker, tally) = (Arc::clone(&nodes), Arc::clone(worker), Arc::clone(&tally));
        let (working, tries) = (Arc::clone(&working), site.tries);
        tasks.spawn(async move {
            work(nodes, worker, tally, number as u64, tries).await;
            working.fetch_sub(1, Ordering::Relaxed);
        });
    }
    for number in 0..REVOKERS {
        let (seed, working) = (1_000 + number as u64, Arc::clone(&working));
        let (nodes, tally) = (Arc::clone(&nodes), Arc::clone(&tally));
        tasks.spawn(take_and_give(nodes, workers.clone(), programs.clone(), owner, tally, seed, working));
    }
    while let Some(joined) = tasks.join_next().await {
        joined.unwrap();
    }
    let [done, moved, denied, taken, by_programs, refused, made, rotated] = tally.of();
    let told = format!(
        "{done} done, {moved} moved, {denied} denied, {taken} times a right was taken; by programs {by_programs} done and \
         {refused} refused, {made} tokens made and {rotated} times rotated"
    );
    assert!(tally.raced(), "too little raced: {told}");
    let judged = Rights::judge(&history(&site.log).await, &tally.shown.lock());
    assert!(judged >= done + by_programs, "{judged} commits of people and programs were judged, {told}");
}

/// Who may do what, as the log says up to some position.
#[derive(Default)]
struct Rights {
    members: BTreeSet<UserId>,
    roles: BTreeMap<UserId, Vec<Role>>,
    sessions: BTreeMap<UserId, BTreeSet<SessionId>>,
    tokens: BTreeMap<ServiceTokenId, TokenRight>,
    last: BTreeMap<StreamId, Position>,
}

struct TokenRight {
    creator: UserId,
    actions: BTreeSet<Action>,
    generation: u32,
    /// It was revoked, or its creator left since.
    over: bool,
}

impl Rights {
    /// Holds each commit of a person or a program against what stands before it; answers how many there were. `shown`: the secret
    /// with which a program gave each command.
    fn judge(history: &[Recorded], shown: &BTreeMap<CommandId, u32>) -> usize {
        let (mut rights, mut judged) = (Self::default(), 0);
        for (index, recorded) in history.iter().enumerate() {
            let commit = &recorded.commit;
            if matches!(commit.actor, Actor::User(_) | Actor::ServiceToken(_))
                && commit.stream.kind() != StreamKind::Decision
            {
                let decided = history[index..].iter().find_map(|beside| decision(recorded, beside));
                let (action, rests_on) = decided.unwrap_or_else(|| panic!("no decision beside {recorded:?}"));
                match commit.actor {
                    Actor::User(user) => rights.judge_one(user, action, recorded),
                    Actor::ServiceToken(token) => {
                        rights.judge_program(token, shown.get(&commit.command).copied(), action, recorded);
                    }
                    _ => {}
                }
                for standing in rests_on {
                    let last = rights.last.get(&standing.stream).copied().unwrap_or(Position::START);
                    assert_eq!(last, standing.last, "{} had moved before {recorded:?}", standing.stream);
                }
                judged += 1;
            }
            for event in &commit.events {
                rights.apply(&commit.stream, event);
            }
            rights.last.insert(commit.stream.clone(), recorded.position);
        }
        judged
    }

    fn judge_one(&self, user: UserId, action: Action, recorded: &Recorded) {
        assert!(self.members.contains(&user), "no member any more: {recorded:?}");
        assert!(self.sessions.get(&user).is_some_and(|open| !open.is_empty()), "not signed in: {recorded:?}");
        assert!(self.has_role_for(user, action), "no role for it any more: {recorded:?}");
    }

    fn judge_program(&self, token: ServiceTokenId, shown: Option<u32>, action: Action, recorded: &Recorded) {
        let right = self.tokens.get(&token).unwrap_or_else(|| panic!("no such token yet: {recorded:?}"));
        assert!(!right.over, "revoked, or its creator has left: {recorded:?}");
        assert!(right.actions.contains(&action), "the token is not for this: {recorded:?}");
        // Rotations here leave no overlap.
        assert_eq!(Some(right.generation), shown, "of another secret by now: {recorded:?}");
        assert!(self.members.contains(&right.creator), "its creator is no member any more: {recorded:?}");
        assert!(self.has_role_for(right.creator, action), "its creator has no role for it any more: {recorded:?}");
    }

    fn has_role_for(&self, user: UserId, action: Action) -> bool {
        let roles = self.roles.get(&user).map(Vec::as_slice).unwrap_or_default();
        action.row().roles.iter().any(|role| roles.contains(role))
    }

    fn ends_with(&mut self, creator: UserId) {
        self.tokens.values_mut().filter(|right| right.creator == creator).for_each(|right| right.over = true);
    }

    fn apply(&mut self, stream: &StreamId, event: &Event) {
        match event {
            Event::Organization(OrganizationEvent::MemberAdded { user }) => {
                self.members.insert(*user);
            }
            Event::Organization(OrganizationEvent::MemberRemoved { user }) => {
                self.members.remove(user);
                self.roles.remove(user);
                self.sessions.remove(user);
                self.ends_with(*user);
            }
            Event::Organization(OrganizationEvent::RoleAssigned { grant }) => {
                if let Grantee::User(user) = grant.grantee {
                    self.roles.entry(user).or_default().push(grant.role);
                }
            }
            Event::Organization(OrganizationEvent::RoleRevoked { grantee: Grantee::User(user), role, .. }) => {
                self.roles.entry(*user).or_default().retain(|held| held != role);
            }
            Event::ServiceToken(event) => match event {
                ServiceTokenEvent::Created { token, actions, created_by: creator, .. } => {
                    let right = TokenRight { creator: *creator, actions: actions.clone(), generation: 1, over: false };
                    self.tokens.insert(*token, right);
                }
                ServiceTokenEvent::Rotated { token, generation, .. } => {
                    self.tokens.get_mut(token).unwrap().generation = *generation;
                }
                ServiceTokenEvent::Revoked { token } => self.tokens.get_mut(token).unwrap().over = true,
            },
            Event::User(UserEvent::Deactivated) => {
                let user = stream.key().parse().unwrap();
                self.sessions.remove(&user);
                self.ends_with(user);
            }
            Event::User(event) => {
                let open = self.sessions.entry(stream.key().parse().unwrap()).or_default();
                match event {
                    UserEvent::SessionOpened { session, .. } => drop(open.insert(*session)),
                    UserEvent::SessionEnded { session, .. } => drop(open.remove(session)),
                    _ => {}
                }
            }
            _ => {}
        }
    }
}

/// What a commit of the same command says of why it was allowed.
fn decision<'a>(of: &Recorded, beside: &'a Recorded) -> Option<(Action, &'a [envforge_domain::commit::Standing])> {
    if beside.commit.command != of.commit.command {
        return None;
    }
    beside.commit.events.iter().find_map(|event| match event {
        Event::Decision(DecisionEvent::Recorded { action, rests_on, .. }) => {
            Some((Action::from_token(action).unwrap(), rests_on.as_slice()))
        }
        _ => None,
    })
}
