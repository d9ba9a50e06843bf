//! From the tree of the file to a `Manifest`: the file's own keys, resources, jobs, and how values are read and refused.
//!
//! Owns the reading of mappings, texts and lists of names, with every mistake reported at its place. Not here: services
//! (`service`), routes (`route`), and the YAML itself (`document`).

use std::borrow::Cow;

use super::document::{self, Content, Key, Node};
use super::error::{ErrorKind, ManifestError, ManifestErrors, Position, join, quoted};
use super::keys::{self, Section};
use super::scalar::{self, Wrong};
use super::{
    Hook, Job, JobKind, Manifest, ON_SLEEP_DEADLINE_DEFAULT, ON_SLEEP_DEADLINE_MIN, Resource, ResourceMode, VERSION,
};
use crate::limits;
use crate::slug::{self, InvalidSlug};
use crate::time::Millis;

pub(super) fn parse(text: &str) -> Result<Manifest, ManifestErrors> {
    let mut reader = Reader { errors: Vec::new(), routes: super::route::Declared::default() };
    let before = Position { line: 1, column: 1 };
    let manifest = match document::read(text, &mut reader.errors) {
        Some(root) => reader.file(root),
        None => {
            if reader.errors.is_empty() {
                reader.refuse(before, "", ErrorKind::MissingKey, "an empty file", FILE_EXPECTED);
            }
            None
        }
    };
    if let (Some(manifest), true) = (manifest, reader.errors.is_empty()) {
        let canonical = manifest.render();
        let stored = stored_bytes(&canonical);
        let (found, max) = if canonical.len() > limits::MANIFEST_BYTES_MAX {
            let found = format!("a manifest of {} bytes once its defaults are written out", canonical.len());
            (found, limits::MANIFEST_BYTES_MAX)
        } else if stored > limits::MANIFEST_STORED_BYTES_MAX {
            let found = format!("a manifest of {stored} bytes once its defaults are written out and escaped as JSON");
            (found, limits::MANIFEST_STORED_BYTES_MAX)
        } else {
            return Ok(manifest);
        };
        let expected = format!("at most {max} can be stored; shorten commands and environment");
        reader.refuse(before, "", ErrorKind::OutOfLimits, found, expected);
    }
    // The scanner counts one line too many at the end of a text without a final line break.
    let end = document::end(text);
    for error in &mut reader.errors {
        error.position = error.position.min(end);
    }
    Err(ManifestErrors::of(reader.errors))
}

/// What `canonical` takes as a JSON string, at most.
fn stored_bytes(canonical: &str) -> usize {
    canonical.bytes().map(|byte| if matches!(byte, b'"' | b'\\' | b'\n') { 2 } else { 1 }).sum::<usize>() + 2
}

const FILE_EXPECTED: &str =
    "it begins with `version: 1` and declares `services`, such as `services: { web: { command: ./serve } }`";

/// A mapping whose keys are those of its section, each at most once.
pub(super) struct Fields<'a> {
    pub(super) at: Position,
    pub(super) path: String,
    section: &'static Section,
    entries: Vec<(Position, &'static str, Node<'a>)>,
    /// Keys that unknown ones were most likely meant to be: not reported as missing on top.
    meant: Vec<&'static str>,
}

/// A value with its place.
pub(super) struct Field<'a> {
    pub(super) path: String,
    /// Where the key stands.
    pub(super) key_at: Position,
    pub(super) node: Node<'a>,
}

