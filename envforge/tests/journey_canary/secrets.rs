//! Fifty secrets of a workspace: each reaches the one service that declares it, and comes out nowhere else.

use std::path::Path;

use reqwest::StatusCode;
use serde_json::{Value, json};

use super::canary::{Canaries, each_file_below, plain};
use super::world::World;
use super::{SignedIn, Wire, canary};

/// Of each of two services.
const OF_A_SERVICE: usize = 25;
pub(crate) const SERVICES: [&str; 2] = ["web", "worker"];
/// The one that is both the project's and a workspace's, for whoever reads everything.
pub(crate) const SHARED: &str = "CANARY_WEB_0";

/// What is planted.
pub(crate) struct Planted {
    /// By service, with their names.
    of: Vec<(&'static str, Vec<(String, String)>)>,
    all: Canaries,
}

fn name(service: &str, number: usize) -> String {
    format!("CANARY_{}_{number}", service.to_uppercase())
}

/// `secrets` of a service in `envforge.yml`.
pub(crate) fn declared(service: &str) -> String {
    let names: Vec<_> = (0..OF_A_SERVICE).map(|number| name(service, number)).collect();
    format!("    secrets: [{}]\n", names.join(", "))
}

impl Planted {
    pub(crate) fn new(canaries: &mut Canaries) -> Self {
        let mut all = Canaries::default();
        let mut plant = |service: &'static str| {
            let values = (0..OF_A_SERVICE).map(|number| (name(service, number), plain()));
            let values: Vec<_> = values.collect();
            for (name, value) in &values {
                canaries.plant(&format!("the secret {name} of {service}"), value);
                all.plant(&format!("the secret {name} of {service}"), value);
            }
            (service, values)
        };
        let of = SERVICES.map(&mut plant).into();
        Self { of, all }
    }

    /// Sets all of them, in every way that there is, and reads whatever can be read about them.
    pub(crate) async fn set(&self, world: &mut World, wire: &Wire, owner: &SignedIn) {
        for (service, values) in &self.of {
            for (number, (name, value)) in values.iter().enumerate() {
                let (kind, place) = if number % 2 == 0 { ("projects", "orders") } else { ("workspaces", "kept") };
                if number % 5 == 0 {
                    let flag = if number % 2 == 0 { "--project" } else { "--workspace" };
                    world.cli(0, &["secret", "set", name, flag, place], value);
                    continue;
                }
                let path = format!("/v1/orgs/acme/{kind}/{place}/secrets/{name}");
                let body = json!({ "secret": value, "services": [service] });
                let key = canary::plain();
                // The second one is answered by the first: the key is remembered, and not what came with it.
                for _ in 0..2 {
                    let request = wire.client.put(format!("{}{path}", wire.api)).bearer_auth(&owner.access);
                    let request = request.header("Idempotency-Key", &key).json(&body);
                    let (status, _, text) = wire.send(world, request, &[]).await;
                    assert_eq!(status, StatusCode::OK, "{text}");
                    assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["version"], 1, "{text}");
                    world.saw(format!("PUT {path}"), text);
                }
            }
        }
        // A workspace's own of the same name, and what is refused.
        let shared = self.of[0].1[0].1.clone();
        world.cli(0, &["secret", "set", SHARED, "--workspace", "main"], &shared);
        let long = format!("{shared}{}", "x".repeat(5_000));
        for body in [json!({ "secret": [shared] }), json!({ "secret": long }), json!({ "value": shared })] {
            let request = wire.client.put(format!("{}/v1/orgs/acme/projects/orders/secrets/WRONG", wire.api));
            let (status, _, text) = wire.send(world, request.bearer_auth(&owner.access).json(&body), &[]).await;
            assert!(status.is_client_error(), "{text}");
            world.saw("a refused secret", text);
        }
        world.cli(2, &["secret", "set", "TOO_LONG", "--project", "orders"], &long);
        // Who mistakes the value for the name is refused before anything is sent.
        let mistaken = ["secret", "set", "--project", "orders"];
        world.cli_without_arguments(2, &[&mistaken[..], &[&shared]].concat());
        world.cli_without_arguments(2, &[&mistaken[..], &["API_KEY", &shared]].concat());
        for args in [
            &["secret", "ls", "--project", "orders"][..],
            &["secret", "ls", "--workspace", "kept"],
            &["secret", "history", SHARED, "--project", "orders"],
        ] {
            world.cli(0, args, "");
        }
        world.cli_once(0, &["secret", "set", "SPARE", "--project", "orders"], &shared);
        world.cli_once(2, &["secret", "rm", "SPARE", "--project", "orders"], "");
        world.cli_once(0, &["secret", "rm", "SPARE", "--project", "orders", "--yes"], "");
    }

    /// Wakes the workspace, and looks at every process that came of it.
    pub(crate) fn reach_their_services(&self, world: &mut World) {
        world.cli(0, &["workspace", "wake", "kept"], "");
        world.cli(0, &["workspace", "show", "kept"], "");
        let mut seen = [0; SERVICES.len()];
        for (pid, environment) in world.processes() {
            let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            assert!(self.all.found_in(&command).is_empty(), "in the arguments of a process");
            let found = self.all.found_in(&environment);
            let of = |service: &str| {
                environment
                    .split(|byte| *byte == 0)
                    .any(|variable| variable == format!("ENVFORGE_SERVICE={service}").as_bytes())
            };
            let service = SERVICES.iter().position(|service| of(service)).filter(|_| !found.is_empty());
            match service {
                None => assert!(found.is_empty(), "a process of no service holds {found:?}"),
                Some(index) => {
                    let own = format!(" of {} (", SERVICES[index]);
                    assert!(found.iter().all(|canary| canary.contains(&own)), "{}: {found:?}", SERVICES[index]);
                    assert_eq!(found.len(), OF_A_SERVICE, "each of its own, as it is: {found:?}");
                    seen[index] += 1;
                }
            }
        }
        assert!(seen.iter().all(|count| *count > 0), "not both services run: {seen:?}");
        world.cli(0, &["workspace", "sleep", "kept"], "");
    }

    /// No file below `place` holds one, whatever it is for.
    pub(crate) fn are_in_no_file_of(&self, place: &Path) {
        let mut files = 0;
        each_file_below(place, |path, bytes| {
            let found = self.all.found_in(bytes);
            assert!(found.is_empty(), "{}: {found:?}", path.display());
            files += 1;
        });
        assert!(files > 50, "only {files} files below {}", place.display());
    }
}
