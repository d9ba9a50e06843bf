//! The command line: a client of the HTTP API, for people and for scripts.
//!
//! Owns the verbs and how a command is run from arguments to exit code. Each noun has its own file. Not here: the server's roles
//! (`dev`, `serve`, `setup`, `projections`), which stand beside this in the binary's `Verb` and share output and failures.

mod access_then;
mod audit;
mod branch_slug;
mod checkout;
mod client;
mod completions;
mod credentials;
mod doctor;
pub(crate) mod failure;
mod here;
mod host;
mod instant;
mod invite;
mod keyring;
mod lines;
mod link;
mod logs;
mod manifest_file;
mod org;
pub(crate) mod output;
mod positions;
mod private_file;
mod problem;
mod project;
mod reauthentication;
#[cfg(test)]
mod rights;
mod root;
mod secret;
mod service_token;
mod session;
mod settings;
mod shell;
mod shell_connection;
mod sign_in;
mod ssh;
mod team;
mod up;
mod usage;
mod wake;
mod why;
mod workspace;

use std::process::ExitCode;

use clap::Subcommand;

pub(crate) use self::settings::GlobalArguments;

use self::client::Client;
use self::failure::{EXIT_CODES_HELP, Exit, Failure};
use self::instant::Instants;
use self::output::Output;
use self::settings::Settings;
use self::sign_in::Way;

/// What stands below the list of commands in `envforge --help`.
pub(crate) const AFTER_HELP: &str = "\
First steps:
  envforge dev                                    run everything on this machine
  envforge login --email you@example.com          sign in
  envforge up                                     in a repository: its branch as a workspace, awake
  envforge link create --for 2h --label \"Dana's review\"
                                                  a link that opens the app and nothing else

Programs: every command takes --json; `envforge help exit-codes` lists the exit codes.";

/// The commands that talk to the API.
#[derive(Subcommand, Debug)]
pub(crate) enum ClientVerb {
    /// Sign in: through the API's identity provider, or with e-mail address and password
    Login(session::LoginArguments),
    /// End this machine's session
    Logout,
    /// Accept an invitation: make your account, join and sign in
    Join(invite::JoinArguments),
    /// Where you are signed in, and ending it
    Session(session::SessionArguments),
    /// Change your password; every session ends, and this machine gets a new one
    Password(session::PasswordArguments),
    /// Bring up this repository's branch as a workspace and wait until it is ready
    Up(up::UpArguments),
    /// Workspaces: branches with the services of their envforge.yml
    #[command(alias = "ws")]
    Workspace(workspace::WorkspaceArguments),
    /// Signed dev links: the app surface of one workspace for a reviewer
    Link(link::LinkArguments),
    /// Root windows: ask for root in a workspace, answer, use once, review
    Root(root::RootArguments),
    /// Secrets of projects and workspaces: set, list, remove, history; never a value
    Secret(secret::SecretArguments),
    /// A terminal in a workspace, asleep or awake, or one command there
    #[command(after_help = shell::EXAMPLES)]
    Shell(shell::ShellArguments),
    /// Print what OpenSSH has to know, so that ssh, scp, rsync and editors work in workspaces
    SshConfig(ssh::SshConfigArguments),
    /// What OpenSSH runs to come to a workspace; `ssh-config` says so to it
    #[command(hide = true)]
    SshProxy(ssh::SshProxyArguments),
    /// Run a job that envforge.yml declares, where the runtime is awake
    Run(shell::RunArguments),
    /// What a workspace's services write
    Logs(logs::LogsArguments),
    /// Who did what: rows, replay of the events, live tail
    Audit(audit::AuditArguments),
    /// What somebody may do and why, or why a request was allowed
    Why(why::WhyArguments),
    /// Awake time, CPU and memory, by service, link or cause
    Usage(usage::UsageArguments),
    /// Projects: the repositories of an organization
    Project(project::ProjectArguments),
    /// Organization: policy, members, teams, roles
    Org(org::OrgArguments),
    /// Hosts: machines of the organization that workspaces wake on
    Host(host::HostArguments),
    /// Look for what keeps envforge from working here
    Doctor(doctor::DoctorArguments),
    /// Print a completion script for a shell
    Completions(completions::CompletionsArguments),
    /// The exit codes of every command
    #[command(name = "exit-codes", long_about = EXIT_CODES_HELP)]
    ExitCodes,
}

/// What every command works with.
struct Context {
    output: Output,
    settings: Settings,
    client: Client,
}

impl Context {
    /// The organization to ask about: the one that was named, else the one of whoever is signed in.
    async fn org(&self) -> Result<String, Failure> {
        match &self.settings.org {
            Some(org) => Ok(org.clone()),
            None => {
                let account = self.client.account().await?;
                Ok(if account.org_slug.is_empty() { account.org } else { account.org_slug })
            }
        }
    }
}

/// How this run writes.
pub(crate) fn output_of(global: &GlobalArguments) -> Output {
    let color_refused = global.no_color || settings::environment_refuses_color();
    Output::of_terminal(global.json, color_refused, Instants::of_machine())
}

/// Runs one command. `whole`: the complete command line, which completions are made of.
pub(crate) fn run(
    global: &GlobalArguments,
    verb: ClientVerb,
    whole: fn() -> clap::Command,
    output: &Output,
) -> ExitCode {
    ended(output, run_verb(global, verb, whole, output))
}

/// Says why a command failed, where it did, and gives its exit code.
pub(crate) fn ended(output: &Output, outcome: Result<Exit, Failure>) -> ExitCode {
    let exit = outcome.unwrap_or_else(|failure| {
        if !matches!(failure, Failure::OutputClosed) {
            output.failure(&failure);
        }
        failure.exit()
    });
    exit.into()
}

