//! The runtime reactor and the timers over a real log, real repositories and real processes.
#![allow(clippy::unwrap_used)]

mod agents;
mod hosts;
mod outages;
mod roots;
mod runtimes;
mod shells;
mod site;
mod timers;
