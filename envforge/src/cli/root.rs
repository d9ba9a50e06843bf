//! `envforge root`: root windows, from the request over the one command, or its shell, to the review.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use serde_json::{Value, json};

use super::Context;
use super::failure::{Exit, Failure};
use super::instant::{parse_length, show_length_ms};
use super::output::{Output, cell, printable};
use super::shell;
use super::shell_connection::Connection;
use super::workspace::more;

/// Between two looks at a command that runs.
const LOOK_INTERVAL: Duration = Duration::from_millis(300);

#[derive(Args, Debug)]
pub(crate) struct RootArguments {
    #[command(subcommand)]
    verb: RootVerb,
}

/// What a window is for.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Access {
    Command,
    Shell,
}

#[derive(Subcommand, Debug)]
enum RootVerb {
    /// Ask for root in a workspace; somebody else approves it
    #[command(after_help = "\
Examples:
  envforge root request signed-links --for 20m --reason \"libpq is missing\"
  envforge root run rtw_... -- apt-get install -y libpq5
  envforge root request signed-links --mode shell --reason \"what fills the disk\"
  envforge root shell rtw_...
  envforge root request signed-links --break-glass --reason \"disk full, nobody is awake\"")]
    Request {
        /// Slug or id of the workspace
        workspace: String,
        /// What for
        #[arg(long)]
        reason: String,
        /// How long the window is open, from its first use: 20m [default: what the policy allows]
        #[arg(long = "for", value_name = "LENGTH", value_parser = parse_length)]
        length: Option<u64>,
        /// What for: one command, or one shell on a terminal
        #[arg(long, value_enum, value_name = "MODE", default_value_t = Access::Command)]
        mode: Access,
        /// Open it at once; somebody else reviews it afterwards
        #[arg(long)]
        break_glass: bool,
    },
    /// The root windows, the newest first
    Ls {
        /// One state: requested, approved, open, closed, review_pending, ...
        #[arg(long)]
        phase: Option<String>,
        /// Most windows to list
        #[arg(long, value_name = "COUNT", default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..))]
        limit: u16,
    },
    /// One root window with its command
    Show { window: String },
    /// Approve somebody else's request
    Approve { window: String },
    /// Deny somebody else's request
    Deny {
        window: String,
        #[arg(long)]
        reason: Option<String>,
    },
    /// Give up your own window; what runs in it is killed
    Withdraw { window: String },
    /// Revoke a window; what runs in it is killed at once
    Revoke {
        window: String,
        #[arg(long)]
        reason: Option<String>,
    },
    /// Review somebody else's break-glass window, so that there can be another one
    Review {
        window: String,
        /// What you found
        #[arg(long)]
        note: String,
        /// It should not have been
        #[arg(long)]
        unjustified: bool,
    },
    /// Open the window's shell as root on the workspace's host, or another one where that was lost; it ends with the window
    Shell { window: String },
    /// Run the window's one command as root on the workspace's host, and wait for it
    Run {
        window: String,
        /// Do not wait: the host ends it with the window in any case
        #[arg(long)]
        detach: bool,
        /// Program and arguments; no shell reads them. They stand in the log
        #[arg(last = true, required = true, value_name = "COMMAND")]
        command: Vec<String>,
    },
}

