//! `envforge doctor`: looks at everything that has to be right for envforge to work here, and says what to do about the rest.
//!
//! Changes nothing, and shows no secret. Not here: the health of the server itself, beyond whether it answers.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use clap::Args;
use envforge_domain::slug::{HostLabel, OrgSlug, WorkspaceSlug};
use envforge_runtime::UnixUsers;
use reqwest::Url;
use serde_json::{Value, json};

use super::Context;
use super::branch_slug;
use super::checkout::{Checkout, git_version};
use super::credentials::Whereabouts;
use super::failure::{Exit, Failure};
use super::manifest_file::{FILE, ManifestFile, Unusable};
use super::output::{Output, printable};
use super::private_file;

#[derive(Args, Debug)]
#[command(after_help = "Ends with 1 where a check failed; warnings end with 0.")]
pub(crate) struct DoctorArguments {
    /// Folder to look at
    #[arg(long, value_name = "DIR", default_value = ".")]
    directory: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Ok,
    Warn,
    Fail,
}

impl Verdict {
    const fn token(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// Where `serve` keeps the state of workspaces, unless it is told otherwise.
const RUNTIME: &str = "/var/lib/envforge/runtime";

/// What was looked at, and what to do where it is not right.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Check {
    name: &'static str,
    verdict: Verdict,
    found: String,
    hint: String,
}

impl Check {
    fn ok(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Ok, found: found.into(), hint: String::new() }
    }

    fn warn(name: &'static str, found: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Warn, found: found.into(), hint: hint.into() }
    }

    fn fail(name: &'static str, found: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Fail, found: found.into(), hint: hint.into() }
    }

    /// A failure of another command as the verdict of a check.
    fn of(name: &'static str, verdict: Verdict, failure: &Failure) -> Self {
        let hint = failure.to_json()["error"]["hint"].as_str().unwrap_or_default().to_owned();
        Self { name, verdict, found: failure.to_string(), hint }
    }

    fn to_json(&self) -> Value {
        let hint = (!self.hint.is_empty()).then_some(&self.hint);
        json!({ "name": self.name, "verdict": self.verdict.token(), "found": self.found, "hint": hint })
    }
}

pub(super) async fn run(context: &Context, arguments: DoctorArguments) -> Result<Exit, Failure> {
    let output = &context.output;
    let (reachable, mut checks) = api(context).await;
    let signed_in = if reachable { session(context).await } else { local_session(context).await };
    checks.extend(signed_in);
    checks.push(credentials(context).await);
    checks.push(git());
    let folder = repository(&arguments.directory);
    checks.push(folder.0);
    if let Some(checkout) = &folder.1 {
        let (check, file) = manifest(&checkout.root);
        checks.push(check);
        if let Some(file) = file {
            checks.push(labels(context, checkout, &file).await);
        }
    }
    checks.push(gateway(context, reachable).await);
    checks.push(python());
    if context.client.api().is_loopback() {
        checks.push(users());
    }

    let failed = checks.iter().filter(|check| check.verdict == Verdict::Fail).count();
    let all: Vec<_> = checks.iter().map(Check::to_json).collect();
    let value = json!({ "ok": failed == 0, "version": env!("CARGO_PKG_VERSION"), "checks": all });
    output.result(&value, || render(output, &checks))?;
    Ok(if failed == 0 { Exit::Ok } else { Exit::Refused })
}

/// As whom services run where this user starts EnvForge on this machine.
fn users() -> Check {
    match UnixUsers::supported(Path::new(RUNTIME)) {
        Ok(()) => Check::ok(
            "services",
            format!("run as unix users of their own below {RUNTIME}, where EnvForge runs as root"),
        ),
        Err(why) => Check::warn(
            "services",
            format!("run as the user who starts EnvForge: one can read another's secrets ({why})"),
            "fine for your own code; as root and with `dev --runtime DIR` below a directory that others enter, each has a user of its own",
        ),
    }
}

fn render(output: &Output, checks: &[Check]) -> String {
    let width = checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for check in checks {
        let verdict = match check.verdict {
            Verdict::Ok => output.green("ok  "),
            Verdict::Warn => output.yellow("warn"),
            Verdict::Fail => output.red("fail"),
        };
        text.push_str(&format!("{verdict}  {:width$}  {}\n", check.name, printable(&check.found)));
        if !check.hint.is_empty() {
            text.push_str(&format!("      {:width$}  {} {}\n", "", output.cyan("hint:"), printable(&check.hint)));
        }
    }
    text
}

