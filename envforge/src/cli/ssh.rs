//! `envforge ssh-config` and `envforge ssh-proxy`: unmodified OpenSSH, and whatever runs over it, in workspaces.
//!
//! OpenSSH runs the proxy as its ProxyCommand. Before the first byte of SSH the proxy has come through the API as whoever is signed in; the
//! workspace's host key comes that way too and is written where OpenSSH looks for it. Not here: the bytes (`shell_connection`).

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use serde_json::json;
use tokio::sync::mpsc;

use super::Context;
use super::failure::{Exit, Failure};
use super::shell_connection::{Connection, Preparing};

/// What hosts of workspaces are called to OpenSSH: `signed-links.acme.envforge`.
const DOMAIN: &str = "envforge";
const KEY: &str = "ssh_key";
const KNOWN_HOSTS: &str = "ssh_known_hosts";

#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  envforge ssh-config >> ~/.ssh/config
  ssh signed-links.acme.envforge
  rsync -a src/ signed-links.acme.envforge:src/")]
pub(crate) struct SshConfigArguments {}

#[derive(Args, Debug)]
pub(crate) struct SshProxyArguments {
    /// Host as OpenSSH knows it: WORKSPACE.ORG.envforge
    host: String,
}

/// Prints the block for OpenSSH's configuration, and makes the key that it names.
pub(super) async fn config(context: &Context, _arguments: SshConfigArguments) -> Result<Exit, Failure> {
    let org = context.org().await?;
    let folder = absolute(&context.settings.config_dir)?;
    let key = folder.join(KEY);
    make_key(&key)?;
    let program = std::env::current_exe()?;
    let mut proxy = vec![program.display().to_string(), "--api".to_owned(), context.client.api().key()];
    proxy.extend(["--org", &org, "ssh-proxy", "%h"].map(str::to_owned));
    let proxy: Vec<_> = proxy.iter().map(|word| quoted(word)).collect();
    let block = format!(
        "# envforge: workspaces of {org}; `ssh WORKSPACE.{org}.{DOMAIN}`\n\
         Host *.{org}.{DOMAIN}\n\
         \x20   User envforge\n\
         \x20   ProxyCommand env ENVFORGE_CONFIG_DIR={} {}\n\
         \x20   IdentityFile \"{}\"\n\
         \x20   IdentitiesOnly yes\n\
         \x20   UserKnownHostsFile \"{}\"\n\
         \x20   StrictHostKeyChecking yes\n\
         \x20   ForwardAgent no",
        quoted(&folder.display().to_string()),
        proxy.join(" "),
        key.display(),
        folder.join(KNOWN_HOSTS).display(),
    );
    context.output.result(&json!({ "config": block, "host": format!("*.{org}.{DOMAIN}") }), || block.clone())?;
    Ok(Exit::Ok)
}

/// Carries OpenSSH's bytes on standard input and output.
pub(super) async fn proxy(context: &Context, arguments: SshProxyArguments) -> Result<Exit, Failure> {
    let host = arguments.host;
    let org = context.org().await?;
    let workspace = workspace_of(&host, &org)?;
    let folder = absolute(&context.settings.config_dir)?;
    let public = folder.join(KEY).with_extension("pub");
    let client_key = std::fs::read_to_string(&public)
        .map_err(|error| Failure::local(format!("{}: {error}", public.display()), "`envforge ssh-config` makes it"))?;
    let client_key: Vec<_> = client_key.split_whitespace().take(2).collect();
    let segments = ["v1", "orgs", &org, "workspaces", workspace, "shell"];
    let mut connection = Connection::open(&context.client, &segments).await?;
    connection.say(&json!({ "open": "ssh", "client_key": client_key.join(" ") })).await?;
    let Ok(opened) = connection.begun(Preparing::told(&context.output)).await? else {
        return Err(Failure::failed("it ended before it began", "`envforge audit log` says more"));
    };
    let Some(key) = opened.host_key.as_deref().filter(|key| !key.chars().any(char::is_control)) else {
        return Err(Failure::local(
            "the API named no host key",
            "it is of another version; `envforge doctor` shows both",
        ));
    };
    // Before OpenSSH sees a byte: it looks there once it has the server's key.
    remember(&folder.join(KNOWN_HOSTS), &host, key)?;
    // Open for as long as bytes are carried: nothing else is said here.
    let (_controls, controlled) = mpsc::channel(1);
    let errors = tokio::io::sink();
    connection.carry(Some(tokio::io::stdin()), tokio::io::stdout(), errors, controlled).await?;
    Ok(Exit::Ok)
}

