//! Rights that move between the policy's yes and the log: the policy is asked again, and its answer counts.

use std::sync::Arc;

use async_trait::async_trait;
use envforge_commands::{Commands, Context, organizations};
use envforge_domain::access::{Action, Grantee, Resource, Role, Scope};
use envforge_domain::commit::{Actor, Commit, Component, Expectation};
use envforge_domain::ids::{OrgId, UserId};
use envforge_domain::organization::OrganizationCommand;
use envforge_eventlog::{AppendError, Appended, SharedLog};
use envforge_testkit::{InterferedLog, Interference};
use parking_lot::Mutex;
use serde_json::json;
use uuid::Uuid;

use crate::house::{House, Person, system};

/// A log in which somebody else is first, right before people's next appends.
pub(crate) struct Overtaken {
    log: SharedLog,
    /// What EnvForge itself does to the organization then; the last one first.
    by: Mutex<Vec<(OrgId, OrganizationCommand)>>,
}

impl Overtaken {
    pub(crate) fn new(log: SharedLog) -> Arc<InterferedLog<Self>> {
        Arc::new(InterferedLog(Self { log, by: Mutex::default() }))
    }
}

#[async_trait]
impl Interference for Overtaken {
    fn real(&self) -> &SharedLog {
        &self.log
    }

    async fn append(&self, commits: Vec<(Commit, Expectation)>) -> Result<Appended, AppendError> {
        if commits.iter().any(|(commit, _)| matches!(commit.actor, Actor::User(_))) {
            let by = self.by.lock().pop();
            if let Some((org, command)) = by {
                let action = match &command {
                    OrganizationCommand::AddMember { .. } => Action::MemberAdd,
                    _ => Action::RoleRevoke,
                };
                let now = commits[0].0.decided_at;
                let permit = system(action, Resource::Organization(org), now);
                let commands = Commands::new(Arc::clone(&self.log));
                organizations::change(&commands, &permit, &Context::new(now), &command).await.unwrap();
            }
        }
        self.log.append(commits).await
    }
}

struct Story {
    house: House,
    overtaken: Arc<InterferedLog<Overtaken>>,
    org: OrgId,
    admin: Person,
}

impl Story {
    async fn begin() -> Self {
        let (house, overtaken) = House::start_overtaken().await;
        let owner = house.owner().await;
        house.workspace(&owner).await;
        let admin = house.member(&owner, "abe", &["admin"]).await;
        let org = house.hot.authorization.organization_by_slug(&"acme".parse().unwrap()).unwrap();
        Self { house, overtaken, org, admin }
    }

    /// Somebody joins right before each of the next appends: nobody's right is taken, but all of them have moved.
    fn others_join(&self, times: usize) {
        let join = || OrganizationCommand::AddMember { user: UserId::from_uuid(Uuid::now_v7()) };
        self.overtaken.by.lock().extend((0..times).map(|_| (self.org, join())));
    }

    /// The admin's role is taken right before their next append.
    fn role_is_taken(&self) {
        let revoke = OrganizationCommand::RevokeRole {
            by: Actor::System(Component::Setup),
            grantee: Grantee::User(self.admin.user.parse().unwrap()),
            role: Role::Admin,
            scope: Scope::Organization,
            now: self.house.now(),
        };
        self.overtaken.by.lock().push((self.org, revoke));
    }

    async fn head(&self) -> u64 {
        self.house.log.head().await.unwrap().position.get()
    }
}

#[tokio::test]
async fn a_request_whose_rights_moved_but_still_stand_is_carried_out() {
    let story = Story::begin().await;
    let project = json!({"slug": "more", "name": "More", "repository": "https://git.test/acme/more"});
    story.others_join(3);
    let first = story.admin.post_keyed("/v1/orgs/acme/projects", "k", project.clone()).await.expect(201);
    assert!(story.overtaken.by.lock().is_empty());
    // On the organization's own stream, where the command itself is what everybody else's is held against.
    story.others_join(3);
    let policy = json!({"keep_awake_max_seconds": 600});
    let changed = story.admin.patch("/v1/orgs/acme/policy", policy).await.expect(200);
    assert_eq!(changed.body["keep_awake_max_seconds"], 600);
    let again = story.admin.post_keyed("/v1/orgs/acme/projects", "k", project).await.expect(201);
    assert_eq!(first.body, again.body);
}

#[tokio::test]
async fn a_request_whose_right_was_taken_on_the_way_is_denied_and_does_nothing() {
    let story = Story::begin().await;
    for (path, body) in [
        ("/v1/orgs/acme/projects", json!({"slug": "x", "name": "X", "repository": "https://git.test/x"})),
        ("/v1/orgs/acme/workspaces/signed-links/wake", json!({})),
        ("/v1/orgs/acme/workspaces/signed-links/archive", json!({})),
    ] {
        story.role_is_taken();
        let before = story.head().await;
        story.admin.post(path, body).await.expect_problem(403, "role_missing");
        assert_eq!(story.head().await, before + 1, "{path}: the revocation and nothing else");
        let owner = story.house.owner().await;
        owner.post("/v1/orgs/acme/roles", json!({"user": story.admin.user, "role": "admin"})).await.expect(201);
    }
    // Also where the target is the organization's stream, which every revocation moves.
    story.role_is_taken();
    let before = story.head().await;
    let policy = json!({"keep_awake_max_seconds": 60});
    story.admin.patch("/v1/orgs/acme/policy", policy).await.expect_problem(403, "role_missing");
    assert_eq!(story.head().await, before + 1);
}

#[tokio::test]
async fn rights_that_never_rest_are_told_and_change_nothing() {
    let story = Story::begin().await;
    story.others_join(200);
    let project = json!({"slug": "more", "name": "More", "repository": "https://git.test/acme/more"});
    let refused = story.admin.post("/v1/orgs/acme/projects", project).await;
    assert_eq!(refused.headers["retry-after"], "1");
    refused.expect_problem(503, "rights_stale");
    story.overtaken.by.lock().clear();
    let projects = story.admin.get("/v1/orgs/acme/projects").await.expect(200);
    assert_eq!(projects.body["items"].as_array().unwrap().len(), 1);
}

/// Somebody who may decide by two roles, one of which goes on the way: what is left is of the requester's giving.
#[tokio::test]
async fn a_decision_whose_own_ground_went_on_the_way_is_refused_where_only_the_requesters_is_left() {
    let story = Story::begin().await;
    let owner = story.house.owner().await;
    owner.patch("/v1/orgs/acme/policy", json!({ "root": "workspace_elevation" })).await.expect(200);
    let ann = story.house.member(&owner, "ann", &["admin"]).await;
    let role = json!({ "user": story.admin.user, "role": "admin", "project": "orders" });
    ann.post("/v1/orgs/acme/roles", role).await.expect(201);
    let ask = "/v1/orgs/acme/workspaces/signed-links/root-windows";
    let because = json!({ "reason": "libpq is missing", "minutes": 20 });
    let (first, second) = (ann.post(ask, because.clone()).await.expect(201), ann.post(ask, because).await.expect(201));
    let approve = |window: String| format!("/v1/orgs/acme/root-windows/{window}/approve");
    story.others_join(2);
    story.admin.post(&approve(first.text("id")), json!({})).await.expect(200);
    story.role_is_taken();
    let refused = story.admin.post(&approve(second.text("id")), json!({})).await;
    refused.expect_problem(403, "root_decider_depends");
    assert!(story.overtaken.by.lock().is_empty());
}
