//! Signing in through a real OpenID provider: browsers, terminals, and what the provider says afterwards.

mod events;
mod refused;
mod workspaces;

use std::collections::BTreeMap;
use std::sync::Arc;

use envforge_domain::time::Millis;
use envforge_identity::oidc::Challenge;
use envforge_testkit::{OIDC_GATEWAY_SECRET, OIDC_WEB_SECRET, OidcOptions, OidcProvider, free_port};
use reqwest::Method;
use serde_json::{Value, json};

use crate::house::{Answer, House, PASSWORD, Person, answer, eventually};

const NONCE: &str = "a-nonce-that-is-as-long-as-random-ones-are-here";
const VERIFIER: &str = "a-verifier-that-is-as-long-as-random-ones-are-here";

/// An API and its provider, which knows `acme` as `org_acme` and makes whoever comes from there a viewer.
struct World {
    house: House,
    provider: Arc<OidcProvider>,
}

impl World {
    async fn start() -> Self {
        Self::start_with(OidcOptions::default(), json!({})).await
    }

    async fn start_with(options: OidcOptions, more: Value) -> Self {
        let port = free_port();
        let api_url = format!("http://127.0.0.1:{port}");
        let options = OidcOptions { web_redirect_uri: format!("{api_url}/v1/auth/oidc/callback"), ..options };
        let audience = options.audience.clone();
        let provider = blocking(move || OidcProvider::start_with(&options)).await;
        let secrets = tempfile::tempdir().unwrap();
        let [web, gateway] = [("web", OIDC_WEB_SECRET), ("gateway", OIDC_GATEWAY_SECRET)].map(|(id, secret)| {
            let secret_file = secrets.path().join(id);
            std::fs::write(&secret_file, secret).unwrap();
            json!({ "id": id, "secret_file": secret_file })
        });
        let mut settings = json!({
            "issuer": provider.issuer(), "audience": audience, "api_url": api_url,
            "clients": { "web": web, "cli": { "id": "cli" }, "gateway": gateway },
            "organizations": [
                { "provider_id": "org_acme", "slug": "acme", "join": true, "role": "viewer" },
                { "provider_id": "org_strict", "slug": "strict" },
                { "provider_id": "org_bare", "slug": "bare", "join": true },
                { "provider_id": "org_nowhere", "slug": "nowhere", "join": true },
            ],
        });
        for (name, value) in more.as_object().unwrap() {
            settings[name] = value.clone();
        }
        let house = House::start_with_provider(port, serde_json::from_value(settings).unwrap()).await;
        Self { house, provider: Arc::new(provider) }
    }

    /// Pulls a lever of the provider's: they block.
    async fn provider<T: Send + 'static>(&self, lever: impl FnOnce(&OidcProvider) -> T + Send + 'static) -> T {
        let provider = Arc::clone(&self.provider);
        blocking(move || lever(&provider)).await
    }

    async fn be(&self, subject: &'static str, organization: Option<&'static str>, email: &'static str) {
        self.provider(move |provider| provider.be(subject, organization, email)).await;
    }

    async fn post(&self, path: &str, body: Value) -> Answer {
        self.house.anonymous(Method::POST, path, body).await
    }

    /// A browser of its own, with the provider's cookies and ours.
    fn browser(&self) -> Browser {
        let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).no_proxy().build().unwrap();
        Browser { client, base: self.house.base.clone(), cookies: BTreeMap::new() }
    }

    /// Somebody who signed in with a fresh browser.
    async fn signed_in(&self) -> Browser {
        let mut browser = self.browser();
        let callback = browser.follow_to_callback("").await;
        let done = browser.get(&callback).await;
        assert_eq!(done.status, 303, "{done:?}");
        browser
    }

    async fn device(&self) -> Answer {
        self.post("/v1/auth/oidc/device", json!({"organization": "acme"})).await.expect(200)
    }

    async fn device_token(&self, device: &Answer) -> Answer {
        self.post("/v1/auth/oidc/device/token", json!({"device_code": device.text("device_code")})).await
    }

    /// Somebody who signed in at a terminal.
    async fn at_terminal(&self) -> Answer {
        let device = self.device().await;
        let code = device.text("user_code");
        self.provider(move |provider| provider.approve(&code)).await;
        self.device_token(&device).await.expect(200)
    }

    fn person(&self, tokens: &Answer) -> Bearer {
        let (base, client) = (self.house.base.clone(), self.house.client.clone());
        Bearer { base, client, token: tokens.text("access_token"), position: tokens.position() }
    }

    /// The back channel, as the provider uses it.
    async fn log_out(&self, base: &str, token: &str) -> Answer {
        let request = self.house.client.post(format!("{base}/v1/auth/oidc/backchannel-logout"));
        let request = request.header("content-type", "application/x-www-form-urlencoded");
        answer(request.body(format!("logout_token={token}"))).await
    }

    /// A logout token of the provider's, with these members changed.
    async fn logout_token(&self, header: Value, changed: Value) -> String {
        let now = self.house.now().get() / 1_000;
        let mut claims = json!({
            "iss": self.provider.issuer(), "aud": "web", "iat": now, "exp": now + 120, "jti": uuid(), "sub": "auth0|ada",
            "events": { "http://schemas.openid.net/event/backchannel-logout": {} },
        });
        for (name, value) in changed.as_object().unwrap() {
            claims[name] = value.clone();
        }
        let mut head = json!({"typ": "logout+jwt"});
        for (name, value) in header.as_object().unwrap() {
            head[name] = value.clone();
        }
        self.provider(move |provider| provider.sign(&head.to_string(), &claims.to_string())).await
    }

    async fn members(&self, owner: &Person) -> Vec<Value> {
        let list = owner.get("/v1/orgs/acme/members").await.expect(200);
        list.body["items"].as_array().unwrap().clone()
    }
}