fn workspace_of<'a>(host: &'a str, org: &str) -> Result<&'a str, Failure> {
    let wrong = || {
        let what = format!("`{host}` is no workspace of {org} to OpenSSH");
        Failure::usage(what, format!("WORKSPACE.{org}.{DOMAIN}, as `envforge ssh-config` says"))
    };
    let rest = host.strip_suffix(DOMAIN).and_then(|rest| rest.strip_suffix('.')).ok_or_else(wrong)?;
    let workspace = rest.strip_suffix(org).and_then(|rest| rest.strip_suffix('.')).ok_or_else(wrong)?;
    if workspace.is_empty() || workspace.contains(['.', '/']) { Err(wrong()) } else { Ok(workspace) }
}

fn absolute(folder: &Path) -> Result<PathBuf, Failure> {
    Ok(std::path::absolute(folder)?)
}

/// As a POSIX shell reads it back, which runs a ProxyCommand; `%` is OpenSSH's own unless it stands alone.
fn quoted(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/.:_-=@".contains(&byte);
    if word == "%h" || (!word.is_empty() && word.bytes().all(plain)) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('%', "%%").replace('\'', "'\\''"))
}

/// OpenSSH's own tool makes the key, 0600 and without a passphrase: it opens nothing but connections that are authenticated already.
fn make_key(path: &Path) -> Result<(), Failure> {
    if path.exists() {
        return Ok(());
    }
    std::os::unix::fs::DirBuilderExt::mode(std::fs::DirBuilder::new().recursive(true), 0o700)
        .create(path.parent().unwrap_or(Path::new(".")))?;
    let made =
        Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-C", "envforge", "-f"]).arg(path).output();
    let hint = "OpenSSH's client makes the key: install it";
    let made = made.map_err(|error| Failure::local(format!("ssh-keygen could not be run: {error}"), hint))?;
    if made.status.success() {
        return Ok(());
    }
    Err(Failure::local(format!("ssh-keygen made no key: {}", String::from_utf8_lossy(&made.stderr).trim()), hint))
}

/// Puts a host's key where OpenSSH looks for it, in the place of an earlier one.
fn remember(path: &Path, host: &str, key: &str) -> Result<(), Failure> {
    let line = format!("{host} {key}");
    let known = std::fs::read_to_string(path).unwrap_or_default();
    if known.lines().any(|known| known == line) {
        return Ok(());
    }
    let others = known.lines().filter(|known| known.split(' ').next() != Some(host));
    let text: String = others.chain([line.as_str()]).map(|line| format!("{line}\n")).collect();
    let mut file = tempfile(path)?;
    file.1.write_all(text.as_bytes())?;
    file.1.sync_all()?;
    Ok(std::fs::rename(file.0, path)?)
}

fn tempfile(beside: &Path) -> Result<(PathBuf, std::fs::File), Failure> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let path = beside.with_extension(format!("{}", std::process::id()));
    let file = std::fs::OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&path)?;
    Ok((path, file))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_host_names_one_workspace_of_the_organization() {
        assert_eq!(workspace_of("signed-links.acme.envforge", "acme").unwrap(), "signed-links");
        for wrong in [
            "signed-links",
            "a.b.acme.envforge",
            ".acme.envforge",
            "x.other.envforge",
            "x.acme.envforge.org",
            "a/b.acme.envforge",
        ] {
            assert!(workspace_of(wrong, "acme").is_err(), "{wrong}");
        }
    }

    #[test]
    fn words_of_the_proxy_command_are_read_back_by_a_shell_and_by_openssh() {
        assert_eq!(quoted("/usr/bin/envforge"), "/usr/bin/envforge");
        assert_eq!(quoted("%h"), "%h");
        assert_eq!(quoted("/home/a b/100%'s"), "'/home/a b/100%%'\\''s'");
    }

    #[test]
    fn a_new_key_takes_the_place_of_the_hosts_earlier_one_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(KNOWN_HOSTS);
        for (host, key) in
            [("a", "ssh-ed25519 1"), ("b", "ssh-ed25519 2"), ("a", "ssh-ed25519 3"), ("b", "ssh-ed25519 2")]
        {
            remember(&path, host, key).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "b ssh-ed25519 2\na ssh-ed25519 3\n");
    }
}
