//! `envforge up`: the branch that is checked out here as a workspace, awake.
//!
//! Finds or creates project and workspace, sends the manifest where it changed, wakes, waits. Each step is a request of its own that
//! the server carries out as a whole, and every one finds what an interrupted run left: running it again goes on from there.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use envforge_domain::project::Repository;
use envforge_domain::slug::{HostLabel, OrgSlug, ProjectSlug, WorkspaceSlug};
use envforge_domain::workspace::Branch;
use reqwest::Method;
use serde_json::{Value, json};

use super::Context;
use super::branch_slug;
use super::checkout::Checkout;
use super::failure::{Exit, Failure};
use super::here::{self, Project, ServiceUrl, Workspace};
use super::instant::parse_length;
use super::manifest_file::ManifestFile;
use super::output::printable;
use super::wake;

#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  envforge up                          the branch that is checked out here
  envforge up --restart                also when it is awake already: take new commits, start again
  envforge up --name checkout-demo     under a name of your choice
  envforge up --json | jq -c .         progress as JSON Lines, the last one has \"event\": \"ready\"

Running it again is always safe: it finds what is there and does what is missing.")]
pub(crate) struct UpArguments {
    /// Folder within the repository
    #[arg(long, value_name = "DIR", default_value = ".")]
    directory: PathBuf,

    /// Branch to run [default: the one that is checked out]
    #[arg(long)]
    branch: Option<String>,

    /// Name of the workspace in host names [default: made of the branch's name]
    #[arg(long, value_name = "SLUG")]
    name: Option<WorkspaceSlug>,

    /// Project, by slug [default: the one with this repository, else one is created]
    #[arg(long, value_name = "SLUG")]
    project: Option<ProjectSlug>,

    /// Where the server finds the repository [default: the URL of origin; with a local API without origin, this folder]
    #[arg(long, value_name = "URL")]
    repository: Option<String>,

    /// Start again where it is awake already: with the new commits and the new manifest
    #[arg(long)]
    restart: bool,

    /// Ask for everything and return without waiting until it is ready
    #[arg(long)]
    no_wait: bool,

    /// Longest wait
    #[arg(long, value_name = "LENGTH", default_value = "5m", value_parser = parse_length)]
    timeout: u64,
}

/// What stands in this checkout.
struct Local {
    branch: Branch,
    repository: Repository,
    file: ManifestFile,
    /// Of the repository, for a project that has to be made.
    name: String,
}

pub(super) async fn run(context: &Context, arguments: UpArguments) -> Result<Exit, Failure> {
    let Context { output, client, .. } = context;
    let local = read_checkout(context, &arguments)?;
    let org = &*context.org().await?;

    let project = find_or_create_project(context, org, &local, arguments.project.as_ref()).await?;
    let (workspace, created) =
        find_or_create_workspace(context, org, &local, &project, arguments.name.as_ref()).await?;
    let slug = workspace.slug.as_str();
    if created {
        step(context, "workspace_created", &format!("Created workspace {slug} in project {}", project.slug), slug)?;
    }
    let changed = !created && send_manifest(context, org, &workspace, &local.file).await?;
    if changed {
        step(context, "manifest_changed", "Sent the changed envforge.yml", slug)?;
    }

    let before: wake::Runtime = client.get(&["v1", "orgs", org, "workspaces", slug, "runtime"], &[]).await?.view()?;
    let awake = before.phase == "ready";
    if awake && arguments.restart {
        client.post(&["v1", "orgs", org, "workspaces", slug, "sleep"], Value::Null).await?;
        step(context, "restarting", "Putting it to sleep in order to start again", slug)?;
    }
    let epoch = wake::ask(context, org, slug, json!({})).await?;
    let whole = here::workspace(context, org, slug).await?;
    if arguments.no_wait {
        let result = json!({ "event": "waking", "workspace": slug, "epoch": epoch, "urls": urls(&whole.urls) });
        output.last_event(&result, || {
            format!("{} is waking. See how far it is: `envforge workspace show {slug}`", output.bold(slug))
        })?;
        return Ok(Exit::Ok);
    }
    let runtime = wake::until_ready(context, org, slug, epoch, Duration::from_secs(arguments.timeout)).await?;
    let ready = json!({
        "event": "ready", "workspace": slug, "id": workspace.id, "project": project.slug, "branch": local.branch.as_str(),
        "epoch": epoch, "urls": urls(&whole.urls), "runtime": runtime,
    });
    output.last_event(&ready, || ready_text(context, slug, &whole.urls, &local.file))?;
    if awake && !arguments.restart {
        let commit = before.commit.as_deref().map(|commit| commit.chars().take(12).collect::<String>());
        let at = commit.map(|commit| format!(" at {commit}")).unwrap_or_default();
        let manifest = if changed { ", still with the envforge.yml before" } else { "" };
        output.note(&output.dim(&format!("It was awake already{at}{manifest}. New commits: `envforge up --restart`")));
    }
    Ok(Exit::Ok)
}

