//! Reading one service: its keys, its readiness probe, its variables.
//!
//! Owns the rules inside of a service. Not here: routes and what relates one service to another (`route`).

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::document::{Content, Key, Node};
use super::error::{ErrorKind, Position, join, quoted};
use super::keys;
use super::reader::{Field, Fields, Reader, describe, slug_expected};
use super::scalar;
use super::{
    CPU_MILLICORES_DEFAULT, MEMORY_MIB_DEFAULT, PORT_VARIABLE_DEFAULT, Probe, READINESS_DEADLINE_DEFAULT,
    READINESS_DEADLINE_MAX, READINESS_DEADLINE_MIN, READINESS_INTERVAL_DEFAULT, READINESS_INTERVAL_MAX,
    READINESS_INTERVAL_MIN, Readiness, Route, Service,
};
use crate::limits;
use crate::slug::ServiceName;

const SERVICES_EXPECTED: &str = "declare at least one, such as `services: { web: { command: ./serve } }`";

impl Reader {
    pub(super) fn services(&mut self, fields: &mut Fields<'_>) -> Option<Vec<Service>> {
        let Some(field) = fields.take("services") else {
            self.missing(fields, "services", SERVICES_EXPECTED);
            return None;
        };
        let (at, path) = (field.key_at, field.path.clone());
        let expected = "`services` is a mapping of names, such as `{ web: { command: ./serve } }`";
        let entries = self.named(field, expected, limits::MANIFEST_SERVICES_MAX)?;
        if entries.is_empty() {
            self.refuse(at, &path, ErrorKind::MissingKey, "no service", SERVICES_EXPECTED);
            return None;
        }
        let mut services = Some(Vec::with_capacity(entries.len()));
        for (key, path, node) in entries {
            let service = self.service(&key, &path, node);
            services = services.zip(service).map(|(mut all, one)| {
                all.push(one);
                all
            });
        }
        self.check_routes(at, &path);
        services
    }

    fn service(&mut self, key: &Key<'_>, path: &str, node: Node<'_>) -> Option<Service> {
        let name = if self.key_is_text(key, path) {
            key.text
                .parse::<ServiceName>()
                .map_err(|error| {
                    self.refuse(key.at, path, ErrorKind::InvalidValue, quoted(&key.text), slug_expected(&error))
                })
                .ok()
        } else {
            None
        };
        let misplaced = keys::SERVICE.keys.contains(&key.text.as_ref()) && !matches!(node.content, Content::Map(_));
        let expected = if misplaced {
            "this is a key of a service; indent it below the service's name"
        } else {
            "a service is a mapping such as `{ command: ./serve, route: web }`"
        };
        let mut fields = self.fields(node, path, &keys::SERVICE, expected)?;
        let command = self.command(&mut fields);
        let directory = match fields.take("directory") {
            Some(field) => self.directory(&field).map(Some),
            None => Some(None),
        };
        let port_field = fields.take("port");
        let port_at = port_field.as_ref().map(|field| field.node.at);
        let port = match port_field {
            Some(field) => self.port(&field),
            None => Some(Some(PORT_VARIABLE_DEFAULT.to_owned())),
        };
        // Where the port is wrong, the rest is read as if there were one, so that one mistake is one error.
        let listens = !matches!(port, Some(None));
        let route = match fields.take("route") {
            Some(field) => self.route(field, listens, &key.text),
            None => Some(Route::None),
        };
        let readiness = match fields.take("readiness") {
            Some(field) => self.readiness(field, listens),
            None => Some(Readiness {
                probe: if listens { Probe::Tcp } else { Probe::None },
                interval: READINESS_INTERVAL_DEFAULT,
                deadline: READINESS_DEADLINE_DEFAULT,
            }),
        };
        let cpu = match fields.take("cpu") {
            Some(field) => self.quantity(&field, scalar::cpu, "CPU such as `250m` or `1` belongs here"),
            None => Some(CPU_MILLICORES_DEFAULT),
        };
        let memory = match fields.take("memory") {
            Some(field) => self.quantity(&field, scalar::memory, "memory such as `256Mi` belongs here"),
            None => Some(MEMORY_MIB_DEFAULT),
        };
        let mut variables = Variables::default();
        if let Some(Some(port)) = &port {
            variables.taken.insert(
                port.clone(),
                match port_at {
                    Some(_) => "`port`".to_owned(),
                    None => "the port's variable (`PORT` where `port` names no other)".to_owned(),
                },
            );
        }
        let environment = match fields.take("environment") {
            Some(field) => self.environment(field, &mut variables),
            None => Some(Vec::new()),
        };
        let secrets = match fields.take("secrets") {
            Some(field) => self.secrets(field, &mut variables),
            None => Some(Vec::new()),
        };
        if variables.count > limits::MANIFEST_VARIABLES_MAX {
            let found = format!("{} environment entries and secrets", variables.count);
            let expected = format!("a service has at most {}", limits::MANIFEST_VARIABLES_MAX);
            self.refuse(key.at, path, ErrorKind::OutOfLimits, found, expected);
        }
        Some(Service {
            name: name?,
            command: command?,
            directory: directory?,
            port_variable: port?,
            route: route?,
            readiness: readiness?,
            cpu_millicores: cpu?,
            memory_mib: memory?,
            secrets: secrets?,
            environment: environment?,
        })
    }

