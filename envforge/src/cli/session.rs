//! `envforge login`, `logout`, `session` and `password`.
//!
//! A password comes from a prompt or from standard input, never from the command line, where other processes and the shell's
//! history would see it. Not here: how tokens are kept (`credentials`) and renewed (`client`).

use std::io::{BufRead, IsTerminal, Read, Write};

use clap::{Args, Subcommand};
use envforge_domain::secret::Secret;
use envforge_domain::user::EmailAddress;
use serde_json::{Value, json};

use super::Context;
use super::credentials::Account;
use super::failure::{Exit, Failure};
use super::invite::new_password;
use super::output::{Output, cell, printable};
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

impl Submitted {
    pub(super) fn new(email: String, password: Secret) -> Self {
        Self { email, password }
    }
}

#[derive(Args, Debug)]
pub(crate) struct SessionArguments {
    #[command(subcommand)]
    verb: SessionVerb,
}

#[derive(Subcommand, Debug)]
enum SessionVerb {
    /// Your open sessions; this machine's is marked
    Ls,
    /// End one of your sessions
    Revoke {
        /// Its id, from `envforge session ls`
        session: String,
    },
    /// End all of your sessions, this machine's too
    RevokeAll,
}

#[derive(Args, Debug)]
#[command(after_help = "\
Example:
  printf '%s\\n%s\\n' \"$PRESENT\" \"$NEW\" | envforge password --stdin")]
pub(crate) struct PasswordArguments {
    /// Read the present and the new password from the first two lines of standard input instead of asking for them
    #[arg(long)]
    stdin: bool,
}

/// A password and what is to take its place.
pub(super) struct Change {
    present: Secret,
    new: Secret,
}