pub(super) async fn run(context: &Context, arguments: RootArguments) -> Result<Exit, Failure> {
    let Context { output, client, .. } = context;
    let org = &*context.org().await?;
    let answered = async |window: &str, verb: &str, body: Value| {
        client.post(&["v1", "orgs", org, "root-windows", window, verb], body).await.map(|answer| answer.body)
    };
    let shown = match arguments.verb {
        RootVerb::Request { workspace, reason, length, mode, break_glass } => {
            let access = mode.to_possible_value().map(|value| value.get_name().to_owned());
            let mut body = json!({ "reason": reason, "access": access });
            if let Some(seconds) = length {
                if seconds % 60 != 0 {
                    return Err(Failure::usage("--for takes whole minutes here", "20m, 1h"));
                }
                body["minutes"] = json!(seconds / 60);
            }
            let path = ["v1", "orgs", org, "workspaces", &workspace, "root-windows"];
            let path = if break_glass { [&path[..], &["break-glass"]].concat() } else { path.to_vec() };
            client.post(&path, body).await?.body
        }
        RootVerb::Ls { phase, limit } => {
            let path = ["v1", "orgs", org, "root-windows"];
            let page = client.list(&path, &[("phase", phase)], usize::from(limit)).await?;
            output.result(&page, || table(output, &page))?;
            return Ok(Exit::Ok);
        }
        RootVerb::Show { window } => client.get(&["v1", "orgs", org, "root-windows", &window], &[]).await?.body,
        RootVerb::Approve { window } => answered(&window, "approve", Value::Null).await?,
        RootVerb::Deny { window, reason } => answered(&window, "deny", because(reason)).await?,
        RootVerb::Withdraw { window } => answered(&window, "withdraw", Value::Null).await?,
        RootVerb::Revoke { window, reason } => answered(&window, "revoke", because(reason)).await?,
        RootVerb::Review { window, note, unjustified } => {
            answered(&window, "review", json!({ "justified": !unjustified, "note": note })).await?
        }
        RootVerb::Shell { window } => {
            // Its shell is not for nothing.
            if !(std::io::stdin().is_terminal() && std::io::stdout().is_terminal()) {
                return Err(Failure::usage(
                    "there is no terminal here",
                    "`envforge root run` runs a command without one",
                ));
            }
            let connection = Connection::open(client, &["v1", "orgs", org, "root-windows", &window, "shell"]).await?;
            return shell::on_terminal(context, connection, false, Vec::new()).await;
        }
        RootVerb::Run { window, detach, command } => {
            let asked = answered(&window, "run", json!({ "command": command })).await?;
            if !detach {
                return until_ended(context, org, &window).await;
            }
            asked
        }
    };
    output.result(&shown, || output.card(&card(output, &shown)))?;
    Ok(Exit::Ok)
}

fn because(reason: Option<String>) -> Value {
    reason.map_or(json!({}), |reason| json!({ "reason": reason }))
}

