//! The file that a new machine's user data writes for its agent, and enrolling by what it names (ADR 0016).
//!
//! Not here: what the file is made of (`envforge-aws`), enrolling by a token that somebody brought (`agent`).

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use anyhow::Context as _;
use envforge_agent::AgentIdentity;
use envforge_domain::host::Capacity;
use envforge_domain::ids::{HostId, OrgId};
use envforge_domain::time::SharedClock;
use serde::Deserialize;

use crate::cli::failure::Failure;

/// Keys that this version does not know are another version's, and left alone.
#[derive(Deserialize)]
struct Written {
    control_plane: String,
    organization: String,
    host: String,
    enrolment_parameter: String,
    region: String,
}

/// Who the agent is to be, where it calls, and where its token will lie.
pub(crate) struct AgentFile {
    /// Host and port.
    pub(crate) control_plane: String,
    pub(crate) of: (OrgId, HostId),
    /// A parameter of SSM.
    enrolment_parameter: String,
    region: String,
}

/// What an agent says of its machine when it enrols.
#[cfg_attr(not(feature = "aws"), allow(dead_code, reason = "read by whoever enrols, which is built with AWS alone"))]
pub(crate) struct OfMachine<'a> {
    pub(crate) key: &'a str,
    pub(crate) capacity: Capacity,
    pub(crate) version: &'a str,
}

