//! `envforge org`: the organization, its policy, its members and their roles.

use clap::{Args, Subcommand};
use envforge_domain::access::Role;
use envforge_domain::dev_link::RouteFamily;
use envforge_domain::ids::UserId;
use envforge_domain::secret::Secret;
use envforge_domain::user::EmailAddress;
use reqwest::Method;
use serde_json::{Value, json};

use super::Context;
use super::failure::{Exit, Failure};
use super::instant::{parse_length, show_length_ms};
use super::invite::{self, InviteVerb};
use super::output::{Output, cell, printable};
use super::session::{ask_password, password_from_stdin, shown};
use super::workspace::more;

#[derive(Args, Debug)]
pub(crate) struct OrgArguments {
    #[command(subcommand)]
    verb: OrgVerb,
}

#[derive(Subcommand, Debug)]
enum OrgVerb {
    /// The organizations that your session reaches
    Ls,
    /// One organization
    Show,
    /// What the organization allows at most
    #[command(subcommand)]
    Policy(PolicyVerb),
    /// Who belongs to it
    #[command(subcommand)]
    Member(MemberVerb),
    /// Who may do what
    #[command(subcommand)]
    Role(RoleVerb),
    /// Ask somebody in; they choose their own password
    #[command(subcommand)]
    Invite(InviteVerb),
    /// Close and open accounts, and where they are signed in
    #[command(subcommand)]
    User(UserVerb),
}

#[derive(Subcommand, Debug)]
enum PolicyVerb {
    /// The policy as it is
    Show,
    /// Change some of it; the rest stays
    #[command(
        after_help = "Example:\n  envforge org policy set --link-lifetime-max 24h --link-families web,api,assets"
    )]
    Set(PolicySet),
}

#[derive(Args, Debug)]
#[group(required = true, multiple = true)]
struct PolicySet {
    /// Longest lifetime of a link: 24h, 7d
    #[arg(long, value_name = "LENGTH", value_parser = parse_length)]
    link_lifetime_max: Option<u64>,
    /// Route families that links may open, separated by commas: web, api, assets, websockets, marketing
    #[arg(long, value_name = "FAMILIES", value_delimiter = ',', value_parser = family)]
    link_families: Option<Vec<&'static str>>,
    /// Longest idle time before a runtime sleeps
    #[arg(long, value_name = "LENGTH", value_parser = parse_length)]
    idle_sleep_max: Option<u64>,
    /// Longest that a runtime may be kept awake
    #[arg(long, value_name = "LENGTH", value_parser = parse_length)]
    keep_awake_max: Option<u64>,
}

#[derive(Subcommand, Debug)]
enum MemberVerb {
    /// The members with their roles
    Ls {
        /// Most members to list
        #[arg(long, value_name = "COUNT", default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..))]
        limit: u16,
    },
    /// Make an account for somebody; the first password is asked for
    #[command(after_help = "\
Examples:
  envforge org member add --email dana@example.com --name Dana
  envforge org role assign dana@example.com developer")]
    Add {
        #[arg(long)]
        email: String,
        /// Name for people
        #[arg(long)]
        name: String,
        /// Read the first password from standard input (its first line) instead of asking for it
        #[arg(long)]
        password_stdin: bool,
    },
    /// Take somebody out, with all their roles, at once
    Remove {
        /// E-mail address or id
        #[arg(value_name = "USER")]
        user: String,
    },
}

#[derive(Subcommand, Debug)]
enum UserVerb {
    /// Close an account: sessions and links end at once
    Deactivate {
        /// E-mail address or id
        #[arg(value_name = "USER")]
        user: String,
    },
    /// Open an account again; they sign in anew
    Reactivate {
        /// E-mail address or id
        #[arg(value_name = "USER")]
        user: String,
    },
    /// End all sessions of somebody
    SignOut {
        /// E-mail address or id
        #[arg(value_name = "USER")]
        user: String,
    },
}

