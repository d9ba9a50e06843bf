//! Pages on which people sign in and out with a browser, and the way on to a workspace's host.

use envforge_domain::commit::Surface;
use envforge_domain::secret::TokenDigest;
use envforge_domain::time::Clock as _;
use envforge_identity::oidc::PublicUrl;
use envforge_identity::workspace_handoff::browser_text;
use reqwest::Method;
use reqwest::redirect::Policy;
use serde_json::json;

use crate::house::{Answer, House, PASSWORD, answer};

const ORIGIN: &str = "https://api.envforge.test";
const HOST: &str = "web--signed-links--acme";

/// A browser that follows nothing by itself.
struct Browser {
    client: reqwest::Client,
    base: String,
    cookie: Option<String>,
}

async fn house() -> (House, Browser) {
    let house = House::start_with(|config| config.public_url = PublicUrl::parse(ORIGIN)).await;
    let client = reqwest::Client::builder().redirect(Policy::none()).build().unwrap();
    let browser = Browser { client, base: house.base.clone(), cookie: None };
    (house, browser)
}

impl Browser {
    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.client.request(method, format!("{}{path}", self.base)).header("Sec-Fetch-Mode", "navigate");
        match &self.cookie {
            Some(cookie) => request.header("Cookie", cookie),
            None => request,
        }
    }

    async fn get(&self, path: &str) -> Answer {
        answer(self.request(Method::GET, path)).await
    }

    fn form(&self, path: &str, body: &str) -> reqwest::RequestBuilder {
        let kind = "application/x-www-form-urlencoded";
        self.request(Method::POST, path).header("Content-Type", kind).body(body.to_owned())
    }

    /// As the page's own form is sent.
    async fn send(&self, path: &str, body: &str) -> Answer {
        answer(self.form(path, body).header("Origin", ORIGIN).header("Sec-Fetch-Site", "same-origin")).await
    }

    async fn sign_in(&mut self, email: &str, return_to: &str) -> Answer {
        let (email, password) = (email.replace('@', "%40"), PASSWORD.replace(' ', "+"));
        let body = format!("email={email}&password={password}&return_to={return_to}");
        let answer = self.send("/sign-in", &body).await.expect(303);
        let set = answer.headers["set-cookie"].to_str().unwrap();
        assert!(set.starts_with("__Host-envforge-session=") && set.contains("HttpOnly; SameSite=Lax"), "{set}");
        assert!(set.ends_with("; Secure"), "{set}");
        self.cookie = Some(set.split(';').next().unwrap().to_owned());
        answer
    }
}

fn location(answer: &Answer) -> &str {
    answer.headers["location"].to_str().unwrap()
}

fn page(answer: &Answer) -> &str {
    assert_eq!(answer.headers["content-type"], "text/html; charset=utf-8", "{answer:?}");
    let policy = answer.headers["content-security-policy"].to_str().unwrap();
    assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"), "{policy}");
    assert!(!policy.contains("unsafe") && !policy.contains("script"), "{policy}");
    assert_eq!(answer.headers["cache-control"], "no-store");
    answer.body.as_str().unwrap()
}

