//! Which stored schema belongs to which event. The first part of a type names the aggregate, or what of it the event is
//! about: teams are part of their organization.

use envforge_domain::event::Event;
use serde::{Serialize, Serializer};
use serde_json::Value;

use super::{
    DecodeError, claim, decision, denial, dev_link, host, job_run, machine, organization, project, root_window,
    runtime, secrets, service_token, shell, upcast, user, workspace,
};

/// The current types, aggregate by aggregate.
pub(super) const TYPES: [&[&str]; 16] = [
    organization::TYPES,
    user::TYPES,
    project::TYPES,
    workspace::TYPES,
    runtime::TYPES,
    host::TYPES,
    dev_link::TYPES,
    claim::TYPES,
    denial::TYPES,
    decision::TYPES,
    service_token::TYPES,
    root_window::TYPES,
    secrets::TYPES,
    shell::TYPES,
    job_run::TYPES,
    machine::TYPES,
];

/// The type under which an event is stored and shown to auditors, with its version: `dev_link.issued.v1`.
pub fn event_type(event: &Event) -> &'static str {
    match event {
        Event::Organization(event) => organization::event_type(event),
        Event::User(event) => user::event_type(event),
        Event::Project(event) => project::event_type(event),
        Event::Workspace(event) => workspace::event_type(event),
        Event::Runtime(event) => runtime::event_type(event),
        Event::Host(event) => host::event_type(event),
        Event::DevLink(event) => dev_link::event_type(event),
        Event::Claim(event) => claim::event_type(event),
        Event::Denial(event) => denial::event_type(event),
        Event::Decision(event) => decision::event_type(event),
        Event::ServiceToken(event) => service_token::event_type(event),
        Event::RootWindow(event) => root_window::event_type(event),
        Event::Secrets(event) => secrets::event_type(event),
        Event::Shell(event) => shell::event_type(event),
        Event::JobRun(event) => job_run::event_type(event),
        Event::Machine(event) => machine::event_type(event),
    }
}

/// An event's data as they are stored and shown to auditors: an object.
pub fn event_data(event: &Event) -> Value {
    serde_json::to_value(Data(event)).expect("stored forms are objects of texts, integers and lists")
}

pub(super) struct Data<'a>(pub(super) &'a Event);

impl Serialize for Data<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Event::Organization(event) => organization::serialize(event, serializer),
            Event::User(event) => user::serialize(event, serializer),
            Event::Project(event) => project::serialize(event, serializer),
            Event::Workspace(event) => workspace::serialize(event, serializer),
            Event::Runtime(event) => runtime::serialize(event, serializer),
            Event::Host(event) => host::serialize(event, serializer),
            Event::DevLink(event) => dev_link::serialize(event, serializer),
            Event::Claim(event) => claim::serialize(event, serializer),
            Event::Denial(event) => denial::serialize(event, serializer),
            Event::Decision(event) => decision::serialize(event, serializer),
            Event::ServiceToken(event) => service_token::serialize(event, serializer),
            Event::RootWindow(event) => root_window::serialize(event, serializer),
            Event::Secrets(event) => secrets::serialize(event, serializer),
            Event::Shell(event) => shell::serialize(event, serializer),
            Event::JobRun(event) => job_run::serialize(event, serializer),
            Event::Machine(event) => machine::serialize(event, serializer),
        }
    }
}

pub(super) fn decode(event_type: &str, data: &str) -> Result<Event, DecodeError> {
    match decode_current(event_type, data) {
        Some(decoded) => decoded.map_err(|error| mismatch(event_type, &error)),
        None => match upcast::to_current(event_type, data) {
            None => Err(DecodeError::UnknownEvent(event_type.chars().take(100).collect())),
            Some(Err(reason)) => Err(mismatch(event_type, &reason)),
            Some(Ok((current, data))) => match decode_current(current, &data.to_string()) {
                Some(decoded) => decoded.map_err(|error| mismatch(event_type, &error)),
                None => Err(DecodeError::UnknownEvent(current.to_owned())),
            },
        },
    }
}

fn mismatch(event_type: &str, reason: &dyn std::fmt::Display) -> DecodeError {
    DecodeError::Event { event_type: event_type.to_owned(), reason: reason.to_string() }
}

fn decode_current(event_type: &str, data: &str) -> Option<Result<Event, serde_json::Error>> {
    let (aggregate, _) = event_type.split_once('.')?;
    Some(match aggregate {
        "organization" | "team" => organization::decode(event_type, data)?.map(Event::Organization),
        "user" => user::decode(event_type, data)?.map(Event::User),
        "project" => project::decode(event_type, data)?.map(Event::Project),
        "workspace" => workspace::decode(event_type, data)?.map(Event::Workspace),
        "runtime" => runtime::decode(event_type, data)?.map(Event::Runtime),
        "host" => host::decode(event_type, data)?.map(Event::Host),
        "dev_link" => dev_link::decode(event_type, data)?.map(Event::DevLink),
        "claim" => claim::decode(event_type, data)?.map(Event::Claim),
        "denial" => denial::decode(event_type, data)?.map(Event::Denial),
        "decision" => decision::decode(event_type, data)?.map(Event::Decision),
        "service_token" => service_token::decode(event_type, data)?.map(Event::ServiceToken),
        "root_window" => root_window::decode(event_type, data)?.map(Event::RootWindow),
        "secrets" => secrets::decode(event_type, data)?.map(Event::Secrets),
        "shell" => shell::decode(event_type, data)?.map(Event::Shell),
        "job" => job_run::decode(event_type, data)?.map(Event::JobRun),
        "machine" => machine::decode(event_type, data)?.map(Event::Machine),
        _ => return None,
    })
}
