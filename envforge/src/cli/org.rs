//! `envforge org`: the organization, its policy, its members and their roles. Teams have a file of their own.

use clap::{Args, Subcommand};
use envforge_domain::access::Role;
use envforge_domain::dev_link::RouteFamily;
use envforge_domain::ids::UserId;
use envforge_domain::root_window::RootPolicy;
use envforge_domain::secret::Secret;
use envforge_domain::user::EmailAddress;
use reqwest::Method;
use serde_json::{Value, json};

use super::Context;
use super::failure::{Exit, Failure};
use super::instant::{parse_length, show_length_ms};
use super::invite::{self, InviteVerb};
use super::output::{Output, cell, printable};
use super::service_token::{self, TokenVerb, length_or_none};
use super::session::{ask_password, password_from_stdin, shown};
use super::team::{self, TeamVerb};
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
    /// Groups of members that hold roles together
    #[command(subcommand)]
    Team(TeamVerb),
    /// Who may do what
    #[command(subcommand)]
    Role(RoleVerb),
    /// Ask somebody in; they choose their own password
    #[command(subcommand)]
    Invite(InviteVerb),
    /// Tokens for programs: what each may do, where and until when
    #[command(subcommand)]
    Token(TokenVerb),
    /// Close and open accounts, and where they are signed in
    #[command(subcommand)]
    User(UserVerb),
}

#[derive(Subcommand, Debug)]
enum PolicyVerb {
    /// The policy as it is
    Show,
    /// Change some of it; the rest stays
    #[command(after_help = "What is beyond the new policy is over at once; --dry-run shows what that would be.\n\n\
                      Examples:\n  envforge org policy set --link-lifetime-max 24h --link-families web,api,assets\n  \
                      envforge org policy set --link-issuers owner,admin --dry-run")]
    Set(PolicySet),
}

#[derive(Args, Debug)]
struct PolicySet {
    #[command(flatten)]
    settings: PolicySettings,
    /// Show what it would end, and change nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Args, Debug, Default)]
#[group(required = true, multiple = true)]
struct PolicySettings {
    /// Longest lifetime of a link: 24h, 7d
    #[arg(long, value_name = "LENGTH", value_parser = parse_length)]
    link_lifetime_max: Option<u64>,
    /// Route families that links may open, separated by commas: web, api, assets, websockets, marketing
    #[arg(long, value_name = "FAMILIES", value_delimiter = ',', value_parser = family)]
    link_families: Option<Vec<&'static str>>,
    /// Roles that give links, of owner, admin, developer and mod, separated by commas; `none` for nobody
    #[arg(long, value_name = "ROLES", value_parser = listed)]
    link_issuers: Option<Listed>,
    /// Longest idle time before a runtime sleeps
    #[arg(long, value_name = "LENGTH", value_parser = parse_length)]
    idle_sleep_max: Option<u64>,
    /// Longest that a runtime may be kept awake
    #[arg(long, value_name = "LENGTH", value_parser = parse_length)]
    keep_awake_max: Option<u64>,
    /// How long people stay signed in at most: 8h, 30d
    #[arg(long, value_name = "LENGTH", value_parser = parse_length)]
    session_lifetime_max: Option<u64>,
    /// Identity providers whose users may be signed in, by issuer, `local` for passwords here; `any` for all
    #[arg(long, value_name = "ISSUERS", value_parser = listed)]
    identity_providers: Option<Listed>,
    /// How long service tokens live at most: 30d; `none` for no tokens at all
    #[arg(long, value_name = "LENGTH", value_parser = length_or_none)]
    service_token_lifetime_max: Option<u64>,
    /// Ways to root, which only owners open: disabled, break_glass or workspace_elevation (docs/root.md)
    #[arg(long, value_name = "POLICY", value_parser = root_policy)]
    root: Option<&'static str>,
    /// How long a root window is open at most: 30m, 8h
    #[arg(long, value_name = "LENGTH", value_parser = parse_length)]
    root_window_max: Option<u64>,
}

/// Names separated by commas; `none` and `any` stand for an empty list.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Listed(Vec<String>);

fn listed(text: &str) -> Result<Listed, std::convert::Infallible> {
    let names = text.split(',').map(str::trim).filter(|name| !matches!(*name, "" | "none" | "any"));
    Ok(Listed(names.map(str::to_owned).collect()))
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
    /// Give a role to a member or a team
    #[command(after_help = "\
Roles: owner, admin, developer, viewer, billing, explore, create, mod.
Examples:
  envforge org role assign dana@example.com developer
  envforge org role assign dana@example.com viewer --project orders --until 2026-12-31
  envforge org role assign --team reviewers viewer --workspace signed-links")]
    Assign {
        #[command(flatten)]
        what: RoleOf,
        /// When it ends: 2026-12-31, 2026-12-31T18:00:00Z
        #[arg(long, value_name = "TIME")]
        until: Option<String>,
    },
    /// Take a role; it is gone at once, in what is open already too
    Revoke {
        #[command(flatten)]
        what: RoleOf,
    },
}

#[derive(Args, Debug)]
struct RoleOf {
    /// E-mail address or id of a member; with --team, slug or id of a team
    #[arg(value_name = "WHO")]
    who: String,
    role: Role,
    /// WHO is a team
    #[arg(long)]
    team: bool,
    /// Only for this project, by slug or id
    #[arg(long, conflicts_with = "workspace")]
    project: Option<String>,
    /// Only for this workspace, by slug or id
    #[arg(long)]
    workspace: Option<String>,
    /// Show what it would end, and change nothing
    #[arg(long)]
    dry_run: bool,
}

fn family(text: &str) -> Result<&'static str, String> {
    let known = || RouteFamily::ALL.into_iter().map(RouteFamily::token).collect::<Vec<_>>().join(", ");
    RouteFamily::from_token(text)
        .map(RouteFamily::token)
        .ok_or_else(|| format!("`{text}` is no route family: {}", known()))
}

