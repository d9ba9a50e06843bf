//! What the operator says about the provider, checked as a whole: every mistake is told at once, before anything runs.
//!
//! Not here: reading files and the environment (the binary), and asking the provider (`provider`).

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use envforge_domain::access::Role;
use envforge_domain::secret::Secret;
use envforge_domain::slug::OrgSlug;
use envforge_domain::time::Millis;
use jsonwebtoken::Algorithm;
use reqwest::Url;
use serde::Deserialize;

use super::Client;

/// Organizations of one provider.
const ORGANIZATIONS_MAX: usize = 10_000;
const CLAIM_DEFAULT: &str = "org_id";
const SECRET_BYTES_MIN: usize = 16;
/// No session of ours is longer, whatever is configured.
const SESSION_MAX: Millis = crate::sessions::SESSION_LIFETIME;

/// The configuration file, as it stands there.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// `iss` of tokens, word for word: Auth0's ends with a slash.
    pub issuer: String,
    /// `aud` of access tokens: the API's identifier at the provider.
    pub audience: String,
    /// Where browsers reach this API: `https://api.envforge.ai`. The callback's address is made of it.
    pub api_url: String,
    #[serde(default)]
    pub clients: ClientsSettings,
    #[serde(default)]
    pub organizations: Vec<OrganizationSettings>,
    /// The claims that may name the organization; `org_id` where it is left out. Auth0 does not put that one into tokens of devices, so
    /// that an Action has to add one of another name. Where several stand in a token they must agree.
    pub organization_claims: Option<Vec<String>>,
    /// What tokens may be signed with; `RS256` where it is left out.
    pub algorithms: Option<Vec<String>>,
    /// How long a session at the provider lasts, where its ID tokens end earlier than that. Without it a session of ours ends with the
    /// provider's ID token.
    pub session_minutes_max: Option<u64>,
    /// File with the secret that the provider signs its events with; without it there is no such endpoint.
    pub events_secret_file: Option<PathBuf>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientsSettings {
    pub web: Option<ClientSettings>,
    pub cli: Option<ClientSettings>,
    /// Through which people sign in on the way to a workspace; without it they do so through `web`.
    pub gateway: Option<ClientSettings>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientSettings {
    pub id: String,
    /// For a client that can keep one; the command line cannot.
    pub secret_file: Option<PathBuf>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OrganizationSettings {
    /// The provider's id: Auth0's `org_…`.
    pub provider_id: String,
    /// Ours.
    pub slug: String,
    /// Whoever the provider says belongs to it becomes a member at first sight. Without it somebody has to add them.
    #[serde(default)]
    pub join: bool,
    /// A role that they then have. Without it somebody has to give them one.
    pub role: Option<String>,
    /// File with the bearer token of the provider's SCIM client for this organization.
    pub scim_token_file: Option<PathBuf>,
}

/// One mistake of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// Where, as in the file: `clients.web.id`.
    pub field: String,
    /// What is wrong and what would be right.
    pub reason: String,
}

/// All mistakes of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl fmt::Display for ConfigErrors {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<_> = self.0.iter().map(|error| format!("`{}` {}", error.field, error.reason)).collect();
        formatter.write_str(&lines.join("\n"))
    }
}

impl std::error::Error for ConfigErrors {}

/// A registered client.
#[derive(Clone)]
pub struct RegisteredClient {
    id: String,
    secret: Option<Secret>,
}

impl RegisteredClient {
    pub fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn secret(&self) -> Option<&Secret> {
        self.secret.as_ref()
    }
}

/// An organization of the provider's and which one of ours it is.
#[derive(Clone)]
pub struct MappedOrganization {
    pub provider_id: String,
    pub slug: OrgSlug,
    pub join: bool,
    pub role: Option<Role>,
    scim_token: Option<Secret>,
}

impl MappedOrganization {
    pub fn scim_token(&self) -> Option<&Secret> {
        self.scim_token.as_ref()
    }
}

/// Scheme and authority at which browsers reach us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicUrl(Url);

impl PublicUrl {
    /// `https`, or `http` on this machine, without a path.
    pub fn parse(text: &str) -> Option<Self> {
        let url = Url::parse(text).ok()?;
        let plain = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
        let nobody = url.username().is_empty() && url.password().is_none();
        (plain && nobody && (url.scheme() == "https" || url.scheme() == "http" && is_loopback(&url)))
            .then_some(Self(url))
    }

    /// `Origin` of our own pages.
    pub fn origin(&self) -> String {
        self.0.origin().ascii_serialization()
    }

    pub fn is_https(&self) -> bool {
        self.0.scheme() == "https"
    }

    pub fn at(&self, path: &str) -> String {
        format!("{}{path}", self.origin())
    }
}

