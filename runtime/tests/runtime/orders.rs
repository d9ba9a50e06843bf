//! The example app of this repository, woken from its own Git repository by its own `envforge.yml`.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;

use envforge_domain::manifest::{Manifest, Route};
use envforge_runtime::{Awake, WakeOrder};

use crate::fixture::*;

const HOST: &str = "web--orders--acme.dev.localhost:7080";

fn example() -> (Repository, WakeOrder) {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/orders");
    let repository = Repository::of(&source);
    let manifest = Manifest::parse(&std::fs::read_to_string(source.join("envforge.yml")).unwrap()).unwrap();
    let mut order = order(&repository, []);
    for service in &manifest.services {
        if service.route != Route::None {
            order.public_hosts.insert(service.name.clone(), HOST.to_owned());
        }
    }
    order.manifest = manifest;
    (repository, order)
}

fn endpoint(awake: &Awake, service: &str) -> SocketAddr {
    awake.endpoints.iter().find(|(name, _)| name.as_str() == service).unwrap().1
}

async fn post(address: SocketAddr, path: &str, body: &str) -> (u16, String) {
    let text = format!(
        "POST {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    request(address, text).await
}

/// A WebSocket over a plain socket.
struct Socket(TcpStream);

impl Socket {
    fn open(address: SocketAddr, origin: &str) -> Result<Self, String> {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let head = format!(
            "GET /live HTTP/1.1\r\nHost: {HOST}\r\nOrigin: {origin}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            answer.push(byte[0]);
        }
        let answer = String::from_utf8(answer).unwrap();
        if answer.starts_with("HTTP/1.1 101") && answer.contains("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=") {
            Ok(Self(stream))
        } else {
            Err(answer)
        }
    }

    fn send(&mut self, opcode: u8, payload: &[u8]) {
        let mut frame = vec![0x80 | opcode, 0x80 | u8::try_from(payload.len()).unwrap(), 1, 2, 3, 4];
        frame.extend(payload.iter().enumerate().map(|(index, byte)| byte ^ (index as u8 % 4 + 1)));
        self.0.write_all(&frame).unwrap();
    }

    fn receive(&mut self) -> (u8, Vec<u8>) {
        let mut head = [0; 2];
        self.0.read_exact(&mut head).unwrap();
        let length = match head[1] {
            126 => {
                let mut long = [0; 2];
                self.0.read_exact(&mut long).unwrap();
                usize::from(u16::from_be_bytes(long))
            }
            short => usize::from(short),
        };
        let mut payload = vec![0; length];
        self.0.read_exact(&mut payload).unwrap();
        (head[0] & 0x0f, payload)
    }

    /// The next message that holds the text.
    fn hear(&mut self, text: &str) -> String {
        loop {
            let (opcode, payload) = self.receive();
            assert_eq!(opcode, 1, "only text was expected");
            let said = String::from_utf8(payload).unwrap();
            if said.contains(text) {
                return said;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_order_board_serves_pages_api_assets_and_live_updates_and_keeps_orders_over_a_sleep() {
    let host = Host::open().await;
    let (_repository, mut order) = example();
    let awake = host.wake(order.clone()).await.unwrap();
    let (web, api, mailbox) = (endpoint(&awake, "web"), endpoint(&awake, "api"), endpoint(&awake, "mailbox"));

    let (status, page) = get(web, "/").await;
    assert!(status == 200 && page.contains("<title>Orders · Northwind Roasters</title>"), "{page}");
    assert!(!page.contains("http://") && !page.contains("https://"), "the page needs nothing from elsewhere");
    for (asset, kind) in [("board.css", "text/css"), ("board.js", "text/javascript"), ("mark.svg", "image/svg+xml")] {
        let (status, answer) = get(web, &format!("/assets/{asset}")).await;
        assert!(status == 200 && answer.contains(&format!("Content-Type: {kind}")), "{asset}: {answer}");
        assert!(page.contains(&format!("/assets/{asset}")), "the page uses {asset}");
    }
    for path in ["/assets/../server.py", "/server.py", "/assets/%2e%2e/server.py", "/assets/"] {
        assert_eq!(get(web, path).await.0, 404, "{path}");
    }

    let (status, answer) = get(api, "/api/orders").await;
    assert!(status == 200 && answer.contains("\"Mira Okafor\""), "{answer}");
    for (body, status, says) in [
        ("{", 400, "not JSON"),
        ("{}", 422, "\"customer\": \"must be a name"),
        (r#"{"customer":"Ada","item":"decaf","quantity":true}"#, 422, "\"quantity\""),
    ] {
        let answer = post(api, "/api/orders", body).await;
        assert!(answer.0 == status && answer.1.contains(says), "{body}: {answer:?}");
    }

    let refused = Socket::open(web, "https://evil.example").err().unwrap();
    assert!(refused.starts_with("HTTP/1.1 403"), "{refused}");
    let mut live = Socket::open(web, &format!("http://{HOST}")).unwrap();
    live.hear("\"presence\"");
    live.send(1, br#"{"type":"echo","text":"hello","id":"1"}"#);
    assert_eq!(live.hear("\"echo\""), r#"{"type": "echo", "text": "hello", "id": "1"}"#);
    live.send(9, b"ping");
    assert_eq!(live.receive(), (10, b"ping".to_vec()));
    // The web service follows the API's stream from some moment after its start on: order until it is heard of.
    let placing = tokio::spawn(async move {
        loop {
            let (status, answer) =
                post(api, "/api/orders", r#"{"customer":"Ada Test","item":"decaf","quantity":2}"#).await;
            assert_eq!(status, 201, "{answer}");
            tokio::time::sleep(std::time::Duration::from_millis(100)).await; // pause: orders come in while the board goes to sleep
        }
    });
    let heard = tokio::task::block_in_place(|| live.hear("Ada Test"));
    placing.abort();
    assert!(
        heard.contains(r#""type": "order", "what": "placed""#) && heard.contains(r#""total_cents": 2980"#),
        "{heard}"
    );
    live.send(8, &1000u16.to_be_bytes());
    loop {
        let (opcode, payload) = live.receive();
        if opcode == 8 {
            assert_eq!(payload, 1000u16.to_be_bytes());
            break;
        }
    }
    // The mailbox is really there; its route, which is none, is what keeps links away.
    assert_eq!(order.manifest.service(&name("mailbox")).unwrap().route, Route::None);
    let deadline = std::time::Instant::now() + PATIENCE;
    while !get(mailbox, "/messages").await.1.contains("Ada Test") {
        assert!(std::time::Instant::now() < deadline, "the confirmation arrives in the mailbox");
    }

    host.host.sleep(workspace(1), 1).await.unwrap();
    let flushed = std::fs::read_to_string(host.place(workspace(1)).join("output/on_sleep.log")).unwrap();
    assert!(flushed.trim_end().ends_with("orders are on disk"), "{flushed}");
    order.epoch = 2;
    let awake = host.wake(order).await.unwrap();
    let (_, kept) = get(endpoint(&awake, "api"), "/api/orders").await;
    assert!(kept.contains("Ada Test"), "{kept}");
    host.host.shutdown().await;
}

#[test]
fn the_example_passes_its_own_tests() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/orders");
    let output = std::process::Command::new("python3")
        .args(["-B", "-m", "unittest", "discover", "-s", "tests"])
        .current_dir(source)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
