//! What tests may rely on when they start a nats-server.
#![allow(clippy::unwrap_used)]

use envforge_testkit::{NatsOptions, NatsServer};
use std::io::{BufRead, BufReader};
use std::net::TcpStream;

fn greeting(server: &NatsServer) -> Option<String> {
    let stream = TcpStream::connect(("127.0.0.1", server.port())).ok()?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).ok()?;
    Some(line)
}

#[test]
fn it_restarts_on_the_same_port_and_store_after_kill9() {
    let mut server = NatsServer::start_with(&NatsOptions { sync_interval: None, ..NatsOptions::default() });
    let url = server.url();
    std::fs::write(server.store_dir().join("mark"), "x").unwrap();
    server.kill9();
    assert_eq!(greeting(&server), None);
    server.restart();
    assert!(greeting(&server).unwrap().contains("2.15.1"));
    assert_eq!(server.url(), url);
    assert!(server.store_dir().join("mark").exists());
}

#[test]
fn a_lost_store_begins_from_nothing() {
    let mut server = NatsServer::start();
    std::fs::write(server.store_dir().join("mark"), "x").unwrap();
    server.lose_store();
    server.restart();
    assert!(server.store_dir().is_dir() && !server.store_dir().join("mark").exists());
}

#[test]
fn two_run_side_by_side_and_end_with_their_values() {
    let (one, other) = (NatsServer::start(), NatsServer::start());
    assert_ne!(one.port(), other.port());
    let port = one.port();
    drop(one);
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    assert!(greeting(&other).is_some());
}

#[test]
#[should_panic(expected = "Parse error")]
fn a_configuration_it_refuses_is_shown() {
    let _ =
        NatsServer::start_with(&NatsOptions { extra_configuration: "jetstream: {".into(), ..NatsOptions::default() });
}