fn uuid() -> String {
    uuid::Uuid::now_v7().to_string()
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

/// Somebody with an access token.
struct Bearer {
    client: reqwest::Client,
    base: String,
    token: String,
    position: u64,
}

impl Bearer {
    async fn me(&self) -> Answer {
        let request = self.client.get(format!("{}/v1/me", self.base)).bearer_auth(&self.token);
        answer(request.header("envforge-min-position", self.position)).await
    }
}

/// Follows redirects one by one and keeps cookies by host and port.
struct Browser {
    client: reqwest::Client,
    base: String,
    cookies: BTreeMap<String, BTreeMap<String, String>>,
}

impl Browser {
    fn site(url: &str) -> String {
        url.split('/').nth(2).unwrap().to_owned()
    }

    async fn send(&mut self, request: reqwest::RequestBuilder, url: &str) -> Answer {
        let jar = self.cookies.entry(Self::site(url)).or_default();
        let line: Vec<_> = jar.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let answer = answer(request.header("cookie", line.join("; "))).await;
        for set in answer.headers.get_all("set-cookie") {
            let (name, value) = set.to_str().unwrap().split(';').next().unwrap().split_once('=').unwrap();
            if value.is_empty() {
                jar.remove(name)
            } else {
                jar.insert(name.to_owned(), value.to_owned())
            };
        }
        answer
    }

    async fn get(&mut self, url: &str) -> Answer {
        let request = self.client.get(url);
        self.send(request, url).await
    }

    async fn of_api(&mut self, method: Method, path: &str, origin: Option<&str>) -> Answer {
        let url = format!("{}{path}", self.base);
        let mut request = self.client.request(method, &url).json(&json!({}));
        if let Some(origin) = origin {
            request = request.header("origin", origin);
        }
        self.send(request, &url).await
    }

    async fn me(&mut self) -> Answer {
        self.of_api(Method::GET, "/v1/me", None).await
    }

    /// From our start through the provider's pages up to the callback, which is not opened.
    async fn follow_to_callback(&mut self, query: &str) -> String {
        let mut url = format!("{}/v1/auth/oidc/start{query}", self.base);
        for _ in 0..10 {
            let step = self.get(&url).await;
            assert_eq!(step.status, 303, "{url}: {step:?}");
            url = step.headers["location"].to_str().unwrap().to_owned();
            if url.starts_with(&format!("{}/v1/auth/oidc/callback", self.base)) {
                return url;
            }
        }
        panic!("the provider sends the browser in a circle: {url}");
    }

    fn session_cookie(&self) -> Option<&String> {
        self.cookies.get(&Self::site(&self.base))?.get("envforge-session")
    }
}

/// A parameter of a URL, replaced.
fn with_parameter(url: &str, name: &str, value: &str) -> String {
    let mut url = reqwest::Url::parse(url).unwrap();
    let kept: Vec<(String, String)> =
        url.query_pairs().filter(|(known, _)| known != name).map(|(name, value)| (name.into(), value.into())).collect();
    url.query_pairs_mut().clear().extend_pairs(kept).append_pair(name, value);
    url.into()
}

fn parameter(url: &str, name: &str) -> String {
    let url = reqwest::Url::parse(url).unwrap();
    url.query_pairs().find(|(known, _)| known == name).unwrap_or_else(|| panic!("no `{name}` in {url}")).1.into()
}

#[tokio::test]
async fn a_browser_signs_in_at_the_provider_and_gets_a_session_of_our_own() {
    let world = World::start().await;
    let providers = world.house.anonymous(Method::GET, "/v1/auth/providers", json!(null)).await.expect(200);
    assert_eq!(providers.body["items"][1]["flows"], json!(["web", "device", "loopback"]));

    let mut browser = world.browser();
    browser.me().await.expect_problem(401, "unauthenticated");
    let callback = browser.follow_to_callback("?organization=acme&return_to=/workspaces?tab=links").await;
    let done = browser.get(&callback).await;
    assert_eq!((done.status, done.headers["location"].to_str().unwrap()), (303, "/workspaces?tab=links"));
    let cookie = done.headers["set-cookie"].to_str().unwrap();
    for part in ["envforge-session=", "; Path=/", "; HttpOnly", "; SameSite=Lax"] {
        assert!(cookie.contains(part), "{cookie}");
    }

    let me = browser.me().await.expect(200);
    assert_eq!((me.text("email"), me.text("name")), ("ada@acme.test".to_owned(), "Ada".to_owned()));
    assert_eq!(
        me.body["roles"],
        json!([{"role": "viewer", "project": null, "workspace": null, "team": null, "expires_at": null}])
    );
    // The owner of that address has a password; who signs in here is somebody else.
    let owner = world.house.owner().await;
    assert_ne!(me.text("id"), owner.user);

    let elsewhere = Some("https://evil.example");
    for origin in [None, elsewhere, Some("null")] {
        browser.of_api(Method::POST, "/v1/auth/logout", origin).await.expect_problem(403, "cross_site_request");
    }
    let own = browser.base.clone();
    browser.of_api(Method::POST, "/v1/auth/logout", Some(&own)).await.expect(204);
    browser.me().await.expect_problem(401, "session_ended");
}

#[tokio::test]
async fn the_first_sight_of_somebody_makes_one_record_however_often_they_sign_in_at_once() {
    let world = World::start().await;
    world.be("auth0|dave", Some("org_acme"), "dave@acme.test").await;
    let mut waiting = Vec::new();
    for _ in 0..5 {
        let mut browser = world.browser();
        let callback = browser.follow_to_callback("").await;
        waiting.push((browser, callback));
    }
    let all = waiting.iter_mut().map(|(browser, callback)| browser.get(callback));
    for done in futures_util::future::join_all(all).await {
        assert_eq!(done.status, 303, "{done:?}");
    }
    let mut ids = std::collections::BTreeSet::new();
    for (browser, _) in &mut waiting {
        ids.insert(browser.me().await.expect(200).text("id"));
    }
    assert_eq!(ids.len(), 1, "{ids:?}");
    let owner = world.house.owner().await;
    assert_eq!(world.members(&owner).await.len(), 2);
    // The same subject with another address is the same person; another subject with that address is not.
    world.be("auth0|dave", Some("org_acme"), "david@acme.test").await;
    assert!(ids.contains(&world.signed_in().await.me().await.expect(200).text("id")));
    world.be("auth0|eve", Some("org_acme"), "dave@acme.test").await;
    assert!(!ids.contains(&world.signed_in().await.me().await.expect(200).text("id")));
}

#[tokio::test]
async fn who_has_no_organization_membership_or_role_here_gets_no_session() {
    let world = World::start().await;
    world.house.organization("strict", "sue@strict.test").await;
    world.house.organization("bare", "bob@bare.test").await;
    for (organization, status, code) in [
        (Some("org_unknown"), 403, "organization_not_mapped"),
        (Some("org_nowhere"), 403, "organization_not_mapped"),
        (Some("org_strict"), 403, "not_invited"),
        (Some("org_bare"), 403, "no_role"),
        (None, 401, "sign_in_invalid"),
    ] {
        world.be("auth0|dave", organization, "dave@acme.test").await;
        let mut browser = world.browser();
        let callback = browser.follow_to_callback("").await;
        let refused = browser.get(&callback).await.expect_problem(status, code);
        if organization.is_none() {
            assert_eq!(refused.body["reason"], "no_organization");
        }
        assert_eq!(browser.session_cookie(), None, "{organization:?}");
    }
    // Who was made a member and got a role comes in.
    let bob = world.house.person("bob@bare.test").await;
    let members = bob.get("/v1/orgs/bare/members").await.expect(200);
    let dave = members.body["items"].as_array().unwrap().iter().find(|member| member["email"] == "dave@acme.test");
    let role = json!({"user": dave.unwrap()["user"], "role": "developer"});
    bob.post("/v1/orgs/bare/roles", role).await.expect(201);
    world.be("auth0|dave", Some("org_bare"), "dave@acme.test").await;
    assert_eq!(world.signed_in().await.me().await.expect(200).body["org"]["slug"], "bare");
}

#[tokio::test]
async fn a_session_says_who_vouched_for_it_and_counts_on_its_own_surface_alone() {
    let world = World::start().await;
    let mut browser = world.signed_in().await;
    let device = world.device().await;
    let code = device.text("user_code");
    world.provider(move |provider| provider.approve(&code)).await;
    let asked = json!({"device_code": device.text("device_code"), "client": "a-terminal/1.0"});
    let terminal = world.post("/v1/auth/oidc/device/token", asked).await.expect(200);

    let listed = browser.of_api(Method::GET, "/v1/me/sessions", None).await.expect(200);
    let sessions = listed.body["items"].as_array().unwrap();
    let facts = |session: &Value| (session["surface"].clone(), session["client"].clone(), session["current"].clone());
    let expected =
        [(json!("cli"), json!("a-terminal/1.0"), json!(false)), (json!("console"), json!("console"), json!(true))];
    assert_eq!(sessions.iter().map(facts).collect::<Vec<_>>(), expected);
    for session in sessions {
        assert_eq!(session["provider"], world.provider.issuer());
        assert!(session["authenticated_at"].as_str() <= session["opened_at"].as_str(), "{session}");
    }

    let url = format!("{}/v1/me", world.house.base);
    let on_another = browser.client.get(&url).header("envforge-surface", "cli");
    browser.send(on_another, &url).await.expect_problem(403, "session_of_another_surface");
    let token = terminal.text("access_token");
    let on_another = world.house.client.get(&url).bearer_auth(token).header("envforge-surface", "console");
    answer(on_another).await.expect_problem(403, "session_of_another_surface");
    // There is no password with which to prove it once more.
    let origin = world.house.base.clone();
    let request = browser.client.post(format!("{origin}/v1/auth/reauthenticate")).header("origin", &origin);
    let request = request.json(&json!({"password": "plum kite engine 7"}));
    browser.send(request, &url).await.expect_problem(409, "no_password_here");
}

#[tokio::test]
async fn who_was_taken_out_does_not_come_back_by_signing_in_again() {
    let world = World::start().await;
    world.be("auth0|dave", Some("org_acme"), "dave@acme.test").await;
    let mut browser = world.signed_in().await;
    let dave = browser.me().await.expect(200).text("id");
    let owner = world.house.owner().await;
    owner.delete(&format!("/v1/orgs/acme/members/{dave}")).await.expect(200);
    browser.me().await.expect_problem(404, "not_found");
    let mut again = world.browser();
    let callback = again.follow_to_callback("").await;
    again.get(&callback).await.expect_problem(403, "membership_ended");
}

#[tokio::test]
async fn a_callback_works_once_and_only_in_the_browser_where_it_was_begun() {
    let world = World::start().await;
    let mut browser = world.browser();
    let callback = browser.follow_to_callback("").await;
    // Somebody else's browser, or none, takes nothing away.
    let mut other = world.browser();
    other.follow_to_callback("").await;
    other.get(&callback).await.expect_problem(400, "sign_in_unknown");
    world.browser().get(&callback).await.expect_problem(400, "sign_in_unknown");
    browser.get(&with_parameter(&callback, "state", &"s".repeat(43))).await.expect_problem(400, "sign_in_unknown");
    browser.get(&callback).await.expect(303);
    browser.get(&callback).await.expect_problem(400, "sign_in_unknown");

    // Two tabs: each finishes its own, and neither the other's.
    let (first, second) = (browser.follow_to_callback("").await, browser.follow_to_callback("").await);
    let mixed = with_parameter(&first, "code", &parameter(&second, "code"));
    let refused = browser.get(&mixed).await.expect_problem(401, "sign_in_invalid");
    assert_eq!(refused.body["reason"], "code", "the verifier of one does not fit the code of the other");

    let late = browser.follow_to_callback("").await;
    world.house.clock.skip(Millis::from_minutes(11));
    browser.get(&late).await.expect_problem(400, "sign_in_unknown");
}

#[tokio::test]
async fn what_is_not_this_providers_answer_signs_nobody_in() {
    let world = World::start().await;
    let mut browser = world.browser();
    let callback = browser.follow_to_callback("").await;
    let mixed_up = with_parameter(&callback, "iss", "https://evil.example/");
    assert_eq!(browser.get(&mixed_up).await.expect_problem(401, "sign_in_invalid").body["reason"], "issuer");
    // Whatever comes of it, the state is used up.
    browser.get(&callback).await.expect_problem(400, "sign_in_unknown");

    let callback = browser.follow_to_callback("").await;
    let issuer = parameter(&callback, "iss");
    let state = parameter(&callback, "state");
    let denied =
        format!("{}/v1/auth/oidc/callback?error=access_denied&error_description=<script>&state={state}", browser.base);
    let denied = browser.get(&with_parameter(&denied, "iss", &issuer)).await.expect_problem(403, "sign_in_denied");
    assert_eq!(denied.body["reason"], "access_denied");
    assert!(!denied.body.to_string().contains("script"));
    assert_eq!(browser.session_cookie(), None);
}

#[tokio::test]
async fn nobody_is_sent_to_another_site() {
    let world = World::start().await;
    let mut browser = world.browser();
    for evil in [
        "https://evil.example/",
        "//evil.example",
        "/\\evil.example",
        "\\\\evil.example",
        "javascript:alert(1)",
        "/%0d%0aSet-Cookie:%20a=b",
        "%2f%2fevil.example",
        "/%09/evil.example",
        "%20//evil.example",
    ] {
        let url = format!("{}/v1/auth/oidc/start?return_to={evil}", browser.base);
        browser.get(&url).await.expect_problem(400, "query_invalid");
    }
    let misspelt = format!("{}/v1/auth/oidc/start?redirect=/", browser.base);
    browser.get(&misspelt).await.expect_problem(400, "query_invalid");
}

#[tokio::test]
async fn a_terminal_signs_in_when_somebody_says_yes_and_not_before() {
    let world = World::start().await;
    let device = world.device().await;
    assert!(device.text("verification_uri").starts_with(&world.provider.issuer()));
    // Auth0 answers 403 until then, others 400.
    for status in [403, 400] {
        world.provider(move |provider| provider.behave(&format!(r#"{{"pending_status":{status}}}"#))).await;
        assert_eq!(world.device_token(&device).await.expect(202).text("status"), "pending");
    }
    world.provider(|provider| provider.behave(r#"{"slow_downs":1}"#)).await;
    assert_eq!(world.device_token(&device).await.expect(202).text("status"), "slow_down");
    let code = device.text("user_code");
    world.provider(move |provider| provider.approve(&code)).await;
    let tokens = world.device_token(&device).await.expect(200);
    assert_eq!(tokens.body["org"]["slug"], "acme");
    world.person(&tokens).me().await.expect(200);
    world.device_token(&device).await.expect_problem(410, "sign_in_expired");
    // Tokens of our own: renewed by us, whatever the provider does.
    let renewed = world.post("/v1/auth/refresh", json!({"refresh_token": tokens.text("refresh_token")})).await;
    renewed.expect(200);
}

#[tokio::test]
async fn a_terminal_whose_person_says_no_or_nothing_gets_nothing() {
    let options = OidcOptions { device_code_seconds: 2, ..OidcOptions::default() };
    let world = World::start_with(options, json!({})).await;
    let device = world.device().await;
    let code = device.text("user_code");
    world.provider(move |provider| provider.deny(&code)).await;
    world.device_token(&device).await.expect_problem(403, "sign_in_denied");
    let device = world.device().await;
    let expired = eventually("the device's code to expire", async || {
        let answer = world.device_token(&device).await;
        (answer.status != 202).then_some(answer)
    })
    .await;
    expired.expect_problem(410, "sign_in_expired");
    world
        .post("/v1/auth/oidc/device/token", json!({"device_code": "made up"}))
        .await
        .expect_problem(410, "sign_in_expired");
}

#[tokio::test]
async fn a_terminals_tokens_may_name_the_organization_by_a_claim_of_another_name() {
    let claims = json!({"organization_claims": ["org_id", "https://envforge.test/org_id"]});
    let world = World::start_with(OidcOptions::default(), claims).await;
    world.provider(|provider| provider.behave(r#"{"custom_claim":true}"#)).await;
    assert_eq!(world.at_terminal().await.body["org"]["slug"], "acme");
}

#[tokio::test]
async fn a_browser_on_the_terminals_own_machine_brings_a_code_that_only_the_terminal_can_use() {
    let world = World::start().await;
    let challenge = Challenge::of(&envforge_domain::secret::Secret::new(VERIFIER.to_owned()));
    let state = "a-state-that-is-as-long-as-random-ones-are-here";
    let begin = json!({"port": 45_678, "state": state, "nonce": NONCE, "code_challenge": challenge.as_str(), "organization": "acme"});
    let code = async || {
        let url = world.post("/v1/auth/oidc/loopback", begin.clone()).await.expect(200).text("url");
        let (mut browser, mut url) = (world.browser(), url);
        for _ in 0..10 {
            if url.starts_with("http://127.0.0.1:45678/callback") {
                break;
            }
            url = browser.get(&url).await.expect(303).headers["location"].to_str().unwrap().to_owned();
        }
        assert_eq!(parameter(&url, "state"), state);
        parameter(&url, "code")
    };
    let trade = async |port: u16, nonce: &str, code: &str, verifier: &str| {
        let body = json!({"port": port, "nonce": nonce, "code": code, "code_verifier": verifier});
        world.post("/v1/auth/oidc/loopback/token", body).await
    };
    let good = code().await;
    let tokens = trade(45_678, NONCE, &good, VERIFIER).await.expect(200);
    world.person(&tokens).me().await.expect(200);
    let reason = |refused: Answer| refused.expect_problem(401, "sign_in_invalid").text("reason");
    assert_eq!(reason(trade(45_678, NONCE, &good, VERIFIER).await), "code", "a code is used once");
    let other = "another-verifier-that-is-as-long-as-random-ones-are";
    assert_eq!(reason(trade(45_678, NONCE, &code().await, other).await), "code");
    assert_eq!(reason(trade(45_679, NONCE, &code().await, VERIFIER).await), "code", "another redirect URI");
    assert_eq!(reason(trade(45_678, other, &code().await, VERIFIER).await), "nonce");
    // The web client's code is worth nothing to the command line's client.
    let callback = world.browser().follow_to_callback("").await;
    assert_eq!(reason(trade(45_678, NONCE, &parameter(&callback, "code"), VERIFIER).await), "code");
    for (field, wrong) in [("port", json!(80)), ("nonce", json!("short")), ("code_challenge", json!("plain"))] {
        let mut begin = begin.clone();
        begin[field] = wrong;
        let refused = world.post("/v1/auth/oidc/loopback", begin).await.expect_problem(422, "value_invalid");
        assert_eq!(refused.body["field"], field);
    }
}

#[tokio::test]
async fn a_session_lasts_no_longer_than_the_providers() {
    let world = World::start().await;
    world.provider(|provider| provider.pull("lifetimes", r#"{"id_token":600}"#)).await;
    let tokens = world.at_terminal().await;
    assert!(tokens.body["expires_in"].as_u64().unwrap() <= 600, "{tokens:?}");
    let person = world.person(&tokens);
    person.me().await.expect(200);
    world.house.clock.skip(Millis::from_minutes(11));
    person.me().await.expect_problem(401, "unauthenticated");
    let refresh = json!({"refresh_token": tokens.text("refresh_token")});
    world.post("/v1/auth/refresh", refresh).await.expect_problem(401, "refresh_token_invalid");
}

#[tokio::test]
async fn keys_may_rotate_at_any_time() {
    let world = World::start().await;
    world.at_terminal().await;
    for keep in [true, false, false] {
        // A browser under way while the keys change.
        let mut browser = world.browser();
        let callback = browser.follow_to_callback("").await;
        world.provider(move |provider| provider.rotate(keep)).await;
        world.house.clock.skip(Millis::from_secs(11));
        browser.get(&callback).await.expect(303);
        browser.me().await.expect(200);
    }
    let fetches = world.provider(|provider| provider.count("/.well-known/jwks.json")).await;
    assert_eq!(fetches, 4, "one for each set of keys");
}

#[tokio::test]
async fn made_up_keys_do_not_flood_the_provider() {
    let world = World::start().await;
    world.at_terminal().await;
    let before = world.provider(|provider| provider.count("/.well-known/jwks.json")).await;
    let token = world.logout_token(json!({}), json!({})).await;
    let (_, rest) = token.split_once('.').unwrap();
    for round in 0..20 {
        let flood = (0..10).map(|number| {
            use base64::Engine as _;
            let header = json!({"alg": "RS256", "typ": "logout+jwt", "kid": format!("made-up-{round}-{number}")});
            let header = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(header.to_string());
            let (world, token) = (&world, format!("{header}.{rest}"));
            async move { world.log_out(&world.house.base, &token).await }
        });
        for refused in futures_util::future::join_all(flood).await {
            assert_eq!(refused.expect_problem(400, "logout_token_invalid").text("reason"), "unknown_key");
        }
    }
    let after = world.provider(|provider| provider.count("/.well-known/jwks.json")).await;
    assert!(after - before <= 4, "200 tokens made {} fetches", after - before);
}

#[tokio::test]
async fn a_provider_that_is_away_slow_or_mad_is_an_error_of_its_own_and_heals() {
    let world = World::start().await;
    let begin = async || world.post("/v1/auth/oidc/device", json!({"organization": "acme"})).await;
    // Away before it was ever asked, then back.
    world.provider(|provider| provider.behave(r#"{"down":true}"#)).await;
    let refused = begin().await.expect_problem(503, "provider_unavailable");
    assert!(refused.headers.contains_key("retry-after"));
    world.provider(|provider| provider.behave(r#"{"down":false}"#)).await;
    world.house.clock.skip(Millis::from_secs(6));
    world.at_terminal().await;

    for mad in [r#"{"huge":true}"#, r#"{"delay_ms":60000,"delay_path":"/oauth/token"}"#, r#"{"down":true}"#] {
        world.provider(|provider| provider.behave(r#"{"huge":false,"delay_ms":0,"down":false}"#)).await;
        let device = world.device().await;
        world.provider(|provider| provider.behave(mad)).await;
        let begun = std::time::Instant::now();
        world.device_token(&device).await.expect_problem(503, "provider_unavailable");
        assert!(begun.elapsed() < std::time::Duration::from_secs(15), "{mad}: {:?}", begun.elapsed());
        // Everybody else is served meanwhile.
        world.house.login("ada@acme.test", PASSWORD).await.expect(200);
        world.person(&world.house.login("ada@acme.test", PASSWORD).await).me().await.expect(200);
    }
    world.provider(|provider| provider.behave(r#"{"down":false}"#)).await;
    world.at_terminal().await;
}

#[tokio::test]
async fn a_flood_of_keys_is_no_key_set() {
    let world = World::start().await;
    world.provider(|provider| provider.behave(r#"{"keys_extra":5000}"#)).await;
    let device = world.device().await;
    let code = device.text("user_code");
    world.provider(move |provider| provider.approve(&code)).await;
    world.device_token(&device).await.expect_problem(503, "provider_unavailable");
    world.provider(|provider| provider.behave(r#"{"keys_extra":0}"#)).await;
    world.house.clock.skip(Millis::from_secs(11));
    world.at_terminal().await;
}

#[tokio::test]
async fn who_signs_out_at_the_provider_is_signed_out_here() {
    let world = World::start().await;
    let uri = format!("{}/v1/auth/oidc/backchannel-logout", world.house.base);
    world.provider(move |provider| provider.pull("backchannel", &json!({ "uri": uri }).to_string())).await;
    let (mut one, mut other) = (world.signed_in().await, world.signed_in().await);
    let terminal = world.person(&world.at_terminal().await);
    let sid = {
        // What the provider calls the session stands in its own cookie's session; here it is read from our table's effect below.
        one.me().await.expect(200);
        other.me().await.expect(200);
        world.provider(|provider| provider.pull("sids", "{}")).await
    };
    let sids: Vec<String> = serde_json::from_str(&sid).unwrap();
    let first = sids[0].clone();
    let sent = world
        .provider(move |provider| {
            provider.pull("logout", &json!({"client": "web", "subject": "auth0|ada", "sid": first}).to_string())
        })
        .await;
    assert!(sent.contains("200"), "{sent}");
    one.me().await.expect_problem(401, "session_ended");
    other.me().await.expect(200);
    terminal.me().await.expect(200);

    // Of the person, not of a session: everything that was open by then.
    let token = world.logout_token(json!({}), json!({})).await;
    world.log_out(&world.house.base, &token).await.expect(200);
    other.me().await.expect_problem(401, "session_ended");
    terminal.me().await.expect_problem(401, "session_ended");
}

#[tokio::test]
async fn a_logout_that_is_repeated_at_another_process_ends_nothing_that_came_after_it() {
    let world = World::start().await;
    let mut before = world.signed_in().await;
    let token = world.logout_token(json!({}), json!({})).await;
    world.log_out(&world.house.base, &token).await.expect(200);
    before.me().await.expect_problem(401, "session_ended");
    world.house.clock.skip(Millis::from_secs(2));
    // The provider's clock does not skip: what it issues now is as old as the logout, so somebody else signs in.
    world.be("auth0|dave", Some("org_acme"), "dave@acme.test").await;
    let mut after = world.signed_in().await;
    let another = world.house.another().await;
    for base in [&world.house.base, &another] {
        world.log_out(base, &token).await.expect(200);
    }
    after.me().await.expect(200);
}

#[tokio::test]
async fn nobody_gets_in_beside_a_logout_that_came_first() {
    let world = World::start().await;
    let mut browser = world.browser();
    let callback = browser.follow_to_callback("").await;
    let later = world.house.now().get() / 1_000 + 30;
    let token = world.logout_token(json!({}), json!({"iat": later, "exp": later + 60})).await;
    world.log_out(&world.house.base, &token).await.expect(200);
    browser.get(&callback).await.expect_problem(401, "session_ended");
    assert_eq!(browser.session_cookie(), None);
}

#[tokio::test]
async fn what_is_no_logout_token_logs_nobody_out() {
    let world = World::start().await;
    let mut browser = world.signed_in().await;
    for (header, changed, reason) in [
        (json!({"typ": "JWT"}), json!({}), "type"),
        (json!({"typ": "at+jwt"}), json!({}), "type"),
        (json!({}), json!({"aud": "somebody"}), "audience"),
        (json!({}), json!({"iss": "https://evil.example/"}), "issuer"),
        (json!({}), json!({"nonce": "n"}), "nonce"),
        (json!({}), json!({"events": {}}), "event"),
        (json!({}), json!({"jti": ""}), "no_token_id"),
        (json!({}), json!({"sub": ""}), "nobody_to_log_out"),
        (json!({"jku": "https://evil.example/keys"}), json!({}), "header_parameter"),
        (json!({"alg": "HS256"}), json!({}), "algorithm_symmetric"),
    ] {
        let token = world.logout_token(header, changed).await;
        let refused = world.log_out(&world.house.base, &token).await.expect_problem(400, "logout_token_invalid");
        assert_eq!(refused.text("reason"), reason);
    }
    world.log_out(&world.house.base, "").await.expect_problem(400, "body_invalid");
    browser.me().await.expect(200);
}

#[tokio::test]
async fn two_cookies_of_one_name_and_a_cookie_beside_a_token_count_for_nothing() {
    let world = World::start().await;
    let browser = world.signed_in().await;
    let cookie = browser.session_cookie().unwrap().clone();
    let me = |line: String| world.house.client.get(format!("{}/v1/me", world.house.base)).header("cookie", line);
    answer(me(format!("envforge-session={cookie}"))).await.expect(200);
    let twice = format!("envforge-session={cookie}; envforge-session={cookie}");
    answer(me(twice)).await.expect_problem(401, "unauthenticated");
    let beside = me(format!("envforge-session={cookie}")).bearer_auth("nonsense");
    answer(beside).await.expect_problem(401, "unauthenticated");
    answer(me("envforge-session=made-up".to_owned())).await.expect_problem(401, "unauthenticated");
}

#[tokio::test]
async fn without_a_provider_there_is_none() {
    let house = House::start().await;
    let providers = house.anonymous(Method::GET, "/v1/auth/providers", json!(null)).await.expect(200);
    assert_eq!(providers.body, json!({"items": [{"id": "password", "issuer": null, "flows": ["password"]}]}));
    house
        .anonymous(Method::GET, "/v1/auth/oidc/start", json!(null))
        .await
        .expect_problem(404, "provider_not_configured");
    let device = house.anonymous(Method::POST, "/v1/auth/oidc/device", json!({})).await;
    device.expect_problem(404, "provider_not_configured");
}

#[tokio::test]
async fn whom_the_provider_sends_decides_on_root_for_whoever_did_not_give_them_the_role() {
    let world = World::start().await;
    let founder = world.house.owner().await;
    world.house.workspace(&founder).await;
    founder.patch("/v1/orgs/acme/policy", json!({ "root": "workspace_elevation" })).await.expect(200);
    let ann = world.house.member(&founder, "ann", &["admin"]).await;
    world.be("auth0|dave", Some("org_acme"), "dave@acme.test").await;
    let sent = world.at_terminal().await;
    let user = sent.body["user"]["id"].clone();
    let dave = Person { token: sent.text("access_token"), ..founder.clone() };
    let ask = "/v1/orgs/acme/workspaces/signed-links/root-windows";
    let because = json!({ "reason": "libpq is missing", "minutes": 20 });
    let own = ann.post(ask, because.clone()).await.expect(201).text("id");
    let approve = format!("/v1/orgs/acme/root-windows/{own}/approve");
    // No mapping gives a role that decides.
    dave.post(&approve, json!({})).await.expect_problem(403, "role_missing");
    ann.post("/v1/orgs/acme/roles", json!({ "user": user, "role": "admin" })).await.expect(201);
    dave.post(&approve, json!({})).await.expect_problem(403, "root_decider_depends");
    let user = user.as_str().unwrap();
    founder.delete(&format!("/v1/orgs/acme/roles?user={user}&role=admin")).await.expect(200);
    founder.post("/v1/orgs/acme/roles", json!({ "user": user, "role": "admin" })).await.expect(201);
    dave.post(&approve, json!({})).await.expect(200);
    // Account and membership are the provider's; the role was the founder's to give.
    let founders = founder.post(ask, because).await.expect(201).text("id");
    let refused = dave.post(&format!("/v1/orgs/acme/root-windows/{founders}/approve"), json!({})).await;
    assert!(refused.expect_problem(403, "root_decider_depends").text("detail").contains("your role"));
}
