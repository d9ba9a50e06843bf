//! Valid manifests of every shape, and file-like texts that are nearly valid.

use envforge_domain::limits;
use envforge_domain::manifest::*;
use envforge_domain::time::Millis;
use proptest::collection::{btree_map, btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

fn slug(min: usize) -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "[a-z][a-z0-9]{0,5}(-[a-z0-9]{1,5}){0,2}",
        1 => select(vec!["yes", "null", "012", "123", "0x1f", "off", "2026-11-24", "true"]).prop_map(str::to_owned),
    ]
    .prop_map(move |text| if text.len() < min { format!("{text}-abc") } else { text })
}

fn variable() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "[A-Z_][A-Z0-9_]{0,12}",
        1 => select(vec!["NO", "Y", "ON", "NULL", "TRUE", "PORT"]).prop_map(str::to_owned),
    ]
    .prop_filter("reserved", |name| !name.starts_with("ENVFORGE_"))
}

/// Any text that a process can take, with what breaks careless YAML writers in it.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        2 => any::<String>(),
        1 => "[ -~]{0,40}",
        1 => vec(select(vec![
            "\n", "\r\n", "\t", " ", "  ", "#", ": ", "- ", "\"", "'", "\\", "|", ">", "&a", "*a", "!t", "%", "---", "...",
            "\u{85}", "\u{2028}", "\u{feff}", "\u{7f}", "\u{ffff}", "é", "日本", "🦀", "no", "12:30", "{", "}", "[", "]", ",",
        ]), 0..12).prop_map(|parts| parts.concat()),
    ]
    .prop_map(|text| text.replace('\0', ""))
}

fn command() -> impl Strategy<Value = String> {
    text().prop_map(|text| {
        if text.trim_matches(|c: char| c.is_whitespace() || c == '\u{feff}').is_empty() {
            format!("run{text}")
        } else {
            text
        }
    })
}

fn path() -> impl Strategy<Value = String> {
    "(/[a-zA-Z0-9_~-][a-zA-Z0-9._~-]{0,5}){1,3}"
}

fn length(min: Millis, max: Millis) -> impl Strategy<Value = Millis> {
    (min.get()..=max.get(), select(vec![1, 1_000, 60_000, 3_600_000])).prop_map(move |(length, unit)| {
        let rounded = length / unit * unit;
        Millis::new(if rounded < min.get() { length } else { rounded })
    })
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    None,
    Web,
    Api,
    Assets,
    Marketing,
}

prop_compose! {
    fn readiness(listens: bool)(
        choice in if listens { 0..4_u8 } else { 2..4 },
        path in path(),
        query in select(vec!["", "?full=1", "/"]),
        command in command(),
        interval in length(READINESS_INTERVAL_MIN, READINESS_INTERVAL_MAX),
        deadline in length(READINESS_DEADLINE_MIN, READINESS_DEADLINE_MAX),
    ) -> Readiness {
        let probe = match choice {
            0 => Probe::Http { path: format!("{path}{query}") },
            1 => Probe::Tcp,
            2 => Probe::Command { command },
            _ => Probe::None,
        };
        if probe == Probe::None {
            return Readiness { probe, interval: READINESS_INTERVAL_DEFAULT, deadline: READINESS_DEADLINE_DEFAULT };
        }
        Readiness { probe, interval: interval.min(deadline), deadline }
    }
}

fn service() -> impl Strategy<Value = (Service, Kind)> {
    any::<bool>().prop_flat_map(|listens| {
        let kinds = if listens {
            vec![Kind::None, Kind::Web, Kind::Api, Kind::Assets, Kind::Marketing]
        } else {
            vec![Kind::None]
        };
        let variables = (variable(), btree_map(variable(), text(), 0..4), btree_set(variable(), 0..4));
        let quantities = (CPU_MILLICORES_MIN..=CPU_MILLICORES_MAX, MEMORY_MIB_MIN..=MEMORY_MIB_MAX);
        (
            command(),
            option::of("[a-z0-9 é._-]{0,4}[a-z](/[a-z]{1,5}){0,2}"),
            readiness(listens),
            variables,
            quantities,
            select(kinds),
        )
            .prop_map(
                move |(command, directory, readiness, (port, mut environment, mut secrets), (cpu, memory), kind)| {
                    environment.remove(&port);
                    secrets.retain(|name| *name != port && !environment.contains_key(name));
                    let service = Service {
                        name: "placeholder".parse().unwrap(),
                        command,
                        directory,
                        port_variable: listens.then_some(port),
                        route: Route::None,
                        readiness,
                        cpu_millicores: cpu,
                        memory_mib: memory,
                        secrets: secrets.into_iter().collect(),
                        environment: environment.into_iter().collect(),
                    };
                    (service, kind)
                },
            )
    })
}

