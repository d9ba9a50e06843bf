//! The HTTP client of EnvForge's API: bearer tokens renewed when they expire, one idempotency key per write kept across
//! retries, reads at least as fresh as this command's own writes, bounded waits and bodies.
//!
//! Not here: what the endpoints are; each noun asks for its own.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use envforge_domain::secret::Secret;
use jiff::Timestamp;
use reqwest::header::{
    ACCEPT, AUTHORIZATION, CONNECTION, CONTENT_TYPE, DATE, HeaderMap, HeaderValue, RETRY_AFTER, UPGRADE,
};
use reqwest::{Method, Response, StatusCode, Upgraded};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::credentials::{Account, Credentials};
use super::failure::Failure;
use super::instant::Instants;
use super::lines::Lines;
use super::positions::Positions;
use super::problem::Problem;
use super::reauthentication;
use super::settings::{Api, Settings, Source};

/// What sessions of this program are called.
pub(crate) const CLIENT: &str = concat!("envforge-cli/", env!("CARGO_PKG_VERSION"));
const CONNECT_WAIT_MAX: Duration = Duration::from_secs(5);
/// Longer than the server itself takes before it gives up and says so.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(35);
const ANSWER_BYTES_MAX: usize = 32 << 20;
/// Pauses before the second, third and fourth attempt; each is shortened by up to half at random.
const RETRY_PAUSES_MS: [u64; 3] = [200, 800, 2_500];
/// A server that asks for more patience than this is answered with an error.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(10);
/// An access token with less time left than this is renewed before it is used.
const RENEW_BEFORE_MS: u64 = 30_000;
/// Most that one page of a list is asked for.
const PAGE_MAX: usize = 100;
/// Empty pages in a row that are followed: what matches little in a very long audit is looked for a page at a time.
const EMPTY_PAGES_MAX: u32 = 100;

/// A host's machine is on its way up.
pub(super) const HOST_STARTING: &str = "host_starting";

/// Query parameters. A value that is `None` is left out.
pub(crate) type Query<'a> = [(&'a str, Option<String>)];

/// One client for the run of one command.
pub(crate) struct Client {
    api: Api,
    api_source: Source,
    http: reqwest::Client,
    credentials: Credentials,
    instants: Instants,
    positions: Positions,
    /// Position of the last write, of this command or of the one just before; reads ask to be at least that fresh.
    position: Cell<Option<u64>>,
    /// Whether the API has answered before: then a refused connection may be a restart, worth waiting for.
    reached: Cell<bool>,
    /// Held while tokens are exchanged, so that Ctrl-C waits for the new ones to be stored.
    exchanging: Arc<tokio::sync::Mutex<()>>,
    /// Whether somebody may be asked for their password in the middle of a command.
    may_ask: bool,
}

/// An answer that is no error.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// `null` where the answer has no body.
    pub body: Value,
    /// The server's clock.
    pub date: Option<Timestamp>,
}

impl Answer {
    /// The body as what a noun needs of it.
    pub(crate) fn view<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        view(&self.body)
    }
}

/// `value` as what a noun needs of it.
pub(crate) fn view<T: DeserializeOwned>(value: &Value) -> Result<T, Failure> {
    T::deserialize(value).map_err(|error| {
        Failure::local(
            format!("the API's answer cannot be read: {error}"),
            "the API and this envforge are of different versions; `envforge doctor` shows both",
        )
    })
}

