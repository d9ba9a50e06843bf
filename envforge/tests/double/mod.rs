//! An API that answers what a test wants and remembers what it was asked.
//!
//! Not here: what the command line makes of it (`cli_errors`, `journey_keyring`).
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::json;

/// A request that the double got.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) line: String,
    headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// Answers each request with the next of its answers, and the last one for ever.
pub(crate) struct Double {
    pub(crate) url: String,
    got: Arc<Mutex<Vec<Request>>>,
}

impl Double {
    /// `answers`: status, more header lines, body.
    pub(crate) fn answering(answers: Vec<(u16, &'static str, String)>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let got = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&got);
        std::thread::spawn(move || {
            for (index, stream) in listener.incoming().enumerate() {
                let (status, headers, body) = &answers[index.min(answers.len() - 1)];
                if answer(stream.unwrap(), &seen, *status, headers, body).is_none() {
                    return;
                }
            }
        });
        Self { url, got }
    }

    pub(crate) fn problem(status: u16, code: &str) -> Self {
        Self::answering(vec![(status, "", problem(status, code))])
    }

    pub(crate) fn got(&self) -> Vec<Request> {
        self.got.lock().unwrap().clone()
    }
}

pub(crate) fn problem(status: u16, code: &str) -> String {
    let instance = "urn:envforge:request:cor_7";
    json!({"type": format!("/v1/problems/{code}"), "title": "It was refused", "status": status, "detail": "for a reason",
        "code": code, "instance": instance})
    .to_string()
}

/// The request is remembered before it is answered: whoever has the answer may look.
fn answer(mut stream: TcpStream, seen: &Mutex<Vec<Request>>, status: u16, headers: &str, body: &str) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        match line.trim_end() {
            "" => break,
            text => lines.push(text.to_owned()),
        }
    }
    let pairs = lines.iter().skip(1).filter_map(|line| line.split_once(':'));
    let headers_got: Vec<_> = pairs.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())).collect();
    let mut request = Request { line: lines.first()?.clone(), headers: headers_got, body: String::new() };
    let length = request.header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
    let mut body_got = vec![0; length];
    reader.read_exact(&mut body_got).ok()?;
    request.body = String::from_utf8_lossy(&body_got).into_owned();
    seen.lock().unwrap().push(request);
    write!(
        stream,
        "HTTP/1.1 {status} X\r\ncontent-type: application/problem+json\r\n{headers}connection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .ok()
}
