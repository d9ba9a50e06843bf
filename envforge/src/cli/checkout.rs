//! The Git repository in which a command runs: its root, branch, origin, and what the workspace would not see of it.
//!
//! Asks the `git` program; changes nothing. Not here: what EnvForge makes of it (`up`).

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use envforge_domain::project::Repository;
use envforge_domain::workspace::Branch;

use super::failure::Failure;

/// A checkout of a repository.
#[derive(Clone, Debug)]
pub(crate) struct Checkout {
    /// The top folder of the work tree.
    pub root: PathBuf,
}

impl Checkout {
    /// The checkout that holds `folder`.
    pub(crate) fn find(folder: &Path) -> Result<Self, Failure> {
        let output = git(folder, &["rev-parse", "--show-toplevel"])?;
        if !output.status.success() {
            return Err(Failure::usage(
                format!("{} lies in no Git work tree: {}", folder.display(), last_line(&output.stderr)),
                "change into a checkout of the repository, or name it: --directory DIR",
            ));
        }
        let root = String::from_utf8_lossy(&output.stdout).trim_end_matches(['\r', '\n']).to_owned();
        Ok(Self { root: PathBuf::from(root) })
    }

    /// The branch that is checked out.
    pub(crate) fn branch(&self) -> Result<Branch, Failure> {
        let output = git(&self.root, &["symbolic-ref", "--quiet", "--short", "HEAD"])?;
        if !output.status.success() {
            return Err(Failure::usage(
                "no branch is checked out (detached HEAD)",
                "check one out: `git switch BRANCH`, or name it: --branch BRANCH",
            ));
        }
        let name = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        Branch::parse(&name).map_err(|error| Failure::usage(error.to_string(), "name another branch: --branch BRANCH"))
    }

    /// Where a server finds this repository: the URL of `origin`, or this folder for a server on this machine.
    pub(crate) fn repository(&self, server_is_local: bool) -> Result<Repository, Failure> {
        let output = git(&self.root, &["remote", "get-url", "origin"])?;
        let origin = output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned());
        match origin.filter(|origin| !origin.is_empty()) {
            Some(origin) => self.read_location(&origin, server_is_local),
            None if server_is_local => self.read_location(&self.root.to_string_lossy(), true),
            None => Err(Failure::usage(
                "the repository has no remote called origin, and the API is on another machine",
                "add one: `git remote add origin URL`, or name it: --repository URL",
            )),
        }
    }

    /// Reads a location as Git does: URLs, `user@host:path`, and paths relative to the checkout.
    pub(crate) fn read_location(&self, text: &str, server_is_local: bool) -> Result<Repository, Failure> {
        let location = location(&self.root, text);
        if location.starts_with('/') || location.starts_with("file://") {
            if !server_is_local {
                return Err(Failure::usage(
                    format!("the repository is the folder {location} of this machine, and the API is on another one"),
                    "push it somewhere the server can fetch it from and name that: --repository URL",
                ));
            }
            if let (true, Ok(real)) = (location.starts_with('/'), std::fs::canonicalize(&location)) {
                let real = real.to_string_lossy().into_owned();
                return Repository::parse(&real).map_err(|error| Failure::usage(error.to_string(), ""));
            }
        }
        Repository::parse(&location)
            .map_err(|error| Failure::usage(error.to_string(), "name another one: --repository URL"))
    }

    /// What the workspace would not see of this checkout, as a sentence each. Empty where Git cannot tell.
    pub(crate) fn unseen(&self, branch: &Branch, repository: &Repository) -> Vec<String> {
        let mut unseen = Vec::new();
        let count = |args: &[&str]| -> usize {
            match git(&self.root, args) {
                Ok(output) if output.status.success() => {
                    String::from_utf8_lossy(&output.stdout).lines().filter(|line| !line.is_empty()).count()
                }
                _ => 0,
            }
        };
        let changed = count(&["status", "--porcelain", "--untracked-files=no"]);
        if changed > 0 {
            let files = if changed == 1 { "1 file has" } else { &format!("{changed} files have") };
            unseen.push(format!("{files} changes that are not committed; the workspace runs what is committed"));
        }
        if !repository.as_str().starts_with('/') {
            let remote = format!("refs/remotes/origin/{}", branch.as_str());
            let known = git(&self.root, &["rev-parse", "--verify", "--quiet", &remote]);
            if known.is_ok_and(|output| output.status.success()) {
                let ahead = count(&["rev-list", &format!("{remote}..HEAD")]);
                if ahead > 0 {
                    let commits = if ahead == 1 { "1 commit is" } else { &format!("{ahead} commits are") };
                    unseen.push(format!("{commits} not pushed; the workspace runs what origin has: `git push`"));
                }
            } else {
                unseen.push(format!(
                    "origin has no branch {0} as far as this checkout knows: `git push -u origin {0}`",
                    branch.as_str()
                ));
            }
        }
        unseen
    }
}

