//! Which project and workspace a command means: named, or those of the repository and branch that it runs in.
//!
//! Not here: creating what is missing (`up`).

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::Context;
use super::checkout::Checkout;
use super::client::view;
use super::failure::Failure;

/// Most projects or workspaces that are looked through. An organization with more names what it means.
const LOOKED_THROUGH_MAX: usize = 2_000;

/// A project, as far as commands need it.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Project {
    pub id: String,
    pub slug: String,
    pub repository: String,
}

/// A workspace, as far as commands need it.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Workspace {
    pub id: String,
    pub slug: String,
    pub project: String,
    pub branch: String,
    #[serde(default)]
    pub manifest_digest: Option<String>,
    /// Where its web services answer; only of a single workspace.
    #[serde(default)]
    pub urls: Vec<ServiceUrl>,
}

/// Where a web service answers.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct ServiceUrl {
    pub service: String,
    pub url: String,
}

/// The projects of the organization.
pub(crate) async fn projects(context: &Context, org: &str) -> Result<Vec<Project>, Failure> {
    let page = context.client.list(&["v1", "orgs", org, "projects"], &[], LOOKED_THROUGH_MAX).await?;
    items(&page)
}

/// The workspaces of the organization that are not archived.
pub(crate) async fn workspaces(context: &Context, org: &str) -> Result<Vec<Workspace>, Failure> {
    let page = context.client.list(&["v1", "orgs", org, "workspaces"], &[], LOOKED_THROUGH_MAX).await?;
    items(&page)
}

fn items<T: serde::de::DeserializeOwned>(page: &Value) -> Result<Vec<T>, Failure> {
    view(page.get("items").unwrap_or(&Value::Null))
}

/// One workspace with its manifest and URLs.
pub(crate) async fn workspace(context: &Context, org: &str, name: &str) -> Result<Workspace, Failure> {
    context.client.get(&["v1", "orgs", org, "workspaces", name], &[]).await?.view()
}

/// The workspace that is meant: `named` (slug or id), or that of the branch which is checked out in `folder`.
///
/// # Errors
/// `NotFound` where this branch has no workspace, `Conflict` where it has several.
pub(crate) async fn meant(context: &Context, org: &str, named: Option<&str>, folder: &Path) -> Result<String, Failure> {
    if let Some(named) = named {
        return Ok(named.to_owned());
    }
    let name_it = "name the workspace; `envforge workspace ls` lists them";
    let checkout = Checkout::find(folder).map_err(|failure| match failure {
        Failure::Usage(explained) => Failure::usage(explained.what, name_it),
        other => other,
    })?;
    let branch = checkout.branch()?;
    let repository = checkout.repository(context.client.api().is_loopback())?;
    let projects = projects(context, org).await?;
    let of_repository: Vec<_> =
        projects.iter().filter(|project| same(&project.repository, repository.as_str())).collect();
    if of_repository.is_empty() {
        return Err(Failure::not_found(
            format!("{org} has no project with the repository {}", repository.as_str()),
            format!("create it and the workspace with `envforge up`, or {name_it}"),
        ));
    }
    let workspaces = workspaces(context, org).await?;
    let of_branch: Vec<_> = workspaces
        .iter()
        .filter(|workspace| {
            workspace.branch == branch.as_str() && of_repository.iter().any(|project| project.id == workspace.project)
        })
        .collect();
    match of_branch.as_slice() {
        [one] => Ok(one.slug.clone()),
        [] => Err(Failure::not_found(
            format!("branch {} has no workspace in {org}", branch.as_str()),
            format!("create it with `envforge up`, or {name_it}"),
        )),
        several => {
            let slugs: Vec<_> = several.iter().map(|workspace| workspace.slug.as_str()).collect();
            Err(Failure::conflict(
                format!("branch {} has several workspaces: {}", branch.as_str(), slugs.join(", ")),
                "name the one that you mean",
            ))
        }
    }
}

/// Whether two locations are one repository: `.git` and a trailing slash make no difference.
pub(crate) fn same(one: &str, other: &str) -> bool {
    let bare = |text: &str| text.trim_end_matches('/').trim_end_matches(".git").to_owned();
    bare(one) == bare(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_repository_is_known_with_and_without_its_ending() {
        assert!(same("https://git.example/a/b.git", "https://git.example/a/b/"));
        assert!(!same("https://git.example/a/b", "https://git.example/a/c"));
    }
}
