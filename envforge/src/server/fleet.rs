//! The role that has machines of a provider launched, started, stopped and ended.
//!
//! Not here: what the file says (`fleet_config`), which machines are wanted (reactors), talking to EC2 (`envforge-aws`).

use std::path::{Path, PathBuf};

use clap::Args;

use super::control_plane::ControlPlane;
use super::running::Running;
use crate::cli::failure::Failure;

/// What the fleet may ask for.
#[derive(Args, Debug)]
pub(crate) struct FleetArgs {
    /// File that describes the machines that `fleet` may launch at EC2; see docs/hosts-aws.md. Where it was built with AWS.
    #[arg(long, value_name = "FILE", env = "ENVFORGE_FLEET")]
    fleet: Option<PathBuf>,
}

#[cfg(not(feature = "aws"))]
pub(crate) struct FleetConfig;
#[cfg(feature = "aws")]
pub(crate) use super::fleet_config::FleetConfig;

impl FleetArgs {
    /// What the file says.
    ///
    /// # Errors
    /// All its mistakes at once; in a build without AWS, how to get one with it.
    pub(crate) fn read(&self) -> Result<FleetConfig, Failure> {
        let Some(path) = &self.fleet else {
            let hint = "name it with --fleet or ENVFORGE_FLEET; docs/hosts-aws.md shows a whole file";
            return Err(Failure::usage("`fleet` needs a file that says which machines it may launch", hint));
        };
        #[cfg(feature = "aws")]
        return FleetConfig::read(path);
        #[cfg(not(feature = "aws"))]
        {
            let what = format!("this envforge was built without AWS and cannot do what {} says", path.display());
            Err(Failure::usage(what, "build it with `cargo build --release --features aws`"))
        }
    }
}

/// Starts the fleet once the provider has answered. `keys`: the folder with the certificate of the authority for agents, whose fingerprint
/// enrolment tokens carry: it is read for each, since another one may take its place.
#[cfg(feature = "aws")]
pub(crate) async fn start(
    running: &mut Running,
    plane: &ControlPlane,
    config: FleetConfig,
    keys: &Path,
) -> anyhow::Result<()> {
    use std::sync::Arc;

    use envforge_aws::{Ec2, SsmStore};
    use envforge_identity::randomness::Randomness;
    use envforge_reactors::fleet::{Enrolling, Fleet};
    use envforge_runtime::MachineProvider as _;

    let certificate = keys.join(super::agents::AUTHORITY_CERTIFICATE);
    if !certificate.exists() {
        let hint = "run `envforge setup` once more, it makes the missing keys";
        return Err(Failure::usage("the folder of the keys has no authority for agents", hint).into());
    }
    envforge_agent::authority_fingerprint(&certificate)?;
    let authority = move || {
        let read = envforge_agent::authority_fingerprint(&certificate);
        read.inspect_err(|error| tracing::warn!(%error, "the authority for agents")).ok()
    };
    let store = SsmStore::open(config.ssm).await?;
    let ec2 = Ec2::new(config.ec2).await;
    ec2.list().await.map_err(|error| {
        let hint = "see this process's credentials and region, and deploy/aws/control-plane for what its role needs";
        Failure::unreachable(format!("EC2 does not list this deployment's instances: {error}"), hint)
    })?;
    let draw = || {
        let mut secret = [0; 32];
        Randomness.fill(&mut secret).ok().map(|()| secret)
    };
    let enrolling = Enrolling::new(Arc::new(store), Arc::new(authority), Arc::new(draw));
    let (log, commands, clock) = (Arc::clone(&plane.log), plane.commands.clone(), Arc::clone(&plane.clock));
    let (policies, every) = (config.policies, config.look_interval);
    let fleet = Fleet::new(log, commands, Arc::new(ec2), enrolling, clock, policies, every);
    let stop = running.stop.clone();
    running.essential.spawn("the fleet", async move { Ok(fleet.run(stop).await?) });
    Ok(())
}

/// Nothing comes here: the file is refused first.
#[cfg(not(feature = "aws"))]
#[allow(clippy::unused_async, reason = "as with the feature")]
pub(crate) async fn start(_: &mut Running, _: &ControlPlane, _: FleetConfig, _: &Path) -> anyhow::Result<()> {
    Err(Failure::usage("this envforge was built without AWS", "build it with the feature aws").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_file_the_fleet_says_what_it_needs() {
        let Err(told) = (FleetArgs { fleet: None }).read() else { panic!("it was read") };
        assert!(told.to_string().contains("which machines"), "{told}");
    }

    #[cfg(not(feature = "aws"))]
    #[test]
    fn without_the_feature_the_fleet_says_how_to_get_it() {
        let told = (FleetArgs { fleet: Some("fleet.toml".into()) }).read();
        let Err(Failure::Usage(told)) = told else { panic!("it was read") };
        assert!(told.what.contains("without AWS"), "{}", told.what);
        assert!(told.hint.is_some_and(|hint| hint.contains("--features aws")));
    }
}
