//! `envforge-bench NAME`: our speed beside a peer's, in turn, in one run. This file owns the command line.
//!
//! `cargo xtask bench` builds it, finds the peers and names the cores; what the figures were is in docs/benchmarks.md. It belongs to
//! contributors and is no part of the product.

mod benches;
mod commits;
#[allow(dead_code, reason = "the comparisons of gateway, revoke and wake use the rest")]
mod machine;
mod memory_log;
#[allow(dead_code, reason = "the comparisons of gateway, revoke and wake use the rest")]
mod verdict;

use clap::Parser;

/// Our speed beside a peer's.
#[derive(Parser)]
struct CommandLine {
    name: benches::Name,
    #[command(flatten)]
    extent: benches::Extent,
}

fn main() -> anyhow::Result<()> {
    let CommandLine { name, extent } = CommandLine::parse();
    benches::run(name, &extent)
}
