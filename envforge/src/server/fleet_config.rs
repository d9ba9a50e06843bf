//! The file that says which machines the fleet may ask for, read and checked before anything is opened.
//!
//! Not here: what is done with it (`fleet`), what a policy means (reactors).

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use envforge_aws::{AwsConfig, Deployment, Ec2Config, KeyArn, PROVIDER, SsmConfig};
use envforge_domain::host::Capacity;
use envforge_domain::ids::OrgId;
use envforge_domain::limits::SHELL_OPEN_MAX;
use envforge_domain::time::Millis;
use envforge_reactors::fleet::{FleetPolicies, FleetPolicy, Shape};
use serde::Deserialize;

use crate::cli::failure::Failure;

/// No such file comes near it.
const BYTES_MAX: u64 = 1 << 20;
const BOOT_DEADLINE_SECONDS: u64 = 300;
const AGENT_DEADLINE_SECONDS: u64 = 900;
const GRACE_SECONDS: u64 = 600;
const GRACE_RANGE: std::ops::RangeInclusive<u64> = 1..=86_400;
/// AWS looks once a minute ("Status checks for Amazon EC2 instances"), and one look that fails says little.
const IMPAIRED_SECONDS: u64 = 300;
const START_PATIENCE_SECONDS: u64 = 6 * 3_600;
/// A connection to a shell is open for no longer.
const SHELL_PATIENCE_SECONDS: u64 = SHELL_OPEN_MAX.as_secs();
const WEEK_SECONDS: u64 = 7 * 86_400;
/// In place of a shape for shells.
const NO_SHELLS: &str = "none";
const LOOK_SECONDS: u64 = 5;
const VOLUME_GIB: u16 = 40;
/// Of Amazon Linux.
const ROOT_DEVICE: &str = "/dev/xvda";
const MACHINES_MAX: usize = 1_000;

/// Everything that the fleet starts with.
pub(crate) struct FleetConfig {
    pub(crate) ec2: Ec2Config,
    pub(crate) ssm: SsmConfig,
    pub(crate) policies: FleetPolicies,
    pub(crate) look_interval: Duration,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    deployment: String,
    region: String,
    agents_url: String,
    image: String,
    #[serde(default)]
    subnets: Vec<String>,
    #[serde(default)]
    security_groups: Vec<String>,
    root_device: Option<String>,
    volume_gib: Option<u16>,
    volume_key: Option<String>,
    secrets_key: Option<String>,
    look_seconds: Option<u64>,
    machines: Machines,
    shapes: BTreeMap<String, Size>,
    #[serde(default)]
    organizations: BTreeMap<String, Organization>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Machines {
    shapes: Vec<String>,
    shell_shape: Option<String>,
    machines_max: usize,
    grace_seconds: Option<u64>,
    #[serde(default)]
    warm: usize,
    #[serde(default)]
    hibernate: bool,
    boot_deadline_seconds: Option<u64>,
    agent_deadline_seconds: Option<u64>,
    impaired_seconds: Option<u64>,
    start_patience_seconds: Option<u64>,
    shell_patience_seconds: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Size {
    cpu_millicores: u32,
    memory_mib: u32,
    #[serde(default)]
    hibernates: bool,
}

/// What differs for one organization.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Organization {
    secrets_key: Option<String>,
    security_groups: Option<Vec<String>>,
    machines_max: Option<usize>,
    grace_seconds: Option<u64>,
    warm: Option<usize>,
}

impl FleetConfig {
    /// What the file says.
    ///
    /// # Errors
    /// All its mistakes at once.
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let wrong = |what: String| {
            let hint = "docs/hosts-aws.md shows a whole file and says what each line means";
            Failure::usage(format!("{}: {what}", path.display()), hint)
        };
        let length = std::fs::metadata(path).map_err(|error| wrong(error.to_string()))?.len();
        if length > BYTES_MAX {
            return Err(wrong(format!("has more than {BYTES_MAX} bytes")));
        }
        let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
        let settings: Settings = toml::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        settings.check().map_err(|mistakes| {
            let told: Vec<_> = mistakes.iter().map(|mistake| format!("  {mistake}")).collect();
            wrong(format!("{} mistakes\n{}", mistakes.len(), told.join("\n")))
        })
    }
}

