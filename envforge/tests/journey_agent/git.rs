//! A project's secret for git on an agent's host, against a real git server over HTTPS: cloned, fetched and pushed with from shells, fetched
//! with at a wake, and nowhere to be found.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use envforge_testkit::GitServer;

use crate::canary::plain;
use crate::shells::Team;
use crate::site::Site;

const USER: &str = "x-access-token";

async fn team(value: &str) -> (Team, GitServer) {
    let (site, dev) = Site::new();
    // Where the agent is root, shells and services are users of their own, who must get in.
    std::fs::set_permissions(site.dir.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
    let server = GitServer::start(USER, value);
    server.add("orders", &site.dir.join("orders"));
    let authority = site.dir.join("authority.pem");
    std::fs::copy(server.authority(), &authority).unwrap();
    std::fs::set_permissions(&authority, std::fs::Permissions::from_mode(0o644)).unwrap();
    let mut agent = site.agent_command("builder", &site.at(), Some(&site.enrolment("builder")));
    let agent = site.started("builder", agent.env("GIT_SSL_CAINFO", &authority));
    site.until_host("builder", "active").await;
    let address = server.url("localhost", "orders");
    (Team::with(site, dev, agent, &address), server)
}

impl Team {
    /// What a script writes in Dana's shell, and how it ended.
    fn git(&self, script: &str) -> (String, Option<i32>) {
        let script = format!("exec 2>&1; export GIT_TERMINAL_PROMPT=0; {script}");
        let output = self.dana(&["shell", "main", "--", "sh", "-c", &script], "");
        let text = [&output.stdout[..], &output.stderr].concat();
        (String::from_utf8_lossy(&text).into_owned(), output.status.code())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn git_on_an_agents_host_clones_fetches_and_pushes_with_the_projects_secret() {
    let value = plain();
    let (team, server) = team(&value).await;
    let (told, code) = team.git("true");
    assert!(code != Some(0) && told.contains("--git-credential"), "{told}");
    team.site.set_secret("GIT_TOKEN", &value, &[]);
    team.site.json(&["project", "edit", "orders", "--git-credential", "GIT_TOKEN"]);

    // For the clone it is there; inside shells only where the project says so.
    assert_eq!(team.git("ls"), ("envforge.yml\n".to_owned(), Some(0)));
    assert!(server.requests().contains("with the credential"));
    let (told, code) = team.git("git fetch -q");
    assert!(code != Some(0) && told.contains("could not read Username"), "{told}");
    team.site.json(&["project", "edit", "orders", "--git-credential", "GIT_TOKEN", "--git-in-shells"]);
    let push = "git fetch -q && echo two > two.txt && git add . && git -c user.name=d -c user.email=d@d commit -qm two && \
                git push -q && git pull -q && git status -sb | head -1";
    assert_eq!(team.git(push), ("## main...origin/main\n".to_owned(), Some(0)));
    // At a wake, too: it brings what was pushed.
    team.site.json(&["workspace", "wake", "main"]);
    team.site.until_phase("ready").await;
    let workspaces = team.site.dir.join("builder/runtime/workspaces");
    let found = Command::new("find").arg(workspaces).args(["-name", "two.txt"]).output().unwrap().stdout;
    let found = String::from_utf8_lossy(&found);
    assert!(found.contains("/checkout/two.txt"), "{found}");

    // Whoever tries one of several lines is told what would be right, and keeps their shell.
    let several = format!("{value}\nmore");
    let set = team.run("config", &["secret", "set", "GIT_TOKEN", "--project", "orders"], &several);
    let told = String::from_utf8_lossy(&set.stderr).into_owned();
    assert!(!set.status.success() && told.contains("one line") && !told.contains(&value), "{told}");
    assert_eq!(team.git("git fetch -q && echo fetched"), ("fetched\n".to_owned(), Some(0)));

    let grep = Command::new("grep").args(["-rlaF", &value]).arg(team.site.dir.path()).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&grep.stdout), "", "files that hold it");
    let events = team.site.shown(&["audit", "replay", "--json"]);
    for told in [events, team.agent.stderr(), team.dev.stderr()] {
        assert!(!told.contains(&value));
    }
}