#[derive(Subcommand, Debug)]
enum RoleVerb {
    /// Give a role
    #[command(after_help = "\
Roles: owner, admin, developer, viewer, billing, explore, create, mod.
Examples:
  envforge org role assign dana@example.com developer
  envforge org role assign dana@example.com viewer --project orders --until 2026-12-31")]
    Assign {
        /// E-mail address or id
        #[arg(value_name = "USER")]
        user: String,
        role: Role,
        /// Only for this project, by slug or id
        #[arg(long)]
        project: Option<String>,
        /// When it ends: 2026-12-31, 2026-12-31T18:00:00Z
        #[arg(long, value_name = "TIME")]
        until: Option<String>,
    },
    /// Take a role; it is gone at once, in what is open already too
    Revoke {
        /// E-mail address or id
        #[arg(value_name = "USER")]
        user: String,
        role: Role,
        /// The one for this project, by slug or id
        #[arg(long)]
        project: Option<String>,
    },
}

fn family(text: &str) -> Result<&'static str, String> {
    let known = || RouteFamily::ALL.into_iter().map(RouteFamily::token).collect::<Vec<_>>().join(", ");
    RouteFamily::from_token(text)
        .map(RouteFamily::token)
        .ok_or_else(|| format!("`{text}` is no route family: {}", known()))
}

/// A verb with what had to be asked for.
pub(super) struct Asked {
    verb: OrgVerb,
    password: Option<Secret>,
}

impl OrgArguments {
    /// Asks for the first password of somebody who is added.
    pub(super) fn ask(self, output: &Output) -> Result<Asked, Failure> {
        let OrgVerb::Member(MemberVerb::Add { email, password_stdin, .. }) = &self.verb else {
            return Ok(Asked { verb: self.verb, password: None });
        };
        EmailAddress::parse(email).map_err(|error| Failure::usage(error.to_string(), ""))?;
        let password = if *password_stdin {
            password_from_stdin()?
        } else {
            let first = ask_password(output, &format!("First password of {}: ", printable(email)))?;
            let again = ask_password(output, "Once more: ")?;
            if !first.matches(again.expose()) {
                return Err(Failure::usage("the two passwords differ", "nothing was sent; run the command again"));
            }
            first
        };
        Ok(Asked { verb: self.verb, password: Some(password) })
    }
}

