//! The `envforge` binary: the command line, and the roles of the control plane.

mod server;

use clap::{Parser, Subcommand};

#[derive(Parser, Debug)]
#[command(name = "envforge", version, about = "Branch workspaces that sleep until somebody needs them")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    Dev(server::dev::DevArgs),
    Serve(server::serve::ServeArgs),
    Setup(server::serve::SetupArgs),
    Projections(server::projections::ProjectionsArgs),
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    match cli.verb {
        Verb::Dev(args) => server::dev::run(args).await,
        Verb::Serve(args) => server::serve::run(args).await,
        Verb::Setup(args) => server::serve::setup(args).await,
        Verb::Projections(args) => server::projections::run(args).await,
    }
}
