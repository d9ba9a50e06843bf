//! An organization's policy, tightened while reviewers are at work: what is beyond it ends at once, over real sockets.

use std::time::{Duration, Instant};

use envforge_domain::access::{Role, Roles};
use envforge_domain::commit::StreamId;
use envforge_domain::dev_link::{RouteFamilies, RouteFamily};
use envforge_domain::organization::{OrganizationEvent, OrganizationPolicy};
use envforge_domain::time::Millis;
use futures_util::SinkExt;
use tokio_tungstenite::tungstenite::protocol::Message;

use crate::app::App;
use crate::sockets::{close_code, next};
use crate::world::{World, until};

impl World {
    async fn policy(&self, change: impl FnOnce(&mut OrganizationPolicy)) {
        let mut policy = OrganizationPolicy::default();
        change(&mut policy);
        let changed = OrganizationEvent::PolicyChanged { policy };
        self.append(StreamId::organization(self.org()), vec![changed.into()]).await;
    }
}

async fn ready() -> (World, App) {
    let (world, app) = (World::start().await, App::start().await);
    world.ready(app.address).await;
    (world, app)
}

#[tokio::test]
async fn sockets_of_a_family_that_the_organization_does_not_allow_any_more_close_and_the_others_go_on() {
    let (world, _app) = ready().await;
    let (mut page, mut live) = (world.socket("/ws").await, world.socket("/api/live").await);
    assert_eq!(world.fetch("/api/orders").await.status, 200);
    let begun = Instant::now();
    world
        .policy(|policy| policy.link_families = RouteFamilies::ALL.minus(RouteFamilies::NONE.with(RouteFamily::Api)))
        .await;
    assert_eq!(close_code(next(&mut live).await), Some(4403));
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
    let refused = world.fetch("/api/orders").await;
    assert_eq!((refused.status, refused.code().as_str()), (403, "route_not_included"));
    page.send(Message::text("hello")).await.unwrap();
    assert_eq!(next(&mut page).await, Some(Message::text("hello")), "the page's own socket is as it was");
    world.policy(|_| {}).await;
    assert_eq!(world.fetch("/api/orders").await.status, 200, "the session is as good as before");
}

#[tokio::test]
async fn links_that_are_older_than_allowed_or_whose_issuer_may_give_none_close_and_open_again_with_the_policy() {
    let (world, _app) = ready().await;
    let mut socket = world.socket("/ws").await;
    world.policy(|policy| policy.link_issuers = Roles::of(&[Role::Owner])).await;
    assert_eq!(close_code(next(&mut socket).await), Some(4403));
    let refused = world.fetch("/page").await;
    assert_eq!((refused.status, refused.code().as_str()), (410, "link_revoked"));
    world.policy(|_| {}).await;
    assert_eq!(world.fetch("/page").await.status, 200);

    let mut socket = world.socket("/ws").await;
    // Shorter than any policy may be, so that the test need not wait: links of before are over.
    world.policy(|policy| policy.link_lifetime_max = Millis::new(1)).await;
    assert_eq!(close_code(next(&mut socket).await), Some(4403));
    let refused = world.fetch("/page").await;
    assert_eq!((refused.status, refused.code().as_str()), (410, "link_expired"));
    world.policy(|_| {}).await;
    assert_eq!(world.fetch("/page").await.status, 200);
    until("nothing is open", || world.activity.of(world.workspace()).unwrap().open_sockets == 0).await;
}

#[tokio::test]
async fn what_a_person_ended_stays_ended_however_the_policy_changes() {
    let (world, _app) = ready().await;
    world.policy(|policy| policy.link_issuers = Roles::NONE).await;
    world.revoke().await;
    world.policy(|_| {}).await;
    let refused = world.fetch("/page").await;
    assert_eq!((refused.status, refused.code().as_str()), (410, "link_revoked"));
}
