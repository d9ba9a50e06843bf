//! Whoever may not, or does not keep to the frames, gets nothing, and holds nobody else up.

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::json;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream};

use crate::place::{DANA, DEADLINE, OWNER, PASSWORD, Place};

type Socket = WebSocketStream<MaybeTlsStream<TcpStream>>;

async fn token(place: &Place, email: &str) -> String {
    let login = json!({ "email": email, "password": PASSWORD });
    let answer = reqwest::Client::new().post(format!("{}/v1/auth/login", place.api)).json(&login).send().await.unwrap();
    let answer: serde_json::Value = answer.json().await.unwrap();
    answer["access_token"].as_str().unwrap().to_owned()
}

/// The socket, or the status and body of the refusal.
async fn open(place: &Place, headers: &[(&'static str, &str)]) -> Result<Socket, (u16, String)> {
    let url = format!("{}/v1/orgs/acme/workspaces/main/shell", place.api.replace("http://", "ws://"));
    let mut request = url.into_client_request().unwrap();
    request.headers_mut().insert("sec-websocket-protocol", "envforge.shell.v1".parse().unwrap());
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    match tokio_tungstenite::connect_async(request).await {
        Ok((socket, _)) => Ok(socket),
        Err(Error::Http(answer)) => {
            let body = String::from_utf8_lossy(answer.body().as_deref().unwrap_or_default()).into_owned();
            Err((answer.status().as_u16(), body))
        }
        Err(error) => panic!("{error}"),
    }
}

fn text(value: serde_json::Value) -> Message {
    Message::Text(value.to_string().into())
}

/// Everything that the server says until it closes, as text.
async fn said(mut socket: Socket) -> String {
    let mut all = String::new();
    let listening = async {
        while let Some(Ok(message)) = socket.next().await {
            all.push_str(&format!("{message:?}\n"));
        }
    };
    let closed = tokio::time::timeout(DEADLINE, listening).await.is_ok();
    assert!(closed, "the server does not close: {all}");
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn shells_are_for_bearers_with_the_right_alone() {
    let place = Place::start();
    let bearer = format!("Bearer {}", token(&place, DANA).await);
    let owner = format!("Bearer {}", token(&place, OWNER).await);
    assert_eq!(open(&place, &[]).await.unwrap_err().0, 401);
    assert_eq!(open(&place, &[("cookie", "__Host-envforge=x")]).await.unwrap_err().0, 401);
    let (status, body) =
        open(&place, &[("authorization", &bearer), ("origin", "http://dev.localhost")]).await.unwrap_err();
    assert_eq!((status, body.contains("shell_not_for_browsers")), (403, true), "{body}");
    let with_cookie = [("authorization", bearer.as_str()), ("cookie", "a=b")];
    assert_eq!(open(&place, &with_cookie).await.unwrap_err().0, 403);
    assert!(open(&place, &[("authorization", &owner)]).await.is_ok());
    let (plain, other) = (reqwest::Client::new(), format!("{}/v1/orgs/acme/workspaces/main/shell", place.api));
    let answer = plain.get(other).header("authorization", &bearer).send().await.unwrap();
    assert_eq!(answer.status(), 400, "no WebSocket");
    for role in ["viewer", "billing", "explore"] {
        place.json("owner", &["org", "role", "revoke", DANA, if role == "viewer" { "developer" } else { "viewer" }]);
        place.json("owner", &["org", "role", "assign", DANA, role]);
        let refused = place.client("dana", &["shell", "main", "--", "true"], "");
        assert_eq!(refused.status.code(), Some(3), "{role}");
        let refused = place.client("dana", &["run", "unit", "--workspace", "main"], "");
        assert_eq!(refused.status.code(), Some(3), "{role}");
        if role != "viewer" {
            place.json("owner", &["org", "role", "revoke", DANA, role]);
            place.json("owner", &["org", "role", "assign", DANA, "viewer"]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_breaks_the_rules_of_the_frames_is_let_go_and_nobody_else() {
    let place = Place::start();
    let bearer = format!("Bearer {}", token(&place, DANA).await);
    let connect = async || open(&place, &[("authorization", bearer.as_str())]).await.unwrap();
    let sleep = || text(json!({ "open": "command", "words": ["sleep", "100000"] }));
    let mut beside = connect().await;
    beside.send(text(json!({ "open": "command", "words": ["cat"] }))).await.unwrap();

    // Before there is an order.
    for (first, code) in [
        (Message::Binary(vec![0, 1, 2].into()), "body_invalid"),
        (text(json!({ "open": "everything" })), "body_invalid"),
        (text(json!({ "open": "command", "words": [] })), "shell_command_invalid"),
        (text(json!({ "open": "command", "words": ["a\u{0}b"] })), "shell_command_invalid"),
        (text(json!({ "open": "command", "words": ["x"], "user": "root" })), "body_invalid"),
        (text(json!({ "open": "terminal", "columns": 0, "rows": 5, "term": "x" })), "value_invalid"),
        (text(json!({ "open": "terminal", "columns": 5, "rows": 5, "term": "x;rm" })), "value_invalid"),
        (text(json!({ "open": "ssh", "client_key": "none" })), "value_invalid"),
    ] {
        let mut socket = connect().await;
        socket.send(first.clone()).await.unwrap();
        let said = said(socket).await;
        assert!(said.contains(code), "{first:?}: {said}");
    }
    // Afterwards. The window is 256 KiB.
    let chunk = || Message::Binary([vec![0], vec![7; 64 * 1024]].concat().into());
    let overflow: Vec<Message> = (0..8).map(|_| chunk()).collect();
    for then in [
        vec![Message::Binary(vec![9, 1].into())],
        vec![Message::Binary(vec![].into())],
        vec![Message::Text("nonsense".into())],
        vec![text(json!({ "type": "signal", "signal": "STOP" }))],
        vec![Message::Binary(vec![0; 1 << 20].into())],
        overflow,
    ] {
        let mut socket = connect().await;
        socket.send(sleep()).await.unwrap();
        for message in then {
            if socket.send(message).await.is_err() {
                break;
            }
        }
        let said = said(socket).await;
        assert!(!said.contains("exited"), "{said}");
    }
    // Signals never wait behind data that nobody takes.
    let mut socket = connect().await;
    socket.send(sleep()).await.unwrap();
    for _ in 0..3 {
        socket.send(chunk()).await.unwrap();
    }
    socket.send(text(json!({ "type": "signal", "signal": "TERM" }))).await.unwrap();
    let ended = said(socket).await;
    assert!(ended.contains("signalled") && ended.contains("15"), "{ended}");

    beside.send(Message::Binary(b"\x00still here".to_vec().into())).await.unwrap();
    beside.send(text(json!({ "type": "input_end" }))).await.unwrap();
    let heard = said(beside).await;
    assert!(heard.contains("exited"), "{heard}");
    wait_for_ends(&place).await;
}

async fn wait_for_ends(place: &Place) {
    envforge_testkit::eventually("all shells' ends", DEADLINE, async || {
        let opened = place.json("owner", &["audit", "log", "--type", "shell.connected", "--limit", "50"]);
        (opened["items"].as_array().unwrap().len() == place.ends().len()).then_some(())
    })
    .await;
}