impl AgentFile {
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let wrong = |what: String| {
            let hint = "it is the file that user data of a machine of `envforge serve fleet` writes";
            Failure::usage(format!("{}: {what}", path.display()), hint)
        };
        let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
        let written: Written = toml::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        let url = &written.control_plane;
        let authority = url.strip_prefix("https://").filter(|authority| !authority.is_empty());
        let authority =
            authority.ok_or_else(|| wrong(format!("`control_plane`: `{url}` does not begin with https://")))?;
        let port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let control_plane = if port { authority.to_owned() } else { format!("{authority}:443") };
        let org = written.organization.parse().map_err(|error| wrong(format!("`organization`: {error}")))?;
        let host = written.host.parse().map_err(|error| wrong(format!("`host`: {error}")))?;
        let (enrolment_parameter, region) = (written.enrolment_parameter, written.region);
        Ok(Self { control_plane, of: (org, host), enrolment_parameter, region })
    }

    /// This machine's address in the network by which it reaches the control plane. Sends nothing.
    pub(crate) async fn address_here(&self) -> anyhow::Result<IpAddr> {
        let unknown =
            || format!("this machine's address towards {} is not known; give --bind-apps", self.control_plane);
        let there = tokio::net::lookup_host(&self.control_plane).await.with_context(unknown)?.next();
        let there = there.with_context(unknown)?;
        let any: SocketAddr = if there.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
        let socket = std::net::UdpSocket::bind(any).and_then(|socket| {
            socket.connect(there)?;
            socket.local_addr()
        });
        Ok(socket.with_context(unknown)?.ip())
    }

    /// Who this machine is already, else who it becomes once its token lies ready: waits for that for as long as it takes.
    pub(crate) async fn identity(
        &self,
        data: &Path,
        machine: &OfMachine<'_>,
        clock: &SharedClock,
    ) -> anyhow::Result<AgentIdentity> {
        if let Some(known) = AgentIdentity::load(data)? {
            if known.of() != self.of {
                let what = format!("{} holds the identity of another host, {}", data.display(), known.of().1);
                return Err(Failure::local(what, "a machine's image must not hold an agent's folder").into());
            }
            if clock.now() < known.expires_at() {
                return Ok(known);
            }
        }
        self.enrol(data, machine, clock).await
    }

    #[cfg(not(feature = "aws"))]
    #[allow(clippy::unused_async, reason = "as with the feature")]
    async fn enrol(&self, _: &Path, _: &OfMachine<'_>, _: &SharedClock) -> anyhow::Result<AgentIdentity> {
        let (what, region) = (&self.enrolment_parameter, &self.region);
        let what =
            format!("the token lies in the parameter {what} in {region}, and this envforge was built without AWS");
        Err(Failure::usage(what, "build it with `cargo build --release --features aws`").into())
    }

    #[cfg(feature = "aws")]
    async fn enrol(&self, data: &Path, machine: &OfMachine<'_>, clock: &SharedClock) -> anyhow::Result<AgentIdentity> {
        use std::time::Duration;

        use envforge_agent::{EnrolError, UNDECIDED};
        use envforge_aws::{AwsConfig, EnrolmentReader};
        use envforge_domain::enrolment::EnrolmentToken;
        use rand::RngExt as _;

        const PAUSE_MIN: Duration = Duration::from_millis(500);
        const PAUSE_MAX: Duration = Duration::from_secs(10);

        let reader = EnrolmentReader::new(&AwsConfig::in_region(&self.region), self.enrolment_parameter.clone()).await;
        let (mut refused, mut pause) = (None, PAUSE_MIN);
        loop {
            let parameter = &self.enrolment_parameter;
            let token = match reader.read().await {
                Ok(None) => {
                    tracing::info!(parameter, "no enrolment token lies ready yet");
                    None
                }
                // The machine's role may not have come to it yet.
                Err(error) => {
                    tracing::warn!(parameter, %error, "the enrolment token could not be read; asking again");
                    None
                }
                Ok(Some(text)) => match EnrolmentToken::parse(text.expose()) {
                    Ok(token) if (token.org(), token.host()) == self.of => Some(token),
                    Ok(_) | Err(_) => {
                        tracing::warn!(parameter, "holds no enrolment token of this host");
                        None
                    }
                },
            };
            // One that was refused is refused again: another one will come.
            if let Some(token) = token.filter(|token| refused != Some(token.digest())) {
                let OfMachine { key, capacity, version } = machine;
                let at = &self.control_plane;
                match envforge_agent::enrol(at, data, &token, key, *capacity, version, clock).await {
                    Ok(identity) => return Ok(identity),
                    Err(EnrolError::Identity(error)) => return Err(error.into()),
                    Err(EnrolError::Refused { code, text }) => {
                        tracing::warn!(code, text, "the enrolment was refused; waiting for another token");
                        if code != UNDECIDED {
                            refused = Some(token.digest());
                        }
                    }
                    Err(error @ EnrolError::Unreachable { .. }) => tracing::warn!(%error, "trying again"),
                }
            }
            // Machines that come up together do not ask together.
            tokio::time::sleep(pause.mul_f64(rand::rng().random_range(0.5..=1.0))).await;
            pause = (pause * 3 / 2).min(PAUSE_MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const GOOD: &str = "\
control_plane = \"https://agents.envforge.example\"
organization = \"org_0190000000007000800000000000002a\"
host = \"hst_0190000000007000800000000000002b\"
enrolment_parameter = \"/envforge/production/org_0190000000007000800000000000002a/hosts/hst_0190000000007000800000000000002b/enrolment\"
region = \"eu-central-1\"
of_a_later_version = true
";

    fn read(text: &str) -> Result<AgentFile, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.toml");
        std::fs::write(&path, text).unwrap();
        AgentFile::read(&path).map_err(|failure| failure.to_string())
    }

    #[test]
    fn the_file_names_host_and_control_plane_with_the_port_of_https_where_none_is_written() {
        assert_eq!(read(GOOD).unwrap().control_plane, "agents.envforge.example:443");
        assert_eq!(
            read(&GOOD.replace("example", "example:7090")).unwrap().control_plane,
            "agents.envforge.example:7090"
        );
        for (from, to, told) in [
            ("https://", "http://", "`control_plane`"),
            ("\"hst_", "\"host_", "`host`"),
            ("organization =", "org =", "organization"),
        ] {
            let error = read(&GOOD.replace(from, to)).err().unwrap();
            assert!(error.contains("agent.toml") && error.contains(told), "{error}");
        }
    }

    #[tokio::test]
    async fn this_machines_address_is_the_one_towards_the_control_plane() {
        let file = read(&GOOD.replace("agents.envforge.example", "127.0.0.1:7090")).unwrap();
        assert_eq!(file.address_here().await.unwrap(), IpAddr::from([127, 0, 0, 1]));
    }
}