/// Waits for the command, shows what it wrote, and ends as it did where it ended by itself.
async fn until_ended(context: &Context, org: &str, window: &str) -> Result<Exit, Failure> {
    let Context { output, client, .. } = context;
    let path = ["v1", "orgs", org, "root-windows", window];
    let shown = loop {
        let shown = client.get(&path, &[]).await?.body;
        let over = !matches!(shown["phase"].as_str(), Some("open" | "approved"));
        if shown["command"]["outcome"].is_string() || (over && shown["command"]["ended_at"].is_null()) {
            break shown;
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    };
    let written = client.get(&[&path[..], &["output"]].concat(), &[]).await?.body;
    let outcome = shown["command"]["outcome"].as_str().unwrap_or("lost").to_owned();
    let code = shown["command"]["code"].as_u64();
    if output.json {
        output.result(&json!({ "window": shown, "output": written }), String::new)?;
    } else {
        tell(output, &written)?;
    }
    match (outcome.as_str(), code) {
        ("exited", Some(0)) => Ok(Exit::Ok),
        ("exited", Some(code)) => Err(Failure::failed(format!("the command ended with exit status {code}"), "")),
        ("no_root", _) => Err(Failure::failed(
            "nothing was run: EnvForge is not root on the workspace's host, so it cannot give root",
            "an operator runs the reactors of that host as root; docs/root.md says what that means",
        )),
        (other, _) => Err(Failure::failed(
            format!("the command did not end by itself: {}", printable(&other.replace('_', " "))),
            format!("`envforge root show {window}` shows the window"),
        )),
    }
}

/// What the command wrote, to people as it is but for control characters.
fn tell(output: &Output, written: &Value) -> Result<(), Failure> {
    match (written["text"].as_str(), written["unknown"].as_str()) {
        (Some(text), _) => {
            if let Some(dropped) = written["dropped_bytes"].as_u64().filter(|dropped| *dropped > 0) {
                output.note(&format!("({dropped} bytes before this are not kept)"));
            }
            let mut out = std::io::stdout().lock();
            for line in text.lines() {
                writeln!(out, "{}", printable(line))?;
            }
        }
        (None, why) => {
            let why = why.unwrap_or("unknown").replace('_', " ");
            output.note(&format!("What the command wrote is not known here: {}", printable(&why)));
        }
    }
    Ok(())
}

fn card(output: &Output, window: &Value) -> Vec<(&'static str, String)> {
    let at = |value: Option<&Value>| output.instants.show_wire(value);
    let mut lines = vec![
        ("root window", cell(window.get("id"))),
        ("state", state(window)),
        ("workspace", workspace(window)),
        ("asked for by", cell(window.get("requester_name"))),
        ("reason", cell(window.get("reason"))),
        ("mode", cell(window.get("mode"))),
        ("for", cell(window.get("access"))),
        ("length", length(window)),
        ("asked at", at(window.get("requested_at"))),
    ];
    if window["approver"].is_string() {
        lines.push(("approved by", cell(window.get("approver_name"))));
    }
    for (name, key) in [("opened", "opened_at"), ("until", "ends_at"), ("closed", "closed_at")] {
        if window[key].is_string() {
            lines.push((name, at(window.get(key))));
        }
    }
    let command = &window["command"];
    if command.is_object() {
        let words: Vec<_> = command["words"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        if !words.is_empty() {
            lines.push(("command", printable(&words.join(" "))));
        }
        let code = command["code"].as_u64().map(|code| format!(" {code}")).unwrap_or_default();
        lines.push(("ended", format!("{}{code}", command["outcome"].as_str().unwrap_or("not yet"))));
    }
    let changes = &command["changes"];
    if changes.is_object() {
        let least = if changes["incomplete"] == Value::Bool(true) { "at least: " } else { "" };
        let names = |list: &str, name: &str| {
            let names = changes[list].as_array().into_iter().flatten().map(|change| cell(change.get(name)));
            names.collect::<Vec<_>>().join(", ")
        };
        for (label, told) in [("packages", names("packages", "name")), ("files", names("files", "path"))] {
            if !told.is_empty() {
                lines.push((label, format!("{least}{told}")));
            }
        }
    }
    if let Some(justified) = window["justified"].as_bool() {
        lines.push(("review", if justified { "justified" } else { "not justified" }.to_owned()));
    }
    lines
}

/// By its name; its id where it has none any more.
fn workspace(window: &Value) -> String {
    cell(window.get("workspace_slug").filter(|slug| slug.is_string()).or(window.get("workspace")))
}

fn state(window: &Value) -> String {
    let lost = if window["right_lost"] == Value::Bool(true) { " (its ground is lost)" } else { "" };
    format!("{}{lost}", cell(window.get("phase")))
}

fn length(window: &Value) -> String {
    window["length_seconds"].as_u64().map(|seconds| show_length_ms(seconds.saturating_mul(1_000))).unwrap_or_default()
}

fn table(output: &Output, page: &Value) -> String {
    let row = |window: &Value| {
        [
            cell(window.get("id")),
            state(window),
            workspace(window),
            cell(window.get("requester_name")),
            length(window),
            cell(window.get("reason")),
            output.instants.show_wire(window.get("requested_at")),
        ]
    };
    let rows = page["items"].as_array().into_iter().flatten().map(row).collect();
    let mut text = output.table(
        ["ROOT WINDOW", "STATE", "WORKSPACE", "OF", "LENGTH", "REASON", "ASKED"],
        rows,
        "No root windows.",
    );
    text.push_str(&more(output, page));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_shows_its_command_and_a_lost_ground() {
        let window = json!({"id": "rtw_1", "workspace": "wsp_1", "workspace_slug": "signed-links", "phase": "open", "right_lost": true, "length_seconds": 1_200,
            "command": {"words": ["apt-get", "install", "libpq5"], "outcome": "right_lost", "code": null}});
        let text = Output::plain().card(&card(&Output::plain(), &window));
        assert!(text.contains("open (its ground is lost)") && text.contains("apt-get install libpq5"), "{text}");
        assert!(text.contains("right_lost") && text.contains("signed-links") && !text.contains("wsp_1"), "{text}");
    }
}
