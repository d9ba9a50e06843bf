//! The line between the control plane and the hosts that it does not run on.
//!
//! Owns the authority that certifies agents, the connection with its messages and byte streams, the agent's side of it
//! ([`Agent`], around a [`envforge_runtime::LocalHost`]) and the control plane's ([`Listener`], [`RemoteHost`]), [`Host`]: a host
//! of either kind, and the way to one that another process of the control plane has ([`RelayListener`], [`RelayConnection`]). Not here: whom to trust (the caller asks the log's views), what a host is told to do (reactors), how services run
//! (runtime).
//!
//! An agent connects, out of its network; over that connection the control plane is the HTTP/2 client, and the agent answers
//! (docs/adr/0015). What the control plane says is what is wanted, named by the wake's epoch, so that saying it again after a
//! reconnect changes nothing.

mod agent;
mod authority;
mod connection;
mod enrol;
mod given;
mod host;
mod identity;
mod line;
mod listener;
mod pinned;
mod relay;
mod relay_key;
mod relay_wire;
mod relayed;
mod remote;
mod root_wire;
mod roots;
mod shell_wire;
mod shells;
mod stream;
mod wire;

use envforge_runtime::frame;

pub use agent::{Agent, AgentError, Config, StreamHandler, StreamProgram};
pub use authority::{Authority, AuthorityError, HostCertificate, authority_fingerprint};
pub use enrol::{EnrolError, enrol};
pub use frame::FRAME_BYTES_MAX;
pub use given::SecretSource;
pub use host::{Host, ReachedHost};
pub use identity::{AgentIdentity, HostIdentity, IdentityError};
pub use line::{AsOf, HostLine};
pub use listener::{AgentConnection, Arrival, EnrolRequest, Enrolling, Incoming, ListenError, Listener};
pub use relay::{HostHere, RelayGreeted, RelayIncoming, RelayLines, RelayListener, RelayPeer, Relayed};
pub use relay_key::RelayKey;
pub use relayed::{RelayConnection, RelayedHost};
pub use remote::{Happened, RemoteHost, Session};
pub use roots::{NotTaken, RemoteRoot, RemoteWindow};
pub use shells::{DueEnds, RemoteEnds, programs, without_login};
pub use stream::ByteStream;
pub use wire::{HEARTBEAT_INTERVAL, SILENCE_MAX, StreamHeader, UNDECIDED};
