//! Shells, jobs and logs where no host lives in the API's process, and on a host that takes its time: what is asked before anything else,
//! and what becomes of the right meanwhile.

use envforge_api::Shells;
use envforge_domain::ids::WorkspaceId;
use envforge_domain::shell::ShellInput;
use futures_util::{SinkExt as _, StreamExt as _};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use crate::host_double::{HostDouble, LINE};
use crate::house::{House, MANIFEST, PATIENCE, Person, answer, eventually};

const WORKSPACE: &str = "/v1/orgs/acme/workspaces/signed-links";

async fn upgrade(person: &Person, path: &str, more: &[(&str, &str)]) -> crate::house::Answer {
    let request = person.client.request(Method::GET, format!("{}{WORKSPACE}{path}", person.base));
    let request = request.bearer_auth(&person.token).header("connection", "Upgrade").header("upgrade", "websocket");
    let request = request.header("sec-websocket-version", "13").header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
    answer(more.iter().fold(request, |request, (name, value)| request.header(*name, *value))).await
}

#[tokio::test]
async fn a_host_elsewhere_is_said_and_only_to_whoever_may_have_a_shell() {
    let house = House::start().await;
    let owner = house.owner().await;
    house.workspace(&owner).await;
    let protocol = [("sec-websocket-protocol", "envforge.shell.v1")];
    for path in ["/shell", "/jobs/unit/run"] {
        upgrade(&owner, path, &protocol).await.expect_problem(409, "host_elsewhere");
        upgrade(&owner, path, &[]).await.expect_problem(400, "websocket_required");
        upgrade(&owner, path, &[("origin", "https://elsewhere.example"), protocol[0]])
            .await
            .expect_problem(403, "shell_not_for_browsers");
        owner.get(&format!("{WORKSPACE}{path}")).await.expect_problem(400, "websocket_required");
    }
    owner.get(&format!("{WORKSPACE}/services/web/logs")).await.expect_problem(409, "host_elsewhere");
    let viewer = house.member(&owner, "viola", &["viewer"]).await;
    for path in ["/shell", "/jobs/unit/run", "/services/web/logs"] {
        let refused = upgrade(&viewer, path, &protocol).await;
        refused.expect_problem(403, "role_missing");
        let unknown = answer(
            viewer.client.get(format!("{}/v1/orgs/acme/workspaces/none{path}", viewer.base)).bearer_auth(&viewer.token),
        );
        unknown.await.expect_problem(404, "not_found");
    }
    let archived = owner.post(&format!("{WORKSPACE}/archive"), json!({})).await;
    archived.expect(200);
    upgrade(&owner, "/shell", &protocol).await.expect_problem(410, "workspace_archived");
    let nobody = house.anonymous(Method::GET, &format!("{WORKSPACE}/shell"), Value::Null).await;
    nobody.expect_problem(401, "unauthenticated");
}

const ROLES: &str = "/v1/orgs/acme/roles";

/// A house with a host, a workspace that is awake there, its owner, and a developer.
struct Site {
    house: House,
    host: HostDouble,
    owner: Person,
    dev: Person,
}

impl Site {
    async fn new() -> Self {
        let host = HostDouble::new();
        let shells = Shells::new(host.clone());
        let house = House::start_with(|config| config.shells = Some(shells)).await;
        let owner = house.owner().await;
        let project = json!({"slug": "orders", "name": "Orders", "repository": "https://git.test/acme/orders"});
        owner.post("/v1/orgs/acme/projects", project).await.expect(201);
        let manifest = format!("{MANIFEST}jobs:\n  unit: {{ command: ./unit, kind: test }}\n");
        let workspace = json!({"project": "orders", "slug": "signed-links", "branch": "main", "manifest": manifest});
        let workspace = owner.post("/v1/orgs/acme/workspaces", workspace).await.expect(201).text("id");
        let workspace: WorkspaceId = workspace.parse().unwrap();
        owner.post(&format!("{WORKSPACE}/wake"), json!({})).await.expect(202);
        let org = house.hot.authorization.organization_by_slug(&"acme".parse().unwrap()).unwrap();
        house.report_ready(org, workspace).await;
        let dev = house.member(&owner, "dave", &["developer"]).await;
        Self { house, host, owner, dev }
    }

