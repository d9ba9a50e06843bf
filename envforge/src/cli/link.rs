//! `envforge link`: issue, list, show, hand over, rotate, narrow and revoke signed dev links.
//!
//! A share URL is printed where its owner asked for it, and nowhere else. Not here: what a link opens (domain, gateway).

use std::path::Path;

use clap::{Args, Subcommand};
use envforge_domain::dev_link::RouteFamily;
use envforge_domain::ids::LinkId;
use reqwest::Method;
use serde_json::{Value, json};

use super::Context;
use super::failure::{Exit, Failure};
use super::here;
use super::instant::parse_length;
use super::output::{Output, cell, printable};
use super::session;
use super::wake;
use super::workspace::more;

#[derive(Args, Debug)]
pub(crate) struct LinkArguments {
    #[command(subcommand)]
    verb: LinkVerb,
}

#[derive(Subcommand, Debug)]
enum LinkVerb {
    /// Issue a link and print its share URL
    #[command(after_help = "\
Examples:
  envforge link create --for 2h --label \"Dana's review\"
  envforge link create --service web --families web,api --wake-budget 5 --handoff
  envforge link create --json | jq -r .share_url")]
    Create {
        #[command(flatten)]
        of: OfWorkspace,
        /// Web service to open [default: the only one of the workspace]
        #[arg(long)]
        service: Option<String>,
        /// How long it opens: 30m, 2h, 7d [default: 2h, or less where the organization allows less]
        #[arg(long = "for", value_name = "LENGTH", value_parser = parse_length)]
        length: Option<u64>,
        /// For whom or what it is; reviewers see it
        #[arg(long)]
        label: Option<String>,
        /// Route families to open, separated by commas: web, api, assets, websockets, marketing [default: all that are declared and allowed]
        #[arg(long, value_delimiter = ',', value_parser = family)]
        families: Option<Vec<&'static str>>,
        /// Wakes that the link may cause
        #[arg(long, value_name = "COUNT")]
        wake_budget: Option<u32>,
        /// Show the handoff card instead of the URL alone
        #[arg(long)]
        handoff: bool,
    },
    /// The links of a workspace, or all
    Ls {
        #[command(flatten)]
        of: OfWorkspace,
        /// Of all workspaces
        #[arg(long, conflicts_with = "workspace")]
        all: bool,
        /// Only those in this state
        #[arg(long, value_name = "STATE", value_parser = ["active", "expired", "revoked"])]
        state: Option<String>,
        /// Most links to list
        #[arg(long, value_name = "COUNT", default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..))]
        limit: u16,
    },
    /// One link: scope, expiry, use, blocked attempts
    Show { link: LinkId },
    /// Close a link for good, with everything that is open through it
    Revoke {
        link: LinkId,
        /// Why; it stands in the audit
        #[arg(long)]
        reason: Option<String>,
    },
    /// Replace the share URL; the one before stops working at once
    Rotate {
        link: LinkId,
        /// How long it opens from now on [default: its end stays]
        #[arg(long = "for", value_name = "LENGTH", value_parser = parse_length)]
        length: Option<u64>,
    },
    /// Change which route families it opens; what is taken away closes at once
    #[command(after_help = "Example:\n  envforge link allow lnk_0197… --families web,assets")]
    Allow {
        link: LinkId,
        /// Route families, separated by commas: web, api, assets, websockets, marketing
        #[arg(long, required = true, value_delimiter = ',', value_parser = family)]
        families: Vec<&'static str>,
    },
    /// The card to hand over: share URL, scope, expiry, and route by route whether it answers
    Handoff { link: LinkId },
}

/// Whose links.
#[derive(Args, Clone, Debug)]
struct OfWorkspace {
    /// Workspace, by slug or id [default: that of the branch that is checked out here]
    #[arg(long, short, value_name = "WORKSPACE")]
    workspace: Option<String>,
}

impl OfWorkspace {
    async fn find(&self, context: &Context, org: &str) -> Result<String, Failure> {
        here::meant(context, org, self.workspace.as_deref(), Path::new(".")).await
    }
}

fn family(text: &str) -> Result<&'static str, String> {
    RouteFamily::from_token(text).map(RouteFamily::token).ok_or_else(|| {
        let known: Vec<_> = RouteFamily::ALL.into_iter().map(RouteFamily::token).collect();
        format!("`{text}` is no route family: {}", known.join(", "))
    })
}

