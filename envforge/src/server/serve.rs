//! `envforge serve`: roles of a control plane around JetStream and PostgreSQL, together or as processes of their own.
//!
//! And `envforge setup`: the first owner and the keys, once, before anything serves.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use envforge_domain::secret::{Secret, TokenDigest};
use envforge_domain::slug::OrgSlug;
use envforge_domain::time::{Clock as _, Millis};
use envforge_domain::user::EmailAddress;
use envforge_eventlog::SharedLog;
use envforge_eventlog::jetstream::{Credentials as LogCredentials, JetStreamLog};
use envforge_gateway::{Activity, HandoffKey, Scheme, TlsFiles};
use envforge_identity::clock::SystemClock;
use envforge_identity::credentials::Credentials;
use envforge_identity::key_file;
use envforge_identity::oidc;
use envforge_identity::password::WAITING_PER_WORKER;
use envforge_identity::randomness::Randomness;
use envforge_identity::share_token::{ShareVerifier, SigningKey, VerificationKey};
use envforge_identity::sign_in::{self, Identity};
use envforge_projections::sql::Database;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio_util::sync::CancellationToken;

use super::access_tokens::AccessTokenArgs;
use super::agents::Agents;
use super::bootstrap::FirstOwner;
use super::control_plane::ControlPlane;
use super::first_password::FirstPassword;
use super::fleet::FleetArgs;
use super::gateway_args::GatewayArgs;
use super::gateway_place::GatewayPlace;
use super::hosts::Hosts;
use super::known_log::{CheckpointFile, Keeper, KnownLog, Memory};
use super::provider::ProviderArgs;
use super::relays::RelayArgs;
use super::running::{self, Running};
use super::secret_store::StoreName;
use super::service_users::ServiceUserArgs;
use super::shells::GivenSecrets;
use super::stop::StopRequests;
use super::telemetry::{self, LogFormat};
use super::{agents, api, fleet, open_files, provider, relays, roles, usable};
use crate::cli::failure::Failure;
use crate::cli::output::Output;

/// One part of a control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum RoleName {
    /// HTTP API: commands in, queries and event streams out.
    Api,
    /// The data plane: share pages and workspace hosts.
    Gateway,
    /// Folds the log into PostgreSQL. A second one stands by.
    Projector,
    /// The agent of this machine, and the timers.
    Reactors,
    /// Where agents of other machines connect, and the timers.
    Agents,
    /// Launches, starts, stops and ends machines of a provider as workspaces need them.
    Fleet,
}

impl RoleName {
    /// What a role without a database remembers the log by.
    fn checkpoint_file(self, state: &Path) -> Option<CheckpointFile> {
        match self {
            Self::Gateway => Some(CheckpointFile::of(state, "gateway")),
            Self::Reactors => Some(CheckpointFile::of(state, "reactors")),
            Self::Agents => Some(CheckpointFile::of(state, "agents")),
            Self::Fleet => Some(CheckpointFile::of(state, "fleet")),
            Self::Api | Self::Projector => None,
        }
    }
}

/// Passwords hashed at the same time by one process of the API.
const HASH_WORKERS: usize = 2;
/// What folds read models anew, for errors.
const REBUILD: &str = "envforge projections rebuild NAME --nats … --database-url-file …";

/// Where log, database and keys are.
#[derive(Args, Debug)]
pub(crate) struct StoreArgs {
    /// The event log: one or more NATS servers, separated by commas.
    #[arg(long, value_name = "URL", value_delimiter = ',', env = "ENVFORGE_NATS_URL", required = true)]
    nats: Vec<String>,
    /// Credentials file for NATS.
    #[arg(long, value_name = "FILE", env = "ENVFORGE_NATS_CREDENTIALS")]
    nats_credentials: Option<PathBuf>,
    /// Copies that the NATS servers keep of the log: 3 in production.
    #[arg(long, value_name = "COUNT", default_value_t = 1, env = "ENVFORGE_NATS_REPLICAS")]
    nats_replicas: usize,
    /// File with the PostgreSQL URL, readable by its owner alone: the URL holds a password.
    #[arg(long, value_name = "FILE", env = "ENVFORGE_DATABASE_URL_FILE")]
    database_url_file: Option<PathBuf>,
    /// Folder with the control plane's keys, mode 0700. Roles on several machines share its content.
    #[arg(long, value_name = "DIR", env = "ENVFORGE_KEYS")]
    keys: PathBuf,
    #[command(flatten)]
    access_tokens: AccessTokenArgs,
    /// What to trace on standard error.
    #[arg(long, value_name = "FILTER", default_value = "info", env = "ENVFORGE_LOG")]
    log: String,
    #[arg(long, value_name = "FORMAT", default_value = "json")]
    log_format: LogFormat,
}

