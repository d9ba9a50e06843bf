//! What holds for every request, whatever it asks.

use reqwest::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::house::{House, PASSWORD, PATIENCE, answer};

#[tokio::test]
async fn a_body_beyond_its_limit_is_refused_by_size_and_by_count() {
    let house = House::start().await;
    let owner = house.owner().await;
    house.workspace(&owner).await;
    let large = json!({"slug": "p", "name": "n".repeat(1_100_000), "repository": "https://git.test/p"});
    let refused = owner.post("/v1/orgs/acme/projects", large).await.expect_problem(413, "body_too_large");
    assert_eq!(refused.body["max_bytes"], 1024 * 1024);
    let path = "/v1/orgs/acme/workspaces/signed-links/manifest";
    let request = owner.request(Method::PUT, path).header("Content-Type", "text/yaml").body("#".repeat(70_000));
    answer(request).await.expect_problem(413, "body_too_large");
}

#[tokio::test]
async fn the_wrong_content_type_path_or_method_is_a_problem_too() {
    let house = House::start().await;
    let owner = house.owner().await;
    let text = owner.request(Method::POST, "/v1/orgs/acme/projects").header("Content-Type", "text/plain").body("{}");
    answer(text).await.expect_problem(415, "content_type_unsupported");
    owner.get("/v1/nowhere").await.expect_problem(404, "not_found");
    let wrong = owner.delete("/v1/me").await.expect_problem(405, "method_not_allowed");
    assert!(wrong.headers.contains_key("allow"));
    let garbage = owner.request(Method::POST, "/v1/orgs/acme/projects").header("Content-Type", "application/json");
    answer(garbage.body("{\"slug\": ")).await.expect_problem(400, "body_invalid");
    let not_empty = owner.request(Method::POST, "/v1/auth/logout").json(&json!({"everywhere": true}));
    answer(not_empty).await.expect_problem(400, "body_invalid");
}

#[tokio::test]
async fn every_answer_names_its_request_and_may_not_be_kept_or_framed() {
    let house = House::start().await;
    for path in ["/v1/me", "/v1/problems", "/nowhere", "/healthz"] {
        let answer = house.anonymous(Method::GET, path, json!(null)).await;
        assert!(answer.headers["envforge-request"].to_str().unwrap().starts_with("cor_"), "{path}");
        assert_eq!(answer.headers["cache-control"], "no-store", "{path}");
        assert_eq!(answer.headers["x-content-type-options"], "nosniff", "{path}");
        assert!(!answer.headers.contains_key("access-control-allow-origin"), "{path}");
        if let Some(instance) = answer.body["instance"].as_str() {
            assert!(instance.ends_with(answer.headers["envforge-request"].to_str().unwrap()));
        }
    }
}

#[tokio::test]
async fn too_many_requests_at_once_are_told_to_come_back() {
    let house = House::start_with(|config| config.requests_max = 1).await;
    let owner = house.owner().await;
    // A body that does not come keeps the only place.
    let address = house.base.strip_prefix("http://").unwrap();
    let mut slow = tokio::net::TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST /v1/orgs/acme/projects HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\n\
         Content-Type: application/json\r\nContent-Length: 100\r\n\r\n",
        owner.token
    );
    slow.write_all(head.as_bytes()).await.unwrap();
    let refused = crate::house::eventually("a refusal", async || {
        let answer = owner.get("/v1/me").await;
        (answer.status == 503).then_some(answer)
    })
    .await;
    assert_eq!(refused.expect_problem(503, "overloaded").headers["retry-after"], "1");
    drop(slow);
    crate::house::eventually("room", async || (owner.get("/v1/me").await.status == 200).then_some(())).await;
}

#[tokio::test]
async fn strangers_with_slow_bodies_take_no_place_of_whoever_has_signed_in() {
    let house = House::start_with(|config| {
        config.anonymous_requests_max = 2;
        config.requests_max = 1;
    })
    .await;
    let owner = house.owner().await;
    let address = house.base.strip_prefix("http://").unwrap();
    let mut slow = Vec::new();
    for path in ["login", "refresh"] {
        let mut stranger = tokio::net::TcpStream::connect(address).await.unwrap();
        let head = format!(
            "POST /v1/auth/{path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
        );
        stranger.write_all(head.as_bytes()).await.unwrap();
        slow.push(stranger);
    }
    crate::house::eventually("a refusal", async || {
        (house.login("ada@acme.test", PASSWORD).await.status == 503).then_some(())
    })
    .await;
    owner.get("/v1/me").await.expect(200);
    house.anonymous(Method::GET, "/healthz", json!(null)).await.expect(200);
    drop(slow);
    crate::house::eventually("room", async || {
        (house.login("ada@acme.test", PASSWORD).await.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn people_behind_a_trusted_proxy_are_slowed_down_each_for_themselves() {
    let house = House::start_with(|config| config.trusted_proxies = vec![[127, 0, 0, 1].into()]).await;
    let login = async |from: &str, email: &str, password: &str| {
        let request = house.client.post(format!("{}/v1/auth/login", house.base)).header("X-Forwarded-For", from);
        answer(request.json(&json!({"email": email, "password": password}))).await.status
    };
    let mut refused = 0;
    for round in 0..60 {
        // Another account each time: it is the address that is slowed down.
        refused = login("198.51.100.7", &format!("nobody{round}@acme.test"), "not it").await;
        if refused == 429 {
            break;
        }
    }
    assert_eq!(refused, 429);
    assert_eq!(login("198.51.100.8", "ada@acme.test", PASSWORD).await, 200);
}

#[tokio::test]
async fn headers_beyond_their_limit_are_refused() {
    let house = House::start().await;
    let address = house.base.strip_prefix("http://").unwrap();
    let raw = async |head: String| {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        // The server may answer and close before it has read everything.
        let _ = stream.write_all(head.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap();
        String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned()
    };
    let long =
        format!("GET /healthz HTTP/1.1\r\nHost: x\r\nX-Long: {}\r\nConnection: close\r\n\r\n", "a".repeat(40_000));
    assert!(raw(long).await.contains("431"));
    let many: String = (0..100).map(|index| format!("X-{index}: a\r\n")).collect();
    assert!(raw(format!("GET /healthz HTTP/1.1\r\nHost: x\r\n{many}Connection: close\r\n\r\n")).await.contains("431"));
    assert!(raw("GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".into()).await.contains("200"));
}

#[tokio::test]
async fn the_process_says_that_it_lives_and_whether_it_can_answer() {
    let house = House::start().await;
    assert_eq!(house.anonymous(Method::GET, "/healthz", json!(null)).await.expect(200).body["status"], "ok");
    let ready = async || {
        let answer = house.anonymous(Method::GET, "/readyz", json!(null)).await;
        (answer.status == 200).then_some(answer)
    };
    assert_eq!(crate::house::eventually("readiness", ready).await.body["status"], "ready");
    // Without a recorder there are no metrics, and nothing says that there could be.
    house.anonymous(Method::GET, "/metrics", json!(null)).await.expect_problem(404, "not_found");
}

#[tokio::test]
async fn the_listener_closes_when_the_process_stops() {
    let house = House::start().await;
    house.anonymous(Method::GET, "/healthz", json!(null)).await.expect(200);
    house.stop();
    crate::house::eventually("the listener to close", async || {
        house.client.get(format!("{}/healthz", house.base)).send().await.is_err().then_some(())
    })
    .await;
}