impl<'a> Fields<'a> {
    pub(super) fn take(&mut self, key: &'static str) -> Option<Field<'a>> {
        debug_assert!(self.section.keys.contains(&key), "{key} is not a key of {}", self.section.name);
        let index = self.entries.iter().position(|(_, found, _)| *found == key)?;
        let (key_at, _, node) = self.entries.swap_remove(index);
        Some(Field { path: join(&self.path, key), key_at, node })
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.place(key).is_some()
    }

    /// Where `key` stands, if it is there and not yet taken.
    pub(super) fn place(&self, key: &str) -> Option<Position> {
        self.entries.iter().find(|(_, found, _)| *found == key).map(|(at, ..)| *at)
    }
}

/// What `node` is, for messages.
pub(super) fn describe(node: &Node<'_>) -> String {
    match &node.content {
        Content::Scalar { text, plain: true } if scalar::meaning(text) == Some("nothing") => "no value".to_owned(),
        Content::Scalar { text, .. } => quoted(text),
        Content::List(_) => "a list".to_owned(),
        Content::Map(_) => "a mapping".to_owned(),
        Content::Refused => "a refused value".to_owned(),
    }
}

/// What would be right, without the text itself, which may hold anything.
pub(super) fn slug_expected(error: &InvalidSlug) -> String {
    match error {
        InvalidSlug::Length { what, min, max, length, .. } => {
            format!("a {what} has {min} to {max} characters, not {length}")
        }
        InvalidSlug::Character { what, found, position, .. } => {
            let found = quoted(&found.to_string());
            format!("a {what} has only a-z, 0-9 and single hyphens, not {found} (character {position})")
        }
        InvalidSlug::Edge { what, .. } => format!("a {what} begins and ends with a letter or digit"),
        InvalidSlug::DoubleHyphen { what, .. } => format!("a {what} has no two hyphens in a row"),
        InvalidSlug::Reserved { what, .. } => format!("this name is reserved; choose another {what}"),
    }
}

pub(super) struct Reader {
    errors: Vec<ManifestError>,
    pub(super) routes: super::route::Declared,
}

impl Reader {
    pub(super) fn refuse(
        &mut self,
        position: Position,
        path: &str,
        kind: ErrorKind,
        found: impl Into<String>,
        expected: impl Into<String>,
    ) {
        self.errors.push(ManifestError {
            position,
            path: path.to_owned(),
            kind,
            found: found.into(),
            expected: expected.into(),
        });
    }

    pub(super) fn report(&mut self, position: Position, path: &str, wrong: Wrong) {
        self.refuse(position, path, wrong.kind, wrong.found, wrong.expected);
    }

    /// Unless `node` was refused before, that it is not what belongs there.
    pub(super) fn wrong_type(&mut self, node: &Node<'_>, path: &str, expected: &str) {
        if !matches!(node.content, Content::Refused) {
            self.refuse(node.at, path, ErrorKind::WrongType, describe(node), expected);
        }
    }

    fn file(&mut self, root: Node<'_>) -> Option<Manifest> {
        if describe(&root) == "no value" {
            self.refuse(root.at, "", ErrorKind::MissingKey, "an empty file", FILE_EXPECTED);
            return None;
        }
        let mut fields = self.fields(root, "", &keys::FILE, FILE_EXPECTED)?;
        self.version(&mut fields);
        let idle_sleep = match fields.take("idle_sleep") {
            Some(field) => self.duration(&field, limits::IDLE_SLEEP_MIN, limits::IDLE_SLEEP_MAX),
            None => Some(limits::IDLE_SLEEP_DEFAULT),
        };
        let on_sleep = match fields.take("on_sleep") {
            Some(field) => self.hook(field).map(Some),
            None => Some(None),
        };
        let services = self.services(&mut fields);
        let resources = self.resources(&mut fields, services.as_deref().unwrap_or_default());
        let jobs = self.jobs(&mut fields);
        Some(Manifest {
            services: services?,
            resources: resources?,
            jobs: jobs?,
            idle_sleep: idle_sleep?,
            on_sleep: on_sleep?,
        })
    }

    fn version(&mut self, fields: &mut Fields<'_>) {
        let expected = format!("this EnvForge reads `version: {VERSION}`");
        let Some(field) = fields.take("version") else {
            let found = "no `version`";
            self.refuse(fields.at, "version", ErrorKind::MissingKey, found, "begin the file with `version: 1`");
            return;
        };
        match &field.node.content {
            Content::Scalar { text, plain: true } if *text == VERSION.to_string() => {}
            Content::Scalar { text, plain: false } if *text == VERSION.to_string() => {
                let expected = format!("it is a number; write `version: {VERSION}` without quotes");
                self.refuse(field.node.at, &field.path, ErrorKind::WrongType, "a quoted text", expected);
            }
            Content::Scalar { .. } => {
                self.refuse(field.node.at, &field.path, ErrorKind::InvalidValue, describe(&field.node), expected);
            }
            _ => self.wrong_type(&field.node, &field.path, &expected),
        }
    }

