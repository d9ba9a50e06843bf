//! This machine as a host of the local provider.
//!
//! A machine belongs to the one organization that used it first (SPEC, rule 1): its key is claimed in the log, and the
//! claim of a second organization is refused. The key is the machine's own, so that two state folders on one machine are
//! two hosts on it, and not two machines. What names the host is the folder's: it holds what the host keeps.

use std::io::Write as _;
use std::path::Path;

use envforge_commands::context::derived_uuid;
use envforge_commands::{CommandError, Commands, Context, hosts};
use envforge_domain::access::{Action, Resource};
use envforge_domain::commit::{Component, Position, StreamId};
use envforge_domain::host::{Capacity, Host};
use envforge_domain::ids::{HostId, OrgId};
use envforge_domain::time::UnixMillis;
use uuid::Uuid;

use crate::permit::system_permit;

/// Services declare more than they use; a laptop holds several workspaces. CPU is shared, memory is not.
const CPU_OVERCOMMIT: u32 = 4;

/// Called so since the times when it named the machine as well.
const FOLDER_KEY: &str = "machine-key";

/// Where Linux names the machine (machine-id(5)): the same in all processes, another one on each machine.
pub const MACHINE_ID: &str = "/etc/machine-id";

/// A host and its machine; both keep their names over restarts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostMachine {
    /// The machine's: `local-<32 hexadecimal digits>` where nobody else names it.
    pub key: String,
    pub host: HostId,
    pub capacity: Capacity,
    /// Whose it is, where an agent enrolled it; such a host is registered already.
    pub org: Option<OrgId>,
}

#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    #[error("the host's key at `{path}` cannot be used: {reason}")]
    Key { path: String, reason: String },
    #[error("the machine's id at `{path}` cannot be used: {reason}")]
    Machine { path: String, reason: String },
}

/// Why a host does not take something of an organization.
#[derive(Debug, thiserror::Error)]
pub enum NotTaken {
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error("the machine's key cannot be claimed: {0}")]
    Key(#[from] envforge_domain::commit::InvalidStreamKey),
    #[error("the policy does not allow it: {0}")]
    Denied(#[from] envforge_domain::access::Denial),
}

impl HostMachine {
    /// Has the machine be claimed for an organization, and this host registered on it; what is so already stays so. `position`: what the
    /// caller knew of the log. `context`: of each step, by what it is for.
    ///
    /// INVARIANT: nothing of an organization begins on a machine before this was accepted.
    ///
    /// # Errors
    /// Where another organization has the machine, and where the log does not take it.
    pub async fn belong_to(
        &self,
        org: OrgId,
        commands: &Commands,
        (position, now): (Position, UnixMillis),
        context: impl Fn(&str) -> Context,
    ) -> Result<(), NotTaken> {
        // An agent's host was registered when it enrolled.
        if self.org.is_some() {
            return Ok(());
        }
        let host = self.host;
        let on = Resource::Host { org, host };
        let permit = system_permit(Component::RuntimeReactor, Action::HostRegister, on, position, now)?;
        let machine = hosts::MachineKey::parse(&self.key)?;
        let known = commands.load::<Host>(&StreamId::host(org, host)).await.map_err(CommandError::from)?;
        match known.state {
            Host::Unknown => {
                let (context, provider) = (context("register host"), "local".to_owned());
                hosts::register(commands, &permit, &context, host, provider, machine, self.capacity).await?;
            }
            // It was registered when folders, and not machines, had keys. The claim is what keeps a second organization off.
            Host::Active(active) if active.machine != self.key => {
                hosts::claim_machine(commands, &permit, &context("claim machine"), machine).await?;
            }
            // A retired one is refused its placement.
            Host::Active(_) | Host::Expected(_) | Host::Retired | Host::Revoked => {}
        }
        Ok(())
    }

    /// Reads or makes the folder's key in `state_dir`, and the machine's from `machine_id` ([`MACHINE_ID`]). A machine
    /// without an id goes by the folder's key.
    pub fn open(state_dir: &Path, machine_id: &Path) -> Result<Self, MachineError> {
        let folder = folder_key(state_dir)?;
        let host = host_of_folder(&folder);
        let key = machine_key(machine_id)?.unwrap_or_else(|| {
            tracing::warn!(
                path = %machine_id.display(),
                "this machine has no id: another state folder on it would count as another machine"
            );
            folder
        });
        Ok(Self { key, host, capacity: capacity(), org: None })
    }
}

/// This machine as the log knows it, without making anything of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ThisMachine {
    /// `None` where it has neither an id nor a folder in which reactors have run.
    pub key: Option<String>,
    /// The folder's, where reactors have run there.
    pub host: Option<HostId>,
}

impl ThisMachine {
    /// Looks at both places that [`HostMachine::open`] makes it of.
    ///
    /// # Errors
    /// Where one of them is damaged.
    pub fn look(state_dir: &Path, machine_id: &Path) -> Result<Self, MachineError> {
        let folder = if state_dir.join(FOLDER_KEY).exists() { Some(folder_key(state_dir)?) } else { None };
        let host = folder.as_deref().map(host_of_folder);
        Ok(Self { key: machine_key(machine_id)?.or(folder), host })
    }
}

fn host_of_folder(folder: &str) -> HostId {
    HostId::from_uuid(derived_uuid(folder.as_bytes(), "host"))
}

/// `None` where the file is not there or says that there is no id (yet).
fn machine_key(path: &Path) -> Result<Option<String>, MachineError> {
    let failed = |reason: String| MachineError::Machine { path: path.display().to_string(), reason };
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error.to_string())),
    };
    match text.trim() {
        "" | "uninitialized" => Ok(None),
        // The id itself is confidential (machine-id(5)): what is made of it says nothing about it.
        id if id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            let derived = derived_uuid(id.to_ascii_lowercase().as_bytes(), "envforge machine");
            Ok(Some(format!("local-{}", derived.simple())))
        }
        _ => Err(failed("expected 32 hexadecimal digits".to_owned())),
    }
}

