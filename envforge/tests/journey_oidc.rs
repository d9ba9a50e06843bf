//! `envforge login` through a real OpenID provider, as somebody types it.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests panic, and hand paths on")]

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output};
use std::time::Duration;

use envforge_testkit::{OIDC_WEB_SECRET, OidcOptions, OidcProvider, TestDir, TestProcess, free_port};
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(60);

/// `envforge dev` with a provider that makes people of `org_acme` viewers.
struct World {
    dir: TestDir,
    provider: OidcProvider,
    api: String,
    _dev: TestProcess,
}

impl World {
    fn start() -> Self {
        let (dir, port) = (TestDir::new(), free_port());
        let api = format!("http://127.0.0.1:{port}");
        let web_redirect_uri = format!("{api}/v1/auth/oidc/callback");
        let provider = OidcProvider::start_with(&OidcOptions { web_redirect_uri, ..OidcOptions::default() });
        let settings = json!({
            "issuer": provider.issuer(), "audience": OidcOptions::default().audience, "api_url": api,
            "clients": { "web": { "id": "web", "secret_file": "web.secret" }, "cli": { "id": "cli" } },
            "organizations": [{ "provider_id": "org_acme", "slug": "acme", "join": true, "role": "viewer" }],
        });
        std::fs::write(dir.join("web.secret"), OIDC_WEB_SECRET).unwrap();
        std::fs::write(dir.join("oidc.json"), settings.to_string()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_envforge"));
        command.args(["dev", "--json", "--gateway-listen", "127.0.0.1:0", "--listen"]).arg(format!("127.0.0.1:{port}"));
        command.arg("--data").arg(dir.join("data")).arg("--oidc").arg(dir.join("oidc.json"));
        let mut dev = TestProcess::spawn("envforge dev", &command, dir.path());
        dev.wait_ready("the first line", DEADLINE, |process| process.stdout().contains('\n').then_some(()));
        Self { dir, provider, api, _dev: dev }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_envforge"));
        command.args(args).env("ENVFORGE_CONFIG_DIR", self.dir.join("config")).env("ENVFORGE_API", &self.api);
        // No browser of this machine is opened by a test.
        command.env("PATH", self.dir.path());
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Begins to sign in; answers the first line that it prints.
    fn login(&self, name: &str, args: &[&str]) -> (TestProcess, Value) {
        let mut login =
            TestProcess::spawn(name, &self.command(&[&["login", "--json"], args].concat()), self.dir.path());
        let shown = login.wait_ready("what the person needs", DEADLINE, |process| {
            process.stdout().lines().next().and_then(|line| serde_json::from_str(line).ok())
        });
        (login, shown)
    }

    fn last_line(process: &TestProcess) -> Value {
        serde_json::from_str(process.stdout().lines().last().unwrap()).unwrap()
    }
}

#[test]
fn login_prints_a_code_waits_for_the_person_and_keeps_tokens_for_this_user_alone() {
    let world = World::start();
    let (mut login, shown) = world.login("device", &[]);
    assert!(shown["verification_uri"].as_str().unwrap().starts_with(&world.provider.issuer()), "{shown}");
    world.provider.approve(shown["user_code"].as_str().unwrap());
    assert!(login.wait(DEADLINE).success(), "{}", login.stderr());
    let signed_in = World::last_line(&login);
    assert_eq!((&signed_in["org"]["slug"], &signed_in["user"]["email"]), (&json!("acme"), &json!("ada@acme.test")));
    let everything = format!("{}{}", login.stdout(), login.stderr());
    assert!(!everything.contains("access_token") && !everything.contains("efr_"), "{everything}");
    let credentials = world.dir.join("config/credentials.json");
    assert_eq!(std::fs::metadata(&credentials).unwrap().permissions().mode() & 0o777, 0o600);

    let projects = world.run(&["project", "ls", "--json"]);
    assert!(projects.status.success(), "{}", String::from_utf8_lossy(&projects.stderr));
    // A viewer looks and does not create.
    let refused = world.run(&["project", "create", "orders", "--repository", "https://git.test/orders", "--json"]);
    assert!(!refused.status.success());
    assert!(world.run(&["logout"]).status.success());
    assert!(!world.run(&["project", "ls"]).status.success());

    let (mut login, shown) = world.login("denied", &["--device"]);
    world.provider.deny(shown["user_code"].as_str().unwrap());
    assert!(!login.wait(DEADLINE).success());
    assert!(login.stderr().contains("sign_in_denied"), "{}", login.stderr());
}

#[tokio::test]
async fn login_with_a_browser_takes_the_one_answer_that_it_asked_for() {
    let world = tokio::task::spawn_blocking(World::start).await.unwrap();
    let (mut login, shown) = world.login("browser", &["--browser"]);
    let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).no_proxy().build().unwrap();
    let mut url = shown["url"].as_str().unwrap().to_owned();
    let mut cookies = BTreeMap::new();
    for _ in 0..10 {
        if url.contains("/callback?") {
            break;
        }
        let sent: Vec<_> = cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let answer = client.get(&url).header("cookie", sent.join("; ")).send().await.unwrap();
        for set in answer.headers().get_all("set-cookie") {
            let (name, value) = set.to_str().unwrap().split(';').next().unwrap().split_once('=').unwrap();
            cookies.insert(name.to_owned(), value.to_owned());
        }
        let Some(location) = answer.headers().get("location") else {
            panic!("{url} leads nowhere: {} {}", answer.status(), answer.text().await.unwrap())
        };
        url = location.to_str().unwrap().to_owned();
    }
    // Somebody else's guess comes first and is turned away.
    let guess = format!("{}?code=evil&state=guessed", url.split('?').next().unwrap());
    assert_eq!(client.get(guess).send().await.unwrap().status(), 404);
    assert_eq!(client.get(&url).send().await.unwrap().status(), 200);
    let status = tokio::task::spawn_blocking(move || (login.wait(DEADLINE), login)).await.unwrap();
    assert!(status.0.success(), "{}", status.1.stderr());
    assert_eq!(World::last_line(&status.1)["org"]["slug"], "acme");
    tokio::task::spawn_blocking(move || drop(world)).await.unwrap();
}

#[test]
fn a_wrong_file_is_refused_with_all_its_mistakes_before_anything_starts() {
    let dir = TestDir::new();
    let path = dir.join("oidc.json");
    let wrong = json!({
        "issuer": "http://tenant.example/", "audience": "", "api_url": "https://api.envforge.ai/v1",
        "clients": { "web": { "id": "one" }, "cli": { "id": "one" } }, "organizations": [],
    });
    std::fs::write(&path, wrong.to_string()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_envforge"));
    command.arg("dev").arg("--data").arg(dir.join("data")).arg("--oidc").arg(&path);
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    for field in ["`issuer`", "`audience`", "`api_url`", "`clients.cli.id`", "`organizations`"] {
        assert!(text.contains(field), "{field}: {text}");
    }
    assert!(!dir.join("data").exists(), "nothing was made");
}
