//! `envforge serve`: roles of a control plane around JetStream and PostgreSQL, together or as processes of their own.
//!
//! And `envforge setup`: the first owner and the keys, once, before anything serves.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use envforge_domain::secret::Secret;
use envforge_domain::slug::OrgSlug;
use envforge_domain::user::EmailAddress;
use envforge_eventlog::SharedLog;
use envforge_eventlog::jetstream::{Credentials as LogCredentials, JetStreamLog};
use envforge_gateway::{Activity, HandoffKey, Scheme, TlsFiles};
use envforge_identity::credentials::Credentials;
use envforge_identity::key_file;
use envforge_identity::randomness::Randomness;
use envforge_identity::self_hosted::{self, SelfHosted};
use envforge_identity::share_token::{ShareVerifier, SigningKey, VerificationKey};
use envforge_projections::sql::{Database, Supervisor};
use tokio_util::sync::CancellationToken;

use super::bootstrap::FirstOwner;
use super::control_plane::{ControlPlane, Essential, asked_to_stop};
use super::gateway_args::GatewayArgs;
use super::known_log::{CheckpointFile, Keeper, KnownLog, Memory};
use super::telemetry::{self, LogFormat};
use super::{api, roles};

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
}

impl RoleName {
    /// What a role without a database remembers the log by.
    fn checkpoint_file(self, state: &Path) -> Option<CheckpointFile> {
        match self {
            Self::Gateway => Some(CheckpointFile::of(state, "gateway")),
            Self::Reactors => Some(CheckpointFile::of(state, "reactors")),
            Self::Api | Self::Projector => None,
        }
    }
}

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
    /// it everybody behind the proxy counts as one when sign-ins fail.
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
    /// PEM files of the gateway's certificate chain and key; read again when they change.
    #[arg(long, value_name = "FILE", requires = "gateway_tls_key")]
    gateway_tls_certificate: Option<PathBuf>,
    #[arg(long, value_name = "FILE", requires = "gateway_tls_certificate")]
    gateway_tls_key: Option<PathBuf>,
    #[command(flatten)]
    gateway: GatewayArgs,
    /// Where this machine's agent keeps its state.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/envforge/runtime")]
    runtime: PathBuf,
    /// Where gateway and reactors keep how far they have followed the log. Default: `state` in the folder of the keys.
    #[arg(long, value_name = "DIR", env = "ENVFORGE_STATE")]
    state: Option<PathBuf>,
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
    #[arg(long)]
    json: bool,
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
        Ok(())
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
            log: "warn".to_owned(),
            log_format: LogFormat::Text,
        }
    }

    pub(crate) async fn log(&self, name: &str) -> anyhow::Result<SharedLog> {
        let mut config = envforge_eventlog::jetstream::Config::new(String::new());
        config.servers.clone_from(&self.nats);
        config.replicas = self.nats_replicas;
        config.connection_name = format!("envforge {name}");
        if let Some(file) = &self.nats_credentials {
            config.credentials = LogCredentials::File(file.clone());
        }
        Ok(Arc::new(JetStreamLog::open(config).await?))
    }

    fn database_url(&self) -> anyhow::Result<Secret> {
        let path = self.database_url_file.as_ref().context(
            "this role needs PostgreSQL: name a file that holds its URL with --database-url-file or ENVFORGE_DATABASE_URL_FILE",
        )?;
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let url = text.trim();
        anyhow::ensure!(
            url.starts_with("postgres://") || url.starts_with("postgresql://"),
            "{} must hold one line, a URL that begins with postgres://",
            path.display()
        );
        Ok(Secret::new(url.to_owned()))
    }

    pub(crate) async fn database(&self) -> anyhow::Result<Database> {
        Database::connect_postgres(self.database_url()?.expose()).await.context("PostgreSQL")
    }

    async fn identity(&self, issuer: String) -> anyhow::Result<Arc<SelfHosted>> {
        let credentials = Credentials::connect_postgres(self.database_url()?.expose()).await?;
        let config = self_hosted::Config {
            issuer,
            audience: "envforge".to_owned(),
            key_file: Keys(&self.keys).access_token(),
            bcrypt_cost: 12,
            hash_workers: 2,
            hash_waiting_max: 64,
        };
        Ok(Arc::new(tokio::task::spawn_blocking(move || SelfHosted::open(config, credentials)).await??))
    }
}