#[derive(Clone)]
struct Call {
    method: Method,
    url: reqwest::Url,
    body: Option<Value>,
    idempotency_key: Option<String>,
    signed: bool,
    accept: &'static str,
    /// Of a WebSocket: its subprotocol and its key.
    upgrade: Option<(&'static str, String)>,
    /// `None` for streams that stay open.
    answer_within: Option<Duration>,
}

impl Client {
    pub(crate) fn new(settings: &Settings, instants: Instants) -> Result<Self, Failure> {
        let mut headers = HeaderMap::new();
        headers.insert("envforge-surface", HeaderValue::from_static("cli"));
        let mut http = reqwest::Client::builder()
            .user_agent(CLIENT)
            .default_headers(headers)
            // A redirect could carry tokens to another host.
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_WAIT_MAX)
            .tcp_keepalive(Duration::from_secs(30));
        if settings.api.is_loopback() {
            http = http.no_proxy();
        }
        if settings.api.base().scheme() == "http" {
            // Reading the system's certificates takes milliseconds that nobody needs here.
            http = http.tls_certs_only([]);
        }
        let http = http.build().map_err(|error| Failure::local(format!("no HTTP client: {}", cause(&error)), ""))?;
        let positions = Positions::in_folder(&settings.config_dir);
        let position = positions.recent(&settings.api.key(), instants.now_unix_millis());
        Ok(Self {
            api: settings.api.clone(),
            api_source: settings.api_source,
            http,
            credentials: Credentials::in_folder(&settings.config_dir, settings.keep),
            instants,
            positions,
            position: Cell::new(position),
            reached: Cell::new(false),
            exchanging: Arc::default(),
            may_ask: false,
        })
    }

    /// Whether somebody may be asked for their password in the middle of a command.
    pub(crate) fn asking(mut self, may_ask: bool) -> Self {
        self.may_ask = may_ask;
        self
    }

    pub(crate) fn api(&self) -> &Api {
        &self.api
    }

    pub(crate) fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    /// Who is signed in, without asking the server.
    ///
    /// # Errors
    /// `SignedOut` where nobody is.
    pub(crate) async fn account(&self) -> Result<Account, Failure> {
        self.credentials.account(&self.api.key()).await?.ok_or_else(|| self.signed_out("you are not signed in"))
    }

    pub(crate) async fn get(&self, segments: &[&str], query: &Query<'_>) -> Result<Answer, Failure> {
        self.answer(self.call(Method::GET, segments, query, None)).await
    }

    /// A read that needs nobody signed in.
    pub(crate) async fn get_unsigned(&self, segments: &[&str]) -> Result<Answer, Failure> {
        let mut call = self.call(Method::GET, segments, &[], None);
        call.signed = false;
        self.answer(call).await
    }

    /// A change: one idempotency key, however often it has to be sent. `null` stands for no body.
    pub(crate) async fn write(&self, method: Method, segments: &[&str], body: Value) -> Result<Answer, Failure> {
        self.answer(self.call(method, segments, &[], (!body.is_null()).then_some(body))).await
    }

    pub(crate) async fn post(&self, segments: &[&str], body: Value) -> Result<Answer, Failure> {
        self.write(Method::POST, segments, body).await
    }

    /// A change by somebody who is not signed in, sent once: it carries secrets and has no key.
    pub(crate) async fn post_unsigned(&self, segments: &[&str], body: Value) -> Result<Answer, Failure> {
        let mut call = self.call(Method::POST, segments, &[], Some(body));
        call.signed = false;
        call.idempotency_key = None;
        self.answer(call).await
    }

    pub(crate) async fn delete(&self, segments: &[&str], query: &Query<'_>) -> Result<Answer, Failure> {
        self.answer(self.call(Method::DELETE, segments, query, None)).await
    }

    /// Up to `limit` items of a list over as many pages as it takes, in the shape of one page.
    pub(crate) async fn list(&self, segments: &[&str], query: &Query<'_>, limit: usize) -> Result<Value, Failure> {
        let mut items: Vec<Value> = Vec::new();
        let mut after: Option<String> = None;
        let mut empty_pages = 0;
        loop {
            let wanted = (limit - items.len()).min(PAGE_MAX);
            let mut page_query = query.to_vec();
            page_query.push(("limit", Some(wanted.to_string())));
            page_query.push(("after", after.clone()));
            let page: Page = self.get(segments, &page_query).await?.view()?;
            empty_pages = if page.items.is_empty() { empty_pages + 1 } else { 0 };
            items.extend(page.items);
            // A server that repeats a cursor or answers empty pages without end would keep us here for ever.
            let stuck = empty_pages > EMPTY_PAGES_MAX || page.next == after;
            after = page.next;
            if after.is_none() || stuck || items.len() >= limit {
                items.truncate(limit);
                return Ok(json!({ "items": items, "next": after }));
            }
        }
    }

