//! `envforge workspace access`: who could open a workspace at some time.

use serde_json::Value;

use super::Context;
use super::failure::Failure;
use super::output::{Output, cell, printable};

pub(super) async fn run(context: &Context, org: &str, workspace: &str, at: Option<&str>) -> Result<(), Failure> {
    let Context { output, client, .. } = context;
    let at = at.map(|text| output.instants.parse(text).map(|at| at.to_string())).transpose();
    let at = at.map_err(|reason| Failure::usage(reason, ""))?;
    let then = client.get(&["v1", "orgs", org, "workspaces", workspace, "access"], &[("at", at)]).await?.body;
    output.result(&then, || shown(output, workspace, &then))
}

fn shown(output: &Output, workspace: &str, then: &Value) -> String {
    let items = |name: &str| then[name].as_array().map(Vec::as_slice).unwrap_or_default();
    let person = |person: &Value| {
        let role = |grant: &Value| {
            let place = grant["workspace"].as_str().or(grant["project"].as_str());
            let place = place.map(|place| format!(" in {}", printable(place))).unwrap_or_default();
            format!("{}{place} (event {})", cell(grant.get("role")), cell(grant.get("given_at")))
        };
        let roles: Vec<_> = person["grants"].as_array().into_iter().flatten().map(role).collect();
        [cell(person.get("name")), roles.join(", "), cell(person.get("user"))]
    };
    let link = |link: &Value| {
        [
            cell(link.get("label")),
            cell(link.get("service")),
            output.instants.show_wire(link.get("expires_at")),
            cell(link.get("id")),
        ]
    };
    let token = |token: &Value| [cell(token.get("slug")), cell(token.get("actions")), cell(token.get("id"))];
    let at = output.instants.show_wire(then.get("at"));
    let mut text = format!("Who could open {} at {at}:\n", printable(workspace));
    text.push_str(&output.table(["MEMBER", "BY", "ID"], items("people").iter().map(person).collect(), "No member."));
    text.push('\n');
    text.push_str(&output.table(
        ["LINK", "SERVICE", "UNTIL", "ID"],
        items("links").iter().map(link).collect(),
        "No link.",
    ));
    text.push('\n');
    let tokens = items("service_tokens").iter().map(token).collect();
    text.push_str(&output.table(["SERVICE TOKEN", "FOR", "ID"], tokens, "No service token."));
    if then["truncated"] == Value::Bool(true) {
        text.push_str("\nThere were more than are looked at.");
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn people_links_and_tokens_are_shown_apart() {
        let grant = json!({"role": "viewer", "project": "prj_1", "workspace": null, "given_at": 12});
        let then = json!({"at": "2026-11-24T08:00:00.000Z", "people": [{"user": "usr_1", "name": "Dana", "grants": [grant]}],
            "links": [], "service_tokens": [{"id": "svt_1", "slug": "ci", "actions": ["workspace.read"]}], "truncated": true});
        let text = shown(&Output::plain(), "main", &then);
        for part in ["Dana", "viewer in prj_1 (event 12)", "No link.", "svt_1", "more than are looked at"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}
