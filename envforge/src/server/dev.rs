//! `envforge dev`: everything in one process, on this machine, with embedded stores.
//!
//! The real product with the real boundaries: the same API, gateway, log, projections, reactors and agent as in
//! production, wired together. What differs is said at the start: plain http on localhost, and services that run as the
//! user who started it.

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
use envforge_identity::oidc::PublicUrl;
use envforge_identity::password::WAITING_PER_WORKER;
use envforge_identity::share_token::{ShareVerifier, SigningKey};
use envforge_identity::sign_in::{self, Identity};
use envforge_projections::sql::Database;
use metrics_exporter_prometheus::PrometheusHandle;

use super::access_tokens::AccessTokenArgs;
use super::agents::Agents;
use super::bootstrap::FirstOwner;
use super::control_plane::ControlPlane;
use super::data_dir::DataDir;
use super::demo::{self, Demo};
use super::first_password::FirstPassword;
use super::hosts::Hosts;
use super::known_log::{KnownLog, Memory};
use super::provider::{self, ProviderArgs};
use super::running::{self, Running};
use super::secret_store::StoreName;
use super::shells::GivenSecrets;
use super::stop::StopRequests;
use super::telemetry::{self, LogFormat};
use super::{agents, api, demo_repository, open_files, roles, usable};
use crate::cli::failure::Failure;
use crate::cli::output::Output;

/// Run everything on this machine: log, projections, API, gateway, reactors and local runtimes.
#[derive(Args, Debug)]
pub(crate) struct DevArgs {
    /// Where everything is kept. Default: this user's data directory.
    #[arg(long, value_name = "DIR", env = "ENVFORGE_DATA")]
    data: Option<PathBuf>,
    /// Where workspaces run. As root, and where others can enter its parents, each service has a user of its own
    /// [default: `runtime` in the data directory, which nobody else enters].
    #[arg(long, value_name = "DIR")]
    runtime: Option<PathBuf>,
    /// Where the API listens; port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7070")]
    listen: SocketAddr,
    /// Where the gateway listens; port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7080")]
    gateway_listen: SocketAddr,
    /// Where agents of further hosts connect; port 0 takes a free one. Give a port for hosts that are to find it again.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    agents_listen: SocketAddr,
    /// How long an agent's certificate lives. It renews it at half of that.
    #[arg(long, value_name = "SECONDS", default_value_t = 86_400)]
    agent_certificate_seconds: u64,
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
    #[command(flatten)]
    access_tokens: AccessTokenArgs,
    #[command(flatten)]
    provider: ProviderArgs,
    /// Make a small app, a workspace that runs it and a signed link to it.
    #[arg(long)]
    demo: bool,
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
    agents: String,
    data_dir: PathBuf,
    runtime_dir: PathBuf,
    /// Whether each service has a user of its own.
    own_users: bool,
    owner_email: String,
    owner_password: Option<Secret>,
    demo: Option<Demo>,
}

/// Runs until it is asked to stop, or until something essential fails.
pub(crate) async fn run(args: DevArgs, output: Output) -> anyhow::Result<()> {
    let asked = StopRequests::listen()?;
    let metrics = telemetry::install(&args.log, args.log_format)?;
    open_files::raise();
    let stopping = || output.note("\nStopping: runtimes are put to sleep, their time is closed.");
    let start = async |running: &mut Running| start(&args, metrics, running, &output).await;
    running::until_asked_to_stop(asked, start, stopping).await
}

