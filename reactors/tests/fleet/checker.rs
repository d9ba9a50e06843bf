//! Whether a host, or the machine that it is on, ever had two organizations, and whether it ever held more than it has room for:
//! judged from the events of a log alone. It shares no code with what plans and places.

use std::collections::{BTreeSet, HashMap};

use envforge_domain::event::Event;
use envforge_domain::host::HostEvent;
use envforge_domain::ids::{OrgId, WorkspaceId};
use envforge_domain::machine::MachineEvent;
use envforge_domain::runtime::RuntimeEvent;

/// Reads events and knows nothing else: who was ever on a host, by the streams that say so.
#[derive(Default)]
pub(crate) struct Checker {
    /// All organizations that any event connects with a host.
    pub(crate) organizations: HashMap<String, BTreeSet<OrgId>>,
    /// Whose a workspace is, by its runtime's stream.
    owners: HashMap<WorkspaceId, OrgId>,
    held: HashMap<String, HashMap<WorkspaceId, u32>>,
    room: HashMap<String, u32>,
    pub(crate) placements: usize,
    pub(crate) most_at_once: usize,
}

impl Checker {
    /// One event of the stream of that key, which is that organization's.
    pub(crate) fn read(&mut self, stream_org: OrgId, key: &str, event: &Event) {
        let mut connect = |host: String, org: OrgId| {
            let of_host = self.organizations.entry(host.clone()).or_default();
            of_host.insert(org);
            assert_eq!(of_host.len(), 1, "{host} has been of {of_host:?}");
        };
        match event {
            Event::Machine(MachineEvent::Requested { terms, .. }) => {
                connect(key.to_owned(), stream_org);
                connect(terms.host.to_string(), terms.org);
            }
            Event::Machine(MachineEvent::Launched { instance }) => {
                connect(key.to_owned(), stream_org);
                connect(instance.clone(), stream_org);
            }
            Event::Host(HostEvent::Registered { host, org, machine, capacity, .. }) => {
                connect(key.to_owned(), stream_org);
                connect(host.to_string(), *org);
                connect(machine.strip_prefix("aws-ec2-").unwrap_or(machine).to_owned(), *org);
                self.room.insert(key.to_owned(), capacity.memory_mib);
            }
            Event::Host(HostEvent::Placed { workspace, needs }) => {
                connect(key.to_owned(), stream_org);
                connect(key.to_owned(), self.owners[workspace]);
                let held = self.held.entry(key.to_owned()).or_default();
                held.insert(*workspace, needs.memory_mib);
                assert!(held.values().sum::<u32>() <= self.room[key], "{key} holds more than it has room for");
                self.most_at_once = self.most_at_once.max(held.len());
                self.placements += 1;
            }
            Event::Host(HostEvent::Released { workspace }) => {
                self.held.get_mut(key).and_then(|held| held.remove(workspace));
            }
            Event::Host(HostEvent::Retired) => {
                let held = self.held.remove(key).unwrap_or_default();
                assert!(held.is_empty(), "{key} was retired with {held:?}");
            }
            Event::Runtime(RuntimeEvent::HostChosen { host, .. }) => connect(host.to_string(), stream_org),
            Event::Runtime(_) => {
                self.owners.insert(key.parse().unwrap(), stream_org);
            }
            _ => {}
        }
    }
}