#[tokio::test]
async fn a_browser_signs_in_on_our_own_page_alone_and_is_told_what_was_wrong() {
    let (_house, mut browser) = house().await;
    let asked = browser.get("/sign-in?return_to=%2Fopen%3Fhost%3Da").await.expect(200);
    assert!(page(&asked).contains("name=\"return_to\" value=\"/open?host=a\""), "{asked:?}");
    let policy = asked.headers["content-security-policy"].to_str().unwrap();
    assert!(policy.contains("form-action 'self' http://*.dev.localhost:8443;"), "{policy}");
    let right = format!("email=ada%40acme.test&password={}", PASSWORD.replace(' ', "+"));
    for (origin, site) in [
        (None, Some("same-origin")),
        (Some("https://evil.test"), Some("cross-site")),
        (Some(ORIGIN), Some("cross-site")),
        (Some("null"), Some("same-origin")),
        (Some("https://web--a--b.dev.envforge.test"), None),
    ] {
        let mut form = browser.form("/sign-in", &right);
        form = origin.map(|origin| form.try_clone().unwrap().header("Origin", origin)).unwrap_or(form);
        form = site.map(|site| form.try_clone().unwrap().header("Sec-Fetch-Site", site)).unwrap_or(form);
        let refused = answer(form).await.expect(403);
        assert!(page(&refused).contains("was not sent from this page"), "{origin:?} {site:?}");
        assert!(!refused.headers.contains_key("set-cookie"));
    }
    let wrong = browser.send("/sign-in", "email=%3Cada%3E%40acme.test&password=wrong&return_to=/").await.expect(401);
    let text = page(&wrong);
    assert!(text.contains("role=\"alert\"") && text.contains("do not belong together"), "{text}");
    assert!(text.contains("value=\"&lt;ada&gt;@acme.test\"") && !text.contains("value=\"wrong\""), "{text}");
    let landed = browser.sign_in("ada@acme.test", "%2F").await;
    assert_eq!(location(&landed), "/");
    assert!(page(&browser.get("/").await.expect(200)).contains("The acme company"));
    assert_eq!(location(&browser.get("/sign-in").await.expect(303)), "/", "who is signed in goes on");
}

#[tokio::test]
async fn guessing_is_locked_and_the_page_says_for_how_long() {
    let (_house, browser) = house().await;
    let guess = "email=ada%40acme.test&password=wrong";
    let mut guesses = Vec::new();
    while guesses.len() < 10 && guesses.last().is_none_or(|answer: &Answer| answer.status == 401) {
        guesses.push(browser.send("/sign-in", guess).await);
    }
    assert!(guesses.len() > 5, "a few mistakes are nobody's attack");
    let locked = guesses.pop().unwrap().expect(429);
    assert!(page(&locked).contains("Signing in is locked for"), "{locked:?}");
    assert!(locked.headers.contains_key("retry-after"));
}

#[tokio::test]
async fn nobody_is_sent_elsewhere_after_signing_in() {
    let (_house, mut browser) = house().await;
    for elsewhere in
        ["https%3A%2F%2Fevil.test", "%2F%2Fevil.test", "%2F%5Cevil.test", "evil", "%2F%0D%0Aset-cookie%3Ax"]
    {
        let landed = browser.sign_in("ada@acme.test", elsewhere).await;
        assert_eq!(location(&landed), "/", "{elsewhere}");
        browser.cookie = None;
        let asked = browser.get(&format!("/sign-in?return_to={elsewhere}")).await.expect(200);
        assert!(page(&asked).contains("name=\"return_to\" value=\"/\""), "{elsewhere}");
    }
}

#[tokio::test]
async fn who_may_open_a_workspace_gets_a_handoff_for_that_host_and_browser() {
    let (house, mut browser) = house().await;
    let owner = house.owner().await;
    house.workspace(&owner).await;
    house.member(&owner, "viewer", &["viewer"]).await;
    house.organization("umbrella", "eve@umbrella.test").await;
    let digest = TokenDigest::of(b"what the host gave the browser");
    let open = |host: &str| format!("/open?host={host}&browser={}", browser_text(digest));
    let asked = browser.get(&open(HOST)).await.expect(303);
    let back = location(&asked);
    assert!(back.starts_with("/sign-in?return_to=%2Fopen%3Fhost%3Dweb"), "{back}");
    let landed = browser.sign_in("ada@acme.test", back.strip_prefix("/sign-in?return_to=").unwrap()).await;
    assert_eq!(location(&landed), open(HOST));
    let handed = browser.get(&open(HOST)).await.expect(303);
    let code = location(&handed).strip_prefix(&format!("http://{HOST}.dev.localhost:8443/.envforge/signed-in?code="));
    let handoff = house.verification.verify_handoff(code.unwrap(), house.clock.now()).unwrap();
    assert_eq!((handoff.host.to_string(), handoff.browser), (HOST.to_owned(), digest));
    assert_eq!(handoff.user.to_string(), owner.user);
    assert!(handoff.expires_at <= house.clock.now().plus(envforge_domain::limits::HANDOFF_LIFETIME));
    // A program's session opens nothing for a browser.
    let path = open(HOST);
    let program = browser.client.get(format!("{}{path}", browser.base)).bearer_auth(&owner.token);
    assert!(location(&answer(program).await.expect(303)).starts_with("/sign-in?return_to="));
    // What does not exist, and what is not theirs, are one page.
    let unknown = browser.get(&open("web--nowhere--acme")).await.expect(403);
    let foreign = browser.get(&open("web--signed-links--umbrella")).await.expect(403);
    assert_eq!(page(&unknown), page(&foreign));
    for email in ["viewer@acme.test", "eve@umbrella.test"] {
        browser.cookie = None;
        browser.sign_in(email, "%2F").await;
        let refused = browser.get(&open(HOST)).await.expect(403);
        let nowhere = browser.get(&open("web--nowhere--acme")).await.expect(403);
        assert_eq!(page(&refused), page(&nowhere), "{email}");
        assert!(page(&refused).contains("You may not open this workspace"));
    }
    for wrong in [
        "/open",
        "/open?host=evil.test&browser=00",
        &format!("/open?host={HOST}&browser=zz"),
        &format!("{}&next=x", open(HOST)),
    ] {
        browser.get(wrong).await.expect(400);
    }
}

