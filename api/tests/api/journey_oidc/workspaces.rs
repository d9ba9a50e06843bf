//! Signing in at the provider on the way to a workspace: the Gateway's client, and a session that opens workspaces alone.

use envforge_api::action_of;
use envforge_domain::commit::Surface;
use envforge_domain::secret::TokenDigest;
use envforge_identity::workspace_handoff::browser_text;

use super::*;

const HOST: &str = "web--signed-links--acme";

fn open_path() -> String {
    format!("/open?host={HOST}&browser={}", browser_text(TokenDigest::of(b"what the host gave the browser")))
}

/// As `return_to` in a query.
fn on_the_way() -> String {
    format!("?return_to={}", open_path().replace('?', "%3F").replace('=', "%3D").replace('&', "%26"))
}

/// Whoever comes from `acme` is a developer there, and there is a workspace.
async fn with_workspace(more: Value) -> World {
    let mut settings = json!({ "organizations": [
        { "provider_id": "org_acme", "slug": "acme", "join": true, "role": "developer" },
        { "provider_id": "org_strict", "slug": "strict" },
    ] });
    for (name, value) in more.as_object().unwrap() {
        settings[name] = value.clone();
    }
    let world = World::start_with(OidcOptions::default(), settings).await;
    let owner = world.house.owner().await;
    world.house.workspace(&owner).await;
    world
}

impl World {
    /// Somebody who came from a workspace's host, through the provider, and back as far as our own `/open`.
    async fn on_the_way(&self) -> Browser {
        let mut browser = self.browser();
        self.goes_to_workspace(&mut browser).await;
        browser
    }

    async fn goes_to_workspace(&self, browser: &mut Browser) {
        let callback = browser.follow_to_callback(&on_the_way()).await;
        let done = browser.get(&callback).await.expect(303);
        assert_eq!(done.headers["location"].to_str().unwrap(), open_path());
    }

    async fn sessions(&self, terminal: &Bearer) -> Vec<(String, String)> {
        let request = self.house.client.get(format!("{}/v1/me/sessions", self.house.base)).bearer_auth(&terminal.token);
        let listed = answer(request.header("envforge-min-position", terminal.position)).await.expect(200);
        let text = |session: &Value, field: &str| session[field].as_str().unwrap().to_owned();
        let items = listed.body["items"].as_array().unwrap();
        items.iter().map(|session| (text(session, "surface"), text(session, "client"))).collect()
    }
}

impl Browser {
    async fn page(&mut self, path: &str) -> Answer {
        let url = format!("{}{path}", self.base);
        let request = self.client.get(&url).header("sec-fetch-mode", "navigate");
        self.send(request, &url).await
    }

    /// Where `/open` sends it.
    async fn opens(&mut self) -> String {
        self.page(&open_path()).await.expect(303).headers["location"].to_str().unwrap().to_owned()
    }

    async fn is_handed_on(&mut self) -> bool {
        self.opens().await.starts_with(&format!("http://{HOST}.dev.localhost:8443/.envforge/signed-in?code="))
    }

    fn cookie(&self, name: &str) -> Option<String> {
        self.cookies.get(&Self::site(&self.base))?.get(name).cloned()
    }

    fn keep(&mut self, name: &str, value: &str) {
        self.cookies.entry(Self::site(&self.base)).or_default().insert(name.to_owned(), value.to_owned());
    }

    async fn form(&mut self, path: &str, body: &str) -> Answer {
        let url = format!("{}{path}", self.base);
        let request = self.client.post(&url).header("origin", &self.base).header("sec-fetch-site", "same-origin");
        let request = request.header("content-type", "application/x-www-form-urlencoded").body(body.to_owned());
        self.send(request, &url).await
    }
}

