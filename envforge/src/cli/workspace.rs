//! `envforge workspace`: list, show, create, wake, sleep, keep awake, archive.
//!
//! Not here: bringing up the repository one stands in (`up`).

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use envforge_domain::slug::WorkspaceSlug;
use serde_json::{Value, json};

use super::Context;
use super::access_then;
use super::failure::{Exit, Failure};
use super::here;
use super::instant::parse_length;
use super::manifest_file::ManifestFile;
use super::output::{Output, cell};
use super::secret;
use super::session::shown;
use super::wake;

#[derive(Args, Debug)]
pub(crate) struct WorkspaceArguments {
    #[command(subcommand)]
    verb: WorkspaceVerb,
}

#[derive(Subcommand, Debug)]
enum WorkspaceVerb {
    /// The workspaces that you may see
    Ls {
        /// Archived ones instead
        #[arg(long)]
        archived: bool,
        /// Only those in this state
        #[arg(long, value_name = "STATE", value_parser = ["asleep", "waking", "ready", "sleeping", "failed"])]
        state: Option<String>,
        /// Most workspaces to list
        #[arg(long, value_name = "COUNT", default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..))]
        limit: u16,
    },
    /// One workspace: what it runs, whether it is awake and why
    Show(Meant),
    /// Who could open it at some time: members, links, service tokens
    #[command(after_help = "Example:\n  envforge workspace access main --at 2026-11-24T08:00:00Z")]
    Access {
        #[command(flatten)]
        meant: Meant,
        /// When: RFC 3339, a local date and time, or how long ago [default: now]
        #[arg(long, value_name = "TIME")]
        at: Option<String>,
    },
    /// Create a workspace without being in its repository; it sleeps until something needs it
    #[command(after_help = "\
Example:
  envforge workspace create --project orders --branch main --slug orders-main --directory ./orders")]
    Create {
        /// Project, by slug or id
        #[arg(long)]
        project: String,
        /// Branch of the project's repository
        #[arg(long)]
        branch: String,
        /// Name in host names; unique in the organization, never used again
        #[arg(long)]
        slug: WorkspaceSlug,
        /// Folder of the envforge.yml
        #[arg(long, value_name = "DIR", default_value = ".")]
        directory: PathBuf,
    },
    /// Wake the runtime and wait until its routes answer
    Wake {
        #[command(flatten)]
        meant: Meant,
        /// Ask for the wake and return at once
        #[arg(long)]
        no_wait: bool,
        /// Longest wait
        #[arg(long, value_name = "LENGTH", default_value = "5m", value_parser = parse_length)]
        timeout: u64,
    },
    /// Put the runtime to sleep; the meter stops
    Sleep(Meant),
    /// Keep a ready runtime awake for a while, within the organization's cap
    #[command(after_help = "Example:\n  envforge workspace keep-awake --for 30m --reason \"demo at 14:00\"")]
    KeepAwake {
        #[command(flatten)]
        meant: Meant,
        /// How long: 30m, 2h
        #[arg(long = "for", value_name = "LENGTH", value_parser = parse_length)]
        length: u64,
        /// Why; it stands in the audit
        #[arg(long)]
        reason: String,
    },
    /// Archive for good: links close, the runtime goes to sleep, the slug is retired
    Archive {
        #[command(flatten)]
        meant: Meant,
        /// Yes, archive it
        #[arg(long)]
        yes: bool,
    },
}

/// Which workspace.
#[derive(Args, Clone, Debug)]
pub(super) struct Meant {
    /// Slug or id [default: the workspace of the branch that is checked out here]
    #[arg(value_name = "WORKSPACE")]
    pub(super) workspace: Option<String>,
}

impl Meant {
    pub(super) async fn find(&self, context: &Context, org: &str) -> Result<String, Failure> {
        here::meant(context, org, self.workspace.as_deref(), Path::new(".")).await
    }
}