fn read_checkout(context: &Context, arguments: &UpArguments) -> Result<Local, Failure> {
    let output = &context.output;
    let checkout = Checkout::find(&arguments.directory)?;
    let file = ManifestFile::read(&checkout.root).map_err(|unusable| unusable.into_failure(output))?;
    let server_is_local = context.client.api().is_loopback();
    let branch = match &arguments.branch {
        Some(name) => Branch::parse(name).map_err(|error| Failure::usage(error.to_string(), ""))?,
        None => checkout.branch()?,
    };
    let repository = match &arguments.repository {
        Some(text) => {
            // A relative path is meant from where the command was typed.
            let from = Checkout { root: std::path::absolute(&arguments.directory)? };
            from.read_location(text, server_is_local)?
        }
        None => checkout.repository(server_is_local)?,
    };
    if arguments.branch.is_none() {
        for sentence in checkout.unseen(&branch, &repository) {
            output.warn(&sentence);
        }
    }
    let last = |text: &str| text.trim_end_matches('/').rsplit(['/', ':']).next().unwrap_or_default().to_owned();
    let name = last(repository.as_str());
    Ok(Local { branch, repository, file, name: name.strip_suffix(".git").unwrap_or(&name).to_owned() })
}

async fn find_or_create_project(
    context: &Context,
    org: &str,
    local: &Local,
    named: Option<&ProjectSlug>,
) -> Result<Project, Failure> {
    let repository = local.repository.as_str();
    let known = here::projects(context, org).await?;
    let of_slug = |slug: &str| known.iter().find(|project| project.slug == slug);
    let found = match named {
        Some(slug) => of_slug(slug.as_str()),
        None => known.iter().find(|project| here::same(&project.repository, repository)),
    };
    if let Some(project) = found {
        return if here::same(&project.repository, repository) {
            Ok(project.clone())
        } else {
            Err(other_repository(project, repository))
        };
    }
    let slug = named.cloned().unwrap_or_else(|| branch_slug::project_slug(&local.name));
    if let Some(project) = of_slug(slug.as_str()) {
        return Err(other_repository(project, repository));
    }
    let name = if local.name.is_empty() { slug.as_str() } else { &local.name };
    let body = json!({ "slug": slug.as_str(), "name": name, "repository": repository });
    match context.client.post(&["v1", "orgs", org, "projects"], body).await {
        Ok(answer) => {
            let project: Project = answer.view()?;
            step(
                context,
                "project_created",
                &format!("Created project {} for {repository}", project.slug),
                &project.slug,
            )?;
            Ok(project)
        }
        // Somebody was quicker, perhaps another `up` of the same branch.
        Err(Failure::Refused(problem)) if problem.status == 409 => {
            let now = here::projects(context, org).await?;
            let found = now.into_iter().find(|project| here::same(&project.repository, repository));
            found.ok_or(Failure::Refused(problem))
        }
        Err(failure) => Err(failure),
    }
}

fn other_repository(project: &Project, repository: &str) -> Failure {
    Failure::conflict(
        format!("project {} has the repository {}, this is {repository}", project.slug, project.repository),
        "name another project: --project SLUG, or the repository: --repository URL",
    )
}

/// The workspace, and whether it is new.
async fn find_or_create_workspace(
    context: &Context,
    org: &str,
    local: &Local,
    project: &Project,
    named: Option<&WorkspaceSlug>,
) -> Result<(Workspace, bool), Failure> {
    let branch = local.branch.as_str();
    if let Some(found) = existing(context, org, project, branch, named).await? {
        return Ok((found, false));
    }
    let candidates = match named {
        Some(slug) => vec![slug.clone()],
        None => {
            let room = room(context, local).await?;
            let plain = branch_slug::workspace_slug(branch, room);
            let marked = branch_slug::marked_slug(branch, room);
            // The plain name first; it may be another branch's, or one that was retired.
            if plain == marked { vec![plain] } else { vec![plain, marked] }
        }
    };
    check_labels(context, local, &candidates[0]).await?;
    let mut refused = None;
    for slug in candidates {
        let body = json!({
            "project": project.id, "slug": slug.as_str(), "branch": branch, "manifest": local.file.text,
        });
        match context.client.post(&["v1", "orgs", org, "workspaces"], body).await {
            Ok(answer) => return Ok((answer.view()?, true)),
            Err(Failure::Refused(problem)) if problem.status == 409 => {
                if let Some(found) = existing(context, org, project, branch, named).await? {
                    return Ok((found, false));
                }
                refused = Some(problem);
            }
            Err(failure) => return Err(failure),
        }
    }
    Err(refused.map_or_else(|| Failure::conflict("no name is free", "choose one: --name SLUG"), Failure::Refused))
}

