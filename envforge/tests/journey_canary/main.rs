//! Secrets move by reference: random values are planted wherever EnvForge meets a secret, everything that it shows,
//! writes and keeps is searched for them, in every spelling, and the few places that may hold one are named here.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests panic, and hand paths on")]

mod canary;
mod secrets;
mod world;

use envforge_testkit::{TestDir, TestProcess, eventually, wait_until};
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, COOKIE, HeaderMap, LOCATION, ORIGIN, SET_COOKIE};
use reqwest::{Client, Method, RequestBuilder, StatusCode, Url};
use serde_json::{Value, json};

use world::{DEADLINE, OWNER, World, dev};

const MEMBER: &str = "dana@acme.example";
const OTHER_MEMBER: &str = "robin@acme.example";
/// What a browser says when somebody follows a link.
const NAVIGATION: [(&str, &str); 2] = [("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")];

/// What the owner's login at the API answered.
struct SignedIn {
    access: String,
}

/// The API and the gateway as their clients use them. Everything answered is kept, headers too.
struct Wire {
    client: Client,
    api: String,
    gateway: String,
}

impl Wire {
    fn new(world: &World) -> Self {
        let gateway = world.text("gateway");
        let port = Url::parse(&gateway).unwrap().port().unwrap();
        let loopback = std::net::SocketAddr::from(([127, 0, 0, 1], port));
        // Browsers resolve everything below `localhost` to this machine; a library asks the system, which may not.
        let client = Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .resolve("dev.localhost", loopback)
            .resolve("web--main--acme.dev.localhost", loopback)
            .resolve("web--ending--acme.dev.localhost", loopback)
            .build()
            .unwrap();
        Self { client, api: world.text("api"), gateway }
    }

    fn workspace(&self, name: &str) -> String {
        self.gateway.replace("//", &format!("//web--{name}--acme."))
    }

    /// Sends, and keeps what came back. Headers named in `own` carry a value of their own and are left out.
    async fn send(&self, world: &mut World, request: RequestBuilder, own: &[&str]) -> (StatusCode, HeaderMap, String) {
        let request = request.build().unwrap();
        let (method, path) = (request.method().clone(), request.url().path().to_owned());
        // A share URL's path is the token; what a place is called must not be found in it.
        let name = format!("{method} {}", path.split("/share/").next().unwrap());
        let answer = self.client.execute(request).await.unwrap();
        let (status, headers) = (answer.status(), answer.headers().clone());
        let body = answer.text().await.unwrap();
        let shown: Vec<_> = headers.iter().filter(|(name, _)| !own.contains(&name.as_str())).collect();
        world.saw(format!("{name}, headers"), format!("{shown:?}"));
        for (_, value) in shown {
            world.saw(format!("{name}, a header"), value.as_bytes());
        }
        (status, headers, body)
    }

    async fn post(&self, world: &mut World, token: &str, path: &str, body: &Value) -> (StatusCode, Value) {
        let request = self.client.post(format!("{}{path}", self.api)).bearer_auth(token);
        // Another request each time, which the log remembers.
        let key = canary::plain();
        let (status, _, text) = self.send(world, request.header("Idempotency-Key", key).json(body), &[]).await;
        world.saw(format!("POST {path}"), text.as_bytes());
        (status, serde_json::from_str(&text).unwrap_or_default())
    }

    /// A login; its tokens are looked for from now on.
    async fn login(&self, world: &mut World, email: &str, password: &str) -> SignedIn {
        let request = self.client.post(format!("{}/v1/auth/login", self.api));
        let login = json!({ "email": email, "password": password });
        let (status, _, text) = self.send(world, request.json(&login), &[]).await;
        assert_eq!(status, StatusCode::OK, "{text}");
        self.signed_in(world, email, &text)
    }

    fn signed_in(&self, world: &mut World, email: &str, answer: &str) -> SignedIn {
        let tokens: Value = serde_json::from_str(answer).unwrap();
        let token = |field: &str| tokens[field].as_str().unwrap().to_owned();
        world.canaries.plant(&format!("an access token of {email}"), token("access_token"));
        world.canaries.plant(&format!("a refresh token of {email}"), token("refresh_token"));
        SignedIn { access: token("access_token") }
    }