    async fn until_awaited(&self, count: usize) {
        let what = format!("{count} to wait for the host");
        eventually(&what, async || (self.host.awaited() == count).then_some(())).await;
    }

    async fn revoke(&self) {
        self.owner.delete(&format!("{ROLES}?user={}&role=developer", self.dev.user)).await.expect(200);
    }

    async fn assign(&self) {
        self.owner.post(ROLES, json!({"user": self.dev.user, "role": "developer"})).await.expect(201);
    }

    async fn until_logged(&self, what: &str, count: usize) {
        let logged = async || (self.house.everything().await.matches(what).count() == count).then_some(());
        eventually(&format!("{count} times {what} in the log"), logged).await;
    }
}

/// A client's end of what it asks for.
struct Socket(WebSocketStream<MaybeTlsStream<TcpStream>>);

impl Socket {
    async fn open(who: &Person, path: &str) -> Self {
        let at = format!("{}/v1/orgs/acme{path}", who.base).replacen("http", "ws", 1);
        let mut request = at.into_client_request().unwrap();
        let bearer = format!("Bearer {}", who.token);
        request.headers_mut().insert("authorization", bearer.parse().unwrap());
        request.headers_mut().insert("sec-websocket-protocol", "envforge.shell.v1".parse().unwrap());
        Self(connect_async(request).await.unwrap().0)
    }

    async fn shell(who: &Person, order: Value) -> Self {
        let mut socket = Self::open(who, "/workspaces/signed-links/shell").await;
        socket.say(Message::Text(order.to_string().into())).await;
        socket
    }

    async fn command(who: &Person) -> Self {
        Self::shell(who, json!({"open": "command", "words": ["true"]})).await
    }

    async fn terminal(who: &Person) -> Self {
        Self::shell(who, terminal()).await
    }

    async fn say(&mut self, message: Message) {
        self.0.send(message).await.unwrap();
    }

    /// The next message that is not about waking.
    async fn hears(&mut self) -> Value {
        loop {
            let next = tokio::time::timeout(PATIENCE, self.0.next()).await.unwrap().unwrap().unwrap();
            let Message::Text(text) = next else { continue };
            let said: Value = serde_json::from_str(&text).unwrap();
            if said["type"] != "waking" {
                return said;
            }
        }
    }

    async fn hears_of_its_end(&mut self, end: &str) {
        let said = self.hears().await;
        assert_eq!((&said["type"], &said["end"]), (&json!("over"), &json!(end)), "{said}");
    }

    async fn opens(mut self) -> Self {
        assert_eq!(self.hears().await["type"], "opened");
        self
    }
}

fn terminal() -> Value {
    json!({"open": "terminal", "columns": 80, "rows": 24, "term": "xterm", "lasting": true})
}

#[tokio::test]
async fn what_is_on_its_way_to_be_opened_ends_with_the_right_to_it_and_never_begins() {
    let site = Site::new().await;
    for (number, is_job) in [false, true].into_iter().enumerate() {
        let mut socket = match is_job {
            false => Socket::command(&site.dev).await,
            true => Socket::open(&site.dev, "/workspaces/signed-links/jobs/unit/run").await,
        };
        site.until_awaited(1).await;
        site.revoke().await;
        socket.hears_of_its_end("right_lost").await;
        site.until_awaited(0).await;
        site.until_logged("\"right_lost\"", number + 1).await;
        site.assign().await;
    }
    let session = site.house.person("dave@acme.test").await;
    let mut socket = Socket::command(&session).await;
    site.until_awaited(1).await;
    session.post("/v1/auth/logout", json!({})).await.expect(204);
    socket.hears_of_its_end("session_ended").await;
    site.until_awaited(0).await;
    site.host.answer(1);
    Socket::command(&site.dev).await.opens().await;
    assert_eq!(site.host.begun(), 1, "none of those before");
}

