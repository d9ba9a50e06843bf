//! The branch's tip in a directory, by the real git.
//!
//! git runs with an environment and a configuration of our own: no hooks, no helpers, no prompts, no protocols but https,
//! ssh and local paths, bounded in time and output. The repository lies beside the checkout and is named explicitly, so
//! nothing that a service writes into its checkout steers a later git. Uncommitted work of a local repository does not
//! come along. Files that the branch ignores (`node_modules`) stay from wake to wake; everything else equals the commit.
//!
//! Not here: whose credential it is that git shows (`git_login`), beside what the host's `git_environment` gives; submodules and LFS.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use envforge_domain::time::Millis;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::time::{Instant, timeout_at};

use crate::config::Config;
use crate::environment::{Environment, MARKER_VARIABLE};
use crate::failure::CheckoutFailure;
use crate::git_login::LoginSocket;
use crate::output::private_directory;
use crate::process::{self, Marker};
use crate::record::blocking;
use crate::repository::{Branch, Repository};
use crate::unix_user::{self, Handing, UserBlock};

const OUTPUT_BYTES_MAX: usize = 4 * 1024 * 1024;
const DETAIL_CHARS_MAX: usize = 300;
/// Our own reference to the fetched commit.
const TIP: &str = "refs/envforge/tip";

/// One checkout of one workspace.
pub(crate) struct Checkout<'a> {
    pub(crate) config: &'a Config,
    pub(crate) marker: &'a Marker,
    /// Bare except for its index.
    pub(crate) repository: PathBuf,
    pub(crate) tree: PathBuf,
    /// Where its index lies, where the workspace has users of its own.
    pub(crate) index: PathBuf,
    /// Whose the tree is. Then what writes into it is git as the workspace's own user: with its processes about, root must
    /// not follow a path there. What comes from outside is fetched by EnvForge itself, with its own credentials.
    pub(crate) block: Option<&'a UserBlock>,
    /// Where git asks for what it shows the repository's server.
    pub(crate) login: Option<&'a LoginSocket>,
}

struct Answer {
    success: bool,
    output: String,
    errors: String,
}