impl PasswordArguments {
    pub(super) fn ask(self, output: &Output) -> Result<Change, Failure> {
        if self.stdin {
            let [present, new] = lines_from_stdin()?;
            return Ok(Change { present, new });
        }
        let present = ask_password(output, "Present password: ")?;
        Ok(Change { present, new: new_password(output, "New password: ")? })
    }
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

pub(super) fn ask_line(prompt: &str) -> Result<String, Failure> {
    let mut out = std::io::stderr().lock();
    out.write_all(prompt.as_bytes())?;
    out.flush()?;
    let mut line = String::new();
    std::io::stdin().lock().take(PASSWORD_BYTES_MAX).read_line(&mut line)?;
    Ok(line.trim().to_owned())
}

/// The first two lines of standard input.
pub(super) fn lines_from_stdin() -> Result<[Secret; 2], Failure> {
    let mut input = std::io::stdin().lock().take(2 * PASSWORD_BYTES_MAX);
    let mut line = || -> Result<Secret, Failure> {
        let mut line = String::new();
        input.read_line(&mut line)?;
        let secret = Secret::new(line.trim_end_matches(['\r', '\n']).to_owned());
        if secret.expose().is_empty() {
            return Err(Failure::usage("standard input holds too little", "write two lines, one secret each"));
        }
        Ok(secret)
    };
    Ok([line()?, line()?])
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
    context.client.credentials().can_keep().await?;
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
    let Some(account) = client.credentials().account(&api).await? else {
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
    client.credentials().lock().await?.remove(&api).await?;
    output.result(&json!({ "api": api, "signed_out": true }), || {
        format!("Signed out {} at {api}; the session has ended on the server too.", printable(&account.email))
    })?;
    Ok(Exit::Ok)
}

pub(super) async fn run(context: &Context, arguments: SessionArguments) -> Result<Exit, Failure> {
    let Context { output, client, .. } = context;
    match arguments.verb {
        SessionVerb::Ls => {
            let page = client.get(&["v1", "me", "sessions"], &[]).await?.body;
            output.result(&page, || table(output, &page))?;
        }
        SessionVerb::Revoke { session } => {
            let receipt = client.delete(&["v1", "me", "sessions", &session], &[]).await?.body;
            output.result(&receipt, || shown(&receipt))?;
        }
        SessionVerb::RevokeAll => {
            let receipt = client.post(&["v1", "auth", "logout-all"], Value::Null).await?.body;
            let api = client.api().key();
            client.credentials().lock().await?.remove(&api).await?;
            output.result(&receipt, || format!("{}\nYou are signed out at {api}.", shown(&receipt)))?;
        }
    }
    Ok(Exit::Ok)
}

pub(super) async fn change_password(context: &Context, change: Change) -> Result<Exit, Failure> {
    let Context { output, client, .. } = context;
    let answer = client.change_password(&change.present, &change.new).await?;
    output.result(&answer, || format!("Your password is changed. {}", shown(&answer["revoked"])))?;
    Ok(Exit::Ok)
}

/// What a revocation closed, which gateways did not tell how many connections, and which processes how many shells.
pub(super) fn shown(receipt: &Value) -> String {
    let some = |field: &str, one: &str, many: &str| {
        receipt[field].as_u64().map(|count| format!("{count} {}", if count == 1 { one } else { many }))
    };
    let of_command_lines = match receipt["cli_sessions"].as_u64() {
        Some(count) if count > 0 => format!(" ({count} on the command line)"),
        _ => String::new(),
    };
    let closed = [
        some("sessions", "session", "sessions").map(|sessions| sessions + &of_command_lines),
        some("links", "link", "links"),
        some("sockets", "open connection", "open connections"),
        some("shells", "shell", "shells"),
    ];
    let closed: Vec<_> = closed.into_iter().flatten().collect();
    let told = format!("Closed {} in {} ms.", closed.join(", "), cell(receipt.get("took_ms")));
    let unknown = [("gateways_unknown", "gateway", "Open connections"), ("processes_unknown", "process", "Shells")];
    unknown.into_iter().fold(told, |told, (field, id, what)| {
        let unknown = receipt[field].as_array().map(Vec::as_slice).unwrap_or_default();
        if unknown.is_empty() {
            return told;
        }
        let named = unknown.iter().map(|unknown| match unknown[id].as_str() {
            Some(name) => format!("{name} ({})", cell(unknown.get("reason"))),
            None => cell(unknown.get("reason")),
        });
        format!("{told} {what} are not known of: {}.", named.collect::<Vec<_>>().join(", "))
    })
}

fn table(output: &Output, page: &Value) -> String {
    let row = |item: &Value| {
        let this = if item["current"] == Value::Bool(true) { "*" } else { "" };
        [
            this.to_owned(),
            cell(item.get("client")),
            cell(item.get("surface")),
            output.instants.show_wire(item.get("opened_at")),
            output.instants.show_wire(item.get("last_used_at")),
            cell(item.get("id")),
        ]
    };
    let rows = page["items"].as_array().into_iter().flatten().map(row).collect();
    output.table(["", "CLIENT", "SURFACE", "OPENED", "LAST USED", "ID"], rows, "No open sessions.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machines_session_is_marked() {
        let session = |id: &str, current: bool| {
            json!({"id": id, "client": "envforge-cli/1", "surface": "cli", "opened_at": "2026-11-24T08:00:00.000Z",
                "last_used_at": "2026-11-24T09:00:00.000Z", "current": current})
        };
        let page = json!({"items": [session("ses_1", true), session("ses_2", false)]});
        let text = table(&Output::plain(), &page);
        let marked: Vec<_> = text.lines().filter(|line| line.starts_with('*')).collect();
        assert!(marked.len() == 1 && marked[0].contains("ses_1"), "{text}");
    }

    #[test]
    fn a_receipt_says_what_was_closed_and_leaves_out_what_is_not_known() {
        let receipt = json!({"sessions": 3, "cli_sessions": 0, "links": 1, "sockets": null, "took_ms": 12});
        assert_eq!(shown(&receipt), "Closed 3 sessions, 1 link in 12 ms.");
        let receipt = json!({"sessions": 3, "cli_sessions": 2, "links": 0, "sockets": 4, "took_ms": 12});
        let told = "Closed 3 sessions (2 on the command line), 0 links, 4 open connections in 12 ms.";
        assert_eq!(shown(&receipt), told);
        let receipt =
            json!({"sessions": 1, "links": 0, "sockets": 2, "shells": 1, "shells_unknown": null, "took_ms": 3});
        assert_eq!(shown(&receipt), "Closed 1 session, 0 links, 2 open connections, 1 shell in 3 ms.");
        let unknown = json!([{"process": "api_1", "reason": "process_lost"}]);
        let receipt = json!({"sessions": 1, "links": 0, "shells": 2, "processes_unknown": unknown, "took_ms": 3});
        let told = "Closed 1 session, 0 links, 2 shells in 3 ms. Shells are not known of: api_1 (process_lost).";
        assert_eq!(shown(&receipt), told);
        let unknown =
            json!([{"gateway": "gtw_1", "reason": "gateway_lost"}, {"gateway": null, "reason": "gateways_unknown"}]);
        let receipt = json!({"sessions": 0, "links": 1, "sockets": null, "gateways_unknown": unknown, "took_ms": 6000});
        let told = "Closed 0 sessions, 1 link in 6000 ms. Open connections are not known of: gtw_1 (gateway_lost), gateways_unknown.";
        assert_eq!(shown(&receipt), told);
    }
}