pub(super) async fn run(context: &Context, arguments: LinkArguments) -> Result<Exit, Failure> {
    let Context { output, client, .. } = context;
    let org = &*context.org().await?;
    match arguments.verb {
        LinkVerb::Create { of, service, length, label, families, wake_budget, handoff } => {
            let workspace = of.find(context, org).await?;
            let service = match service {
                Some(service) => service,
                None => only_web_service(context, org, &workspace).await?,
            };
            let mut body = json!({ "service": service });
            // The API's defaults follow the organization's policy; only what was said is sent.
            let said = [
                ("lifetime_seconds", length.map(Value::from)),
                ("label", label.map(Value::from)),
                ("families", families.map(Value::from)),
                ("wake_budget", wake_budget.map(Value::from)),
            ];
            for (name, value) in said {
                if let Some(value) = value {
                    body[name] = value;
                }
            }
            let link = client.post(&["v1", "orgs", org, "workspaces", &workspace, "links"], body).await?.body;
            if handoff {
                return show_handoff(context, org, &cell(link.get("id"))).await;
            }
            output.result(&link, || issued(output, &workspace, &link))?;
        }
        LinkVerb::Ls { of, all, state, limit } => {
            let query = [("phase", state)];
            let page = if all {
                client.list(&["v1", "orgs", org, "links"], &query, usize::from(limit)).await?
            } else {
                let workspace = of.find(context, org).await.map_err(|failure| match failure {
                    Failure::Usage(explained) => {
                        Failure::usage(explained.what, "name a workspace: --workspace SLUG, or see all: --all")
                    }
                    other => other,
                })?;
                let path = ["v1", "orgs", org, "workspaces", &workspace, "links"];
                client.list(&path, &query, usize::from(limit)).await?
            };
            output.result(&page, || table(output, &page))?;
        }
        LinkVerb::Show { link } => {
            let link = client.get(&["v1", "orgs", org, "links", &link.to_string()], &[]).await?.body;
            output.result(&link, || card(output, &link))?;
        }
        LinkVerb::Revoke { link, reason } => {
            let body = reason.map_or(json!({}), |reason| json!({ "reason": reason }));
            let answer = client.post(&["v1", "orgs", org, "links", &link.to_string(), "revoke"], body).await?.body;
            output.result(&answer, || format!("Revoked {link}. {}", session::shown(&answer["receipt"])))?;
        }
        LinkVerb::Rotate { link, length } => {
            let body = length.map_or(json!({}), |seconds| json!({ "lifetime_seconds": seconds }));
            let answer = client.post(&["v1", "orgs", org, "links", &link.to_string(), "rotate"], body).await?.body;
            output.result(&answer, || {
                let expires = output.instants.show_wire(answer.get("expires_at"));
                let note = output.dim(&format!("The share URL before works no more. Expires {expires}."));
                format!("{}\n{note}", share_url(output, &answer))
            })?;
        }
        LinkVerb::Allow { link, families } => {
            let body = json!({ "families": families });
            let path = ["v1", "orgs", org, "links", &link.to_string(), "families"];
            let answer = client.write(Method::PUT, &path, body).await?.body;
            output.result(&answer, || format!("{link} opens {}.", cell(answer.get("families"))))?;
        }
        LinkVerb::Handoff { link } => return show_handoff(context, org, &link.to_string()).await,
    }
    Ok(Exit::Ok)
}

/// The workspace's web service, where there is no choice.
async fn only_web_service(context: &Context, org: &str, workspace: &str) -> Result<String, Failure> {
    let answer = context.client.get(&["v1", "orgs", org, "workspaces", workspace, "runtime"], &[]).await?;
    let runtime: wake::Runtime = answer.view()?;
    let web: Vec<_> = runtime.services.into_iter().filter(|service| service.route == "web").collect();
    match web.as_slice() {
        [one] => Ok(one.name.clone()),
        [] => Err(Failure::usage(
            format!("workspace {workspace} has no web service to link to"),
            "declare one in envforge.yml: `route: web`",
        )),
        several => {
            let names: Vec<_> = several.iter().map(|service| service.name.as_str()).collect();
            Err(Failure::usage(
                format!("workspace {workspace} has several web services: {}", names.join(", ")),
                "name one: --service NAME",
            ))
        }
    }
}