/// A configuration without mistakes.
#[derive(Clone)]
pub struct Config {
    issuer: String,
    issuer_url: Url,
    audience: String,
    api_url: PublicUrl,
    web: Option<RegisteredClient>,
    cli: Option<RegisteredClient>,
    gateway: Option<RegisteredClient>,
    organizations: Vec<MappedOrganization>,
    organization_claims: Vec<String>,
    algorithms: Vec<Algorithm>,
    session_max: Option<Millis>,
    events_secret: Option<Secret>,
}

impl Config {
    /// Checks everything. `read` gives the content of a file; only the binary reads files.
    pub fn check(
        settings: Settings,
        mut read: impl FnMut(&Path) -> std::io::Result<String>,
    ) -> Result<Self, ConfigErrors> {
        let mut errors = Errors::default();
        let issuer_url = errors.url("issuer", &settings.issuer);
        let api_url = errors.url("api_url", &settings.api_url);
        if let Some(url) = &api_url
            && url.path() != "/"
        {
            errors.add("api_url", "must have no path: the API's paths begin with /v1");
        }
        if settings.audience.is_empty() || settings.audience.len() > 255 {
            errors.add("audience", "must be the identifier of EnvForge's API at the provider, 1 to 255 characters");
        }
        let ClientsSettings { web, cli, gateway } = settings.clients;
        let mut client = |name: &str, given: Option<ClientSettings>| {
            let given = given?;
            let field = |what: &str| format!("clients.{name}.{what}");
            let id_ok = (1..=255).contains(&given.id.len()) && given.id.bytes().all(|byte| byte.is_ascii_graphic());
            if !id_ok {
                errors.add(&field("id"), "must be the client id that the provider shows, 1 to 255 visible characters");
            }
            let secret = given.secret_file.and_then(|path| errors.secret(&field("secret_file"), &path, &mut read));
            Some(RegisteredClient { id: given.id, secret })
        };
        let (web, cli, gateway) = (client("web", web), client("cli", cli), client("gateway", gateway));
        if web.is_none() && cli.is_none() {
            errors.add("clients", "must name `web`, `cli` or both: without a client nobody can sign in");
        }
        let mut ids = BTreeSet::new();
        for (name, known) in [("web", &web), ("cli", &cli), ("gateway", &gateway)] {
            let Some(known) = known else { continue };
            if !ids.insert(known.id.clone()) {
                errors.add(
                    &format!("clients.{name}.id"),
                    "is another client's id: a token of one surface would be good on the other",
                );
            }
            if known.id == settings.audience {
                errors.add("audience", "must not be a client id: an ID token would pass for an access token");
            }
        }
        if cli.as_ref().is_some_and(|cli| cli.secret.is_some()) {
            errors.add("clients.cli.secret_file", "must be left out: a program on people's machines keeps no secret");
        }
        let organizations = errors.organizations(settings.organizations, &mut read);
        let algorithms = errors.algorithms(settings.algorithms);
        let organization_claims = settings.organization_claims.unwrap_or_else(|| vec![CLAIM_DEFAULT.to_owned()]);
        if !(1..=4).contains(&organization_claims.len())
            || organization_claims.iter().any(|claim| !(1..=255).contains(&claim.len()))
        {
            errors.add("organization_claims", "must be 1 to 4 names of claims, 1 to 255 characters each");
        }
        let session_max = settings.session_minutes_max.map(Millis::from_minutes);
        if session_max.is_some_and(|max| max < Millis::from_minutes(5) || max > SESSION_MAX) {
            errors.add("session_minutes_max", "must be 5 to 43200 minutes");
        }
        let events_secret =
            settings.events_secret_file.and_then(|path| errors.secret("events_secret_file", &path, &mut read));
        match (issuer_url, api_url) {
            (Some(issuer_url), Some(api_url)) if errors.0.is_empty() => Ok(Self {
                issuer: settings.issuer,
                issuer_url,
                audience: settings.audience,
                api_url: PublicUrl(api_url),
                web,
                cli,
                gateway,
                organizations,
                organization_claims,
                algorithms,
                session_max,
                events_secret,
            }),
            _ => Err(ConfigErrors(errors.0)),
        }
    }

    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    pub(super) fn issuer_url(&self) -> &Url {
        &self.issuer_url
    }

    pub fn audience(&self) -> &str {
        &self.audience
    }

    pub fn api_url(&self) -> &PublicUrl {
        &self.api_url
    }

    /// Where the provider sends browsers back to.
    pub fn callback_url(&self) -> String {
        self.api_url.at("/v1/auth/oidc/callback")
    }

    pub fn client(&self, client: Client) -> Option<&RegisteredClient> {
        match client {
            Client::Web => self.web.as_ref(),
            Client::Cli => self.cli.as_ref(),
            Client::Gateway => self.gateway.as_ref(),
        }
    }