    /// An answer of JSON Lines, line by line.
    pub(crate) async fn lines(&self, segments: &[&str], query: &Query<'_>) -> Result<Lines, Failure> {
        let mut call = self.call(Method::GET, segments, query, None);
        call.accept = "application/jsonl, application/x-ndjson;q=0.9, application/problem+json;q=0.8";
        call.answer_within = None;
        let response = self.send(call).await?;
        Ok(Lines::of(response))
    }

    /// An answer whose bytes are taken as they come.
    pub(crate) async fn stream(&self, segments: &[&str], query: &Query<'_>) -> Result<Response, Failure> {
        let mut call = self.call(Method::GET, segments, query, None);
        call.accept = "text/plain, application/problem+json;q=0.8";
        call.answer_within = None;
        self.send(call).await
    }

    /// A WebSocket's connection, from which its first frame comes.
    pub(crate) async fn upgrade(&self, segments: &[&str], protocol: &'static str) -> Result<Upgraded, Failure> {
        let mut call = self.call(Method::GET, segments, &[], None);
        let key = generate_key();
        let expected = derive_accept_key(key.as_bytes());
        call.upgrade = Some((protocol, key));
        call.answer_within = None;
        let sent = tokio::time::timeout(ANSWER_WAIT_MAX, self.send(call)).await;
        let response = sent.map_err(|_| {
            let hint = "repeating the command is safe; `envforge doctor` looks at the connection";
            Failure::timed_out(format!("the API at {} did not answer in time", self.api.key()), hint)
        })??;
        let accepted = response.status() == StatusCode::SWITCHING_PROTOCOLS
            && response.headers().get("sec-websocket-accept").is_some_and(|accept| accept == expected.as_str());
        if !accepted {
            let hint = "something between here and the API takes no WebSockets, or the API is of another version";
            return Err(Failure::local(format!("{} opened no WebSocket", self.api.base()), hint));
        }
        response.upgrade().await.map_err(|error| self.unreachable(&error))
    }

    /// Exchanges e-mail address and password for tokens and stores them.
    pub(crate) async fn login(&self, email: &str, password: &Secret) -> Result<(Account, Value), Failure> {
        self.credentials.can_keep().await?;
        let body = json!({ "email": email, "password": password.expose(), "client": CLIENT });
        let mut call = self.call(Method::POST, &["v1", "auth", "login"], &[], Some(body));
        call.signed = false;
        // Nothing to keep apart: a login that is sent twice opens two sessions, one of which nobody holds.
        call.idempotency_key = None;
        let sent_at_ms = self.instants.now_unix_millis();
        self.forget_position();
        let answer = self.answer(call).await?;
        self.keep(answer, Some(email), sent_at_ms).await
    }

    /// What was read as somebody else says nothing about whoever signs in now.
    pub(crate) fn forget_position(&self) {
        self.positions.forget(&self.api.key());
    }

    /// Stores the tokens of somebody who has just signed in. Answers the rest, to be shown.
    pub(crate) async fn keep(
        &self,
        answer: Answer,
        email: Option<&str>,
        sent_at_ms: u64,
    ) -> Result<(Account, Value), Failure> {
        let account = self.store(&answer.body, email, sent_at_ms).await?;
        Ok((account, without_tokens(answer.body)))
    }

