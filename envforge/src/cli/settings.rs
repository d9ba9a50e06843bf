//! Where the command line finds its API and organization, and the one place of it that reads the environment.
//!
//! Order: flag, environment variable, profile file, default. Not here: who is signed in (`credentials`).

use std::path::{Path, PathBuf};

use clap::Args;
use envforge_domain::slug::OrgSlug;
use reqwest::Url;
use serde::{Deserialize, Serialize};

use super::credentials::Keep;
use super::failure::Failure;
use super::private_file;

/// Where `envforge dev` listens unless told otherwise, hence where the command line looks without any setting.
pub(crate) const API_DEFAULT: &str = "http://127.0.0.1:7070";

/// Options that every command takes.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct GlobalArguments {
    /// URL of the API, for example https://api.envforge.ai [default: the one of the last login, else http://127.0.0.1:7070]
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "ENVFORGE_API",
        hide_env_values = true,
        help_heading = "Global options"
    )]
    pub api: Option<String>,

    /// Organization, by slug or id [default: the one you signed in to]
    #[arg(
        long,
        global = true,
        value_name = "ORG",
        env = "ENVFORGE_ORG",
        hide_env_values = true,
        help_heading = "Global options"
    )]
    pub org: Option<String>,

    /// Results as JSON on standard output, errors as JSON on standard error
    #[arg(long, global = true, help_heading = "Global options")]
    pub json: bool,

    /// No colours (also: NO_COLOR in the environment, or output that is no terminal)
    #[arg(long, global = true, help_heading = "Global options")]
    pub no_color: bool,

    /// Folder of the profile and of the credentials
    #[arg(long, global = true, value_name = "DIR", env = "ENVFORGE_CONFIG_DIR", hide = true)]
    pub config_dir: Option<PathBuf>,

    /// Where credentials are kept: `auto`, `keyring` or `file`
    #[arg(long, global = true, value_name = "WHERE", env = Keep::VARIABLE, hide = true)]
    pub credentials: Option<String>,
}

/// What `envforge login` remembers besides the credentials. No secrets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Profile {
    pub api: Option<String>,
    pub org: Option<String>,
}

/// Who decided on a setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// Flag or environment variable.
    Given,
    Profile,
    Default,
}

/// The resolved settings of one run.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub api: Api,
    pub api_source: Source,
    /// As given or remembered; `None`: the organization of whoever is signed in.
    pub org: Option<String>,
    pub config_dir: PathBuf,
    pub keep: Keep,
}

/// The API's address: `https`, or `http` on this machine alone, because passwords and tokens travel on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Api(Url);