fn root_policy(text: &str) -> Result<&'static str, String> {
    let known = || RootPolicy::ALL.into_iter().map(RootPolicy::token).collect::<Vec<_>>().join(", ");
    RootPolicy::from_token(text)
        .map(RootPolicy::token)
        .ok_or_else(|| format!("`{text}` is no root policy: {}", known()))
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
    let org = &*context.org().await?;
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
            if set.dry_run {
                return dry_run(context, &["v1", "orgs", org, "policy", "dry-run"], set.settings.body()).await;
            }
            let policy = client.write(Method::PATCH, &["v1", "orgs", org, "policy"], set.settings.body()).await?.body;
            output.result(&policy, || {
                format!("{}\n{}", output.card(&policy_lines(&policy)).trim_end(), shown(&policy["receipt"]))
            })?;
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
            let receipt = client.delete(&["v1", "orgs", org, "members", &id], &[]).await?.body;
            let gone = json!({ "user": id, "removed": true, "receipt": receipt });
            output.result(&gone, || format!("Removed {}. {}", printable(&user), shown(&receipt)))?;
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
        OrgVerb::Team(verb) => return team::run(context, org, verb).await,
        OrgVerb::Token(verb) => return service_token::run(context, org, verb).await,
        OrgVerb::Role(RoleVerb::Assign { what, until }) => {
            let mut body = what.body(context, org).await?;
            if let Some(until) = until {
                let end = output.instants.parse(&until);
                body["expires_at"] =
                    json!(end.map_err(|why| Failure::usage(format!("--until: {why}"), ""))?.to_string());
            }
            if what.dry_run {
                return dry_run(context, &["v1", "orgs", org, "roles", "dry-run"], body).await;
            }
            let grant = client.post(&["v1", "orgs", org, "roles"], body).await?.body;
            output.result(&grant, || format!("{} is {}{}.", what.whom(), what.role, what.scope()))?;
        }
        OrgVerb::Role(RoleVerb::Revoke { what }) => {
            let mut body = what.body(context, org).await?;
            if what.dry_run {
                body["revoke"] = json!(true);
                return dry_run(context, &["v1", "orgs", org, "roles", "dry-run"], body).await;
            }
            let named = |name: &'static str| (name, body[name].as_str().map(str::to_owned));
            let query = ["user", "team", "role", "project", "workspace"].map(named);
            let receipt = client.delete(&["v1", "orgs", org, "roles"], &query).await?.body;
            body["revoked"] = json!(true);
            body["receipt"] = receipt.clone();
            output.result(&body, || {
                format!("{} is no longer {}{}. {}", what.whom(), what.role, what.scope(), shown(&receipt))
            })?;
        }
    }
    Ok(Exit::Ok)
}

