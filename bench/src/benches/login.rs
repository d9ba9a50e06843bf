//! Sign-ins: what one costs beside bcrypt, and what a flood of wrong ones does to everybody else

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use envforge_commands::{Commands, Context as CommandContext, organizations, users};
use envforge_domain::access::{Action, Resource};
use envforge_domain::commit::{Actor, Component, Surface};
use envforge_domain::ids::{OrgId, SessionId, UserId};
use envforge_domain::secret::Secret;
use envforge_domain::session::{LOCAL_ISSUER, OpenSession};
use envforge_domain::time::{Clock as _, Millis};
use envforge_domain::user::{EmailAddress, UserCommand};
use envforge_eventlog::SharedLog;
use envforge_eventlog::sqlite::{Config as LogConfig, SqliteLog};
use envforge_identity::clock::SystemClock;
use envforge_identity::credentials::{Account, Credentials};
use envforge_identity::key_ring::SigningKeys;
use envforge_identity::password::PasswordHasher;
use envforge_identity::self_hosted::LoginAttempt;
use envforge_identity::sessions::SESSION_LIFETIME;
use envforge_identity::sign_in::{Config, Identity};
use envforge_identity::tokens::{Description, Session};
use envforge_projections::{Authorizer, DenialSink, Hot};
use envforge_testkit::TestDir;
use http_body_util::Full;
use hyper::{Request, StatusCode};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::Extent;
use crate::machine::{self, Cores};
use crate::site::{Connection, Site};
use crate::verdict::{Goal, Latencies, Series, Verdicts};

const EMAIL: &str = "owner@example.org";
const PASSWORD: &str = "plum kite engine 7";
/// The least that bcrypt takes: what is beside it is then no rounding error of it.
const COST: u32 = 4;
/// Sign-ins of one round: more would only end the oldest of a person's sessions each time.
const SIGN_INS: u32 = 200;
/// Strangers who guess at the same time, each from an address of their own.
const STRANGERS: u8 = 32;

pub(crate) fn run(cores: &Cores, extent: &Extent, verdicts: &mut Verdicts) -> Result<()> {
    println!(
        "login: {SIGN_INS} sign-ins in this process (bcrypt cost {COST}); then {STRANGERS} strangers guess at `dev`"
    );
    println!("(a sign-in: lockout, credential table, session in the embedded log, tokens; without HTTP)");
    cores.use_all()?;
    let runtime = machine::runtime()?;
    runtime.block_on(async {
        beside_bcrypt(extent, verdicts).await?;
        flood(extent, verdicts).await
    })
}

async fn beside_bcrypt(extent: &Extent, verdicts: &mut Verdicts) -> Result<()> {
    let place = TestDir::new();
    let house = Arc::new(House::build(&place).await?);
    let hasher = PasswordHasher::new(COST, 2, 64)?;
    let hash = hasher.reserve()?.hash(Secret::new(PASSWORD.to_owned())).await?;
    let mut beside = Series::new("CPU of a sign-in beside bcrypt", "ms");
    for _ in 0..extent.rounds {
        let before = machine::own_cpu();
        let (hasher, hash) = (hasher.clone(), hash.clone());
        let comparisons = async move {
            for _ in 0..SIGN_INS {
                hasher.reserve()?.verify(Secret::new(PASSWORD.to_owned()), Some(hash.clone())).await?;
            }
            anyhow::Ok(())
        };
        tokio::spawn(comparisons).await??;
        let bcrypt = machine::own_cpu().saturating_sub(before);
        let before = machine::own_cpu();
        let signing_in = Arc::clone(&house);
        // On a worker of the runtime, as requests are.
        let sign_ins = async move {
            for _ in 0..SIGN_INS {
                signing_in.sign_in().await?;
            }
            anyhow::Ok(())
        };
        tokio::spawn(sign_ins).await??;
        let whole = machine::own_cpu().saturating_sub(before);
        beside.push(whole.saturating_sub(bcrypt).as_secs_f64() * 1_000.0 / f64::from(SIGN_INS));
    }
    println!("{beside}");
    verdicts.judge("a sign-in beside bcrypt, CPU", beside.median(), "ms", Goal::AtMost(1.0));
    Ok(())
}

/// What stands between a request to sign in and its answer.
struct House {
    identity: Identity,
    commands: Commands,
    authorizer: Authorizer,
    hot: Arc<Hot>,
    account: Account,
    stop: CancellationToken,
}

impl Drop for House {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl House {
    async fn build(place: &TestDir) -> Result<Self> {
        let log: SharedLog = Arc::new(SqliteLog::open(LogConfig::new(place.path().join("log"))).await?);
        let stop = CancellationToken::new();
        let hot = Hot::start(Arc::clone(&log), stop.clone());
        let authorizer = Authorizer::new(Arc::clone(&log), Arc::clone(&hot), Arc::new(DenialSink::default()));
        let config = Config {
            issuer: "http://bench.test".into(),
            audience: "envforge".into(),
            keys: SigningKeys::Hs256 { key_file: place.path().join("access.key") },
            bcrypt_cost: COST,
            hash_workers: 2,
            hash_waiting_max: 64,
        };
        let identity = Identity::open(config, Credentials::open_sqlite(&place.path().join("credentials")).await?)?;
        let account = Account {
            user: UserId::from_uuid(Uuid::now_v7()),
            org: OrgId::from_uuid(Uuid::now_v7()),
            email: EmailAddress::parse(EMAIL)?,
        };
        let now = SystemClock.now();
        let password = Some(Secret::new(PASSWORD.to_owned()));
        identity.self_hosted().bootstrap(account.clone(), password, now).await?;
        let house = Self { identity, commands: Commands::new(log), authorizer, hot, account, stop };
        house.found().await?;
        Ok(house)
    }

