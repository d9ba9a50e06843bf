//! `envforge secret`: set, list, remove, history. A value goes in and never comes out again.
//!
//! It comes from a prompt that shows nothing or from standard input, never from the command line, where other processes and the
//! shell's history see it.

use std::io::{IsTerminal, Read};
use std::path::Path;

use clap::{Args, Subcommand};
use envforge_domain::limits::SECRET_BYTES_MAX;
use envforge_domain::secret::Secret;
use envforge_domain::secrets::SecretName;
use reqwest::Method;
use serde_json::{Value, json};

use super::Context;
use super::failure::{Exit, Failure};
use super::here;
use super::instant::parse_length;
use super::output::{Output, cell, printable};

#[derive(Args, Debug)]
pub(crate) struct SecretArguments {
    #[command(subcommand)]
    verb: SecretVerb,
}

#[derive(Subcommand, Debug)]
enum SecretVerb {
    /// Set a secret, or change who may use it; the value comes from standard input or a prompt
    #[command(after_help = "\
The value is what standard input holds, without one line break at its end. Nobody reads it again.
Examples:
  envforge secret set DATABASE_URL --project orders < url.txt
  envforge secret set STRIPE_KEY --workspace signed-links --service api --on-rotation restart
  envforge secret set STRIPE_KEY --project orders --keep-value --service api")]
    Set {
        #[command(flatten)]
        which: Which,
        /// Only this service may declare it; repeat it for each [default: as it was, at first all]
        #[arg(long = "service", value_name = "SERVICE", conflicts_with = "all_services")]
        services: Vec<String>,
        /// Every service may declare it again
        #[arg(long)]
        all_services: bool,
        /// Of a project's secret: only this workspace may use it; repeat it for each [default: as it was, at first all]
        #[arg(long = "only-workspace", value_name = "WORKSPACE", conflicts_with_all = ["all_workspaces", "workspace"])]
        workspaces: Vec<String>,
        /// Every workspace of the project may use it again
        #[arg(long, conflicts_with = "workspace")]
        all_workspaces: bool,
        /// What another version does to runtimes that run with an older one [default: as it was, at first mark-stale]
        #[arg(long, value_name = "WHAT", value_parser = ["mark-stale", "restart"])]
        on_rotation: Option<String>,
        /// How long this value counts, such as 1h or 30d [default: for good]
        #[arg(long, value_name = "LENGTH", value_parser = parse_length, conflicts_with_all = ["keep_value", "expires_at"])]
        expires_in: Option<u64>,
        /// Until when it counts
        #[arg(long, value_name = "INSTANT", conflicts_with = "keep_value")]
        expires_at: Option<String>,
        /// Change who may use it, and leave its value as it is
        #[arg(long)]
        keep_value: bool,
        /// A value that was given where it must not stand. Taken to be refused in words that do not repeat it.
        #[arg(hide = true, value_name = "VALUE")]
        mistaken: Vec<String>,
    },
    /// The secrets of a project, or what a workspace sees of its own and its project's; never a value
    Ls {
        #[command(flatten)]
        owner: Owner,
    },
    /// Remove a secret; no wake gets it from then on
    Rm {
        #[command(flatten)]
        which: Which,
        /// Yes, remove it
        #[arg(long)]
        yes: bool,
    },
    /// What was done to a secret, when and by whom
    History {
        #[command(flatten)]
        which: Which,
    },
}

/// Whose secrets.
#[derive(Args, Clone, Debug)]
struct Owner {
    /// Of this project, by slug or id: every workspace of it gets them
    #[arg(long, conflicts_with = "workspace")]
    project: Option<String>,
    /// Of this one workspace, by slug or id [default: the workspace of the branch that is checked out here]
    #[arg(long)]
    workspace: Option<String>,
}

#[derive(Args, Clone, Debug)]
struct Which {
    /// A-Z, 0-9 and `_`: the variable that carries it, as envforge.yml declares it
    #[arg(value_name = "NAME")]
    name: String,
    #[command(flatten)]
    owner: Owner,
}