#[tokio::test]
async fn whoever_goes_away_before_anything_is_opened_is_let_go_and_what_was_said_by_then_is_not_lost() {
    let site = Site::new().await;
    let socket = Socket::command(&site.dev).await;
    site.until_awaited(1).await;
    drop(socket);
    site.until_awaited(0).await;
    site.until_logged("\"closed\"", 1).await;
    assert_eq!(site.host.begun(), 0);

    let mut early = Socket::command(&site.dev).await;
    site.until_awaited(1).await;
    early.say(Message::Binary(b"\0typed".as_slice().into())).await;
    early.say(Message::Text(json!({"type": "input_end"}).to_string().into())).await;
    site.host.answer(1);
    let _early = early.opens().await;
    let heard = [ShellInput::Data(b"typed".to_vec()), ShellInput::End];
    eventually("what was typed", async || (site.host.heard() == heard).then_some(())).await;
}

#[tokio::test]
async fn logs_that_come_after_the_right_to_them_are_not_handed_out() {
    let site = Site::new().await;
    let logs = format!("{WORKSPACE}/services/web/logs");
    let dev = site.dev.clone();
    let asking = tokio::spawn({
        let logs = logs.clone();
        async move { answer(dev.request(Method::GET, &logs)).await }
    });
    site.until_awaited(1).await;
    site.revoke().await;
    site.host.answer(1);
    asking.await.unwrap().expect_problem(403, "role_missing");

    site.assign().await;
    site.host.answer(1);
    let mut followed = site.dev.request(Method::GET, &format!("{logs}?follow=true")).send().await.unwrap();
    assert_eq!(followed.chunk().await.unwrap().unwrap(), LINE);
    site.until_awaited(1).await;
    site.revoke().await;
    site.host.answer(1);
    assert_eq!(followed.chunk().await.unwrap(), None);
}

#[tokio::test]
async fn what_lasts_ends_with_the_last_sign_in_at_whichever_process_it_attached() {
    let site = Site::new().await;
    site.host.answer(2);
    let first = site.house.person("dave@acme.test").await;
    let second = site.house.elsewhere(&site.house.person("dave@acme.test").await).await;
    for who in [&first, &second] {
        Socket::terminal(who).await.opens().await;
    }
    assert_eq!(site.host.attached(), 2);
    first.post("/v1/auth/logout", json!({})).await.expect(204);
    eventually("the first process to look", async || (site.host.ends_asked() > 0).then_some(())).await;
    assert_eq!(site.host.attached(), 2, "the second one stands");
    second.post("/v1/auth/logout", json!({})).await.expect(204);
    eventually("its end", async || (site.host.attached() == 0).then_some(())).await;
}

#[tokio::test]
async fn a_root_window_is_not_used_up_where_its_host_is_out_of_reach() {
    let site = Site::new().await;
    site.owner.patch("/v1/orgs/acme/policy", json!({"root": "workspace_elevation"})).await.expect(200);
    let wanted = json!({"reason": "what fills the disk", "minutes": 20, "access": "shell"});
    let window = site.dev.post(&format!("{WORKSPACE}/root-windows"), wanted).await.expect(201).text("id");
    let at = format!("/v1/orgs/acme/root-windows/{window}");
    site.owner.post(&format!("{at}/approve"), json!({})).await.expect(200);
    site.host.reach(false);
    let attach = async || {
        let mut socket = Socket::open(&site.dev, &format!("/root-windows/{window}/shell")).await;
        socket.say(Message::Text(terminal().to_string().into())).await;
        socket
    };
    let said = attach().await.hears().await;
    assert_eq!((&said["type"], &said["problem"]["code"]), (&json!("error"), &json!("host_out_of_reach")), "{said}");
    assert_eq!(site.dev.get(&at).await.expect(200).body["phase"], "approved");
    site.host.reach(true);
    site.host.answer(1);
    attach().await.opens().await;
    assert_eq!(site.dev.get(&at).await.expect(200).body["phase"], "open");
}
