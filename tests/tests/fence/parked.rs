//! One command that is held up between its permit and the log, while somebody takes its right away.

use std::sync::Arc;

use async_trait::async_trait;
use envforge_commands::{CommandError, Context};
use envforge_domain::access::{Action, Resource, Role};
use envforge_domain::commit::{Actor, Commit, Expectation, StreamId};
use envforge_eventlog::{AppendError, Appended, SharedLog};
use envforge_projections::AuthorizeError;
use envforge_testkit::{InterferedLog, Interference};
use tokio::sync::Semaphore;

use crate::house::{Node, Site, acme, deactivate, end, grant, history, last_of, person, remove, revoke};

/// A log to which appends of one person, or of one link's visitor, are on their way until they are let through.
pub struct ParkingLog {
    log: SharedLog,
    whose: Actor,
    pub arrived: Semaphore,
    pub go: Semaphore,
}

#[async_trait]
impl Interference for ParkingLog {
    fn real(&self) -> &SharedLog {
        &self.log
    }

    async fn append(&self, commits: Vec<(Commit, Expectation)>) -> Result<Appended, AppendError> {
        if commits.iter().any(|(commit, _)| commit.actor == self.whose) {
            self.arrived.add_permits(1);
            self.go.acquire().await.unwrap().forget();
        }
        self.log.append(commits).await
    }
}

pub async fn parking(log: &SharedLog, whose: Actor) -> (Arc<InterferedLog<ParkingLog>>, Node) {
    let parking = ParkingLog { log: Arc::clone(log), whose, arrived: Semaphore::new(0), go: Semaphore::new(0) };
    let parking = Arc::new(InterferedLog(parking));
    let shared: SharedLog = Arc::<InterferedLog<ParkingLog>>::clone(&parking);
    let node = Node::start(&shared).await;
    (parking, node)
}

pub async fn a_command_on_its_way_to_the_log_is_refused_when_its_right_is_taken_meanwhile(
    site: impl Future<Output = Site>,
) {
    let site = site.await;
    let office = Node::start(&site.log).await;
    let owner = office.found().await;
    let project = office.project("orders", owner).await;
    for taken in ["role", "membership", "session", "account"] {
        for target in ["a project", "the organization"] {
            let name = format!("{taken}-{}", target.len());
            let (worker, session) = office.hire(&name, Role::Admin).await;
            let (parking, node) = parking(&site.log, Actor::User(worker)).await;
            let (action, resource) = match target {
                "a project" => (Action::ProjectEdit, Resource::Project { org: acme(), project }),
                _ => (Action::MemberAdd, Resource::Organization(acme())),
            };
            let permit = node.permit(worker, session, action, resource).await.unwrap();
            let working = node.clone();
            let work = tokio::spawn(async move {
                let context = Context::new(crate::house::NOW);
                match target {
                    "a project" => working.edit_project(&permit, &context, project, name).await,
                    _ => working.add_member(&permit, &context, person("newcomer")).await,
                }
            });
            parking.arrived.acquire().await.unwrap().forget();

            let (stream, revoked) = match taken {
                "role" => {
                    let by = office.permit(owner.0, owner.1, Action::RoleRevoke, Resource::Organization(acme()));
                    let (by, command) = (by.await.unwrap(), revoke(Actor::User(owner.0), grant(worker, Role::Admin)));
                    let context = Context::new(crate::house::NOW);
                    let revoked =
                        envforge_commands::organizations::change(&office.commands, &by, &context, &command).await;
                    (StreamId::organization(acme()), revoked)
                }
                "membership" => {
                    let removed = office.organize(remove(worker)).await;
                    (StreamId::organization(acme()), removed)
                }
                "session" => (StreamId::user(acme(), worker), office.account(worker, end(session)).await),
                _ => (StreamId::user(acme(), worker), office.account(worker, deactivate()).await),
            };
            let acknowledged = revoked.unwrap().position;
            assert_eq!(last_of(&site.log, stream.clone()).await, acknowledged);
            // As often as it likes to try: what was decided before is decided no more.
            parking.go.add_permits(100);

            match work.await.unwrap() {
                Err(CommandError::RightsMoved { stream: moved }) => assert_eq!(moved, stream, "{taken}, {target}"),
                other => panic!("{taken}, {target}: {other:?}"),
            }
            let behind = history(&site.log).await.into_iter().filter(|recorded| recorded.position > acknowledged);
            let of_worker: Vec<_> = behind.filter(|recorded| recorded.commit.actor == Actor::User(worker)).collect();
            assert!(of_worker.is_empty(), "{taken}, {target}: {of_worker:?}");
            let again = node.permit(worker, session, action, resource).await;
            assert!(matches!(again, Err(AuthorizeError::Denied(_))), "{taken}, {target}: {again:?}");
        }
    }
}

