//! The environment of a service, built from nothing: what is not named here, in the manifest or in the host's
//! configuration never reaches a service, so nothing of the control plane can leak into one.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use envforge_domain::manifest::Service;
use envforge_domain::slug::ServiceName;

use crate::config::Config;
use crate::order::WakeOrder;
use crate::process::Marker;

/// Carries the runtime's marker. Its value names nothing and opens nothing.
pub(crate) const MARKER_VARIABLE: &str = "ENVFORGE_RUNTIME";
pub(crate) const SERVICE_VARIABLE: &str = "ENVFORGE_SERVICE";

/// Variables by name.
#[derive(Clone, Default)]
pub(crate) struct Environment(BTreeMap<String, String>);

impl Environment {
    pub(crate) fn set(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.0.insert(name.into(), value.into());
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&String, &String)> {
        self.0.iter()
    }
}

/// Whether EnvForge sets the variable itself, so that neither manifest nor configuration may.
pub(crate) fn is_reserved(name: &str) -> bool {
    name.starts_with("ENVFORGE_")
}

pub(crate) fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|first: char| first.is_ascii_digit())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// What the processes of one runtime have in common.
pub(crate) struct Surroundings<'a> {
    pub(crate) config: &'a Config,
    pub(crate) order: &'a WakeOrder,
    pub(crate) marker: &'a Marker,
    /// Private to the workspace; kept over sleep.
    pub(crate) home: &'a Path,
    /// Where each service has a home of its own, below this.
    pub(crate) homes: Option<&'a Path>,
    /// For what a service wants to keep over sleep; outside the checkout.
    pub(crate) data: &'a Path,
    /// Of those that listen.
    pub(crate) addresses: &'a BTreeMap<ServiceName, SocketAddr>,
}

impl Surroundings<'_> {
    /// For `on_sleep` and whatever belongs to the runtime as a whole.
    pub(crate) fn of_runtime(&self) -> Environment {
        let mut environment = self.base();
        self.own(&mut environment);
        environment
    }

    /// Later lines win: a manifest may set `LANG`, but never a reserved variable or the port.
    pub(crate) fn of_service(&self, service: &Service) -> Environment {
        let mut environment = self.base();
        if let Some(homes) = self.homes {
            environment.set("HOME", homes.join(service.name.as_str()).to_string_lossy());
        }
        environment.set("HOST", self.config.bind_of(service).to_string());
        for (name, value) in &service.environment {
            environment.set(name, value);
        }
        for name in &service.secrets {
            if let Some(value) = self.order.secrets.get(name) {
                environment.set(name, value.expose());
            }
        }
        environment.0.retain(|name, _| !is_reserved(name));
        if let (Some(variable), Some(address)) = (&service.port_variable, self.addresses.get(&service.name)) {
            environment.set(variable, address.port().to_string());
        }
        if let Some(host) = self.order.public_hosts.get(&service.name) {
            environment.set("ENVFORGE_PUBLIC_HOST", host);
            // Vite refuses unknown Host headers; this is its way to be told one from outside.
            environment.set("__VITE_ADDITIONAL_SERVER_ALLOWED_HOSTS", without_port(host));
        }
        environment.set(SERVICE_VARIABLE, service.name.as_str());
        self.own(&mut environment);
        environment
    }

    fn base(&self) -> Environment {
        let mut environment = Environment::default();
        for (name, value) in &self.config.service_environment {
            environment.set(name, value);
        }
        environment.set("PATH", &self.config.path);
        environment.set("LANG", "C.UTF-8");
        environment.set("HOME", self.home.to_string_lossy());
        environment
    }

    fn own(&self, environment: &mut Environment) {
        environment.set("ENVFORGE_WORKSPACE", self.order.workspace.to_string());
        environment.set("ENVFORGE_DATA_DIR", self.data.to_string_lossy());
        environment.set(MARKER_VARIABLE, self.marker.as_str());
        for (service, address) in self.addresses {
            let name = service.as_str().to_ascii_uppercase().replace('-', "_");
            environment.set(format!("ENVFORGE_SERVICE_{name}_HOST"), address.ip().to_string());
            environment.set(format!("ENVFORGE_SERVICE_{name}_PORT"), address.port().to_string());
        }
    }
}

/// `host:80` without the port.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_loses_its_port_and_nothing_else() {
        for (host, name) in
            [("web--a--b.dev.localhost:7080", "web--a--b.dev.localhost"), ("a.b", "a.b"), ("[::1]:80", "[::1]")]
        {
            assert_eq!(without_port(host), name);
        }
    }

    #[test]
    fn names_that_no_environment_carries_are_recognized() {
        assert!(is_name("DATABASE_URL") && is_name("_x1"));
        assert!(!is_name("") && !is_name("1A") && !is_name("A=B") && !is_name("A B"));
    }
}
