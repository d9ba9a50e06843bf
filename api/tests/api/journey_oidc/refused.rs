//! What is told of sign-ins that were refused, to whom.

use envforge_domain::commit::Surface;
use envforge_domain::ids::OrgId;

use super::*;

#[tokio::test]
async fn refused_sign_ins_are_counted_for_the_audit_with_what_is_known_of_whom_and_from_where() {
    let world = World::start().await;
    let strict = world.house.organization("strict", "sue@strict.test").await;
    world.house.denials.drain();
    // Proven, and not let in: the organization's auditors see it, with the id under which the person would be known.
    for _ in 0..3 {
        world.be("auth0|dave", Some("org_strict"), "dave@acme.test").await;
        let mut browser = world.browser();
        let callback = browser.follow_to_callback("").await;
        browser.get(&callback).await.expect_problem(403, "not_invited");
    }
    // Of an organization that is none here, without one, and with an answer that is not this provider's: nobody's.
    world.be("auth0|dave", Some("org_unknown"), "dave@acme.test").await;
    let mut browser = world.browser();
    let callback = browser.follow_to_callback("").await;
    browser.get(&callback).await.expect_problem(403, "organization_not_mapped");
    let mut browser = world.browser();
    let made_up = format!("{}/v1/auth/oidc/callback?state=made-up&code=made-up", browser.base);
    browser.get(&made_up).await.expect_problem(400, "sign_in_unknown");
    let device = world.device().await;
    let code = device.text("user_code");
    world.provider(move |provider| provider.deny(&code)).await;
    world.device_token(&device).await.expect_problem(403, "sign_in_denied");
    let drained = world.house.denials.drain();
    let of = |wanted: OrgId| {
        let mut rows: Vec<_> = drained
            .iter()
            .filter(|(org, _)| *org == wanted)
            .flat_map(|(_, attempts)| attempts)
            .map(|kind| (kind.code.as_str(), kind.surface, kind.count, kind.resource.is_some(), kind.address.is_some()))
            .collect();
        rows.sort_unstable();
        rows
    };
    assert_eq!(of(strict), [("not_invited", Surface::Console, 3, true, true)]);
    assert_eq!(
        of(OrgId::SYSTEM),
        [
            ("organization_not_mapped", Surface::Console, 1, false, true),
            ("sign_in_denied", Surface::Cli, 1, false, true),
            ("sign_in_unknown", Surface::Console, 1, false, true),
        ]
    );
    assert!(!format!("{drained:?}").contains("made-up"), "nothing that was sent is repeated");
    // A provider that the organization's policy does not allow lets nobody in, and that is told there.
    world.house.policy(|policy| policy.identity_providers = ["local".to_owned()].into()).await;
    world.be("auth0|ada", Some("org_acme"), "ada@acme.test").await;
    let mut browser = world.browser();
    let callback = browser.follow_to_callback("").await;
    browser.get(&callback).await.expect_problem(403, "identity_provider_not_allowed");
    assert_eq!(browser.session_cookie(), None);
    let drained = world.house.denials.drain();
    assert_eq!(drained[0].1[0].code, "identity_provider_not_allowed");
    assert_ne!(drained[0].0, OrgId::SYSTEM);
}