/// Collects what is wrong, so that all of it is told at once.
#[derive(Default)]
struct Mistakes(Vec<String>);

impl Mistakes {
    fn add(&mut self, what: &str, why: impl std::fmt::Display) {
        self.0.push(format!("`{what}`: {why}"));
    }

    fn parsed<T>(&mut self, what: &str, text: &str) -> Option<T>
    where
        T: FromStr,
        T::Err: std::fmt::Display,
    {
        text.parse().map_err(|error| self.add(what, error)).ok()
    }

    fn begins(&mut self, what: &str, text: &str, prefix: &str) {
        let rest = text.strip_prefix(prefix).unwrap_or_default();
        if rest.is_empty() || !rest.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            self.add(what, format!("`{text}` is none; `{prefix}` and letters and digits"));
        }
    }

    fn within(&mut self, what: &str, number: u64, range: std::ops::RangeInclusive<u64>) {
        if !range.contains(&number) {
            self.add(what, format!("{number} is not within {} to {}", range.start(), range.end()));
        }
    }
}

impl Settings {
    fn check(self) -> Result<FleetConfig, Vec<String>> {
        let mut mistakes = Mistakes::default();
        let deployment: Option<Deployment> = mistakes.parsed("deployment", &self.deployment);
        let control_plane = mistakes.parsed("agents_url", &self.agents_url);
        let volume_key = self.volume_key.as_ref().and_then(|key| mistakes.parsed::<KeyArn>("volume_key", key));
        if !self.region.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
            || self.region.is_empty()
        {
            mistakes.add("region", format!("`{}` is no region; eu-central-1 is one", self.region));
        }
        mistakes.begins("image", &self.image, "ami-");
        self.subnets.iter().for_each(|subnet| mistakes.begins("subnets", subnet, "subnet-"));
        self.security_groups.iter().for_each(|group| mistakes.begins("security_groups", group, "sg-"));
        let root_device = self.root_device.clone().unwrap_or_else(|| ROOT_DEVICE.to_owned());
        if !root_device
            .strip_prefix("/dev/")
            .is_some_and(|name| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric()))
        {
            mistakes.add("root_device", format!("`{root_device}` is none; `/dev/xvda` is one, as the image names it"));
        }
        let volume_gib = self.volume_gib.unwrap_or(VOLUME_GIB);
        mistakes.within("volume_gib", volume_gib.into(), 8..=16_000);
        let look_seconds = self.look_seconds.unwrap_or(LOOK_SECONDS);
        mistakes.within("look_seconds", look_seconds, 1..=300);
        let default = self.policy(&mut mistakes);
        let (mut of, mut key_of, mut security_groups_of) = (HashMap::new(), BTreeMap::new(), BTreeMap::new());
        for (name, differs) in &self.organizations {
            let Some(org) = mistakes.parsed::<OrgId>("organizations", name) else { continue };
            let at = |key: &str| format!("organizations.{name}.{key}");
            if let Some(seconds) = differs.grace_seconds {
                mistakes.within(&at("grace_seconds"), seconds, GRACE_RANGE);
            }
            if let Some(groups) = &differs.security_groups {
                groups.iter().for_each(|group| mistakes.begins(&at("security_groups"), group, "sg-"));
                security_groups_of.insert(org, groups.clone());
            }
            let grace = differs.grace_seconds.map_or(default.grace, Millis::from_secs);
            let machines_max = differs.machines_max.unwrap_or(default.machines_max);
            let warm = differs.warm.unwrap_or(default.warm);
            bounded(
                &mut mistakes,
                &format!("organizations.{name}."),
                machines_max,
                warm,
                default.shell_shape.is_some(),
            );
            of.insert(org, FleetPolicy { grace, machines_max, warm, ..default.clone() });
            match differs.secrets_key.as_ref().or(self.secrets_key.as_ref()) {
                Some(key) => {
                    key_of.insert(org, key.clone());
                }
                None => mistakes.add(
                    &at("secrets_key"),
                    "enrolment tokens are encrypted by a customer-managed key: name the organization's, or one for all at the top",
                ),
            }
        }
        if self.secrets_key.is_none() && self.organizations.is_empty() {
            mistakes.add(
                "secrets_key",
                "no organization has a key, so none could have a machine: name one for all, or organizations",
            );
        }
        let default = FleetPolicy {
            // Without a key for its tokens an organization can have no machine.
            machines_max: if self.secrets_key.is_some() { default.machines_max } else { 0 },
            ..default
        };
        let (Some(deployment), Some(control_plane), true) = (deployment, control_plane, mistakes.0.is_empty()) else {
            return Err(mistakes.0);
        };
        let aws = AwsConfig::in_region(&self.region);
        let hibernating = self.shapes.iter().filter(|(_, size)| size.hibernates).map(|(name, _)| name.clone());
        let ec2 = Ec2Config {
            aws: aws.clone(),
            deployment: deployment.clone(),
            image: self.image,
            subnets: self.subnets,
            security_groups: self.security_groups,
            security_groups_of,
            root_device,
            volume_gib,
            volume_key,
            hibernating: hibernating.collect(),
            control_plane,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let ssm = SsmConfig { aws, deployment, key: self.secrets_key, key_of };
        let look_interval = Duration::from_secs(look_seconds);
        Ok(FleetConfig { ec2, ssm, policies: FleetPolicies { default, of }, look_interval })
    }

