//! The README's story is run as it stands: each `sh story` block, line by line, against a real `envforge dev`.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests panic, and hand a PATH on")]

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use envforge_testkit::{TestDir, TestProcess};
use serde_json::Value;

/// The blocks that are marked to be run, joined in their order.
fn story(readme: &str) -> String {
    let blocks = readme.split("```sh story\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    blocks.collect::<String>()
}

#[test]
fn the_story_in_the_readme_is_a_journey_that_works() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let story = story(&std::fs::read_to_string(root.join("README.md")).unwrap());
    assert!(story.lines().count() > 5, "the README's blocks are gone: {story}");

    let place = TestDir::new();
    let binary = Path::new(env!("CARGO_BIN_EXE_envforge"));
    let mut command = Command::new(binary);
    command.args(["dev", "--json", "--listen", "127.0.0.1:0", "--gateway-listen", "127.0.0.1:0", "--data"]);
    command.arg(place.path().join("data"));
    let logs = place.path().join("logs");
    std::fs::create_dir_all(&logs).unwrap();
    let mut dev = TestProcess::spawn("envforge dev", &command, &logs);
    let started: Value = dev.wait_ready("the first line", Duration::from_secs(60), |dev| {
        let out = dev.stdout();
        out.contains('\n').then(|| serde_json::from_str(out.lines().next().unwrap()).unwrap())
    });

    let repository = place.path().join("orders");
    let copied = Command::new("cp").arg("-r").arg(root.join("examples/orders")).arg(&repository).status().unwrap();
    assert!(copied.success());
    std::fs::write(repository.join("password"), started["owner_password"].as_str().unwrap()).unwrap();
    let git = "git init -q -b feature/review && git add envforge.yml api web mailbox scripts && \
               git -c user.name=t -c user.email=t@example.org commit -q -m first";
    let path = format!("{}:{}", binary.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let told = Command::new("sh")
        .arg("-euc")
        .arg(format!("{git}\nset -x\n{story}"))
        .current_dir(&repository)
        .env("PATH", path)
        .env("HOME", place.path())
        .env("XDG_CONFIG_HOME", place.path().join("config"))
        .env("ENVFORGE_API", started["api"].as_str().unwrap())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&told.stdout), String::from_utf8_lossy(&told.stderr));
    assert!(told.status.success(), "{out}\n{err}");
    for seen in ["/share/", "Dana's review", "Revoked lnk_", "\"specversion\":\"1.0\""] {
        assert!(out.contains(seen), "`{seen}` is missing in:\n{out}\n{err}");
    }
}
