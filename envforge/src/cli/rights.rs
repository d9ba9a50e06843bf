//! Which actions of the policy each verb of the command line asks for. A verb without a row here fails the test.
//!
//! The server asks the policy whatever the command line thinks; this is for whoever reviews what a new verb opens.

use std::collections::{BTreeMap, BTreeSet};

use clap::Subcommand;
use envforge_domain::access::Action;
use envforge_domain::commit::Surface;

use super::ClientVerb;

/// Verbs with the tokens of their actions. None: it asks nobody, or what anybody may ask.
const VERBS: &[(&str, &[&str])] = &[
    ("login", &[]),
    ("logout", &["session.revoke_own"]),
    ("join", &[]),
    ("password", &["password.change_own"]),
    ("session ls", &["session.read_own"]),
    ("session revoke", &["session.revoke_own"]),
    ("session revoke-all", &["session.revoke_own"]),
    (
        "up",
        &[
            "profile.read",
            "project.read",
            "project.create",
            "workspace.read",
            "workspace.create",
            "workspace.change_manifest",
            "runtime.wake",
        ],
    ),
    ("workspace ls", &["workspace.read"]),
    ("workspace show", &["workspace.read", "secret.list"]),
    ("workspace access", &["audit.read"]),
    ("workspace create", &["workspace.create"]),
    ("workspace wake", &["runtime.wake", "workspace.read"]),
    ("workspace sleep", &["runtime.sleep"]),
    ("workspace keep-awake", &["runtime.keep_awake"]),
    ("workspace archive", &["workspace.archive"]),
    ("link create", &["workspace.read", "link.issue"]),
    ("link ls", &["link.read"]),
    ("link show", &["link.read"]),
    ("link revoke", &["link.revoke"]),
    ("link rotate", &["link.rotate"]),
    ("link allow", &["link.change_allowlist"]),
    ("link handoff", &["link.share"]),
    ("root request", &["root.request", "root.break_glass"]),
    ("root ls", &["root.read"]),
    ("root show", &["root.read"]),
    ("root approve", &["root.approve"]),
    ("root deny", &["root.deny"]),
    ("root withdraw", &["root.withdraw"]),
    ("root revoke", &["root.revoke"]),
    ("root review", &["root.review"]),
    ("root run", &["root.run", "root.read"]),
    ("root shell", &["root.run"]),
    ("secret set", &["secret.set"]),
    ("secret ls", &["secret.list"]),
    ("secret rm", &["secret.remove"]),
    ("secret history", &["secret.list"]),
    ("shell", &["shell.open"]),
    ("ssh-config", &[]),
    ("ssh-proxy", &["shell.open"]),
    ("run", &["job.run", "runtime.wake"]),
    ("logs", &["logs.read", "workspace.read"]),
    ("audit log", &["audit.read"]),
    ("audit replay", &["audit.read"]),
    ("audit tail", &["audit.read", "member.read"]),
    ("why", &["authz.check", "audit.read", "profile.read", "member.read"]),
    ("usage", &["usage.read"]),
    ("project ls", &["project.read"]),
    ("project create", &["project.create"]),
    ("project show", &["project.read"]),
    ("project edit", &["project.read", "project.edit"]),
    ("org ls", &["organization.read"]),
    ("org show", &["organization.read"]),
    ("org policy show", &["organization.read"]),
    ("org policy set", &["organization.change_policy"]),
    ("org member ls", &["member.read"]),
    ("org member add", &["member.add", "user.create"]),
    ("org member remove", &["member.read", "member.remove"]),
    ("org invite create", &["invitation.create"]),
    ("org invite ls", &["invitation.read"]),
    ("org invite revoke", &["invitation.read", "invitation.revoke"]),
    ("org user deactivate", &["member.read", "user.deactivate"]),
    ("org user reactivate", &["member.read", "user.reactivate"]),
    ("org user sign-out", &["member.read", "session.revoke"]),
    ("org team ls", &["team.read"]),
    ("org team show", &["team.read"]),
    ("org team create", &["team.create"]),
    ("org team rename", &["team.rename"]),
    ("org team delete", &["team.delete"]),
    ("org team add", &["member.read", "team.add_member"]),
    ("org team remove", &["member.read", "team.remove_member"]),
    ("org token create", &["service_token.create"]),
    ("org token ls", &["service_token.read"]),
    ("org token rotate", &["service_token.rotate"]),
    ("org token revoke", &["service_token.revoke"]),
    ("org role assign", &["member.read", "role.assign"]),
    ("org role revoke", &["member.read", "role.revoke"]),
    ("host ls", &["host.read"]),
    ("host enrol", &["host.enrol"]),
    ("host drain", &["host.drain"]),
    ("host revoke", &["host.revoke"]),
    ("host policy", &["organization.read"]),
    ("doctor", &["profile.read", "workspace.read"]),
    ("completions", &[]),
    ("exit-codes", &[]),
];

#[test]
fn every_verb_has_a_row_and_asks_for_actions_that_people_have_on_the_command_line() {
    let mut found = BTreeSet::new();
    leaves(&ClientVerb::augment_subcommands(clap::Command::new("")), "", &mut found);
    let listed: BTreeMap<_, _> = VERBS.iter().copied().collect();
    let without: Vec<_> = found.iter().filter(|verb| !listed.contains_key(verb.as_str())).collect();
    assert!(without.is_empty(), "verbs without a row: {without:#?}");
    let gone: Vec<_> = listed.keys().filter(|verb| !found.contains(**verb)).collect();
    assert!(gone.is_empty(), "rows of verbs that there are none of: {gone:#?}");
    for (verb, actions) in VERBS {
        for token in *actions {
            let action = Action::from_token(token).unwrap_or_else(|| panic!("`{verb}`: there is no action `{token}`"));
            let row = action.row();
            let on_cli = row.surfaces.contains(&Surface::Cli)
                || row.principals.iter().any(|(_, surfaces)| surfaces.contains(&Surface::Cli));
            assert!(on_cli, "`{verb}` asks for `{token}`, which nobody may do on the command line");
        }
    }
}

fn leaves(command: &clap::Command, path: &str, found: &mut BTreeSet<String>) {
    let mut any = false;
    for verb in command.get_subcommands().filter(|verb| verb.get_name() != "help") {
        any = true;
        leaves(verb, format!("{path} {}", verb.get_name()).trim(), found);
    }
    if !any {
        found.insert(path.to_owned());
    }
}
