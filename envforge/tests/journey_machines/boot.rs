//! What cloud-init and systemd would do on an instance: with nothing but the user data of the launch and the unit of the image.

use std::path::Path;
use std::process::Command;

const UNIT: &str = include_str!("../../../deploy/aws/image/envforge-agent.service");
const DROP_INS: &str = "etc/systemd/system/envforge-agent.service.d";

/// Writes the files that user data names, once, and sees that it starts the unit.
pub(crate) fn cloud_init(disk: &Path, user_data: &str) {
    assert!(user_data.starts_with("#cloud-config\nwrite_files:\n"), "{user_data}");
    assert!(user_data.ends_with("runcmd:\n  - [systemctl, enable, --now, envforge-agent.service]\n"), "{user_data}");
    for file in user_data.split("  - path: /").skip(1) {
        let (path, rest) = file.split_once('\n').unwrap();
        let body = rest.lines().skip_while(|line| line.trim() != "content: |").skip(1);
        let body: Vec<_> = body.take_while(|line| line.starts_with("      ")).map(str::trim_start).collect();
        let file = disk.join(path);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, body.join("\n")).unwrap();
    }
    std::fs::create_dir_all(disk.join("var/lib")).unwrap();
}

/// Does what is to be done before each start of the unit, and answers how it starts: with this build in place of the image's binary and
/// the machine's disk in place of `/`, in the machine's network namespace.
pub(crate) fn unit(disk: &Path, namespace: &str) -> Command {
    let within = || {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace]);
        command
    };
    for drop_in in std::fs::read_dir(disk.join(DROP_INS)).into_iter().flatten() {
        let text = std::fs::read_to_string(drop_in.unwrap().path()).unwrap();
        for line in text.lines().filter_map(|line| line.strip_prefix("ExecStartPre=")) {
            let (may_fail, line) = line.strip_prefix('-').map_or((false, line), |line| (true, line));
            let output = within().args(line.split(' ')).output().unwrap();
            assert!(output.status.success() || may_fail, "{line}: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
    let line = UNIT.lines().find_map(|line| line.strip_prefix("ExecStart=/usr/local/bin/envforge ")).unwrap();
    let mut command = within();
    command.arg(env!("CARGO_BIN_EXE_envforge"));
    for word in line.split(' ') {
        match word.strip_prefix('/') {
            Some(path) => command.arg(disk.join(path)),
            None => command.arg(word),
        };
    }
    command.args(["--log-format", "text"]).env_remove("ENVFORGE_CONTROL_PLANE");
    command
}