/// A difference that signing in and tokens forgive.
const SKEW_WARN_S: u64 = 30;
/// A difference that makes times on the screen wrong and tokens look expired or not yet valid.
const SKEW_FAIL_S: u64 = 300;

async fn api(context: &Context) -> (bool, Vec<Check>) {
    let address = context.client.api().key();
    let health = match context.client.get_unsigned(&["healthz"]).await {
        Ok(health) => health,
        Err(failure) => return (false, vec![Check::of("api", Verdict::Fail, &failure)]),
    };
    let mut checks = Vec::new();
    match context.client.get_unsigned(&["v1", "openapi.json"]).await {
        Ok(document) => {
            let theirs = document.body["info"]["version"].as_str().unwrap_or("unknown").to_owned();
            let ours = env!("CARGO_PKG_VERSION");
            checks.push(if theirs == ours {
                Check::ok("api", format!("{address}, version {theirs}"))
            } else {
                Check::warn(
                    "api",
                    format!("{address} has version {theirs}, this envforge is {ours}"),
                    "where something is not understood, install the same version on both sides",
                )
            });
        }
        Err(failure) => checks.push(Check::of("api", Verdict::Fail, &failure)),
    }
    match context.client.get_unsigned(&["readyz"]).await {
        Ok(ready) => {
            let problems = ready.body["problems"].as_array().into_iter().flatten().filter_map(Value::as_str);
            let hint = "the operator's `envforge projections rebuild` folds a read model anew";
            checks.extend(problems.map(|problem| Check::warn("readiness", problem.to_owned(), hint)));
        }
        Err(failure) => checks.push(Check::of("readiness", Verdict::Warn, &failure)),
    }
    checks.push(match health.date {
        Some(theirs) => {
            let ours = context.output.instants.now();
            clock(theirs.duration_since(ours).as_secs().unsigned_abs())
        }
        None => Check::warn("clock", "the API does not say what time it is", ""),
    });
    (true, checks)
}

fn clock(skew_s: u64) -> Check {
    let found = format!("{skew_s} s apart from the API's");
    let hint = "set this machine's clock, or let it be set: `timedatectl set-ntp true`";
    if skew_s <= SKEW_WARN_S {
        Check::ok("clock", found)
    } else if skew_s <= SKEW_FAIL_S {
        Check::warn("clock", found, hint)
    } else {
        Check::fail("clock", found, hint)
    }
}

async fn session(context: &Context) -> Vec<Check> {
    match context.client.get(&["v1", "me"], &[]).await {
        Ok(me) => {
            let me = me.body;
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let roles: Vec<_> = me["roles"].as_array().into_iter().flatten().map(|held| text(&held["role"])).collect();
            let who = format!("{} in {}", text(&me["email"]), text(&me["org"]["slug"]));
            vec![if roles.is_empty() {
                Check::warn("session", format!("{who}, without any role"), "ask an owner or admin for one")
            } else {
                Check::ok("session", format!("{who} ({})", roles.join(", ")))
            }]
        }
        Err(failure) => vec![Check::of("session", Verdict::Fail, &failure)],
    }
}

async fn local_session(context: &Context) -> Vec<Check> {
    match context.client.account().await {
        Ok(account) => {
            vec![Check::warn("session", format!("{}, not checked: the API does not answer", account.email), "")]
        }
        Err(failure) => vec![Check::of("session", Verdict::Fail, &failure)],
    }
}