/// Run roles of the control plane around NATS JetStream and PostgreSQL.
#[derive(Args, Debug)]
pub(crate) struct ServeArgs {
    /// What this process does.
    #[arg(required = true, value_name = "ROLE")]
    roles: Vec<RoleName>,
    #[command(flatten)]
    stores: StoreArgs,
    /// Where the API listens. Speaks plain http: put TLS in front of it.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7070")]
    listen: SocketAddr,
    /// Address of a reverse proxy in front of the API, whose `X-Forwarded-For` is believed; repeat it for each. Without
    /// it everybody behind the proxy counts as one when sign-ins fail and when sign-in pages are opened.
    #[arg(long = "trusted-proxy", value_name = "ADDRESS")]
    trusted_proxies: Vec<IpAddr>,
    /// Let projects name repositories by a path of the machine that runs workspaces: everybody who may create a project
    /// can then read what its agent can.
    #[arg(long)]
    allow_local_repositories: bool,
    /// Where the gateway listens.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7080")]
    gateway_listen: SocketAddr,
    /// The gateway's public URL: `https://dev.envforge.ai`. Its domain must not be shared with API or console.
    #[arg(long, value_name = "URL", env = "ENVFORGE_GATEWAY_URL", default_value = "http://dev.localhost:7080")]
    gateway_url: String,
    /// The API's public URL, where people sign in with a browser: `https://api.envforge.ai`. API and gateway both need it; without it
    /// workspaces open by links alone. Where an OpenID provider is configured it is the `api_url` of its file.
    #[arg(long, value_name = "URL", env = "ENVFORGE_SIGN_IN_URL")]
    sign_in_url: Option<String>,
    /// PEM files of the gateway's certificate chain and key; read again when they change.
    #[arg(long, value_name = "FILE", requires = "gateway_tls_key")]
    gateway_tls_certificate: Option<PathBuf>,
    #[arg(long, value_name = "FILE", requires = "gateway_tls_certificate")]
    gateway_tls_key: Option<PathBuf>,
    /// Where agents connect, by TLS with certificates of the authority in the folder of the keys.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7090")]
    agents_listen: SocketAddr,
    /// Host and port at which agents reach that, for the API to tell whoever adds a host.
    #[arg(long, value_name = "HOST:PORT", env = "ENVFORGE_AGENTS_ADDRESS")]
    agents_address: Option<String>,
    /// How long an agent's certificate lives. It renews it at half of that.
    #[arg(long, value_name = "SECONDS", default_value_t = 86_400)]
    agent_certificate_seconds: u64,
    /// How often `agents` looks which agents of a provider's machines are there. Each fifth look stands in the log, and each one in vain
    /// after six of them, for the fleet.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=600))]
    agent_look_seconds: u64,
    #[command(flatten)]
    relay: RelayArgs,
    #[command(flatten)]
    gateway: GatewayArgs,
    #[command(flatten)]
    provider: ProviderArgs,
    #[command(flatten)]
    fleet: FleetArgs,
    /// Where this machine's agent keeps its state. A gateway of its own reads there that it stands beside the agent.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/envforge/runtime")]
    runtime: PathBuf,
    #[command(flatten)]
    service_users: ServiceUserArgs,
    /// Where values of secrets lie: `file:DIR`, or `aws-ssm:REGION:DEPLOYMENT:KEY` where it was built with AWS, with `{org}` in KEY where each organization has its own. The API puts them, `reactors` and `agents` read them: all need the same one.
    #[arg(long, value_name = "STORE", env = "ENVFORGE_SECRET_STORE")]
    secret_store: Option<StoreName>,
    /// Where roles without a database keep how far they have followed the log. Default: `state` in the folder of the keys.
    #[arg(long, value_name = "DIR", env = "ENVFORGE_STATE")]
    state: Option<PathBuf>,
    /// Where this process shows its metrics (`/metrics`), a loopback address. The first line on standard output names the
    /// port that it got.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    metrics_listen: SocketAddr,
}

