//! `envforge project`: list, show, create, edit.

use clap::{Args, Subcommand};
use envforge_domain::slug::ProjectSlug;
use reqwest::Method;
use serde_json::{Value, json};

use super::Context;
use super::failure::{Exit, Failure};
use super::output::{Output, cell};
use super::workspace::more;

#[derive(Args, Debug)]
pub(crate) struct ProjectArguments {
    #[command(subcommand)]
    verb: ProjectVerb,
}

#[derive(Subcommand, Debug)]
enum ProjectVerb {
    /// The projects that you may see
    Ls {
        /// Most projects to list
        #[arg(long, value_name = "COUNT", default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..))]
        limit: u16,
    },
    /// Create a project; `envforge up` does it by itself
    #[command(
        after_help = "Example:\n  envforge project create orders --repository https://git.example/acme/orders.git"
    )]
    Create {
        /// Name in URLs and commands; never used again
        slug: ProjectSlug,
        /// Name for people [default: the slug]
        #[arg(long)]
        name: Option<String>,
        /// https://…, ssh://…, git@host:path, or a path of the server's machine; without user name or password
        #[arg(long, value_name = "URL")]
        repository: String,
    },
    /// One project
    Show {
        /// Slug or id
        project: String,
    },
    /// Change its name or where its code is
    Edit {
        /// Slug or id
        project: String,
        #[arg(long, required_unless_present_any = ["repository", "git_credential", "no_git_credential"])]
        name: Option<String>,
        /// Another repository is not shown the secret that git was given for this one
        #[arg(long, value_name = "URL")]
        repository: Option<String>,
        /// The secret whose value git shows the repository's server as a password, over https; from then on it is git's alone
        #[arg(long, value_name = "SECRET", conflicts_with = "no_git_credential")]
        git_credential: Option<String>,
        /// As whom git shows it [default: x-access-token]
        #[arg(long, value_name = "NAME", requires = "git_credential")]
        git_username: Option<String>,
        /// Give it to git in shells too, where whoever works there can read it
        #[arg(long, requires = "git_credential")]
        git_in_shells: bool,
        /// Git shows nothing any more
        #[arg(long)]
        no_git_credential: bool,
    },
}

pub(super) async fn run(context: &Context, arguments: ProjectArguments) -> Result<Exit, Failure> {
    let Context { output, client, .. } = context;
    let org = &*context.org().await?;
    match arguments.verb {
        ProjectVerb::Ls { limit } => {
            let page = client.list(&["v1", "orgs", org, "projects"], &[], usize::from(limit)).await?;
            output.result(&page, || table(output, &page))?;
        }
        ProjectVerb::Create { slug, name, repository } => {
            let name = name.unwrap_or_else(|| slug.to_string());
            let body = json!({ "slug": slug.as_str(), "name": name, "repository": repository });
            let project = client.post(&["v1", "orgs", org, "projects"], body).await?.body;
            output.result(&project, || card(output, &project))?;
        }
        ProjectVerb::Show { project } => {
            let project = client.get(&["v1", "orgs", org, "projects", &project], &[]).await?.body;
            output.result(&project, || card(output, &project))?;
        }
        ProjectVerb::Edit {
            project,
            name,
            repository,
            git_credential,
            git_username,
            git_in_shells,
            no_git_credential,
        } => {
            let mut body = json!({});
            if let Some(secret) = git_credential {
                body["git_credential"] =
                    json!({ "secret": secret, "username": git_username, "in_shells": git_in_shells });
            }
            if no_git_credential {
                body["git_credential"] = Value::Null;
            }
            for (field, value) in [("name", name), ("repository", repository)] {
                if let Some(value) = value {
                    body[field] = json!(value);
                }
            }
            let path = ["v1", "orgs", org, "projects", &project];
            let project = client.write(Method::PATCH, &path, body).await?.body;
            output.result(&project, || card(output, &project))?;
        }
    }
    Ok(Exit::Ok)
}

fn table(output: &Output, page: &Value) -> String {
    let row = |item: &Value| {
        [
            cell(item.get("slug")),
            cell(item.get("name")),
            cell(item.get("repository")),
            output.instants.show_wire(item.get("created_at")),
        ]
    };
    let rows = page["items"].as_array().into_iter().flatten().map(row).collect();
    let empty = "No projects. `envforge up` in a repository creates one.";
    let mut text = output.table(["PROJECT", "NAME", "REPOSITORY", "CREATED"], rows, empty);
    text.push_str(&more(output, page));
    text
}

fn card(output: &Output, project: &Value) -> String {
    output.card(&[
        ("project", cell(project.get("slug"))),
        ("name", cell(project.get("name"))),
        ("repository", cell(project.get("repository"))),
        ("git", git(project)),
        ("id", cell(project.get("id"))),
        ("created", output.instants.show_wire(project.get("created_at"))),
    ])
}

/// What git is given for the repository, in words.
fn git(project: &Value) -> String {
    let Some(credential) = project.get("git_credential").filter(|credential| !credential.is_null()) else {
        return "no secret".to_owned();
    };
    let shells = if credential["in_shells"] == true { ", in shells too" } else { "" };
    format!("secret {} as {}{shells}", cell(credential.get("secret")), cell(credential.get("username")))
}