    fn hook(&mut self, field: Field<'_>) -> Option<Hook> {
        let expected = "`on_sleep` is a mapping such as `{ command: ./flush.sh, deadline: 10s }`";
        let mut fields = self.fields(field.node, &field.path, &keys::ON_SLEEP, expected)?;
        let command = self.command(&mut fields);
        let deadline = match fields.take("deadline") {
            Some(field) => self.duration(&field, ON_SLEEP_DEADLINE_MIN, limits::ON_SLEEP_MAX),
            None => Some(ON_SLEEP_DEADLINE_DEFAULT),
        };
        Some(Hook { command: command?, deadline: deadline? })
    }

    fn resources(&mut self, fields: &mut Fields<'_>, services: &[super::Service]) -> Option<Vec<Resource>> {
        let Some(field) = fields.take("resources") else { return Some(Vec::new()) };
        let expected = "`resources` is a mapping of names, such as `{ mail: { kind: mailpit } }`";
        let entries = self.named(field, expected, limits::MANIFEST_RESOURCES_MAX)?;
        let mut resources = Some(Vec::new());
        for (key, path, node) in entries {
            let resource = self.resource(&key, &path, node, services);
            resources = resources.zip(resource).map(|(mut all, one)| {
                all.push(one);
                all
            });
        }
        resources
    }

    fn resource(&mut self, key: &Key<'_>, path: &str, node: Node<'_>, services: &[super::Service]) -> Option<Resource> {
        let name = self.slug(key, path, "resource name");
        if services.iter().any(|service| service.name.as_str() == key.text) {
            let expected = "a service has this name; links open services and never resources, so name them apart";
            self.refuse(key.at, path, ErrorKind::Conflict, quoted(&key.text), expected);
        }
        let expected = "a resource is a mapping such as `{ kind: mailpit, mode: runtime }`";
        let mut fields = self.fields(node, path, &keys::RESOURCE, expected)?;
        let kind = match fields.take("kind") {
            Some(field) => {
                let text = self.text(&field.node, &field.path, false)?;
                match slug::check("kind", 1, &text) {
                    Ok(()) => Some(text),
                    Err(error) => {
                        let (at, kind) = (field.node.at, ErrorKind::InvalidValue);
                        self.refuse(at, &field.path, kind, quoted(&text), slug_expected(&error));
                        None
                    }
                }
            }
            None => {
                self.missing(&fields, "kind", "say what it is, such as `kind: mailpit`");
                None
            }
        };
        let modes = [
            ("runtime", ResourceMode::Runtime),
            ("shared", ResourceMode::Shared),
            ("customer-cloud", ResourceMode::CustomerCloud),
        ];
        let mode = self.choice(&mut fields, "mode", &modes);
        Some(Resource { name: name?, kind: kind?, mode: mode? })
    }

    fn jobs(&mut self, fields: &mut Fields<'_>) -> Option<Vec<Job>> {
        let Some(field) = fields.take("jobs") else { return Some(Vec::new()) };
        let expected = "`jobs` is a mapping of names, such as `{ unit: { command: ./test, kind: test } }`";
        let entries = self.named(field, expected, limits::MANIFEST_JOBS_MAX)?;
        let mut jobs = Some(Vec::new());
        for (key, path, node) in entries {
            let job = self.job(&key, &path, node);
            jobs = jobs.zip(job).map(|(mut all, one)| {
                all.push(one);
                all
            });
        }
        jobs
    }