impl Which {
    /// Not read by the parser of the command line, which repeats what it refuses: whoever mistook the value for the name has it
    /// in their shell's history, and not on the screen and in a build's log too.
    fn name(&self) -> Result<SecretName, Failure> {
        let hint = "a value comes from standard input: `envforge secret set NAME < FILE`";
        self.name.parse::<SecretName>().map_err(|error| Failure::usage(error.to_string(), hint))
    }
}

/// A verb with the value that had to be asked for.
pub(super) struct Asked {
    verb: SecretVerb,
    value: Option<Secret>,
}

impl SecretArguments {
    /// Reads the value, or asks for it.
    pub(super) fn ask(self, output: &Output) -> Result<Asked, Failure> {
        let value = match &self.verb {
            SecretVerb::Set { mistaken, .. } if !mistaken.is_empty() => {
                return Err(Failure::usage(
                    "a value never stands on the command line, where other processes and the shell's history see it",
                    "write it to standard input; and set another one, if this one was real",
                ));
            }
            SecretVerb::Set { which, keep_value: false, .. } => Some(value(output, &which.name()?)?),
            _ => None,
        };
        Ok(Asked { verb: self.verb, value })
    }
}

fn value(output: &Output, name: &SecretName) -> Result<Secret, Failure> {
    let too_long = || {
        let what = format!("the value of {name} has more than {SECRET_BYTES_MAX} bytes");
        Failure::usage(what, "keep what is larger in a store of its own, and its key here")
    };
    let secret = if std::io::stdin().is_terminal() {
        if output.json {
            return Err(Failure::usage("the value must come from standard input", "pipe it in, or redirect a file"));
        }
        Secret::new(rpassword::prompt_password(format!("Value of {name}: "))?)
    } else {
        let mut text = String::new();
        // One more, to see that there is more; and a line break with its return.
        let read = std::io::stdin().lock().take(SECRET_BYTES_MAX as u64 + 3).read_to_string(&mut text);
        if matches!(&read, Err(error) if error.kind() == std::io::ErrorKind::InvalidData) {
            return Err(Failure::usage(format!("the value of {name} is no UTF-8"), "encode it, for example in base64"));
        }
        read?;
        let whole = Secret::new(text);
        let trimmed = whole.expose().strip_suffix('\n').unwrap_or(whole.expose());
        Secret::new(trimmed.strip_suffix('\r').unwrap_or(trimmed).to_owned())
    };
    match secret.expose() {
        "" => {
            Err(Failure::usage(format!("the value of {name} is empty"), "write it to standard input, or at the prompt"))
        }
        text if text.len() > SECRET_BYTES_MAX => Err(too_long()),
        text if text.contains('\0') => {
            Err(Failure::usage(format!("the value of {name} holds a NUL, which no variable carries"), "encode it"))
        }
        _ => Ok(secret),
    }
}

impl Owner {
    /// `projects` or `workspaces`, and which.
    async fn find(&self, context: &Context, org: &str) -> Result<(&'static str, String), Failure> {
        match &self.project {
            Some(project) => Ok(("projects", project.clone())),
            None => {
                let named = self.workspace.as_deref();
                Ok(("workspaces", here::meant(context, org, named, Path::new(".")).await?))
            }
        }
    }
}