    fn directory(&mut self, field: &Field<'_>) -> Option<String> {
        const CHARS_MAX: usize = 200;
        let directory = self.text(&field.node, &field.path, false)?;
        let expected = if directory.chars().count() > CHARS_MAX {
            format!("at most {CHARS_MAX} characters are allowed")
        } else if directory.chars().any(char::is_control) || directory.contains('\\') {
            "a directory holds no control characters and no backslash; separate segments with `/`".to_owned()
        } else if matches!(directory.as_str(), "" | "." | "./") {
            "leave `directory` out for the repository's root".to_owned()
        } else if directory.starts_with('/') {
            "a directory is relative to the repository's root, such as `web`".to_owned()
        } else if directory.split('/').any(|segment| segment == "..") {
            "a directory lies within the repository; `..` is not allowed".to_owned()
        } else if directory.split('/').any(|segment| matches!(segment, "" | ".")) {
            let clean: Vec<&str> = directory.split('/').filter(|segment| !matches!(*segment, "" | ".")).collect();
            format!("write {}", quoted(&clean.join("/")))
        } else {
            return Some(directory);
        };
        self.refuse(field.node.at, &field.path, ErrorKind::InvalidValue, quoted(&directory), expected);
        None
    }

    /// `Some(None)`: listens nowhere.
    fn port(&mut self, field: &Field<'_>) -> Option<Option<String>> {
        let (at, path) = (field.node.at, &field.path);
        let expected = "`port` is the name of the variable that carries the allotted port, such as `PORT`, or `none`";
        let Content::Scalar { text, plain } = &field.node.content else {
            self.wrong_type(&field.node, path, expected);
            return None;
        };
        if text == "none" {
            return Some(None);
        }
        let meaning = scalar::meaning(text).filter(|_| *plain);
        match meaning {
            Some("a number") => {
                let expected =
                    "EnvForge allots the port; write the name of the variable that carries it, such as `PORT`";
                self.refuse(at, path, ErrorKind::InvalidValue, quoted(text), expected);
                None
            }
            Some("nothing") => {
                self.refuse(at, path, ErrorKind::WrongType, describe(&field.node), expected);
                None
            }
            Some(meaning) => {
                let wrong = scalar::ambiguous(text, meaning);
                let mut expected = "for a service that listens nowhere write `none`".to_owned();
                if scalar::variable(text).is_ok() {
                    expected = format!("{expected}; {}", wrong.expected);
                }
                self.refuse(at, path, wrong.kind, wrong.found, expected);
                None
            }
            None => match scalar::variable(text) {
                Ok(()) => Some(Some(text.clone().into_owned())),
                Err(wrong) => {
                    self.report(at, path, wrong);
                    None
                }
            },
        }
    }

