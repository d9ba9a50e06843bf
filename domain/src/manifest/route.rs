//! Reading routes, and the rules that hold between the routes of all services.
//!
//! Owns: prefixes are unique and not the root, sockets lie where their service answers, the number of routes is bounded.
//! Not here: choosing the service of a request (the gateway does, by the longest prefix).

use super::document::{Content, Node};
use super::error::{ErrorKind, Position, quoted};
use super::keys;
use super::reader::{Field, Reader, describe};
use super::{PathPrefix, Route};
use crate::limits;

/// What the services read so far have declared.
#[derive(Default)]
pub(super) struct Declared {
    routed: usize,
    websockets: usize,
    prefixes: Vec<Placed>,
    /// Sockets of services with `web`.
    web_sockets: Vec<Placed>,
}

struct Placed {
    prefix: PathPrefix,
    service: String,
    at: Position,
    path: String,
}

const KINDS: [&str; 4] = ["web", "api", "assets", "marketing"];
const EXPECTED: &str = "a route is `web`, `none`, or a mapping with one of `web: {}`, `api: /api`, `assets: /assets` and `marketing: /about`";

impl Reader {
    pub(super) fn route(&mut self, field: Field<'_>, listens: bool, service: &str) -> Option<Route> {
        let at = field.node.at;
        let route = match &field.node.content {
            Content::Scalar { text, .. } if text == "none" => return Some(Route::None),
            Content::Scalar { text, .. } if text == "web" => Some(Route::Web { websockets: Vec::new() }),
            Content::Scalar { text, .. } if KINDS.contains(&text.as_ref()) => {
                let expected = format!("it needs the prefix it answers, such as `route: {{ {text}: /{text} }}`");
                self.refuse(at, &field.path, ErrorKind::InvalidValue, describe(&field.node), expected);
                None
            }
            Content::Scalar { .. } => {
                self.refuse(at, &field.path, ErrorKind::InvalidValue, describe(&field.node), EXPECTED);
                None
            }
            _ => self.route_mapping(field.node, &field.path, service),
        };
        if !listens {
            let expected = "a service with a route needs a port; remove `port: none` or the route";
            self.refuse(at, &field.path, ErrorKind::Conflict, "a route of a service with `port: none`", expected);
        }
        self.routes.routed += 1;
        route
    }

    fn route_mapping(&mut self, node: Node<'_>, path: &str, service: &str) -> Option<Route> {
        let mut fields = self.fields(node, path, &keys::ROUTE, EXPECTED)?;
        let kinds: Vec<&str> = KINDS.into_iter().filter(|kind| fields.has(kind)).collect();
        if kinds.len() > 1 {
            let found = format!("{} together", keys::list(&kinds));
            self.refuse(fields.at, path, ErrorKind::Conflict, found, "a service has one route; keep one of them");
        } else if kinds.is_empty() {
            self.refuse(fields.at, path, ErrorKind::MissingKey, "a route of no kind", EXPECTED);
        }
        let web = fields.take("web").map(|field| self.empty(&field));
        let api = fields.take("api").map(|field| self.own_prefix(&field, service));
        let assets = fields.take("assets").map(|field| self.own_prefix(&field, service));
        let marketing = fields.take("marketing").map(|field| self.own_prefix(&field, service));
        let sockets = fields.take("websockets");
        if kinds.len() != 1 {
            return None;
        }
        if let Some(field) = sockets.as_ref().filter(|_| assets.is_some() || marketing.is_some()) {
            let expected = "only `web` and `api` take WebSockets; remove it or choose one of these";
            let found = format!("`websockets` beside `{}`", kinds.first().copied().unwrap_or_default());
            self.refuse(field.key_at, &field.path, ErrorKind::Conflict, found, expected);
        }
        let websockets = match sockets {
            Some(field) => self.websockets(field, api.as_ref().and_then(Option::as_ref), web.is_some(), service),
            None => Some(Vec::new()),
        };
        match (web, api, assets, marketing) {
            (Some(web), ..) => web.zip(websockets).map(|((), websockets)| Route::Web { websockets }),
            (_, Some(api), ..) => api.zip(websockets).map(|(prefix, websockets)| Route::Api { prefix, websockets }),
            (_, _, Some(assets), _) => assets.map(|prefix| Route::Assets { prefix }),
            (.., Some(marketing)) => marketing.map(|prefix| Route::Marketing { prefix }),
            (None, None, None, None) => None,
        }
    }

    /// The value of `web`, which says nothing more.
    fn empty(&mut self, field: &Field<'_>) -> Option<()> {
        match &field.node.content {
            Content::Map(entries) if entries.is_empty() => Some(()),
            _ => {
                let expected =
                    "write `web: {}`; a web route answers its own host from `/`, and `websockets` stands beside it";
                self.wrong_type(&field.node, &field.path, expected);
                None
            }
        }
    }