async fn existing(
    context: &Context,
    org: &str,
    project: &Project,
    branch: &str,
    named: Option<&WorkspaceSlug>,
) -> Result<Option<Workspace>, Failure> {
    let known = here::workspaces(context, org).await?;
    if let Some(slug) = named {
        let Some(found) = known.into_iter().find(|workspace| workspace.slug == slug.as_str()) else { return Ok(None) };
        if found.project != project.id || found.branch != branch {
            return Err(Failure::conflict(
                format!("workspace {slug} is that of branch {} in another place", printable(&found.branch)),
                "choose another name: --name SLUG",
            ));
        }
        return Ok(Some(found));
    }
    Ok(known.into_iter().find(|workspace| workspace.project == project.id && workspace.branch == branch))
}

/// The organization's slug, where it is known here: an id says nothing about host names.
async fn org_slug(context: &Context) -> Result<Option<OrgSlug>, Failure> {
    let account = context.client.account().await?;
    let named = context.settings.org.as_deref().filter(|org| *org != account.org);
    Ok(named.unwrap_or(&account.org_slug).parse().ok())
}

async fn room(context: &Context, local: &Local) -> Result<usize, Failure> {
    let longest = local.file.web_services().map(|service| service.as_str().len()).max().unwrap_or(3);
    Ok(org_slug(context)
        .await?
        .map_or(envforge_domain::slug::SLUG_LENGTH_MAX / 2, |org| branch_slug::room(&org, longest)))
}

async fn check_labels(context: &Context, local: &Local, slug: &WorkspaceSlug) -> Result<(), Failure> {
    let Some(org) = org_slug(context).await? else { return Ok(()) };
    for service in local.file.web_services() {
        HostLabel::new(service.clone(), slug.clone(), org.clone())
            .map_err(|error| Failure::usage(error.to_string(), "choose a shorter name: --name SLUG"))?;
    }
    Ok(())
}

/// Sends the manifest where the server has another one; whether it had.
async fn send_manifest(
    context: &Context,
    org: &str,
    workspace: &Workspace,
    file: &ManifestFile,
) -> Result<bool, Failure> {
    if workspace.manifest_digest.as_deref() == Some(&*file.manifest.digest().to_string()) {
        return Ok(false);
    }
    let path = ["v1", "orgs", org, "workspaces", &workspace.slug, "manifest"];
    context.client.write(Method::PUT, &path, json!({ "manifest": file.text })).await?;
    Ok(true)
}

/// A step that was done: a line for people, a JSON line for programs.
fn step(context: &Context, event: &str, sentence: &str, name: &str) -> Result<(), Failure> {
    if context.output.json {
        return context.output.event(&json!({ "event": event, "name": name }));
    }
    context.output.note(&format!("  {}", printable(sentence)));
    Ok(())
}

fn urls(urls: &[ServiceUrl]) -> Value {
    urls.iter().map(|entry| json!({ "service": entry.service, "url": entry.url })).collect()
}

fn ready_text(context: &Context, slug: &str, urls: &[ServiceUrl], file: &ManifestFile) -> String {
    let output = &context.output;
    let mut text = format!("{} is {}.\n", output.bold(slug), output.green("ready"));
    let lines: Vec<_> =
        urls.iter().map(|entry| (entry.service.as_str(), output.cyan(&printable(&entry.url)))).collect();
    let width = lines.iter().map(|(service, _)| service.len()).max().unwrap_or(0);
    for (service, url) in lines {
        text.push_str(&format!("  {service:width$}  {url}\n"));
    }
    if let Some(service) = file.web_services().next() {
        text.push_str(&format!("{}\n", output.dim("The address opens through a link. For you or a reviewer:")));
        text.push_str(&format!("  envforge link create --service {service} --for 2h --label \"For whom\"\n"));
    }
    text.push_str(
        &output.dim(&format!("It sleeps when nobody uses it; `envforge workspace show {slug}` says why it is awake.")),
    );
    text
}