fn run_verb(
    global: &GlobalArguments,
    verb: ClientVerb,
    whole: fn() -> clap::Command,
    output: &Output,
) -> Result<Exit, Failure> {
    match verb {
        ClientVerb::Completions(arguments) => completions::print(arguments, whole()),
        ClientVerb::ExitCodes => output.line(EXIT_CODES_HELP).map(|()| Exit::Ok),
        ClientVerb::Login(arguments) => {
            // Asked before anything runs: Ctrl-C at the prompt then simply ends the process.
            let settings = Settings::resolve(global)?;
            let mut way = arguments.way();
            if way.is_none() {
                let usual = &mut way;
                work(output, settings.clone(), async move |context| {
                    *usual = Some(sign_in::usual_way(&context.client).await?);
                    Ok(Exit::Ok)
                })?;
            }
            match way.unwrap_or(Way::Password) {
                Way::Password => {
                    let submitted = arguments.ask(output)?;
                    work(output, settings, async move |context| session::login(context, submitted).await)
                }
                way => work(output, settings, async move |context| session::login_by_provider(context, way).await),
            }
        }
        ClientVerb::Join(arguments) => {
            let settings = Settings::resolve(global)?;
            let joining = arguments.ask(output)?;
            work(output, settings, async move |context| invite::join(context, joining).await)
        }
        ClientVerb::Password(arguments) => {
            let settings = Settings::resolve(global)?;
            let change = arguments.ask(output)?;
            work(output, settings, async move |context| session::change_password(context, change).await)
        }
        ClientVerb::Session(arguments) => {
            work(output, Settings::resolve(global)?, async move |context| session::run(context, arguments).await)
        }
        ClientVerb::Org(arguments) => {
            let settings = Settings::resolve(global)?;
            let asked = arguments.ask(output)?;
            work(output, settings, async move |context| org::run(context, asked).await)
        }
        ClientVerb::Logout => work(output, Settings::resolve(global)?, async |context| session::logout(context).await),
        ClientVerb::Up(arguments) => {
            work(output, Settings::resolve(global)?, async move |context| up::run(context, arguments).await)
        }
        ClientVerb::Workspace(arguments) => {
            work(output, Settings::resolve(global)?, async move |context| workspace::run(context, arguments).await)
        }
        ClientVerb::Link(arguments) => {
            work(output, Settings::resolve(global)?, async move |context| link::run(context, arguments).await)
        }
        ClientVerb::Root(arguments) => {
            work(output, Settings::resolve(global)?, async move |context| root::run(context, arguments).await)
        }
        ClientVerb::Secret(arguments) => {
            let settings = Settings::resolve(global)?;
            let asked = arguments.ask(output)?;
            work(output, settings, async move |context| secret::run(context, asked).await)
        }
        ClientVerb::Shell(arguments) => {
            attached(output, Settings::resolve(global)?, async move |context| shell::run(context, arguments).await)
        }
        ClientVerb::SshConfig(arguments) => {
            work(output, Settings::resolve(global)?, async move |context| ssh::config(context, arguments).await)
        }
        ClientVerb::SshProxy(arguments) => {
            work(output, Settings::resolve(global)?, async move |context| ssh::proxy(context, arguments).await)
        }
        ClientVerb::Run(arguments) => {
            attached(output, Settings::resolve(global)?, async move |context| shell::run_job(context, arguments).await)
        }
        ClientVerb::Logs(arguments) => {
            work(output, Settings::resolve(global)?, async move |context| logs::run(context, arguments).await)
        }
        ClientVerb::Audit(arguments) => {
            work(output, Settings::resolve(global)?, async move |context| audit::run(context, arguments).await)
        }
        ClientVerb::Why(arguments) => {
            work(output, Settings::resolve(global)?, async move |context| why::run(context, arguments).await)
        }
        ClientVerb::Usage(arguments) => {
            work(output, Settings::resolve(global)?, async move |context| usage::run(context, arguments).await)
        }
        ClientVerb::Project(arguments) => {
            work(output, Settings::resolve(global)?, async move |context| project::run(context, arguments).await)
        }
        ClientVerb::Host(arguments) => {
            work(output, Settings::resolve(global)?, async move |context| host::run(context, arguments).await)
        }
        ClientVerb::Doctor(arguments) => {
            work(output, Settings::resolve(global)?, async move |context| doctor::run(context, arguments).await)
        }
    }
}

/// Runs a command to its end or to Ctrl-C.
fn work(
    output: &Output,
    settings: Settings,
    command: impl AsyncFnOnce(&Context) -> Result<Exit, Failure>,
) -> Result<Exit, Failure> {
    attached(output, settings, async move |context| {
        tokio::select! {
            outcome = command(context) => outcome,
            signal = tokio::signal::ctrl_c() => {
                signal?;
                Err(Failure::Interrupted)
            }
        }
    })
}

/// Runs a command to its end, which sees to Ctrl-C itself.
fn attached(
    output: &Output,
    settings: Settings,
    command: impl AsyncFnOnce(&Context) -> Result<Exit, Failure>,
) -> Result<Exit, Failure> {
    let client = Client::new(&settings, output.instants.clone())?.asking(!output.json);
    let context = Context { output: output.clone(), settings, client };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(async {
        let outcome = command(&context).await;
        context.client.settle().await;
        outcome
    });
    // A read of standard input that nobody waits for any more ends with the process.
    runtime.shutdown_background();
    outcome
}
