//! Decisions on root windows that are held up between the look at who owes what to whom and the log, while just that changes.

use envforge_commands::root_windows::{self, NewRootWindow};
use envforge_commands::{CommandError, Context, Done, organizations, users};
use envforge_domain::access::{Action, Grant, Grantee, Permit, Resource, Role, Scope};
use envforge_domain::commit::{Actor, Component, Position, StreamId};
use envforge_domain::ids::{ProjectId, RootWindowId, SessionId, UserId, WorkspaceId};
use envforge_domain::organization::{OrganizationCommand, OrganizationPolicy};
use envforge_domain::root_window::{RootAccess, RootMode, RootPolicy};

use crate::house::{NOW, Node, Site, acme, grant, history, open, revoke};
use crate::parked::parking;

type Person = (UserId, SessionId);

/// What happens while a decision is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meanwhile {
    /// What the decider had from others goes; what they have from the requester stays.
    OwnRoleGoes,
    /// The requester gives the decider something more.
    Promoted,
    /// The requester closes the decider's account and opens it again.
    LetInAgain,
}

struct Story {
    office: Node,
    owner: Person,
    requester: Person,
    project: ProjectId,
    workspace: WorkspaceId,
}

impl Story {
    async fn begin(site: &Site) -> Self {
        let office = Node::start(&site.log).await;
        let owner = office.found().await;
        let project = office.project("orders", owner).await;
        let workspace = office.share(project, owner, "main").await.workspace;
        let permit = office.permit(owner.0, owner.1, Action::OrganizationChangePolicy, Resource::Organization(acme()));
        let policy = OrganizationPolicy { root: RootPolicy::WorkspaceElevation, ..OrganizationPolicy::default() };
        let command = OrganizationCommand::ChangePolicy { by: Actor::User(owner.0), policy, provider: None, now: NOW };
        let permit = permit.await.unwrap();
        organizations::change(&office.commands, &permit, &Context::new(NOW), &command).await.unwrap();
        let requester = office.hire("ann", Role::Admin).await;
        Self { office, owner, requester, project, workspace }
    }

    fn resource(&self, window: RootWindowId) -> Resource {
        Resource::RootWindow { org: acme(), project: self.project, workspace: self.workspace, window }
    }

    /// A window that waits for an approval, or for its review.
    async fn asked(&self, mode: RootMode) -> RootWindowId {
        let (who, session) = self.requester;
        let on_workspace = Resource::Workspace { org: acme(), project: self.project, workspace: self.workspace };
        let permit = self.office.permit(who, session, mode.ground(), on_workspace).await.unwrap();
        let new = NewRootWindow {
            workspace: self.workspace,
            mode,
            access: RootAccess::Command,
            reason: "the disk is full".to_owned(),
            length: None,
            pending: 0,
        };
        let (window, _) = root_windows::request(&self.office.commands, &permit, &Context::new(NOW), new).await.unwrap();
        if mode == RootMode::BreakGlass {
            let permit = self.office.permit(who, session, Action::RootWithdraw, self.resource(window)).await.unwrap();
            root_windows::withdraw(&self.office.commands, &permit, &Context::new(NOW), window).await.unwrap();
        }
        window
    }

    /// The requester gives somebody a role.
    async fn promote(&self, whom: UserId, role: Role, scope: Scope) -> Position {
        let (by, session) = self.requester;
        let permit = self.office.permit(by, session, Action::RoleAssign, Resource::Organization(acme())).await;
        let grant = Grant { grantee: Grantee::User(whom), role, scope, expires_at: None };
        let command = OrganizationCommand::AssignRole { by: Actor::User(by), grant, now: NOW };
        let permit = permit.unwrap();
        let done = organizations::change(&self.office.commands, &permit, &Context::new(NOW), &command).await;
        done.unwrap().position
    }

