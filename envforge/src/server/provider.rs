//! The file that describes the OpenID provider, read and checked before anything is opened.
//!
//! Not here: what it may say (`envforge_identity::oidc::Config`).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use envforge_identity::oidc::{Config, Oidc, Settings};
use envforge_identity::sign_in::Identity;

use crate::cli::failure::Failure;

/// No such file comes near it.
const BYTES_MAX: u64 = 4 << 20;

/// Where people can sign in besides.
#[derive(Args, Debug)]
pub(crate) struct ProviderArgs {
    /// File that describes an OpenID provider (Auth0 or another) through which people can sign in; see docs/auth.md.
    #[arg(long, value_name = "FILE", env = "ENVFORGE_OIDC")]
    oidc: Option<PathBuf>,
}

impl ProviderArgs {
    /// What the file says.
    ///
    /// # Errors
    /// All its mistakes at once.
    pub(crate) fn read(&self) -> Result<Option<Config>, Failure> {
        let Some(path) = &self.oidc else { return Ok(None) };
        let wrong = |what: String| {
            Failure::usage(
                format!("{}: {what}", path.display()),
                "docs/auth.md shows a whole file and says what each line means",
            )
        };
        let text = read(path).map_err(|error| wrong(error.to_string()))?;
        let settings: Settings = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        let folder = path.parent().unwrap_or(Path::new("."));
        let config = Config::check(settings, |secret| read(&folder.join(secret)));
        config.map(Some).map_err(|errors| wrong(format!("{} mistakes\n{errors}", errors.0.len())))
    }
}

fn read(path: &Path) -> std::io::Result<String> {
    if std::fs::metadata(path)?.len() > BYTES_MAX {
        return Err(std::io::Error::other(format!("has more than {BYTES_MAX} bytes")));
    }
    std::fs::read_to_string(path)
}

/// The provider; it is asked for nothing yet.
pub(crate) fn open(config: Option<Config>, identity: &Identity) -> anyhow::Result<Option<Arc<Oidc>>> {
    let open = |config| Oidc::new(config, identity.self_hosted().credentials()).map(Arc::new);
    Ok(config.map(open).transpose()?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read_file(text: &str, secret: Option<&str>) -> Result<Option<Config>, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("oidc.json");
        std::fs::write(&path, text).unwrap();
        if let Some(secret) = secret {
            std::fs::write(directory.path().join("web.secret"), secret).unwrap();
        }
        ProviderArgs { oidc: Some(path) }.read().map_err(|failure| failure.to_string())
    }

    #[test]
    fn secrets_lie_beside_the_file_and_every_mistake_is_told() {
        let good = r#"{
            "issuer": "https://tenant.us.auth0.com/", "audience": "https://api.envforge.ai", "api_url": "https://api.envforge.ai",
            "clients": { "web": { "id": "web", "secret_file": "web.secret" } },
            "organizations": [{ "provider_id": "org_1", "slug": "acme" }]
        }"#;
        assert!(read_file(good, Some("a secret of the web client")).unwrap().is_some());
        let wrong = good.replace("https://tenant", "http://tenant");
        let errors = read_file(&wrong, None).err().unwrap();
        for part in ["oidc.json", "2 mistakes", "`issuer`", "`clients.web.secret_file`"] {
            assert!(errors.contains(part), "{part}: {errors}");
        }
        let misspelt = read_file(&good.replace("audience", "audiences"), None).err().unwrap();
        assert!(misspelt.contains("audiences") && misspelt.contains("line 2"), "{misspelt}");
        assert!(ProviderArgs { oidc: None }.read().unwrap().is_none());
    }
}
