//! A member with everything that one can hold: sessions on each surface, a session on a workspace's host, a link with its
//! reviewer, a service token, open WebSockets and an open stream of events.
//!
//! Not here: what is taken away (`kinds`).

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::sync::Mutex;

use crate::probe::{Ask, Ground, Meaning, Place, Probe, Probes, RefreshToken, cli};
use crate::site::{PASSWORD, Site, Workspace, text};
use crate::wire::{Request, Socket, Stream};

/// Grounds that were taken away.
pub(crate) type Taken = BTreeSet<Ground>;

pub(crate) fn stands(on: &[Ground], taken: &Taken) -> bool {
    !on.iter().any(|ground| taken.contains(ground))
}

/// Something open, and what it stands on.
pub(crate) struct Held<T> {
    pub(crate) what: &'static str,
    pub(crate) stands_on: Vec<Ground>,
    pub(crate) open: T,
}

pub(crate) struct Link {
    pub(crate) number: usize,
    pub(crate) id: String,
    share_path: String,
    cookie: String,
}

pub(crate) struct Token {
    pub(crate) number: usize,
    pub(crate) slug: String,
    secret: String,
}

pub(crate) struct Person {
    pub(crate) number: usize,
    pub(crate) email: String,
    pub(crate) password: String,
    pub(crate) user: String,
    /// The team by way of which they hold their role, if they do not hold it themselves.
    pub(crate) team: Option<String>,
    /// Everybody comes from an address of their own.
    pub(crate) from: Ipv4Addr,
    /// Where their links and their session on a host lead.
    pub(crate) workspace: Workspace,
    dir: PathBuf,
    /// Access and refresh token.
    pub(crate) api: Option<(String, Arc<Mutex<RefreshToken>>)>,
    /// What the command line keeps.
    pub(crate) cli: Option<Vec<u8>>,
    pub(crate) console: Option<String>,
    host: Option<String>,
    pub(crate) link: Option<Link>,
    pub(crate) token: Option<Token>,
    pub(crate) sockets: Vec<Held<Socket>>,
    pub(crate) streams: Vec<Held<Stream>>,
}

/// Numbers of links and tokens.
static NEXT: AtomicUsize = AtomicUsize::new(0);