    /// Changes the password of whoever is signed in, and stores the tokens of the session that follows.
    pub(crate) async fn change_password(&self, present: &Secret, new: &Secret) -> Result<Value, Failure> {
        let email = self.account().await?.email;
        self.credentials.can_keep().await?;
        let body = json!({ "password": present.expose(), "new_password": new.expose() });
        let mut call = self.call(Method::POST, &["v1", "auth", "change-password"], &[], Some(body));
        // Its answer opens a session: it is not kept for a repetition, which needs none either.
        call.idempotency_key = None;
        let sent_at_ms = self.instants.now_unix_millis();
        let mut answer = self.answer(call).await?.body;
        self.store(&answer["signed_in"], Some(&email), sent_at_ms).await?;
        answer["signed_in"] = without_tokens(answer["signed_in"].take());
        Ok(answer)
    }

    /// Keeps the tokens of a session that was just opened. `email`: where the answer names none.
    async fn store(&self, answer: &Value, email: Option<&str>, sent_at_ms: u64) -> Result<Account, Failure> {
        let tokens: LoginAnswer = view(answer)?;
        let account = Account {
            access_token: Secret::new(tokens.access_token),
            refresh_token: Secret::new(tokens.refresh_token),
            access_expires_at_unix_ms: sent_at_ms.saturating_add(tokens.expires_in.saturating_mul(1_000)),
            email: tokens.user.email.unwrap_or_else(|| email.unwrap_or_default().to_owned()),
            user: tokens.user.id,
            org: tokens.org.id,
            org_slug: tokens.org.slug,
        };
        self.credentials.lock().await?.put(&self.api.key(), &account).await?;
        Ok(account)
    }

    /// Asks whoever is signed in for their password, and keeps the access token that says so.
    async fn prove_again(&self) -> Result<(), Failure> {
        let account = self.account().await?;
        let password = reauthentication::password(&account.email).await?;
        let body = json!({ "password": password.expose() });
        let mut call = self.call(Method::POST, &["v1", "auth", "reauthenticate"], &[], Some(body));
        call.idempotency_key = None;
        let sent_at_ms = self.instants.now_unix_millis();
        let token = self.access_token().await?;
        let sent = self.send_once(&call, Some(&token)).await;
        let response = sent.map_err(|error| self.unreachable(&error))?;
        if !response.status().is_success() {
            return Err(self.refused(read_problem(response).await));
        }
        let body: Value = serde_json::from_slice(&read_body(response).await?).unwrap_or_default();
        let proved: ProvedAnswer = view(&body)?;
        let locked = self.credentials.lock().await?;
        let account = locked.account(&self.api.key()).await?.ok_or_else(|| self.signed_out("you are not signed in"))?;
        let account = Account {
            access_token: Secret::new(proved.access_token),
            access_expires_at_unix_ms: sent_at_ms.saturating_add(proved.expires_in.saturating_mul(1_000)),
            ..account
        };
        locked.put(&self.api.key(), &account).await
    }

    /// Waits until an exchange of tokens that has begun is stored: giving up in between would end the session.
    pub(crate) async fn settle(&self) {
        // After that long the session is lost anyway.
        let _ = tokio::time::timeout(Duration::from_secs(10), self.exchanging.lock()).await;
    }

    fn call(&self, method: Method, segments: &[&str], query: &Query<'_>, body: Option<Value>) -> Call {
        let mut url = self.api.url(segments);
        let given: Vec<_> = query.iter().filter_map(|(name, value)| Some((name, value.as_ref()?))).collect();
        if !given.is_empty() {
            url.query_pairs_mut().extend_pairs(given);
        }
        // Ids of new things are made of the key's bits: version 7 sorts them by time.
        let idempotency_key = (method != Method::GET).then(|| uuid::Uuid::now_v7().to_string());
        Call {
            method,
            url,
            body,
            idempotency_key,
            signed: true,
            accept: "application/json, application/problem+json",
            upgrade: None,
            answer_within: Some(ANSWER_WAIT_MAX),
        }
    }