impl RoleOf {
    /// The grant as the API takes it, but for its end.
    async fn body(&self, context: &Context, org: &str) -> Result<Value, Failure> {
        let mut body = json!({ "role": self.role.token() });
        if self.team {
            body["team"] = json!(self.who);
        } else {
            body["user"] = json!(user_id(context, org, &self.who).await?);
        }
        for (name, value) in [("project", &self.project), ("workspace", &self.workspace)] {
            if let Some(value) = value {
                body[name] = json!(value);
            }
        }
        Ok(body)
    }

    fn whom(&self) -> String {
        if self.team { format!("The team {}", printable(&self.who)) } else { printable(&self.who) }
    }

    fn scope(&self) -> String {
        match (&self.project, &self.workspace) {
            (Some(project), _) => format!(" in project {}", printable(project)),
            (None, Some(workspace)) => format!(" in workspace {}", printable(workspace)),
            (None, None) => String::new(),
        }
    }
}

/// Asks what a change would end, and shows it.
async fn dry_run(context: &Context, segments: &[&str], body: Value) -> Result<Exit, Failure> {
    let answer = context.client.post(segments, body).await?.body;
    context.output.result(&answer, || consequences(&context.output, &answer))?;
    Ok(Exit::Ok)
}

fn consequences(output: &Output, answer: &Value) -> String {
    if answer["changes"] == Value::Bool(false) {
        return "That is so already: nothing would change.".to_owned();
    }
    let rows = |name: &str| answer[name].as_array().cloned().unwrap_or_default();
    let link = |link: &Value| {
        let lost = cell(link.get("families_lost"));
        let ends = match link["ends_now"].as_bool() {
            Some(true) => "at once".to_owned(),
            _ => output.instants.show_wire(link.get("ends_at")),
        };
        [
            cell(link.get("id")),
            cell(link.get("label")),
            format!("{} {}", cell(link.get("workspace_slug")), cell(link.get("service"))),
            cell(link.get("issued_by_name")),
            ends,
            lost,
            cell(link.get("reasons")),
        ]
    };
    let session =
        |session: &Value| [cell(session.get("email")), cell(session.get("session")), cell(session.get("reason"))];
    let mut text = output.table(
        ["LINK", "LABEL", "OPENS", "ISSUED BY", "WOULD END", "WOULD NOT OPEN", "WHY"],
        rows("links").iter().map(link).collect(),
        "No link would be affected.",
    );
    text.push('\n');
    text.push_str(&output.table(
        ["SIGNED IN", "SESSION", "WHY"],
        rows("sessions").iter().map(session).collect(),
        "Nobody would have to sign in again.",
    ));
    let window = |window: &Value| {
        let ends = match window["ends_now"].as_bool() {
            Some(true) => "at once".to_owned(),
            _ => output.instants.show_wire(window.get("ends_at")),
        };
        [
            cell(window.get("id")),
            cell(window.get("requester_name")),
            cell(window.get("phase")),
            ends,
            cell(window.get("reason")),
        ]
    };
    text.push('\n');
    text.push_str(&output.table(
        ["ROOT WINDOW", "OF", "STATE", "WOULD END", "WHY"],
        rows("root_windows").iter().map(window).collect(),
        "No root window would end.",
    ));
    for (name, what) in [("links", "links"), ("sessions", "sessions"), ("root_windows", "root windows")] {
        let (told, all) = (rows(name).len() as u64, answer[format!("{name}_total")].as_u64().unwrap_or_default());
        if told < all {
            text.push_str(&format!("\n{told} of {all} {what} are shown."));
        }
    }
    text.push_str(&output.dim("\nNothing was changed."));
    text
}

