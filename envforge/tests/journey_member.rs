//! The story of a member who opens a workspace by its address alone, told by a real browser against `envforge dev --demo`:
//! sign-in, waking page, app; signing out ends all of it. Once with a password, once through a real OpenID provider.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests panic, and hand tools' paths on")]

mod browser;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use envforge_testkit::{
    OIDC_GATEWAY_SECRET, OIDC_WEB_SECRET, OidcOptions, OidcProvider, TestDir, TestProcess, eventually, free_port,
};
use serde_json::{Value, json};

use browser::{Browser, assert_accessible, assert_looks, assert_says};

const DEADLINE: Duration = Duration::from_secs(60);

/// `envforge dev --demo`, and what its first line said.
struct Dev {
    _process: TestProcess,
    started: Value,
}

impl Dev {
    fn start(place: &TestDir, port: u16, oidc: Option<&Path>) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_envforge"));
        command.args(["dev", "--demo", "--json", "--gateway-listen", "127.0.0.1:0", "--listen"]);
        command.arg(format!("127.0.0.1:{port}")).arg("--data").arg(place.join("data"));
        if let Some(file) = oidc {
            command.arg("--oidc").arg(file);
        }
        let mut process = TestProcess::spawn("envforge dev", &command, place.path());
        let started = process.wait_ready("the first line", DEADLINE, |process| {
            let out = process.stdout();
            out.contains('\n').then(|| serde_json::from_str(out.lines().next().unwrap()).unwrap())
        });
        Self { _process: process, started }
    }

    fn text(&self, field: &str) -> &str {
        self.started[field].as_str().unwrap_or_else(|| panic!("{field} is missing in {}", self.started))
    }
}

/// The browser.
struct Member(Browser);

impl Member {
    fn open(dev: &Dev, way: &str, password: &str, shots: &Path) -> Self {
        let arguments = [dev.text("workspace_url"), dev.text("api"), way, dev.text("owner_email"), password];
        Self(Browser::open("member.mjs", &arguments, shots))
    }

    /// A page of ours: these words, and nothing that axe finds wrong.
    fn reads(&mut self, event: &str, words: &[&str]) -> Value {
        let saw = self.0.saw(event);
        assert_says(&saw, words);
        assert_accessible(&saw);
        saw
    }

    /// From the waking page to the app and out again.
    fn uses_the_app_and_signs_out(&mut self, dev: &Dev, home: &str, me: &Value, sessions: impl FnOnce()) {
        let waking = self.reads("waking", &["Finding a place to run", "Starting the app"]);
        let workspace = dev.text("workspace_url");
        let asked = format!("{workspace}?from=the%20address%20bar");
        assert_eq!(waking["url"], *asked, "back where they wanted to go");
        let app = self.0.saw("app");
        assert!(app["orders"].as_i64().unwrap() > 0, "{app}");
        assert!(app["echo"].as_str().unwrap().contains("by a member"), "{app}");
        assert_eq!(app["socket"], "open");
        assert!(!app["cookie"].as_str().unwrap().contains("envforge"), "scripts see nothing of ours: {app}");
        assert_eq!(app["failures"], json!([]));
        for cookie in app["cookies"].as_array().unwrap() {
            let ours = cookie["name"].as_str().unwrap().starts_with("envforge");
            assert!(!ours || cookie["httpOnly"] == true && cookie["sameSite"] == "Lax", "{cookie}");
        }
        self.0.saw("second-tab");
        let home = self.reads("home", &[home, "Sign out"]);
        assert_eq!(home["me"], *me, "what the browser's session is good for at the API");
        sessions();
        self.0.go_on();
        let out = self.reads("signed-out", &["You are signed out"]);
        assert!(out["socketMs"].as_u64().unwrap() < 1_000, "{out}");
        let api = &out["api"];
        assert_eq!((&api["status"], &api["redirected"]), (&json!(403), &json!(false)), "{api}");
        assert_eq!(api["body"]["code"], "access_required", "{api}");
        let out = self.0.saw("out");
        assert!(out["url"].as_str().unwrap().starts_with(&format!("{}/sign-in?return_to=", dev.text("api"))), "{out}");
        assert_eq!(out["leftover"], json!([]), "{out}");
        assert!(assert_looks(&self.0.saw("looks")) > 0);
    }
}

