//! The one text of a manifest: every default written out, keys in a fixed order, texts in double quotes.
//!
//! Owns `render`, which is also the stored form, and the digest over it. Not here: reading it back (`Manifest::parse`).

use std::fmt::{self, Write};

use sha2::{Digest, Sha256};

use super::scalar::{self, show_duration, show_memory};
use super::{Hook, JobKind, Manifest, PathPrefix, Probe, Readiness, ResourceMode, Route, Service, VERSION};

/// SHA-256 of a manifest's canonical text. Displays as 64 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ManifestDigest([u8; 32]);

impl ManifestDigest {
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for ManifestDigest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl Manifest {
    /// The canonical text. Stays the same when defaults change, because it writes them out.
    pub fn render(&self) -> String {
        let mut text = String::with_capacity(256 + 512 * self.services.len());
        self.write(&mut text).expect("writing to a String does not fail");
        text
    }

    /// Two manifests have the same digest exactly if they are equal, comments and spelling of their files aside.
    pub fn digest(&self) -> ManifestDigest {
        ManifestDigest(Sha256::digest(self.render().as_bytes()).into())
    }

    fn write(&self, out: &mut String) -> fmt::Result {
        writeln!(out, "version: {VERSION}\nidle_sleep: {}", show_duration(self.idle_sleep))?;
        if let Some(Hook { command, deadline }) = &self.on_sleep {
            writeln!(out, "on_sleep:\n  command: {}\n  deadline: {}", Text(command), show_duration(*deadline))?;
        }
        writeln!(out, "services:")?;
        self.services.iter().try_for_each(|service| write_service(out, service))?;
        if !self.resources.is_empty() {
            writeln!(out, "resources:")?;
        }
        for resource in &self.resources {
            let mode = match resource.mode {
                ResourceMode::Runtime => "runtime",
                ResourceMode::Shared => "shared",
                ResourceMode::CustomerCloud => "customer-cloud",
            };
            writeln!(out, "  {}:\n    kind: {}\n    mode: {mode}", Name(&resource.name), Text(&resource.kind))?;
        }
        if !self.jobs.is_empty() {
            writeln!(out, "jobs:")?;
        }
        for job in &self.jobs {
            let kind = match job.kind {
                JobKind::Test => "test",
                JobKind::Agent => "agent",
            };
            writeln!(out, "  {}:\n    command: {}\n    kind: {kind}", Name(&job.name), Text(&job.command))?;
            write_secrets(out, &job.secrets)?;
        }
        Ok(())
    }
}

fn write_service(out: &mut String, service: &Service) -> fmt::Result {
    writeln!(out, "  {}:\n    command: {}", Name(service.name.as_str()), Text(&service.command))?;
    if let Some(directory) = &service.directory {
        writeln!(out, "    directory: {}", Text(directory))?;
    }
    writeln!(out, "    port: {}", Name(service.port_variable.as_deref().unwrap_or("none")))?;
    match &service.route {
        Route::None => writeln!(out, "    route: none")?,
        Route::Web { websockets } => {
            writeln!(out, "    route:\n      web: {{}}")?;
            write_websockets(out, websockets)?;
        }
        Route::Api { prefix, websockets } => {
            writeln!(out, "    route:\n      api: {}", Text(prefix.as_str()))?;
            write_websockets(out, websockets)?;
        }
        Route::Assets { prefix } => writeln!(out, "    route:\n      assets: {}", Text(prefix.as_str()))?,
        Route::Marketing { prefix } => writeln!(out, "    route:\n      marketing: {}", Text(prefix.as_str()))?,
    }
    let Readiness { probe, interval, deadline } = &service.readiness;
    writeln!(out, "    readiness:")?;
    match probe {
        Probe::Http { path } => writeln!(out, "      http: {}", Text(path))?,
        Probe::Tcp => writeln!(out, "      tcp: true")?,
        Probe::Command { command } => writeln!(out, "      command: {}", Text(command))?,
        Probe::None => writeln!(out, "      none: true")?,
    }
    if *probe != Probe::None {
        writeln!(out, "      interval: {}\n      deadline: {}", show_duration(*interval), show_duration(*deadline))?;
    }
    writeln!(out, "    cpu: {}m\n    memory: {}", service.cpu_millicores, show_memory(service.memory_mib))?;
    if !service.environment.is_empty() {
        writeln!(out, "    environment:")?;
    }
    for (name, value) in &service.environment {
        writeln!(out, "      {}: {}", Name(name), Text(value))?;
    }
    write_secrets(out, &service.secrets)
}

fn write_secrets(out: &mut String, secrets: &[String]) -> fmt::Result {
    if !secrets.is_empty() {
        writeln!(out, "    secrets:")?;
    }
    secrets.iter().try_for_each(|name| writeln!(out, "      - {}", Name(name)))
}

fn write_websockets(out: &mut String, websockets: &[PathPrefix]) -> fmt::Result {
    if !websockets.is_empty() {
        writeln!(out, "      websockets:")?;
    }
    websockets.iter().try_for_each(|path| writeln!(out, "        - {}", Text(path.as_str())))
}

/// A name of letters, digits, `-` and `_`: quoted only where a reader would take it for something else than text.
struct Name<'a>(&'a str);

impl fmt::Display for Name<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match scalar::meaning(self.0) {
            Some(_) => Text(self.0).fmt(formatter),
            None => formatter.write_str(self.0),
        }
    }
}

/// A text in double quotes, on one line, escaped where YAML 1.2.2 requires it (5.7) or a reader might fold or lose it.
struct Text<'a>(&'a str);

impl fmt::Display for Text<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_char('"')?;
        for character in self.0.chars() {
            match character {
                '"' => formatter.write_str("\\\"")?,
                '\\' => formatter.write_str("\\\\")?,
                '\n' => formatter.write_str("\\n")?,
                '\r' => formatter.write_str("\\r")?,
                '\t' => formatter.write_str("\\t")?,
                '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}' => {
                    write!(formatter, "\\u{:04X}", u32::from(character))?;
                }
                character if character.is_control() => write!(formatter, "\\x{:02X}", u32::from(character))?,
                character => formatter.write_char(character)?,
            }
        }
        formatter.write_char('"')
    }
}