#[tokio::test]
async fn on_the_way_to_a_workspace_the_gateways_client_signs_in_for_opening_workspaces_alone() {
    let world = with_workspace(json!({})).await;
    let mut browser = world.browser();
    assert!(browser.opens().await.starts_with("/sign-in?return_to=%2Fopen%3Fhost%3D"), "nobody is signed in");
    let page = browser.page(&format!("/sign-in{}", on_the_way())).await.expect(200);
    assert!(page.body.as_str().unwrap().contains("Continue with 127.0.0.1"), "{page:?}");
    let start = |query: &str| format!("{}/v1/auth/oidc/start{query}", world.house.base);
    let sent = browser.get(&start(&on_the_way())).await.expect(303);
    let sent = sent.headers["location"].to_str().unwrap().to_owned();
    assert_eq!(parameter(&sent, "client_id"), "gateway");
    assert_eq!(parameter(&sent, "redirect_uri"), format!("{}/v1/auth/oidc/callback", world.house.base));
    assert_eq!(parameter(&sent, "code_challenge_method"), "S256");
    assert!(parameter(&sent, "state").len() >= 43 && parameter(&sent, "nonce").len() >= 43);
    // Elsewhere it is the dashboard's, also where a path only looks like the way.
    for elsewhere in ["", "?return_to=/", "?return_to=/opening", "?return_to=/open/there", "?return_to=/sign-in%3Fopen"]
    {
        let sent = browser.get(&start(elsewhere)).await.expect(303);
        assert_eq!(parameter(sent.headers["location"].to_str().unwrap(), "client_id"), "web", "{elsewhere}");
    }

    let callback = browser.follow_to_callback(&on_the_way()).await;
    let done = browser.get(&callback).await.expect(303);
    let cookie = done.headers["set-cookie"].to_str().unwrap();
    for part in ["envforge-workspaces=", "; Path=/", "; HttpOnly", "; SameSite=Lax"] {
        assert!(cookie.contains(part), "{cookie}");
    }
    assert_eq!(browser.session_cookie(), None, "nobody is signed in to EnvForge itself");
    assert!(browser.is_handed_on().await);
    // A second workspace needs no second sign-in, and the page says whose browser this is.
    let back = browser.page(&format!("/sign-in{}", on_the_way())).await.expect(303);
    assert_eq!(back.headers["location"].to_str().unwrap(), open_path());
    let home = browser.page("/").await.expect(200);
    let home = home.body.as_str().unwrap();
    assert!(home.contains("signed in to workspaces") && home.contains("ada@acme.test"), "{home}");
    assert!(!home.contains("everywhere"), "{home}");
    browser.page("/sign-in").await.expect(200);
    let terminal = world.person(&world.at_terminal().await);
    let sessions = world.sessions(&terminal).await;
    assert!(sessions.contains(&("gateway".to_owned(), "sign-in to workspaces".to_owned())), "{sessions:?}");
}

#[tokio::test]
async fn a_session_for_workspaces_is_refused_by_everything_else() {
    let world = with_workspace(json!({})).await;
    let mut browser = world.on_the_way().await;
    let origin = browser.base.clone();
    let value = browser.cookie("envforge-workspaces").unwrap();
    let document = envforge_api::document();
    let mut refused = 0;
    // Under its own name and under the other one's.
    for name in ["envforge-workspaces", "envforge-session"] {
        browser.cookies.clear();
        browser.keep(name, &value);
        for (path, item) in &document.paths.paths {
            let methods = [
                (Method::GET, &item.get),
                (Method::POST, &item.post),
                (Method::PUT, &item.put),
                (Method::PATCH, &item.patch),
                (Method::DELETE, &item.delete),
            ];
            for (method, operation) in methods {
                let Some(operation) = operation else { continue };
                if action_of(operation) == Some("public") {
                    continue;
                }
                let path = path.replace("{org}", "acme").replace("{workspace}", "signed-links").replace(['{', '}'], "");
                // What an operation cannot do without is looked for first.
                let described = serde_json::to_value(operation).unwrap();
                let parameters = described["parameters"].as_array().into_iter().flatten();
                let needed = parameters.filter(|parameter| parameter["in"] == "query" && parameter["required"] == true);
                let query: String = needed.map(|needed| format!("{}=1&", needed["name"].as_str().unwrap())).collect();
                let path = format!("{path}?{query}");
                let asked = browser.of_api(method.clone(), &path, Some(&origin)).await;
                assert_eq!(asked.code(), "session_of_another_surface", "{method} {path}: {asked:?}");
                let told = asked.expect_problem(403, "session_of_another_surface");
                assert_eq!(told.text("surface"), "gateway", "{method} {path}");
                refused += 1;
            }
        }
    }
    assert!(refused > 100, "{refused} refusals");
    assert_eq!(browser.opens().await.split('?').next(), Some("/sign-in"), "its cookie has one name");
    let home = browser.page("/").await.expect(303);
    assert_eq!(home.headers["location"], "/sign-in");
    // The other way round: the dashboard's cookie opens workspaces under its own name alone.
    let mut dashboard = world.signed_in().await;
    assert!(dashboard.is_handed_on().await);
    let value = dashboard.session_cookie().unwrap().clone();
    dashboard.cookies.clear();
    dashboard.keep("envforge-workspaces", &value);
    assert_eq!(dashboard.opens().await.split('?').next(), Some("/sign-in"));
    let told = dashboard.me().await.expect_problem(403, "session_of_another_surface");
    assert_eq!(told.text("surface"), "console");
}