prop_compose! {
    fn services()(
        services in btree_map(slug(3), (service(), path(), vec(path(), 0..3)), 1..5),
    ) -> Vec<Service> {
        let mut services: Vec<Service> = services.into_iter().enumerate().map(|(index, (name, ((mut service, kind), path, mut sockets)))| {
            service.name = name.parse().unwrap();
            sockets.sort();
            sockets.dedup();
            // A segment of its own per service keeps prefixes apart and sockets of `web` away from them.
            let prefix = PathPrefix::parse(&format!("/s{index}{path}")).unwrap();
            let below = |base: &str| sockets.iter().map(|socket| PathPrefix::parse(&format!("{base}{socket}")).unwrap()).collect();
            service.route = match kind {
                Kind::None => Route::None,
                Kind::Web => Route::Web { websockets: below("/w") },
                Kind::Api => Route::Api { websockets: below(prefix.as_str()), prefix },
                Kind::Assets => Route::Assets { prefix },
                Kind::Marketing => Route::Marketing { prefix },
            };
            service
        }).collect();
        services.reverse();
        services
    }
}

prop_compose! {
    pub(crate) fn manifest()(
        services in services(),
        resources in btree_map(slug(1), (slug(1), select(vec![ResourceMode::Runtime, ResourceMode::Shared, ResourceMode::CustomerCloud])), 0..3),
        jobs in btree_map(slug(1), (command(), select(vec![JobKind::Test, JobKind::Agent]), btree_set(variable(), 0..3)), 0..3),
        idle_sleep in length(limits::IDLE_SLEEP_MIN, limits::IDLE_SLEEP_MAX),
        on_sleep in option::of((command(), length(ON_SLEEP_DEADLINE_MIN, limits::ON_SLEEP_MAX))),
    ) -> Manifest {
        let taken = |name: &str| services.iter().any(|service| service.name.as_str() == name);
        Manifest {
            resources: resources.into_iter().filter(|(name, _)| !taken(name)).map(|(name, (kind, mode))| Resource { name, kind, mode }).collect(),
            jobs: jobs.into_iter().map(|(name, (command, kind, secrets))| Job { name, command, kind, secrets: secrets.into_iter().collect() }).collect(),
            idle_sleep,
            on_sleep: on_sleep.map(|(command, deadline)| Hook { command, deadline }),
            services,
        }
    }
}

/// Pieces of YAML and of our format in any order: reaches deeper into the parsers than arbitrary text does.
pub(crate) fn fragments() -> impl Strategy<Value = String> {
    let pieces = vec![
        "version",
        "services",
        "web",
        "route",
        "command",
        "readiness",
        "environment",
        "secrets",
        "on_sleep",
        "jobs",
        ": ",
        ":",
        "\n",
        "\n  ",
        "\n    ",
        "\n\n",
        "- ",
        "-",
        "? ",
        "{",
        "}",
        "[",
        "]",
        ",",
        ", ",
        "\"",
        "'",
        "|",
        "|2-",
        ">+",
        "&a",
        "*a",
        "!",
        "!!str ",
        "!<x>",
        "<<",
        "#",
        " #c",
        "---",
        "\n---\n",
        "...",
        "\n...\n",
        "%YAML 1.2\n",
        "%TAG ! x\n",
        "\t",
        "\r",
        "\r\n",
        " ",
        "    ",
        "\\",
        "\\x4",
        "\"\\n\\u202e\"",
        "\u{202e}",
        "\\u00e9",
        "~",
        "null",
        "1",
        "15m",
        "no",
        "\0",
        "\u{feff}",
        "\u{85}",
        "\u{2028}",
        "é",
        "🦀",
        "@",
        "`",
    ];
    vec(select(pieces), 0..60).prop_map(|parts| parts.concat())
}