/// Create the first organization with its owner, and the keys. Repeating it changes nothing.
#[derive(Args, Debug)]
pub(crate) struct SetupArgs {
    #[command(flatten)]
    stores: StoreArgs,
    #[arg(long, value_name = "SLUG")]
    org: String,
    #[arg(long, value_name = "EMAIL")]
    owner_email: String,
    /// Read the owner's password from this file instead of generating one.
    #[arg(long, value_name = "FILE")]
    owner_password_file: Option<PathBuf>,
}

/// A folder of keys. The private share key is needed by the API alone; gateways get the public one.
struct Keys<'a>(&'a Path);

impl Keys<'_> {
    fn share(&self) -> PathBuf {
        self.0.join("share.key")
    }

    fn share_public(&self) -> PathBuf {
        self.0.join("share.pub")
    }

    fn access_token(&self) -> PathBuf {
        self.0.join("access-token.key")
    }

    fn handoff(&self) -> PathBuf {
        self.0.join("handoff.key")
    }

    fn make(&self) -> anyhow::Result<()> {
        use std::os::unix::fs::DirBuilderExt as _;
        let folder = || format!("the key folder {}", self.0.display());
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(self.0).with_context(folder)?;
        let signing = SigningKey::load_or_create(&self.share())?;
        std::fs::write(self.share_public(), signing.verification_key().to_text()).with_context(folder)?;
        key_file::open_or_create(&self.access_token(), Randomness)?;
        key_file::open_or_create(&self.handoff(), Randomness)?;
        agents::authority(self.0, SystemClock.now())?;
        relays::make_key(self.0, SystemClock.now())
    }

    /// What agents' enrolment tokens carry. `None` where the folder is of before there was an authority: `setup` makes it.
    fn agents_authority(&self) -> anyhow::Result<Option<TokenDigest>> {
        let certificate = self.0.join(agents::AUTHORITY_CERTIFICATE);
        if !certificate.exists() {
            return Ok(None);
        }
        Ok(Some(envforge_agent::authority_fingerprint(&certificate)?))
    }

    fn verifier(&self) -> anyhow::Result<ShareVerifier> {
        let path = self.share_public();
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("{}: run `envforge setup` first, it makes the keys", path.display()))?;
        let keys = text.lines().filter(|line| !line.trim().is_empty()).map(|line| {
            VerificationKey::from_text(line.trim()).with_context(|| format!("{} holds a damaged key", path.display()))
        });
        Ok(ShareVerifier::new(keys.collect::<anyhow::Result<Vec<_>>>()?)?)
    }

    fn handoff_key(&self) -> anyhow::Result<HandoffKey> {
        let key = key_file::open_or_create(&self.handoff(), Randomness)?;
        Ok(HandoffKey::derive(&Secret::new(hex::encode(*key))))
    }
}

impl StoreArgs {
    /// Stores alone, for tools that need no keys.
    pub(crate) fn for_tools(
        nats: Vec<String>,
        nats_credentials: Option<PathBuf>,
        database_url_file: Option<PathBuf>,
    ) -> Self {
        Self {
            nats,
            nats_credentials,
            nats_replicas: 1,
            database_url_file,
            keys: PathBuf::new(),
            access_tokens: AccessTokenArgs::default(),
            log: "warn".to_owned(),
            log_format: LogFormat::Text,
        }
    }

