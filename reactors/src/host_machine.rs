//! This machine as a host of the local provider.
//!
//! A machine belongs to the one organization that used it first (SPEC, rule 1): its key is claimed in the log, and the
//! claim of a second organization is refused.

use std::io::Write as _;
use std::path::Path;

use envforge_commands::context::derived_uuid;
use envforge_domain::host::Capacity;
use envforge_domain::ids::HostId;
use uuid::Uuid;

/// Services declare more than they use; a laptop holds several workspaces. CPU is shared, memory is not.
const CPU_OVERCOMMIT: u32 = 4;

/// This machine, with a key that survives restarts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalMachine {
    /// `local-<32 hexadecimal digits>`.
    pub key: String,
    pub host: HostId,
    pub capacity: Capacity,
}

#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    #[error("the machine's key at `{path}` cannot be used: {reason}")]
    Key { path: String, reason: String },
}

impl LocalMachine {
    /// Reads or makes the key in `state_dir`.
    pub fn open(state_dir: &Path) -> Result<Self, MachineError> {
        let path = state_dir.join("machine-key");
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
        let host = HostId::from_uuid(derived_uuid(key.as_bytes(), "host"));
        Ok(Self { key, host, capacity: capacity() })
    }
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
        let first = LocalMachine::open(dir.path()).unwrap();
        assert_eq!(LocalMachine::open(dir.path()).unwrap(), first);
        assert!(first.capacity.cpu_millicores >= 1_000 && first.capacity.memory_mib > 0);
    }

    #[test]
    fn a_damaged_key_is_refused_instead_of_replaced() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("machine-key"), "nonsense").unwrap();
        assert!(LocalMachine::open(dir.path()).is_err());
    }
}