    fn policy(&self, mistakes: &mut Mistakes) -> FleetPolicy {
        let machines = &self.machines;
        if machines.shapes.is_empty() {
            mistakes.add("machines.shapes", "is empty: name one at least, the preferred one first");
        }
        for (name, size) in &self.shapes {
            let at = |key: &str| format!("shapes.\"{name}\".{key}");
            mistakes.within(&at("cpu_millicores"), size.cpu_millicores.into(), 100..=10_000_000);
            mistakes.within(&at("memory_mib"), size.memory_mib.into(), 64..=100_000_000);
        }
        let grace = machines.grace_seconds.unwrap_or(GRACE_SECONDS);
        mistakes.within("machines.grace_seconds", grace, GRACE_RANGE);
        let deadline = machines.boot_deadline_seconds.unwrap_or(BOOT_DEADLINE_SECONDS);
        mistakes.within("machines.boot_deadline_seconds", deadline, 10..=3_600);
        let agent = machines.agent_deadline_seconds.unwrap_or(AGENT_DEADLINE_SECONDS);
        mistakes.within("machines.agent_deadline_seconds", agent, 10..=86_400);
        let impaired = machines.impaired_seconds.unwrap_or(IMPAIRED_SECONDS);
        mistakes.within("machines.impaired_seconds", impaired, IMPAIRED_SECONDS..=86_400);
        let start_patience = machines.start_patience_seconds.unwrap_or(START_PATIENCE_SECONDS);
        mistakes.within("machines.start_patience_seconds", start_patience, 600..=WEEK_SECONDS);
        let shell_patience = machines.shell_patience_seconds.unwrap_or(SHELL_PATIENCE_SECONDS);
        mistakes.within("machines.shell_patience_seconds", shell_patience, 0..=WEEK_SECONDS);
        let shapes: Vec<Shape> =
            machines.shapes.iter().filter_map(|name| self.shape(mistakes, "machines.shapes", name)).collect();
        let shell_shape = match machines.shell_shape.as_deref() {
            Some(NO_SHELLS) => None,
            Some(name) => self.shape(mistakes, "machines.shell_shape", name),
            // A shell is always there, unless somebody says otherwise.
            None => {
                shapes.iter().min_by_key(|shape| (shape.capacity.memory_mib, shape.capacity.cpu_millicores)).cloned()
            }
        };
        bounded(mistakes, "machines.", machines.machines_max, machines.warm, shell_shape.is_some());
        FleetPolicy {
            provider: PROVIDER.to_owned(),
            shapes,
            shell_shape,
            grace: Millis::from_secs(grace),
            warm: machines.warm,
            hibernate: machines.hibernate,
            machines_max: machines.machines_max,
            boot_deadline: Millis::from_secs(deadline),
            agent_deadline: Millis::from_secs(agent),
            impaired_after: Millis::from_secs(impaired),
            start_patience: Millis::from_secs(start_patience),
            shell_patience: Millis::from_secs(shell_patience),
        }
    }

