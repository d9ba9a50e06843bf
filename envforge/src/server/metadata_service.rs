//! EC2's metadata service, which tells whoever reaches it the credentials of the machine's role: whether anybody but root does.
//!
//! Asks as a user without rights, as what runs for a branch would. Not here: the rule that keeps it away, which user data installs
//! (`envforge-aws`).

use std::ffi::OsString;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use crate::cli::failure::Failure;

const ADDRESSES: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254))];
const PORT: u16 = 80;
/// It answers from the machine's own host.
const CONNECT_WAIT: Duration = Duration::from_secs(2);
const PROBE_WAIT: Duration = Duration::from_secs(10);
/// Between two looks while the agent runs: whatever sets up networks may take the rule away.
const LOOK_INTERVAL: Duration = Duration::from_secs(20);
/// How this program is started to be a probe.
const PROBE: &str = "metadata-probe";
/// `nobody`: no workspace's, so that nothing of a branch may meddle with the probe.
const NOBODY: u32 = 65_534;
const HINT: &str = "user data of `envforge serve fleet` adds a rule that keeps it from all but root (docs/hosts-aws.md); \
                    --allow-metadata-service starts without it";

/// What a probe sees of one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Reached,
    /// A rule of this machine says no.
    Prohibited,
    /// Whatever the reason.
    Nothing,
}

const WORDS: [(Seen, &str); 3] =
    [(Seen::Reached, "reached"), (Seen::Prohibited, "prohibited"), (Seen::Nothing, "nothing")];

/// Why the agent does not run here.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MetadataOpen {
    #[error(
        "users of this machine without rights reach its metadata service at {0}, which would give the machine's role to whatever runs for a branch"
    )]
    Reached(IpAddr),
    #[error("whether others than root reach this machine's metadata service cannot be told: {0}")]
    Unknown(String),
}

impl From<MetadataOpen> for Failure {
    fn from(open: MetadataOpen) -> Self {
        Self::local(open.to_string(), HINT)
    }
}

/// Whether this process was started to be a probe; then it says what it sees. `arguments`: the whole command line.
pub(crate) fn probe_main(arguments: impl IntoIterator<Item = OsString>) -> Option<ExitCode> {
    if arguments.into_iter().nth(1)?.to_str()? != PROBE {
        return None;
    }
    for address in ADDRESSES {
        let seen = look(address);
        println!("{}", WORDS.iter().find(|(of, _)| *of == seen).map_or("", |(_, word)| word));
    }
    Some(ExitCode::SUCCESS)
}

fn look(address: IpAddr) -> Seen {
    match TcpStream::connect_timeout(&SocketAddr::new(address, PORT), CONNECT_WAIT) {
        Ok(_) => Seen::Reached,
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Seen::Prohibited,
        Err(_) => Seen::Nothing,
    }
}

/// Whether root alone reaches the metadata service. Where this is not root itself, nobody may.
///
/// # Errors
/// Where others do, or it cannot be told.
pub(crate) async fn check() -> Result<(), MetadataOpen> {
    let root = rustix::process::geteuid().is_root();
    let unknown = |error: io::Error| MetadataOpen::Unknown(error.to_string());
    let others = probe(root.then_some(NOBODY)).await.map_err(unknown)?;
    let roots = match others.contains(&Seen::Nothing) && root {
        true => probe(None).await.map_err(unknown)?,
        false => others,
    };
    judge(others, roots)
}

/// Looks for as long as it is kept away.
pub(crate) async fn watch() -> MetadataOpen {
    loop {
        tokio::time::sleep(LOOK_INTERVAL).await;
        match check().await {
            Ok(()) => {}
            Err(open @ MetadataOpen::Reached(_)) => return open,
            // It was kept away at the start; a machine in need of memory starts no probe.
            Err(error @ MetadataOpen::Unknown(_)) => tracing::warn!(%error, "looking again"),
        }
    }
}

fn judge(others: [Seen; 2], roots: [Seen; 2]) -> Result<(), MetadataOpen> {
    for ((address, others), roots) in ADDRESSES.into_iter().zip(others).zip(roots) {
        match (others, roots) {
            (Seen::Reached, _) => return Err(MetadataOpen::Reached(address)),
            (Seen::Prohibited, _) | (Seen::Nothing, Seen::Reached) => {}
            // Every machine of EC2 has it at this address: here the network is not up yet, or something else is in the way.
            (Seen::Nothing, Seen::Prohibited | Seen::Nothing) if address.is_ipv4() => {
                return Err(MetadataOpen::Unknown(format!("nobody reaches {address}, root neither")));
            }
            (Seen::Nothing, Seen::Prohibited | Seen::Nothing) => {}
        }
    }
    Ok(())
}

async fn probe(uid: Option<u32>) -> io::Result<[Seen; 2]> {
    // This very program, whatever became of its file since.
    let mut command = Command::new("/proc/self/exe");
    command.arg(PROBE).env_clear().current_dir("/").kill_on_drop(true).stdin(Stdio::null()).stderr(Stdio::null());
    if let Some(uid) = uid {
        command.uid(uid).gid(uid);
    }
    let output = timeout(PROBE_WAIT, command.output()).await.map_err(|_| io::Error::from(ErrorKind::TimedOut))??;
    let text = String::from_utf8_lossy(&output.stdout);
    let seen = text.lines().filter_map(|line| WORDS.iter().find(|(_, word)| *word == line)).map(|(seen, _)| *seen);
    let all: Vec<_> = seen.collect();
    all.try_into().map_err(|_| io::Error::other(format!("the probe ended with {}", output.status)))
}

#[cfg(test)]
mod tests {
    use super::Seen::{Nothing, Prohibited, Reached};
    use super::*;

    #[test]
    fn only_what_root_alone_reaches_or_a_rule_prohibits_counts_as_kept_away() {
        for (others, roots) in [
            ([Prohibited, Prohibited], [Prohibited, Prohibited]),
            ([Prohibited, Nothing], [Reached, Nothing]),
            // A firewall that drops what others send.
            ([Nothing, Nothing], [Reached, Reached]),
        ] {
            assert_eq!(judge(others, roots), Ok(()), "{others:?} {roots:?}");
        }
        for others in [[Reached, Nothing], [Reached, Prohibited]] {
            assert_eq!(judge(others, [Reached, Reached]), Err(MetadataOpen::Reached(ADDRESSES[0])));
        }
        assert_eq!(judge([Prohibited, Reached], [Reached, Reached]), Err(MetadataOpen::Reached(ADDRESSES[1])));
        assert!(matches!(judge([Nothing, Nothing], [Nothing, Nothing]), Err(MetadataOpen::Unknown(_))));
    }
}