async fn show_handoff(context: &Context, org: &str, link: &str) -> Result<Exit, Failure> {
    let output = &context.output;
    let answer = context.client.get(&["v1", "orgs", org, "links", link, "handoff"], &[]).await?.body;
    output.result(&answer, || handoff(output, &answer))?;
    Ok(Exit::Ok)
}

fn share_url(output: &Output, answer: &Value) -> String {
    output.bold(&printable(&cell(answer.get("share_url"))))
}

fn issued(output: &Output, workspace: &str, link: &Value) -> String {
    let scope = output.card(&[
        ("opens", format!("{} of {workspace}: {}", cell(link.get("service")), cell(link.get("families")))),
        ("label", cell(link.get("label"))),
        ("expires", output.instants.show_wire(link.get("expires_at"))),
        ("wakes", cell(link.get("wake_budget"))),
        ("link", cell(link.get("id"))),
    ]);
    let revoke = output.dim(&format!("Close it: envforge link revoke {}", cell(link.get("id"))));
    format!("{}\n\n{scope}\n{revoke}", share_url(output, link))
}

fn table(output: &Output, page: &Value) -> String {
    let row = |item: &Value| {
        let workspace = item.get("workspace_slug").filter(|slug| !slug.is_null()).or(item.get("workspace"));
        [
            cell(item.get("id")),
            cell(item.get("label")),
            format!("{} {}", cell(workspace), cell(item.get("service"))),
            state(item),
            output.instants.show_wire(item.get("expires_at")),
            cell(item.get("sessions_opened")),
            blocked(item).to_string(),
        ]
    };
    let rows = page["items"].as_array().into_iter().flatten().map(row).collect();
    let header = ["LINK", "LABEL", "OPENS", "STATE", "EXPIRES", "SESSIONS", "BLOCKED"];
    let mut text = output.table(header, rows, "No links. Issue one: `envforge link create`.");
    text.push_str(&more(output, page));
    text
}

/// Where a link goes on and opens nothing, or less, that is said.
fn state(link: &Value) -> String {
    let phase = cell(link.get("phase"));
    match (&*phase, &link["open_until"], link["open_families"].as_array(), link["families"].as_array()) {
        ("active", Value::Null, Some(_), _) => "active, but closed by role or policy".to_owned(),
        ("active", _, Some(open), Some(all)) if open.len() < all.len() => {
            format!(
                "active, opens {} by policy",
                if open.is_empty() { "nothing".to_owned() } else { cell(link.get("open_families")) }
            )
        }
        _ => phase,
    }
}

/// Blocked attempts of all kinds.
fn blocked(link: &Value) -> u64 {
    link["blocked"].as_object().into_iter().flatten().filter_map(|(_, count)| count.as_u64()).sum()
}

fn card(output: &Output, link: &Value) -> String {
    let instants = &output.instants;
    let workspace = link.get("workspace_slug").filter(|slug| !slug.is_null()).or(link.get("workspace"));
    let budget = link.get("wake_budget").filter(|budget| !budget.is_null());
    let wakes = match budget {
        Some(budget) => format!("{} of {} spent", cell(link.get("wakes_spent")), cell(Some(budget))),
        None => format!("{} spent, no limit of its own", cell(link.get("wakes_spent"))),
    };
    let by_kind = link["blocked"].as_object().into_iter().flatten();
    let by_kind: Vec<_> = by_kind.map(|(code, count)| format!("{code} {count}")).collect();
    output.card(&[
        ("link", cell(link.get("id"))),
        ("label", cell(link.get("label"))),
        ("state", state(link)),
        ("opens", format!("{} of {}: {}", cell(link.get("service")), cell(workspace), cell(link.get("families")))),
        ("expires", instants.show_wire(link.get("expires_at"))),
        ("ended", instants.show_wire(link.get("ended_at"))),
        ("reason", cell(link.get("revoke_reason"))),
        ("issued", format!("{} by {}", instants.show_wire(link.get("issued_at")), issuer(link))),
        ("share URLs", cell(link.get("generation"))),
        ("first used", instants.show_wire(link.get("first_used_at"))),
        ("sessions", cell(link.get("sessions_opened"))),
        ("wakes", wakes),
        ("blocked", by_kind.join(", ")),
        ("last blocked", instants.show_wire(link.get("blocked_at"))),
    ])
}