    /// An organization by the provider's id. Names and slugs of the provider's do not count: they change hands.
    pub fn organization(&self, provider_id: &str) -> Option<&MappedOrganization> {
        self.organizations.iter().find(|organization| organization.provider_id == provider_id)
    }

    pub fn organization_of(&self, slug: &OrgSlug) -> Option<&MappedOrganization> {
        self.organizations.iter().find(|organization| organization.slug == *slug)
    }

    pub fn organizations(&self) -> &[MappedOrganization] {
        &self.organizations
    }

    pub(super) fn organization_claims(&self) -> &[String] {
        &self.organization_claims
    }

    pub(crate) fn algorithms(&self) -> &[Algorithm] {
        &self.algorithms
    }

    pub(super) fn session_max(&self) -> Option<Millis> {
        self.session_max
    }

    /// What the provider signs its events with.
    pub fn events_secret(&self) -> Option<&Secret> {
        self.events_secret.as_ref()
    }
}

/// Whether plain http may be spoken with this host: on the machine itself, for tests and development.
pub(super) fn is_loopback(url: &Url) -> bool {
    match url.host_str() {
        Some(host) => {
            let bare = host.trim_start_matches('[').trim_end_matches(']');
            bare == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
        }
        None => false,
    }
}

#[derive(Default)]
struct Errors(Vec<ConfigError>);

impl Errors {
    fn add(&mut self, field: &str, reason: &str) {
        self.0.push(ConfigError { field: field.to_owned(), reason: reason.to_owned() });
    }

    fn url(&mut self, field: &str, text: &str) -> Option<Url> {
        let url = match Url::parse(text) {
            Ok(url) => url,
            Err(error) => {
                self.add(field, &format!("is not a URL ({error}); write for example https://tenant.eu.auth0.com/"));
                return None;
            }
        };
        let before = self.0.len();
        match url.scheme() {
            "https" => {}
            "http" if is_loopback(&url) => {}
            _ => self.add(field, "must begin with https://; http:// is for loopback addresses alone"),
        }
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() || url.fragment().is_some() {
            self.add(field, "must have no user, query or fragment");
        }
        (self.0.len() == before).then_some(url)
    }

    fn secret(
        &mut self,
        field: &str,
        path: &Path,
        read: &mut impl FnMut(&Path) -> std::io::Result<String>,
    ) -> Option<Secret> {
        match read(path) {
            Ok(text) if text.trim().len() >= SECRET_BYTES_MIN => Some(Secret::new(text.trim().to_owned())),
            Ok(_) => {
                let reason = format!("{} holds fewer than {SECRET_BYTES_MIN} characters", path.display());
                self.add(field, &format!("names a file without a secret: {reason}"));
                None
            }
            Err(error) => {
                self.add(field, &format!("names a file that cannot be read: {}: {error}", path.display()));
                None
            }
        }
    }

    fn organizations(
        &mut self,
        given: Vec<OrganizationSettings>,
        read: &mut impl FnMut(&Path) -> std::io::Result<String>,
    ) -> Vec<MappedOrganization> {
        if given.is_empty() {
            self.add("organizations", "must map at least one organization of the provider to one of EnvForge");
        }
        if given.len() > ORGANIZATIONS_MAX {
            self.add("organizations", &format!("has more than {ORGANIZATIONS_MAX} entries"));
        }
        let (mut ids, mut slugs) = (BTreeSet::new(), BTreeSet::new());
        let mut mapped = Vec::new();
        for (index, organization) in given.into_iter().enumerate() {
            let field = |what: &str| format!("organizations[{index}].{what}");
            if !(1..=255).contains(&organization.provider_id.len()) {
                self.add(&field("provider_id"), "must be the provider's id of the organization, 1 to 255 characters");
            }
            if !ids.insert(organization.provider_id.clone()) {
                self.add(&field("provider_id"), "is mapped twice");
            }
            let slug = match organization.slug.parse::<OrgSlug>() {
                Ok(slug) => slug,
                Err(error) => {
                    self.add(&field("slug"), &format!("is not an organization's slug: {error}"));
                    continue;
                }
            };
            if !slugs.insert(slug.to_string()) {
                self.add(&field("slug"), "is mapped twice");
            }
            let role = match organization.role.as_deref().map(str::parse::<Role>) {
                None => None,
                // Whoever the provider lets in would own the place.
                Some(Ok(Role::Owner | Role::Admin | Role::Mod | Role::Billing)) => {
                    self.add(
                        &field("role"),
                        "must be a role without power over others: developer, viewer, explore or create",
                    );
                    None
                }
                Some(Ok(role)) => Some(role),
                Some(Err(error)) => {
                    self.add(&field("role"), &error.to_string());
                    None
                }
            };
            if role.is_some() && !organization.join {
                self.add(&field("role"), "has no effect without `join`: true");
            }
            let scim_token =
                organization.scim_token_file.and_then(|path| self.secret(&field("scim_token_file"), &path, read));
            let OrganizationSettings { provider_id, join, .. } = organization;
            mapped.push(MappedOrganization { provider_id, slug, join, role, scim_token });
        }
        mapped
    }

