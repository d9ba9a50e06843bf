//! `cargo xtask`: everything a contributor types. This file owns the command line.
//!
//! It does not own what the commands do (one module each), nor how a test starts a server: that is the crate `envforge-testkit`.
// The contributor's tool is the one place besides the binary that may look at the environment: it hands paths to the tests.
#![allow(clippy::disallowed_methods, reason = "xtask passes the environment on; it is never part of the product")]

mod bench;
mod check;
mod fuzz;
mod ownership;
mod steps;
mod test;
mod tools;
mod workspace;

use clap::{Parser, Subcommand};
use workspace::Workspace;

/// What contributors type.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
struct CommandLine {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Run every test; installs what tests need the first time (nats-server, PostgreSQL, Chromium, Playwright).
    #[command(visible_alias = "t")]
    Test(test::Options),
    /// Install what tests need and print where it is, without running a test.
    Setup(tools::Options),
    /// Formatting, lints, which crate may use which library, the architecture test, generated files. Seconds when nothing changed.
    #[command(visible_alias = "c")]
    Check(check::Options),
    /// Compare our speed with a peer's on this machine; without a name: what there is to measure.
    Bench(bench::Options),
    /// Feed the parsers of tokens and headers with inputs that nobody has written; without a name: which targets there are.
    Fuzz(fuzz::Options),
}

fn main() -> std::process::ExitCode {
    let task = CommandLine::parse().task;
    let done = Workspace::locate().and_then(|workspace| match task {
        Task::Test(options) => test::run(&workspace, &options),
        Task::Setup(options) => tools::setup(&workspace, &options),
        Task::Check(options) => check::run(&workspace, &options),
        Task::Bench(options) => bench::run(&workspace, &options),
        Task::Fuzz(options) => fuzz::run(&workspace, &options),
    });
    match done {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