/// Where the credentials for this API are, and whether they are this person's alone.
async fn credentials(context: &Context) -> Check {
    const NAME: &str = "credentials";
    let credentials = context.client.credentials();
    let path = credentials.path();
    if private_file::is_open_to_others(&path) == Some(true) {
        return Check::fail(
            NAME,
            format!("{} can be read by others", path.display()),
            format!("`chmod 600 {}`, and sign out and in again: the tokens may be known", path.display()),
        );
    }
    match credentials.whereabouts(&context.client.api().key()).await {
        Ok(Whereabouts::Nowhere) => Check::ok(NAME, "none are stored"),
        Ok(Whereabouts::Keyring(Ok(name))) => Check::ok(NAME, format!("in the keyring `{name}`")),
        Ok(Whereabouts::Keyring(Err(why))) => Check::fail(
            NAME,
            format!("in this machine's keyring, which cannot be used: {why}"),
            "unlock it, or sign in again: `envforge login`",
        ),
        Ok(Whereabouts::File { next: Ok(name) }) => {
            Check::ok(NAME, format!("{}, yours alone; to be moved to the keyring `{name}`", path.display()))
        }
        Ok(Whereabouts::File { next: Err(why) }) => {
            Check::ok(NAME, format!("{}, yours alone; the keyring is not used: {why}", path.display()))
        }
        Err(failure) => Check::of(NAME, Verdict::Fail, &failure),
    }
}

fn git() -> Check {
    match git_version() {
        Ok(version) => Check::ok("git", version),
        Err(failure) => Check::of("git", Verdict::Fail, &failure),
    }
}

fn repository(folder: &Path) -> (Check, Option<Checkout>) {
    match Checkout::find(folder) {
        Ok(checkout) => match checkout.branch() {
            Ok(branch) => (
                Check::ok("repository", format!("{}, branch {}", checkout.root.display(), branch.as_str())),
                Some(checkout),
            ),
            Err(failure) => (Check::of("repository", Verdict::Warn, &failure), Some(checkout)),
        },
        Err(failure) => (Check::of("repository", Verdict::Warn, &failure), None),
    }
}

fn manifest(root: &Path) -> (Check, Option<ManifestFile>) {
    match ManifestFile::read(root) {
        Ok(file) => {
            let services: Vec<_> = file.manifest.services.iter().map(|service| service.name.as_str()).collect();
            (Check::ok(FILE, format!("valid; services {}", services.join(", "))), Some(file))
        }
        Err(Unusable::Missing(_)) => {
            (Check::warn(FILE, "there is none", "declare your services in it; docs/envforge-yml.md shows how"), None)
        }
        Err(Unusable::Unreadable(_, error)) => (Check::fail(FILE, error, "it must be a text file in UTF-8"), None),
        Err(Unusable::Invalid { errors, .. }) => {
            let first = errors.errors().first().map(ToString::to_string).unwrap_or_default();
            let more = errors.errors().len() + errors.omitted() - 1;
            let more = if more > 0 { format!(" (and {more} more)") } else { String::new() };
            (Check::fail(FILE, format!("{first}{more}"), "`envforge up` shows each mistake with its line"), None)
        }
    }
}

async fn labels(context: &Context, checkout: &Checkout, file: &ManifestFile) -> Check {
    const NAME: &str = "host names";
    let org = context.org().await.ok().and_then(|org| org.parse::<OrgSlug>().ok());
    let (Some(org), Ok(branch)) = (org, checkout.branch()) else {
        return Check::warn(NAME, "not checked: they need a branch and an organization", "sign in: `envforge login`");
    };
    let longest = file.web_services().map(|service| service.as_str().len()).max().unwrap_or(3);
    let slug = branch_slug::workspace_slug(branch.as_str(), branch_slug::room(&org, longest));
    labels_of(file, &slug, &org)
}

fn labels_of(file: &ManifestFile, slug: &WorkspaceSlug, org: &OrgSlug) -> Check {
    const NAME: &str = "host names";
    let mut longest = String::new();
    for service in file.web_services() {
        match HostLabel::new(service.clone(), slug.clone(), org.clone()) {
            Ok(label) if label.to_string().len() > longest.len() => longest = label.to_string(),
            Ok(_) => {}
            Err(error) => return Check::fail(NAME, error.to_string(), "choose shorter names"),
        }
    }
    if longest.is_empty() {
        return Check::warn(NAME, "no service has a web route", "declare one to share it by a link: `route: web`");
    }
    Check::ok(NAME, format!("{longest} ({} of 63 characters)", longest.len()))
}

const CONNECT_WAIT_MAX: Duration = Duration::from_secs(3);

