//! Workers and revokers on four nodes, at random. The whole log is read afterwards and each commit of a person held against
//! the rights that stood at its position, by a model that knows nothing of permits and guards.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use envforge_commands::{CommandError, Context, organizations};
use envforge_domain::access::{Action, Grantee, Resource, Role};
use envforge_domain::commit::{Actor, Position, Recorded, StreamId, StreamKind};
use envforge_domain::decision::DecisionEvent;
use envforge_domain::event::Event;
use envforge_domain::ids::{ProjectId, SessionId, UserId};
use envforge_domain::organization::{OrganizationCommand, OrganizationEvent};
use envforge_domain::user::UserEvent;
use envforge_projections::AuthorizeError;
use parking_lot::Mutex;
use tokio::task::JoinSet;

use crate::house::{NOW, Node, Site, acme, assign, end, grant, history, open, person, remove, revoke};

const NODES: usize = 4;
const WORKERS: usize = 6;
const REVOKERS: usize = 2;

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

#[derive(Default)]
struct Tally {
    done: AtomicUsize,
    moved: AtomicUsize,
    denied: AtomicUsize,
    taken: AtomicUsize,
}

impl Tally {
    fn of(&self) -> [usize; 4] {
        [&self.done, &self.moved, &self.denied, &self.taken].map(|count| count.load(Ordering::Relaxed))
    }
}

async fn work(nodes: Arc<Vec<Node>>, worker: Arc<Worker>, tally: Arc<Tally>, seed: u64, tries: usize) {
    let mut dice = Dice(seed);
    for number in 0..tries {
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
                tokio::task::yield_now().await;
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

/// Takes one right after another and gives it back, until there is nobody left who works.
async fn take_and_give(
    nodes: Arc<Vec<Node>>,
    workers: Vec<Arc<Worker>>,
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
        match dice.roll(3) {
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
    let working = Arc::new(AtomicUsize::new(WORKERS));
    let mut tasks = JoinSet::new();
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
        tasks.spawn(take_and_give(Arc::clone(&nodes), workers.clone(), owner, Arc::clone(&tally), seed, working));
    }
    while let Some(joined) = tasks.join_next().await {
        joined.unwrap();
    }
    let [done, moved, denied, taken] = tally.of();
    let told = format!("{done} done, {moved} moved, {denied} denied, {taken} times a right was taken");
    assert!(done > 0 && moved + denied > 0 && taken > 0, "nothing raced: {told}");
    let judged = Rights::judge(&history(&site.log).await);
    assert!(judged >= done, "{judged} commits of people were judged, {told}");
}

/// Who may do what, as the log says up to some position.
#[derive(Default)]
struct Rights {
    members: BTreeSet<UserId>,
    roles: BTreeMap<UserId, Vec<Role>>,
    sessions: BTreeMap<UserId, BTreeSet<SessionId>>,
    last: BTreeMap<StreamId, Position>,
}

impl Rights {
    /// Holds each commit of a person against what stands before it; answers how many there were.
    fn judge(history: &[Recorded]) -> usize {
        let (mut rights, mut judged) = (Self::default(), 0);
        for (index, recorded) in history.iter().enumerate() {
            let commit = &recorded.commit;
            if let Actor::User(user) = commit.actor
                && commit.stream.kind() != StreamKind::Decision
            {
                let decided = history[index..].iter().find_map(|beside| decision(recorded, beside));
                let (action, rests_on) = decided.unwrap_or_else(|| panic!("no decision beside {recorded:?}"));
                rights.judge_one(user, action, recorded);
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
        let roles = self.roles.get(&user).map(Vec::as_slice).unwrap_or_default();
        assert!(action.row().roles.iter().any(|role| roles.contains(role)), "no role for it any more: {recorded:?}");
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
            }
            Event::Organization(OrganizationEvent::RoleAssigned { grant }) => {
                if let Grantee::User(user) = grant.grantee {
                    self.roles.entry(user).or_default().push(grant.role);
                }
            }
            Event::Organization(OrganizationEvent::RoleRevoked { grantee: Grantee::User(user), role, .. }) => {
                self.roles.entry(*user).or_default().retain(|held| held != role);
            }
            Event::User(event) => {
                let open = self.sessions.entry(stream.key().parse().unwrap()).or_default();
                match event {
                    UserEvent::SessionOpened { session, .. } => drop(open.insert(*session)),
                    UserEvent::SessionEnded { session, .. } => drop(open.remove(session)),
                    UserEvent::Deactivated => open.clear(),
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
