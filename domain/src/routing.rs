//! Which service answers a path of a workspace host, and which route family that is.
//!
//! One rule for the gateway, the handoff card and the limits of a link. Blocked is what no service declares: the
//! boundary is the upstream service, never a guess about paths (SPEC, rule 3).

use crate::dev_link::{RouteFamilies, RouteFamily};
use crate::manifest::{Manifest, PathPrefix, Route};
use crate::slug::ServiceName;

/// The routes of one host: one web service and what shares its origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteTable {
    base: ServiceName,
    base_websockets: Vec<PathPrefix>,
    /// Longest prefix first.
    prefixed: Vec<PrefixedRoute>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct PrefixedRoute {
    prefix: PathPrefix,
    service: ServiceName,
    family: RouteFamily,
    websockets: Vec<PathPrefix>,
}

/// Where a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Routed<'a> {
    pub service: &'a ServiceName,
    pub family: RouteFamily,
}

impl RouteTable {
    /// The table of `service`'s host; `None` unless the manifest declares it as a web service.
    pub fn of(manifest: &Manifest, service: &ServiceName) -> Option<Self> {
        let base = manifest.service(service)?;
        let Route::Web { websockets } = &base.route else { return None };
        let mut prefixed: Vec<_> = manifest
            .services
            .iter()
            .filter_map(|other| {
                let (prefix, family, websockets) = match &other.route {
                    Route::None | Route::Web { .. } => return None,
                    Route::Api { prefix, websockets } => (prefix, RouteFamily::Api, websockets.clone()),
                    Route::Assets { prefix } => (prefix, RouteFamily::Assets, Vec::new()),
                    Route::Marketing { prefix } => (prefix, RouteFamily::Marketing, Vec::new()),
                };
                Some(PrefixedRoute { prefix: prefix.clone(), service: other.name.clone(), family, websockets })
            })
            .collect();
        prefixed.sort_by_key(|route| std::cmp::Reverse(route.prefix.as_str().len()));
        Some(Self { base: base.name.clone(), base_websockets: websockets.clone(), prefixed })
    }

    /// Routes an already validated path. `upgrade` for a WebSocket handshake, which only declared paths accept.
    pub fn route(&self, path: &str, upgrade: bool) -> Option<Routed<'_>> {
        let found = self.prefixed.iter().find(|route| route.prefix.matches(path));
        let (service, family, websockets) = match found {
            Some(route) => (&route.service, route.family, &route.websockets),
            None => (&self.base, RouteFamily::Web, &self.base_websockets),
        };
        if !upgrade {
            return Some(Routed { service, family });
        }
        let declared = websockets.iter().any(|prefix| prefix.matches(path));
        declared.then_some(Routed { service, family: RouteFamily::Websockets })
    }

    /// The families that this host offers at all.
    pub fn families(&self) -> RouteFamilies {
        let sockets =
            !self.base_websockets.is_empty() || self.prefixed.iter().any(|route| !route.websockets.is_empty());
        let families =
            self.prefixed.iter().fold(RouteFamilies::NONE.with(RouteFamily::Web), |all, route| all.with(route.family));
        if sockets { families.with(RouteFamily::Websockets) } else { families }
    }

    /// Every service that can be reached through this host.
    pub fn services(&self) -> impl Iterator<Item = &ServiceName> {
        std::iter::once(&self.base).chain(self.prefixed.iter().map(|route| &route.service))
    }
}
