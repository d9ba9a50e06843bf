//! Process managers: carry what the log asks for to the outside world and bring the result back as commands.
//!
//! Owns the runtime reactor (wakes, sleeps, leases on one host, this machine's or an agent's), the root reactor (commands of root windows there), the fleet (machines of a provider) and the timers (expiry, idle sleep, lapsed leases). Each
//! is at least once and idempotent: what it does is decided by the log's state, never by having seen an event. Not here:
//! how services run (runtime), what may happen (domain), how a provider is talked to (`envforge-aws`).

mod errand;
pub mod fleet;
mod following;
mod host_machine;
mod open_shells;
mod permit;
pub mod root_reactor;
mod runtime_reactor;
mod secret_resolver;
mod secret_sweep;
mod secret_untold;
mod shared_world;
mod shell_leftovers;
pub mod timers;
mod world;

pub use host_machine::{HostMachine, MACHINE_ID, MachineError, ThisMachine};
pub use root_reactor::RootReactor;
pub use runtime_reactor::RuntimeReactor;
pub use secret_resolver::SecretResolver;
pub use shared_world::SharedWorld;
pub use shell_leftovers::tell_shell_ends;
pub use timers::Timers;
pub use world::World;