    async fn answer(&self, call: Call) -> Result<Answer, Failure> {
        let response = self.send(call).await?;
        let date = response.headers().get(DATE).and_then(http_date);
        let body = read_body(response).await?;
        let body = if body.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&body).map_err(|_| {
                Failure::local(
                    format!("{} answered something that is not JSON", self.api.base()),
                    "check that it is the address of EnvForge's API, not of its console or gateway",
                )
            })?
        };
        Ok(Answer { body, date })
    }

    /// Sends until there is an answer that another attempt would not better. Returns successes alone.
    async fn send(&self, call: Call) -> Result<Response, Failure> {
        let mut renewed = false;
        let mut proved = false;
        let mut attempt = 0;
        loop {
            let token = if call.signed { Some(self.access_token().await?) } else { None };
            let outcome = self.send_once(&call, token.as_ref()).await;
            let (failure, asked_pause) = match outcome {
                Ok(response)
                    if response.status().is_success() || response.status() == StatusCode::SWITCHING_PROTOCOLS =>
                {
                    self.reached.set(true);
                    if call.method != Method::GET {
                        self.remember_position(&response);
                    }
                    return Ok(response);
                }
                Ok(response) => {
                    self.reached.set(true);
                    let asked_pause = retry_after(&response);
                    let problem = read_problem(response).await;
                    if let (401, Some(token), false) = (problem.status, &token, renewed) {
                        renewed = true;
                        self.renew(Some(token)).await?;
                        continue;
                    }
                    let asked_for = problem.code() == "reauthentication_required" && call.signed && !proved;
                    if asked_for && self.may_ask && reauthentication::possible() {
                        proved = true;
                        self.prove_again().await?;
                        // The same request: the API has refused it before it did anything.
                        continue;
                    }
                    let worth_it = match problem.status {
                        // Somebody's lockout is not waited for in silence.
                        429 => call.signed && asked_pause.is_some(),
                        // Whoever asked for it waits for longer, and says so.
                        502..=504 => problem.code() != HOST_STARTING,
                        409 => problem.code() == "contended",
                        _ => false,
                    };
                    let failure = self.refused(problem);
                    if !worth_it {
                        return Err(failure);
                    }
                    (failure, asked_pause)
                }
                Err(error) => {
                    // Without a key a request that may have arrived is not sent again.
                    let safe = call.method == Method::GET || call.idempotency_key.is_some() || error.is_connect();
                    let failure = self.unreachable(&error);
                    if !safe || (error.is_connect() && !self.reached.get()) {
                        return Err(failure);
                    }
                    (failure, None)
                }
            };
            let Some(pause_ms) = RETRY_PAUSES_MS.get(attempt) else { return Err(failure) };
            if asked_pause.is_some_and(|asked| asked > RETRY_AFTER_MAX) {
                return Err(failure);
            }
            attempt += 1;
            tokio::time::sleep(asked_pause.unwrap_or(jittered(*pause_ms))).await;
        }
    }

    async fn send_once(&self, call: &Call, token: Option<&Secret>) -> Result<Response, reqwest::Error> {
        let mut request = self.http.request(call.method.clone(), call.url.clone()).header(ACCEPT, call.accept);
        if let Some(token) = token.and_then(bearer) {
            request = request.header(AUTHORIZATION, token);
        }
        if let Some((protocol, key)) = &call.upgrade {
            request = request.header(CONNECTION, "Upgrade").header(UPGRADE, "websocket");
            request = request.header("sec-websocket-version", "13").header("sec-websocket-key", key);
            request = request.header("sec-websocket-protocol", *protocol);
        }
        if let Some(key) = &call.idempotency_key {
            request = request.header("idempotency-key", key);
        }
        if let (Some(position), true) = (self.position.get(), call.method == Method::GET) {
            request = request.header("envforge-min-position", position.to_string());
        }
        if let Some(body) = &call.body {
            request = request.header(CONTENT_TYPE, "application/json").body(body.to_string());
        }
        match call.answer_within {
            Some(limit) => request.timeout(limit).send().await,
            None => request.send().await,
        }
    }

    fn remember_position(&self, response: &Response) {
        let header = response.headers().get("envforge-position").and_then(|value| value.to_str().ok());
        if let Some(position) = header.and_then(|text| text.parse::<u64>().ok()) {
            self.position.set(self.position.get().max(Some(position)));
            self.positions.remember(&self.api.key(), position, self.instants.now_unix_millis());
        }
    }

    async fn access_token(&self) -> Result<Secret, Failure> {
        let account = self.account().await?;
        if self.has_time_left(&account) { Ok(account.access_token) } else { self.renew(None).await }
    }

    fn has_time_left(&self, account: &Account) -> bool {
        account.access_expires_at_unix_ms > self.instants.now_unix_millis().saturating_add(RENEW_BEFORE_MS)
    }

    /// A new access token. `refused`: the one that the server does not accept any more.
    async fn renew(&self, refused: Option<&Secret>) -> Result<Secret, Failure> {
        let exchange = Exchange {
            api: self.api.clone(),
            http: self.http.clone(),
            credentials: self.credentials.clone(),
            instants: self.instants.clone(),
            refused: refused.cloned(),
        };
        let exchanging = Arc::clone(&self.exchanging);
        // A task of its own: whoever stops waiting (Ctrl-C) must not stop the exchange between the server's rotation of the
        // refresh token and our storing the new one.
        let task = tokio::spawn(async move {
            let _held = exchanging.lock().await;
            exchange.run().await
        });
        let outcome =
            task.await.map_err(|error| Failure::local(format!("renewing the session failed: {error}"), ""))?;
        match outcome? {
            Exchanged::Token(token) => Ok(token),
            Exchanged::Ended => Err(self.signed_out("your session has ended")),
            Exchanged::Refused(problem) => Err(self.refused(problem)),
            Exchanged::Unreachable(error) => Err(self.unreachable(&error)),
        }
    }

    fn refused(&self, problem: Problem) -> Failure {
        Failure::Refused(Box::new(problem))
    }

    fn signed_out(&self, what: &str) -> Failure {
        let address = match self.api_source {
            Source::Given => format!(" --api {}", self.api.key()),
            Source::Profile | Source::Default => String::new(),
        };
        Failure::signed_out(format!("{what} at {}", self.api.key()), format!("sign in: `envforge login{address}`"))
    }

    fn unreachable(&self, error: &reqwest::Error) -> Failure {
        let api = self.api.key();
        if error.is_timeout() {
            return Failure::timed_out(
                format!("the API at {api} did not answer in time"),
                "repeating the command is safe; `envforge doctor` looks at the connection",
            );
        }
        let hint = match self.api_source {
            Source::Default => "start one on this machine with `envforge dev`, or name another: --api URL",
            Source::Given | Source::Profile => {
                "check the address (--api, ENVFORGE_API); `envforge doctor` looks at the connection"
            }
        };
        Failure::unreachable(format!("the API at {api} cannot be reached: {}", cause(error)), hint)
    }
}

