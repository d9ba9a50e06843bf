//! Signing out at the OpenID provider, seen from the workspaces that are open in that browser.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use envforge_testkit::{OIDC_WEB_SECRET, OidcOptions, OidcProvider};
use serde_json::json;

use crate::person::Person;
use crate::probe::{Meaning, Outcome};
use crate::site::{Site, Workspace};
use crate::wire::{Answer, Connection, Heard, Request, Socket};

const CLOSES_WITHIN: Duration = Duration::from_secs(3);

/// An installation whose provider makes everybody a developer.
async fn with_provider() -> (Site, OidcProvider) {
    let mut started = None;
    let site = Site::dev_with(|api, dir| {
        let web_redirect_uri = format!("{api}/v1/auth/oidc/callback");
        let provider = OidcProvider::start_with(&OidcOptions { web_redirect_uri, ..OidcOptions::default() });
        let settings = json!({
            "issuer": provider.issuer(), "audience": OidcOptions::default().audience, "api_url": api,
            "clients": { "web": { "id": "web", "secret_file": "web.secret" } },
            "organizations": [{ "provider_id": "org_acme", "slug": "acme", "join": true, "role": "developer" }],
        });
        std::fs::write(dir.join("web.secret"), OIDC_WEB_SECRET).unwrap();
        std::fs::write(dir.join("oidc.json"), settings.to_string()).unwrap();
        let uri = format!("{api}/v1/auth/oidc/backchannel-logout");
        provider.pull("backchannel", &json!({ "uri": uri }).to_string());
        started = Some(provider);
        vec!["--oidc".into(), dir.join("oidc.json").into()]
    })
    .await;
    (site, started.unwrap())
}

/// A browser that has signed in through the provider and opened a workspace.
struct Browser {
    person: Person,
    /// Of the session on the workspace's host.
    cookie: String,
    socket: Socket,
    connection: Connection,
}

impl Browser {
    async fn open(site: &Site, number: usize, workspace: &Workspace) -> Self {
        let mut person = Person::nobody(site, number, workspace);
        person.console = Some(sign_in(site, &person).await);
        let cookie = person.enter(site).await;
        let upgrade = site.app("GET", &workspace.label, "/live").with("cookie", &cookie).upgrade();
        let socket = Socket::open(site.gateways[0], person.from, &upgrade).await;
        let connection = Connection::new(site.gateways[0], person.from);
        Self { person, cookie, socket, connection }
    }

    /// What a page, a script and a form of the workspace are answered, and an upgrade.
    async fn asks(&mut self, site: &Site) -> Vec<Outcome> {
        let label = self.person.workspace.label.clone();
        let mut outcomes = Vec::new();
        for (request, meaning) in [
            (site.app("GET", &label, "/page").navigation("none"), Meaning::App),
            (site.app("GET", &label, "/data").fetch(), Meaning::App),
            (site.form_of_app(&label), Meaning::App),
            (site.app("GET", &label, "/live").upgrade(), Meaning::Upgrade),
        ] {
            outcomes.push(meaning.of(&self.connection.send(&request.with("cookie", &self.cookie)).await.0));
        }
        let home = self.person.at_console(site, "GET", "/").navigation("none");
        outcomes.push(Meaning::Page.of(&site.send(&home, self.person.from).await));
        outcomes
    }

    async fn is_in(&mut self, site: &Site) {
        let asked = self.asks(site).await;
        assert!(asked.iter().all(|outcome| *outcome == Outcome::LetIn), "{asked:?}");
        assert_eq!(self.socket.say("hello", CLOSES_WITHIN).await, Heard::SaidBack);
    }

    async fn is_out(&mut self, site: &Site) {
        let asked = self.asks(site).await;
        assert!(asked.iter().all(|outcome| matches!(outcome, Outcome::Refused(_))), "{asked:?}");
        assert_eq!(self.socket.say("hello", CLOSES_WITHIN).await, Heard::Closed);
    }
}

/// From the API to the provider and back, with one browser's cookies; answers that of the session.
async fn sign_in(site: &Site, person: &Person) -> String {
    let mut cookies = BTreeMap::<String, String>::new();
    let mut url = format!("{}/v1/auth/oidc/start?organization=acme", site.api_url);
    for _ in 0..12 {
        let (host, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
        let address: SocketAddr = host.parse().unwrap();
        let sent: Vec<_> = cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let request = Request::new("GET", host, format!("/{path}")).navigation("none").with("cookie", sent.join("; "));
        let answer: Answer = Connection::new(address, person.from).send(&request).await.0;
        for (name, value) in answer.cookies() {
            cookies.insert(name.to_owned(), value.to_owned());
        }
        assert!(matches!(answer.status, 302 | 303), "{url}: {answer:?}");
        if path.starts_with("v1/auth/oidc/callback?") {
            return format!("envforge-session={}", cookies["envforge-session"]);
        }
        let location = answer.location();
        url = if location.starts_with('/') { format!("http://{host}{location}") } else { location.to_owned() };
    }
    panic!("the provider leads nowhere: {url}")
}

#[tokio::test(flavor = "multi_thread")]
async fn who_signs_out_at_the_provider_is_out_of_the_workspaces_of_that_browser() {
    let (site, provider) = with_provider().await;
    provider.be("auth0|ada", Some("org_acme"), "ada@acme.test");
    let workspace = site.workspace().await;
    let mut one = Browser::open(&site, 1, &workspace).await;
    let mut other = Browser::open(&site, 2, &workspace).await;
    one.is_in(&site).await;
    other.is_in(&site).await;
    // On the way to the workspace once more, while somebody signs out elsewhere.
    let (kept, arrival) = one.person.way_to_host(&site).await;
    let arrival = one.person.arrival(&site, &kept, &arrival);

    let sids: Vec<String> = serde_json::from_str(&provider.pull("sids", "{}")).unwrap();
    let out = json!({ "client": "web", "subject": "auth0|ada", "sid": sids[0] });
    let told = provider.pull("logout", &out.to_string());
    assert!(told.contains("200"), "{told}");
    one.is_out(&site).await;
    let arrived = Meaning::HandedOn.of(&site.send_to_gateway(&arrival, one.person.from).await);
    assert!(matches!(arrived, Outcome::Refused(_)), "{arrived:?}");
    other.is_in(&site).await;

    // Of the person, wherever they are.
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let claims = json!({
        "iss": provider.issuer(), "aud": "web", "iat": now, "exp": now + 120, "jti": "of all browsers", "sub": "auth0|ada",
        "events": { "http://schemas.openid.net/event/backchannel-logout": {} },
    });
    let token = provider.sign(r#"{"typ":"logout+jwt"}"#, &claims.to_string());
    let logout = site.api("POST", "/v1/auth/oidc/backchannel-logout").form(format!("logout_token={token}"));
    let told = site.send(&logout, other.person.from).await;
    assert_eq!(told.status, 200, "{told:?}");
    other.is_out(&site).await;
}