async fn start(
    args: &DevArgs,
    metrics: PrometheusHandle,
    running: &mut Running,
    output: &Output,
) -> anyhow::Result<()> {
    let org_slug = usable("--org", args.org.parse::<OrgSlug>())?;
    let email = usable("--owner-email", EmailAddress::parse(&args.owner_email))?;
    if ![args.listen, args.gateway_listen, args.agents_listen].iter().all(|address| address.ip().is_loopback()) {
        let what = "`dev` speaks plain http and listens on loopback addresses only";
        return Err(Failure::usage(what, "127.0.0.1 or [::1]; `envforge serve` is for networks").into());
    }
    if args.demo {
        demo_repository::check_tools()?;
    }
    let provider = args.provider.read()?;
    let listener = api::bind(args.listen).await?;
    let data = DataDir::open(&match &args.data {
        Some(path) => path.clone(),
        None => DataDir::default_path()?,
    })?;

    let log = SqliteLog::open(envforge_eventlog::sqlite::Config::new(data.log())).await?;
    let log: SharedLog = Arc::new(log);
    let identity = log.head().await?.identity;
    let database = Database::connect_sqlite(&data.read_models()).await?;
    let rebuild = format!("envforge projections rebuild NAME --data {}", data.path().display());
    let memory = Memory { database: Some(&database), rebuild: &rebuild, files: &[] };
    let known = KnownLog::hold(log, &memory).await?;
    let plane = ControlPlane::start(&known, running.stop_views.clone()).await?;
    roles::watch_views(running, &plane);

    let owner = FirstOwner::of(&identity, org_slug, email);
    let sign_in = open_identity(args, &data).await?;
    let first_password = FirstPassword::in_folder(&data.keys());
    let owner_password = owner
        .first_start(&plane, &identity, sign_in.self_hosted(), args.owner_password_file.as_deref(), &first_password)
        .await?;

    let signing_key = Arc::new(SigningKey::load_or_create(&data.keys().join("share.key"))?);
    let activity = Activity::default();
    let handoff_key = HandoffKey::random().context("this machine gives no randomness")?;
    let verifier = ShareVerifier::new([signing_key.verification_key()])?;
    let api = format!("http://{}", listener.local_addr()?);
    // Browsers know the API by the address that the provider calls back, where there is one.
    let sign_in_at = provider.as_ref().map_or_else(|| api.clone(), |config| config.api_url().origin());
    let mut config = envforge_gateway::Config::new(&args.gateway_domain, Scheme::PlainHttpDev, args.gateway_listen);
    config.sign_in_at = Some(sign_in_at);
    let gateway = roles::start_gateway(&plane, config, verifier, handoff_key, activity.clone()).await?;
    let gateway_origin = gateway.origin().to_owned();
    running.gateway = Some(gateway);
    let public_authority = gateway_origin.trim_start_matches("http://").to_owned();
    let world = roles::start_world(running, &plane);
    let runtime = match &args.runtime {
        Some(directory) => {
            std::fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
            directory.canonicalize().with_context(|| directory.display().to_string())?
        }
        None => data.runtime(),
    };
    let secret_store = StoreName::File(data.secrets()).open().await?;
    let store = Some(Arc::clone(&secret_store));
    let hosts = Hosts::new(Arc::clone(&plane.hot), true);
    let host =
        roles::start_reactors(running, &plane, &world, &hosts, &runtime, public_authority.clone(), store.clone())
            .await?;
    let authority = agents::authority(&data.keys(), plane.clock.now())?;
    let fingerprint = authority.fingerprint();
    let certificate_lifetime = agents::certificate_lifetime(args.agent_certificate_seconds)?;
    let listen = args.agents_listen;
    let listen = Agents { listen, certificate_lifetime, public_authority, secret_store: store, look: None };
    let agents = agents::start(running, &plane, &world, &hosts, authority, listen).await?.to_string();
    roles::start_projector(running, &plane, &database);
    let parts = api::Parts {
        database,
        oidc: provider::open(provider, &sign_in)?,
        identity: sign_in,
        signing_key: Arc::clone(&signing_key),
        gateway_url: gateway_origin.clone(),
        public_url: PublicUrl::parse(&api),
        // All of them run in this process.
        gateways: Arc::<envforge_projections::Hot>::clone(&plane.hot),
        open_shells: envforge_api::OpenShells::new(Arc::clone(&plane.hot), true),
        metrics,
        trusted_proxies: Vec::new(),
        // Everything runs on this machine, as whoever started it.
        local_repositories: true,
        agents: Some(envforge_api::AgentsAt { authority: fingerprint, address: Some(agents.clone()) }),
        hosts: Some(hosts),
        given: GivenSecrets::new(&plane, Some(Arc::clone(&secret_store))),
        secret_store: Some(secret_store),
    };
    api::start(running, &plane, parts, listener)?;
    roles::report_activity(running, &plane, activity);
    roles::report_denials(running, &plane);

    let demo = match args.demo {
        true => Some(
            demo::prepare(&plane, &owner, &identity, &data.demo(), &signing_key, &gateway_origin)
                .await
                .context("the demo could not be prepared")?,
        ),
        false => None,
    };
    let started = Started {
        api,
        gateway: gateway_origin,
        agents,
        data_dir: data.path().to_path_buf(),
        own_users: host.unix_users().is_some(),
        runtime_dir: runtime,
        owner_email: owner.email.as_str().to_owned(),
        owner_password,
        demo,
    };
    output.last_event(&started.to_json(), || started.to_text())?;
    // Only now: whoever was not told could never sign in.
    first_password.forget()
}

