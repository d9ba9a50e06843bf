//! The control plane is killed between the log's word and its host's.

use std::time::Duration;

use envforge_testkit::wait_until;
use serde_json::Value;

use crate::proxy::Proxy;
use crate::roots::{is_root, team_at};
use crate::shells::{MANIFEST, Team, Tenacious};
use crate::site::{DEADLINE, Site, is_dead};

/// Until a shell of an earlier control plane counts as lost where its host knows nothing of it.
const MISSED: Duration = Duration::from_secs(90);

/// Events of a type, as they stand in the log, with what they are about.
fn of_type(team: &Team, kind: &str) -> Vec<Value> {
    let replayed = team.site.shown(&["audit", "replay", "--json"]);
    let events = replayed.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    events.filter(|event| event["type"].as_str().unwrap().contains(kind)).collect()
}

/// Each has begun once, and ended once.
fn each_has_one_end(team: &Team, began: &str, ended: &str, count: usize) {
    let subjects = |kind: &str| {
        let mut subjects: Vec<_> = of_type(team, kind).iter().map(|event| event["subject"].to_string()).collect();
        subjects.sort();
        subjects
    };
    let all = subjects(began);
    assert_eq!(all.len(), count, "{all:?}");
    wait_until(&format!("an end of each {began}"), MISSED, || subjects(ended).len() >= count);
    assert_eq!(subjects(ended), all);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_log_began_and_no_host_heard_of_gets_one_end_after_a_kill_9_of_the_control_plane() {
    let (site, dev) = Site::new();
    let proxy = Proxy::to(site.agents_port).await;
    let mut team = team_at(site, dev, &proxy.address()).await;
    let root = is_root();
    let names = ["shell", "job", "root"].map(|name| Tenacious::new(&team, name));
    let [shell, job, as_root] = names.each_ref().map(Tenacious::script);
    let job = serde_json::to_string(&job).unwrap();
    team.site.commit(&format!("{MANIFEST}  tenacious: {{ command: {job}, kind: agent }}\n"));
    team.site.json(&["up"]);
    let window = root.then(|| team.window("20m", &[]));
    let mut kinds: Vec<(&str, Vec<&str>)> = vec![
        ("shell.connected", vec!["shell", "main", "--", "sh", "-c", &shell]),
        ("job.started", vec!["run", "tenacious", "--workspace", "main"]),
    ];
    if let Some(window) = &window {
        kinds.push(("root_window.command_started", vec!["root", "run", window, "--", "/bin/sh", "-c", &as_root]));
    }
    for (began, args) in &kinds {
        wait_until("the host to be reached", DEADLINE, || team.dana(&["logs", "main"], "").status.success());
        proxy.slow_down();
        let mut client = team.begin(args);
        // The log says so, and the order is on its way to the host.
        wait_until(began, DEADLINE, || !of_type(&team, began).is_empty());
        team.dev.kill9();
        proxy.cut();
        client.wait().unwrap();
        proxy.mend();
        team.dev = team.site.start().0;
        team.sign_in();
        assert_eq!(of_type(&team, began).len(), 1, "{began}");
    }
    each_has_one_end(&team, "shell.connected", "shell.disconnected", 1);
    each_has_one_end(&team, "job.started", "job.finished", 1);
    team.ended_as(": lost");
    if let Some(window) = &window {
        let shown = team.root_ended(window, "not_started");
        assert_eq!(shown["phase"], "closed", "{shown}");
        each_has_one_end(&team, "root_window.command_started", "root_window.command_ended", 1);
    }
    for tenacious in &names {
        assert!(tenacious.all().iter().all(|pid| is_dead(pid)), "nothing is left: {:?}", tenacious.all());
    }
    // And whatever was asked for is to be had again.
    team.until_reached();
    each_has_one_end(&team, "job.started", "job.finished", 1);
}
