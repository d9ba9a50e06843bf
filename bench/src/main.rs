//! `envforge-bench NAME`: our speed beside a peer's, in turn, in one run. This file owns the command line.
//!
//! `cargo xtask bench` builds it, finds the peers and names the cores; what the figures were is in docs/benchmarks.md. It belongs to
//! contributors and is no part of the product.

mod app;
mod benches;
mod commits;
mod load;
mod machine;
mod memory_log;
mod peers;
mod processes;
mod site;
mod verdict;

use clap::Parser;

/// Our speed beside a peer's.
#[derive(Parser)]
struct CommandLine {
    #[command(subcommand)]
    task: Task,
}

#[derive(clap::Subcommand)]
enum Task {
    #[command(flatten)]
    Bench(benches::Bench),
    /// What the benchmarks start.
    #[command(flatten)]
    Serve(processes::Role),
}

fn main() -> anyhow::Result<()> {
    match CommandLine::parse().task {
        Task::Bench(bench) => benches::run(&bench),
        Task::Serve(role) => processes::serve(&role),
    }
}