#[tokio::test]
async fn a_code_of_one_client_is_worth_nothing_in_a_sign_in_that_was_begun_through_another() {
    let world = with_workspace(json!({})).await;
    for [begun, brought] in [[on_the_way(), String::new()], [String::new(), on_the_way()]] {
        let mut browser = world.browser();
        let (mine, other) = (browser.follow_to_callback(&begun).await, browser.follow_to_callback(&brought).await);
        let mixed = with_parameter(&mine, "code", &parameter(&other, "code"));
        let refused = browser.get(&mixed).await.expect_problem(401, "sign_in_invalid");
        assert_eq!(refused.text("reason"), "code");
        // A state is of the client for which it was made, whatever `return_to` somebody writes beside it.
        browser.get(&mine).await.expect_problem(400, "sign_in_unknown");
        assert_eq!((browser.session_cookie(), browser.cookie("envforge-workspaces")), (None, None));
        // Each in its own place is good, and neither opens the other's door.
        browser.get(&other).await.expect(303);
        assert_eq!(browser.session_cookie().is_some(), brought.is_empty());
        assert_eq!(browser.cookie("envforge-workspaces").is_some(), begun.is_empty());
    }
    // Begun in another browser: its owner is not signed in as whoever sent the link.
    let callback = world.browser().follow_to_callback(&on_the_way()).await;
    let mut victim = world.browser();
    victim.follow_to_callback(&on_the_way()).await;
    victim.get(&callback).await.expect_problem(400, "sign_in_unknown");
    assert_eq!(victim.cookie("envforge-workspaces"), None);
}

#[tokio::test]
async fn a_cookie_that_somebody_planted_is_not_the_one_that_signs_in() {
    let world = with_workspace(json!({})).await;
    let planted = world.on_the_way().await.cookie("envforge-workspaces").unwrap();
    world.be("auth0|dave", Some("org_acme"), "dave@acme.test").await;
    let mut browser = world.browser();
    browser.keep("envforge-workspaces", &planted);
    world.goes_to_workspace(&mut browser).await;
    assert_ne!(browser.cookie("envforge-workspaces"), Some(planted));
    let home = browser.page("/").await.expect(200);
    assert!(home.body.as_str().unwrap().contains("dave@acme.test"), "{home:?}");
}

#[tokio::test]
async fn without_a_gateway_client_the_dashboards_client_signs_in_on_the_way_too() {
    let clients = json!({ "clients": { "web": { "id": "web" }, "cli": { "id": "cli" } } });
    let world = with_workspace(clients).await;
    let start = format!("{}/v1/auth/oidc/start{}", world.house.base, on_the_way());
    let sent = world.browser().get(&start).await.expect(303);
    assert_eq!(parameter(sent.headers["location"].to_str().unwrap(), "client_id"), "web");
    // And without a dashboard's, the Gateway's is for workspaces alone.
    let clients = json!({ "clients": { "cli": { "id": "cli" }, "gateway": { "id": "gateway" } } });
    let world = with_workspace(clients).await;
    let base = &world.house.base;
    let sent = world.browser().get(&format!("{base}/v1/auth/oidc/start{}", on_the_way())).await.expect(303);
    assert_eq!(parameter(sent.headers["location"].to_str().unwrap(), "client_id"), "gateway");
    let start = world.browser().get(&format!("{base}/v1/auth/oidc/start")).await;
    start.expect_problem(404, "provider_not_configured");
    for (query, offered) in [(String::new(), false), (on_the_way(), true)] {
        let page = world.browser().page(&format!("/sign-in{query}")).await.expect(200);
        assert_eq!(page.body.as_str().unwrap().contains("Continue with"), offered, "{query}");
    }
}

#[tokio::test]
async fn a_browser_may_hold_both_sessions_of_one_person_and_signing_out_ends_both() {
    let world = with_workspace(json!({})).await;
    let mut browser = world.on_the_way().await;
    let callback = browser.follow_to_callback("").await;
    browser.get(&callback).await.expect(303);
    browser.me().await.expect(200);
    let (both, home) = (browser.cookie("envforge-workspaces"), browser.page("/").await.expect(200));
    assert!(both.is_some(), "signing in to EnvForge closes no workspace");
    assert!(home.body.as_str().unwrap().contains("Sign out everywhere"));
    // Without the dashboard's, the other one still stands.
    let dashboard = browser.session_cookie().unwrap().clone();
    let own = browser.base.clone();
    browser.of_api(Method::POST, "/v1/auth/logout", Some(&own)).await.expect(204);
    assert!(browser.is_handed_on().await);
    browser.keep("envforge-session", &dashboard);
    let out = browser.form("/sign-out", "everywhere=yes").await.expect(303);
    assert_eq!(out.headers.get_all("set-cookie").iter().count(), 2);
    browser.keep("envforge-workspaces", &both.unwrap());
    assert_eq!(browser.opens().await.split('?').next(), Some("/sign-in"), "the old cookie counts for nothing");
}

