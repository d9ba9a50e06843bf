//! What apps answer: every way to end a body, what is said before and behind an answer, and what is no answer at all.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::app::App;
use crate::world::{World, until};

/// Reads one head and answers nothing.
async fn take_head(stream: &mut TcpStream) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
}

/// A world whose app is this listener, for a test to play itself.
async fn played() -> (World, TcpListener) {
    let world = World::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    world.ready(listener.local_addr().unwrap()).await;
    (world, listener)
}

#[tokio::test]
async fn every_way_to_end_a_body_reaches_the_client_whole() {
    let world = World::start().await;
    for (answer, status, body) in [
        (&b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"[..], 200, "hello"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello", 200, "hello"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", 200, ""),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n", 200, "hello"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 200, ""),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nX: y\r\n\r\n", 200, "hello"),
        (b"HTTP/1.1 200 OK\r\n\r\nhello", 200, "hello"),
        (b"HTTP/1.0 200 OK\r\n\r\nhello", 200, "hello"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 201 \r\nContent-Length: 2\r\n\r\nok", 201, "ok"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, ""),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\nETag: x\r\n\r\n", 304, ""),
        (b"HTTP/1.1 299 What\r\nContent-Length: 1\r\n\r\nx", 299, "x"),
    ] {
        let shown = String::from_utf8_lossy(answer);
        let app = App::raw(vec![answer]).await;
        world.ready(app.address).await;
        let mut client = world.client().await;
        // Twice on one connection of the client's: what follows an answer is found.
        for _ in 0..2 {
            client.send(world.get("/x", "")).await;
            let got = client.answer().await.unwrap_or_else(|| panic!("no answer for {shown:?}"));
            assert_eq!((got.status, got.body.as_str()), (status, body), "{shown:?}");
            assert!(got.headers.contains_key("date"), "{shown:?}");
            assert!(!got.headers.contains_key("link"), "{shown:?}");
        }
        assert_eq!(app.seen.requests.load(Ordering::SeqCst), 2, "{shown:?}");
    }
}