/// Passwords hashed at the same time; the other core is for everything else.
const HASH_WORKERS: usize = 1;

async fn open_identity(args: &DevArgs, data: &DataDir) -> anyhow::Result<Arc<Identity>> {
    let credentials = Credentials::open_sqlite(&data.credentials()).await?;
    let config = sign_in::Config {
        issuer: format!("http://{}", args.listen),
        audience: "envforge".to_owned(),
        keys: args.access_tokens.keys(&data.keys()),
        bcrypt_cost: args.access_tokens.bcrypt_cost,
        hash_workers: HASH_WORKERS,
        hash_waiting_max: HASH_WORKERS * WAITING_PER_WORKER,
    };
    // Hashes once; that is work for a thread of its own.
    Ok(Arc::new(tokio::task::spawn_blocking(move || Identity::open(config, credentials)).await??))
}

impl Started {
    /// One line, for programs. The only place where the first password and the share URL are written.
    fn to_json(&self) -> serde_json::Value {
        let mut line = serde_json::json!({
            "api": self.api,
            "gateway": self.gateway,
            "agents": self.agents,
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
        line
    }

    fn to_text(&self) -> String {
        let Self { api, gateway, owner_email, .. } = self;
        let mut text = format!(
            "EnvForge is running.\n\n  API        {api}\n  \
             Gateway    {gateway}  (share pages; workspaces one label below)\n  \
             Data       {}\n  \
             Output     {}/workspaces/WORKSPACE-ID/output/SERVICE.log\n  \
             Owner      {owner_email}\n",
            self.data_dir.display(),
            self.runtime_dir.display(),
        );
        if let Some(password) = &self.owner_password {
            text.push_str(&format!("  Password   {}  (shown this once)\n", password.expose()));
        }
        let login = format!("  envforge login --api {api} --email {owner_email}\n");
        match &self.demo {
            Some(demo) => text.push_str(&format!(
                "\nA review link for the demo app, as a reviewer would get it:\n\n  {}\n\n\
                 Open it in a browser; the app wakes when you go on. To take it back:\n\n{login}  \
                 envforge link revoke {}\n",
                demo.share_url, demo.link
            )),
            None => {
                text.push_str(&format!("\nNext, in a Git repository with an envforge.yml:\n\n{login}  envforge up\n"))
            }
        }
        text.push_str(match self.own_users {
            true => "\nOne organization, this one machine. Each service runs as a user of its own.",
            false => {
                "\nOne organization, this one machine. Services run as you do: the code of a branch can read your files, the \
                 data above included."
            }
        });
        text.push_str("\nPlain http on localhost; sessions use a cookie without Secure. Ctrl-C stops everything.");
        text
    }
}