/// Whether the address of a workspace leads somewhere from here.
async fn gateway(context: &Context, reachable: bool) -> Check {
    const NAME: &str = "gateway";
    let known = if reachable { workspace_url(context).await } else { None };
    let (url, certain) = match known {
        Some(url) => (url, true),
        // What `envforge dev` uses unless told otherwise.
        None if context.client.api().is_loopback() => {
            let url = Url::parse("http://web--doctor--envforge.dev.localhost:7080/");
            (url.expect("a constant that is a URL"), false)
        }
        None => {
            return Check::warn(
                NAME,
                "not checked: no workspace has an address yet",
                "run it again after `envforge up`",
            );
        }
    };
    let host = url.host_str().unwrap_or_default().to_owned();
    let port = url.port_or_known_default().unwrap_or(443);
    let addresses: Vec<_> = match tokio::net::lookup_host((host.as_str(), port)).await {
        Ok(addresses) => addresses.collect(),
        Err(error) if host.ends_with(".localhost") => {
            return Check::warn(
                NAME,
                format!("{host} does not resolve here ({error}), though browsers resolve it by themselves"),
                "for curl and the like: `curl --resolve HOST:PORT:127.0.0.1`, or nss-myhostname",
            );
        }
        Err(error) => {
            return Check::fail(
                NAME,
                format!("{host} does not resolve: {error}"),
                "the gateway's domain needs a wildcard record (*.DOMAIN) that points at the gateway",
            );
        }
    };
    if host.ends_with(".localhost") && !addresses.iter().all(|address| is_loopback(address.ip())) {
        return Check::fail(
            NAME,
            format!("{host} resolves to another machine"),
            "mend your resolver: names below localhost are this machine's (RFC 6761)",
        );
    }
    let connected = async {
        for address in &addresses {
            if tokio::net::TcpStream::connect(address).await.is_ok() {
                return true;
            }
        }
        false
    };
    match tokio::time::timeout(CONNECT_WAIT_MAX, connected).await {
        Ok(true) => Check::ok(NAME, format!("{host}:{port} answers")),
        Ok(false) | Err(_) if !certain => {
            Check::warn(NAME, format!("{host} resolves, nothing answers on port {port}"), "start it: `envforge dev`")
        }
        Ok(false) | Err(_) => Check::fail(
            NAME,
            format!("{host} resolves, nothing answers on port {port}"),
            "see whether the gateway runs and whether a firewall is in between",
        ),
    }
}

fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

/// The address of some workspace.
async fn workspace_url(context: &Context) -> Option<Url> {
    let org = context.org().await.ok()?;
    let page = context.client.list(&["v1", "orgs", &org, "workspaces"], &[], 1).await.ok()?;
    let slug = page["items"][0]["slug"].as_str()?.to_owned();
    let workspace = super::here::workspace(context, &org, &slug).await.ok()?;
    Url::parse(&workspace.urls.first()?.url).ok()
}

fn python() -> Check {
    const NAME: &str = "python3";
    let run = Command::new("python3").arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).output();
    match run {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout);
            Check::ok(NAME, text.trim().trim_start_matches("Python ").to_owned())
        }
        Ok(_) | Err(_) => {
            Check::warn(NAME, "there is none", "only the demo needs it (`envforge dev --demo`): install python3")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_are_judged_by_how_far_apart_they_are() {
        assert_eq!(clock(2).verdict, Verdict::Ok);
        assert_eq!(clock(90).verdict, Verdict::Warn);
        assert_eq!(clock(4_000).verdict, Verdict::Fail);
    }

    #[test]
    fn a_broken_manifest_fails_and_a_missing_one_warns() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(manifest(dir.path()).0.verdict, Verdict::Warn);
        std::fs::write(dir.path().join(FILE), "version: 1\nservices: []\n").unwrap();
        let (check, file) = manifest(dir.path());
        assert_eq!((check.verdict, file.is_none()), (Verdict::Fail, true));
        assert!(check.found.starts_with("2:"), "{check:?}");
    }

    #[test]
    fn the_report_puts_hints_below_what_they_are_about() {
        let checks = [Check::ok("git", "2.39.5"), Check::fail("session", "you are not signed in", "sign in")];
        assert_eq!(
            render(&Output::plain(), &checks),
            "ok    git      2.39.5\nfail  session  you are not signed in\n               hint: sign in\n"
        );
    }
}
