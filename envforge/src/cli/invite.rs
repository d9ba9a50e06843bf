//! `envforge org invite` and `envforge join`: asking somebody in, and coming in.
//!
//! The token of an invitation is shown once, to whoever invites. It is read from a prompt or from standard input, never from the
//! command line.

use clap::{Args, Subcommand};
use envforge_domain::secret::Secret;
use envforge_domain::user::EmailAddress;
use serde_json::{Value, json};

use super::Context;
use super::failure::{Exit, Failure};
use super::instant::parse_length;
use super::output::{Output, cell, printable};
use super::session::{self, ask_line, ask_password, lines_from_stdin};

#[derive(Subcommand, Debug)]
pub(super) enum InviteVerb {
    /// Invite somebody; the token to hand over is shown this once
    #[command(after_help = "\
Roles: owner, admin, developer, viewer, billing, explore, create, mod; for one project as ROLE:PROJECT.
Examples:
  envforge org invite create --email grace@example.com --role developer
  envforge org invite create --email grace@example.com --role viewer:orders --for 24h")]
    Create {
        #[arg(long)]
        email: String,
        /// What they will be allowed to do; repeat it for each
        #[arg(long = "role", value_name = "ROLE[:PROJECT]")]
        roles: Vec<String>,
        /// How long it may be accepted: 60s to 30d [default: 7d]
        #[arg(long = "for", value_name = "LENGTH", value_parser = parse_length)]
        lifetime: Option<u64>,
    },
    /// Invitations that nobody has accepted yet
    Ls,
    /// Take an invitation back
    Revoke {
        /// E-mail address or id
        #[arg(value_name = "INVITATION")]
        invitation: String,
    },
}

#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  envforge join --api https://api.envforge.ai --name \"Grace Hopper\"
  printf '%s\\n%s\\n' \"$TOKEN\" \"$PASSWORD\" | envforge join --name Grace --stdin

The token comes from whoever invited you. Afterwards you are signed in.")]
pub(crate) struct JoinArguments {
    /// How you are called
    #[arg(long)]
    name: Option<String>,
    /// Read the token and your new password from the first two lines of standard input instead of asking for them
    #[arg(long)]
    stdin: bool,
}

/// What somebody joins with.
pub(super) struct Joining {
    name: String,
    token: Secret,
    password: Secret,
}

impl JoinArguments {
    /// Asks for what was not given.
    pub(super) fn ask(self, output: &Output) -> Result<Joining, Failure> {
        let missing = || Failure::usage("your name is missing", "give it: --name \"Grace Hopper\"");
        if self.stdin {
            let [token, password] = lines_from_stdin()?;
            return Ok(Joining { name: self.name.ok_or_else(missing)?, token, password });
        }
        let token = ask_password(output, "Token of the invitation: ")?;
        let name = match self.name {
            Some(name) => name,
            None => ask_line("How you are called: ")?,
        };
        Ok(Joining { name, token, password: new_password(output, "Your password: ")? })
    }
}

/// Asks twice for a password that nobody has seen yet.
pub(super) fn new_password(output: &Output, prompt: &str) -> Result<Secret, Failure> {
    let first = ask_password(output, prompt)?;
    let again = ask_password(output, "Once more: ")?;
    if !first.matches(again.expose()) {
        return Err(Failure::usage("the two passwords differ", "nothing was sent; run the command again"));
    }
    Ok(first)
}

pub(super) async fn join(context: &Context, joining: Joining) -> Result<Exit, Failure> {
    let Joining { name, token, password } = joining;
    let body = json!({ "token": token.expose(), "name": name, "password": password.expose() });
    let joined = context.client.post_unsigned(&["v1", "invitations", "accept"], body).await?.body;
    let Some(email) = joined["email"].as_str() else {
        return Err(Failure::local("the API's answer names no e-mail address", ""));
    };
    context.output.note(&format!("You have joined {}.", cell(joined.get("org_slug"))));
    session::login(context, session::Submitted::new(email.to_owned(), password)).await
}