    async fn found(&self) -> Result<()> {
        let (Account { user, org, email }, now) = (&self.account, SystemClock.now());
        let create = UserCommand::Create {
            user: *user,
            issuer: LOCAL_ISSUER.to_owned(),
            subject: user.to_string(),
            email: email.clone(),
            name: "Owner".to_owned(),
        };
        let (setup, surface) = (Actor::System(Component::Setup), Surface::Cli);
        let on = Resource::Organization(*org);
        let permit = self.authorizer.permit(setup, None, Action::UserCreate, on, surface, now).await?;
        users::change(&self.commands, &permit, &CommandContext::new(now), *user, &create).await?;
        let permit = self.authorizer.permit(setup, None, Action::OrganizationCreate, on, surface, now).await?;
        let context = CommandContext::new(now);
        let (slug, name) = ("acme".parse()?, "Acme".to_owned());
        let done = organizations::create(&self.commands, &permit, &context, *org, slug, name, *user).await?;
        self.hot.wait_for(done.position, Duration::from_secs(10)).await?;
        Ok(())
    }

    async fn sign_in(&self) -> Result<()> {
        let now = SystemClock.now();
        let attempt = LoginAttempt {
            email: EMAIL.to_owned(),
            password: Secret::new(PASSWORD.to_owned()),
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
        };
        let account = self.identity.self_hosted().login(attempt, now).await?;
        let session = Session {
            user: account.user,
            org: account.org,
            session: SessionId::from_uuid(Uuid::now_v7()),
            expires_at: now.plus(SESSION_LIFETIME),
        };
        let opened = OpenSession::of_local_account(Surface::Api, now, session.expires_at);
        let resource = Resource::User { org: account.org, user: account.user };
        let actor = Actor::System(Component::Identity);
        let permit =
            self.authorizer.permit(actor, None, Action::UserRecordSession, resource, Surface::Api, now).await?;
        let open = UserCommand::OpenSession { session: session.session, opened: opened.clone(), now };
        let done = users::change(&self.commands, &permit, &CommandContext::new(now), account.user, &open).await?;
        self.hot.wait_for(done.position, Duration::from_secs(10)).await?;
        self.identity.sessions().open(&session, &opened, &Description::default(), now).await?;
        Ok(())
    }
}

async fn flood(extent: &Extent, verdicts: &mut Verdicts) -> Result<()> {
    println!("\n`envforge dev`: the owner reads their profile while {STRANGERS} strangers guess passwords");
    let site = Site::dev().await?;
    let mut calm = Series::new("p99 of a read, nobody else", "ms");
    let mut flooded = Series::new("p99 of a read, during the flood", "ms");
    let (asked, refused) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    for _ in 0..extent.rounds {
        calm.push(reads(&site, extent).await?);
        let over = Arc::new(AtomicBool::new(false));
        let mut strangers = tokio::task::JoinSet::new();
        for number in 0..STRANGERS {
            let (over, asked, refused) = (Arc::clone(&over), Arc::clone(&asked), Arc::clone(&refused));
            let address = site.api();
            strangers.spawn(guess(address, number, over, asked, refused));
        }
        flooded.push(reads(&site, extent).await?);
        over.store(true, Ordering::Release);
        while let Some(done) = strangers.join_next().await {
            done??;
        }
    }
    println!("{calm}\n{flooded}");
    let (asked, refused) = (asked.load(Ordering::Relaxed), refused.load(Ordering::Relaxed));
    println!("  {asked} wrong sign-ins, {refused} of them answered 429");
    let share = if asked == 0 { 0.0 } else { refused as f64 / asked as f64 * 100.0 };
    verdicts.judge("wrong sign-ins of the flood answered 429", share, "%", Goal::AtLeast(50.0));
    let ratio = flooded.median() / calm.median().max(0.001);
    verdicts.judge("p99 of a read, flooded / calm", ratio, "x", Goal::AtMost(2.0));
    Ok(())
}

/// The p99 of the owner's reads, one after the other for one turn.
async fn reads(site: &Site, extent: &Extent) -> Result<f64> {
    let mut connection = site.api_connection().await?;
    let (mut latencies, began) = (Vec::new(), Instant::now());
    while began.elapsed() < extent.turn() {
        let asked = Instant::now();
        site.call_over(&mut connection, "GET", "/v1/me", None).await.context("the owner's read")?;
        latencies.push(asked.elapsed());
    }
    Ok(Latencies::new(latencies).percentile_ms(99.0))
}

async fn guess(
    api: std::net::SocketAddr,
    number: u8,
    over: Arc<AtomicBool>,
    asked: Arc<AtomicU64>,
    refused: Arc<AtomicU64>,
) -> Result<()> {
    let mut connection = Connection::open(api, Ipv4Addr::new(127, 0, 2, number + 1)).await?;
    while !over.load(Ordering::Acquire) {
        let body = json!({ "email": format!("nobody{number}@example.org"), "password": "a wrong guess 1" }).to_string();
        let request = Request::builder().method("POST").uri("/v1/auth/login").header("host", api.to_string());
        let request = request.header("content-type", "application/json").body(Full::from(body))?;
        let answer = connection.send(request).await?;
        asked.fetch_add(1, Ordering::Relaxed);
        match answer.status {
            StatusCode::UNAUTHORIZED => {}
            StatusCode::TOO_MANY_REQUESTS => {
                refused.fetch_add(1, Ordering::Relaxed);
                // As a polite script would: otherwise its own work is what is measured on a small machine.
                tokio::time::sleep(Millis::new(20).to_duration()).await;
            }
            other => bail!("the flood was answered {other}: {}", String::from_utf8_lossy(&answer.body)),
        }
    }
    Ok(())
}
