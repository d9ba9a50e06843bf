//! `envforge org team`: groups of members. Their roles are given and taken by `envforge org role`.

use clap::Subcommand;
use reqwest::Method;
use serde_json::{Value, json};

use super::Context;
use super::failure::{Exit, Failure};
use super::org::user_id;
use super::output::{Output, cell, printable};
use super::session::shown;
use super::workspace::more;

#[derive(Subcommand, Debug)]
pub(super) enum TeamVerb {
    /// The teams with their roles
    Ls {
        /// Most teams to list
        #[arg(long, value_name = "COUNT", default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..))]
        limit: u16,
    },
    /// One team with its members
    Show {
        /// Slug or id
        team: String,
    },
    /// Create a team
    #[command(after_help = "\
Examples:
  envforge org team create reviewers
  envforge org team add reviewers dana@example.com
  envforge org role assign --team reviewers viewer --project orders")]
    Create {
        /// Lower-case letters, digits and single hyphens
        slug: String,
    },
    /// Call a team something else; members and roles stay
    Rename {
        /// Slug or id
        team: String,
        /// The new slug
        slug: String,
    },
    /// Delete a team with all its roles, at once
    Delete {
        /// Slug or id
        team: String,
    },
    /// Put a member into a team, which gives them its roles
    Add {
        /// Slug or id
        team: String,
        /// E-mail address or id
        #[arg(value_name = "USER")]
        user: String,
    },
    /// Take somebody out of a team, at once
    Remove {
        /// Slug or id
        team: String,
        /// E-mail address or id
        #[arg(value_name = "USER")]
        user: String,
    },
}

pub(super) async fn run(context: &Context, org: &str, verb: TeamVerb) -> Result<Exit, Failure> {
    let Context { output, client, .. } = context;
    match verb {
        TeamVerb::Ls { limit } => {
            let page = client.list(&["v1", "orgs", org, "teams"], &[], usize::from(limit)).await?;
            output.result(&page, || table(output, &page))?;
        }
        TeamVerb::Show { team } => {
            let team = client.get(&["v1", "orgs", org, "teams", &team], &[]).await?.body;
            output.result(&team, || card(output, &team))?;
        }
        TeamVerb::Create { slug } => {
            let team = client.post(&["v1", "orgs", org, "teams"], json!({ "slug": slug })).await?.body;
            output.result(&team, || {
                let next = output.dim(&format!("Put somebody in: envforge org team add {} USER", printable(&slug)));
                format!("Created the team {} ({}).\n{next}", printable(&slug), cell(team.get("id")))
            })?;
        }
        TeamVerb::Rename { team, slug } => {
            let body = json!({ "slug": slug });
            let named = client.write(Method::PATCH, &["v1", "orgs", org, "teams", &team], body).await?.body;
            output.result(&named, || format!("{} is called {} now.", printable(&team), printable(&slug)))?;
        }
        TeamVerb::Delete { team } => {
            let receipt = client.delete(&["v1", "orgs", org, "teams", &team], &[]).await?.body;
            let gone = json!({ "team": team, "deleted": true, "receipt": receipt });
            output.result(&gone, || {
                format!("Deleted the team {} with all its roles. {}", printable(&team), shown(&receipt))
            })?;
        }
        TeamVerb::Add { team, user } => {
            let body = json!({ "user": user_id(context, org, &user).await? });
            let added = client.post(&["v1", "orgs", org, "teams", &team, "members"], body).await?.body;
            output.result(&added, || format!("{} is in the team {}.", printable(&user), printable(&team)))?;
        }
        TeamVerb::Remove { team, user } => {
            let id = user_id(context, org, &user).await?;
            let receipt = client.delete(&["v1", "orgs", org, "teams", &team, "members", &id], &[]).await?.body;
            let gone = json!({ "team": team, "user": id, "removed": true, "receipt": receipt });
            output.result(&gone, || {
                format!("{} is no longer in the team {}. {}", printable(&user), printable(&team), shown(&receipt))
            })?;
        }
    }
    Ok(Exit::Ok)
}

fn roles(output: &Output, team: &Value) -> String {
    let role = |grant: &Value| {
        let scope = grant["workspace"].as_str().or(grant["project"].as_str());
        let scope = scope.map(|scope| format!(" in {scope}")).unwrap_or_default();
        let end = grant["expires_at"]
            .as_str()
            .map(|_| format!(" until {}", output.instants.show_wire(grant.get("expires_at"))));
        format!("{}{scope}{}", cell(grant.get("role")), end.unwrap_or_default())
    };
    team["roles"].as_array().into_iter().flatten().map(role).collect::<Vec<_>>().join(", ")
}

fn table(output: &Output, page: &Value) -> String {
    let row =
        |team: &Value| [cell(team.get("slug")), cell(team.get("members")), roles(output, team), cell(team.get("id"))];
    let rows = page["items"].as_array().into_iter().flatten().map(row).collect();
    let empty = "No teams. Create one: `envforge org team create`.";
    let mut text = output.table(["TEAM", "MEMBERS", "ROLES", "ID"], rows, empty);
    text.push_str(&more(output, page));
    text
}

fn card(output: &Output, team: &Value) -> String {
    let member = |member: &Value| [cell(member.get("email")), cell(member.get("name")), cell(member.get("user"))];
    let rows = team["members"].as_array().into_iter().flatten().map(member).collect();
    let head =
        output.card(&[("team", cell(team.get("slug"))), ("roles", roles(output, team)), ("id", cell(team.get("id")))]);
    format!("{head}\n{}", output.table(["MEMBER", "NAME", "ID"], rows, "Nobody is in it."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_team_shows_where_its_roles_count() {
        let page = json!({"items": [{"id": "tea_1", "slug": "reviewers", "members": 2, "roles": [
            {"role": "viewer", "project": "prj_1", "workspace": "wsp_1", "expires_at": null},
            {"role": "developer", "project": "prj_2", "workspace": null, "expires_at": null}]}], "next": null});
        let text = table(&Output::plain(), &page);
        assert!(text.contains("viewer in wsp_1, developer in prj_2"), "{text}");
    }
}
