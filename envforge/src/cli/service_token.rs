//! `envforge org token`: tokens for programs.
//!
//! A secret is shown once, to whoever makes it, and goes nowhere else: neither into this machine's files nor into its log.

use clap::Subcommand;
use serde_json::{Value, json};

use super::Context;
use super::failure::{Exit, Failure};
use super::instant::parse_length;
use super::output::{Output, cell, printable};

#[derive(Subcommand, Debug)]
pub(super) enum TokenVerb {
    /// Make a token; its secret is shown this once
    #[command(after_help = "\
A token never may more than whoever made it. What it may be for: docs/access.md, the rows that name services.
Examples:
  envforge org token create ci --action workspace.read --action runtime.wake --project orders --for 30d
  envforge org token create ledger --action usage.read --action audit.read")]
    Create {
        /// Lower-case letters, digits and single hyphens
        #[arg(value_name = "NAME")]
        slug: String,
        /// What it is for; repeat it for each
        #[arg(long = "action", value_name = "ACTION", required = true)]
        actions: Vec<String>,
        /// The project where it counts [default: the whole organization]
        #[arg(long, conflicts_with = "workspace")]
        project: Option<String>,
        /// The one workspace where it counts
        #[arg(long)]
        workspace: Option<String>,
        /// How long it lives: 5m to 365d, and what the policy allows [default: 90d]
        #[arg(long = "for", value_name = "LENGTH", value_parser = parse_length)]
        lifetime: Option<u64>,
    },
    /// The tokens, when they were used last and why ended ones count for nothing
    Ls,
    /// Give a token another secret; the former one counts for a while longer
    Rotate {
        /// Name or id
        #[arg(value_name = "TOKEN")]
        token: String,
        /// How long the former secret counts too: 7d at most; `none` to end it at once [default: 24h]
        #[arg(long, value_name = "LENGTH", value_parser = length_or_none)]
        overlap: Option<u64>,
        /// How long the new secret lives [default: as long as the former one]
        #[arg(long = "for", value_name = "LENGTH", value_parser = parse_length)]
        lifetime: Option<u64>,
    },
    /// End a token with all its secrets, at once
    Revoke {
        /// Name or id
        #[arg(value_name = "TOKEN")]
        token: String,
    },
}

/// A length of time; `none` is none.
pub(super) fn length_or_none(text: &str) -> Result<u64, String> {
    if text == "none" { Ok(0) } else { parse_length(text) }
}

pub(super) async fn run(context: &Context, org: &str, verb: TokenVerb) -> Result<Exit, Failure> {
    let Context { output, client, .. } = context;
    match verb {
        TokenVerb::Create { slug, actions, project, workspace, lifetime } => {
            let mut body = json!({ "slug": slug, "actions": actions });
            let more = [
                ("project", project.map(Value::from)),
                ("workspace", workspace.map(Value::from)),
                ("expires_in_seconds", lifetime.map(Value::from)),
            ];
            for (name, value) in more {
                if let Some(value) = value {
                    body[name] = value;
                }
            }
            let issued = client.post(&["v1", "orgs", org, "service-tokens"], body).await?.body;
            output.result(&issued, || secret(output, &issued, "Created"))?;
        }
        TokenVerb::Ls => {
            let page = client.get(&["v1", "orgs", org, "service-tokens"], &[]).await?.body;
            output.result(&page, || table(output, &page))?;
        }
        TokenVerb::Rotate { token, overlap, lifetime } => {
            let mut body = json!({});
            for (name, value) in [("overlap_seconds", overlap), ("expires_in_seconds", lifetime)] {
                if let Some(seconds) = value {
                    body[name] = json!(seconds);
                }
            }
            let issued = client.post(&["v1", "orgs", org, "service-tokens", &token, "rotate"], body).await?.body;
            output.result(&issued, || secret(output, &issued, "Rotated"))?;
        }
        TokenVerb::Revoke { token } => {
            client.delete(&["v1", "orgs", org, "service-tokens", &token], &[]).await?;
            let gone = json!({ "token": token, "revoked": true });
            output.result(&gone, || format!("The service token {} opens nothing any more.", printable(&token)))?;
        }
    }
    Ok(Exit::Ok)
}

fn secret(output: &Output, issued: &Value, what: &str) -> String {
    let until = output.instants.show_wire(issued.get("expires_at"));
    let former = match issued["former_until"].as_str() {
        Some(_) => {
            format!(" The former secret counts until {}.", output.instants.show_wire(issued.get("former_until")))
        }
        None => String::new(),
    };
    let once = output.dim("It is shown this once. Programs send it as `Authorization: Bearer …`.");
    format!(
        "{what} the service token {}, until {until}.{former}\n{}\n{once}",
        cell(issued.get("slug")),
        cell(issued.get("secret"))
    )
}

fn table(output: &Output, page: &Value) -> String {
    let row = |token: &Value| {
        let at = |name: &str| match token[name].as_str() {
            Some(_) => output.instants.show_wire(token.get(name)),
            None => "never".to_owned(),
        };
        let place = token["workspace"].as_str().or(token["project"].as_str()).unwrap_or("organization");
        [
            cell(token.get("slug")),
            token["over"].as_str().unwrap_or("live").to_owned(),
            cell(token.get("actions")),
            printable(place),
            at("expires_at"),
            at("last_used_at"),
            cell(token.get("id")),
        ]
    };
    let rows = page["items"].as_array().into_iter().flatten().map(row).collect();
    let empty = "No service tokens. Make one: `envforge org token create`.";
    output.table(["TOKEN", "STATE", "FOR", "IN", "UNTIL", "USED", "ID"], rows, empty)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_show_their_state_and_never_a_secret() {
        let page = json!({"items": [{"id": "svt_1", "slug": "ci", "actions": ["runtime.wake", "workspace.read"],
            "project": "prj_1", "workspace": null, "secret": "evf_st_secret", "over": "revoked",
            "expires_at": "2026-12-31T00:00:00.000Z", "last_used_at": null}]});
        let text = table(&Output::plain(), &page);
        assert!(text.contains("ci") && text.contains("revoked") && text.contains("prj_1"), "{text}");
        assert!(text.contains("never") && !text.contains("evf_st_secret"), "{text}");
    }

    #[test]
    fn an_overlap_may_be_none() {
        assert_eq!((length_or_none("none"), length_or_none("24h")), (Ok(0), Ok(86_400)));
        assert!(length_or_none("0s").is_err());
    }
}
