//! The published JSON Schema: what the parser accepts passes it, what is wrong with one value does not, and both know
//! the same keys.

use std::collections::BTreeSet;

use envforge_domain::manifest::{Manifest, SCHEMA, SECTIONS};
use proptest::prelude::*;
use saphyr_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Value, json};

use crate::generated::manifest;
use crate::read::FILES;

fn schema() -> Value {
    serde_json::from_str(SCHEMA).unwrap()
}

/// YAML as an editor's YAML 1.2 reader hands it to a JSON Schema validator.
fn json_of(text: &str) -> Value {
    fn value<'a>(events: &mut impl Iterator<Item = Event<'a>>) -> Option<Value> {
        Some(match events.next().unwrap() {
            Event::Scalar(text, ScalarStyle::Plain, ..) => match &*text {
                "" | "~" | "null" => Value::Null,
                "true" => Value::Bool(true),
                "false" => Value::Bool(false),
                number => number
                    .parse::<i64>()
                    .map(Value::from)
                    .or_else(|_| number.parse::<f64>().map(Value::from))
                    .unwrap_or_else(|_| text.into()),
            },
            Event::Scalar(text, ..) => text.into(),
            Event::SequenceStart(..) => std::iter::from_fn(|| value(events)).collect(),
            Event::MappingStart(..) => {
                let mut map = Map::new();
                while let Some(key) = value(events) {
                    let key = key.as_str().map_or_else(|| key.to_string(), str::to_owned);
                    map.insert(key, value(events).unwrap());
                }
                Value::Object(map)
            }
            Event::SequenceEnd | Event::MappingEnd => return None,
            other => panic!("{other:?}"),
        })
    }
    let events = Parser::new_from_str(text).map(|event| event.unwrap().0);
    value(&mut events.filter(|event| !matches!(event, Event::StreamStart | Event::DocumentStart(_)))).unwrap()
}

#[test]
fn the_schema_is_valid_draft_2020_12() {
    let schema = schema();
    assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
    jsonschema::meta::validate(&schema).unwrap();
}

#[test]
fn every_file_that_is_read_passes_the_schema() {
    let validator = jsonschema::draft202012::new(&schema()).unwrap();
    for (name, text) in FILES {
        let file = json_of(text);
        let errors: Vec<String> =
            validator.iter_errors(&file).map(|error| format!("{}: {error}", error.instance_path())).collect();
        assert!(errors.is_empty(), "{name}: {errors:?}");
    }
}

#[test]
fn generated_manifests_pass_the_schema() {
    let validator = jsonschema::draft202012::new(&schema()).unwrap();
    proptest!(|(manifest in manifest())| {
        let text = manifest.render();
        let file = json_of(&text);
        let errors: Vec<String> = validator.iter_errors(&file).map(|error| format!("{}: {error}", error.instance_path())).collect();
        prop_assert!(errors.is_empty(), "{errors:?}\n{text}");
    });
}

#[test]
fn what_is_wrong_with_one_value_fails_both_the_schema_and_the_parser() {
    let validator = jsonschema::draft202012::new(&schema()).unwrap();
    let files = [
        "version: 1",
        "services: { web: { command: a } }",
        "{ version: 2, services: { web: { command: a } } }",
        "{ version: \"1\", services: { web: { command: a } } }",
        "{ version: 1, services: {} }",
        "{ version: 1, services: [web] }",
        "{ version: 1, services: { ui: { command: a } } }",
        "{ version: 1, services: { Web: { command: a } } }",
        "{ version: 1, services: { a--b: { command: a } } }",
        "{ version: 1, services: { web: { command: a } }, idle_sleep: 15 }",
        "{ version: 1, services: { web: { command: a } }, idle_sleep: 15 min }",
        "{ version: 1, services: { web: { command: a } }, on_sleep: {} }",
        "{ version: 1, services: { web: { command: a } }, on_sleep: { command: a, after: 1s } }",
        "{ version: 1, services: { web: { command: a } }, resources: { db: {} } }",
        "{ version: 1, services: { web: { command: a } }, resources: { db: { kind: postgres, mode: remote } } }",
        "{ version: 1, services: { web: { command: a } }, jobs: { unit: { kind: test } } }",
        "{ version: 1, services: { web: { command: a } }, jobs: { unit: { command: a, kind: build } } }",
        "{ version: 1, services: { web: { command: a } }, volumes: {} }",
    ];
    let services = [
        "comand: a",
        "command: []",
        "command: \" \"",
        "command: 5",
        "port: 8080",
        "port: lower",
        "port: ENVFORGE_PORT",
        "directory: /abs",
        "directory: a/../b",
        "directory: a/",
        "directory: ''",
        "route: api",
        "route: {}",
        "route: { api: / }",
        "route: { api: api }",
        "route: { api: /a/../b }",
        "route: { web: true }",
        "route: { web: {}, api: /api }",
        "route: { assets: /a, websockets: [/a] }",
        "route: { web: {}, websockets: /live }",
        "route: { web: {}, websockets: [/live/] }",
        "route: { websockets: [/live] }",
        "readiness: tcp",
        "readiness: { tcp: false }",
        "readiness: { http: /a, tcp: true }",
        "readiness: { none: true, interval: 1s }",
        "readiness: { http: healthz }",
        "cpu: 250Mi",
        "cpu: 100",
        "cpu: 0",
        "memory: 128MB",
        "memory: 128",
        "environment: { lower: a }",
        "environment: { A: true }",
        "environment: { A: 1.5 }",
        "environment: { A: [b] }",
        "environment: [A=b]",
        "secrets: { A: b }",
        "secrets: [A, A]",
        "secrets: [lower]",
    ];
    let services = services.map(|line| {
        let command = if line.starts_with("comand") || line.starts_with("command") { "" } else { "command: run, " };
        format!("{{ version: 1, services: {{ web: {{ {command}{line} }} }} }}")
    });
    for text in files.into_iter().map(str::to_owned).chain(services) {
        assert!(!validator.is_valid(&json_of(&text)), "the schema accepts {text}");
        assert!(Manifest::parse(&text).is_err(), "the parser accepts {text}");
    }
}

