//! `envforge dev`: everything in one process, on this machine, with embedded stores.
//!
//! The real product with the real boundaries: the same API, gateway, log, projections, reactors and agent as in
//! production, wired together. What differs is said at the start: plain http on localhost, and one organization per
//! machine.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use clap::Args;
use envforge_domain::secret::Secret;
use envforge_domain::slug::OrgSlug;
use envforge_domain::user::EmailAddress;
use envforge_eventlog::SharedLog;
use envforge_eventlog::sqlite::SqliteLog;
use envforge_gateway::{Activity, HandoffKey, Scheme};
use envforge_identity::credentials::Credentials;
use envforge_identity::self_hosted::{self, SelfHosted};
use envforge_identity::share_token::{ShareVerifier, SigningKey};
use envforge_projections::sql::{Database, Supervisor};
use tokio_util::sync::CancellationToken;

use super::bootstrap::FirstOwner;
use super::control_plane::{ControlPlane, Essential, asked_to_stop};
use super::data_dir::DataDir;
use super::demo::{self, Demo};
use super::known_log::{KnownLog, Memory};
use super::telemetry::{self, LogFormat};
use super::{api, roles};

/// Run everything on this machine: log, projections, API, gateway, reactors and local runtimes.
#[derive(Args, Debug)]
pub(crate) struct DevArgs {
    /// Where everything is kept. Default: this user's data directory.
    #[arg(long, value_name = "DIR", env = "ENVFORGE_DATA")]
    data: Option<PathBuf>,
    /// Where the API listens; port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7070")]
    listen: SocketAddr,
    /// Where the gateway listens; port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7080")]
    gateway_listen: SocketAddr,
    /// The gateway's domain. Browsers resolve everything below `localhost` to this machine.
    #[arg(long, value_name = "DOMAIN", default_value = "dev.localhost")]
    gateway_domain: String,
    /// Name of the organization that the first start creates.
    #[arg(long, value_name = "SLUG", default_value = "acme")]
    org: String,
    /// E-mail address of its owner.
    #[arg(long, value_name = "EMAIL", default_value = "owner@envforge.localhost")]
    owner_email: String,
    /// Read the owner's first password from this file instead of generating one.
    #[arg(long, value_name = "FILE")]
    owner_password_file: Option<PathBuf>,
    /// Make a small app, a workspace that runs it and a signed link to it.
    #[arg(long)]
    demo: bool,
    /// Print one line of JSON on standard output instead of text for people.
    #[arg(long)]
    json: bool,
    /// What to trace on standard error.
    #[arg(long, value_name = "FILTER", default_value = "warn", env = "ENVFORGE_LOG")]
    log: String,
    /// How traces look.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    log_format: LogFormat,
}

/// What `dev` tells when everything runs.
struct Started {
    api: String,
    gateway: String,
    data_dir: PathBuf,
    owner_email: String,
    owner_password: Option<Secret>,
    demo: Option<Demo>,
}