    fn job(&mut self, key: &Key<'_>, path: &str, node: Node<'_>) -> Option<Job> {
        let name = self.slug(key, path, "job name");
        let expected = "a job is a mapping such as `{ command: ./test, kind: test }`";
        let mut fields = self.fields(node, path, &keys::JOB, expected)?;
        let command = self.command(&mut fields);
        let kind = self.choice(&mut fields, "kind", &[("test", JobKind::Test), ("agent", JobKind::Agent)]);
        let secrets = self.job_secrets(&mut fields, key.at, path);
        Some(Job { name: name?, command: command?, kind: kind?, secrets: secrets? })
    }

    /// A mapping with the keys of `section`; unknown keys are reported and left out.
    pub(super) fn fields<'a>(
        &mut self,
        node: Node<'a>,
        path: &str,
        section: &'static Section,
        expected: &str,
    ) -> Option<Fields<'a>> {
        let at = node.at;
        let Content::Map(entries) = node.content else {
            self.wrong_type(&node, path, expected);
            return None;
        };
        let mut known = Vec::with_capacity(entries.len());
        let mut meant = Vec::new();
        for (key, value) in entries {
            match section.keys.iter().find(|known| **known == key.text) {
                Some(name) => known.push((key.at, *name, value)),
                None => {
                    meant.extend(keys::nearest(section.keys, &key.text));
                    let found = format!("an unknown key {}", quoted(&key.text));
                    let expected = keys::hint(section, &key.text);
                    self.refuse(key.at, &join(path, &key.text), ErrorKind::UnknownKey, found, expected);
                }
            }
        }
        Some(Fields { at, path: path.to_owned(), section, entries: known, meant })
    }

    /// A mapping whose keys are names that the author chose, with the path of each.
    pub(super) fn named<'a>(
        &mut self,
        field: Field<'a>,
        expected: &str,
        max: usize,
    ) -> Option<Vec<(Key<'a>, String, Node<'a>)>> {
        let Content::Map(entries) = field.node.content else {
            self.wrong_type(&field.node, &field.path, expected);
            return None;
        };
        if entries.len() > max {
            let found = format!("{} entries", entries.len());
            let expected = format!("at most {max} are allowed");
            self.refuse(field.key_at, &field.path, ErrorKind::OutOfLimits, found, expected);
            return None;
        }
        let named = |(key, node): (Key<'a>, Node<'a>)| {
            let path = join(&field.path, &key.text);
            (key, path, node)
        };
        Some(entries.into_iter().map(named).collect())
    }

    pub(super) fn missing(&mut self, fields: &Fields<'_>, key: &'static str, expected: &str) {
        if fields.meant.contains(&key) {
            return;
        }
        let found = format!("no `{key}`");
        self.refuse(fields.at, &join(&fields.path, key), ErrorKind::MissingKey, found, expected);
    }

    /// Reports an unquoted key that other readers take for something else than text.
    pub(super) fn key_is_text(&mut self, key: &Key<'_>, path: &str) -> bool {
        match scalar::meaning(&key.text).filter(|_| key.plain) {
            Some(meaning) => {
                self.report(key.at, path, scalar::ambiguous(&key.text, meaning));
                false
            }
            None => true,
        }
    }

    fn slug(&mut self, key: &Key<'_>, path: &str, what: &'static str) -> Option<String> {
        if !self.key_is_text(key, path) {
            return None;
        }
        match slug::check(what, 1, &key.text) {
            Ok(()) => Some(key.text.clone().into_owned()),
            Err(error) => {
                self.refuse(key.at, path, ErrorKind::InvalidValue, quoted(&key.text), slug_expected(&error));
                None
            }
        }
    }

    /// A text. Unquoted words that other readers take for something else are refused, integers unless `integers`.
    pub(super) fn text(&mut self, node: &Node<'_>, path: &str, integers: bool) -> Option<String> {
        let Content::Scalar { text, plain } = &node.content else {
            self.wrong_type(node, path, "a text belongs here");
            return None;
        };
        match scalar::meaning(text).filter(|_| *plain) {
            Some("nothing") if text.is_empty() => {
                self.refuse(
                    node.at,
                    path,
                    ErrorKind::WrongType,
                    "no value",
                    "a text belongs here; for an empty one write `\"\"`",
                );
                None
            }
            Some(_) if integers && scalar::is_plain_integer(text) => Some(text.clone().into_owned()),
            Some(meaning) => {
                self.report(node.at, path, scalar::ambiguous(text, meaning));
                None
            }
            None => Some(text.clone().into_owned()),
        }
    }

    /// The key `command`, which must be there.
    pub(super) fn command(&mut self, fields: &mut Fields<'_>) -> Option<String> {
        let Some(field) = fields.take("command") else {
            self.missing(fields, "command", "say what to run, such as `command: ./serve`");
            return None;
        };
        self.command_text(&field)
    }

    pub(super) fn command_text(&mut self, field: &Field<'_>) -> Option<String> {
        let (at, path) = (field.node.at, &field.path);
        if matches!(field.node.content, Content::List(_)) {
            let expected = "a command is one text that `sh -c` runs, such as `python3 server.py`";
            self.refuse(at, path, ErrorKind::WrongType, "a list", expected);
            return None;
        }
        let command = self.text(&field.node, path, false)?;
        let length = command.chars().count();
        // JavaScript, and so the schema's `\S`, takes the byte order mark for a space.
        if command.trim_matches(|character: char| character.is_whitespace() || character == '\u{feff}').is_empty() {
            self.refuse(at, path, ErrorKind::InvalidValue, "an empty command", "say what to run, such as `./serve`");
        } else if length > limits::MANIFEST_COMMAND_CHARS_MAX {
            let found = format!("a command of {length} characters");
            let expected = format!("at most {} are allowed; put it into a script", limits::MANIFEST_COMMAND_CHARS_MAX);
            self.refuse(at, path, ErrorKind::OutOfLimits, found, expected);
        } else if command.contains('\0') {
            self.refuse(
                at,
                path,
                ErrorKind::InvalidValue,
                "the character U+0000",
                "a command cannot hold it; remove it",
            );
        } else {
            return Some(command);
        }
        None
    }

    /// One of some words; the first of them where the key is missing.
    fn choice<T: Copy>(&mut self, fields: &mut Fields<'_>, key: &'static str, choices: &[(&str, T)]) -> Option<T> {
        let Some(field) = fields.take(key) else { return choices.first().map(|(_, value)| *value) };
        let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
        let expected = format!("allowed is {}", keys::list(&words).replace(" and ", " or "));
        let Content::Scalar { text, .. } = &field.node.content else {
            self.wrong_type(&field.node, &field.path, &expected);
            return None;
        };
        if let Some((_, value)) = choices.iter().find(|(word, _)| word == text) {
            return Some(*value);
        }
        let expected = match keys::nearest(&words, text) {
            Some(near) => format!("did you mean `{near}`?"),
            None => expected,
        };
        self.refuse(field.node.at, &field.path, ErrorKind::InvalidValue, describe(&field.node), expected);
        None
    }

    /// The words of a value with a unit, whether quoted or not.
    fn measure<'n>(&mut self, field: &'n Field<'_>, expected: &str) -> Option<(&'n Cow<'n, str>, bool)> {
        match &field.node.content {
            Content::Scalar { text, plain } if !(*plain && scalar::meaning(text) == Some("nothing")) => {
                Some((text, *plain))
            }
            _ => {
                self.wrong_type(&field.node, &field.path, expected);
                None
            }
        }
    }

    pub(super) fn duration(&mut self, field: &Field<'_>, min: Millis, max: Millis) -> Option<Millis> {
        let (text, plain) = self.measure(field, "a duration such as `15m` belongs here")?;
        let read = scalar::duration(text, plain, min, max);
        read.map_err(|wrong| self.report(field.node.at, &field.path, wrong)).ok()
    }

    /// CPU or memory, read by `read`.
    pub(super) fn quantity(
        &mut self,
        field: &Field<'_>,
        read: fn(&str) -> Result<u32, Wrong>,
        expected: &str,
    ) -> Option<u32> {
        let (text, _) = self.measure(field, expected)?;
        read(text).map_err(|wrong| self.report(field.node.at, &field.path, wrong)).ok()
    }
}
