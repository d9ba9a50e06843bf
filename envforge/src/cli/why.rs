//! `envforge why`: what somebody may do, or why a request was allowed or refused; the rule, the grants and the events behind them.

use clap::Args;
use serde_json::{Value, json};

use super::Context;
use super::failure::{Exit, Failure};
use super::org::user_id;
use super::output::{Output, cell, printable};

#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  envforge why --action runtime.wake --on workspace/main               what about me
  envforge why --user dana@example.com --action link.issue --on workspace/main
  envforge why --token svt_0193... --action usage.read --on organization
  envforge why cor_0193...                                             a request, by the id in its answer

A refusal is known by its id some seconds later; of a flood of them, not each: envforge audit log --outcome denied counts all.")]
pub(crate) struct WhyArguments {
    /// A request: `EnvForge-Request` of its answer, `correlation` in the audit
    #[arg(value_name = "REQUEST", conflicts_with_all = ["user", "token", "action", "on"], required_unless_present = "action")]
    request: Option<String>,
    /// Whom it is about, by e-mail address or id [default: you]
    #[arg(long, value_name = "USER", conflicts_with = "token")]
    user: Option<String>,
    /// A service token that it is about, by id
    #[arg(long, value_name = "TOKEN")]
    token: Option<String>,
    /// What they want to do: `runtime.wake`; docs/access.md lists all
    #[arg(long, value_name = "ACTION", requires = "on")]
    action: Option<String>,
    /// On what: `organization`, `project/NAME`, `workspace/NAME`, `link/ID`, `user/ID`, `root_window/ID`
    #[arg(long, value_name = "PLACE", requires = "action")]
    on: Option<String>,
}

pub(super) async fn run(context: &Context, arguments: WhyArguments) -> Result<Exit, Failure> {
    let Context { output, client, .. } = context;
    let org = context.org().await?;
    let WhyArguments { request, user, token, action, on } = arguments;
    if let Some(request) = request {
        let why = client.get(&["v1", "orgs", &org, "why", &request], &[]).await?.body;
        output.result(&why, || of_request(output, &why))?;
        return Ok(Exit::Ok);
    }
    let (action, on) = (action.unwrap_or_default(), on.unwrap_or_default());
    let subject = match (user, token) {
        (_, Some(token)) => json!({ "service_token": token }),
        (Some(user), None) => json!({ "user": user_id(context, &org, &user).await? }),
        (None, None) => json!({ "user": client.get(&["v1", "me"], &[]).await?.body["id"] }),
    };
    let question = json!({ "subject": subject, "action": action, "resource": on, "surface": "cli" });
    let question = match question["subject"].get("service_token") {
        // Programs act on the API alone.
        Some(_) => json!({ "subject": question["subject"], "action": action, "resource": on }),
        None => question,
    };
    let answer = client.post(&["v1", "authz", "explain"], question).await?.body;
    output.result(&answer, || of_right(output, &action, &on, &answer))?;
    Ok(Exit::Ok)
}

fn holder(output: &Output, grant: &Value) -> String {
    let place = grant["workspace"].as_str().or(grant["project"].as_str());
    let place = place.map_or_else(|| "the whole organization".to_owned(), printable);
    let through = grant["team"].as_str().map(|team| format!(" through {}", printable(team))).unwrap_or_default();
    let until = match grant["expires_at"].as_str() {
        Some(_) => format!(" until {}", output.instants.show_wire(grant.get("expires_at"))),
        None => String::new(),
    };
    format!("{} in {place}{through}{until}", cell(grant.get("role")))
}

fn event(value: &Value) -> String {
    value.as_u64().map(|position| format!("event {position}")).unwrap_or_default()
}

fn of_right(output: &Output, action: &str, on: &str, answer: &Value) -> String {
    let allowed = answer["allowed"] == Value::Bool(true);
    let but = answer["condition"].as_str().map(|what| format!("; but {}", printable(what))).unwrap_or_default();
    let head = match (allowed, answer["rule"]["kind"].as_str()) {
        (true, Some("grant")) => format!("Yes: {}{but}.", holder(output, &answer["rule"]["grant"])),
        (true, kind) => format!("Yes: as {}{but}.", kind.map(printable).unwrap_or_default()),
        (false, _) => format!("No: {} ({}).", cell(answer.get("detail")), cell(answer.get("reason"))),
    };
    let row = |grant: &Value| {
        let counts = grant["short_of"].as_str().map_or_else(|| "allows it".to_owned(), |what| format!("no: {what}"));
        [holder(output, grant), counts, event(&grant["given_at"]), event(&grant["joined_at"])]
    };
    let rows = answer["grants"].as_array().into_iter().flatten().map(row).collect();
    let table = output.table(["ROLE", "COUNTS", "GIVEN BY", "IN THE TEAM BY"], rows, "They hold no role.");
    let asked = format!("{} on {} is for {}", printable(action), printable(on), cell(answer.get("roles")));
    format!("{head}\n{}\n{table}", output.dim(&format!("{asked}; as of position {}", cell(answer.get("position")))))
}