fn folder_key(state_dir: &Path) -> Result<String, MachineError> {
    let path = state_dir.join(FOLDER_KEY);
    let failed = |reason: String| MachineError::Key { path: path.display().to_string(), reason };
    let key = match std::fs::read_to_string(&path) {
        Ok(text) => text.trim().to_owned(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let key = format!("local-{}", Uuid::now_v7().simple());
            std::fs::create_dir_all(state_dir).map_err(|error| failed(error.to_string()))?;
            // A half-written key would be another machine: write beside it, then rename.
            let fresh = path.with_extension("new");
            let written = std::fs::File::create(&fresh).and_then(|mut file| {
                file.write_all(key.as_bytes())?;
                file.sync_all()
            });
            written.and_then(|()| std::fs::rename(&fresh, &path)).map_err(|error| failed(error.to_string()))?;
            key
        }
        Err(error) => return Err(failed(error.to_string())),
    };
    let valid = key.strip_prefix("local-").is_some_and(|digits| Uuid::try_parse(digits).is_ok());
    if !valid {
        return Err(failed("expected `local-` and 32 hexadecimal digits".to_owned()));
    }
    Ok(key)
}

fn capacity() -> Capacity {
    let cores = std::thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(u32::MAX));
    let memory_mib = std::fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| {
            let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok()
        })
        .map_or(4_096, |kib| u32::try_from(kib / 1_024).unwrap_or(u32::MAX));
    Capacity { cpu_millicores: cores.saturating_mul(1_000).saturating_mul(CPU_OVERCOMMIT), memory_mib }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_machine_keeps_its_key() {
        let dir = tempfile::tempdir().unwrap();
        let id = machine_id(dir.path(), "0123456789abcdef0123456789abcdef\n");
        let first = HostMachine::open(dir.path(), &id).unwrap();
        assert_eq!(HostMachine::open(dir.path(), &id).unwrap(), first);
        assert!(first.capacity.cpu_millicores >= 1_000 && first.capacity.memory_mib > 0);
        assert!(!first.key.contains("0123456789abcdef"), "the id itself is confidential");
    }

    #[test]
    fn two_folders_on_one_machine_are_two_hosts_on_it_and_not_two_machines() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let id = machine_id(one.path(), "0123456789abcdef0123456789abcdef\n");
        let first = HostMachine::open(one.path(), &id).unwrap();
        let second = HostMachine::open(two.path(), &id).unwrap();
        assert_eq!(first.key, second.key);
        assert_ne!(first.host, second.host);
        let elsewhere = machine_id(two.path(), "fedcba9876543210fedcba9876543210\n");
        assert_ne!(HostMachine::open(two.path(), &elsewhere).unwrap().key, second.key);
    }

    #[test]
    fn a_folder_of_former_times_keeps_its_host() {
        let dir = tempfile::tempdir().unwrap();
        let key = "local-0190000000007000800000000000002a";
        std::fs::write(dir.path().join("machine-key"), key).unwrap();
        let id = machine_id(dir.path(), "0123456789abcdef0123456789abcdef\n");
        let machine = HostMachine::open(dir.path(), &id).unwrap();
        assert_eq!(machine.host, HostId::from_uuid(derived_uuid(key.as_bytes(), "host")));
    }

    #[test]
    fn a_machine_without_an_id_goes_by_its_folder_and_a_damaged_id_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let nameless = HostMachine::open(dir.path(), &dir.path().join("absent")).unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join("machine-key")).unwrap(), nameless.key);
        for text in ["", "uninitialized\n"] {
            assert_eq!(HostMachine::open(dir.path(), &machine_id(dir.path(), text)).unwrap(), nameless);
        }
        let damaged = machine_id(dir.path(), "0123\n");
        assert!(matches!(HostMachine::open(dir.path(), &damaged), Err(MachineError::Machine { .. })));
    }

    fn machine_id(dir: &Path, text: &str) -> std::path::PathBuf {
        let path = dir.join("machine-id");
        std::fs::write(&path, text).unwrap();
        path
    }

    #[test]
    fn a_look_at_this_machine_makes_nothing_and_finds_what_was_made() {
        let dir = tempfile::tempdir().unwrap();
        let (state, absent) = (dir.path().join("state"), dir.path().join("absent"));
        assert_eq!(ThisMachine::look(&state, &absent).unwrap(), ThisMachine::default());
        let id = machine_id(dir.path(), "0123456789abcdef0123456789abcdef\n");
        let nobody_yet = ThisMachine::look(&state, &id).unwrap();
        assert!(nobody_yet.host.is_none() && !state.exists());
        let machine = HostMachine::open(&state, &id).unwrap();
        assert_eq!(nobody_yet.key.as_ref(), Some(&machine.key));
        let found = ThisMachine { key: Some(machine.key), host: Some(machine.host) };
        assert_eq!(ThisMachine::look(&state, &id).unwrap(), found);
        let nameless = ThisMachine::look(&state, &absent).unwrap();
        assert_eq!(nameless.key, Some(HostMachine::open(&state, &absent).unwrap().key));
    }

    #[test]
    fn a_damaged_key_is_refused_instead_of_replaced() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("machine-key"), "nonsense").unwrap();
        let absent = dir.path().join("absent");
        assert!(matches!(HostMachine::open(dir.path(), &absent), Err(MachineError::Key { .. })));
    }
}
