//! One way of asking for something, what it stands on, and whether an answer lets in.
//!
//! Not here: who asks (`person`), and what is taken away when (`kinds`).

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::json;
use tokio::sync::Mutex;

use crate::site::{Site, text};
use crate::wire::{Answer, Connection, Request};

/// What a credential or a right stands on. Numbers are those of people, links, tokens and workspaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Ground {
    /// Membership with an account that is open.
    Account(usize),
    Session(usize, Place),
    /// The role, however it is held.
    Role(usize),
    /// Roles below the owner's give links.
    Issuing,
    Link(usize),
    /// This link opens WebSockets.
    LinkSockets(usize),
    /// Links open WebSockets.
    AllLinkSockets,
    Token(usize),
    AllTokens,
    Workspace(usize),
}

/// Where a session counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    Api,
    Cli,
    Console,
    Host,
}

impl Place {
    pub(crate) const ALL: [Self; 4] = [Self::Api, Self::Cli, Self::Console, Self::Host];

    /// As the list of sessions calls it.
    pub(crate) fn surface(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::Cli => "cli",
            Self::Console => "console",
            Self::Host => "gateway",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    LetIn,
    /// What was told.
    Refused(String),
    /// Neither: an answer to another question.
    Unclear(String),
}

/// How answers are read.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Meaning {
    Api,
    /// A page of the API: others are sent to sign in.
    Page,
    /// The way to a workspace's host.
    Opening,
    App,
    /// Share page and handoffs.
    HandedOn,
    Upgrade,
}

impl Meaning {
    pub(crate) fn of(self, answer: &Answer) -> Outcome {
        let refused = matches!(answer.status, 401 | 403 | 404 | 410);
        let to_sign_in = answer.status == 303
            && (answer.location().starts_with("/sign-in") || answer.location().contains("/open?host="));
        let let_in = match self {
            Self::Api => (200..300).contains(&answer.status),
            Self::Page => answer.status == 200,
            Self::Opening => answer.status == 303 && answer.location().contains("/.envforge/signed-in?code="),
            Self::App => answer.status == 200 && answer.body == "the app",
            Self::HandedOn => answer.status == 303 && !to_sign_in,
            Self::Upgrade => answer.status == 101,
        };
        let told: String =
            format!("{} {} {}", answer.status, answer.location(), answer.body).chars().take(400).collect();
        match (let_in, refused || to_sign_in) {
            (true, false) => Outcome::LetIn,
            (false, true) => Outcome::Refused(told),
            _ => Outcome::Unclear(told),
        }
    }
}

pub(crate) enum Ask {
    Http(Request, Meaning),
    /// Works once; the answer holds the next one.
    Refresh(Arc<Mutex<RefreshToken>>),
    /// The real program, as the person left it after signing in.
    Cli {
        args: &'static [&'static str],
        credentials: Vec<u8>,
        dir: PathBuf,
    },
}

pub(crate) struct RefreshToken {
    pub(crate) newest: String,
    /// The one before it.
    pub(crate) spent: Option<String>,
}

pub(crate) struct Probe {
    /// Of the product, for the summary.
    pub(crate) surface: &'static str,
    pub(crate) what: String,
    pub(crate) stands_on: Vec<Ground>,
    /// Can be asked a single time: that the like of it is accepted is known from the one before.
    pub(crate) once: bool,
    ask: Ask,
    /// Kept open from before the revocation, to each process that could answer.
    connections: Vec<Mutex<Connection>>,
}

/// Connections of one probe to one process.
const CONNECTIONS: usize = 2;

impl Probe {
    pub(crate) fn new(
        surface: &'static str,
        what: impl Into<String>,
        stands_on: &[Ground],
        ask: Ask,
        nodes: &[SocketAddr],
        from: Ipv4Addr,
    ) -> Self {
        let nodes = nodes.iter().flat_map(|node| [*node; CONNECTIONS]);
        Self {
            surface,
            what: what.into(),
            stands_on: stands_on.to_vec(),
            once: false,
            ask,
            connections: nodes.map(|node| Mutex::new(Connection::new(node, from))).collect(),
        }
    }

    pub(crate) fn once(mut self) -> Self {
        self.once = true;
        self
    }

    pub(crate) fn is_slow(&self) -> bool {
        matches!(self.ask, Ask::Cli { .. })
    }

    /// Asks over one of the connections; answers too whether it was open before.
    pub(crate) async fn ask(&self, site: &Site, rng: &mut StdRng) -> (Outcome, bool) {
        let connection = &self.connections[rng.random_range(0..self.connections.len())];
        match &self.ask {
            Ask::Http(request, meaning) => {
                let (answer, kept) = connection.lock().await.send(request).await;
                (meaning.of(&answer), kept)
            }
            Ask::Refresh(token) => {
                let mut token = token.lock().await;
                let request = site.api("POST", "/v1/auth/refresh").json(&json!({ "refresh_token": token.newest }));
                let (answer, kept) = connection.lock().await.send(&request).await;
                let outcome = Meaning::Api.of(&answer);
                if outcome == Outcome::LetIn {
                    let next = text(&answer.json(), "refresh_token");
                    token.spent = Some(std::mem::replace(&mut token.newest, next));
                }
                (outcome, kept)
            }
            Ask::Cli { args, credentials, dir } => (run(site, args, credentials, dir).await, false),
        }
    }

    /// Through so many of its connections once: from now on they are open.
    pub(crate) async fn open(&self, site: &Site, connections_max: usize) -> Vec<Outcome> {
        let mut outcomes = Vec::new();
        if let Ask::Http(request, meaning) = &self.ask {
            for connection in self.connections.iter().take(connections_max) {
                outcomes.push(meaning.of(&connection.lock().await.send(request).await.0));
            }
        } else {
            let mut rng = rand::SeedableRng::seed_from_u64(0);
            outcomes.push(self.ask(site, &mut rng).await.0);
        }
        outcomes
    }
}

/// A program that was told that its session is over may forget it: each run finds what there was before.
async fn run(site: &Site, args: &[&str], credentials: &[u8], dir: &std::path::Path) -> Outcome {
    static RUNS: AtomicUsize = AtomicUsize::new(0);
    let own = dir.join(format!("run-{}", RUNS.fetch_add(1, Ordering::Relaxed)));
    std::fs::create_dir_all(&own).unwrap();
    std::fs::write(own.join("credentials.json"), credentials).unwrap();
    let output = cli(site, &own, args).stdin(Stdio::null()).output().await.unwrap();
    match output.status.code() {
        Some(0) => Outcome::LetIn,
        code => {
            let told = format!("exit code {code:?}: {}", String::from_utf8_lossy(&output.stderr));
            if matches!(code, Some(3 | 4)) { Outcome::Refused(told) } else { Outcome::Unclear(told) }
        }
    }
}

/// The real program, with a folder for what it keeps.
pub(crate) fn cli(site: &Site, dir: &std::path::Path, args: &[&str]) -> tokio::process::Command {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_envforge"));
    command.args(args).env("ENVFORGE_CONFIG_DIR", dir).env("ENVFORGE_API", &site.api_url).env_remove("ENVFORGE_ORG");
    command.current_dir(dir).kill_on_drop(true);
    command
}

/// Probes are asked by many tasks at once.
pub(crate) type Probes = Vec<Arc<Probe>>;