    fn readiness(&mut self, field: Field<'_>, listens: bool) -> Option<Readiness> {
        let expected =
            "a readiness probe is a mapping such as `{ http: /healthz }`, `{ tcp: true }` or `{ none: true }`";
        let mut fields = self.fields(field.node, &field.path, &keys::READINESS, expected)?;
        let probes: Vec<&str> =
            ["http", "tcp", "command", "none"].into_iter().filter(|probe| fields.has(probe)).collect();
        if probes.len() > 1 {
            let found = format!("{} together", keys::list(&probes));
            self.refuse(
                fields.at,
                &fields.path,
                ErrorKind::Conflict,
                found,
                "a service has one probe; keep one of them",
            );
        }
        if !listens {
            for probe in ["http", "tcp"] {
                if let Some(at) = fields.place(probe) {
                    let found = format!("the probe `{probe}` of a service with `port: none`");
                    let expected = "give the service a port, or use `command` or `none`";
                    self.refuse(at, &fields.path, ErrorKind::Conflict, found, expected);
                }
            }
        }
        let http = fields.take("http").map(|field| self.http_path(&field));
        let tcp = fields.take("tcp").map(|field| self.only_true(&field));
        let command = fields.take("command").map(|field| self.command_text(&field));
        let none = fields.take("none").map(|field| self.only_true(&field));
        let probe = match (http, tcp, command, none) {
            (Some(path), ..) => path.map(|path| Probe::Http { path }),
            (_, Some(tcp), ..) => tcp.map(|()| Probe::Tcp),
            (_, _, Some(command), _) => command.map(|command| Probe::Command { command }),
            (.., Some(none)) => none.map(|()| Probe::None),
            (None, None, None, None) => Some(if listens { Probe::Tcp } else { Probe::None }),
        };
        if probe == Some(Probe::None) {
            for key in ["interval", "deadline"] {
                if let Some(at) = fields.place(key) {
                    let found = format!("`{key}` without a probe");
                    let expected = "remove it, or choose a probe (`http`, `tcp` or `command`)";
                    self.refuse(at, &fields.path, ErrorKind::Conflict, found, expected);
                }
            }
        }
        let interval_field = fields.take("interval");
        let interval = match &interval_field {
            Some(field) => self.duration(field, READINESS_INTERVAL_MIN, READINESS_INTERVAL_MAX),
            None => Some(READINESS_INTERVAL_DEFAULT),
        };
        let deadline = match fields.take("deadline") {
            Some(field) => self.duration(&field, READINESS_DEADLINE_MIN, READINESS_DEADLINE_MAX),
            None => Some(READINESS_DEADLINE_DEFAULT),
        };
        if let (Some(field), Some(interval), Some(deadline)) = (&interval_field, interval, deadline)
            && interval > deadline
        {
            let found = format!("an interval of {}", scalar::show_duration(interval));
            let expected = format!("it must not be longer than the deadline of {}", scalar::show_duration(deadline));
            self.refuse(field.node.at, &field.path, ErrorKind::Conflict, found, expected);
        }
        Some(Readiness { probe: probe?, interval: interval?, deadline: deadline? })
    }

    fn http_path(&mut self, field: &Field<'_>) -> Option<String> {
        const CHARS_MAX: usize = 200;
        let path = self.text(&field.node, &field.path, false)?;
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/?%".contains(&byte);
        if path.starts_with('/') && path.len() <= CHARS_MAX && path.bytes().all(allowed) {
            return Some(path);
        }
        let expected = match path.strip_prefix("http").and_then(|rest| rest.split_once("://")) {
            Some(_) => "a path on the service's own port, such as `/healthz`, without host and port".to_owned(),
            None => format!("a path such as `/healthz`: begins with `/`, URL characters, at most {CHARS_MAX}"),
        };
        self.refuse(field.node.at, &field.path, ErrorKind::InvalidValue, quoted(&path), expected);
        None
    }

    /// A key that is there or not: its only value is `true`.
    fn only_true(&mut self, field: &Field<'_>) -> Option<()> {
        match &field.node.content {
            Content::Scalar { text, plain: true } if text == "true" => Some(()),
            Content::Scalar { text, .. } if text == "false" => {
                let found = quoted(text);
                self.refuse(
                    field.node.at,
                    &field.path,
                    ErrorKind::InvalidValue,
                    found,
                    "its only value is `true`; otherwise leave it out",
                );
                None
            }
            _ => {
                self.wrong_type(&field.node, &field.path, "its only value is `true`");
                None
            }
        }
    }