#[tokio::test]
async fn a_browser_is_one_persons_and_whoever_signs_in_ends_what_somebody_else_had_open_in_it() {
    let world = with_workspace(json!({})).await;
    let mut browser = world.on_the_way().await;
    let adas = browser.cookie("envforge-workspaces").unwrap();
    let terminal = world.person(&world.at_terminal().await);
    // The provider knows the browser by its own cookie: somebody else sits down.
    let own = Browser::site(&browser.base);
    browser.cookies.retain(|site, _| *site == own);
    world.be("auth0|dave", Some("org_acme"), "dave@acme.test").await;
    let callback = browser.follow_to_callback("").await;
    browser.get(&callback).await.expect(303);
    assert_eq!(browser.me().await.expect(200).text("email"), "dave@acme.test");
    assert_eq!(browser.cookie("envforge-workspaces"), None);
    let mut other = world.browser();
    other.keep("envforge-workspaces", &adas);
    assert_eq!(other.opens().await.split('?').next(), Some("/sign-in"), "it has ended, not only been forgotten");
    terminal.me().await.expect(200);
}

#[tokio::test]
async fn a_logout_at_the_provider_for_the_gateways_client_ends_the_session_for_workspaces() {
    let world = with_workspace(json!({})).await;
    let uri = format!("{}/v1/auth/oidc/backchannel-logout", world.house.base);
    world.provider(move |provider| provider.pull("backchannel", &json!({ "uri": uri }).to_string())).await;
    let (mut one, mut other, mut dashboard) =
        (world.on_the_way().await, world.on_the_way().await, world.signed_in().await);
    let sids: Vec<String> =
        serde_json::from_str(&world.provider(|provider| provider.pull("sids", "{}")).await).unwrap();
    let first = json!({"client": "gateway", "subject": "auth0|ada", "sid": sids[0]}).to_string();
    let sent = world.provider(move |provider| provider.pull("logout", &first)).await;
    assert!(sent.contains("200"), "{sent}");
    assert_eq!(one.opens().await.split('?').next(), Some("/sign-in"));
    assert!(other.is_handed_on().await);
    // Of the person: whichever client it is for, everything of theirs ends.
    let token = world.logout_token(json!({}), json!({"aud": "gateway"})).await;
    world.log_out(&world.house.base, &token).await.expect(200);
    assert_eq!(other.opens().await.split('?').next(), Some("/sign-in"));
    dashboard.me().await.expect_problem(401, "session_ended");
}

#[tokio::test]
async fn who_may_not_come_in_on_the_way_is_told_and_counted_on_the_gateways_surface() {
    let world = with_workspace(json!({})).await;
    let strict = world.house.organization("strict", "sue@strict.test").await;
    world.house.denials.drain();
    world.be("auth0|dave", Some("org_strict"), "dave@acme.test").await;
    let mut browser = world.browser();
    let callback = browser.follow_to_callback(&format!("{}&organization=strict", on_the_way())).await;
    browser.get(&callback).await.expect_problem(403, "not_invited");
    let drained = world.house.denials.drain();
    let found: Vec<_> = drained
        .iter()
        .flat_map(|(org, attempts)| attempts.iter().map(|kind| (*org, kind.code.as_str(), kind.surface)))
        .collect();
    assert_eq!(found, [(strict, "not_invited", Surface::Gateway)]);
    // A member without the right is signed in, and sees the page that does not tell what is there.
    let settings = json!({ "organizations": [
        { "provider_id": "org_acme", "slug": "acme", "join": true, "role": "viewer" },
    ] });
    let world = with_workspace(settings).await;
    let mut viewer = world.on_the_way().await;
    let page = viewer.page(&open_path()).await.expect(403);
    assert!(page.body.as_str().unwrap().contains("You may not open this workspace"), "{page:?}");
    assert!(viewer.cookie("envforge-workspaces").is_some());
    viewer.form("/sign-out", "").await.expect(303);
    assert_eq!(viewer.opens().await.split('?').next(), Some("/sign-in"));
}