#[tokio::test]
async fn what_is_no_answer_is_told_as_such_and_its_bytes_reach_nobody() {
    let world = World::start().await;
    let long: &'static str = Box::leak(format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "secret".repeat(20_000)).into());
    let many: &'static str = Box::leak(format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: secret\r\n".repeat(200)).into());
    let endless: &'static str = Box::leak("HTTP/1.1 100 Continue\r\nX: secret\r\n\r\n".repeat(3_000).into());
    for (answer, code) in [
        (&b"secret\r\n\r\n"[..], "app_answer_invalid"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nContent-Length: 7\r\n\r\nsecret", "app_answer_invalid"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 6, 6\r\n\r\nsecret", "app_answer_invalid"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -6\r\n\r\nsecret", "app_answer_invalid"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nsecret\r\n0\r\n\r\n",
            "app_answer_invalid",
        ),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nsecret", "app_answer_invalid"),
        (b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nsecret\r\n0\r\n\r\n", "app_answer_invalid"),
        (b"HTTP/1.1 200 OK\r\nX: a\r\n secret\r\nContent-Length: 0\r\n\r\n", "app_answer_invalid"),
        (b"HTTP/1.1 200 OK\r\nX secret\r\nContent-Length: 0\r\n\r\n", "app_answer_invalid"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: secret\r\n\r\n", "app_answer_invalid"),
        (b"HTTP/9.1 200 secret\r\nContent-Length: 0\r\n\r\n", "app_answer_invalid"),
        (long.as_bytes(), "app_answer_invalid"),
        (many.as_bytes(), "app_answer_invalid"),
        (endless.as_bytes(), "app_answer_invalid"),
        (b"", "app_unreachable"),
        (b"HTTP/1.1 200 OK\r\nX: secr", "app_unreachable"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", "app_unreachable"),
    ] {
        let shown = String::from_utf8_lossy(&answer[..answer.len().min(100)]);
        world.ready(App::raw(vec![answer]).await.address).await;
        let got = world.fetch("/x").await;
        assert_eq!((got.status, got.code().as_str()), (502, code), "{shown:?}");
        assert!(!format!("{got:?}").contains("secret"), "{shown:?}");
    }
}

#[tokio::test]
async fn a_body_that_ends_too_early_or_breaks_is_never_taken_for_a_whole_one() {
    let world = World::start().await;
    for answer in [
        &b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello"[..],
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloX\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello",
    ] {
        world.ready(App::raw(vec![answer]).await.address).await;
        let mut client = world.client().await;
        client.send(world.get("/x", "")).await;
        // Whatever arrived, the connection has ended before what was announced was there.
        if let Some(head) = client.head().await
            && head.status == 200
        {
            let mut rest = Vec::new();
            let _ = client.stream.read_to_end(&mut rest).await;
            assert!(!rest.ends_with(b"0\r\n\r\n") && rest.len() < 12, "{:?}", String::from_utf8_lossy(&rest));
        }
    }
}

#[tokio::test]
async fn an_answer_in_single_bytes_is_understood() {
    let (world, listener) = played().await;
    let answering = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        for answer in [
            &b"HTTP/1.1 103 \r\nX: y\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"[..],
            b"HTTP/1.1 200 OK\nTransfer-Encoding: chunked\n\n5\r\nhello\r\n0\r\nX: y\r\n\r\n",
        ] {
            take_head(&mut stream).await;
            stream.set_nodelay(true).unwrap();
            for byte in answer {
                stream.write_all(&[*byte]).await.unwrap();
                tokio::task::yield_now().await;
            }
        }
        stream
    };
    let asking = async {
        let mut client = world.client().await;
        for _ in 0..2 {
            client.send(world.get("/x", "")).await;
            assert_eq!(client.answer().await.unwrap().body, "hello");
        }
    };
    tokio::join!(answering, asking);
}

#[tokio::test]
async fn an_answer_that_comes_before_the_whole_upload_is_heard_and_the_upload_goes_on() {
    let (world, listener) = played().await;
    let host = world.host();
    let head =
        format!("POST /x HTTP/1.1\r\nHost: {host}\r\nCookie: {}\r\nOrigin: http://{host}\r\n", world.cookie_header());
    let answering = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        take_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n").await.unwrap();
        let mut rest = [0; 13];
        stream.read_exact(&mut rest).await.unwrap();
        assert_eq!(&rest, b"first, second");
        stream.write_all(b"3\r\nbye\r\n0\r\n\r\n").await.unwrap();
        // What was answered before the upload was there carries no other request.
        assert_eq!(stream.read(&mut [0]).await.unwrap_or(0), 0);
    };
    let asking = async {
        let mut client = world.client().await;
        client.send(format!("{head}Content-Length: 13\r\n\r\nfirst, ")).await;
        assert_eq!(client.head().await.unwrap().status, 200);
        assert_eq!(client.chunk().await.unwrap(), b"hi");
        client.send("second").await;
        assert_eq!(client.chunk().await.unwrap(), b"bye");
    };
    tokio::join!(answering, asking);
}

#[tokio::test]
async fn an_upload_that_the_app_refuses_under_way_gets_the_apps_word() {
    let (world, listener) = played().await;
    let host = world.host();
    let answering = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        take_head(&mut stream).await;
        stream.write_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\nConnection: close\r\n\r\nno").await.unwrap();
        stream.shutdown().await.unwrap();
        stream
    };
    let asking = async {
        let mut client = world.client().await;
        let head = format!(
            "POST /x HTTP/1.1\r\nHost: {host}\r\nCookie: {}\r\nOrigin: http://{host}\r\n",
            world.cookie_header()
        );
        client.send(format!("{head}Content-Length: 100000000\r\n\r\nbeginning")).await;
        let answer = client.answer().await.unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (413, "no"));
    };
    tokio::join!(answering, asking);
}

#[tokio::test]
async fn a_connection_on_which_an_app_says_more_than_it_was_asked_is_not_used_again() {
    let (world, listener) = played().await;
    let answering = async {
        for more in [true, false, false] {
            let (mut stream, _) = listener.accept().await.unwrap();
            take_head(&mut stream).await;
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
            let smuggled = b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nplanted";
            if more {
                stream.write_all(&[&answer[..], smuggled].concat()).await.unwrap();
                // The gateway has closed it.
                assert_eq!(stream.read(&mut [0]).await.unwrap_or(0), 0);
            } else {
                stream.write_all(answer).await.unwrap();
                stream.write_all(b"H").await.unwrap();
                let _ = stream.read(&mut [0; 1024]).await;
            }
        }
    };
    let asking = async {
        for _ in 0..3 {
            assert_eq!(world.fetch("/x").await.body, "ok");
            tokio::time::sleep(Duration::from_millis(50)).await; // pause: for what the app says behind its answer
        }
    };
    tokio::select! {
        ((), ()) = async { tokio::join!(answering, asking) } => {}
        () = tokio::time::sleep(crate::app::SOON) => panic!("somebody waits for ever"),
    }
}