    pub(crate) async fn log(&self, name: &str) -> anyhow::Result<Arc<JetStreamLog>> {
        let mut config = envforge_eventlog::jetstream::Config::new(String::new());
        config.servers.clone_from(&self.nats);
        config.replicas = self.nats_replicas;
        config.connection_name = format!("envforge {name}");
        if let Some(file) = &self.nats_credentials {
            config.credentials = LogCredentials::File(file.clone());
        }
        match JetStreamLog::open(config).await {
            Ok(log) => Ok(Arc::new(log)),
            Err(error) => {
                let hint = "see whether NATS runs, whether this machine may reach it, and its credentials";
                Err(Failure::unreachable(error.to_string(), hint).into())
            }
        }
    }

    fn database_url(&self) -> anyhow::Result<Secret> {
        let path = self.database_url_file.as_ref().ok_or_else(|| {
            let hint = "name a file that holds its URL with --database-url-file or ENVFORGE_DATABASE_URL_FILE";
            Failure::usage("this role needs PostgreSQL", hint)
        })?;
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let url = text.trim();
        if !(url.starts_with("postgres://") || url.starts_with("postgresql://")) {
            let what = format!("{} holds no URL of a PostgreSQL database", path.display());
            return Err(Failure::usage(what, "it must hold one line that begins with postgres://").into());
        }
        Ok(Secret::new(url.to_owned()))
    }

    pub(crate) async fn database(&self) -> anyhow::Result<Database> {
        let url = self.database_url()?;
        Database::connect_postgres(url.expose()).await.map_err(|error| {
            let hint = "see whether it runs and whether this machine may reach it";
            Failure::unreachable(format!("PostgreSQL cannot be used: {error}"), hint).into()
        })
    }

    pub(super) async fn credentials(&self) -> anyhow::Result<Credentials> {
        Ok(Credentials::connect_postgres(self.database_url()?.expose()).await?)
    }

    async fn identity(&self, issuer: String) -> anyhow::Result<Arc<Identity>> {
        let credentials = self.credentials().await?;
        let config = sign_in::Config {
            issuer,
            audience: "envforge".to_owned(),
            keys: self.access_tokens.keys(&self.keys),
            bcrypt_cost: self.access_tokens.bcrypt_cost,
            hash_workers: HASH_WORKERS,
            hash_waiting_max: HASH_WORKERS * WAITING_PER_WORKER,
        };
        Ok(Arc::new(tokio::task::spawn_blocking(move || Identity::open(config, credentials)).await??))
    }
}

/// The gateway's public URL, taken apart.
struct PublicUrl {
    scheme: Scheme,
    /// With the port where one is written.
    authority: String,
    domain: String,
    port: u16,
}

impl PublicUrl {
    fn parse(url: &str) -> Result<Self, Failure> {
        let wrong = |what: &str| Failure::usage(format!("--gateway-url {what}"), "for example https://dev.envforge.ai");
        let (scheme, authority) = match url.trim_end_matches('/').split_once("://") {
            Some(("https", authority)) => (Scheme::Https, authority),
            Some(("http", authority)) => (Scheme::PlainHttpDev, authority),
            _ => return Err(wrong("must begin with https:// (or http:// on this machine alone)")),
        };
        let (domain, port) = match authority.rsplit_once(':') {
            Some((domain, port)) => (domain, port.parse().map_err(|_| wrong("has a port that is no number"))?),
            None => (authority, if scheme == Scheme::Https { 443 } else { 80 }),
        };
        Ok(Self { scheme, authority: authority.to_owned(), domain: domain.to_owned(), port })
    }
}

/// Runs the roles until it is asked to stop, or until one fails.
pub(crate) async fn run(args: ServeArgs, output: Output) -> anyhow::Result<()> {
    let asked = StopRequests::listen()?;
    let metrics = telemetry::install(&args.stores.log, args.stores.log_format)?;
    open_files::raise();
    let start = async |running: &mut Running| start(args, metrics, running, &output).await;
    running::until_asked_to_stop(asked, start, || {}).await
}

