//! The agent of a machine of EC2 and the metadata service, which gives whoever reaches it the machine's role: in a network namespace
//! with a stand-in at its addresses. Where namespaces are not to be had the test says so.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "tests panic, and hand tools' paths on")]

#[path = "journey_machines/boot.rs"]
mod boot;
#[path = "journey_machines/network.rs"]
#[allow(dead_code, reason = "the story of machines uses the rest")]
mod network;

use std::path::Path;
use std::time::Duration;

use envforge_aws::UserData;
use envforge_domain::ids::{HostId, OrgId};
use envforge_testkit::{TestDir, TestProcess, wait_until};
use uuid::Uuid;

use network::{METADATA, Network, ip};

const MACHINE: usize = 1;
const DEADLINE: Duration = Duration::from_secs(30);
const GUARDED: &str = "metadata service is root's alone";

fn user_data() -> String {
    let user_data = UserData {
        deployment: "test".parse().unwrap(),
        org: OrgId::from_uuid(Uuid::from_u128(1)),
        host: HostId::from_uuid(Uuid::from_u128(2)),
        control_plane: "https://127.0.0.1:9".parse().unwrap(),
        region: "eu-central-1".to_owned(),
    };
    user_data.text()
}

/// Why the agent of a machine did not start.
fn refused(name: &str, disk: &Path, network: &Network) -> String {
    let mut agent = TestProcess::spawn(name, &boot::unit(disk, &network.namespace(MACHINE)), disk);
    assert!(!agent.wait(DEADLINE).success());
    let said = agent.stderr();
    assert!(!said.contains(GUARDED), "{said}");
    said
}

#[test]
fn an_agent_on_ec2_does_not_start_where_others_than_root_reach_the_machines_role() {
    if let Some(why) = network::missing() {
        println!("{why}: nothing was tested");
        return;
    }
    let dir = TestDir::new();
    let network = Network::new(dir.path());
    network.plug_in(MACHINE);
    let (bare, whole) = (dir.join("bare"), dir.join("whole"));
    boot::cloud_init(&whole, &user_data());
    boot::cloud_init(&bare, &user_data());
    std::fs::remove_dir_all(bare.join("etc/systemd")).unwrap();
    let somebody = || METADATA.map(|address| network.reaches_in(MACHINE, address, 1_900_000_001));

    // Without the rule.
    assert_eq!(somebody(), [true, true]);
    let said = refused("bare", &bare, &network);
    assert!(said.contains(METADATA[0]) && said.contains("--allow-metadata-service"), "{said}");

    // By what user data brings, once and again.
    for name in ["first", "again"] {
        let agent = TestProcess::spawn(name, &boot::unit(&whole, &network.namespace(MACHINE)), &whole);
        wait_until("a look at the metadata service", DEADLINE, || agent.stderr().contains(GUARDED));
        assert_eq!(somebody(), [false, false], "{name}");
        assert!(METADATA.iter().all(|address| network.reaches_in(MACHINE, address, 0)), "root needs it");
    }

    // One address is enough, and so is not to know.
    let namespace = network.namespace(MACHINE);
    ip(&["-n", &namespace, "-6", "rule", "del", "priority", "1"]);
    assert_eq!(somebody(), [false, true]);
    let said = refused("ipv6", &bare, &network);
    assert!(said.contains(METADATA[1]), "{said}");
    network.without_rules(MACHINE);
    ip(&["-n", &namespace, "route", "add", "blackhole", METADATA[0]]);
    ip(&["-n", &namespace, "-6", "rule", "add", "priority", "1", "prohibit", "to", METADATA[1]]);
    let said = refused("unknown", &bare, &network);
    assert!(said.contains("cannot be told"), "{said}");
    network.power_off(MACHINE);
}
