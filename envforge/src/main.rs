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
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    match cli.verb {
        Verb::Dev(args) => server::dev::run(args).await,
    }
}