/// The id of a member that was named by id or e-mail address.
pub(super) async fn user_id(context: &Context, org: &str, named: &str) -> Result<String, Failure> {
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

impl PolicySettings {
    fn body(self) -> Value {
        let mut body = json!({});
        let said = [
            ("link_lifetime_max_seconds", self.link_lifetime_max.map(Value::from)),
            ("link_families", self.link_families.map(Value::from)),
            ("idle_sleep_max_seconds", self.idle_sleep_max.map(Value::from)),
            ("keep_awake_max_seconds", self.keep_awake_max.map(Value::from)),
            ("link_issuers", self.link_issuers.map(|Listed(roles)| roles.into())),
            ("session_lifetime_max_seconds", self.session_lifetime_max.map(Value::from)),
            ("identity_providers", self.identity_providers.map(|Listed(issuers)| issuers.into())),
            ("service_token_lifetime_max_seconds", self.service_token_lifetime_max.map(Value::from)),
            ("root", self.root.map(Value::from)),
            ("root_window_max_seconds", self.root_window_max.map(Value::from)),
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

fn policy_lines(policy: &Value) -> [(&'static str, String); 10] {
    let names = |name: &str, none: &str| match policy[name].as_array() {
        Some(names) if names.is_empty() => none.to_owned(),
        _ => cell(policy.get(name)),
    };
    let length = |name: &str| {
        policy[name].as_u64().map(|seconds| show_length_ms(seconds.saturating_mul(1_000))).unwrap_or_default()
    };
    [
        ("links live at most", length("link_lifetime_max_seconds")),
        ("links may open", cell(policy.get("link_families"))),
        ("links are given by", names("link_issuers", "nobody")),
        ("idle sleep at most", length("idle_sleep_max_seconds")),
        ("kept awake at most", length("keep_awake_max_seconds")),
        ("signed in at most", length("session_lifetime_max_seconds")),
        ("identity providers", names("identity_providers", "any")),
        ("service tokens live at most", length("service_token_lifetime_max_seconds")),
        ("root", cell(policy.get("root"))),
        ("root windows open at most", length("root_window_max_seconds")),
    ]
}

fn members(output: &Output, page: &Value) -> String {
    let role = |grant: &Value| {
        let scope = grant["workspace"].as_str().or(grant["project"].as_str());
        let project = scope.map(|scope| format!(" in {scope}")).unwrap_or_default();
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
            cell(item.get("teams")),
            output.instants.show_wire(item.get("since")),
            cell(item.get("user")),
        ]
    };
    let rows = page["items"].as_array().into_iter().flatten().map(row).collect();
    let mut text = output.table(["MEMBER", "NAME", "ROLES", "TEAMS", "SINCE", "ID"], rows, "No members.");
    text.push_str(&more(output, page));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_said_of_a_policy_is_sent() {
        let set = PolicySettings { link_lifetime_max: Some(86_400), ..PolicySettings::default() };
        assert_eq!(set.body(), json!({"link_lifetime_max_seconds": 86_400}));
        let set = PolicySettings {
            link_issuers: Some(listed("owner, admin").unwrap_or(Listed(vec![]))),
            identity_providers: Some(listed("any").unwrap_or(Listed(vec!["?".to_owned()]))),
            ..PolicySettings::default()
        };
        assert_eq!(set.body(), json!({"link_issuers": ["owner", "admin"], "identity_providers": []}));
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