/// Runs until Ctrl-C or SIGTERM, or until something essential fails.
pub(crate) async fn run(args: DevArgs) -> anyhow::Result<()> {
    let metrics = telemetry::install(&args.log, args.log_format)?;
    let org_slug: OrgSlug = args.org.parse().context("--org")?;
    let email = EmailAddress::parse(&args.owner_email).context("--owner-email")?;
    anyhow::ensure!(
        args.listen.ip().is_loopback() && args.gateway_listen.ip().is_loopback(),
        "`dev` speaks plain http and listens on loopback addresses only (127.0.0.1, [::1]); `envforge serve` is for networks"
    );
    let data = DataDir::open(&match &args.data {
        Some(path) => path.clone(),
        None => DataDir::default_path()?,
    })?;

    let stop_views = CancellationToken::new();
    let log = SqliteLog::open(envforge_eventlog::sqlite::Config::new(data.log())).await?;
    let log: SharedLog = Arc::new(log);
    let identity = log.head().await?.identity;
    let database = Database::connect_sqlite(&data.read_models()).await?;
    let rebuild = format!("envforge projections rebuild NAME --data {}", data.path().display());
    let memory = Memory { database: Some(&database), rebuild: &rebuild, files: &[] };
    let known = KnownLog::hold(Arc::clone(&log), &memory).await?;
    let plane = ControlPlane::start(&known, stop_views.clone()).await?;

    let owner = FirstOwner::of(&identity, org_slug, email);
    let self_hosted = open_identity(&args, &data).await?;
    let owner_password =
        owner.first_start(&plane, &identity, &self_hosted, args.owner_password_file.as_deref()).await?;

    let signing_key = Arc::new(SigningKey::load_or_create(&data.keys().join("share.key"))?);
    let activity = Activity::default();
    let handoff_key = HandoffKey::random().context("this machine gives no randomness")?;
    let verifier = ShareVerifier::new([signing_key.verification_key()])?;
    let config = envforge_gateway::Config::new(&args.gateway_domain, Scheme::PlainHttpDev, args.gateway_listen);
    let gateway = roles::start_gateway(&plane, config, verifier, handoff_key, activity.clone()).await?;
    let mut essential = Essential::default();
    let stop = CancellationToken::new();
    let public_authority = gateway.origin().trim_start_matches("http://").to_owned();
    roles::start_reactors(&mut essential, &plane, &data.runtime(), public_authority, &stop).await?;
    let projector = Supervisor::start(&log, &database);
    // One process, one log: where it turns out to be another one, nothing here is worth running.
    let (another_log, hot, stopped) = (projector.another_log(), Arc::clone(&plane.hot), stop.clone());
    essential.spawn("the event log", async move {
        tokio::select! {
            () = stopped.cancelled() => Ok(()),
            why = another_log => anyhow::bail!(why),
            why = hot.ended() => anyhow::bail!("the views of rights have stopped: {why}"),
        }
    });
    let parts = api::Parts {
        database,
        identity: self_hosted,
        signing_key: Arc::clone(&signing_key),
        gateway_url: gateway.origin().to_owned(),
        metrics,
        trusted_proxies: Vec::new(),
        // Everything runs on this machine, as whoever started it.
        local_repositories: true,
    };
    let api = format!("http://{}", api::start(&mut essential, &plane, parts, args.listen, &stop).await?);
    roles::report_activity(&mut essential, &plane, activity, &stop);
    roles::report_denials(&mut essential, &plane, &stop);

    let demo = match args.demo {
        true => Some(
            demo::prepare(&plane, &owner, &identity, &data.demo(), &signing_key, gateway.origin())
                .await
                .context("the demo could not be prepared")?,
        ),
        false => None,
    };
    let started = Started {
        api,
        gateway: gateway.origin().to_owned(),
        data_dir: data.path().to_path_buf(),
        owner_email: owner.email.as_str().to_owned(),
        owner_password,
        demo,
    };
    if args.json {
        started.print_json()?
    } else {
        started.print_text()
    }

    let failure = tokio::select! {
        () = asked_to_stop() => None,
        failure = essential.first_failure() => Some(failure),
    };
    if !args.json {
        eprintln!("\nStopping: runtimes are put to sleep, their time is closed.");
    }
    gateway.stop().await;
    stop.cancel();
    essential.finish().await;
    projector.stop().await;
    stop_views.cancel();
    failure.map_or(Ok(()), Err)
}

async fn open_identity(args: &DevArgs, data: &DataDir) -> anyhow::Result<Arc<SelfHosted>> {
    let credentials = Credentials::open_sqlite(&data.credentials()).await?;
    let config = self_hosted::Config {
        issuer: format!("http://{}", args.listen),
        audience: "envforge".to_owned(),
        key_file: data.keys().join("access-token.key"),
        bcrypt_cost: 12,
        hash_workers: 1,
        hash_waiting_max: 32,
    };
    // Hashes once; that is work for a thread of its own.
    Ok(Arc::new(tokio::task::spawn_blocking(move || SelfHosted::open(config, credentials)).await??))
}

impl Started {
    /// One line, for programs. The only place where the first password and the share URL are written.
    fn print_json(&self) -> anyhow::Result<()> {
        let mut line = serde_json::json!({
            "api": self.api,
            "gateway": self.gateway,
            "data_dir": self.data_dir,
            "owner_email": self.owner_email,
        });
        if let Some(password) = &self.owner_password {
            line["owner_password"] = password.expose().into();
        }
        if let Some(demo) = &self.demo {
            line["share_url"] = demo.share_url.clone().into();
            line["link_id"] = demo.link.to_string().into();
            line["workspace_url"] = demo.workspace_url.clone().into();
        }
        println!("{}", serde_json::to_string(&line)?);
        Ok(())
    }

    fn print_text(&self) {
        println!("EnvForge is running.\n");
        println!("  API        {}", self.api);
        println!("  Gateway    {}  (share pages; workspaces one label below)", self.gateway);
        println!("  Data       {}", self.data_dir.display());
        println!("  Owner      {}", self.owner_email);
        if let Some(password) = &self.owner_password {
            println!("  Password   {}  (shown this once)", password.expose());
        }
        if let Some(demo) = &self.demo {
            println!("\nA review link for the demo app, as a reviewer would get it:\n\n  {}\n", demo.share_url);
            println!("Open it in a browser; the app wakes when you go on. To take it back:\n");
            println!("  envforge login --api {} --email {}", self.api, self.owner_email);
            println!("  envforge link revoke {}", demo.link);
        } else {
            println!("\nNext, in a Git repository with an envforge.yml:\n");
            println!("  envforge login --api {} --email {}", self.api, self.owner_email);
            println!("  envforge up");
        }
        println!("\nThis is plain http on localhost; sessions use a cookie without Secure. Ctrl-C stops everything.");
    }
}
