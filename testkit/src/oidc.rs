//! A real OpenID provider of the test's own: npm `oidc-provider`, dressed as Auth0 by `testkit/oidc/provider.mjs`.
//!
//! It knows no rule of EnvForge. Levers (who signs in, rotation of keys, delays, outages) are pulled over HTTP with JSON as text, so that
//! nothing but the standard library is needed.

use crate::local_http::post;
use crate::process::TestProcess;
use crate::{TestDir, free_port, tools::Tool};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const START_DEADLINE: Duration = Duration::from_secs(60);

/// The Web App client's secret.
pub const OIDC_WEB_SECRET: &str = "the-web-client-of-tests-has-this-secret";
/// The Gateway client's secret.
pub const OIDC_GATEWAY_SECRET: &str = "the-gateway-client-of-tests-has-this-one";

/// How the provider is set up.
#[derive(Clone, Debug)]
pub struct OidcOptions {
    /// `aud` of access tokens.
    pub audience: String,
    /// Where the clients of browsers, Web App and Gateway, may be called back.
    pub web_redirect_uri: String,
    /// How long a device may wait for its person, in seconds.
    pub device_code_seconds: u64,
}

impl Default for OidcOptions {
    fn default() -> Self {
        Self {
            audience: "https://api.envforge.test".to_owned(),
            web_redirect_uri: "http://127.0.0.1:7070/v1/auth/oidc/callback".to_owned(),
            device_code_seconds: 600,
        }
    }
}

/// A running provider on 127.0.0.1 with the clients `web` (code, secret), `cli` (device and loopback, no secret) and `gateway` (code,
/// secret). Ends on drop. Whoever opens `/authorize` is signed in at once as the person of `be`.
#[derive(Debug)]
pub struct OidcProvider {
    process: TestProcess,
    port: u16,
    setup: String,
    dir: TestDir,
}

impl OidcProvider {
    /// Starts one with the default options and returns once it answers.
    ///
    /// # Panics
    /// When Node.js or the provider is not installed (says what to run) or does not start.
    pub fn start() -> Self {
        Self::start_with(&OidcOptions::default())
    }

    /// Starts one and returns once it answers.
    ///
    /// # Panics
    /// When Node.js or the provider is not installed (says what to run) or does not start.
    pub fn start_with(options: &OidcOptions) -> Self {
        let (dir, port) = (TestDir::new(), free_port());
        let OidcOptions { audience, web_redirect_uri, device_code_seconds } = options;
        let setup = format!(
            r#"{{"audience":"{audience}","device_code_seconds":{device_code_seconds},"clients":[
                {{"id":"web","secret":"{OIDC_WEB_SECRET}","redirect_uris":["{web_redirect_uri}"]}},
                {{"id":"cli","native":true,"device":true,"redirect_uris":["http://127.0.0.1/callback"]}},
                {{"id":"gateway","secret":"{OIDC_GATEWAY_SECRET}","redirect_uris":["{web_redirect_uri}"]}}]}}"#
        );
        Self { process: spawn(&dir, port, &setup), port, setup, dir }
    }

    /// With the slash at its end, as Auth0 writes it.
    pub fn issuer(&self) -> String {
        format!("http://127.0.0.1:{}/", self.port)
    }

    /// Who signs in from now on. `organization: None` signs in without one.
    pub fn be(&self, subject: &str, organization: Option<&str>, email: &str) {
        let organization = organization.map_or("null".to_owned(), |organization| format!("\"{organization}\""));
        let name = email.split('@').next().unwrap_or("somebody");
        self.pull(
            "person",
            &format!(r#"{{"subject":"{subject}","organization":{organization},"email":"{email}","name":"{name}"}}"#),
        );
    }

    /// Signs with a new key from now on; `keep`: still publishes the old ones.
    pub fn rotate(&self, keep: bool) {
        self.pull("rotate", &format!(r#"{{"keep":{keep}}}"#));
    }

    /// The person at the device says yes.
    pub fn approve(&self, user_code: &str) {
        self.pull("device", &format!(r#"{{"user_code":"{user_code}","approve":true}}"#));
    }

    /// The person at the device says no.
    pub fn deny(&self, user_code: &str) {
        self.pull("device", &format!(r#"{{"user_code":"{user_code}","approve":false}}"#));
    }

    /// Members of `behaviour` in provider.mjs, e.g. `{"down":true}` or `{"delay_ms":3000,"delay_path":"/oauth/token"}`.
    pub fn behave(&self, json: &str) {
        self.pull("behave", json);
    }

    /// How often a path was asked for.
    pub fn count(&self, path: &str) -> u64 {
        let counts = self.pull("counts", "{}");
        let after = counts.split(&format!("\"{path}\":")).nth(1).unwrap_or("0");
        after.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap_or(0)
    }

    /// A token of these header and claims members (JSON objects), signed with the provider's own current key.
    pub fn sign(&self, header: &str, claims: &str) -> String {
        let answer = self.pull("sign", &format!(r#"{{"header":{header},"claims":{claims}}}"#));
        answer.split('"').nth(3).unwrap_or_else(|| panic!("no token in {answer}")).to_owned()
    }

    /// Pulls a lever of provider.mjs; answers its JSON.
    ///
    /// # Panics
    /// When the provider does not do it.
    pub fn pull(&self, lever: &str, json: &str) -> String {
        let (status, body) = post(self.port, &format!("/test/{lever}"), json)
            .unwrap_or_else(|error| panic!("the provider did not answer: {error}\n{}", self.process.stderr()));
        assert!(status == 200, "lever {lever} of the provider: {status} {body}\n{}", self.process.stderr());
        body
    }

    /// Ends it as when its machine goes away. People, keys and codes are forgotten.
    pub fn kill9(&mut self) {
        self.process.kill9();
    }

    /// Starts it again on the same port, with its first key.
    pub fn restart(&mut self) {
        self.process.kill9();
        self.process = spawn(&self.dir, self.port, &self.setup);
    }

    /// What it has complained about so far.
    pub fn log(&self) -> String {
        self.process.stderr()
    }
}

fn spawn(dir: &TestDir, port: u16, setup: &str) -> TestProcess {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("oidc/provider.mjs");
    let mut command = Command::new(Tool::Node.path());
    command.arg(script).arg(Tool::OidcDir.path()).arg(port.to_string()).arg(setup).current_dir(dir.path());
    let mut process = TestProcess::spawn("oidc-provider", &command, dir.path());
    let answers = || matches!(post(port, "/test/counts", "{}"), Ok((200, _)));
    process.wait_ready("the provider", START_DEADLINE, |_| answers().then_some(()));
    process
}