/// Runs the roles until Ctrl-C or SIGTERM, or until one fails.
pub(crate) async fn run(args: ServeArgs) -> anyhow::Result<()> {
    let metrics = telemetry::install(&args.stores.log, args.stores.log_format)?;
    let keys = Keys(&args.stores.keys);
    let has = |role| args.roles.contains(&role);
    let (scheme, authority) = match args.gateway_url.trim_end_matches('/').split_once("://") {
        Some(("https", authority)) => (Scheme::Https, authority.to_owned()),
        Some(("http", authority)) => (Scheme::PlainHttpDev, authority.to_owned()),
        _ => anyhow::bail!("--gateway-url must begin with https:// (or http:// on this machine alone)"),
    };
    let (domain, port) = match authority.rsplit_once(':') {
        Some((domain, port)) => (domain, port.parse::<u16>().context("--gateway-url has a port that is no number")?),
        None => (authority.as_str(), if scheme == Scheme::Https { 443 } else { 80 }),
    };
    anyhow::ensure!(
        scheme == Scheme::Https || args.gateway_listen.ip().is_loopback(),
        "a gateway without https may listen on a loopback address only; give --gateway-url https://… and certificates"
    );

    let stop_views = CancellationToken::new();
    let stop = CancellationToken::new();
    let names = args.roles.iter().filter_map(|role| role.to_possible_value()).map(|value| value.get_name().to_owned());
    let log = args.stores.log(&names.collect::<Vec<_>>().join("+")).await?;
    let database = match has(RoleName::Api) || has(RoleName::Projector) {
        true => Some(args.stores.database().await?),
        false => None,
    };
    let state = args.state.unwrap_or_else(|| args.stores.keys.join("state"));
    let files: Vec<_> = args.roles.iter().filter_map(|role| role.checkpoint_file(&state)).collect();
    let memory = Memory { database: database.as_ref(), rebuild: REBUILD, files: &files };
    let known = KnownLog::hold(Arc::clone(&log), &memory).await?;
    let plane = ControlPlane::start(&known, stop_views.clone()).await?;
    let mut essential = Essential::default();
    let keeper = Keeper::start(&state, files, Arc::clone(&plane.hot)).await?;
    essential.spawn("the log's checkpoint", keeper.run(stop.clone()));

    let projector = match &database {
        Some(database) if has(RoleName::Projector) => Some(Supervisor::start(&log, database)),
        Some(_) | None => None,
    };
    let mut addresses = serde_json::Map::new();
    let mut gateway = None;
    if has(RoleName::Gateway) {
        let mut config = envforge_gateway::Config::new(domain, scheme, args.gateway_listen);
        config.public_port = port;
        args.gateway.apply(&mut config);
        config.tls = match (args.gateway_tls_certificate, args.gateway_tls_key) {
            (Some(certificate_chain), Some(private_key)) => Some(TlsFiles { certificate_chain, private_key }),
            (Some(_), None) | (None, Some(_)) | (None, None) => None,
        };
        let activity = Activity::default();
        let started =
            roles::start_gateway(&plane, config, keys.verifier()?, keys.handoff_key()?, activity.clone()).await?;
        addresses.insert("gateway".to_owned(), started.address().to_string().into());
        roles::report_activity(&mut essential, &plane, activity, &stop);
        gateway = Some(started);
    }
    if has(RoleName::Reactors) {
        std::fs::create_dir_all(&args.runtime).with_context(|| args.runtime.display().to_string())?;
        roles::start_reactors(&mut essential, &plane, &args.runtime, authority.clone(), &stop).await?;
    }
    if let Some(database) = database.filter(|_| has(RoleName::Api)) {
        let parts = api::Parts {
            database,
            identity: args.stores.identity(args.gateway_url.clone()).await?,
            signing_key: Arc::new(SigningKey::load(&keys.share())?),
            gateway_url: args.gateway_url.clone(),
            metrics,
            trusted_proxies: args.trusted_proxies,
            local_repositories: args.allow_local_repositories,
        };
        let address = api::start(&mut essential, &plane, parts, args.listen, &stop).await?;
        addresses.insert("api".to_owned(), format!("http://{address}").into());
    }
    roles::report_denials(&mut essential, &plane, &stop);
    println!("{}", serde_json::Value::Object(addresses));

    let failure = tokio::select! {
        () = asked_to_stop() => None,
        failure = essential.first_failure() => Some(failure),
    };
    if let Some(gateway) = gateway {
        gateway.stop().await;
    }
    stop.cancel();
    essential.finish().await;
    if let Some(projector) = projector {
        projector.stop().await;
    }
    stop_views.cancel();
    failure.map_or(Ok(()), Err)
}

/// Makes keys, organization, owner and account where they are missing.
pub(crate) async fn setup(args: SetupArgs) -> anyhow::Result<()> {
    telemetry::install(&args.stores.log, args.stores.log_format)?;
    let org_slug: OrgSlug = args.org.parse().context("--org")?;
    let email = EmailAddress::parse(&args.owner_email).context("--owner-email")?;
    Keys(&args.stores.keys).make()?;
    let stop = CancellationToken::new();
    let log = args.stores.log("setup").await?;
    let identity = log.head().await?.identity;
    let database = args.stores.database().await?;
    let memory = Memory { database: Some(&database), rebuild: REBUILD, files: &[] };
    let known = KnownLog::hold(Arc::clone(&log), &memory).await?;
    let plane = ControlPlane::start(&known, stop.clone()).await?;
    let self_hosted = args.stores.identity(String::new()).await?;
    let owner = FirstOwner::of(&identity, org_slug, email);
    let password = owner.first_start(&plane, &identity, &self_hosted, args.owner_password_file.as_deref()).await?;
    stop.cancel();
    if args.json {
        let mut line = serde_json::json!({ "org": owner.org_slug.as_str(), "owner_email": owner.email.as_str() });
        if let Some(password) = &password {
            line["owner_password"] = password.expose().into();
        }
        println!("{line}");
    } else {
        println!("Organization {} belongs to {}.", owner.org_slug, owner.email.as_str());
        match &password {
            Some(password) => println!("Password: {}  (shown this once)", password.expose()),
            None => println!("Its owner's account exists already."),
        }
    }
    Ok(())
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
}