/// The part of the schema that describes the section at `path`, through `$ref`s and alternatives.
fn at<'a>(schema: &'a Value, path: &str) -> &'a Value {
    let resolve = |mut part: &'a Value| {
        while let Some(reference) = part["$ref"].as_str() {
            part = schema.pointer(reference.strip_prefix('#').unwrap()).unwrap();
        }
        match part["anyOf"].as_array() {
            Some(alternatives) => alternatives.iter().find(|one| one["type"] == "object").unwrap_or(part),
            None => part,
        }
    };
    path.split('.').filter(|key| !key.is_empty()).fold(schema, |part, key| {
        resolve(if key == "<name>" { &part["additionalProperties"] } else { &part["properties"][key] })
    })
}

#[test]
fn the_schema_and_the_parser_know_the_same_keys() {
    let schema = schema();
    for section in SECTIONS {
        let part = at(&schema, section.path);
        assert_eq!(part["additionalProperties"], json!(false), "{}", section.path);
        let published: BTreeSet<&str> = part["properties"].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(published, section.keys.iter().copied().collect(), "{}", section.path);
    }
    // Every closed mapping of the schema with keys is one of the sections.
    fn closed(part: &Value) -> usize {
        let own = usize::from(part["properties"].is_object() && part["additionalProperties"] == json!(false));
        own + match part {
            Value::Object(map) => map.values().map(closed).sum(),
            Value::Array(items) => items.iter().map(closed).sum(),
            _ => 0,
        }
    }
    assert_eq!(closed(&schema), SECTIONS.len());
}

#[test]
fn every_key_stands_in_the_reference() {
    let reference = include_str!("../../../docs/envforge-yml.md");
    for section in SECTIONS {
        for key in section.keys {
            assert!(reference.contains(&format!("| `{key}` |")), "`{key}` of {} is not documented", section.name);
        }
    }
}

#[test]
fn the_defaults_of_the_schema_are_those_of_the_parser() {
    let schema = schema();
    let default = |section: &str, key: &str| {
        let value = &at(&schema, section)["properties"][key]["default"];
        assert!(value.is_string(), "{section}.{key}");
        format!("{key}: {}", value.as_str().unwrap())
    };
    let service = ["port", "route", "cpu", "memory"].map(|key| default("services.<name>", key)).join(", ");
    let readiness = ["interval", "deadline"].map(|key| default("services.<name>.readiness", key)).join(", ");
    let explicit = format!(
        "{{ version: 1, {}, on_sleep: {{ command: a, {} }}, services: {{ web: {{ command: a, {service}, readiness: {{ {readiness} }} }} }}, \
         resources: {{ db: {{ kind: a, {} }} }}, jobs: {{ unit: {{ command: a, {} }} }} }}",
        default("", "idle_sleep"),
        default("on_sleep", "deadline"),
        default("resources.<name>", "mode"),
        default("jobs.<name>", "kind"),
    );
    let left_out = "{ version: 1, on_sleep: { command: a }, services: { web: { command: a } }, resources: { db: { kind: a } }, jobs: { unit: { command: a } } }";
    assert_eq!(Manifest::parse(&explicit).unwrap(), Manifest::parse(left_out).unwrap());
}