    fn algorithms(&mut self, given: Option<Vec<String>>) -> Vec<Algorithm> {
        let Some(given) = given else { return vec![Algorithm::RS256] };
        let mut algorithms = Vec::new();
        for (index, name) in given.iter().enumerate() {
            match name.as_str() {
                "RS256" => algorithms.push(Algorithm::RS256),
                "ES256" => algorithms.push(Algorithm::ES256),
                "EdDSA" => algorithms.push(Algorithm::EdDSA),
                _ => self.add(&format!("algorithms[{index}]"), "must be `RS256`, `ES256` or `EdDSA`"),
            }
        }
        if given.is_empty() {
            self.add("algorithms", "must name at least one");
        }
        algorithms
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const GOOD: &str = r#"{
        "issuer": "https://tenant.us.auth0.com/", "audience": "https://api.envforge.ai", "api_url": "https://api.envforge.ai",
        "clients": { "web": { "id": "web", "secret_file": "/web" }, "cli": { "id": "cli" }, "gateway": { "id": "gateway" } },
        "organizations": [{ "provider_id": "org_1", "slug": "acme", "join": true, "role": "viewer" }]
    }"#;

    fn check(text: &str) -> Result<Config, ConfigErrors> {
        let settings = serde_json::from_str(text).unwrap();
        Config::check(settings, |path| match path.to_str() {
            Some("/web") => Ok("a secret of the web client\n".to_owned()),
            Some("/short") => Ok("short".to_owned()),
            _ => Err(std::io::ErrorKind::NotFound.into()),
        })
    }

    fn fields(text: &str) -> Vec<String> {
        check(text).err().unwrap().0.into_iter().map(|error| error.field).collect()
    }

    #[test]
    fn a_configuration_without_mistakes_is_taken() {
        let config = check(GOOD).unwrap();
        assert_eq!(config.callback_url(), "https://api.envforge.ai/v1/auth/oidc/callback");
        assert_eq!(config.algorithms(), [Algorithm::RS256]);
        assert_eq!(config.organization("org_1").unwrap().slug.to_string(), "acme");
        assert!(config.organization("acme").is_none(), "a name of the provider's is no key");
        assert!(config.client(Client::Web).unwrap().secret().is_some());
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        let wrong = r#"{
            "issuer": "http://tenant.us.auth0.com/", "audience": "cli", "api_url": "https://api.envforge.ai/base?x=1",
            "clients": { "web": { "id": "same", "secret_file": "/short" }, "cli": { "id": "cli", "secret_file": "/web" },
                         "gateway": { "id": "same", "secret_file": "/missing" } },
            "organizations": [{ "provider_id": "org_1", "slug": "No Slug" }, { "provider_id": "org_1", "slug": "acme", "join": true, "role": "owner" },
                              { "provider_id": "org_2", "slug": "acme", "role": "viewer" }],
            "algorithms": ["RS256", "HS256", "none"], "session_minutes_max": 1, "events_secret_file": "/missing"
        }"#;
        let found = fields(wrong);
        for field in [
            "issuer",
            "api_url",
            "clients.web.secret_file",
            "clients.gateway.secret_file",
            "clients.gateway.id",
            "audience",
            "clients.cli.secret_file",
            "organizations[0].slug",
            "organizations[1].provider_id",
            "organizations[1].role",
            "organizations[2].slug",
            "organizations[2].role",
            "algorithms[1]",
            "algorithms[2]",
            "session_minutes_max",
            "events_secret_file",
        ] {
            assert!(found.iter().any(|named| named == field), "`{field}` is not in {found:?}");
        }
    }

    #[test]
    fn http_is_for_the_machine_itself_alone() {
        for ok in ["http://127.0.0.1:4000/", "http://localhost:4000/", "http://[::1]:4000/"] {
            assert!(check(&GOOD.replace("https://tenant.us.auth0.com/", ok)).is_ok(), "{ok}");
        }
        for wrong in ["http://127.0.0.1.example.com/", "http://localhost.example.com/", "ftp://localhost/", "nonsense"]
        {
            assert_eq!(fields(&GOOD.replace("https://tenant.us.auth0.com/", wrong)), ["issuer"], "{wrong}");
        }
    }

    #[test]
    fn nothing_secret_stands_in_an_error() {
        let errors = check(&GOOD.replace("\"cli\" }", "\"cli\", \"secret_file\": \"/web\" }")).err().unwrap();
        assert!(!errors.to_string().contains("a secret of"), "{errors}");
    }
}