    /// A wrong password, a login, and its tokens exchanged for new ones.
    async fn sign_in(&self, world: &mut World) -> SignedIn {
        let wrong = json!({ "email": OWNER, "password": world.planted.wrong_password });
        let request = self.client.post(format!("{}/v1/auth/login", self.api)).json(&wrong);
        let (status, _, text) = self.send(world, request, &[]).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED);
        world.saw("a refused login", text);
        let password = world.planted.owner_password.clone();
        let request = self.client.post(format!("{}/v1/auth/login", self.api));
        let login = request.json(&json!({ "email": OWNER, "password": password }));
        let (_, _, text) = self.send(world, login, &[]).await;
        self.signed_in(world, OWNER, &text);
        let refresh = serde_json::from_str::<Value>(&text).unwrap()["refresh_token"].clone();
        let request = self.client.post(format!("{}/v1/auth/refresh", self.api));
        let refresh = request.json(&json!({ "refresh_token": refresh }));
        let (status, _, text) = self.send(world, refresh, &[]).await;
        assert_eq!(status, StatusCode::OK, "{text}");
        self.signed_in(world, OWNER, &text)
    }

    /// Every GET of the API's own description, with ids that exist.
    async fn read_everything(&self, world: &mut World, token: &str, ids: &[(&str, &str)]) {
        let document = self.client.get(format!("{}/v1/openapi.json", self.api)).send().await.unwrap();
        let document: Value = document.json().await.unwrap();
        let mut asked = 0;
        for (path, operations) in document["paths"].as_object().unwrap() {
            if operations.get("get").is_none() {
                continue;
            }
            let mut path = path.clone();
            for (name, id) in ids {
                path = path.replace(&format!("{{{name}}}"), id);
            }
            assert!(!path.contains('{'), "no id for {path}");
            let request = self.client.get(format!("{}{path}", self.api)).bearer_auth(token);
            let (status, _, text) = self.send(world, request, &[]).await;
            // Nobody signs in through a provider here.
            let no_provider = status == StatusCode::NOT_FOUND && text.contains("provider_not_configured");
            let websocket = status == StatusCode::BAD_REQUEST && text.contains("websocket_required");
            assert!(status == StatusCode::OK || no_provider || websocket, "{path}: {status}: {text}");
            // What a service wrote is its own, and shown to those who may read it.
            if path.ends_with("/logs") {
                continue;
            }
            let text = if path.ends_with("/handoff") { world.without_share_urls(&text) } else { text };
            world.saw(format!("GET {path}"), text);
            asked += 1;
        }
        assert!(asked > 20, "only {asked} GETs in the description");
        for path in ["/metrics", "/v1/openapi.json", "/v1/orgs/acme/audit?outcome=denied"] {
            let request = self.client.get(format!("{}{path}", self.api)).bearer_auth(token);
            let (status, _, text) = self.send(world, request, &[]).await;
            assert_eq!(status, StatusCode::OK, "{path}: {text}");
            world.saw(format!("GET {path}"), text);
        }
    }

    /// A reviewer opens a link; answers the session's cookie. Share page, form, handoff and its second use are kept.
    async fn open(&self, world: &mut World, share_url: &str) -> String {
        let navigate = |request: RequestBuilder, site: &str| {
            NAVIGATION
                .iter()
                .fold(request, |request, (name, value)| request.header(*name, *value))
                .header("sec-fetch-site", site)
        };
        let (status, _, page) = self.send(world, navigate(self.client.get(share_url), "none"), &[]).await;
        assert_eq!(status, StatusCode::OK);
        world.saw("the share page", page);

        let post = self.client.post(share_url).header(ORIGIN, &self.gateway);
        let (status, headers, page) = self.send(world, navigate(post, "same-origin"), &["location"]).await;
        assert_eq!(status, StatusCode::SEE_OTHER);
        world.saw("the answer to the share page's form", page);
        let handoff = headers[LOCATION].to_str().unwrap().to_owned();
        world.canaries.plant("a handoff code", handoff.split_once("code=").unwrap().1);

        let (status, headers, page) =
            self.send(world, navigate(self.client.get(&handoff), "same-site"), &["set-cookie"]).await;
        assert_eq!(status, StatusCode::SEE_OTHER, "{page}");
        world.saw("the answer to a handoff", page);
        let cookie = headers[SET_COOKIE].to_str().unwrap().split(';').next().unwrap().to_owned();
        world.canaries.plant("a session cookie", cookie.split_once('=').unwrap().1);

        let (status, _, page) = self.send(world, navigate(self.client.get(&handoff), "same-site"), &[]).await;
        assert_eq!(status, StatusCode::FORBIDDEN);
        world.saw("the answer to a used handoff", page);
        cookie
    }

    /// A member's way to a workspace by its address: sign-in, handoff, cookie. Answers the cookies of workspace and API.
    async fn open_as_member(&self, world: &mut World, email: &str, password: &str) -> (String, String) {
        let navigate = |request: RequestBuilder| {
            NAVIGATION.iter().fold(request, |request, (name, value)| request.header(*name, *value))
        };
        let pair = |headers: &HeaderMap| headers[SET_COOKIE].to_str().unwrap().split(';').next().unwrap().to_owned();
        let target = |headers: &HeaderMap| headers[LOCATION].to_str().unwrap().to_owned();
        // The address that was wanted is told to the browser alone, which knows it.
        let asked = format!("{}/orders?token={}", self.workspace("main"), world.planted.query);
        let (status, headers, _) = self.send(world, navigate(self.client.get(asked)), &["set-cookie"]).await;
        assert_eq!(status, StatusCode::SEE_OTHER);
        let (kept, open) = (pair(&headers), target(&headers));
        let secret = kept.split_once('=').unwrap().1.split('.').next().unwrap().to_owned();
        world.canaries.plant("what a browser keeps while somebody signs in", secret);

        let (status, headers, page) = self.send(world, navigate(self.client.get(&open)), &[]).await;
        assert_eq!(status, StatusCode::SEE_OTHER, "{page}");
        let sign_in = format!("{}{}", self.api, target(&headers));
        let (status, _, page) = self.send(world, navigate(self.client.get(&sign_in)), &[]).await;
        assert_eq!(status, StatusCode::OK);
        world.saw("the sign-in page", page);
        let form = |password: &str| {
            let back = sign_in.split_once("return_to=").unwrap().1;
            let body =
                format!("email={}&password={}&return_to={back}", percent_encode(email), percent_encode(password));
            let kind = "application/x-www-form-urlencoded";
            self.client
                .post(format!("{}/sign-in", self.api))
                .header(CONTENT_TYPE, kind)
                .header(ORIGIN, &self.api)
                .body(body)
        };
        let wrong = form(&world.planted.wrong_password);
        let (status, _, page) = self.send(world, navigate(wrong), &[]).await;
        assert_eq!(status, StatusCode::UNAUTHORIZED);
        world.saw("the sign-in page after a wrong password", page);
        let right = form(password);
        let (status, headers, page) = self.send(world, navigate(right), &["set-cookie"]).await;
        assert_eq!(status, StatusCode::SEE_OTHER, "{page}");
        let browser = pair(&headers);
        world.canaries.plant("a browser's session", browser.split_once('=').unwrap().1);

        let opening = self.client.get(&open).header(COOKIE, &browser);
        let (status, headers, page) = self.send(world, navigate(opening), &["location"]).await;
        assert_eq!(status, StatusCode::SEE_OTHER, "{page}");
        let handoff = target(&headers);
        world.canaries.plant("a member's handoff", handoff.split_once("code=").unwrap().1);
        let arriving = self.client.get(&handoff).header(COOKIE, &kept);
        let (status, headers, page) = self.send(world, navigate(arriving), &["set-cookie", "location"]).await;
        assert_eq!(status, StatusCode::SEE_OTHER, "{page}");
        let cookie = pair(&headers);
        world.canaries.plant("a member's session cookie", cookie.split_once('=').unwrap().1);
        let (_, _, page) = self.send(world, navigate(self.client.get(&handoff).header(COOKIE, &kept)), &[]).await;
        world.saw("the answer to a used handoff of a member", page);
        (cookie, browser)
    }

    async fn sign_out(&self, world: &mut World, browser: &str) {
        let kind = "application/x-www-form-urlencoded";
        let out = self.client.post(format!("{}/sign-out", self.api)).header(CONTENT_TYPE, kind);
        let (status, _, page) = self.send(world, out.header(ORIGIN, &self.api).header(COOKIE, browser), &[]).await;
        assert_eq!(status, StatusCode::SEE_OTHER, "{page}");
    }

    /// A request to a workspace that carries a secret in each of its parts.
    async fn visit(&self, world: &mut World, name: &str, cookie: &str, method: Method, page: bool) -> StatusCode {
        let planted = &world.planted;
        let mut url = Url::parse(&format!("{}/orders", self.workspace(name))).unwrap();
        url.query_pairs_mut().append_pair("token", &planted.query);
        let mut request = self
            .client
            .request(method.clone(), url)
            .header(COOKIE, format!("{cookie}; app_session={}", planted.app_cookie))
            .header(AUTHORIZATION, format!("Bearer {}", planted.authorization));
        request = match page {
            true => NAVIGATION.iter().fold(request, |request, (name, value)| request.header(*name, *value)),
            false => request
                .header(ACCEPT, "application/json")
                .header("sec-fetch-mode", "cors")
                .header("sec-fetch-site", "same-origin")
                .header(ORIGIN, self.workspace(name)),
        };
        if method == Method::POST {
            request = request.header(CONTENT_TYPE, "text/plain").body(planted.body.clone());
        }
        let (status, _, text) = self.send(world, request, &[]).await;
        world.saw(format!("{method} of {name} ({status})"), text);
        status
    }
}