pub(super) async fn run(context: &Context, asked: Asked) -> Result<Exit, Failure> {
    let Context { output, client, .. } = context;
    let org = &*context.org().await?;
    match asked.verb {
        SecretVerb::Set {
            which,
            services,
            all_services,
            workspaces,
            all_workspaces,
            on_rotation,
            expires_in,
            expires_at,
            keep_value,
            mistaken: _,
        } => {
            let name = &which.name()?;
            let (kind, owner) = which.owner.find(context, org).await?;
            let mut body = json!({});
            if let Some(value) = &asked.value {
                body["secret"] = value.expose().into();
            }
            if all_services || !services.is_empty() {
                body["services"] = services.into();
            }
            if all_workspaces || !workspaces.is_empty() {
                body["workspaces"] = workspaces.into();
            }
            if let Some(what) = on_rotation {
                body["rotation"] = what.replace('-', "_").into();
            }
            if let Some(seconds) = expires_in {
                body["expires_in_seconds"] = seconds.into();
            }
            if let Some(text) = expires_at {
                let end = output.instants.parse(&text);
                let end = end.map_err(|why| Failure::usage(format!("--expires-at: {why}"), ""))?;
                body["expires_at"] = end.to_string().into();
            }
            let path = ["v1", "orgs", org, kind, &owner, "secrets", name.as_str()];
            let written = client.write(Method::PUT, &path, body).await?.body;
            output.result(&written, || {
                let version = &written["version"];
                if keep_value {
                    format!("Changed who may use {name}; it stays at version {version}.")
                } else {
                    format!("Set {name} of {}, version {version}. The next wake gets it.", printable(&owner))
                }
            })?;
        }
        SecretVerb::Ls { owner } => {
            let (kind, owner) = owner.find(context, org).await?;
            let page = client.get(&["v1", "orgs", org, kind, &owner, "secrets"], &[]).await?.body;
            output.result(&page, || table(output, &page))?;
        }
        SecretVerb::Rm { which, yes } => {
            let name = &which.name()?;
            let (kind, owner) = which.owner.find(context, org).await?;
            if !yes {
                return Err(Failure::usage(
                    format!(
                        "removing {name} makes wakes of services that declare it fail, and its value is gone for good"
                    ),
                    "if that is what you want, add --yes",
                ));
            }
            client.delete(&["v1", "orgs", org, kind, &owner, "secrets", name.as_str()], &[]).await?;
            let gone = json!({ "name": name.as_str(), "removed": true });
            output.result(&gone, || format!("Removed {name}; no wake gets it from now on."))?;
        }
        SecretVerb::History { which } => {
            let name = &which.name()?;
            let (kind, owner) = which.owner.find(context, org).await?;
            let path = ["v1", "orgs", org, kind, &owner, "secrets", name.as_str(), "history"];
            let page = client.get(&path, &[]).await?.body;
            output.result(&page, || history(output, &page))?;
        }
    }
    Ok(Exit::Ok)
}

fn listed(value: &Value) -> String {
    let texts = value.as_array().into_iter().flatten().filter_map(Value::as_str).map(printable);
    texts.collect::<Vec<_>>().join(", ")
}

fn or_all(value: &Value) -> String {
    match listed(value) {
        text if text.is_empty() => "all".to_owned(),
        text => text,
    }
}

fn table(output: &Output, page: &Value) -> String {
    let of_workspace = page.get("refused").is_some();
    let row = |item: &Value| {
        let stale = item["given"].as_array().into_iter().flatten().any(|given| given["stale"] == true);
        let used = match (of_workspace, listed(&item["declared_by"])) {
            (false, _) => or_all(&item["services"]),
            (true, services) if services.is_empty() => "(nothing declares it)".to_owned(),
            (true, services) => services,
        };
        let waits =
            item["rotation"] == "restart" && page["refused"].as_array().is_some_and(|refused| !refused.is_empty());
        let state = match (stale, waits) {
            (true, true) => "stale: restarts once nothing stops the next wake",
            (true, false) => "stale until the next wake",
            (false, _) => "",
        };
        let end = item.get("expires_at").filter(|end| !end.is_null());
        [
            cell(item.get("name")),
            cell(item.get("owner")),
            cell(item.get("version")),
            used,
            item["rotation"].as_str().unwrap_or_default().replace('_', "-"),
            output.instants.show_wire(item.get("set_at")),
            named(item, "set_by"),
            end.map_or_else(String::new, |end| output.instants.show_wire(Some(end))),
            state.to_owned(),
        ]
    };
    let rows = page["items"].as_array().into_iter().flatten().map(row).collect();
    let header = ["SECRET", "OF", "VERSION", "SERVICES", "ROTATION", "SET", "BY", "EXPIRES", "STATE"];
    let mut text = output.table(header, rows, "No secrets. Set one: `envforge secret set NAME`.");
    text.push_str(&refused(output, page));
    text
}