async fn start(
    args: ServeArgs,
    metrics: PrometheusHandle,
    running: &mut Running,
    output: &Output,
) -> anyhow::Result<()> {
    let keys = Keys(&args.stores.keys);
    let has = |role| args.roles.contains(&role);
    let public = PublicUrl::parse(&args.gateway_url)?;
    let sign_in = match &args.sign_in_url {
        None => None,
        Some(url) => Some(oidc::PublicUrl::parse(url).ok_or_else(|| {
            let what = format!("--sign-in-url `{url}` is not the public URL of an API");
            Failure::usage(what, "https://api.envforge.ai, without a path; http on this machine alone")
        })?),
    };
    if public.scheme != Scheme::Https && !args.gateway_listen.ip().is_loopback() {
        let what = "a gateway without https may listen on a loopback address only";
        return Err(Failure::usage(what, "give --gateway-url https://… and certificates").into());
    }
    if !args.metrics_listen.ip().is_loopback() {
        let what = "--metrics-listen takes loopback addresses only: metrics are for the machine itself";
        return Err(Failure::usage(what, "127.0.0.1:0, and a scraper on this machine").into());
    }
    let others = match has(RoleName::Api) {
        true => args.relay.others()?,
        false => Vec::new(),
    };
    if has(RoleName::Reactors) {
        std::fs::create_dir_all(&args.runtime).with_context(|| args.runtime.display().to_string())?;
        args.service_users.check(&args.runtime)?;
    }
    let provider = match has(RoleName::Api) {
        true => args.provider.read()?,
        false => None,
    };
    let fleet = match has(RoleName::Fleet) {
        true => Some(args.fleet.read()?),
        false => None,
    };
    let sign_in = match (sign_in, provider.as_ref().map(oidc::Config::api_url)) {
        (Some(said), Some(called_back)) if said != *called_back => {
            let (said, called_back) = (said.origin(), called_back.origin());
            let what = format!("--sign-in-url is {said}, but the provider calls back at the `api_url` {called_back}");
            return Err(
                Failure::usage(what, "one address for both: a browser's session counts where it was opened").into()
            );
        }
        (said, called_back) => said.or_else(|| called_back.cloned()),
    };
    let place = match has(RoleName::Gateway) {
        true => Some(GatewayPlace::here(&args.runtime)?),
        false => None,
    };
    let listener = match has(RoleName::Api) {
        true => Some(api::bind(args.listen).await?),
        false => None,
    };
    let mut addresses = serde_json::Map::new();
    let shown = api::start_metrics(running, metrics.clone(), args.metrics_listen).await?;
    addresses.insert("metrics".to_owned(), format!("http://{shown}/metrics").into());

    let names = args.roles.iter().filter_map(|role| role.to_possible_value()).map(|value| value.get_name().to_owned());
    let log = args.stores.log(&names.collect::<Vec<_>>().join("+")).await?;
    let registry = match has(RoleName::Api) || has(RoleName::Gateway) {
        true => Some(log.gateways().await?),
        false => None,
    };
    let log: SharedLog = log;
    let database = match has(RoleName::Api) || has(RoleName::Projector) {
        true => Some(args.stores.database().await?),
        false => None,
    };
    let state = args.state.unwrap_or_else(|| args.stores.keys.join("state"));
    let files: Vec<_> = args.roles.iter().filter_map(|role| role.checkpoint_file(&state)).collect();
    let memory = Memory { database: database.as_ref(), rebuild: REBUILD, files: &files };
    let known = KnownLog::hold(Arc::clone(&log), &memory).await?;
    let plane = ControlPlane::start(&known, running.stop_views.clone()).await?;
    roles::watch_views(running, &plane);
    let keeper = Keeper::start(&state, files, Arc::clone(&plane.hot)).await?;
    running.essential.spawn("the log's checkpoint", keeper.run(running.stop.clone()));

    if let (Some(database), true) = (&database, has(RoleName::Projector)) {
        roles::start_projector(running, &plane, database);
    }
    if let (Some(place), Some(registry)) = (place, &registry) {
        place.watch(running, Arc::clone(&log)).await?;
        let mut config = envforge_gateway::Config::new(&public.domain, public.scheme, args.gateway_listen);
        config.public_port = public.port;
        args.gateway.apply(&mut config);
        config.sign_in_at = sign_in.as_ref().map(oidc::PublicUrl::origin);
        config.tls = match (args.gateway_tls_certificate, args.gateway_tls_key) {
            (Some(certificate_chain), Some(private_key)) => Some(TlsFiles { certificate_chain, private_key }),
            (Some(_), None) | (None, Some(_)) | (None, None) => None,
        };
        let activity = Activity::default();
        let enrolled = roles::enrol_gateway(&plane, registry, &config).await?;
        addresses.insert("gateway_id".to_owned(), enrolled.id().to_string().into());
        running.enrolled = Some(enrolled);
        let started =
            roles::start_gateway(&plane, config, keys.verifier()?, keys.handoff_key()?, activity.clone()).await?;
        addresses.insert("gateway".to_owned(), started.address().to_string().into());
        running.gateway = Some(started);
        roles::report_activity(running, &plane, activity);
    }
    let secret_store = match &args.secret_store {
        Some(name) if has(RoleName::Api) || has(RoleName::Reactors) || has(RoleName::Agents) => {
            Some(name.open().await?)
        }
        Some(_) | None => None,
    };
    let hosts = Hosts::new(Arc::clone(&plane.hot), has(RoleName::Api));
    let world = match has(RoleName::Reactors) || has(RoleName::Agents) {
        true => Some(roles::start_world(running, &plane)),
        false => None,
    };
    if let (Some(world), true) = (&world, has(RoleName::Agents)) {
        let authority = agents::authority(&args.stores.keys, plane.clock.now())?;
        let certificate_lifetime = agents::certificate_lifetime(args.agent_certificate_seconds)?;
        let (public_authority, secret_store) = (public.authority.clone(), secret_store.clone());
        let (listen, look) = (args.agents_listen, Some(Millis::from_secs(args.agent_look_seconds)));
        let listen = Agents { listen, certificate_lifetime, public_authority, secret_store, look };
        let address = agents::start(running, &plane, world, &hosts, authority, listen).await?;
        addresses.insert("agents".to_owned(), address.to_string().into());
    }
    let reaches = world.is_some() || !others.is_empty();
    if !others.is_empty() {
        relays::follow(running, &plane, &hosts, &relays::key(&args.stores.keys)?, others);
    }
    if let (Some(world), true) = (&world, has(RoleName::Reactors)) {
        let (authority, store) = (public.authority.clone(), secret_store.clone());
        let host = roles::start_reactors(running, &plane, world, &hosts, &args.runtime, authority, store).await?;
        if args.relay.listen().is_some() {
            // Whoever carries a shell may be gone when it ends.
            host.keep_ends();
        }
    }
    let given = GivenSecrets::new(&plane, secret_store.clone().filter(|_| world.is_some()));
    if let (Some(listen), true) = (args.relay.listen(), world.is_some()) {
        let relay_key = relays::key(&args.stores.keys)?;
        let address = relays::listen(running, &plane, &hosts, relay_key, listen, given.clone()).await?;
        addresses.insert("relay".to_owned(), address.to_string().into());
    }
    if let Some(fleet) = fleet {
        fleet::start(running, &plane, fleet, &args.stores.keys).await?;
    }
    if let (Some(listener), Some(database), Some(registry)) = (listener, database, registry) {
        let address = listener.local_addr()?;
        let identity = args.stores.identity(args.gateway_url.clone()).await?;
        let (open_shells, process) = roles::enrol_shells(running, &plane, &registry).await?;
        addresses.insert("api_id".to_owned(), process.to_string().into());
        let parts = api::Parts {
            database,
            oidc: provider::open(provider, &identity)?,
            identity,
            signing_key: Arc::new(SigningKey::load(&keys.share())?),
            gateway_url: args.gateway_url.clone(),
            public_url: sign_in,
            gateways: roles::watch_gateways(running, registry),
            open_shells,
            metrics,
            trusted_proxies: args.trusted_proxies,
            local_repositories: args.allow_local_repositories,
            hosts: reaches.then_some(hosts),
            given,
            agents: keys
                .agents_authority()?
                .map(|authority| envforge_api::AgentsAt { authority, address: args.agents_address.clone() }),
            secret_store,
        };
        api::start(running, &plane, parts, listener)?;
        addresses.insert("api".to_owned(), format!("http://{address}").into());
    }
    roles::report_denials(running, &plane);
    // A line of JSON in any case: whoever runs a role is a program.
    Ok(output.event(&serde_json::Value::Object(addresses))?)
}