pub(super) async fn run(context: &Context, arguments: WorkspaceArguments) -> Result<Exit, Failure> {
    let Context { output, client, .. } = context;
    let org = &*context.org().await?;
    match arguments.verb {
        WorkspaceVerb::Ls { archived, state, limit } => {
            let query = [("archived", archived.then(|| "true".to_owned())), ("phase", state)];
            let page = client.list(&["v1", "orgs", org, "workspaces"], &query, usize::from(limit)).await?;
            output.result(&page, || table(output, &page))?;
        }
        WorkspaceVerb::Show(meant) => {
            let name = meant.find(context, org).await?;
            let workspace = client.get(&["v1", "orgs", org, "workspaces", &name], &[]).await?.body;
            let runtime = client.get(&["v1", "orgs", org, "workspaces", &name, "runtime"], &[]).await?.body;
            let mut both = json!({ "workspace": workspace, "runtime": runtime });
            let mut card = card(output, &workspace, &runtime)?;
            if workspace["archived_at"].is_null() {
                let secrets = client.get(&["v1", "orgs", org, "workspaces", &name, "secrets"], &[]).await?.body;
                card.push_str(&secret::stale(output, &secrets));
                card.push_str(&secret::refused(output, &secrets));
                both["secrets"] = secrets;
            }
            output.result(&both, || card)?;
        }
        WorkspaceVerb::Access { meant, at } => {
            let name = meant.find(context, org).await?;
            access_then::run(context, org, &name, at.as_deref()).await?;
        }
        WorkspaceVerb::Create { project, branch, slug, directory } => {
            let file = ManifestFile::read(&directory).map_err(|unusable| unusable.into_failure(output))?;
            let body = json!({ "project": project, "slug": slug.as_str(), "branch": branch, "manifest": file.text });
            let created = client.post(&["v1", "orgs", org, "workspaces"], body).await?.body;
            output.result(&created, || {
                format!("Created {}. Wake it: `envforge workspace wake {}`.", output.bold(slug.as_str()), slug)
            })?;
        }
        WorkspaceVerb::Wake { meant, no_wait, timeout } => {
            let name = meant.find(context, org).await?;
            let epoch = wake::ask(context, org, &name, json!({})).await?;
            if no_wait {
                output.result(&json!({ "workspace": name, "epoch": epoch }), || {
                    format!("{} is waking.", output.bold(&name))
                })?;
            } else {
                let runtime = wake::until_ready(context, org, &name, epoch, Duration::from_secs(timeout)).await?;
                let ready = json!({ "event": "ready", "workspace": name, "epoch": epoch, "runtime": runtime });
                output.last_event(&ready, || format!("{} is ready.", output.bold(&name)))?;
            }
        }
        WorkspaceVerb::Sleep(meant) => {
            let name = meant.find(context, org).await?;
            let answer = client.post(&["v1", "orgs", org, "workspaces", &name, "sleep"], Value::Null).await?.body;
            output.result(&answer, || {
                let phase = answer["phase"].as_str().unwrap_or_default();
                let now = if phase == "asleep" { "sleeps already" } else { "is going to sleep" };
                format!("{} {now}.", output.bold(&name))
            })?;
        }
        WorkspaceVerb::KeepAwake { meant, length, reason } => {
            let name = meant.find(context, org).await?;
            let body = json!({ "for_seconds": length, "reason": reason });
            let answer = client.post(&["v1", "orgs", org, "workspaces", &name, "keep-awake"], body).await?.body;
            output.result(&answer, || {
                let until = output.instants.show_wire(answer.get("until"));
                format!("{} stays awake until {until}.", output.bold(&name))
            })?;
        }
        WorkspaceVerb::Archive { meant, yes } => {
            let name = meant.find(context, org).await?;
            if !yes {
                return Err(Failure::usage(
                    format!("archiving {name} closes its links and retires its name for good"),
                    format!("if that is what you want: `envforge workspace archive {name} --yes`"),
                ));
            }
            let answer = client.post(&["v1", "orgs", org, "workspaces", &name, "archive"], Value::Null).await?.body;
            output.result(&answer, || {
                format!("{} is archived; its links are closed. {}", output.bold(&name), shown(&answer["receipt"]))
            })?;
        }
    }
    Ok(Exit::Ok)
}

fn table(output: &Output, page: &Value) -> String {
    let rows = page["items"].as_array().into_iter().flatten();
    let row = |item: &Value| {
        let project = item.get("project_slug").filter(|slug| !slug.is_null()).or(item.get("project"));
        [
            cell(item.get("slug")),
            cell(project),
            cell(item.get("branch")),
            cell(item.get("phase")),
            cell(item.get("created_by_name")),
            output.instants.show_wire(item.get("created_at")),
        ]
    };
    let header = ["WORKSPACE", "PROJECT", "BRANCH", "STATE", "BY", "CREATED"];
    let empty = "No workspaces. Create one: `envforge up` in a repository with an envforge.yml.";
    let mut text = output.table(header, rows.map(row).collect(), empty);
    text.push_str(&more(output, page));
    text
}

/// The line below a table that does not show everything.
pub(super) fn more(output: &Output, page: &Value) -> String {
    if page["next"].is_string() { output.dim("\n… there are more: --limit") } else { String::new() }
}

