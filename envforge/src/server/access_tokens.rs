//! How people's access tokens are signed and passwords hashed, as the operator chooses; and `envforge rotate-key`.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use envforge_identity::clock::{Clock as _, SystemClock};
use envforge_identity::key_ring::{self, SigningKeys};
use envforge_identity::password::BCRYPT_COST_DEFAULT;
use envforge_identity::sign_in::KEYS_OVERLAP;

use crate::cli::output::Output;

/// What signs access tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Algorithm {
    /// A secret: only this installation can verify them.
    Hs256,
    /// Ed25519 keys: other services verify them with /.well-known/jwks.json.
    Eddsa,
}

#[derive(Args, Clone, Debug)]
pub(crate) struct AccessTokenArgs {
    /// What signs access tokens. After a change everybody's client fetches new ones by itself.
    #[arg(long, value_name = "ALGORITHM", default_value = "hs256", env = "ENVFORGE_ACCESS_TOKENS")]
    access_tokens: Algorithm,
    /// bcrypt's cost for passwords; each step doubles the time. Existing ones are hashed anew at the next sign-in.
    #[arg(long, value_name = "COST", default_value_t = BCRYPT_COST_DEFAULT, env = "ENVFORGE_BCRYPT_COST",
        value_parser = clap::value_parser!(u32).range(10..=16))]
    pub(crate) bcrypt_cost: u32,
}

impl Default for AccessTokenArgs {
    fn default() -> Self {
        Self { access_tokens: Algorithm::Hs256, bcrypt_cost: BCRYPT_COST_DEFAULT }
    }
}

impl AccessTokenArgs {
    /// `folder`: the one of all keys.
    pub(crate) fn keys(&self, folder: &Path) -> SigningKeys {
        match self.access_tokens {
            Algorithm::Hs256 => SigningKeys::Hs256 { key_file: folder.join("access-token.key") },
            Algorithm::Eddsa => SigningKeys::EdDsa { folder: ring_in(folder) },
        }
    }
}

fn ring_in(folder: &Path) -> PathBuf {
    folder.join("access-token-keys")
}

/// Add the key that signs access tokens from ten minutes on. Running processes follow by themselves; the old key verifies for
/// an hour longer.
#[derive(Args, Debug)]
pub(crate) struct RotateKeyArgs {
    /// Folder with the control plane's keys: `keys` in the data folder of `dev`.
    #[arg(long, value_name = "DIR", env = "ENVFORGE_KEYS")]
    keys: PathBuf,
}

pub(crate) async fn rotate(args: RotateKeyArgs, output: Output) -> anyhow::Result<()> {
    let (kid, signs_from) = key_ring::rotate(&ring_in(&args.keys), KEYS_OVERLAP, SystemClock.now())?;
    let line = serde_json::json!({ "kid": kid, "signs_from_unix_ms": signs_from.get() });
    output.last_event(&line, || {
        format!("Key {kid} is published now and signs in {} minutes.", key_ring::PUBLISHED_AHEAD.as_secs() / 60)
    })?;
    Ok(())
}