/// `text` in a form that the server takes: without user name and password, paths absolute.
fn location(root: &Path, text: &str) -> String {
    if let Some(rest) = text.strip_prefix("https://") {
        // A token in the checkout's own configuration stays there.
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
        return format!("https://{host}/{path}");
    }
    if text.contains("://") || text.starts_with("git@") {
        return text.to_owned();
    }
    // As Git reads it: a colon before any slash makes it `host:path`.
    let colon = text.find(':');
    let scp_like = colon.is_some_and(|colon| !text[..colon].contains('/'));
    if let (true, Some((host, path))) = (scp_like, text.split_once(':')) {
        return format!("ssh://{host}/{}", path.trim_start_matches('/'));
    }
    root.join(text).to_string_lossy().into_owned()
}

/// Whether there is a usable `git`, as its version.
pub(crate) fn git_version() -> Result<String, Failure> {
    let output = git(Path::new("."), &["version"])?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().trim_start_matches("git version ").to_owned())
}

fn git(folder: &Path, args: &[&str]) -> Result<Output, Failure> {
    let mut command = Command::new("git");
    command.arg("-C").arg(folder).args(args).stdin(Stdio::null()).env("LC_ALL", "C").env("GIT_TERMINAL_PROMPT", "0");
    command.output().map_err(|error| {
        Failure::local(format!("git cannot be run: {error}"), "install Git and see that it is in PATH")
    })
}

fn last_line(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.trim().lines().last().unwrap_or_default().trim_start_matches("fatal: ").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(folder: &Path, args: &[&str]) {
        let config = ["-c", "user.name=Dana", "-c", "user.email=dana@acme.example", "-c", "commit.gpgsign=false"];
        let output = git(folder, &[&config, args].concat()).unwrap();
        assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn repository() -> (tempfile::TempDir, Checkout) {
        let dir = tempfile::tempdir().unwrap();
        run(dir.path(), &["init", "-q", "-b", "feature/x"]);
        std::fs::write(dir.path().join("a"), "1").unwrap();
        run(dir.path(), &["add", "a"]);
        run(dir.path(), &["commit", "-q", "-m", "one"]);
        let checkout = Checkout::find(dir.path()).unwrap();
        (dir, checkout)
    }

    #[test]
    fn root_branch_and_location_are_found_from_any_folder_below() {
        let (dir, checkout) = repository();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        assert_eq!(Checkout::find(&dir.path().join("sub")).unwrap().root, checkout.root);
        assert_eq!(checkout.branch().unwrap().as_str(), "feature/x");
        let local = checkout.repository(true).unwrap();
        assert_eq!(Path::new(local.as_str()), dir.path().canonicalize().unwrap());
        assert!(checkout.repository(false).unwrap_err().to_string().contains("no remote called origin"));
    }

    #[test]
    fn a_folder_without_git_and_a_detached_head_are_told_apart() {
        let empty = tempfile::tempdir().unwrap();
        let failure = Checkout::find(empty.path()).unwrap_err();
        assert_eq!(failure.exit(), super::super::failure::Exit::Usage);
        assert!(failure.to_string().contains("no Git work tree"), "{failure}");
        let (dir, checkout) = repository();
        run(dir.path(), &["checkout", "-q", "--detach"]);
        assert!(checkout.branch().unwrap_err().to_string().contains("detached HEAD"));
    }

    #[test]
    fn an_origin_is_taken_without_its_password() {
        let (dir, checkout) = repository();
        run(dir.path(), &["remote", "add", "origin", "https://dana:t0ken@git.example/acme/orders.git"]);
        assert_eq!(checkout.repository(false).unwrap().as_str(), "https://git.example/acme/orders.git");
    }

    #[test]
    fn locations_are_read_as_git_reads_them() {
        let root = Path::new("/srv/orders");
        for (text, expected) in [
            ("https://git.example/a/b.git", "https://git.example/a/b.git"),
            ("git@git.example:a/b.git", "git@git.example:a/b.git"),
            ("deploy@git.example:a/b.git", "ssh://deploy@git.example/a/b.git"),
            ("ssh://git@git.example/a/b", "ssh://git@git.example/a/b"),
            ("../mirror", "/srv/orders/../mirror"),
            ("/srv/mirror", "/srv/mirror"),
            ("./a:b", "/srv/orders/./a:b"),
        ] {
            assert_eq!(location(root, text), expected);
        }
    }

    #[test]
    fn what_the_workspace_would_not_see_is_said() {
        let (dir, checkout) = repository();
        let branch = checkout.branch().unwrap();
        let local = checkout.repository(true).unwrap();
        assert_eq!(checkout.unseen(&branch, &local), Vec::<String>::new());
        std::fs::write(dir.path().join("a"), "2").unwrap();
        assert!(checkout.unseen(&branch, &local)[0].starts_with("1 file has changes"));

        let remote = Repository::parse("https://git.example/a.git").unwrap();
        assert!(checkout.unseen(&branch, &remote)[1].contains("git push -u origin feature/x"));
        run(dir.path(), &["update-ref", "refs/remotes/origin/feature/x", "HEAD"]);
        run(dir.path(), &["commit", "-q", "-a", "-m", "two"]);
        assert_eq!(
            checkout.unseen(&branch, &remote),
            ["1 commit is not pushed; the workspace runs what origin has: `git push`"]
        );
    }
}