#[tokio::test]
async fn signing_out_ends_this_session_or_all_of_them() {
    let (house, mut browser) = house().await;
    browser.sign_in("ada@acme.test", "%2F").await;
    let elsewhere = house.owner().await;
    answer(browser.form("/sign-out", "").header("Origin", "https://evil.test")).await.expect(403);
    browser.get("/").await.expect(200);
    let out = browser.send("/sign-out", "").await.expect(303);
    assert_eq!(location(&out), "/signed-out");
    let cleared = out.headers["set-cookie"].to_str().unwrap();
    assert!(cleared.starts_with("__Host-envforge-session=; ") && cleared.contains("Max-Age=0"), "{cleared}");
    assert_eq!(location(&browser.get("/").await.expect(303)), "/sign-in", "the old cookie counts for nothing");
    assert!(page(&browser.get("/signed-out").await.expect(200)).contains("You are signed out"));
    elsewhere.get("/v1/me").await.expect(200);
    browser.cookie = None;
    browser.sign_in("ada@acme.test", "%2F").await;
    browser.send("/sign-out", "everywhere=yes").await.expect(303);
    assert_eq!(elsewhere.get("/v1/me").await.status, 401);
    browser.send("/sign-out", "").await.expect(303);
}

#[tokio::test]
async fn a_policy_that_forbids_passwords_is_told_on_the_page() {
    let (house, mut browser) = house().await;
    browser.sign_in("ada@acme.test", "%2F").await;
    // What an owner who came by the provider would decide: nobody locks themselves out.
    house.policy(|policy| policy.identity_providers = ["https://id.test/".to_owned()].into()).await;
    house.denials.drain();
    assert_eq!(location(&browser.get("/").await.expect(303)), "/sign-in", "what was open by a password is over");
    let body = format!("email=ada%40acme.test&password={}", PASSWORD.replace(' ', "+"));
    let refused = browser.send("/sign-in", &body).await.expect(403);
    assert!(page(&refused).contains("policy lets nobody sign in with a password here"), "{refused:?}");
    assert!(!refused.headers.contains_key("set-cookie"));
    let drained = house.denials.drain();
    let attempts: Vec<_> = drained.iter().flat_map(|(_, attempts)| attempts).collect();
    assert_eq!(attempts.len(), 1, "{attempts:?}");
    assert_eq!(attempts[0].code, "identity_provider_not_allowed");
    assert_eq!((attempts[0].surface, attempts[0].count), (Surface::Console, 1));
}

#[tokio::test]
async fn without_a_public_url_there_are_no_pages() {
    let house = House::start().await;
    for path in ["/", "/sign-in", "/open", "/signed-out"] {
        house.anonymous(Method::GET, path, json!(null)).await.expect_problem(404, "not_found");
    }
}