pub(super) async fn run(context: &Context, org: &str, verb: InviteVerb) -> Result<(), Failure> {
    let Context { output, client, .. } = context;
    match verb {
        InviteVerb::Create { email, roles, lifetime } => {
            EmailAddress::parse(&email).map_err(|error| Failure::usage(error.to_string(), ""))?;
            let roles: Vec<_> = roles.iter().map(|role| role_body(role)).collect();
            let mut body = json!({ "email": email, "roles": roles });
            if let Some(seconds) = lifetime {
                body["expires_in_seconds"] = json!(seconds);
            }
            let invited = client.post(&["v1", "orgs", org, "invitations"], body).await?.body;
            output.result(&invited, || {
                let api = client.api().key();
                let how = output.dim(&format!("They join with: envforge join --api {api}"));
                let until = output.instants.show_wire(invited.get("expires_at"));
                format!(
                    "Invited {} until {until}. The token, shown this once:\n\n  {}\n\n{how}",
                    printable(&email),
                    cell(invited.get("token"))
                )
            })
        }
        InviteVerb::Ls => {
            let page = client.get(&["v1", "orgs", org, "invitations"], &[]).await?.body;
            output.result(&page, || table(output, &page))
        }
        InviteVerb::Revoke { invitation } => {
            let page = client.get(&["v1", "orgs", org, "invitations"], &[]).await?.body;
            let named = |item: &&Value| {
                let is =
                    |field: &str| item[field].as_str().is_some_and(|known| known.eq_ignore_ascii_case(&invitation));
                is("id") || is("email")
            };
            let found = page["items"].as_array().into_iter().flatten().find(named);
            let Some(id) = found.and_then(|item| item["id"].as_str()) else {
                return Err(Failure::not_found(
                    format!("{} is not invited to {org}", printable(&invitation)),
                    "`envforge org invite ls` lists the invitations",
                ));
            };
            client.delete(&["v1", "orgs", org, "invitations", id], &[]).await?;
            output.result(&json!({ "id": id, "revoked": true }), || {
                format!("The invitation of {} opens nothing any more.", printable(&invitation))
            })
        }
    }
}

/// `developer`, or `viewer:orders` for one project.
fn role_body(text: &str) -> Value {
    match text.split_once(':') {
        Some((role, project)) => json!({ "role": role, "project": project }),
        None => json!({ "role": text }),
    }
}

fn table(output: &Output, page: &Value) -> String {
    let role = |role: &Value| match role["project"].as_str() {
        Some(project) => format!("{} in {project}", cell(role.get("role"))),
        None => cell(role.get("role")),
    };
    let row = |item: &Value| {
        let roles: Vec<_> = item["roles"].as_array().into_iter().flatten().map(role).collect();
        [
            cell(item.get("email")),
            roles.join(", "),
            output.instants.show_wire(item.get("expires_at")),
            cell(item.get("id")),
        ]
    };
    let rows = page["items"].as_array().into_iter().flatten().map(row).collect();
    output.table(["INVITED", "ROLES", "OPEN UNTIL", "ID"], rows, "Nobody is invited.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_is_for_the_organization_or_for_one_project() {
        assert_eq!(role_body("developer"), json!({"role": "developer"}));
        assert_eq!(role_body("viewer:orders"), json!({"role": "viewer", "project": "orders"}));
    }

    #[test]
    fn invitations_show_their_roles_and_never_a_token() {
        let page = json!({"items": [{"id": "usr_1", "email": "grace@acme.example", "token": "efi_secret",
            "expires_at": "2026-12-31T00:00:00.000Z",
            "roles": [{"role": "viewer", "project": null}, {"role": "developer", "project": "prj_1"}]}]});
        let text = table(&Output::plain(), &page);
        assert!(text.contains("grace@acme.example") && text.contains("viewer, developer in prj_1"), "{text}");
        assert!(!text.contains("efi_secret"), "{text}");
    }
}
