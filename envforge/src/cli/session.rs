//! `envforge login` and `envforge logout`.
//!
//! A password comes from a prompt or from standard input, never from the command line, where other processes and the shell's
//! history would see it. Not here: how tokens are kept (`credentials`) and renewed (`client`).

use std::io::{BufRead, IsTerminal, Read, Write};

use clap::Args;
use envforge_domain::secret::Secret;
use envforge_domain::user::EmailAddress;
use serde_json::{Value, json};

use super::Context;
use super::credentials::Account;
use super::failure::{Exit, Failure};
use super::output::{Output, printable};
use super::settings::Profile;
use super::sign_in::{self, Way};

#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  envforge login
  envforge login --browser
  envforge login --email dana@example.com
  envforge login --api https://api.envforge.ai
  envforge login --email ci@example.com --password-stdin < password.txt

Where the API has an identity provider, a page and a code are printed: open the page on any screen and enter the code. With --browser it
is a browser on this machine, without a code. --email signs in with a password.

The API is remembered for later commands; the tokens are kept in a file that only you may read.")]
pub(crate) struct LoginArguments {
    /// E-mail address of your account; asked for where it is left out
    #[arg(long, value_name = "EMAIL")]
    email: Option<String>,

    /// Read the password from standard input (its first line) instead of asking for it
    #[arg(long)]
    password_stdin: bool,

    /// Sign in with a browser on this machine
    #[arg(long, conflicts_with_all = ["email", "password_stdin", "device"])]
    browser: bool,

    /// Sign in with a code that you enter on any screen
    #[arg(long, conflicts_with_all = ["email", "password_stdin"])]
    device: bool,

    /// Port of this machine to which the browser brings its answer [default: a free one]
    #[arg(long, value_name = "PORT", requires = "browser", default_value_t = 0)]
    port: u16,
}

/// What somebody signs in with.
pub(super) struct Submitted {
    email: String,
    password: Secret,
}

/// Longer than any password that the API takes.
const PASSWORD_BYTES_MAX: u64 = 4_096;

impl LoginArguments {
    /// The way that was asked for; `None`: whatever the API offers.
    pub(super) fn way(&self) -> Option<Way> {
        match self {
            Self { browser: true, port, .. } => Some(Way::Browser { port: *port }),
            Self { device: true, .. } => Some(Way::Device),
            Self { email: Some(_), .. } | Self { password_stdin: true, .. } => Some(Way::Password),
            _ => None,
        }
    }

    /// Asks for what was not given.
    pub(super) fn ask(self, output: &Output) -> Result<Submitted, Failure> {
        let email = match self.email {
            Some(email) => email,
            None if self.password_stdin || !std::io::stdin().is_terminal() => {
                return Err(Failure::usage("the e-mail address is missing", "name it: --email you@example.com"));
            }
            None => ask_line("E-mail address: ")?,
        };
        let email = EmailAddress::parse(email.trim())
            .map_err(|error| Failure::usage(error.to_string(), "write it as you@example.com"))?;
        let email = email.as_str().to_owned();
        let password = if self.password_stdin {
            password_from_stdin()?
        } else {
            ask_password(output, &format!("Password of {}: ", printable(&email)))?
        };
        Ok(Submitted { email, password })
    }
}

fn ask_line(prompt: &str) -> Result<String, Failure> {
    let mut out = std::io::stderr().lock();
    out.write_all(prompt.as_bytes())?;
    out.flush()?;
    let mut line = String::new();
    std::io::stdin().lock().take(PASSWORD_BYTES_MAX).read_line(&mut line)?;
    Ok(line.trim().to_owned())
}

/// The first line of standard input.
pub(super) fn password_from_stdin() -> Result<Secret, Failure> {
    let mut line = String::new();
    std::io::stdin().lock().take(PASSWORD_BYTES_MAX).read_line(&mut line)?;
    let password = Secret::new(line.trim_end_matches(['\r', '\n']).to_owned());
    if password.expose().is_empty() {
        return Err(Failure::usage("standard input holds no password", "write it on the first line"));
    }
    Ok(password)
}

/// Asks on the terminal, without showing what is typed.
pub(super) fn ask_password(output: &Output, prompt: &str) -> Result<Secret, Failure> {
    if output.json || !std::io::stdin().is_terminal() {
        return Err(Failure::usage(
            "there is no terminal to ask for the password on",
            "write it to standard input: --password-stdin < FILE",
        ));
    }
    let typed = rpassword::prompt_password(prompt)?;
    if typed.is_empty() { Err(Failure::usage("no password was typed", "")) } else { Ok(Secret::new(typed)) }
}

pub(super) async fn login(context: &Context, submitted: Submitted) -> Result<Exit, Failure> {
    let signed_in = context.client.login(&submitted.email, &submitted.password).await?;
    signed_in_as(context, signed_in)
}

pub(super) async fn login_by_provider(context: &Context, way: Way) -> Result<Exit, Failure> {
    let signed_in = match way {
        Way::Browser { port } => sign_in::browser(context, port).await?,
        Way::Device | Way::Password => sign_in::device(context).await?,
    };
    signed_in_as(context, signed_in)
}

fn signed_in_as(context: &Context, (account, answer): (Account, Value)) -> Result<Exit, Failure> {
    let Context { output, settings, client } = context;
    // Another API or account has other organizations.
    Profile { api: Some(client.api().key()), org: None }.write(&settings.config_dir)?;
    if let Some(org) = settings.org.as_deref().filter(|org| **org != account.org && **org != account.org_slug) {
        output.warn(&format!(
            "you are signed in to {}, not to {org}: a session holds for one organization",
            account.org_slug
        ));
    }
    output.last_event(&answer, || {
        let who = format!("Signed in as {} at {}", printable(&account.email), client.api().key());
        let next = "Next: `envforge up` in a repository with an envforge.yml, or `envforge workspace ls`.";
        format!("{who}, organization {}.\n{}", output.bold(&printable(&account.org_slug)), output.dim(next))
    })?;
    Ok(Exit::Ok)
}

pub(super) async fn logout(context: &Context) -> Result<Exit, Failure> {
    let Context { output, client, .. } = context;
    let api = client.api().key();
    let Some(account) = client.credentials().account(&api)? else {
        output.result(&json!({ "api": api, "signed_out": false }), || format!("Nobody was signed in at {api}."))?;
        return Ok(Exit::Ok);
    };
    // The server first: tokens that are only forgotten here would stay good elsewhere.
    match client.post(&["v1", "auth", "logout"], serde_json::Value::Null).await {
        Ok(_) | Err(Failure::SignedOut(_)) => {}
        // It does not know the session any more: that is what was wanted.
        Err(Failure::Refused(problem)) if problem.status == 401 => {}
        Err(failure) => {
            output.note("The session still stands, on the server and here.");
            return Err(failure);
        }
    }
    client.credentials().lock().await?.remove(&api)?;
    output.result(&json!({ "api": api, "signed_out": true }), || {
        format!("Signed out {} at {api}; the session has ended on the server too.", printable(&account.email))
    })?;
    Ok(Exit::Ok)
}