    /// The stream that moves.
    async fn meanwhile(&self, what: Meanwhile, decider: Person) -> StreamId {
        let (user, resource) = (decider.0, Resource::User { org: acme(), user: decider.0 });
        match what {
            Meanwhile::OwnRoleGoes => {
                let command = revoke(Actor::System(Component::Setup), grant(user, Role::Admin));
                self.office.organize(command).await.unwrap();
                StreamId::organization(acme())
            }
            Meanwhile::Promoted => {
                self.promote(user, Role::Mod, Scope::Organization).await;
                StreamId::organization(acme())
            }
            Meanwhile::LetInAgain => {
                let (by, session) = self.requester;
                let permit = self.office.permit(by, session, Action::UserDeactivate, resource).await.unwrap();
                users::deactivate(&self.office.commands, &permit, &Context::new(NOW), user).await.unwrap();
                let permit = self.office.permit(by, session, Action::UserReactivate, resource).await.unwrap();
                users::reactivate(&self.office.commands, &permit, &Context::new(NOW), user).await.unwrap();
                self.office.account(user, open(decider.1)).await.unwrap();
                StreamId::user(acme(), user)
            }
        }
    }
}

async fn decide(node: &Node, permit: &Permit, window: RootWindowId) -> Result<Done, CommandError> {
    let context = Context::new(NOW);
    match permit.action() {
        Action::RootApprove => root_windows::approve(&node.commands, permit, &context, window).await,
        _ => root_windows::review(&node.commands, permit, &context, window, true, "seen".to_owned()).await,
    }
}

pub async fn a_decision_on_root_is_refused_when_who_owes_what_to_whom_changes_on_its_way(
    site: impl Future<Output = Site>,
) {
    let site = site.await;
    let story = Story::begin(&site).await;
    for mode in [RootMode::Elevation, RootMode::BreakGlass] {
        for what in [Meanwhile::OwnRoleGoes, Meanwhile::Promoted, Meanwhile::LetInAgain] {
            let name = format!("{mode:?}-{what:?}").to_lowercase();
            let decider = story.office.hire(&name, Role::Admin).await;
            // By this alone the policy lets them decide, too.
            story.promote(decider.0, Role::Admin, Scope::Project(story.project)).await;
            let window = story.asked(mode).await;
            let action = if mode == RootMode::Elevation { Action::RootApprove } else { Action::RootReview };
            let (parked, node) = parking(&site.log, Actor::User(decider.0)).await;
            let permit = node.permit(decider.0, decider.1, action, story.resource(window)).await.unwrap();
            let working = node.clone();
            let work = tokio::spawn(async move { decide(&working, &permit, window).await });
            parked.arrived.acquire().await.unwrap().forget();
            let moved = story.meanwhile(what, decider).await;
            parked.go.add_permits(100);
            match work.await.unwrap() {
                Err(CommandError::RightsMoved { stream }) => assert_eq!(stream, moved, "{name}"),
                other => panic!("{name}: {other:?}"),
            }

            // Asked again, as the API does, it is decided on what is so now.
            let permit = node.permit(decider.0, decider.1, action, story.resource(window)).await.unwrap();
            let again = decide(&node, &permit, window).await;
            match what {
                Meanwhile::Promoted => {
                    again.unwrap();
                    continue;
                }
                Meanwhile::OwnRoleGoes | Meanwhile::LetInAgain => {
                    assert_eq!(again.unwrap_err().refusal_code(), Some("root_decider_depends"), "{name}");
                }
            }
            let stream = StreamId::root_window(acme(), window);
            let of_decider = history(&site.log)
                .await
                .into_iter()
                .filter(|recorded| recorded.commit.stream == stream && recorded.commit.actor == Actor::User(decider.0));
            assert_eq!(of_decider.count(), 0, "{name}");
            let permit = story.office.permit(story.owner.0, story.owner.1, action, story.resource(window)).await;
            decide(&story.office, &permit.unwrap(), window).await.unwrap();
        }
    }
}
