//! The `envforge` binary: the command line, and the roles of the control plane.

mod cli;
mod server;

use std::process::ExitCode;
use std::time::Duration;

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
    RecoverOwner(server::recovery::RecoverOwnerArgs),
    RotateKey(server::access_tokens::RotateKeyArgs),
    RotateAgentsAuthority(server::agents_authority::RotateAgentsAuthorityArgs),
    Agent(server::agent::AgentArgs),
    #[command(flatten)]
    Client(cli::ClientVerb),
}

fn main() -> ExitCode {
    // Not a verb: the agent starts this program as the guard of a command as root.
    if let Some(ended) = envforge_runtime::guard_main(std::env::args_os()) {
        return ended;
    }
    if let Some(ended) = envforge_runtime::shell_main(std::env::args_os()) {
        return ended;
    }
    if let Some(ended) = envforge_runtime::keeper_main(std::env::args_os(), server::telemetry::trace_as_usual) {
        return ended;
    }
    if let Some(ended) = server::metadata_service::probe_main(std::env::args_os()) {
        return ended;
    }
    let Envforge { global, verb } = match Envforge::try_parse() {
        Ok(parsed) => parsed,
        Err(error) => return misused(error),
    };
    let output = cli::output_of(&global);
    match verb {
        Verb::Dev(arguments) => role(&output, server::dev::run(arguments, output.clone())),
        Verb::Serve(arguments) => role(&output, server::serve::run(arguments, output.clone())),
        Verb::Setup(arguments) => role(&output, server::serve::setup(arguments, output.clone())),
        Verb::Projections(arguments) => role(&output, server::projections::run(arguments, output.clone())),
        Verb::RecoverOwner(arguments) => role(&output, server::recovery::run(arguments, output.clone())),
        Verb::RotateKey(arguments) => role(&output, server::access_tokens::rotate(arguments, output.clone())),
        Verb::RotateAgentsAuthority(arguments) => {
            role(&output, server::agents_authority::rotate_authority(arguments, output.clone()))
        }
        Verb::Agent(arguments) => role(&output, server::agent::run(arguments, output.clone())),
        Verb::Client(verb) => cli::run(&global, verb, Envforge::command, &output),
    }
}

/// A command line that is none: help and version too, which are asked for in this way.
fn misused(error: clap::Error) -> ExitCode {
    let wants_json = std::env::args_os().any(|argument| argument == "--json");
    if !error.use_stderr() || !wants_json {
        error.exit();
    }
    let text = error.render().to_string();
    let told = text.lines().map(str::trim).take_while(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
    let what = told.strip_prefix("error: ").unwrap_or(&told);
    let output = cli::output_of(&cli::GlobalArguments { json: true, ..Default::default() });
    let hint = "`--help` after a command shows what it takes";
    cli::ended(&output, Err(cli::failure::Failure::usage(what, hint)))
}

/// What is still at work on a thread of its own gets this long to end; all that matters has ended before.
const THREADS_WAIT: Duration = Duration::from_millis(500);

/// Runs a role of the control plane on all cores. The command line has a smaller runtime of its own.
fn role(output: &cli::output::Output, role: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return cli::ended(output, Err(error.into())),
    };
    let outcome = runtime.block_on(role);
    runtime.shutdown_timeout(THREADS_WAIT);
    cli::ended(output, outcome.map(|()| cli::failure::Exit::Ok).map_err(server::failure))
}