    fn environment(&mut self, field: Field<'_>, variables: &mut Variables) -> Option<Vec<(String, String)>> {
        let Content::Map(entries) = field.node.content else {
            let expected = "`environment` is a mapping of names to texts, such as `{ GREETING: hello }`";
            self.wrong_type(&field.node, &field.path, expected);
            return None;
        };
        variables.count += entries.len();
        let mut environment = Vec::with_capacity(entries.len());
        let mut all_right = true;
        for (key, node) in entries {
            let path = join(&field.path, &key.text);
            let name_right = self.variable_name(&key.text, key.plain, key.at, &path)
                && self.unique(variables, &key.text, key.at, &path, &format!("environment.{}", key.text));
            let value = match &node.content {
                Content::List(_) | Content::Map(_) => {
                    self.wrong_type(&node, &path, "a variable has one text as its value");
                    None
                }
                _ => self.text(&node, &path, true),
            };
            let value = value.filter(|value| {
                let right = !value.contains('\0');
                if !right {
                    let expected = "a variable cannot hold it; remove it";
                    self.refuse(node.at, &path, ErrorKind::InvalidValue, "the character U+0000", expected);
                }
                right
            });
            match value {
                Some(value) if name_right => environment.push((key.text.into_owned(), value)),
                _ => all_right = false,
            }
        }
        all_right.then_some(environment)
    }

    /// A job's, which has no other variables.
    pub(super) fn job_secrets(&mut self, fields: &mut Fields<'_>, at: Position, path: &str) -> Option<Vec<String>> {
        let Some(field) = fields.take("secrets") else { return Some(Vec::new()) };
        let mut variables = Variables::default();
        let secrets = self.secrets(field, &mut variables);
        if variables.count > limits::MANIFEST_VARIABLES_MAX {
            let found = format!("{} secrets", variables.count);
            let expected = format!("a job has at most {}", limits::MANIFEST_VARIABLES_MAX);
            self.refuse(at, path, ErrorKind::OutOfLimits, found, expected);
        }
        secrets
    }

    fn secrets(&mut self, field: Field<'_>, variables: &mut Variables) -> Option<Vec<String>> {
        let expected = "`secrets` is a list of names, such as `[DATABASE_URL]`; values never stand in this file";
        let Content::List(items) = field.node.content else {
            // Not `describe`: what stands here may be a secret.
            if !matches!(field.node.content, Content::Refused) {
                let found = if matches!(field.node.content, Content::Map(_)) { "a mapping" } else { "a single value" };
                self.refuse(field.node.at, &field.path, ErrorKind::WrongType, found, expected);
            }
            return None;
        };
        variables.count += items.len();
        let mut secrets = Vec::with_capacity(items.len());
        let mut all_right = true;
        for (index, item) in items.into_iter().enumerate() {
            let path = format!("{}[{index}]", field.path);
            match item.content {
                Content::Scalar { text, plain } => {
                    let place = format!("secrets[{index}]");
                    if self.variable_name(&text, plain, item.at, &path)
                        && self.unique(variables, &text, item.at, &path, &place)
                    {
                        secrets.push(text.into_owned());
                    } else {
                        all_right = false;
                    }
                }
                Content::Refused => all_right = false,
                Content::Map(_) | Content::List(_) => {
                    self.refuse(item.at, &path, ErrorKind::WrongType, "a mapping or list", expected);
                    all_right = false;
                }
            }
        }
        all_right.then_some(secrets)
    }

    fn variable_name(&mut self, text: &str, plain: bool, at: Position, path: &str) -> bool {
        if let Err(wrong) = scalar::variable(text) {
            self.report(at, path, wrong);
            return false;
        }
        // Only after the rule above: what passes it and is ambiguous is a word such as `NO`.
        if let Some(meaning) = scalar::meaning(text).filter(|_| plain) {
            self.report(at, path, scalar::ambiguous(text, meaning));
            return false;
        }
        true
    }

    fn unique(&mut self, variables: &mut Variables, name: &str, at: Position, path: &str, place: &str) -> bool {
        match variables.taken.entry(name.to_owned()) {
            Entry::Vacant(vacant) => {
                vacant.insert(format!("`{place}`"));
                true
            }
            Entry::Occupied(taken) => {
                let found = format!("the same variable as {}", taken.get());
                self.refuse(
                    at,
                    path,
                    ErrorKind::Conflict,
                    found,
                    "a variable has one source; rename or remove one of them",
                );
                false
            }
        }
    }
}

/// The variables of one service, by name: where each comes from.
#[derive(Default)]
struct Variables {
    taken: BTreeMap<String, String>,
    count: usize,
}