#[tokio::test]
async fn a_form_that_is_sent_on_a_connection_which_the_app_has_closed_is_sent_on_another() {
    let (world, listener) = played().await;
    let host = world.host();
    let head =
        format!("POST /x HTTP/1.1\r\nHost: {host}\r\nCookie: {}\r\nOrigin: http://{host}\r\n", world.cookie_header());
    let answering = async {
        for _ in 0..5 {
            let (mut stream, _) = listener.accept().await.unwrap();
            take_head(&mut stream).await;
            let mut body = [0; 5];
            stream.read_exact(&mut body).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
            // Closed without having said so.
        }
    };
    let asking = async {
        for _ in 0..5 {
            let mut client = world.client().await;
            client.send(format!("{head}Content-Length: 5\r\n\r\nhello")).await;
            assert_eq!(client.answer().await.unwrap().body, "ok");
            tokio::time::sleep(Duration::from_millis(50)).await; // pause: until the gateway can know of the end
        }
    };
    tokio::join!(answering, asking);
}

#[tokio::test]
async fn gets_forms_and_refused_requests_take_turns_on_one_connection() {
    let (world, app) = (World::start().await, App::start().await);
    world.ready(app.address).await;
    let host = world.host();
    let post = format!(
        "POST /form HTTP/1.1\r\nHost: {host}\r\nCookie: {}\r\nOrigin: http://{host}\r\nContent-Length: 5\r\n\r\nhello",
        world.cookie_header()
    );
    let mut client = world.client().await;
    // All at once, in one piece: each finds its beginning.
    client.send(world.get("/1", "") + &world.get("/2", "") + &post + &world.get("/3", "") + &post).await;
    for (line, end) in
        [("GET /1\n", ""), ("GET /2\n", ""), ("POST /form\n", "hello"), ("GET /3\n", ""), ("POST /form\n", "hello")]
    {
        let answer = client.answer().await.unwrap();
        assert!(answer.body.starts_with(line) && answer.body.ends_with(end), "{answer:?}");
    }
    // A refusal is told where it comes, and whoever is allowed goes on after it.
    let mut client = world.client().await;
    client.send(world.get("/1", "") + &world.get("/x/../y", "") + &world.get("/2", "")).await;
    assert_eq!(client.answer().await.unwrap().status, 200);
    assert_eq!(client.answer().await.unwrap().code(), "ambiguous_path");
    assert!(client.answer().await.unwrap().body.starts_with("GET /2\n"));
    // One cut anywhere changes nothing.
    let both = world.get("/1", "") + &post;
    for cut in (1..both.len()).step_by(7) {
        let mut client = world.client().await;
        client.send(&both[..cut]).await;
        tokio::task::yield_now().await;
        client.send(&both[cut..]).await;
        assert!(client.answer().await.unwrap().body.starts_with("GET /1\n"), "{cut}");
        assert!(client.answer().await.unwrap().body.ends_with("hello"), "{cut}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_before_its_answer_takes_its_request_along() {
    let (world, listener) = played().await;
    let mut client = world.client().await;
    client.send(world.get("/x", "") + "GET /early").await;
    let (mut stream, _) = listener.accept().await.unwrap();
    take_head(&mut stream).await;
    assert_eq!(world.activity.of(world.workspace()).unwrap().open_streams, 1);
    drop(client);
    assert_eq!(stream.read(&mut [0]).await.unwrap_or(0), 0);
    until("nothing is open", || world.activity.of(world.workspace()).unwrap().open_streams == 0).await;
}

#[tokio::test]
async fn a_stopping_gateway_closes_what_is_idle_and_says_so_on_what_is_not() {
    let (world, listener) = played().await;
    let mut idle = world.client().await;
    let mut busy = world.client().await;
    busy.send(world.get("/x", "")).await;
    let (mut stream, _) = listener.accept().await.unwrap();
    take_head(&mut stream).await;
    let stopping = tokio::spawn(world.gateway.stop());
    assert!(idle.is_closed().await);
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
    let answer = busy.answer().await.unwrap();
    assert_eq!((answer.body.as_str(), answer.header("connection")), ("ok", "close"));
    assert!(busy.is_closed().await);
    stopping.await.unwrap();
}