/// By name, and by id where nobody knows the name.
fn named(item: &Value, field: &str) -> String {
    let name = item.get(&*format!("{field}_name")).filter(|name| !name.is_null());
    cell(name.or_else(|| item.get(field)))
}

/// What stops the next wake, a line each; empty where nothing does.
pub(super) fn refused(output: &Output, page: &Value) -> String {
    let line = |item: &Value| {
        let (name, service) = (cell(item.get("name")), cell(item.get("service")));
        let what = match item["problem"].as_str() {
            Some("missing") => "has no value",
            Some("forbidden") => "may not be used by it here",
            Some("expired") => "has expired",
            _ => "cannot be read",
        };
        let whose = match item["service"].as_str() {
            Some("git:repository") => "which git is to be given".to_owned(),
            _ => format!("which service {service} declares"),
        };
        format!("\n{} {name}, {whose}, {what}", output.red("stops the next wake:"))
    };
    page["refused"].as_array().into_iter().flatten().map(line).collect()
}

/// What a runtime runs with and its next wake would not get, a line each.
pub(super) fn stale(output: &Output, page: &Value) -> String {
    let mut text = String::new();
    for item in page["items"].as_array().into_iter().flatten() {
        for given in item["given"].as_array().into_iter().flatten().filter(|given| given["stale"] == true) {
            let (service, name) = (cell(given.get("service")), cell(item.get("name")));
            let (runs, now) = (cell(given.get("version")), cell(item.get("version")));
            text.push_str(&format!(
                "\n{} service {service} runs with {name} version {runs}; its next wake gets version {now}",
                output.bold("stale:")
            ));
        }
    }
    text
}

fn history(output: &Output, page: &Value) -> String {
    let row = |item: &Value| {
        [
            output.instants.show_wire(item.get("at")),
            item["deed"].as_str().unwrap_or_default().replace('_', " "),
            cell(item.get("version")),
            named(item, "by"),
        ]
    };
    let rows = page["items"].as_array().into_iter().flatten().map(row).collect();
    output.table(["WHEN", "WHAT", "VERSION", "BY"], rows, "Nothing was ever done to it.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workspace_sees_whose_secrets_are_stale_and_what_would_stop_its_next_wake() {
        let page = json!({"items": [{"name": "API_KEY", "owner": "project", "version": 2, "services": [], "rotation": "mark_stale",
            "declared_by": ["api"], "given": [{"service": "api", "version": 1, "stale": true}]},
            {"name": "API_KEX", "owner": "workspace", "version": 1, "services": [], "rotation": "restart", "declared_by": [], "given": []}],
            "refused": [{"service": "web", "name": "OTHER", "problem": "missing"}], "stale": true});
        let text = table(&Output::plain(), &page);
        for part in [
            "API_KEY",
            "stale until the next wake",
            "(nothing declares it)",
            "OTHER, which service web declares, has no value",
        ] {
            assert!(text.contains(part), "`{part}` is not in:\n{text}");
        }
        assert!(stale(&Output::plain(), &page).contains("runs with API_KEY version 1; its next wake gets version 2"));
    }

    #[test]
    fn what_was_mistaken_for_a_name_is_not_repeated() {
        let owner = Owner { project: None, workspace: None };
        let refused = Which { name: "sk_live_mistake".to_owned(), owner }.name().unwrap_err().to_string();
        assert!(!refused.contains("sk_live"), "{refused}");
    }
}