    fn prefix(&mut self, node: &Node<'_>, path: &str) -> Option<PathPrefix> {
        let text = self.text(node, path, false)?;
        if let Some(prefix) = PathPrefix::parse(&text) {
            return Some(prefix);
        }
        let clean: Vec<&str> = text.split('/').filter(|segment| !segment.is_empty()).collect();
        let clean = format!("/{}", clean.join("/"));
        let expected = if clean.len() > 1 && PathPrefix::parse(&clean).is_some() {
            format!("write {}", quoted(&clean))
        } else {
            "a path such as `/api/v1`: segments of letters, digits, `-`, `.`, `_` and `~`, at most 200 characters, no pattern".to_owned()
        };
        self.refuse(node.at, path, ErrorKind::InvalidValue, quoted(&text), expected);
        None
    }

    /// The prefix of an `api`, `assets` or `marketing` route.
    fn own_prefix(&mut self, field: &Field<'_>, service: &str) -> Option<PathPrefix> {
        let (at, path) = (field.node.at, field.path.clone());
        let prefix = self.prefix(&field.node, &path)?;
        if prefix.as_str() == "/" {
            let expected = "`/` belongs to the `web` route; choose a prefix below it, such as `/api`";
            self.refuse(at, &path, ErrorKind::InvalidValue, "`/`", expected);
            return None;
        }
        if let Some(first) = self.routes.prefixes.iter().find(|first| first.prefix == prefix) {
            let expected = format!(
                "the service {} has it on line {}; prefixes must differ, though one may lie below another",
                quoted(&first.service),
                first.at.line
            );
            self.refuse(at, &path, ErrorKind::Conflict, quoted(prefix.as_str()), expected);
            return None;
        }
        self.routes.prefixes.push(Placed { prefix: prefix.clone(), service: service.to_owned(), at, path });
        Some(prefix)
    }

    fn websockets(
        &mut self,
        field: Field<'_>,
        api: Option<&PathPrefix>,
        web: bool,
        service: &str,
    ) -> Option<Vec<PathPrefix>> {
        let Content::List(items) = field.node.content else {
            self.wrong_type(&field.node, &field.path, "`websockets` is a list of paths, such as `[/live]`");
            return None;
        };
        self.routes.websockets += items.len();
        if items.len() > limits::MANIFEST_ROUTES_MAX {
            // `check_routes` says so; reading them would compare each with each.
            return None;
        }
        let mut websockets: Vec<PathPrefix> = Vec::with_capacity(items.len());
        let mut all_right = true;
        for (index, item) in items.iter().enumerate() {
            let path = format!("{}[{index}]", field.path);
            let Some(prefix) = self.prefix(item, &path) else {
                all_right = false;
                continue;
            };
            if let Some(api) = api.filter(|api| !api.matches(prefix.as_str())) {
                let expected = format!("WebSockets of an api lie at or below its prefix {}", quoted(api.as_str()));
                self.refuse(item.at, &path, ErrorKind::Conflict, quoted(prefix.as_str()), expected);
            } else if websockets.contains(&prefix) {
                let found = format!("{} a second time", quoted(prefix.as_str()));
                self.refuse(item.at, &path, ErrorKind::DuplicateKey, found, "keep one of the two");
            } else {
                if web {
                    let placed = Placed { prefix: prefix.clone(), service: service.to_owned(), at: item.at, path };
                    self.routes.web_sockets.push(placed);
                }
                websockets.push(prefix);
                continue;
            }
            all_right = false;
        }
        all_right.then_some(websockets)
    }

    /// The rules between services, after all of them were read; `at` and `path` are those of `services`.
    pub(super) fn check_routes(&mut self, at: Position, path: &str) {
        let declared = std::mem::take(&mut self.routes);
        let count = declared.routed + declared.websockets;
        if count > limits::MANIFEST_ROUTES_MAX {
            let found = format!("{count} routed services and WebSocket paths");
            let expected = format!("at most {} are allowed", limits::MANIFEST_ROUTES_MAX);
            self.refuse(at, path, ErrorKind::OutOfLimits, found, expected);
            return;
        }
        for socket in &declared.web_sockets {
            // The longest prefix wins, so the web service never sees a request there.
            if let Some(owner) = declared.prefixes.iter().find(|other| other.prefix.matches(socket.prefix.as_str())) {
                let expected = format!(
                    "the service {} answers {}, so declare the WebSocket there",
                    quoted(&owner.service),
                    quoted(owner.prefix.as_str())
                );
                self.refuse(socket.at, &socket.path, ErrorKind::Conflict, quoted(socket.prefix.as_str()), expected);
            }
        }
    }
}
