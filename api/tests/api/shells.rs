//! Shells where no host lives in the API's process, and what is asked before anything else.

use reqwest::Method;
use serde_json::{Value, json};

use crate::house::{House, Person, answer};

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