/// One use of the refresh token.
struct Exchange {
    api: Api,
    http: reqwest::Client,
    credentials: Credentials,
    instants: Instants,
    refused: Option<Secret>,
}

enum Exchanged {
    Token(Secret),
    Ended,
    Refused(Problem),
    Unreachable(reqwest::Error),
}

impl Exchange {
    async fn run(self) -> Result<Exchanged, Failure> {
        let key = self.api.key();
        // INVARIANT: the refresh token is read and replaced under one lock. It can be used once; two processes that used the
        // same one would end the session.
        let locked = self.credentials.lock().await?;
        let Some(mut account) = locked.account(&key).await? else { return Ok(Exchanged::Ended) };
        let now_ms = self.instants.now_unix_millis();
        let renewed_by_another = match &self.refused {
            Some(refused) => !refused.matches(account.access_token.expose()),
            None => account.access_expires_at_unix_ms > now_ms.saturating_add(RENEW_BEFORE_MS),
        };
        if renewed_by_another {
            return Ok(Exchanged::Token(account.access_token));
        }
        let body = json!({ "refresh_token": account.refresh_token.expose() });
        let request = self.http.post(self.api.url(&["v1", "auth", "refresh"])).timeout(ANSWER_WAIT_MAX);
        let sent = request.header(CONTENT_TYPE, "application/json").body(body.to_string()).send().await;
        let response = match sent {
            Ok(response) => response,
            Err(error) => return Ok(Exchanged::Unreachable(error)),
        };
        if !response.status().is_success() {
            let problem = read_problem(response).await;
            if problem.status == StatusCode::UNAUTHORIZED {
                locked.remove(&key).await?;
                return Ok(Exchanged::Ended);
            }
            return Ok(Exchanged::Refused(problem));
        }
        let body: Value = serde_json::from_slice(&read_body(response).await?).unwrap_or_default();
        let tokens: RefreshAnswer = view(&body)?;
        account.access_token = Secret::new(tokens.access_token);
        account.refresh_token = Secret::new(tokens.refresh_token);
        account.access_expires_at_unix_ms = now_ms.saturating_add(tokens.expires_in.saturating_mul(1_000));
        locked.put(&key, &account).await?;
        Ok(Exchanged::Token(account.access_token))
    }
}

