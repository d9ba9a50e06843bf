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
        #[arg(long, required_unless_present = "repository")]
        name: Option<String>,
        #[arg(long, value_name = "URL")]
        repository: Option<String>,
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
        ProjectVerb::Edit { project, name, repository } => {
            let mut body = json!({});
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
        ("id", cell(project.get("id"))),
        ("created", output.instants.show_wire(project.get("created_at"))),
    ])
}
