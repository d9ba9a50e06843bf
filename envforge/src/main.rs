//! The `envforge` binary: the command line, and the roles of the control plane.

mod cli;
mod server;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

/// Branch workspaces that sleep until somebody needs them.
#[derive(Parser, Debug)]
#[command(name = "envforge", version, after_help = cli::AFTER_HELP, max_term_width = 110)]
struct Envforge {
    #[command(flatten)]
    global: cli::GlobalArguments,
    #[command(subcommand)]
    verb: Verb,
}

/// The server's roles, and the command line's own verbs beside them.
#[derive(Subcommand, Debug)]
enum Verb {
    Dev(server::dev::DevArgs),
    Serve(server::serve::ServeArgs),
    Setup(server::serve::SetupArgs),
    Projections(server::projections::ProjectionsArgs),
    #[command(flatten)]
    Client(cli::ClientVerb),
}

fn main() -> ExitCode {
    let Envforge { global, verb } = Envforge::parse();
    match verb {
        Verb::Dev(arguments) => serve(server::dev::run(arguments)),
        Verb::Serve(arguments) => serve(server::serve::run(arguments)),
        Verb::Setup(arguments) => serve(server::serve::setup(arguments)),
        Verb::Projections(arguments) => serve(server::projections::run(arguments)),
        Verb::Client(verb) => cli::run(&global, verb, Envforge::command),
    }
}

/// Runs a role of the control plane on all cores. The command line has a smaller runtime of its own.
fn serve(role: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    match runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(role)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