pub(super) async fn run(context: &Context, asked: Asked) -> Result<Exit, Failure> {
    let Context { output, client, .. } = context;
    let org = &*context.org()?;
    match asked.verb {
        OrgVerb::Ls => {
            let page = client.list(&["v1", "orgs"], &[], 200).await?;
            output.result(&page, || table(output, &page))?;
        }
        OrgVerb::Show => {
            let organization = client.get(&["v1", "orgs", org], &[]).await?.body;
            output.result(&organization, || card(output, &organization))?;
        }
        OrgVerb::Policy(PolicyVerb::Show) => {
            let organization = client.get(&["v1", "orgs", org], &[]).await?.body;
            let policy = &organization["policy"];
            output.result(policy, || output.card(&policy_lines(policy)))?;
        }
        OrgVerb::Policy(PolicyVerb::Set(set)) => {
            let policy = client.write(Method::PATCH, &["v1", "orgs", org, "policy"], set.body()).await?.body;
            output.result(&policy, || output.card(&policy_lines(&policy)))?;
        }
        OrgVerb::Member(MemberVerb::Ls { limit }) => {
            let page = client.list(&["v1", "orgs", org, "members"], &[], usize::from(limit)).await?;
            output.result(&page, || members(output, &page))?;
        }
        OrgVerb::Member(MemberVerb::Add { email, name, .. }) => {
            let password = asked.password.as_ref().map(Secret::expose).unwrap_or_default();
            let body = json!({ "email": email, "name": name, "password": password });
            let member = client.post(&["v1", "orgs", org, "members"], body).await?.body;
            output.result(&member, || {
                let next =
                    output.dim(&format!("Without a role they see nothing: envforge org role assign {email} developer"));
                format!("Added {} ({}).\n{next}", printable(&email), cell(member.get("user")))
            })?;
        }
        OrgVerb::Member(MemberVerb::Remove { user }) => {
            let id = user_id(context, org, &user).await?;
            client.delete(&["v1", "orgs", org, "members", &id], &[]).await?;
            output.result(&json!({ "user": id, "removed": true }), || format!("Removed {}.", printable(&user)))?;
        }
        OrgVerb::Invite(verb) => invite::run(context, org, verb).await?,
        OrgVerb::User(UserVerb::Deactivate { user }) => {
            let id = user_id(context, org, &user).await?;
            let path = ["v1", "orgs", org, "members", &id, "deactivate"];
            let receipt = client.post(&path, Value::Null).await?.body;
            output.result(&receipt, || format!("Closed the account of {}. {}", printable(&user), shown(&receipt)))?;
        }
        OrgVerb::User(UserVerb::Reactivate { user }) => {
            let id = user_id(context, org, &user).await?;
            client.post(&["v1", "orgs", org, "members", &id, "reactivate"], Value::Null).await?;
            let done = json!({ "user": id, "reactivated": true });
            output.result(&done, || format!("{} can sign in again.", printable(&user)))?;
        }
        OrgVerb::User(UserVerb::SignOut { user }) => {
            let id = user_id(context, org, &user).await?;
            let receipt = client.delete(&["v1", "orgs", org, "members", &id, "sessions"], &[]).await?.body;
            output.result(&receipt, || format!("Signed out {}. {}", printable(&user), shown(&receipt)))?;
        }
        OrgVerb::Role(RoleVerb::Assign { user, role, project, until }) => {
            let mut body = json!({ "user": user_id(context, org, &user).await?, "role": role.token() });
            if let Some(project) = &project {
                body["project"] = json!(project);
            }
            if let Some(until) = until {
                let end = output.instants.parse(&until);
                body["expires_at"] =
                    json!(end.map_err(|why| Failure::usage(format!("--until: {why}"), ""))?.to_string());
            }
            let grant = client.post(&["v1", "orgs", org, "roles"], body).await?.body;
            output.result(&grant, || format!("{} is {role}{}.", printable(&user), scope(project.as_deref())))?;
        }
        OrgVerb::Role(RoleVerb::Revoke { user, role, project }) => {
            let id = user_id(context, org, &user).await?;
            let query =
                [("user", Some(id.clone())), ("role", Some(role.token().to_owned())), ("project", project.clone())];
            client.delete(&["v1", "orgs", org, "roles"], &query).await?;
            let gone = json!({ "user": id, "role": role.token(), "project": project, "revoked": true });
            output
                .result(&gone, || format!("{} is no longer {role}{}.", printable(&user), scope(project.as_deref())))?;
        }
    }
    Ok(Exit::Ok)
}

fn scope(project: Option<&str>) -> String {
    project.map(|project| format!(" in project {}", printable(project))).unwrap_or_default()
}

/// The id of a member that was named by id or e-mail address.
async fn user_id(context: &Context, org: &str, named: &str) -> Result<String, Failure> {
    if named.parse::<UserId>().is_ok() {
        return Ok(named.to_owned());
    }
    let Ok(email) = EmailAddress::parse(named) else {
        return Err(Failure::usage(
            format!("`{}` is neither an e-mail address nor the id of a user", printable(named)),
            "`envforge org member ls` lists both",
        ));
    };
    let page = context.client.list(&["v1", "orgs", org, "members"], &[], 10_000).await?;
    let members = page["items"].as_array().into_iter().flatten();
    let found = members
        .into_iter()
        .find(|member| member["email"].as_str().is_some_and(|known| known.eq_ignore_ascii_case(email.as_str())));
    match found.and_then(|member| member["user"].as_str()) {
        Some(id) => Ok(id.to_owned()),
        None => Err(Failure::not_found(
            format!("{} is no member of {org}", printable(email.as_str())),
            "`envforge org member ls` lists the members; `envforge org member add` adds one",
        )),
    }
}

