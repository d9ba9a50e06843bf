//! The network of a cloud of this machine: a bridge, for each instance a network namespace on it, and one that holds what stands in for
//! EC2's metadata service.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use envforge_testkit::{TestProcess, wait_until};

/// As EC2 has it.
pub(crate) const METADATA: [&str; 2] = ["169.254.169.254", "fd00:ec2::254"];
/// The metadata service's, among the numbers of machines.
const METADATA_NUMBER: usize = 200;

/// Ends on drop, with the stand-in for the metadata service; machines are powered off one by one.
pub(crate) struct Network {
    bridge: String,
    /// The first three numbers of its addresses.
    prefix: String,
    _metadata: TestProcess,
}

pub(crate) fn ip(args: &[&str]) -> Output {
    Command::new("ip").args(args).output().unwrap()
}

#[track_caller]
fn ip_does(args: &[&str]) {
    let output = ip(args);
    assert!(output.status.success(), "ip {args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// What stands in the way of namespaces here, if anything.
pub(crate) fn missing() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("network namespaces need root");
    }
    if envforge_testkit::tools::on_path("ip").is_none() {
        return Some("`ip` (iproute2) is not installed");
    }
    let name = format!("ef{}x", std::process::id());
    let made = ip(&["netns", "add", &name]).status.success();
    ip(&["netns", "del", &name]);
    (!made).then_some("this kernel, or this container, gives no network namespaces")
}

impl Network {
    /// `folder`: for what the stand-in says.
    pub(crate) fn new(folder: &Path) -> Self {
        std::fs::create_dir_all(folder).unwrap();
        let id = std::process::id();
        let (bridge, prefix) = (format!("efb{id}"), format!("10.{}.{}", 201 + (id >> 8) % 50, id % 256));
        ip_does(&["link", "add", &bridge, "type", "bridge"]);
        ip_does(&["addr", "add", &format!("{prefix}.1/24"), "dev", &bridge]);
        ip_does(&["link", "set", &bridge, "up"]);
        plug_in(&bridge, &prefix, METADATA_NUMBER);
        let namespace = namespace(&bridge, METADATA_NUMBER);
        for (address, bits) in METADATA.iter().zip(["16", "64"]) {
            ip_does(&["-n", &namespace, "addr", "add", &format!("{address}/{bits}"), "dev", "eth0", "nodad"]);
        }
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &namespace, "python3", "-m", "http.server", "80", "--bind", "::"]);
        let metadata = TestProcess::spawn("metadata", &command, folder);
        let network = Self { bridge, prefix, _metadata: metadata };
        wait_until("the metadata service listens", Duration::from_secs(20), || {
            network.reaches_in(METADATA_NUMBER, METADATA[0], 0)
        });
        network
    }

    /// The address of what is not in any machine.
    pub(crate) fn gateway(&self) -> String {
        format!("{}.1", self.prefix)
    }

    pub(crate) fn namespace(&self, number: usize) -> String {
        namespace(&self.bridge, number)
    }

    pub(crate) fn plug_in(&self, number: usize) {
        plug_in(&self.bridge, &self.prefix, number);
    }

    /// Whether a user of a machine reaches the metadata service, at whichever address.
    pub(crate) fn reaches_metadata(&self, number: usize, uid: u32) -> bool {
        METADATA.iter().any(|address| self.reaches_in(number, address, uid))
    }

    pub(crate) fn reaches_in(&self, number: usize, address: &str, uid: u32) -> bool {
        let (namespace, id) = (self.namespace(number), uid.to_string());
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &namespace, "setpriv", "--reuid", &id, "--regid", &id, "--clear-groups"]);
        command.args(["timeout", "5", "bash", "-c", &format!("exec 3<>/dev/tcp/{address}/80")]);
        command.output().unwrap().status.success()
    }

    /// As whatever sets up a machine's network anew.
    pub(crate) fn without_rules(&self, number: usize) {
        for family in ["-4", "-6"] {
            ip(&["-n", &self.namespace(number), family, "rule", "del", "priority", "1"]);
        }
    }

    /// Power off: whatever runs in the machine is gone at once.
    pub(crate) fn power_off(&self, number: usize) {
        let pids = String::from_utf8(ip(&["netns", "pids", &self.namespace(number)]).stdout).unwrap();
        for pid in pids.lines().filter_map(|pid| pid.trim().parse().ok()).filter_map(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        ip(&["netns", "del", &self.namespace(number)]);
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.power_off(METADATA_NUMBER);
        ip(&["link", "del", &self.bridge]);
    }
}

fn namespace(bridge: &str, number: usize) -> String {
    format!("{bridge}-{number}")
}

fn plug_in(bridge: &str, prefix: &str, number: usize) {
    let (namespace, link) = (namespace(bridge, number), format!("{}x{number}", bridge.replace("efb", "v")));
    ip_does(&["netns", "add", &namespace]);
    ip_does(&["link", "add", &link, "type", "veth", "peer", "name", "eth0", "netns", &namespace]);
    ip_does(&["link", "set", &link, "master", bridge, "up"]);
    // Of the metadata service's networks, too, whose addresses AWS's routers know everywhere.
    let addresses = [
        format!("{prefix}.{}/24", 10 + number),
        format!("169.254.1.{}/16", 10 + number),
        format!("fd00:ec2::{:x}/64", 0x1000 + number),
    ];
    for address in addresses {
        ip_does(&["-n", &namespace, "addr", "add", &address, "dev", "eth0", "nodad"]);
    }
    ip_does(&["-n", &namespace, "link", "set", "eth0", "up"]);
    ip_does(&["-n", &namespace, "link", "set", "lo", "up"]);
}
