//! `envforge rotate-agents-authority`: another authority takes the place of the one that certifies agents.
//!
//! Not here: what each step changes (agent), the role that uses the authority (`agents`).

use std::path::PathBuf;

use clap::Args;
use envforge_agent::{Authority, AuthorityError};
use envforge_identity::clock::{Clock as _, SystemClock};

use super::agents::{AUTHORITY_CERTIFICATE, AUTHORITY_KEY, certificate_lifetime};
use crate::cli::failure::Failure;
use crate::cli::output::Output;

/// Replace the authority that certifies agents, in two steps with a day between them. Each counts for `serve` processes that start after it
/// (docs/hosts.md).
#[derive(Args, Debug)]
pub(crate) struct RotateAgentsAuthorityArgs {
    /// Folder with the control plane's keys: `keys` in the data folder of `dev`.
    #[arg(long, value_name = "DIR", env = "ENVFORGE_KEYS")]
    keys: PathBuf,
    /// The second step: the new authority takes the old one's place, which is gone then.
    #[arg(long)]
    finish: bool,
    /// How long certificates of agents live, as `serve agents` was told.
    #[arg(long, value_name = "SECONDS", default_value_t = 86_400)]
    agent_certificate_seconds: u64,
}

pub(crate) async fn rotate_authority(args: RotateAgentsAuthorityArgs, output: Output) -> anyhow::Result<()> {
    let lifetime = certificate_lifetime(args.agent_certificate_seconds)?;
    let (key, certificate) = (args.keys.join(AUTHORITY_KEY), args.keys.join(AUTHORITY_CERTIFICATE));
    let now = SystemClock.now();
    let rotated = if args.finish {
        Authority::finish_rotation(&key, &certificate, now, lifetime)
    } else {
        Authority::begin_rotation(&key, &certificate, now)
    };
    let authority = rotated.map_err(|error| {
        let hint = match &error {
            AuthorityError::Rotating => "once agents have its certificates, `--finish` has it take the old one's place",
            AuthorityError::NotRotating => "without `--finish` the command makes one",
            AuthorityError::InUse { .. } => "agents would have to enrol again; wait",
            AuthorityError::File { .. } => "`--finish` goes on where an earlier one was interrupted",
            AuthorityError::Certificate(_) | AuthorityError::Tls(_) => "",
        };
        Failure::local(error.to_string(), hint)
    })?;
    let authority = hex::encode(authority.as_bytes());
    let line = serde_json::json!({ "authority": authority, "finished": args.finish });
    output.last_event(&line, || match args.finish {
        false => "The next authority is there. Restart what serves agents; a day after that, come back with --finish."
            .to_owned(),
        true => {
            "The next authority is the only one now. Restart what serves agents and the API; `serve fleet` reads it \
            for each token, once its folder of keys has it."
                .to_owned()
        }
    })?;
    Ok(())
}