/// As a form writes a value.
fn percent_encode(text: &str) -> String {
    text.bytes()
        .map(|byte| if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_comes_out_anywhere_it_was_not_meant_to() {
    let mut world = World::start();
    let wire = Wire::new(&world);
    for file in ["share.key", "access-token.key"] {
        let bytes = std::fs::read(world.data().join("keys").join(file)).unwrap();
        world.canaries.plant(&format!("the key in {file}"), &bytes);
        world.must_hold(&bytes, &format!("the key in {file}"), file);
    }

    let owner = wire.sign_in(&mut world).await;
    sign_in_with_the_command_line(&mut world);
    manage_people(&mut world, &wire, &owner).await;
    let user = come_and_go(&mut world, &wire).await;
    refuse_what_holds_secrets(&mut world, &wire, &owner).await;
    let (workspace, link) = review(&mut world, &wire).await;
    let planted = secrets::Planted::new(&mut world.canaries);
    planted.set(&mut world, &wire, &owner).await;
    planted.reach_their_services(&mut world);
    let window = come_to_root(&mut world);
    come_in(&mut world);
    fail_to_wake(&mut world);
    world.saw_files(&world.data().join("runtime").join("runtimes"), |name| name.ends_with(".json"));
    show_everything_with_the_command_line(&mut world);

    let rows: Value =
        serde_json::from_str(&world.cli(0, &["audit", "log", "--type", "runtime.wake_requested"], "")).unwrap();
    let request = rows["items"][0]["correlation"].as_str().unwrap().to_owned();
    world.cli(0, &["why", &request], "");
    let ids = [
        ("request", request.as_str()),
        ("org", "acme"),
        ("project", "orders"),
        ("workspace", "main"),
        ("link", &link),
        ("code", "not_found"),
        ("user", &user),
        ("team", TEAM),
        ("window", &window),
        ("secret", secrets::SHARED),
        ("service", "web"),
        ("job", "unit"),
    ];
    wire.read_everything(&mut world, &owner.access, &ids).await;
    // What an archived workspace wrote goes with it.
    services_say_what_they_like_in_their_own_output(&world, &workspace);
    end_with_the_command_line(&mut world, &link);
    let missing: Vec<String> = world
        .verbs_of_help()
        .into_iter()
        .filter(|verb| !world.verbs.iter().any(|used| used == verb || used.starts_with(&format!("{verb} "))))
        .collect();
    assert!(missing.is_empty(), "verbs of the command line that nobody looked at: {missing:?}");

    assert!(world.unexpected.is_empty(), "{}", world.unexpected.join("\n"));

    // Once while it runs, and once when everything was written.
    world.saw_stores();
    assert!(world.dev.terminate(DEADLINE).success(), "{}", world.dev.stderr());
    world.saw_stores();
    planted.are_in_no_file_of(&world.dir.join("dev"));
    let (out, err) = (world.dev.stdout(), world.dev.stderr());
    assert!(err.contains("\"level\":\"DEBUG\""), "nothing was traced");
    world.saw("dev's standard output", out);
    world.saw("dev's standard error", err);

    let leaks: Vec<String> = world
        .places
        .iter()
        .flat_map(|place| {
            let found = world.canaries.found_in(&place.bytes);
            found.into_iter().map(|canary| format!("{}: {canary}", place.name))
        })
        .collect();
    assert!(leaks.is_empty(), "secrets came out:\n{}", leaks.join("\n"));
}

/// The command line's own file is the place for its tokens, and no other.
fn remember_tokens_of_the_command_line(world: &mut World) {
    let file = std::fs::read(world.dir.join("config").join("credentials.json")).unwrap();
    let stored: Value = serde_json::from_slice(&file).unwrap();
    for account in stored["accounts"].as_object().unwrap().values() {
        for field in ["access_token", "refresh_token"] {
            world.canaries.plant(&format!("the command line's {field}"), account[field].as_str().unwrap());
            world.must_hold(&file, &format!("the command line's {field}"), "credentials.json");
        }
    }
}

fn sign_in_with_the_command_line(world: &mut World) {
    let api = world.text("api");
    let login = ["login", "--api", &api, "--email", OWNER, "--password-stdin"];
    let (right, wrong) = (world.planted.owner_password.clone(), world.planted.wrong_password.clone());
    world.cli(3, &login, &wrong);
    world.cli_once(0, &login, &right);
    remember_tokens_of_the_command_line(world);
    world.cli_once(0, &["logout"], "");
    world.cli_once(0, &[&login[..], &["--json"]].concat(), &right);
    remember_tokens_of_the_command_line(world);
}

async fn manage_people(world: &mut World, wire: &Wire, owner: &SignedIn) {
    let password = world.planted.member_password.clone();
    let add = ["org", "member", "add", "--name", "Dana", "--password-stdin", "--email"];
    world.cli_once(0, &[&add[..], &[MEMBER]].concat(), &password);
    world.cli_once(0, &[&add[..], &[OTHER_MEMBER, "--json"]].concat(), &password);
    let third = json!({ "email": "kim@acme.example", "name": "Kim", "password": password });
    let (status, answer) = wire.post(world, &owner.access, "/v1/orgs/acme/members", &third).await;
    assert_eq!(status, StatusCode::CREATED, "{answer}");
    wire.login(world, MEMBER, &password).await;
    for json in [&[][..], &["--json"]] {
        world.cli_once(0, &[&["org", "role", "assign", MEMBER, "viewer"], json].concat(), "");
        world.cli_once(0, &[&["org", "role", "revoke", MEMBER, "viewer"], json].concat(), "");
    }
    world.cli_once(0, &["org", "member", "remove", MEMBER], "");
    world.cli_once(0, &["org", "member", "remove", OTHER_MEMBER, "--json"], "");
    for verb in [&["org", "ls"][..], &["org", "show"], &["org", "policy", "show"], &["org", "member", "ls"]] {
        world.cli(0, verb, "");
    }
    world.cli(0, &["org", "policy", "set", "--link-lifetime-max", "24h"], "");
}

/// A team that stays.
const TEAM: &str = "reviewers";

/// Somebody is invited, joins, changes their password and is closed out. Answers the owner's id.
async fn come_and_go(world: &mut World, wire: &Wire) -> String {
    const GRACE: &str = "grace@acme.example";
    let api = world.text("api");
    let invite = ["org", "invite", "create", "--role", "viewer", "--email", GRACE];
    world.cli(0, &invite, "");
    world.cli(0, &["org", "invite", "ls"], "");
    world.cli(0, &["org", "invite", "revoke", GRACE], "");
    let token = world::invitation_in(&world.cli_once(0, &invite, ""));
    let (password, another) = (world.planted.member_password.clone(), canary::rich());
    world.canaries.plant_password("a changed password", &another);
    let join = ["join", "--api", &api, "--name", "Grace", "--stdin"];
    world.cli_once(0, &join, &format!("{token}\n{password}"));
    remember_tokens_of_the_command_line(world);
    world.cli(4, &join, &format!("{token}\n{password}"));
    wire.login(world, GRACE, &password).await;
    let sessions: Value = serde_json::from_str(&world.cli(0, &["session", "ls"], "")).unwrap();
    let other = sessions["items"].as_array().unwrap().iter().find(|session| session["current"] == false).unwrap();
    world.cli_once(0, &["session", "revoke", other["id"].as_str().unwrap()], "");
    world.cli(3, &["password", "--stdin"], &format!("{another}\n{}", canary::rich()));
    world.cli_once(0, &["password", "--stdin"], &format!("{password}\n{another}"));
    remember_tokens_of_the_command_line(world);
    world.cli_once(0, &["session", "revoke-all"], "");
    let login = ["login", "--api", &api, "--email", OWNER, "--password-stdin"];
    let right = world.planted.owner_password.clone();
    world.cli_once(0, &login, &right);
    remember_tokens_of_the_command_line(world);
    for verb in ["sign-out", "deactivate", "reactivate"] {
        world.cli(0, &["org", "user", verb, GRACE], "");
    }
    world.cli_once(0, &["org", "team", "create", "crew"], "");
    world.cli_once(0, &["org", "team", "rename", "crew", TEAM], "");
    world.cli_once(0, &["org", "team", "add", TEAM, GRACE], "");
    for verb in [&["org", "team", "ls"][..], &["org", "team", "show", TEAM]] {
        world.cli(0, verb, "");
    }
    world.cli_once(0, &["org", "team", "remove", TEAM, GRACE], "");
    world.cli_once(0, &["org", "team", "create", "nobody"], "");
    world.cli_once(0, &["org", "team", "delete", "nobody"], "");
    give_programs_tokens(world, wire).await;
    let members: Value = serde_json::from_str(&world.cli(0, &["org", "member", "ls"], "")).unwrap();
    let owner = members["items"].as_array().unwrap().iter().find(|member| member["email"] == OWNER).unwrap();
    owner["user"].as_str().unwrap().to_owned()
}

/// Programs get tokens, use them, and lose them. Each secret is shown where it is made and nowhere else.
async fn give_programs_tokens(world: &mut World, wire: &Wire) {
    let make = ["org", "token", "create", "--action", "usage.read"];
    let ledger = world::service_token_in(&world.cli_once(0, &[&make[..], &["ledger"]].concat(), ""));
    world.cli_once(0, &[&make[..], &["spare", "--for", "1h", "--json"]].concat(), "");
    let rotated =
        world::service_token_in(&world.cli_once(0, &["org", "token", "rotate", "ledger", "--overlap", "none"], ""));
    for (secret, expected) in [(&ledger, StatusCode::UNAUTHORIZED), (&rotated, StatusCode::OK)] {
        let request = wire.client.get(format!("{}/v1/orgs/acme/usage", wire.api)).bearer_auth(secret);
        let (status, _, text) = wire.send(world, request, &[]).await;
        assert_eq!(status, expected, "{text}");
        world.saw("what a program was answered", text);
    }
    world.cli(0, &["org", "token", "ls"], "");
    world.cli_once(0, &["host", "enrol", "builder"], "");
    world.cli_once(0, &["host", "enrol", "builder", "--json"], "");
    world.cli(0, &["host", "ls"], "");
    let key = "arn:aws:kms:eu-central-1:123456789012:key/1";
    world.cli(0, &["host", "policy", "--deployment", "production", "--key", key], "");
    // Nobody has enrolled as it: there is nothing to drain.
    world.cli(4, &["host", "drain", "builder"], "");
    world.cli_once(0, &["host", "revoke", "builder"], "");
    world.cli_once(0, &["org", "token", "revoke", "spare"], "");
    let request = wire.client.get(format!("{}/v1/orgs/acme/members", wire.api)).bearer_auth(&rotated);
    let (status, _, text) = wire.send(world, request, &[]).await;
    assert_eq!(status, StatusCode::FORBIDDEN, "{text}");
    world.saw("what a program was refused", text);
}

/// What is refused is not repeated: neither a repository's password nor a value where a name belongs.
async fn refuse_what_holds_secrets(world: &mut World, wire: &Wire, owner: &SignedIn) {
    let repository = world.repository().to_string_lossy().into_owned();
    let closed = |scheme: &str| format!("{scheme}://dana:{}@127.0.0.1:1/orders.git", world.planted.in_repository);
    let with_password = ["https", "ssh", "http", "ftp"].map(closed);
    for repository in &with_password {
        let project = json!({ "slug": "closed", "name": "Closed", "repository": repository });
        let (status, answer) = wire.post(world, &owner.access, "/v1/orgs/acme/projects", &project).await;
        assert!(status.is_client_error(), "{answer}");
    }
    for repository in &with_password[..2] {
        world.cli_without_arguments(1, &["project", "create", "closed", "--repository", repository]);
    }
    world.cli_once(0, &["project", "create", "orders", "--repository", &repository], "");
    world.cli_once(0, &["project", "create", "others", "--repository", &repository, "--json"], "");
    world.cli(0, &["project", "edit", "others", "--name", "Others"], "");
    world.cli_without_arguments(1, &["project", "edit", "others", "--repository", &with_password[2]]);
    world.cli(0, &["project", "ls"], "");
    world.cli(0, &["project", "show", "orders"], "");

    let pasted = std::fs::read_to_string(world.repository().join("pasted").join("envforge.yml")).unwrap();
    let workspace = json!({ "project": "orders", "slug": "pasted", "branch": "main", "manifest": pasted });
    let (status, answer) = wire.post(world, &owner.access, "/v1/orgs/acme/workspaces", &workspace).await;
    assert!(status.is_client_error(), "{answer}");
    let create = ["workspace", "create", "--project", "orders", "--branch", "main", "--slug"];
    world.cli(2, &[&create[..], &["pasted", "--directory", "pasted"]].concat(), "");
    world.cli_once(0, &[&create[..], &["main"]].concat(), "");
    world.cli_once(0, &[&create[..], &["ending", "--directory", "ending", "--json"]].concat(), "");
    for name in ["probed", "asked", "kept"] {
        world.cli_once(0, &[&create[..], &[name, "--directory", name]].concat(), "");
    }
    let request = wire.client.put(format!("{}/v1/orgs/acme/workspaces/main/manifest", wire.api));
    let request = request.bearer_auth(&owner.access).header(CONTENT_TYPE, "application/yaml").body(pasted);
    let (status, _, text) = wire.send(world, request, &[]).await;
    assert!(status.is_client_error(), "{text}");
    world.saw("the refusal of a manifest", text);
}

/// Every verb of root, and a window's output for whoever asked for it. Answers that window.
fn come_to_root(world: &mut World) -> String {
    world.cli(0, &["org", "policy", "set", "--root", "workspace_elevation"], "");
    let ask = ["root", "request", "main", "--reason", "a look around", "--json"];
    let window = |answer: &str| {
        let answer: Value = serde_json::from_str(answer).unwrap();
        answer["id"].as_str().unwrap().to_owned()
    };
    let waiting = window(&world.cli_once(0, &ask, ""));
    // Nobody answers their own.
    for verb in [&["root", "approve", &waiting][..], &["root", "deny", &waiting]] {
        world.cli(3, verb, "");
    }
    world.cli(3, &["root", "review", &waiting, "--note", "mine"], "");
    world.cli(0, &["root", "withdraw", &waiting], "");
    let other = window(&world.cli_once(0, &ask, ""));
    world.cli(0, &["root", "revoke", &other, "--reason", "not now"], "");
    let broken = window(&world.cli_once(0, &[&ask[..], &["--break-glass"]].concat(), ""));
    let root = rustix::process::geteuid().is_root();
    world.cli_once(if root { 0 } else { 1 }, &["root", "run", &broken, "--", "id", "-u"], "");
    // Without a terminal there is none.
    world.cli(2, &["root", "shell", &broken], "");
    for verb in [&["root", "ls"][..], &["root", "show", &broken]] {
        world.cli(0, verb, "");
    }
    broken
}

/// Shells and jobs: what they are given holds nothing of EnvForge's own, and what they say stands nowhere else.
fn come_in(world: &mut World) {
    let shown = world.cli_once(0, &["shell", "main", "--", "env"], "");
    assert!(shown.contains("ENVFORGE_WORKSPACE=wsp_"), "{shown}");
    let typed = canary::plain();
    world.canaries.plant("what was typed into a shell", &typed);
    let output = world.command(&["shell", "main", "--", "sh", "-c", "cat > typed; cat typed"]);
    let shown = world::with_input(output, &typed);
    world.must_hold(&shown, "what was typed into a shell", "its own output");
    world.cli_once(4, &["run", "nothing", "--workspace", "main"], "");
    world.cli(0, &["logs", "main", "--lines", "0"], "");
    world.cli(0, &["ssh-config"], "");
}

/// A review from the first look to its end. Answers the workspace's id and another link, which stays open.
async fn review(world: &mut World, wire: &Wire) -> (String, String) {
    let create = ["link", "create", "--workspace", "main", "--label", "Dana's review", "--json"];
    let issued: Value = serde_json::from_str(&world.cli_once(0, &create, "")).unwrap();
    let (link, share_url) = (issued["id"].as_str().unwrap().to_owned(), issued["share_url"].as_str().unwrap());
    let cookie = wire.open(world, share_url).await;
    // Asleep: a page for people, and held requests for programs.
    let waking = wire.visit(world, "main", &cookie, Method::GET, true).await;
    assert_eq!(waking, StatusCode::ACCEPTED);
    for method in [Method::POST, Method::GET] {
        assert_eq!(wire.visit(world, "main", &cookie, method, false).await, StatusCode::OK);
    }
    assert_eq!(wire.visit(world, "main", &cookie, Method::GET, true).await, StatusCode::OK);
    assert_eq!(wire.visit(world, "main", "other=1", Method::POST, false).await, StatusCode::FORBIDDEN);
    let password = world.planted.owner_password.clone();
    let (member, browser) = wire.open_as_member(world, OWNER, &password).await;
    for (method, page) in [(Method::GET, true), (Method::GET, false), (Method::POST, false)] {
        assert_eq!(wire.visit(world, "main", &member, method, page).await, StatusCode::OK);
    }
    world.cli(0, &["session", "ls"], "");
    wire.sign_out(world, &browser).await;
    assert_eq!(wire.visit(world, "main", &member, Method::POST, false).await, StatusCode::FORBIDDEN);
    world.saw_processes();

    world.cli(0, &["link", "show", &link], "");
    let other: Value = serde_json::from_str(&world.cli_once(0, &create, "")).unwrap();
    let other = other["id"].as_str().unwrap().to_owned();
    world.cli_once(0, &create[..6], "");
    for verb in [&["link", "handoff", &other][..], &["link", "rotate", &other]] {
        world.cli(0, verb, "");
    }
    world.cli(0, &["link", "allow", &other, "--families", "web"], "");

    world.cli(0, &["link", "revoke", &link, "--reason", "review done"], "");
    for (method, page) in [(Method::GET, true), (Method::GET, false), (Method::POST, false)] {
        assert_eq!(wire.visit(world, "main", &cookie, method, page).await, StatusCode::GONE);
    }
    let (status, _, page) = wire.send(world, wire.client.get(share_url), &[]).await;
    assert_eq!(status, StatusCode::GONE);
    world.saw("the page of an ended link", page);
    world.cli(0, &["link", "ls", "--all"], "");
    (issued["workspace"].as_str().unwrap().to_owned(), other)
}

/// Services that end or never answer: the reasons are told, what they said is not.
fn fail_to_wake(world: &mut World) {
    for (name, reason, args) in [
        ("ending", "ended before it was ready", &["--json"][..]),
        ("ending", "ended before it was ready", &[]),
        ("probed", "the last probe (command) said", &[]),
        ("asked", "HTTP status 503", &[]),
    ] {
        let output = world.command(&[&["workspace", "wake", name], args].concat()).output().unwrap();
        let told = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(!output.status.success() && told.contains(reason), "{name}: {told}");
        world.saw(format!("`envforge workspace wake {name}`"), told);
        world.cli(0, &["workspace", "show", name], "");
    }
}

fn show_everything_with_the_command_line(world: &mut World) {
    world.cli(0, &["up", "--project", "orders", "--name", "main"], "");
    world.cli_without_arguments(
        0,
        &[
            "up",
            "--project",
            "remote",
            "--name",
            "remote",
            "--no-wait",
            "--repository",
            &format!("https://dana:{}@127.0.0.1:1/orders.git", world.planted.in_repository),
        ],
    );
    // These look at the file in the checkout's root.
    let file = world.repository().join("envforge.yml");
    let right = std::fs::read(&file).unwrap();
    std::fs::copy(world.repository().join("pasted").join("envforge.yml"), &file).unwrap();
    world.cli(2, &["up", "--project", "orders", "--name", "main"], "");
    world.cli(1, &["doctor"], "");
    std::fs::write(&file, right).unwrap();
    world.cli(0, &["workspace", "ls"], "");
    world.cli(0, &["workspace", "show", "main"], "");
    world.cli(0, &["workspace", "wake", "main"], "");
    world.cli(0, &["workspace", "access", "main"], "");
    world.cli(0, &["why", "--action", "runtime.wake", "--on", "workspace/main"], "");
    world.cli(0, &["workspace", "keep-awake", "main", "--for", "30m", "--reason", "demo"], "");
    for by in ["service", "link", "cause", "workspace", "project"] {
        world.cli(0, &["usage", "--by", by], "");
    }
    world.cli(0, &["usage", "--running"], "");
    world.cli(0, &["audit", "log", "--limit", "1000"], "");
    world.cli(0, &["audit", "log", "--outcome", "denied"], "");
    world.cli(0, &["audit", "replay"], "");
    world.cli(0, &["doctor"], "");
    world.cli(0, &["completions", "bash"], "");
    world.cli(0, &["exit-codes"], "");
    tail(world, &["audit", "tail"]);
    tail(world, &["audit", "tail", "--json"]);
}

/// What `audit tail` says of a change that is made while it runs.
fn tail(world: &mut World, args: &[&str]) {
    let name = args.join("-");
    let folder = world.dir.join(&name);
    std::fs::create_dir(&folder).unwrap();
    let tail = TestProcess::spawn(&name, &world.command(args), &folder);
    let mut even = false;
    wait_until("a line of the tail", DEADLINE, || {
        // It says nothing of what was before it, and not that it listens: changed to and fro until it has seen one.
        even = !even;
        let hours = if even { "20h" } else { "24h" };
        let changed = world.command(&["org", "policy", "set", "--link-lifetime-max", hours]).output().unwrap();
        assert!(changed.status.success());
        tail.stdout().contains('\n')
    });
    world.remember_verb(args);
    world.saw(format!("`envforge {name}`"), tail.stdout());
    world.saw(format!("`envforge {name}`, standard error"), tail.stderr());
}

fn end_with_the_command_line(world: &mut World, link: &str) {
    world.cli(0, &["workspace", "sleep", "main"], "");
    world.cli(0, &["link", "revoke", link], "");
    world.cli_once(0, &["workspace", "archive", "main", "--yes"], "");
    world.cli_once(0, &["workspace", "archive", "ending", "--yes", "--json"], "");
    world.cli_once(0, &["logout", "--json"], "");
}

/// A service's output is its own, also where it holds secrets; it lies in files that nothing of the above shows.
fn services_say_what_they_like_in_their_own_output(world: &World, workspace: &str) {
    let workspaces = world.data().join("runtime").join("workspaces");
    let mut said = Vec::new();
    for entry in std::fs::read_dir(workspaces).unwrap() {
        let output = entry.unwrap().path().join("output");
        for file in std::fs::read_dir(output).into_iter().flatten().flatten() {
            said.extend(std::fs::read(file.path()).unwrap());
        }
    }
    for canary in [
        "a failing service's output",
        "a failing service's standard error",
        "a request's query",
        "a request's body",
        "a request's Authorization",
        "an app's cookie",
    ] {
        world.must_hold(&said, canary, &format!("the output of services of {workspace} and others"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generated_password_stands_in_the_first_line_and_nowhere_else() {
    let place = TestDir::new();
    let (mut process, started) = dev(place.path(), |_| {});
    let password = started["owner_password"].as_str().unwrap().to_owned();
    let mut canaries = canary::Canaries::default();
    canaries.plant_password("the generated password", &password);
    let login = json!({ "email": OWNER, "password": password });
    eventually("the owner's login", DEADLINE, async || {
        let url = format!("{}/v1/auth/login", started["api"].as_str().unwrap());
        let answer = Client::new().post(url).json(&login).send().await.ok()?;
        (answer.status() == StatusCode::OK).then_some(())
    })
    .await;
    assert!(process.terminate(DEADLINE).success(), "{}", process.stderr());
    let out = process.stdout();
    let (first, rest) = out.split_once('\n').unwrap();
    assert!(!canaries.found_in(first.as_bytes()).is_empty(), "the first line holds it");
    let mut places = vec![("standard output".to_owned(), rest.as_bytes().to_vec())];
    places.push(("standard error".to_owned(), process.stderr().into_bytes()));
    let data = place.join("data");
    for folder in [data.clone(), data.join("log"), data.join("runtime")] {
        for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_file())
        {
            places.push((path.display().to_string(), std::fs::read(path).unwrap()));
        }
    }
    assert!(places.len() > 4, "{}", places.len());
    for (name, bytes) in places {
        assert!(canaries.found_in(&bytes).is_empty(), "{name}: {:?}", canaries.found_in(&bytes));
    }
}

/// The digest by which a repeated request is known, as `api` makes it.
fn request_digest(path: &str, body: &Value) -> [u8; 32] {
    use sha2::{Digest, Sha256};
    let body = serde_json::to_vec(body).unwrap();
    let mut hasher = Sha256::new();
    for part in [&b"POST"[..], path.as_bytes(), &body] {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    hasher.finalize().into()
}

/// Whoever reads the log could try passwords against it, as fast as SHA-256 is.
#[tokio::test(flavor = "multi_thread")]
async fn no_digest_that_was_made_with_a_password_is_remembered() {
    let mut world = World::start();
    let wire = Wire::new(&world);
    let owner = wire.sign_in(&mut world).await;
    let member = json!({ "email": MEMBER, "name": "Dana", "password": world.planted.member_password });
    let repository = world.repository();
    let project = json!({ "slug": "orders", "name": "Orders", "repository": repository });
    for (path, body) in [("/v1/orgs/acme/members", &member), ("/v1/orgs/acme/projects", &project)] {
        let (status, answer) = wire.post(&mut world, &owner.access, path, body).await;
        assert_eq!(status, StatusCode::CREATED, "{answer}");
    }
    assert!(world.dev.terminate(DEADLINE).success(), "{}", world.dev.stderr());
    world.saw_stores();
    let found = |path: &str, body: &Value| {
        let mut canaries = canary::Canaries::default();
        canaries.plant("the digest", request_digest(path, body));
        world.places.iter().any(|place| !canaries.found_in(&place.bytes).is_empty())
    };
    assert!(found("/v1/orgs/acme/projects", &project), "the digest of a request without secrets is remembered");
    assert!(!found("/v1/orgs/acme/members", &member), "a digest of a member's password stands in a store");
}