    fn shape(&self, mistakes: &mut Mistakes, what: &str, name: &str) -> Option<Shape> {
        let Some(size) = self.shapes.get(name) else {
            mistakes.add(what, format!("[shapes.\"{name}\"] is missing, which says what workspaces may take of one"));
            return None;
        };
        let capacity = Capacity { cpu_millicores: size.cpu_millicores, memory_mib: size.memory_mib };
        Some(Shape { name: name.to_owned(), capacity, hibernates: size.hibernates })
    }
}

fn bounded(mistakes: &mut Mistakes, at: &str, machines_max: usize, warm: usize, shells: bool) {
    if machines_max == 1 && shells {
        let why = "1 leaves none for runtimes beside the machine for shells: 2 or more, or `shell_shape = \"none\"`";
        mistakes.add(&format!("{at}machines_max"), why);
    }
    if machines_max > MACHINES_MAX {
        mistakes.add(&format!("{at}machines_max"), format!("{machines_max} is more than {MACHINES_MAX}"));
    }
    if warm > machines_max {
        mistakes.add(&format!("{at}warm"), format!("{warm} is more than `machines_max`, {machines_max}"));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const GOOD: &str = r#"
deployment = "production"
region = "eu-central-1"
agents_url = "https://agents.envforge.example:7090"
image = "ami-0123456789abcdef0"
subnets = ["subnet-1a"]
security_groups = ["sg-1"]
secrets_key = "alias/envforge"

[machines]
shapes = ["m7g.large", "m7g.xlarge"]
machines_max = 6

[shapes."m7g.large"]
cpu_millicores = 8000
memory_mib = 7168

[shapes."m7g.xlarge"]
cpu_millicores = 16000
memory_mib = 15360
hibernates = true

[organizations.org_0190000000007000800000000000002a]
secrets_key = "alias/acme"
security_groups = ["sg-2"]
machines_max = 20
"#;

    fn read(text: &str) -> Result<FleetConfig, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fleet.toml");
        std::fs::write(&path, text).unwrap();
        FleetConfig::read(&path).map_err(|failure| failure.to_string())
    }

    #[test]
    fn a_whole_file_says_what_organizations_get() {
        let config = read(GOOD).ok().unwrap();
        let default = &config.policies.default;
        assert_eq!((default.grace, default.boot_deadline), (Millis::from_minutes(10), Millis::from_minutes(5)));
        assert_eq!(default.agent_deadline, Millis::from_minutes(15));
        assert_eq!((default.shapes.len(), default.machines_max), (2, 6));
        assert_eq!((default.impaired_after, default.start_patience), (Millis::from_minutes(5), Millis::from_hours(6)));
        assert_eq!(default.shell_patience, Millis::from_hours(24));
        let (org, own) = config.policies.of.iter().next().unwrap();
        assert_eq!((own.machines_max, own.grace), (20, default.grace));
        assert_eq!(config.ssm.key_of[org], "alias/acme");
        assert_eq!(config.ec2.security_groups_of[org], ["sg-2"]);
        assert_eq!(config.ec2.hibernating, ["m7g.xlarge".to_owned()].into());
    }

    #[test]
    fn shells_have_a_machine_of_the_smallest_shape_unless_the_file_says_otherwise() {
        let shell_shape = |line: &str| {
            let text = GOOD.replace("machines_max = 6", &format!("machines_max = 6\n{line}"));
            read(&text).map(|config| config.policies.default.shell_shape.map(|shape| shape.name))
        };
        assert_eq!(shell_shape(""), Ok(Some("m7g.large".to_owned())));
        assert_eq!(shell_shape("shell_shape = \"m7g.xlarge\""), Ok(Some("m7g.xlarge".to_owned())));
        assert_eq!(shell_shape("shell_shape = \"none\""), Ok(None));
        let told = shell_shape("shell_shape = \"t4g.nano\"").unwrap_err();
        assert!(told.contains("`machines.shell_shape`: [shapes.\"t4g.nano\"] is missing"), "{told}");
        let told = read(&GOOD.replace("machines_max = 6", "machines_max = 1")).err().unwrap();
        assert!(told.contains("`machines.machines_max`: 1 leaves none for runtimes"), "{told}");
        assert!(read(&GOOD.replace("machines_max = 6", "machines_max = 1\nshell_shape = \"none\"")).is_ok());
    }

    #[test]
    fn without_a_key_for_all_only_named_organizations_have_machines() {
        let config = read(&GOOD.replace("secrets_key = \"alias/envforge\"\n", "")).ok().unwrap();
        assert_eq!(config.policies.default.machines_max, 0);
        assert_eq!(config.policies.of.values().next().unwrap().machines_max, 20);
    }

    #[test]
    fn every_mistake_is_told_at_once_with_where_and_what_would_be_right() {
        let wrong = GOOD
            .replace("https://agents", "http://agents")
            .replace("ami-0123456789abcdef0\"", "debian\"\nroot_device = \"sda1\"")
            .replace("\"m7g.large\", ", "\"m7g.huge\", ")
            .replace("machines_max = 6", "machines_max = 6\nwarm = 7\ngrace_seconds = 0\nimpaired_seconds = 15")
            .replace("secrets_key = \"alias/acme\"", "secrets_key = \"alias/acme\"\nwarm = 21");
        let told = read(&wrong).err().unwrap();
        for part in [
            "fleet.toml",
            "8 mistakes",
            "`machines.impaired_seconds`: 15 is not within 300 to 86400",
            "`root_device`: `sda1` is none; `/dev/xvda`",
            "`agents_url`",
            "https://",
            "`image`: `debian` is none; `ami-`",
            "[shapes.\"m7g.huge\"] is missing",
            "`machines.grace_seconds`: 0 is not within 1 to 86400",
            "`machines.warm`: 7 is more than `machines_max`, 6",
            "organizations.org_0190000000007000800000000000002a.warm",
        ] {
            assert!(told.contains(part), "{part}: {told}");
        }
        let keyless =
            GOOD.replace("secrets_key = \"alias/envforge\"\n", "").replace("secrets_key = \"alias/acme\"\n", "");
        assert!(read(&keyless).err().unwrap().contains("customer-managed key"));
    }

    #[test]
    fn what_is_misspelt_or_left_out_is_told_with_its_line() {
        let misspelt = read(&GOOD.replace("image =", "ami =")).err().unwrap();
        assert!(misspelt.contains("line 5") && misspelt.contains("unknown field `ami`"), "{misspelt}");
        let missing = read(&GOOD.replace("machines_max = 6\n", "")).err().unwrap();
        assert!(missing.contains("machines_max"), "{missing}");
        assert!(FleetConfig::read(Path::new("/nowhere/fleet.toml")).err().unwrap().to_string().contains("/nowhere"));
    }
}