fn issuer(link: &Value) -> String {
    let name = cell(link.get("issued_by_name"));
    if name.is_empty() { cell(link.get("issued_by")) } else { name }
}

fn handoff(output: &Output, card: &Value) -> String {
    let link = &card["link"];
    let url = cell(card.get("share_url"));
    let mut text = if url.is_empty() {
        format!("{}\n\n", output.yellow(&format!("This link is {}; it opens nothing.", cell(link.get("phase")))))
    } else {
        format!("{}\n\n", output.bold(&printable(&url)))
    };
    let phase = cell(card.get("phase"));
    let state = match phase.as_str() {
        "asleep" | "sleeping" => format!("{phase}; opening the link wakes it"),
        _ => phase,
    };
    text.push_str(&output.card(&[
        ("label", cell(link.get("label"))),
        ("organization", cell(card.get("organization"))),
        ("workspace", cell(card.get("workspace"))),
        ("service", cell(link.get("service"))),
        ("app", cell(card.get("host"))),
        ("expires", output.instants.show_wire(link.get("expires_at"))),
        ("runtime", state),
        ("link", cell(link.get("id"))),
    ]));
    let yes = |value: &Value, yes: &str, no: &str| if value == &Value::Bool(true) { yes } else { no }.to_owned();
    let row = |route: &Value| {
        [
            cell(route.get("path")),
            cell(route.get("family")),
            cell(route.get("service")),
            yes(&route["open"], "open", "closed"),
            yes(&route["ready"], "answers", "-"),
        ]
    };
    let rows = card["routes"].as_array().into_iter().flatten().map(row).collect();
    text.push_str("\n\n");
    text.push_str(&output.table(["ROUTE", "FAMILY", "SERVICE", "LINK", "NOW"], rows, "no routes"));
    text.push_str(&output.dim("\n\nNever opened: shell, logs, secrets, consoles, databases, other services."));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link() -> Value {
        json!({"id": "lnk_1", "label": "Dana's review", "service": "web", "workspace": "wsp_1", "workspace_slug": "signed-links",
            "phase": "active", "families": ["web", "api"], "generation": 1, "issued_by": "usr_1", "issued_by_name": "Owner",
            "issued_at": "2026-11-24T08:00:00.000Z", "expires_at": "2026-11-24T10:00:00.000Z", "ended_at": null,
            "wake_budget": 5, "wakes_spent": 2, "first_used_at": null, "sessions_opened": 3,
            "blocked": {"path_blocked": 2, "origin": 1}})
    }

    #[test]
    fn families_are_checked_before_anything_is_sent() {
        assert_eq!(family("websockets"), Ok("websockets"));
        assert!(family("shell").unwrap_err().contains("web, api, assets, websockets, marketing"));
    }

    #[test]
    fn a_link_shows_its_budget_and_what_was_blocked() {
        let text = card(&Output::plain(), &link());
        for part in
            ["opens       web of signed-links: web, api", "wakes       2 of 5 spent", "origin 1, path_blocked 2"]
        {
            assert!(text.contains(part), "`{part}` is not in:\n{text}");
        }
        assert!(!text.contains("ended"), "{text}");
        let listed = table(&Output::plain(), &json!({"items": [link()], "next": null}));
        assert!(listed.lines().nth(1).is_some_and(|line| line.ends_with("  3         3")), "{listed}");
    }

    #[test]
    fn a_handoff_card_shows_route_by_route_what_is_open_and_what_answers() {
        let card = json!({"link": link(), "organization": "Acme", "workspace": "signed-links",
            "host": "http://web--signed-links--acme.dev.localhost/", "share_url": "http://dev.localhost/share/abc",
            "phase": "asleep", "routes": [
                {"family": "web", "path": "/", "service": "web", "open": true, "ready": true},
                {"family": "websockets", "path": "/live", "service": "api", "open": false, "ready": false}]});
        let text = handoff(&Output::plain(), &card);
        assert!(text.starts_with("http://dev.localhost/share/abc\n"), "{text}");
        for part in [
            "runtime       asleep; opening the link wakes it",
            "/      web         web      open    answers",
            "/live  websockets  api      closed  -",
        ] {
            assert!(text.contains(part), "`{part}` is not in:\n{text}");
        }
        let over = json!({"link": {"phase": "revoked"}, "share_url": null, "routes": []});
        assert!(handoff(&Output::plain(), &over).starts_with("This link is revoked; it opens nothing."));
    }
}