pub async fn a_visitors_command_on_its_way_to_the_log_is_refused_when_its_links_issuer_loses_the_right_meanwhile(
    site: impl Future<Output = Site>,
) {
    let site = site.await;
    let office = Node::start(&site.log).await;
    let owner = office.found().await;
    let project = office.project("orders", owner).await;
    for taken in ["role", "account", "access mode"] {
        for asked in ["a session", "a wake"] {
            let (issuer, session) = office.hire(&format!("{taken}-{asked}").replace(' ', "-"), Role::Developer).await;
            let visit = office.share(project, (issuer, session), &format!("{taken}-{asked}").replace(' ', "-")).await;
            let first = office.visit(&visit, 1).await.unwrap();
            let actor = match asked {
                "a session" => Actor::LinkVisitor { link: visit.link, session: None },
                _ => Actor::LinkVisitor { link: visit.link, session: Some(first) },
            };
            let (parking, node) = parking(&site.log, actor).await;
            let (working, of) = (node.clone(), visit.clone());
            let work = tokio::spawn(async move {
                match asked {
                    "a session" => working.visit(&of, 2).await.map(drop),
                    _ => working.wake(&of, first).await.map(drop),
                }
            });
            parking.arrived.acquire().await.unwrap().forget();
            let (stream, revoked) = match taken {
                "role" => {
                    let by = office.permit(owner.0, owner.1, Action::RoleRevoke, Resource::Organization(acme()));
                    let (by, command) =
                        (by.await.unwrap(), revoke(Actor::User(owner.0), grant(issuer, Role::Developer)));
                    let context = Context::new(crate::house::NOW);
                    let revoked =
                        envforge_commands::organizations::change(&office.commands, &by, &context, &command).await;
                    (StreamId::organization(acme()), revoked)
                }
                "account" => (StreamId::user(acme(), issuer), office.account(issuer, deactivate()).await),
                _ => (StreamId::workspace(acme(), visit.workspace), office.close(project, &visit, owner).await),
            };
            let acknowledged = revoked.unwrap().position;
            parking.go.add_permits(100);
            match work.await.unwrap() {
                Err(CommandError::RightsMoved { stream: moved }) => assert_eq!(moved, stream, "{taken}, {asked}"),
                other => panic!("{taken}, {asked}: {other:?}"),
            }
            let behind = history(&site.log).await.into_iter().filter(|recorded| recorded.position > acknowledged);
            let of_visitor: Vec<_> = behind.filter(|recorded| recorded.commit.actor == actor).collect();
            assert!(of_visitor.is_empty(), "{taken}, {asked}: {of_visitor:?}");
            let again = node.visitors_permit(&visit, Some(first), Action::RuntimeWake).await;
            assert!(matches!(again, Err(AuthorizeError::Denied(_))), "{taken}, {asked}: {again:?}");
        }
    }
}

pub async fn a_command_whose_rights_moved_but_still_stand_is_carried_out_when_asked_again(
    site: impl Future<Output = Site>,
) {
    let site = site.await;
    let office = Node::start(&site.log).await;
    let owner = office.found().await;
    let project = office.project("orders", owner).await;
    let (worker, session) = office.hire("ada", Role::Admin).await;
    let (parking, node) = parking(&site.log, Actor::User(worker)).await;
    let context = Context::new(crate::house::NOW);
    let resource = Resource::Project { org: acme(), project };
    let permit = node.permit(worker, session, Action::ProjectEdit, resource).await.unwrap();
    let working = node.clone();
    let work = tokio::spawn(async move { working.edit_project(&permit, &context, project, "first".to_owned()).await });
    parking.arrived.acquire().await.unwrap().forget();
    office.hire("grace", Role::Viewer).await;
    parking.go.add_permits(100);
    assert!(matches!(work.await.unwrap(), Err(CommandError::RightsMoved { .. })));
    let permit = node.permit(worker, session, Action::ProjectEdit, resource).await.unwrap();
    let done = node.edit_project(&permit, &context, project, "first".to_owned()).await.unwrap();
    // What was done stays done, and is answered as it was, whatever happens to the rights.
    office.organize(remove(worker)).await.unwrap();
    let again = node.edit_project(&permit, &context, project, "first".to_owned()).await.unwrap();
    assert!(again.duplicate);
    assert_eq!((again.position, again.events), (done.position, done.events));
}