fn of_request(output: &Output, why: &Value) -> String {
    let mut text = String::new();
    for done in why["events"].as_array().into_iter().flatten() {
        text.push_str(&format!("{} {}\n", event(&done["position"]), cell(done.get("summary"))));
        let decision = &done["decision"];
        if decision.is_null() {
            text.push_str("  nobody's rights were asked for\n");
            continue;
        }
        let rule = &decision["rule"];
        let by = match rule["kind"].as_str() {
            Some("grant") => format!("{}, given by {}", holder(output, &rule["grant"]), event(&decision["given_at"])),
            kind => format!("as {}", kind.map(printable).unwrap_or_default()),
        };
        text.push_str(&format!("  {} on {}: {by}\n", cell(rule.get("action")), cell(decision.get("resource"))));
        for rests in decision["rests_on"].as_array().into_iter().flatten() {
            text.push_str(&output.dim(&format!(
                "  rests on {} at {}\n",
                cell(rests.get("stream")),
                cell(rests.get("last"))
            )));
        }
    }
    for refusal in why["refusals"].as_array().into_iter().flatten() {
        text.push_str(&of_refusal(output, refusal));
    }
    text.truncate(text.trim_end().len());
    text
}

fn of_refusal(output: &Output, refusal: &Value) -> String {
    let who = refusal["actor"].as_str().map(printable).unwrap_or_default();
    let on = refusal["resource"].as_str().map(|resource| format!(" on {}", printable(resource))).unwrap_or_default();
    let mut text = format!(
        "{} Refused {} {who} on the {} surface: {}{on} ({})\n",
        event(&refusal["position"]),
        cell(refusal.get("actor_kind")),
        cell(refusal.get("surface")),
        cell(refusal.get("action")),
        cell(refusal.get("reason"))
    );
    if let Some(detail) = refusal["detail"].as_str() {
        text.push_str(&format!("  {}\n", printable(detail)));
    }
    if refusal["roles"].as_array().is_some_and(|roles| !roles.is_empty()) {
        text.push_str(&format!("  {} is for {}\n", cell(refusal.get("action")), cell(refusal.get("roles"))));
    }
    let token = &refusal["service_token"];
    if let Some(id) = token["id"].as_str() {
        let by = cell(token.get("created_by"));
        text.push_str(&format!("  service token {}, made by {by} ({})\n", printable(id), event(&token["made_at"])));
    }
    let link = &refusal["link"];
    if let Some(id) = link["id"].as_str() {
        let ended = link["ended_at"].as_u64().map(|_| format!(", ended by {}", event(&link["ended_at"])));
        text.push_str(&format!(
            "  link {} for {} ({}), until {}, issued by {} ({}){}\n",
            printable(id),
            cell(link.get("families")),
            event(&link["families_at"]),
            output.instants.show_wire(link.get("expires")),
            cell(link.get("issued_by")),
            event(&link["issued_at"]),
            ended.unwrap_or_default()
        ));
    }
    for grant in refusal["grants"].as_array().into_iter().flatten() {
        let counts = grant["short_of"].as_str().map_or_else(|| "allows it".to_owned(), |what| format!("no: {what}"));
        text.push_str(&format!("  {}, given by {}: {counts}\n", holder(output, grant), event(&grant["given_at"])));
    }
    text.push_str(&output.dim(&format!("  as of position {}\n", cell(refusal.get("facts_at")))));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_right_shows_what_each_role_lacks_and_where_it_comes_from() {
        let grant = json!({"role": "viewer", "project": null, "workspace": null, "team": "tea_1", "expires_at": null,
            "short_of": "role", "given_at": 17, "joined_at": 21});
        let answer = json!({"allowed": false, "reason": "role_missing", "detail": "`runtime.wake` needs one of these",
            "rule": null, "roles": ["owner", "admin"], "grants": [grant], "position": 40});
        let text = of_right(&Output::plain(), "runtime.wake", "workspace/main", &answer);
        for part in [
            "No: `runtime.wake` needs",
            "viewer in the whole organization through tea_1",
            "no: role",
            "event 17",
            "event 21",
            "position 40",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn a_request_shows_its_rule_and_the_streams_that_it_rested_on() {
        let grant =
            json!({"role": "developer", "project": "prj_1", "workspace": null, "team": null, "expires_at": null});
        let decision = json!({"rule": {"kind": "grant", "action": "runtime.wake", "grant": grant}, "resource": "wsp_1",
            "given_at": 9, "facts_at": 30, "rests_on": [{"stream": "org_1.organization.org_1", "last": 12}]});
        let why = json!({"events": [{"position": 31, "summary": "Woke main", "decision": decision}]});
        let text = of_request(&Output::plain(), &why);
        for part in [
            "event 31 Woke main",
            "runtime.wake on wsp_1: developer in prj_1, given by event 9",
            "org_1.organization.org_1 at 12",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn a_refused_request_shows_who_was_refused_what_and_which_grants_fell_short() {
        let grant = json!({"role": "viewer", "project": null, "workspace": null, "team": null, "expires_at": null,
            "short_of": "role", "given_at": 17});
        let refusal = json!({"position": 60, "actor_kind": "user", "actor": "usr_1", "surface": "api", "action": "runtime.wake",
            "resource": "wsp_1", "reason": "role_missing", "detail": "`runtime.wake` needs one of these", "roles": ["owner", "admin"],
            "grants": [grant], "service_token": null, "link": null, "facts_at": 41});
        let why = json!({"events": [], "refusals": [refusal]});
        let text = of_request(&Output::plain(), &why);
        for part in [
            "event 60 Refused user usr_1 on the api surface: runtime.wake on wsp_1 (role_missing)",
            "`runtime.wake` needs one of these",
            "runtime.wake is for owner, admin",
            "viewer in the whole organization, given by event 17: no: role",
            "as of position 41",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