/// Makes keys, organization, owner and account where they are missing.
pub(crate) async fn setup(args: SetupArgs, output: Output) -> anyhow::Result<()> {
    telemetry::install(&args.stores.log, args.stores.log_format)?;
    let org_slug: OrgSlug = usable("--org", args.org.parse())?;
    let email = usable("--owner-email", EmailAddress::parse(&args.owner_email))?;
    Keys(&args.stores.keys).make()?;
    let stop = CancellationToken::new();
    let log = args.stores.log("setup").await?;
    // Whoever serves needs no right to make it.
    log.gateways().await?;
    let log: SharedLog = log;
    let identity = log.head().await?.identity;
    let database = args.stores.database().await?;
    let memory = Memory { database: Some(&database), rebuild: REBUILD, files: &[] };
    let known = KnownLog::hold(Arc::clone(&log), &memory).await?;
    let plane = ControlPlane::start(&known, stop.clone()).await?;
    let sign_in = args.stores.identity(String::new()).await?;
    let owner = FirstOwner::of(&identity, org_slug, email);
    let first_password = FirstPassword::in_folder(&args.stores.keys);
    let password = owner
        .first_start(&plane, &identity, sign_in.self_hosted(), args.owner_password_file.as_deref(), &first_password)
        .await?;
    stop.cancel();
    let mut line = serde_json::json!({ "org": owner.org_slug.as_str(), "owner_email": owner.email.as_str() });
    if let Some(password) = &password {
        line["owner_password"] = password.expose().into();
    }
    output.last_event(&line, || {
        let told = match &password {
            Some(password) => format!("Password: {}  (shown this once)", password.expose()),
            None => "Its owner's account exists already.".to_owned(),
        };
        format!("Organization {} belongs to {}.\n{told}", owner.org_slug, owner.email.as_str())
    })?;
    first_password.forget()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        serve: ServeArgs,
    }

    #[test]
    fn proxies_are_named_one_by_one_and_only_addresses_are_taken() {
        let parse = |more: &[&str]| {
            let line = ["serve", "api", "--nats", "nats://localhost", "--keys", "/keys"].iter().chain(more);
            Line::try_parse_from(line).map(|line| line.serve.trusted_proxies).map_err(|error| error.to_string())
        };
        assert_eq!(parse(&[]).unwrap(), Vec::<IpAddr>::new());
        let two = parse(&["--trusted-proxy", "10.0.0.1", "--trusted-proxy", "fd00::1"]).unwrap();
        assert_eq!(two, ["10.0.0.1", "fd00::1"].map(|text| text.parse::<IpAddr>().unwrap()));
        assert!(parse(&["--trusted-proxy", "10.0.0.0/8"]).is_err());
    }

    #[test]
    fn reactors_listen_for_other_processes_as_agents_do_and_the_help_says_so() {
        let parse = |line: &[&str]| {
            let line = ["serve"].iter().chain(line).chain(&["--nats", "nats://localhost", "--keys", "/keys"]);
            Line::try_parse_from(line).map(|line| line.serve).unwrap()
        };
        for role in ["agents", "reactors"] {
            let listening = parse(&[role, "--relay-listen", "10.0.0.1:7091"]);
            assert_eq!(listening.relay.listen(), Some("10.0.0.1:7091".parse().unwrap()));
        }
        let asking = parse(&["api", "--relays", "a.internal:7091,b.internal:7091"]);
        assert_eq!(asking.relay.others().unwrap(), ["a.internal:7091", "b.internal:7091"]);
        let help = <Line as clap::CommandFactory>::command().render_long_help().to_string();
        for said in ["Where `agents` and `reactors` listen", "with the role `agents` or `reactors` listen"] {
            assert!(help.split_whitespace().collect::<Vec<_>>().join(" ").contains(said), "{said}");
        }
    }
}