/// The API as its owner's command line uses it, in a session that the browser's end does not touch.
struct Api {
    client: reqwest::Client,
    url: String,
    token: String,
}

impl Api {
    async fn login(dev: &Dev) -> Self {
        let (client, url) = (reqwest::Client::new(), dev.text("api").to_owned());
        let login = json!({ "email": dev.text("owner_email"), "password": dev.text("owner_password") });
        let answer = client.post(format!("{url}/v1/auth/login")).json(&login).send().await.unwrap();
        let token = answer.json::<Value>().await.unwrap()["access_token"].as_str().unwrap().to_owned();
        Self { client, url, token }
    }

    async fn get(&self, path: &str) -> Value {
        let answer = self.client.get(format!("{}{path}", self.url)).bearer_auth(&self.token).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{path}");
        answer.json().await.unwrap()
    }

    async fn surfaces(&self) -> Vec<String> {
        self.surfaces_at("/v1/me/sessions").await
    }

    async fn surfaces_at(&self, path: &str) -> Vec<String> {
        let sessions = self.get(path).await;
        let mut found: Vec<_> = sessions["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|session| format!("{}: {}", session["surface"].as_str().unwrap(), session["client"].as_str().unwrap()))
            .collect();
        found.sort();
        found
    }
}

/// Where screenshots go: kept for whoever wants to look, if they say where.
fn shots(place: &TestDir, name: &str) -> std::path::PathBuf {
    std::env::var_os("ENVFORGE_TEST_SHOTS").map_or_else(|| place.join("shots"), std::path::PathBuf::from).join(name)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_opens_a_workspace_with_a_password_and_signing_out_ends_all_of_it() {
    let place = TestDir::new();
    let dev = Dev::start(&place, free_port(), None);
    let mut member = Member::open(&dev, "password", dev.text("owner_password"), &shots(&place, "password"));
    let page = member.reads("sign-in", &["Sign in to EnvForge", "E-mail address", "Were you sent a review link?"]);
    assert!(page["url"].as_str().unwrap().starts_with(&format!("{}/sign-in?return_to=", dev.text("api"))), "{page}");
    let wrong = member.reads("wrong-password", &["do not belong together"]);
    assert_eq!(wrong["kept"], dev.text("owner_email"));
    let owner = Api::login(&dev).await;
    let handle = tokio::runtime::Handle::current();
    tokio::task::block_in_place(|| {
        let me = json!({ "status": 200, "code": null });
        member.uses_the_app_and_signs_out(&dev, "You are signed in\n", &me, || {
            let surfaces = handle.block_on(owner.surfaces());
            assert_eq!(surfaces, ["api: api", "console: console", "gateway: web of signed-links"]);
        });
    });
    assert_eq!(owner.surfaces().await, ["api: api"], "with the browser's session its workspaces' ended");
    let runtime = owner.get("/v1/orgs/acme/workspaces/signed-links/runtime").await;
    let me = owner.get("/v1/me").await["id"].clone();
    assert!(runtime["cause"].to_string().contains(me.as_str().unwrap()), "woken in their own name: {runtime}");
    let row = eventually("the opening in the audit", DEADLINE, async || {
        owner.get("/v1/orgs/acme/audit?type=user.workspace_opened").await["items"].get(0).cloned()
    })
    .await;
    assert_eq!((&row["actor"]["id"], &row["surface"]), (&me, &json!("gateway")), "{row}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_opens_a_workspace_through_a_real_provider_and_approves_a_terminal() {
    tokio::task::block_in_place(through_a_provider);
}

fn through_a_provider() {
    let (place, port) = (TestDir::new(), free_port());
    let api = format!("http://127.0.0.1:{port}");
    let web_redirect_uri = format!("{api}/v1/auth/oidc/callback");
    let provider = OidcProvider::start_with(&OidcOptions { web_redirect_uri, ..OidcOptions::default() });
    let settings = json!({
        "issuer": provider.issuer(), "audience": OidcOptions::default().audience, "api_url": api,
        "clients": { "web": { "id": "web", "secret_file": "web.secret" }, "cli": { "id": "cli" },
            "gateway": { "id": "gateway", "secret_file": "gateway.secret" } },
        "organizations": [{ "provider_id": "org_acme", "slug": "acme", "join": true, "role": "developer" }],
    });
    std::fs::write(place.join("web.secret"), OIDC_WEB_SECRET).unwrap();
    std::fs::write(place.join("gateway.secret"), OIDC_GATEWAY_SECRET).unwrap();
    std::fs::write(place.join("oidc.json"), settings.to_string()).unwrap();
    let dev = Dev::start(&place, port, Some(&place.join("oidc.json")));
    let mut member = Member::open(&dev, "provider", "", &shots(&place, "provider"));
    member.reads("sign-in", &["Continue with 127.0.0.1", "or with a password"]);
    let handle = tokio::runtime::Handle::current();
    let me = json!({ "status": 403, "code": "session_of_another_surface" });
    member.uses_the_app_and_signs_out(&dev, "You are signed in to workspaces", &me, || {
        // Somebody else ends their sessions: the receipt says what that closed, the open socket included.
        let receipt = handle.block_on(async {
            let owner = Api::login(&dev).await;
            let members = owner.get("/v1/orgs/acme/members").await;
            let ada = members["items"].as_array().unwrap().iter().find(|member| member["email"] == "ada@acme.test");
            let user = ada.unwrap_or_else(|| panic!("{members}"))["user"].as_str().unwrap().to_owned();
            let open = owner.surfaces_at(&format!("/v1/orgs/acme/members/{user}/sessions")).await;
            assert_eq!(open, ["gateway: sign-in to workspaces", "gateway: web of signed-links"]);
            let url = format!("{}/v1/orgs/acme/members/{user}/sessions", owner.url);
            let answer = owner.client.delete(url).bearer_auth(&owner.token).send().await.unwrap();
            assert_eq!(answer.status(), 200);
            answer.json::<Value>().await.unwrap()
        });
        assert_eq!((&receipt["sessions"], &receipt["sockets"]), (&json!(2), &json!(1)), "{receipt}");
        assert_eq!(receipt["sockets_unknown"], Value::Null, "{receipt}");
        assert!(receipt["took_ms"].as_u64().unwrap() < 1_000, "{receipt}");
    });

    // A terminal: `envforge login`, and a browser that says yes at the provider's page.
    let mut command = Command::new(env!("CARGO_BIN_EXE_envforge"));
    command.args(["login", "--json"]).env("ENVFORGE_CONFIG_DIR", place.join("config")).env("ENVFORGE_API", &api);
    command.env("PATH", place.path());
    let mut login = TestProcess::spawn("envforge login", &command, place.path());
    let shown: Value = login.wait_ready("what the person needs", DEADLINE, |process| {
        process.stdout().lines().next().and_then(|line| serde_json::from_str(line).ok())
    });
    let page = shown["verification_uri_complete"].as_str().unwrap_or_else(|| panic!("{shown}"));
    let browser = browser::command("device.mjs", &[page], &shots(&place, "provider")).output().unwrap();
    assert!(browser.status.success(), "{}", String::from_utf8_lossy(&browser.stderr));
    assert!(login.wait(DEADLINE).success(), "{} after {}", login.stderr(), String::from_utf8_lossy(&browser.stdout));
    let signed_in: Value = serde_json::from_str(login.stdout().lines().last().unwrap()).unwrap();
    assert_eq!(signed_in["org"]["slug"], "acme", "{signed_in}");
}