impl PolicySet {
    fn body(self) -> Value {
        let mut body = json!({});
        let said = [
            ("link_lifetime_max_seconds", self.link_lifetime_max.map(Value::from)),
            ("link_families", self.link_families.map(Value::from)),
            ("idle_sleep_max_seconds", self.idle_sleep_max.map(Value::from)),
            ("keep_awake_max_seconds", self.keep_awake_max.map(Value::from)),
        ];
        for (name, value) in said {
            if let Some(value) = value {
                body[name] = value;
            }
        }
        body
    }
}

fn table(output: &Output, page: &Value) -> String {
    let row = |item: &Value| [cell(item.get("slug")), cell(item.get("name")), cell(item.get("id"))];
    let rows = page["items"].as_array().into_iter().flatten().map(row).collect();
    let mut text = output.table(["ORGANIZATION", "NAME", "ID"], rows, "No organizations.");
    text.push_str(&more(output, page));
    text
}

fn card(output: &Output, organization: &Value) -> String {
    let mut lines = vec![
        ("organization", cell(organization.get("slug"))),
        ("name", cell(organization.get("name"))),
        ("id", cell(organization.get("id"))),
        ("created", output.instants.show_wire(organization.get("created_at"))),
    ];
    lines.extend(policy_lines(&organization["policy"]));
    output.card(&lines)
}

fn policy_lines(policy: &Value) -> [(&'static str, String); 4] {
    let length = |name: &str| {
        policy[name].as_u64().map(|seconds| show_length_ms(seconds.saturating_mul(1_000))).unwrap_or_default()
    };
    [
        ("links live at most", length("link_lifetime_max_seconds")),
        ("links may open", cell(policy.get("link_families"))),
        ("idle sleep at most", length("idle_sleep_max_seconds")),
        ("kept awake at most", length("keep_awake_max_seconds")),
    ]
}

fn members(output: &Output, page: &Value) -> String {
    let role = |grant: &Value| {
        let project = grant["project"].as_str().map(|project| format!(" in {project}")).unwrap_or_default();
        let end = grant["expires_at"]
            .as_str()
            .map(|_| format!(" until {}", output.instants.show_wire(grant.get("expires_at"))));
        format!("{}{project}{}", cell(grant.get("role")), end.unwrap_or_default())
    };
    let row = |item: &Value| {
        let roles: Vec<_> = item["roles"].as_array().into_iter().flatten().map(role).collect();
        let active = if item["active"] == Value::Bool(false) { " (deactivated)" } else { "" };
        [
            format!("{}{active}", cell(item.get("email"))),
            cell(item.get("name")),
            roles.join(", "),
            output.instants.show_wire(item.get("since")),
            cell(item.get("user")),
        ]
    };
    let rows = page["items"].as_array().into_iter().flatten().map(row).collect();
    let mut text = output.table(["MEMBER", "NAME", "ROLES", "SINCE", "ID"], rows, "No members.");
    text.push_str(&more(output, page));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_said_of_a_policy_is_sent() {
        let set = PolicySet {
            link_lifetime_max: Some(86_400),
            link_families: None,
            idle_sleep_max: None,
            keep_awake_max: None,
        };
        assert_eq!(set.body(), json!({"link_lifetime_max_seconds": 86_400}));
    }

    #[test]
    fn members_show_where_and_until_when_their_roles_hold() {
        let page = json!({"items": [{"user": "usr_1", "email": "dana@acme.example", "name": "Dana", "active": false,
            "since": "2026-11-24T08:00:00.000Z", "roles": [
                {"role": "viewer", "project": null, "expires_at": null},
                {"role": "developer", "project": "prj_1", "expires_at": "2026-12-31T00:00:00.000Z"}]}], "next": null});
        let text = members(&Output::plain(), &page);
        assert!(text.contains("dana@acme.example (deactivated)"), "{text}");
        assert!(text.contains("viewer, developer in prj_1 until 2026-12-31 00:00 (in "), "{text}");
    }
}