/// An answer that shows whose session it is and no token.
fn without_tokens(mut answer: Value) -> Value {
    if let Some(answer) = answer.as_object_mut() {
        answer.remove("access_token");
        answer.remove("refresh_token");
    }
    answer
}

#[derive(Deserialize)]
struct ProvedAnswer {
    access_token: String,
    /// Seconds.
    expires_in: u64,
}

#[derive(Deserialize)]
struct Page {
    items: Vec<Value>,
    next: Option<String>,
}

#[derive(Deserialize)]
struct LoginAnswer {
    access_token: String,
    refresh_token: String,
    /// Seconds.
    expires_in: u64,
    user: LoginUser,
    org: LoginOrg,
}

#[derive(Deserialize)]
struct LoginUser {
    id: String,
    email: Option<String>,
}

#[derive(Deserialize)]
struct LoginOrg {
    id: String,
    slug: String,
}

#[derive(Deserialize)]
struct RefreshAnswer {
    access_token: String,
    refresh_token: String,
    /// Seconds.
    expires_in: u64,
}

async fn read_body(mut response: Response) -> Result<Vec<u8>, Failure> {
    let mut body = Vec::new();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) if body.len() + chunk.len() <= ANSWER_BYTES_MAX => body.extend_from_slice(&chunk),
            Ok(Some(_)) => {
                return Err(Failure::local(
                    format!("the API's answer is larger than {ANSWER_BYTES_MAX} bytes"),
                    "ask for less: --limit, --from, --to",
                ));
            }
            Ok(None) => return Ok(body),
            Err(error) => {
                return Err(Failure::unreachable(
                    format!("the API's answer broke off: {}", cause(&error)),
                    "repeating the command is safe",
                ));
            }
        }
    }
}

async fn read_problem(response: Response) -> Problem {
    let status = response.status().as_u16();
    let request_id = response.headers().get("envforge-request").and_then(|id| id.to_str().ok()).map(str::to_owned);
    // A problem whose body cannot be read still has its status.
    let body = read_body(response).await.unwrap_or_default();
    Problem::parse(status, request_id, &body)
}

fn retry_after(response: &Response) -> Option<Duration> {
    let seconds = response.headers().get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds))
}

fn http_date(value: &HeaderValue) -> Option<Timestamp> {
    jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(value.to_str().ok()?).ok()
}

fn bearer(token: &Secret) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(&format!("Bearer {}", token.expose())).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Half to all of `ms`, so that many clients do not come back at the same instant.
fn jittered(ms: u64) -> Duration {
    let random = getrandom::u64().unwrap_or(0);
    Duration::from_millis(ms / 2 + random % (ms / 2 + 1))
}

/// The innermost reason: the outer ones say "error sending request".
pub(crate) fn cause(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
