//! The stored form of a parsed `envforge.yml`. Apart from the file's own shape, which people write.

use envforge_domain::manifest::{
    Hook, Job, JobKind, Manifest, PathPrefix, Probe, Readiness, Resource, ResourceMode, Route, Service,
};
use envforge_domain::slug::ServiceName;
use envforge_domain::time::Millis;
use serde::{Deserializer, Serializer};
use serde_json::Value;

use super::wire::{Wire, kinds, object, text, tokens};

object! {
    Manifest {
        services: Vec<Service> = "services",
        resources: Vec<Resource> = "resources",
        jobs: Vec<Job> = "jobs",
        idle_sleep: Millis = "idle_sleep_ms",
        on_sleep: Option<Hook> = "on_sleep",
    }
}

object! {
    Service {
        name: ServiceName = "name",
        command: String = "command",
        directory: Option<String> = "directory",
        port_variable: Option<String> = "port_variable",
        route: Route = "route",
        readiness: Readiness = "readiness",
        cpu_millicores: u32 = "cpu_millicores",
        memory_mib: u32 = "memory_mib",
        secrets: Vec<String> = "secrets",
        environment: Vec<(String, String)> = "environment",
    }
}

kinds! {
    Route {
        "none" => None,
        "web" => Web { websockets: Vec<PathPrefix> = "websockets" },
        "api" => Api { prefix: PathPrefix = "prefix", websockets: Vec<PathPrefix> = "websockets" },
        "assets" => Assets { prefix: PathPrefix = "prefix" },
        "marketing" => Marketing { prefix: PathPrefix = "prefix" },
    }
}

object! {
    Readiness {
        probe: Probe = "probe",
        interval: Millis = "interval_ms",
        deadline: Millis = "deadline_ms",
    }
}

kinds! {
    Probe {
        "http" => Http { path: String = "path" },
        "tcp" => Tcp,
        "command" => Command { command: String = "command" },
        "none" => None,
    }
}

object! {
    Resource {
        name: String = "name",
        kind: String = "kind",
        mode: ResourceMode = "mode",
    }
}

tokens! {
    ResourceMode {
        "runtime" => Runtime,
        "shared" => Shared,
        "customer_cloud" => CustomerCloud,
    }
}

object! {
    Job {
        name: String = "name",
        command: String = "command",
        kind: JobKind = "kind",
        secrets: Vec<String> = "secrets",
    }
}

tokens! {
    JobKind {
        "test" => Test,
        "agent" => Agent,
    }
}

object! {
    Hook {
        command: String = "command",
        deadline: Millis = "deadline_ms",
    }
}

/// Jobs had no secrets.
pub(super) fn with_jobs_without_secrets(mut data: Value) -> Result<Value, String> {
    let jobs = data["manifest"]["jobs"].as_array_mut().ok_or("`jobs` must be a list")?;
    for job in jobs {
        job.as_object_mut().ok_or("a job must be an object")?.insert("secrets".to_owned(), Value::Array(Vec::new()));
    }
    Ok(data)
}

impl Wire for PathPrefix {
    fn to_wire<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }

    fn from_wire<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text(deserializer, |text| Self::parse(text).ok_or_else(|| format!("`{text}` is not a clean absolute path")))
    }
}

/// A variable of the environment: `["NAME","value"]`.
impl Wire for (String, String) {
    fn to_wire<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serde::Serialize::serialize(self, serializer)
    }

    fn from_wire<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        serde::Deserialize::deserialize(deserializer)
    }
}