fn card(output: &Output, workspace: &Value, runtime: &Value) -> Result<String, Failure> {
    let now = wake::read(runtime)?;
    let instants = &output.instants;
    let phase = match now.phase.as_str() {
        "ready" => output.green("ready"),
        "failed" => output.red("failed"),
        other => other.to_owned(),
    };
    let stage = now.stage.as_ref().map(|stage| format!(" ({stage})")).unwrap_or_default();
    let project = workspace.get("project_slug").filter(|slug| !slug.is_null()).or(workspace.get("project"));
    let mut text = output.bold(&cell(workspace.get("slug")));
    text.push_str(&format!("  {phase}{stage}\n"));
    let because = match now.awake_because.as_deref() {
        Some("kept_awake") => format!("kept awake: {}", cell(runtime.get("kept_awake_reason"))),
        Some("open_streams") => "a WebSocket or stream is open".to_owned(),
        Some("activity") => "it was used".to_owned(),
        Some(other) => other.to_owned(),
        None => String::new(),
    };
    let cause = runtime.get("cause").filter(|cause| cause.is_object()).map(|cause| {
        let by = ["name", "link", "by"].iter().map(|name| cell(cause.get(*name))).find(|text| !text.is_empty());
        format!("{} {}", cell(cause.get("kind")), by.unwrap_or_default())
    });
    text.push_str(&output.card(&[
        ("id", cell(workspace.get("id"))),
        ("project", cell(project)),
        ("branch", cell(workspace.get("branch"))),
        ("commit", now.commit.clone().unwrap_or_default()),
        ("access", cell(workspace.get("access_mode"))),
        ("since", instants.show_wire(runtime.get("since"))),
        ("woken by", cause.unwrap_or_default()),
        ("awake because", because),
        ("asleep because", now.asleep_because.as_deref().unwrap_or_default().replace('_', " ")),
        ("sleeps", instants.show_wire(runtime.get("sleeps_at"))),
        ("failure", now.failure.clone().unwrap_or_default()),
        (
            "created",
            format!("{} {}", instants.show_wire(workspace.get("created_at")), cell(workspace.get("created_by_name"))),
        ),
        ("archived", instants.show_wire(workspace.get("archived_at"))),
    ]));
    let url = |service: &str| {
        let urls = workspace["urls"].as_array().into_iter().flatten();
        cell(urls.into_iter().find(|entry| entry["service"] == service).and_then(|entry| entry.get("url")))
    };
    let row = |service: &wake::Service| {
        let state = if service.ready { "ready" } else { "-" };
        [service.name.clone(), service.route.clone(), state.to_owned(), url(&service.name)]
    };
    let services = now.services.iter().map(row).collect();
    text.push_str("\n\n");
    text.push_str(&output.table(["SERVICE", "ROUTE", "STATE", "URL"], services, "no services"));
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_a_table_with_a_hint_when_there_is_more() {
        let page = json!({"items": [
            {"slug": "signed-links", "project": "prj_1", "project_slug": "orders", "branch": "feature/x", "phase": "ready",
             "created_by_name": "Dana", "created_at": "2026-11-24T08:00:00.000Z"},
            {"slug": "main", "project": "prj_2", "project_slug": null, "branch": "main", "phase": "asleep",
             "created_by_name": null, "created_at": "2026-11-23T08:00:00.000Z"},
        ], "next": "abc"});
        let text = table(&Output::plain(), &page);
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].starts_with("WORKSPACE     PROJECT  BRANCH"), "{text}");
        assert!(lines[1].starts_with("signed-links  orders   feature/x  ready   Dana  2026-11-24 08:00 ("), "{text}");
        assert!(lines[2].starts_with("main          prj_2    main       asleep        2026-11-23"), "{text}");
        assert_eq!(lines[3], "… there are more: --limit");
    }

    #[test]
    fn a_workspace_shows_why_it_is_awake_and_where_it_answers() {
        let workspace = json!({"id": "wsp_1", "slug": "signed-links", "project_slug": "orders", "branch": "main",
            "access_mode": "signed_links", "created_at": "2026-11-24T08:00:00.000Z", "created_by_name": "Dana",
            "urls": [{"service": "web", "url": "http://web--signed-links--acme.dev.localhost:7080/"}]});
        let runtime = json!({"phase": "ready", "stage": null, "epoch": 2, "awake_because": "kept_awake",
            "kept_awake_reason": "demo", "sleeps_at": "2026-11-24T09:00:00.000Z",
            "cause": {"kind": "link", "by": null, "name": null, "link": "lnk_9"},
            "services": [{"name": "web", "route": "web", "ready": true}, {"name": "worker", "route": "none", "ready": false}]});
        let text = card(&Output::plain(), &workspace, &runtime).unwrap();
        for part in [
            "signed-links  ready",
            "woken by       link lnk_9",
            "awake because  kept awake: demo",
            "web      web    ready  http://web--signed-links--acme.dev.localhost:7080/",
            "worker   none   -",
        ] {
            assert!(text.contains(part), "`{part}` is not in:\n{text}");
        }
        assert!(!text.contains("archived"), "{text}");
    }
}