impl Api {
    /// # Errors
    /// A sentence that says what would be right.
    pub(crate) fn parse(text: &str) -> Result<Self, Failure> {
        let wrong = |why: &str| {
            let shown: String = text.chars().take(120).collect();
            Failure::usage(
                format!("`{shown}` cannot be the API's address: {why}"),
                "write for example https://api.envforge.ai, or http://127.0.0.1:7070 for `envforge dev`",
            )
        };
        let mut url = Url::parse(text).map_err(|error| wrong(&error.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(wrong("it begins with neither https:// nor http://"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            // Not repeated: it may be a real password.
            return Err(Failure::usage(
                "the API's address must not hold a user name or password",
                "sign in with `envforge login`",
            ));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(wrong("it has a query or fragment"));
        }
        let api = {
            let path = url.path().trim_end_matches('/').to_owned();
            url.set_path(&path);
            Self(url)
        };
        if api.0.scheme() == "http" && !api.is_loopback() {
            return Err(wrong("plain http would show your password and tokens to the network; use https"));
        }
        Ok(api)
    }

    /// Whether it is this machine: then local paths mean the same on both sides.
    pub(crate) fn is_loopback(&self) -> bool {
        match self.0.host_str() {
            Some(host) => {
                let bare = host.trim_start_matches('[').trim_end_matches(']');
                let name = bare == "localhost" || bare.ends_with(".localhost");
                name || bare.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
            }
            None => false,
        }
    }

    /// The URL of `/v1/<segments>`, each segment percent-encoded, so that no name can become a path of its own.
    pub(crate) fn url(&self, segments: &[&str]) -> Url {
        let mut url = self.0.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(segments);
        }
        url
    }

    pub(crate) fn base(&self) -> &Url {
        &self.0
    }

    /// What credentials are kept under: scheme, host, port and path.
    pub(crate) fn key(&self) -> String {
        self.0.as_str().trim_end_matches('/').to_owned()
    }
}

impl Settings {
    /// # Errors
    /// A setting that cannot be used, with where it came from.
    pub(crate) fn resolve(arguments: &GlobalArguments) -> Result<Self, Failure> {
        let config_dir = match &arguments.config_dir {
            Some(dir) => dir.clone(),
            None => directories::ProjectDirs::from("", "", "envforge")
                .map(|dirs| dirs.config_dir().to_owned())
                .ok_or_else(|| {
                    Failure::local("this user has no home folder", "name a folder: ENVFORGE_CONFIG_DIR=/some/folder")
                })?,
        };
        let profile = Profile::read(&config_dir)?;
        let (api, api_source) = match (non_empty(&arguments.api), non_empty(&profile.api)) {
            (Some(given), _) => (given, Source::Given),
            (None, Some(remembered)) => (remembered, Source::Profile),
            (None, None) => (API_DEFAULT, Source::Default),
        };
        let api = Api::parse(api)?;
        // An organization that was remembered for another API says nothing about this one.
        let of_this_api =
            profile.api.as_deref().is_some_and(|remembered| Api::parse(remembered).ok() == Some(api.clone()));
        let remembered = if of_this_api { non_empty(&profile.org) } else { None };
        let org = match non_empty(&arguments.org).or(remembered) {
            Some(org) => Some(org_reference(org)?),
            None => None,
        };
        let keep = match non_empty(&arguments.credentials) {
            None => Keep::default(),
            Some(text) => Keep::parse(text).ok_or_else(|| {
                let shown: String = text.chars().take(40).collect();
                Failure::usage(
                    format!("`{shown}` is no place for credentials"),
                    format!("{}=auto (the keyring where one is open, else a file), =keyring or =file", Keep::VARIABLE),
                )
            })?,
        };
        Ok(Self { api, api_source, org, config_dir, keep })
    }
}

impl Profile {
    const FILE: &str = "profile.json";

    pub(crate) fn path(config_dir: &Path) -> PathBuf {
        config_dir.join(Self::FILE)
    }

    /// The profile; an empty one where there is no file.
    pub(crate) fn read(config_dir: &Path) -> Result<Self, Failure> {
        let path = Self::path(config_dir);
        match private_file::read(&path)? {
            None => Ok(Self::default()),
            Some(text) => serde_json::from_str(&text).map_err(|error| {
                Failure::local(
                    format!("{} cannot be read: {error}", path.display()),
                    "mend it, or remove it and sign in again: `envforge login`",
                )
            }),
        }
    }

    pub(crate) fn write(&self, config_dir: &Path) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(self).map_err(std::io::Error::from)?;
        private_file::write(&Self::path(config_dir), &(text + "\n"))
    }
}

/// A slug or id of an organization.
fn org_reference(text: &str) -> Result<String, Failure> {
    if text.parse::<envforge_domain::ids::OrgId>().is_ok() {
        return Ok(text.to_owned());
    }
    match text.parse::<OrgSlug>() {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(Failure::usage(error.to_string(), "name the organization by its slug or its id (org_…)")),
    }
}

fn non_empty(text: &Option<String>) -> Option<&str> {
    text.as_deref().filter(|text| !text.is_empty())
}

/// `NO_COLOR` set and not empty (no-color.org), or a terminal that knows no colours.
pub(crate) fn environment_refuses_color() -> bool {
    let set = |name: &str| variable(name).is_some_and(|value| !value.is_empty());
    set("NO_COLOR") || variable("TERM").is_some_and(|term| term == "dumb")
}

#[expect(clippy::disallowed_methods, reason = "the binary's command line reads the environment here and nowhere else")]
fn variable(name: &str) -> Option<std::ffi::OsString> {
    std::env::var_os(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(dir: &Path, api: Option<&str>, org: Option<&str>) -> GlobalArguments {
        GlobalArguments {
            api: api.map(str::to_owned),
            org: org.map(str::to_owned),
            config_dir: Some(dir.to_owned()),
            ..GlobalArguments::default()
        }
    }

    #[test]
    fn a_given_setting_beats_the_profile_and_the_profile_beats_the_default() {
        let dir = tempfile::tempdir().unwrap();
        let nothing = Settings::resolve(&arguments(dir.path(), None, None)).unwrap();
        assert_eq!((nothing.api.key().as_str(), nothing.api_source, nothing.org), (API_DEFAULT, Source::Default, None));

        let remembered = Profile { api: Some("https://api.example.com/".into()), org: Some("acme".into()) };
        remembered.write(dir.path()).unwrap();
        let profile = Settings::resolve(&arguments(dir.path(), None, None)).unwrap();
        assert_eq!(profile.api.key(), "https://api.example.com");
        assert_eq!((profile.api_source, profile.org.as_deref()), (Source::Profile, Some("acme")));

        let given = Settings::resolve(&arguments(dir.path(), Some("http://localhost:1"), Some("globex"))).unwrap();
        assert_eq!((given.api.key().as_str(), given.api_source), ("http://localhost:1", Source::Given));
        assert_eq!(given.org.as_deref(), Some("globex"));
    }

    #[test]
    fn an_organization_remembered_for_one_api_is_not_used_for_another() {
        let dir = tempfile::tempdir().unwrap();
        Profile { api: Some("https://a.example".into()), org: Some("acme".into()) }.write(dir.path()).unwrap();
        assert_eq!(Settings::resolve(&arguments(dir.path(), Some("https://b.example"), None)).unwrap().org, None);
        let same = Settings::resolve(&arguments(dir.path(), Some("https://a.example/"), None)).unwrap();
        assert_eq!(same.org.as_deref(), Some("acme"));
    }

    #[test]
    fn empty_variables_count_as_not_set() {
        let dir = tempfile::tempdir().unwrap();
        let settings = Settings::resolve(&arguments(dir.path(), Some(""), Some(""))).unwrap();
        assert_eq!((settings.api_source, settings.org), (Source::Default, None));
    }

    #[test]
    fn plain_http_is_for_this_machine_alone() {
        for ok in ["http://127.0.0.1:7070", "http://localhost", "http://[::1]:80", "https://api.example.com/base"] {
            assert!(Api::parse(ok).is_ok(), "{ok}");
        }
        for (bad, part) in [
            ("http://api.example.com", "use https"),
            ("http://127.0.0.1.example.com", "use https"),
            ("http://localhost.example.com", "use https"),
            ("ftp://localhost", "https://"),
            ("api.example.com", "relative URL"),
            ("https://a.example/?x=1", "query"),
        ] {
            let failure = Api::parse(bad).unwrap_err().to_string();
            assert!(failure.contains(part), "{bad}: {failure}");
        }
        let secret = Api::parse("https://dana:hunter2@a.example").unwrap_err().to_string();
        assert!(!secret.contains("hunter2"), "{secret}");
    }

    #[test]
    fn names_in_paths_stay_one_segment() {
        let api = Api::parse("https://a.example/base/").unwrap();
        assert_eq!(api.url(&["v1", "orgs", "a/../b?c"]).as_str(), "https://a.example/base/v1/orgs/a%2F..%2Fb%3Fc");
    }

    #[test]
    fn a_broken_profile_says_which_file_it_is() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(Profile::path(dir.path()), "{").unwrap();
        let failure = Settings::resolve(&arguments(dir.path(), None, None)).unwrap_err().to_string();
        assert!(failure.contains("profile.json"), "{failure}");
    }
}