impl Checkout<'_> {
    /// Brings `tree` to the branch's tip; the commit's id.
    pub(crate) async fn update(&self, address: &str, branch: &str) -> Result<String, CheckoutFailure> {
        let (address, branch) = (Repository::parse(address)?, Branch::parse(branch)?);
        let limit = self.config.checkout_duration_max;
        let deadline = Instant::now() + limit;
        let work = async {
            match self.attempt(&address, &branch).await {
                // Half a write of an earlier run, or a service that scribbled over it: the second attempt starts from nothing.
                Err(CheckoutFailure::Broken { detail }) => {
                    tracing::warn!(detail, "a checkout is broken and is made anew");
                    self.clear().await?;
                    self.attempt(&address, &branch).await
                }
                other => other,
            }
        };
        timeout_at(deadline, work).await.unwrap_or_else(|_| Err(CheckoutFailure::TooSlow { limit: millis(limit) }))
    }

    /// Clones the branch, with its history, into `tree`, which must not be there. No credential is left in it: its address holds
    /// none, and git gets none but by its environment.
    pub(crate) async fn clone_anew(&self, address: &str, branch: &str) -> Result<(), CheckoutFailure> {
        let (address, branch) = (Repository::parse(address)?, Branch::parse(branch)?);
        let limit = self.config.checkout_duration_max;
        let half_done = self.tree.with_extension("new");
        let work = async {
            let place = half_done.clone();
            blocking(move || match std::fs::remove_dir_all(place) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            })
            .await
            .map_err(broken)?;
            let mut git = self.program();
            git.args(["clone", "--quiet", "--no-hardlinks", "--no-recurse-submodules", "--template=", "--branch"]);
            git.arg(branch.as_str()).arg("--").arg(address.as_str()).arg(&half_done);
            let answer = self.run(git).await?;
            if !answer.success {
                return Err(self.not_fetched(&answer.errors, &address, &branch).await?);
            }
            let (from, to, block) = (half_done.clone(), self.tree.clone(), self.block.cloned());
            blocking(move || {
                if let Some(block) = block {
                    unix_user::hand_over(&from, &block, Handing::Checkout)?;
                }
                std::fs::rename(from, to)
            })
            .await
            .map_err(broken)
        };
        timeout_at(Instant::now() + limit, work)
            .await
            .unwrap_or_else(|_| Err(CheckoutFailure::TooSlow { limit: millis(limit) }))
    }

    async fn attempt(&self, address: &Repository, branch: &Branch) -> Result<String, CheckoutFailure> {
        self.prepare().await?;
        self.fetch(address, branch).await?;
        let commit = self.expect(self.git(["rev-parse", "--verify", "--end-of-options", TIP])).await?;
        let commit = commit.trim().to_owned();
        match self.block {
            None => self.expect(self.in_tree(["checkout", "--quiet", "--force", "--detach", &commit])).await?,
            Some(block) => {
                self.hand_over(block).await?;
                self.expect(self.in_tree(["read-tree", "--reset", "-u", &commit])).await?
            }
        };
        self.expect(self.in_tree(["clean", "--quiet", "-ffd"])).await?;
        Ok(commit)
    }

    async fn hand_over(&self, block: &UserBlock) -> Result<(), CheckoutFailure> {
        let (repository, tree, block) = (self.repository.clone(), self.tree.clone(), block.clone());
        let index = self.index.join("index.lock");
        blocking(move || {
            unix_user::hand_over(&repository, &block, Handing::Readable)?;
            unix_user::directory_of(&tree, block.shell(), 0o2770)?;
            unix_user::hand_over(&tree, &block, Handing::Checkout)?;
            match std::fs::remove_file(index) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            }
        })
        .await
        .map_err(broken)
    }

    async fn prepare(&self) -> Result<(), CheckoutFailure> {
        let (repository, tree) = (self.repository.clone(), self.tree.clone());
        let made = blocking(move || {
            private_directory(&tree)?;
            if !repository.join("HEAD").is_file() {
                return Ok(false);
            }
            // Wakes of a workspace are serialized and leftovers ended, so a lock belongs to a git that was killed.
            for lock in
                ["index.lock", "HEAD.lock", "shallow.lock", "config.lock", "packed-refs.lock", "refs/envforge/tip.lock"]
            {
                match std::fs::remove_file(repository.join(lock)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            Ok(true)
        })
        .await
        .map_err(broken)?;
        if !made {
            self.expect(self.git(["init", "--quiet", "--bare", "--template="])).await?;
        }
        Ok(())
    }

    async fn clear(&self) -> Result<(), CheckoutFailure> {
        let places = [self.repository.clone(), self.tree.clone()];
        let index = self.index.join("index");
        blocking(move || {
            let removed = places.into_iter().map(std::fs::remove_dir_all).chain([std::fs::remove_file(index)]);
            for outcome in removed {
                match outcome {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            Ok(())
        })
        .await
        .map_err(broken)
    }

    async fn fetch(&self, address: &Repository, branch: &Branch) -> Result<(), CheckoutFailure> {
        let depth = format!("--depth={}", self.config.history_commits_max);
        let refspec = format!("+refs/heads/{}:{TIP}", branch.as_str());
        let fetch = self.git([
            "fetch",
            "--quiet",
            "--force",
            "--no-tags",
            "--no-write-fetch-head",
            "--no-recurse-submodules",
            "--update-shallow",
            &depth,
            "--",
            address.as_str(),
            &refspec,
        ]);
        let answer = self.run(fetch).await?;
        if answer.success {
            return Ok(());
        }
        Err(self.not_fetched(&answer.errors, address, branch).await?)
    }

    /// Why git could not take a branch, from what it said.
    async fn not_fetched(
        &self,
        errors: &str,
        address: &Repository,
        branch: &Branch,
    ) -> Result<CheckoutFailure, CheckoutFailure> {
        if errors.contains("couldn't find remote ref") || errors.contains("not found in upstream") {
            let near = self.branches(address).await?;
            return Ok(CheckoutFailure::NoSuchBranch {
                branch: branch.as_str().to_owned(),
                near: branch.nearest(near.iter().map(String::as_str)),
            });
        }
        let said = |signs: &[&str]| signs.iter().any(|sign| errors.contains(sign));
        let redirects = ["returned error: 301", "returned error: 302", "returned error: 307", "returned error: 308"];
        if self.login.is_some() && said(&redirects) {
            return Ok(CheckoutFailure::Redirected);
        }
        // The last two are what git says where nobody answers its question.
        if said(&["Authentication failed", "returned error: 403", "could not read Username", "could not read Password"])
        {
            let given = self.login.is_some();
            return Ok(if given { CheckoutFailure::CredentialRefused } else { CheckoutFailure::CredentialNeeded });
        }
        let detail = self.detail(errors);
        // The remote answered and our side could not take it.
        Ok(if said(&["unable to write", "bad object", "shallow file", "index file", "object file", "loose object"]) {
            CheckoutFailure::Broken { detail }
        } else {
            CheckoutFailure::Unreachable { detail }
        })
    }

    async fn branches(&self, address: &Repository) -> Result<Vec<String>, CheckoutFailure> {
        let mut git = self.program();
        git.args(["ls-remote", "--heads", "--", address.as_str()]);
        let answer = self.run(git).await?;
        Ok(answer
            .output
            .lines()
            .filter_map(|line| line.split_once("\trefs/heads/"))
            .map(|(_, name)| name.to_owned())
            .collect())
    }

    fn in_tree<const N: usize>(&self, arguments: [&str; N]) -> Command {
        let mut git = match self.block {
            None => self.plain(Command::new("git")),
            Some(block) => {
                // Everybody of the workspace's group may write what it makes.
                let mut shell = Command::new("/bin/sh");
                shell.arg("-c").arg("umask 0002; exec git \"$@\"").arg("git");
                block.shell().apply(&mut shell);
                let mut git = self.plain(shell);
                git.env("GIT_INDEX_FILE", self.index.join("index"));
                git
            }
        };
        git.arg("-c").arg("core.bare=false").arg("--work-tree").arg(&self.tree).args(arguments).current_dir(&self.tree);
        git
    }

    fn git<const N: usize>(&self, arguments: [&str; N]) -> Command {
        let mut git = self.plain(Command::new("git"));
        git.args(arguments);
        git
    }

    fn plain(&self, git: Command) -> Command {
        let mut git = self.prepared(git);
        git.arg("--git-dir").arg(&self.repository);
        git
    }

    /// Without a repository.
    fn program(&self) -> Command {
        self.prepared(Command::new("git"))
    }

    fn prepared(&self, mut git: Command) -> Command {
        let mut environment = Environment::default();
        environment.set("HOME", "/nonexistent");
        environment.set("GIT_SSH_COMMAND", "ssh -oBatchMode=yes");
        for (name, value) in &self.config.git_environment {
            environment.set(name, value);
        }
        for (name, value) in [
            ("PATH", self.config.path.as_str()),
            ("LC_ALL", "C"),
            ("GIT_TERMINAL_PROMPT", "0"),
            ("GIT_ASKPASS", "true"),
            ("SSH_ASKPASS_REQUIRE", "never"),
            ("GIT_ALLOW_PROTOCOL", "https:ssh:file"),
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_CONFIG_GLOBAL", "/dev/null"),
            ("GIT_ATTR_NOSYSTEM", "1"),
            (MARKER_VARIABLE, self.marker.as_str()),
        ] {
            environment.set(name, value);
        }
        for (name, value) in self.login.map(LoginSocket::environment).unwrap_or_default() {
            environment.set(name, value);
        }
        process::contain(&mut git, &environment);
        for setting in [
            "core.hooksPath=/dev/null",
            "core.fsmonitor=false",
            "protocol.ext.allow=never",
            "submodule.recurse=false",
            "gc.autoDetach=false",
            "maintenance.autoDetach=false",
            "advice.detachedHead=false",
        ] {
            git.arg("-c").arg(setting);
        }
        git.current_dir(self.tree.parent().unwrap_or(Path::new("/")));
        git
    }

    async fn expect(&self, git: Command) -> Result<String, CheckoutFailure> {
        let answer = self.run(git).await?;
        if answer.success {
            Ok(answer.output)
        } else {
            Err(CheckoutFailure::Broken { detail: self.detail(&answer.errors) })
        }
    }

    /// The last words of git, on one line, without what it was given.
    fn detail(&self, errors: &str) -> String {
        match self.login {
            None => detail(errors),
            Some(login) => detail(&login.redacted(errors)),
        }
    }

    async fn run(&self, mut git: Command) -> Result<Answer, CheckoutFailure> {
        let mut child =
            git.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().map_err(|error| match error.kind() {
                io::ErrorKind::NotFound => CheckoutFailure::GitMissing,
                _ => broken(error),
            })?;
        let (output, errors) = (child.stdout.take(), child.stderr.take());
        let (status, output, errors) = tokio::try_join!(child.wait(), read(output), read(errors)).map_err(broken)?;
        Ok(Answer { success: status.success(), output, errors })
    }
}

/// Keeps the first bytes and drains the rest, so that git never waits for a reader.
async fn read(source: Option<impl AsyncRead + Unpin>) -> io::Result<String> {
    let Some(mut source) = source else { return Ok(String::new()) };
    let mut kept = Vec::new();
    (&mut source).take(OUTPUT_BYTES_MAX as u64).read_to_end(&mut kept).await?;
    tokio::io::copy(&mut source, &mut tokio::io::sink()).await?;
    Ok(String::from_utf8_lossy(&kept).into_owned())
}

fn broken(error: io::Error) -> CheckoutFailure {
    CheckoutFailure::Broken { detail: error.to_string() }
}

/// The last words of git, on one line.
fn detail(errors: &str) -> String {
    let line = errors.split(char::is_control).filter(|part| !part.trim().is_empty()).collect::<Vec<_>>().join("; ");
    let length = line.chars().count();
    line.chars().skip(length.saturating_sub(DETAIL_CHARS_MAX)).collect()
}

fn millis(length: Duration) -> Millis {
    Millis::new(u64::try_from(length.as_millis()).unwrap_or(u64::MAX))
}
