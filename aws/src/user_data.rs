//! What a new instance is told at its first boot, by cloud-init.
//!
//! INVARIANT: nothing of it is secret: whatever runs on the instance may read it, and so may whoever describes instances.
//! The enrolment token is named here, by the parameter that will hold it ([ADR 0016]).
//!
//! And it keeps the instance metadata service, which tells the credentials of the machine's role, from everybody but root: by a rule of
//! routing that each start of the agent adds again, since whatever runs for a branch runs after that.
//!
//! [ADR 0016]: ../../docs/adr/0016-a-machine-reads-its-enrolment-token-from-a-parameter.md

use base64::Engine as _;
use envforge_domain::ids::{HostId, OrgId};

use crate::names::Deployment;

/// Made of ids and one address; there is no place for a secret in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserData {
    pub deployment: Deployment,
    pub org: OrgId,
    pub host: HostId,
    /// Where the agent calls: `https://agents.envforge.example`.
    pub control_plane: ControlPlane,
    pub region: String,
}

/// An address that can stand in a file without quoting: `https://` and letters, digits, `.`, `-`, `:`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlPlane(Box<str>);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no address of a control plane: https:// and a host, with a port where it is not 443")]
pub struct InvalidControlPlane {
    text: String,
}

impl std::str::FromStr for ControlPlane {
    type Err = InvalidControlPlane;

    fn from_str(text: &str) -> Result<Self, InvalidControlPlane> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b':');
        let host = text.strip_prefix("https://").filter(|host| !host.is_empty() && host.bytes().all(allowed));
        if host.is_some() && text.len() <= 253 {
            Ok(Self(text.into()))
        } else {
            Err(InvalidControlPlane { text: text.chars().take(80).collect() })
        }
    }
}

/// Before every other rule but the first, which is for addresses of the machine itself. The protocol keeps systemd-networkd from taking the
/// rule for a stranger's. One that stands already is refused, which changes nothing; whether it is there is what the agent looks at.
const ROOT_ALONE: &str = "prohibit priority 1 protocol kernel uidrange 1-4294967294";

impl UserData {
    /// As RunInstances takes it.
    pub fn encoded(&self) -> String {
        base64::engine::general_purpose::STANDARD.encode(self.text())
    }

    /// The text, not yet encoded.
    pub fn text(&self) -> String {
        let Self { deployment, org, host, control_plane, region } = self;
        let parameter = deployment.enrolment_parameter(*org, *host);
        format!(
            r#"#cloud-config
write_files:
  - path: /etc/envforge/agent.toml
    permissions: "0644"
    content: |
      control_plane = "{}"
      organization = "{org}"
      host = "{host}"
      enrolment_parameter = "{parameter}"
      region = "{region}"
  - path: /etc/systemd/system/envforge-agent.service.d/metadata-service.conf
    permissions: "0644"
    content: |
      [Service]
      ExecStartPre=-/sbin/ip rule add {ROOT_ALONE} to 169.254.169.254
      ExecStartPre=-/sbin/ip -6 rule add {ROOT_ALONE} to fd00:ec2::254
runcmd:
  - [systemctl, enable, --now, envforge-agent.service]
"#,
            control_plane.0
        )
    }
}