fn next_number() -> usize {
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Person {
    /// Somebody who holds nothing yet, not even an account.
    pub(crate) fn nobody(site: &Site, number: usize, workspace: &Workspace) -> Self {
        let dir = site.dir.join(format!("person-{number}"));
        std::fs::create_dir_all(&dir).unwrap();
        Self {
            email: format!("person-{number}@example.org"),
            password: PASSWORD.to_owned(),
            user: String::new(),
            team: None,
            from: Ipv4Addr::new(127, 0, 1, u8::try_from(number).unwrap() + 1),
            workspace: workspace.clone(),
            number,
            dir,
            api: None,
            cli: None,
            console: None,
            host: None,
            link: None,
            token: None,
            sockets: Vec::new(),
            streams: Vec::new(),
        }
    }

    pub(crate) async fn hire(site: &Site, number: usize, through_a_team: bool, workspace: &Workspace) -> Self {
        let mut person = Self::nobody(site, number, workspace);
        person.team = through_a_team.then(|| format!("team-{number}"));
        person.join(site).await;
        if through_a_team {
            person.make_team(site).await;
        }
        person.give_role(site).await;
        person
    }

    /// Becomes a member, for the first time or again.
    pub(crate) async fn join(&mut self, site: &Site) {
        let new = json!({ "email": self.email, "name": format!("Person {}", self.number), "password": self.password });
        let added = site.as_owner("POST", "/v1/orgs/acme/members", Some(&new)).await;
        self.user = text(&added.json(), "user");
    }

    pub(crate) async fn make_team(&self, site: &Site) {
        let team = self.team.as_ref().unwrap();
        site.as_owner("POST", "/v1/orgs/acme/teams", Some(&json!({ "slug": team }))).await;
    }

    pub(crate) async fn give_role(&self, site: &Site) {
        let holder = match &self.team {
            Some(team) => {
                let path = format!("/v1/orgs/acme/teams/{team}/members");
                site.as_owner("POST", &path, Some(&json!({ "user": self.user }))).await;
                json!({ "team": team, "role": "admin" })
            }
            None => json!({ "user": self.user, "role": "admin" }),
        };
        site.as_owner("POST", "/v1/orgs/acme/roles", Some(&holder)).await;
    }

    /// Forgets what stood on what was taken.
    pub(crate) fn lose(&mut self, taken: &Taken) {
        let gone = |on: &[Ground]| !stands(on, taken);
        let who = self.number;
        let session = |place| [Ground::Account(who), Ground::Session(who, place)];
        self.api.take_if(|_| gone(&session(Place::Api)));
        self.cli.take_if(|_| gone(&session(Place::Cli)));
        self.console.take_if(|_| gone(&session(Place::Console)));
        let (host, link) = (self.host_grounds(), self.link_grounds());
        self.host.take_if(|_| gone(&host));
        // One that opens no WebSockets any more is of no use to the rounds that follow.
        self.link.take_if(|held| gone(&link) || taken.contains(&Ground::LinkSockets(held.number)));
        let token = self.token_grounds();
        self.token.take_if(|_| gone(&token));
        self.sockets.retain(|held| stands(&held.stands_on, taken));
        self.streams.retain(|held| stands(&held.stands_on, taken));
    }

    fn host_grounds(&self) -> Vec<Ground> {
        let who = self.number;
        let [console, host] = [Place::Console, Place::Host].map(|place| Ground::Session(who, place));
        vec![Ground::Account(who), console, host, Ground::Role(who), Ground::Workspace(self.workspace.number)]
    }

    fn link_grounds(&self) -> Vec<Ground> {
        let who = self.number;
        let link = self.link.as_ref().map(|link| Ground::Link(link.number));
        let issued =
            [Ground::Account(who), Ground::Role(who), Ground::Issuing, Ground::Workspace(self.workspace.number)];
        issued.into_iter().chain(link).collect()
    }

    fn link_socket_grounds(&self) -> Vec<Ground> {
        let link = self.link.as_ref().map(|link| Ground::LinkSockets(link.number));
        self.link_grounds().into_iter().chain([Ground::AllLinkSockets]).chain(link).collect()
    }

    fn token_grounds(&self) -> Vec<Ground> {
        let token = self.token.as_ref().map(|token| Ground::Token(token.number));
        [Ground::Account(self.number), Ground::Role(self.number), Ground::AllTokens].into_iter().chain(token).collect()
    }

    /// Gets whatever they do not hold.
    pub(crate) async fn refit(&mut self, site: &Site) {
        let (api, cli, console) =
            tokio::join!(self.api_session(site), self.cli_session(site), self.console_session(site));
        (self.api, self.cli, self.console) = (Some(api), Some(cli), Some(console));
        if self.host.is_none() {
            self.host = Some(self.enter(site).await);
        }
        if self.link.is_none() {
            self.link = Some(self.new_link(site).await);
        }
        if self.token.is_none() {
            self.token = Some(self.new_token(site).await);
        }
        self.hold_open(site).await;
    }

    async fn api_session(&self, site: &Site) -> (String, Arc<Mutex<RefreshToken>>) {
        if let Some(api) = &self.api {
            return api.clone();
        }
        let login = json!({ "email": self.email, "password": self.password });
        let answer = site.send(&site.api("POST", "/v1/auth/login").json(&login), self.from).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let signed_in = answer.json();
        let refresh = RefreshToken { newest: text(&signed_in, "refresh_token"), spent: None };
        (text(&signed_in, "access_token"), Arc::new(Mutex::new(refresh)))
    }

    async fn cli_session(&self, site: &Site) -> Vec<u8> {
        if let Some(cli) = &self.cli {
            return cli.clone();
        }
        let dir = self.dir.join("cli");
        std::fs::create_dir_all(&dir).unwrap();
        let args = ["login", "--api", &site.api_url, "--email", &self.email, "--password-stdin"];
        let mut command = cli(site, &dir, &args);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(format!("{}\n", self.password).as_bytes()).await.unwrap();
        let output = child.wait_with_output().await.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        std::fs::read(dir.join("credentials.json")).unwrap()
    }

    /// Their command line.
    pub(crate) fn command(&self, site: &Site, args: &[&str]) -> Command {
        cli(site, &self.dir.join("cli"), args)
    }

    async fn console_session(&self, site: &Site) -> String {
        if let Some(console) = &self.console {
            return console.clone();
        }
        let form = format!("email={}&password={}", encoded(&self.email), encoded(&self.password));
        let request = site.api("POST", "/sign-in").navigation("same-origin").with("origin", &site.api_url).form(form);
        let answer = site.send(&request, self.from).await;
        assert_eq!(answer.status, 303, "{answer:?}");
        answer.cookie()
    }

    /// Opens the workspace; answers the cookie of the session on its host.
    pub(crate) async fn enter(&self, site: &Site) -> String {
        let (kept, arrival) = self.way_to_host(site).await;
        let arrived = site.send_to_gateway(&self.arrival(site, &kept, &arrival), self.from).await;
        assert_eq!(arrived.status, 303, "{arrived:?}");
        arrived.cookie()
    }

    /// From a workspace's host to the API and back: what the browser keeps, and where it is sent.
    pub(crate) async fn way_to_host(&self, site: &Site) -> (String, String) {
        let asked = site.app("GET", &self.workspace.label, "/").navigation("none");
        let sent = site.send_to_gateway(&asked, self.from).await;
        assert_eq!(sent.status, 303, "{sent:?}");
        let open =
            self.at_console(site, "GET", sent.location().trim_start_matches(&site.api_url)).navigation("cross-site");
        let opened = site.send(&open, self.from).await;
        assert_eq!(Meaning::Opening.of(&opened), crate::probe::Outcome::LetIn, "{opened:?}");
        (sent.cookie(), path_of(opened.location()))
    }

    pub(crate) fn arrival(&self, site: &Site, kept: &str, path: &str) -> Request {
        site.app("GET", &self.workspace.label, path).navigation("cross-site").with("cookie", kept)
    }

    /// A request of the browser that is signed in at the API.
    pub(crate) fn at_console(&self, site: &Site, method: &'static str, path: &str) -> Request {
        let request = site.api(method, path).with("cookie", self.console.as_ref().unwrap());
        if method == "GET" { request } else { request.with("origin", &site.api_url) }
    }

    /// A request of the person's program.
    pub(crate) fn at_api(&self, site: &Site, method: &'static str, path: &str) -> Request {
        site.api(method, path).bearer(&self.api.as_ref().unwrap().0)
    }

    async fn new_link(&self, site: &Site) -> Link {
        let path = format!("/v1/orgs/acme/workspaces/{}/links", self.workspace.slug);
        let issue = self.at_api(site, "POST", &path).json(&json!({ "service": "web", "label": "review" }));
        let issued = site.send(&issue, self.from).await;
        assert_eq!(issued.status, 201, "{issued:?}");
        let issued = issued.json();
        let share_path = path_of(&text(&issued, "share_url"));
        let redeemed = site.send_to_gateway(&self.way_by_link(site, &share_path).await, self.from).await;
        assert_eq!(redeemed.status, 303, "{redeemed:?}");
        Link { number: next_number(), id: text(&issued, "id"), share_path, cookie: redeemed.cookie() }
    }

    fn share_form(&self, site: &Site, share_path: &str) -> Request {
        let origin = format!("http://{}", site.gateway_name);
        site.share("POST", share_path).navigation("same-origin").with("origin", origin)
    }

    /// A reviewer on the way: the request that opens the session.
    async fn way_by_link(&self, site: &Site, share_path: &str) -> Request {
        let handed = site.send_to_gateway(&self.share_form(site, share_path), self.from).await;
        assert_eq!(handed.status, 303, "{handed:?}");
        site.app("GET", &self.workspace.label, &path_of(handed.location())).navigation("same-site")
    }

    async fn new_token(&self, site: &Site) -> Token {
        let number = next_number();
        let slug = format!("token-{number}");
        let actions = ["workspace.read", "runtime.wake", "member.read", "audit.read"];
        let make = self.at_api(site, "POST", "/v1/orgs/acme/service-tokens");
        let made = site.send(&make.json(&json!({ "slug": slug, "actions": actions })), self.from).await;
        assert_eq!(made.status, 201, "{made:?}");
        Token { number, slug, secret: text(&made.json(), "secret") }
    }

    pub(crate) fn reviewers_cookie(&self) -> String {
        self.link.as_ref().unwrap().cookie.clone()
    }

    pub(crate) fn members_cookie(&self) -> String {
        self.host.clone().unwrap()
    }

    /// One of the sockets, by the gateway at which it is open.
    pub(crate) fn take_socket(&mut self, what: &str, gateway: usize) -> Held<Socket> {
        let of_these = self.sockets.iter().enumerate().filter(|(_, held)| held.what == what);
        let index = of_these.map(|(index, _)| index).nth(gateway).unwrap();
        self.sockets.remove(index)
    }

    async fn hold_open(&mut self, site: &Site) {
        let api = [Ground::Account(self.number), Ground::Session(self.number, Place::Api), Ground::Role(self.number)];
        let console =
            [Ground::Account(self.number), Ground::Session(self.number, Place::Console), Ground::Role(self.number)];
        let follow = "/v1/orgs/acme/events?follow=true";
        for (number, node) in site.apis.iter().enumerate() {
            for (what, grounds, request) in [
                ("stream by a program", &api, self.at_api(site, "GET", follow)),
                ("stream in a browser", &console, self.at_console(site, "GET", follow)),
            ] {
                if self.streams.iter().filter(|held| held.what == what).count() <= number {
                    let open = Stream::open(*node, self.from, &request).await;
                    self.streams.push(Held { what, stands_on: grounds.to_vec(), open });
                }
            }
        }
        let label = &self.workspace.label;
        for (number, node) in site.gateways.iter().enumerate() {
            for (what, grounds, cookie) in [
                ("socket of a member", self.host_grounds(), self.host.as_ref().unwrap()),
                ("socket of a reviewer", self.link_socket_grounds(), &self.link.as_ref().unwrap().cookie),
            ] {
                if self.sockets.iter().filter(|held| held.what == what).count() <= number {
                    let request = site.app("GET", label, "/live").with("cookie", cookie).upgrade();
                    let open = Socket::open(*node, self.from, &request).await;
                    self.sockets.push(Held { what, stands_on: grounds, open });
                }
            }
        }
    }

    /// Every way of asking for something with what they hold.
    pub(crate) async fn probes(&self, site: &Site) -> Probes {
        let who = self.number;
        let mut probes = Vec::new();
        for (surface, place) in [("API", Place::Api), ("console", Place::Console)] {
            let session = [Ground::Account(who), Ground::Session(who, place)];
            let with_role = [&session[..], &[Ground::Role(who)]].concat();
            let giving = [&with_role[..], &[Ground::Issuing]].concat();
            for (grounds, method, path, body) in self.requests(site) {
                let grounds = match grounds {
                    Needs::Session => &session[..],
                    Needs::Role => &with_role,
                    Needs::Issuing => &giving,
                };
                let mut request = match place {
                    Place::Api => self.at_api(site, method, &path),
                    _ => self.at_console(site, method, &path),
                };
                if let Some(body) = body {
                    request = request.json(&body);
                }
                let what = format!("{method} {path}");
                let ask = Ask::Http(request, Meaning::Api);
                probes.push(Probe::new(surface, what, grounds, ask, &site.apis, self.from));
            }
        }
        let api = [Ground::Account(who), Ground::Session(who, Place::Api)];
        let refresh = Ask::Refresh(Arc::clone(&self.api.as_ref().unwrap().1));
        probes.push(Probe::new("API", "refresh", &api, refresh, &site.apis, self.from));
        self.pages(site, &mut probes);
        self.programs(site, &mut probes);
        self.gateway(site, &mut probes).await;
        probes.into_iter().map(Arc::new).collect()
    }

    fn requests(&self, site: &Site) -> Vec<(Needs, &'static str, String, Option<Value>)> {
        let org = |path: &str| format!("/v1/orgs/acme/{path}");
        let check = json!({
            "subject": { "user": site.owner_user }, "action": "runtime.wake", "resource": "workspace/place-0"
        });
        vec![
            (Needs::Session, "GET", "/v1/me".to_owned(), None),
            (Needs::Session, "GET", "/v1/me/sessions".to_owned(), None),
            (Needs::Session, "PATCH", "/v1/me".to_owned(), Some(json!({ "name": format!("Person {}", self.number) }))),
            (Needs::Role, "GET", org("members"), None),
            (Needs::Role, "GET", org("audit?limit=3"), None),
            (Needs::Role, "GET", org("events?from=1&to=4"), None),
            (Needs::Role, "GET", org("workspaces/place-0"), None),
            (Needs::Role, "GET", org("workspaces/place-0/runtime"), None),
            (Needs::Role, "GET", org("service-tokens"), None),
            (Needs::Role, "POST", org("workspaces/place-0/wake"), None),
            (Needs::Role, "POST", "/v1/authz/check".to_owned(), Some(check)),
            (Needs::Role, "POST", org("policy/dry-run"), Some(json!({ "idle_sleep_max_seconds": 7_200 }))),
            (Needs::Issuing, "POST", org("workspaces/place-0/links"), Some(json!({ "service": "web" }))),
        ]
    }

    fn pages(&self, site: &Site, probes: &mut Vec<Probe>) {
        let who = self.number;
        let console = [Ground::Account(who), Ground::Session(who, Place::Console)];
        let home = self.at_console(site, "GET", "/").navigation("none");
        let home = Ask::Http(home, Meaning::Page);
        probes.push(Probe::new("console", "the page of who is signed in", &console, home, &site.apis, self.from));
        let digest = "a1".repeat(32);
        let path = format!("/open?host={}&browser={digest}", self.workspace.label);
        let open = self.at_console(site, "GET", &path).navigation("cross-site");
        let grounds = [&console[..], &[Ground::Role(who), Ground::Workspace(self.workspace.number)]].concat();
        let open = Ask::Http(open, Meaning::Opening);
        probes.push(Probe::new("console", "the way to a workspace", &grounds, open, &site.apis, self.from));
    }

    fn programs(&self, site: &Site, probes: &mut Vec<Probe>) {
        let who = self.number;
        let session = [Ground::Account(who), Ground::Session(who, Place::Cli)];
        let with_role = [&session[..], &[Ground::Role(who)]].concat();
        let runs: [(&[Ground], &'static [&'static str]); 3] = [
            (&session, &["session", "ls", "--json"]),
            (&with_role, &["workspace", "show", "place-0", "--json"]),
            (&with_role, &["audit", "log", "--limit", "2"]),
        ];
        for (grounds, args) in runs {
            let ask = Ask::Cli { args, credentials: self.cli.clone().unwrap(), dir: self.dir.clone() };
            probes.push(Probe::new("CLI", args.join(" "), grounds, ask, &site.apis, self.from));
        }
        let token = self.token.as_ref().unwrap();
        for (method, path) in [
            ("GET", "/v1/orgs/acme/workspaces/place-0"),
            ("GET", "/v1/orgs/acme/members"),
            ("GET", "/v1/orgs/acme/events?from=1&to=4"),
            ("POST", "/v1/orgs/acme/workspaces/place-0/wake"),
        ] {
            let ask = Ask::Http(site.api(method, path).bearer(&token.secret), Meaning::Api);
            let what = format!("{method} {path}");
            probes.push(Probe::new("service token", what, &self.token_grounds(), ask, &site.apis, self.from));
        }
    }

    async fn gateway(&self, site: &Site, probes: &mut Vec<Probe>) {
        let (label, link) = (&self.workspace.label, self.link.as_ref().unwrap());
        let nodes = &site.gateways;
        let (member, reviewer) = (self.host_grounds(), self.link_grounds());
        for (who, grounds, sockets, cookie) in [
            ("a member", &member, &member, self.host.as_ref().unwrap()),
            ("a reviewer", &reviewer, &self.link_socket_grounds(), &link.cookie),
        ] {
            for (what, request) in [
                ("a page", site.app("GET", label, "/page").navigation("none")),
                ("a script", site.app("GET", label, "/data").fetch()),
                ("a form", site.form_of_app(label)),
            ] {
                let ask = Ask::Http(request.with("cookie", cookie), Meaning::App);
                probes.push(Probe::new("gateway HTTP", format!("{what} of {who}"), grounds, ask, nodes, self.from));
            }
            let upgrade = site.app("GET", label, "/live").with("cookie", cookie).upgrade();
            let ask = Ask::Http(upgrade, Meaning::Upgrade);
            probes.push(Probe::new("gateway WebSocket", format!("of {who}"), sockets, ask, nodes, self.from));
        }
        let share = Ask::Http(self.share_form(site, &link.share_path), Meaning::HandedOn);
        probes.push(Probe::new("share page", "its form", &reviewer, share, nodes, self.from));
        // On the way when the right ends: what is minted works once.
        let (kept, arrival) = self.way_to_host(site).await;
        let ask = Ask::Http(self.arrival(site, &kept, &arrival), Meaning::HandedOn);
        let host = Ground::Session(self.number, Place::Host);
        let minted: Vec<_> = member.iter().copied().filter(|ground| *ground != host).collect();
        probes.push(Probe::new("gateway HTTP", "a member's handoff", &minted, ask, nodes, self.from).once());
        let ask = Ask::Http(self.way_by_link(site, &link.share_path).await, Meaning::HandedOn);
        probes.push(Probe::new("share page", "a reviewer's handoff", &reviewer, ask, nodes, self.from).once());
    }
}

/// What a request to the API needs besides an account.
enum Needs {
    Session,
    Role,
    Issuing,
}

/// As a form writes a value.
fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

/// The path of an absolute address.
fn path_of(url: &str) -> String {
    let rest = url.split_once("://").unwrap_or_else(|| panic!("{url} is not absolute")).1;
    format!("/{}", rest.split_once('/').map_or("", |(_, path)| path))
}
