//! What is refused, in which words. Each message says where, what was found and what would be right.

use envforge_domain::limits;
use envforge_domain::manifest::{ErrorKind, Manifest, ManifestErrors};

fn messages(text: &str) -> Vec<String> {
    match Manifest::parse(text) {
        Ok(_) => Vec::new(),
        Err(errors) => errors.errors().iter().map(ToString::to_string).collect(),
    }
}

/// Whole files.
const FILES: &[(&str, &[&str])] = &[
    (
        "",
        &[
            "1:1: found an empty file; it begins with `version: 1` and declares `services`, such as `services: { web: { command: ./serve } }`",
        ],
    ),
    (
        "# nothing\n",
        &[
            "1:1: found an empty file; it begins with `version: 1` and declares `services`, such as `services: { web: { command: ./serve } }`",
        ],
    ),
    (
        "---\n",
        &[
            "2:1: found an empty file; it begins with `version: 1` and declares `services`, such as `services: { web: { command: ./serve } }`",
        ],
    ),
    (
        "services: [web]\n",
        &[
            "1:1: version: found no `version`; begin the file with `version: 1`",
            "1:11: services: found a list; `services` is a mapping of names, such as `{ web: { command: ./serve } }`",
        ],
    ),
    (
        "version: 2\nservices: {}\n",
        &[
            "1:10: version: found `2`; this EnvForge reads `version: 1`",
            "2:1: services: found no service; declare at least one, such as `services: { web: { command: ./serve } }`",
        ],
    ),
    (
        "version: \"1\"\n",
        &[
            "1:1: services: found no `services`; declare at least one, such as `services: { web: { command: ./serve } }`",
            "1:10: version: found a quoted text; it is a number; write `version: 1` without quotes",
        ],
    ),
    (
        "- a\n",
        &[
            "1:1: found a list; it begins with `version: 1` and declares `services`, such as `services: { web: { command: ./serve } }`",
        ],
    ),
    (
        "hello",
        &[
            "1:1: found `hello`; it begins with `version: 1` and declares `services`, such as `services: { web: { command: ./serve } }`",
        ],
    ),
    (
        "version: 1\nservices:\n\tweb: {}\n",
        &[
            "3:2: found invalid YAML (tabs disallowed within this context (block indentation)); indent with spaces, YAML allows no tabs there",
        ],
    ),
    (
        "version: 1\nservices: { web: { command: ./a }\n",
        &[
            "3:1: found invalid YAML (while parsing a flow mapping, did not find expected ',' or '}'); separate entries with `,` and close the mapping with `}`",
        ],
    ),
    (
        "version: 1\nservices: {web: {command: \"a}}\n",
        &["2:27: found invalid YAML (while scanning a quoted scalar, found unexpected end of stream); close the quote"],
    ),
    (
        "version: 1\nversion: 1\nservices: {web: {command: a}}\n",
        &["2:1: version: found the key `version` a second time; it stands on line 1 already; keep one of the two"],
    ),
    ("version: 1\n--- \nversion: 1", &["2:1: found a second YAML document; the file holds one; remove the `---`"]),
    (
        "version: 1\n<<: {}\nservices: {web: {command: a}}\n",
        &["2:1: <<: found a merge key (`<<`); merge keys are not supported; write the keys where they are needed"],
    ),
    (
        "version: 1\nservices: &x {web: *x}\n",
        &[
            "2:11: services: found an anchor (`&`); anchors are not supported; remove it and write the value where it is needed",
            "2:20: services.web: found an alias (`*`); aliases are not supported; write the value here, or quote a text that begins with `*`",
        ],
    ),
    (
        "version: 1\nservices: {web: *y}\n",
        &[
            "2:17: found an alias (`*`); aliases are not supported; write the value here, or quote a text that begins with `*`",
        ],
    ),
    (
        "version: 1\nservices: {web: {command: !!str a}}\n",
        &["2:27: services.web.command: found the tag `!!str`; tags are not supported; for a text use quotes"],
    ),
    (
        "version: 1\nservices: {[a]: {command: a}}\n",
        &[
            "2:1: services: found no service; declare at least one, such as `services: { web: { command: ./serve } }`",
            "2:12: services: found a list or mapping as a key; a key is a single word; quote a text that begins with `[` or `{`",
        ],
    ),
    (
        "version: 1\nservices: {ui: {command: a}, Web: {command: a}, yes: {command: a}, api: }\n",
        &[
            "2:12: services.ui: found `ui`; a service name has 3 to 40 characters, not 2",
            "2:30: services.Web: found `Web`; a service name has only a-z, 0-9 and single hyphens, not `W` (character 1)",
            "2:49: services.yes: found the unquoted `yes`, which YAML readers may take for a boolean; if the text is meant, write `\"yes\"`",
            "2:68: services.api: found no value; a service is a mapping such as `{ command: ./serve, route: web }`",
        ],
    ),
    (
        "version: 1\nservices:\n  web:\n    command: echo hi: there\n",
        &[
            "4:21: found invalid YAML (mapping values are not allowed in this context); quote a text that holds `: `, or correct the indentation",
        ],
    ),
    (
        "version: 1\nservices:\n  web:\n    command: `ls`\n",
        &["4:14: found invalid YAML (unexpected character: ``'); quote a text that begins with `@`, a backtick or `%`"],
    ),
    (
        "version: 1\nservices:\n  web:\n  command: a\n",
        &[
            "3:3: services.web: found no value; a service is a mapping such as `{ command: ./serve, route: web }`",
            "4:12: services.command: found `a`; this is a key of a service; indent it below the service's name",
        ],
    ),
    (
        "version: 1\nidle_sleep: 15\nservices: {web: {command: a}}\n",
        &["2:13: idle_sleep: found `15` without a unit; add a unit: `15ms`, `15s`, `15m` or `15h`"],
    ),
    (
        "version: 1\nidle_sleep: 5s\non_sleep: {deadline: 1m}\nservices: {web: {command: a}}\n",
        &[
            "2:13: idle_sleep: found `5s`; allowed is 30s to 24h",
            "3:11: on_sleep.command: found no `command`; say what to run, such as `command: ./serve`",
            "3:22: on_sleep.deadline: found `1m`; allowed is 100ms to 30s",
        ],
    ),
    (
        "version: 1\nidle_sleep: 12:30\nservices: {web: {command: a}}\n",
        &[
            "2:13: idle_sleep: found the unquoted `12:30`, which YAML readers may take for a number of base 60; a duration is a whole number and `ms`, `s`, `m` or `h`, such as `15m`",
        ],
    ),
    (
        "version: 1\nidle_sleep: {a: b}\nservices: {web: {command: a}}\n",
        &["2:13: idle_sleep: found a mapping; a duration such as `15m` belongs here"],
    ),
    (
        "version: 1\nidle_sleep: 2 hours\nservices: {web: {comand: a}}\nresouces: {}",
        &[
            "2:13: idle_sleep: found `2 hours`; a duration is a whole number and `ms`, `s`, `m` or `h`, such as `15m`",
            "3:18: services.web.comand: found an unknown key `comand`; did you mean `command`?",
            "4:1: resouces: found an unknown key `resouces`; did you mean `resources`?",
        ],
    ),
    (
        "version: 1\nservices: {web: {command: a}}\nresources: {web: {kind: redis}, mail: {mode: customer_cloud}}\njobs: {a_b: {command: a, kind: tests}}",
        &[
            "3:13: resources.web: found `web`; a service has this name; links open services and never resources, so name them apart",
            "3:39: resources.mail.kind: found no `kind`; say what it is, such as `kind: mailpit`",
            "3:46: resources.mail.mode: found `customer_cloud`; did you mean `customer-cloud`?",
            "4:8: jobs.a_b: found `a_b`; a job name has only a-z, 0-9 and single hyphens, not `_` (character 2)",
            "4:32: jobs.a_b.kind: found `tests`; did you mean `test`?",
        ],
    ),
    (
        "version: 1\r\nservices:\r\n  web:\r\n    command: no\r\n",
        &[
            "4:14: services.web.command: found the unquoted `no`, which YAML readers may take for a boolean; if the text is meant, write `\"no\"`",
        ],
    ),
    (
        "version: 1\nservices:\n  web: { command: é, prot: X }\n",
        &["3:22: services.web.prot: found an unknown key `prot`; did you mean `port`?"],
    ),
    (
        "\u{feff}version: 1\nservices: {web: {command: a, env: {}}}\n",
        &["2:30: services.web.env: found an unknown key `env`; did you mean `environment`?"],
    ),
    (
        "version: 1\u{7}\n",
        &["1:11: found the character U+0007; YAML allows only printable characters; in double quotes write `\\x07`"],
    ),
    ("version: 1\0\n", &["1:11: found the character U+0000; YAML allows only printable characters; remove it"]),
    (
        "version: 1\nservices: {web: {command: a, port: none, route: web, readiness: {http: /x}}}\n",
        &[
            "2:49: services.web.route: found a route of a service with `port: none`; a service with a route needs a port; remove `port: none` or the route",
            "2:66: services.web.readiness: found the probe `http` of a service with `port: none`; give the service a port, or use `command` or `none`",
        ],
    ),
    (
        "version: 1\nservices: {api: {command: a, route: {api: /api}}, two: {command: a, route: {assets: /api}}, web: {command: a, route: {web: {}, websockets: [/api/live]}}}\n",
        &[
            "2:85: services.two.route.assets: found `/api`; the service `api` has it on line 2; prefixes must differ, though one may lie below another",
            "2:141: services.web.route.websockets[0]: found `/api/live`; the service `api` answers `/api`, so declare the WebSocket there",
        ],
    ),
    (
        "{version\n\nversion: &a",
        &[
            "3:10: version\\nversion: found an anchor (`&`); anchors are not supported; remove it and write the value where it is needed",
            "3:12: found invalid YAML (while parsing a flow mapping, did not find expected ',' or '}'); separate entries with `,` and close the mapping with `}`",
        ],
    ),
    (
        "version: 1\nservices: { \"a\\nb\\u202e\": { command: a } }\n",
        &[
            "2:13: services.a\\nb\\u{202e}: found `a\\nb\\u{202e}`; a service name has only a-z, 0-9 and single hyphens, not `\\n` (character 2)",
        ],
    ),
    (
        "version: 1\nservices: { web: { command: \"a\\qb\" } }\n",
        &[
            "2:29: found invalid YAML (while parsing a quoted scalar, found unknown escape character); in double quotes write `\\\\` for a backslash, or use single quotes",
        ],
    ),
    (
        "version: 1\nservices: { web: { command: \"a\\0b\" } }\n",
        &["2:29: services.web.command: found the character U+0000; a command cannot hold it; remove it"],
    ),
    (
        "version: 1\nservices: { web: { command: '  ' } }\n",
        &["2:29: services.web.command: found an empty command; say what to run, such as `./serve`"],
    ),
    (
        "version: 1\nservices: { web: { command: [./serve, --port] } }\n",
        &[
            "2:29: services.web.command: found a list; a command is one text that `sh -c` runs, such as `python3 server.py`",
        ],
    ),
    (
        "version: 1\nservices: { web: { command: @a } }\n",
        &["2:29: found invalid YAML (unexpected character: `@'); quote a text that begins with `@`, a backtick or `%`"],
    ),
];

/// The fifth line of a file, within the service `web`.
const IN_A_SERVICE: &[(&str, &[&str])] = &[
    (
        "command: b",
        &[
            "5:5: services.web.command: found the key `command` a second time; it stands on line 4 already; keep one of the two",
        ],
    ),
    (
        "port: 8080",
        &[
            "5:11: services.web.port: found `8080`; EnvForge allots the port; write the name of the variable that carries it, such as `PORT`",
        ],
    ),
    (
        "port: no",
        &[
            "5:11: services.web.port: found the unquoted `no`, which YAML readers may take for a boolean; for a service that listens nowhere write `none`",
        ],
    ),
    (
        "port: no_port",
        &[
            "5:11: services.web.port: found `n` at position 1 of a variable name; a variable name has A-Z, 0-9 and `_` and does not begin with a digit, such as `DATABASE_URL`",
        ],
    ),
    (
        "port: ENVFORGE_PORT",
        &[
            "5:11: services.web.port: found a reserved variable name; names that begin with `ENVFORGE_` are set by EnvForge; choose another",
        ],
    ),
    (
        "port:",
        &[
            "5:5: services.web.port: found no value; `port` is the name of the variable that carries the allotted port, such as `PORT`, or `none`",
        ],
    ),
    (
        "route: api",
        &["5:12: services.web.route: found `api`; it needs the prefix it answers, such as `route: { api: /api }`"],
    ),
    (
        "route: no",
        &[
            "5:12: services.web.route: found `no`; a route is `web`, `none`, or a mapping with one of `web: {}`, `api: /api`, `assets: /assets` and `marketing: /about`",
        ],
    ),
    (
        "route: {api: /}",
        &[
            "5:18: services.web.route.api: found `/`; `/` belongs to the `web` route; choose a prefix below it, such as `/api`",
        ],
    ),
    ("route: {api: api/}", &["5:18: services.web.route.api: found `api/`; write `/api`"]),
    (
        "route: {api: /api/*}",
        &[
            "5:18: services.web.route.api: found `/api/*`; a path such as `/api/v1`: segments of letters, digits, `-`, `.`, `_` and `~`, at most 200 characters, no pattern",
        ],
    ),
    (
        "route: {web: true}",
        &[
            "5:18: services.web.route.web: found `true`; write `web: {}`; a web route answers its own host from `/`, and `websockets` stands beside it",
        ],
    ),
    (
        "route: {web: }",
        &[
            "5:13: services.web.route.web: found no value; write `web: {}`; a web route answers its own host from `/`, and `websockets` stands beside it",
        ],
    ),
    (
        "route: {}",
        &[
            "5:12: services.web.route: found a route of no kind; a route is `web`, `none`, or a mapping with one of `web: {}`, `api: /api`, `assets: /assets` and `marketing: /about`",
        ],
    ),
    (
        "route: {web: {}, api: /x}",
        &["5:12: services.web.route: found `web` and `api` together; a service has one route; keep one of them"],
    ),
    (
        "route: {assets: /x, websockets: [/x]}",
        &[
            "5:25: services.web.route.websockets: found `websockets` beside `assets`; only `web` and `api` take WebSockets; remove it or choose one of these",
        ],
    ),
    (
        "route: {api: /api, websockets: [/live]}",
        &[
            "5:37: services.web.route.websockets[0]: found `/live`; WebSockets of an api lie at or below its prefix `/api`",
        ],
    ),
    (
        "route: {web: {}, websockets: /live}",
        &["5:34: services.web.route.websockets: found `/live`; `websockets` is a list of paths, such as `[/live]`"],
    ),
    (
        "route: {web: {}, websockets: [/a, /a]}",
        &["5:39: services.web.route.websockets[1]: found `/a` a second time; keep one of the two"],
    ),
    (
        "readiness: tcp",
        &[
            "5:16: services.web.readiness: found `tcp`; a readiness probe is a mapping such as `{ http: /healthz }`, `{ tcp: true }` or `{ none: true }`",
        ],
    ),
    ("readiness: {tcp: yes}", &["5:22: services.web.readiness.tcp: found `yes`; its only value is `true`"]),
    (
        "readiness: {tcp: false}",
        &["5:22: services.web.readiness.tcp: found `false`; its only value is `true`; otherwise leave it out"],
    ),
    (
        "readiness: {http: /a, tcp: true}",
        &["5:16: services.web.readiness: found `http` and `tcp` together; a service has one probe; keep one of them"],
    ),
    (
        "readiness: {none: true, deadline: 3s}",
        &[
            "5:29: services.web.readiness: found `deadline` without a probe; remove it, or choose a probe (`http`, `tcp` or `command`)",
        ],
    ),
    ("readiness: {htp: /a}", &["5:17: services.web.readiness.htp: found an unknown key `htp`; did you mean `http`?"]),
    (
        "readiness: {http: http://localhost/x}",
        &[
            "5:23: services.web.readiness.http: found `http://localhost/x`; a path on the service's own port, such as `/healthz`, without host and port",
        ],
    ),
    (
        "readiness: {http: healthz, interval: 40s, deadline: 10m}",
        &[
            "5:23: services.web.readiness.http: found `healthz`; a path such as `/healthz`: begins with `/`, URL characters, at most 200",
            "5:42: services.web.readiness.interval: found `40s`; allowed is 50ms to 30s",
            "5:57: services.web.readiness.deadline: found `10m`; allowed is 1s to 5m",
        ],
    ),
    (
        "readiness: {interval: 20s, deadline: 10s}",
        &[
            "5:27: services.web.readiness.interval: found an interval of 20s; it must not be longer than the deadline of 10s",
        ],
    ),
    ("cpu: 100", &["5:10: services.web.cpu: found `100`; allowed is `10m` to `64`"]),
    (
        "cpu: 250M",
        &[
            "5:10: services.web.cpu: found `250M`; CPU is given in millicores such as `250m`, or in cores such as `1` or `0.5` (at most three decimals)",
        ],
    ),
    (
        "cpu: 0.0001",
        &[
            "5:10: services.web.cpu: found `0.0001`; CPU is given in millicores such as `250m`, or in cores such as `1` or `0.5` (at most three decimals)",
        ],
    ),
    ("cpu: 1m", &["5:10: services.web.cpu: found `1m`; allowed is `10m` to `64`"]),
    ("memory: 128MB", &["5:13: services.web.memory: found `128MB`; write `128Mi`"]),
    ("memory: 128", &["5:13: services.web.memory: found `128`; write `128Mi`"]),
    ("memory: 1Mi", &["5:13: services.web.memory: found `1Mi`; allowed is `16Mi` to `512Gi`"]),
    (
        "memory: lots",
        &["5:13: services.web.memory: found `lots`; memory is a whole number and `Mi` or `Gi`, such as `256Mi`"],
    ),
    ("memory: Mi", &["5:13: services.web.memory: found `Mi`; the number before the unit is missing, such as `256Mi`"]),
    (
        "directory: ../x",
        &["5:16: services.web.directory: found `../x`; a directory lies within the repository; `..` is not allowed"],
    ),
    (
        "directory: /x",
        &["5:16: services.web.directory: found `/x`; a directory is relative to the repository's root, such as `web`"],
    ),
    ("directory: ./x/", &["5:16: services.web.directory: found `./x/`; write `x`"]),
    ("directory: .", &["5:16: services.web.directory: found `.`; leave `directory` out for the repository's root"]),
    (
        "environment: [A=b]",
        &[
            "5:18: services.web.environment: found a list; `environment` is a mapping of names to texts, such as `{ GREETING: hello }`",
        ],
    ),
    (
        "environment: {a: b}",
        &[
            "5:19: services.web.environment.a: found `a` at position 1 of a variable name; a variable name has A-Z, 0-9 and `_` and does not begin with a digit, such as `DATABASE_URL`",
        ],
    ),
    (
        "environment: {A: yes}",
        &[
            "5:22: services.web.environment.A: found the unquoted `yes`, which YAML readers may take for a boolean; if the text is meant, write `\"yes\"`",
        ],
    ),
    (
        "environment: {A: 012}",
        &[
            "5:22: services.web.environment.A: found the unquoted `012`, which YAML readers may take for an octal number; if the text is meant, write `\"012\"`",
        ],
    ),
    (
        "environment: {A: 12:30}",
        &[
            "5:22: services.web.environment.A: found the unquoted `12:30`, which YAML readers may take for a number of base 60; if the text is meant, write `\"12:30\"`",
        ],
    ),
    (
        "environment: {A: 1.10}",
        &[
            "5:22: services.web.environment.A: found the unquoted `1.10`, which YAML readers may take for a number; if the text is meant, write `\"1.10\"`",
        ],
    ),
    (
        "environment: {A: }",
        &["5:19: services.web.environment.A: found no value; a text belongs here; for an empty one write `\"\"`"],
    ),
    (
        "environment: {A: ~}",
        &[
            "5:22: services.web.environment.A: found the unquoted `~`, which YAML readers may take for nothing; if the text is meant, write `\"~\"`",
        ],
    ),
    (
        "environment: {A: [b]}",
        &["5:22: services.web.environment.A: found a list; a variable has one text as its value"],
    ),
    (
        "environment: {NO: b}",
        &[
            "5:19: services.web.environment.NO: found the unquoted `NO`, which YAML readers may take for a boolean; if the text is meant, write `\"NO\"`",
        ],
    ),
    (
        "environment: {A: \"\\0\"}",
        &["5:22: services.web.environment.A: found the character U+0000; a variable cannot hold it; remove it"],
    ),
    (
        "environment: {PORT: b}",
        &[
            "5:19: services.web.environment.PORT: found the same variable as the port's variable (`PORT` where `port` names no other); a variable has one source; rename or remove one of them",
        ],
    ),
    (
        "environment: {ENVFORGE_X: b}",
        &[
            "5:19: services.web.environment.ENVFORGE_X: found a reserved variable name; names that begin with `ENVFORGE_` are set by EnvForge; choose another",
        ],
    ),
    (
        "secrets: [A, A]",
        &[
            "5:18: services.web.secrets[1]: found the same variable as `secrets[0]`; a variable has one source; rename or remove one of them",
        ],
    ),
    (
        "secrets: DATABASE_URL",
        &[
            "5:14: services.web.secrets: found a single value; `secrets` is a list of names, such as `[DATABASE_URL]`; values never stand in this file",
        ],
    ),
    (
        "secrets: {A: hunter2}",
        &[
            "5:14: services.web.secrets: found a mapping; `secrets` is a list of names, such as `[DATABASE_URL]`; values never stand in this file",
        ],
    ),
    (
        "secrets: [hunter2]",
        &[
            "5:15: services.web.secrets[0]: found `h` at position 1 of a variable name; a variable name has A-Z, 0-9 and `_` and does not begin with a digit, such as `DATABASE_URL`",
        ],
    ),
    (
        "secrets: [123456, NO, PORT]",
        &[
            "5:15: services.web.secrets[0]: found `1` at position 1 of a variable name; a variable name has A-Z, 0-9 and `_` and does not begin with a digit, such as `DATABASE_URL`",
            "5:23: services.web.secrets[1]: found the unquoted `NO`, which YAML readers may take for a boolean; if the text is meant, write `\"NO\"`",
            "5:27: services.web.secrets[2]: found the same variable as the port's variable (`PORT` where `port` names no other); a variable has one source; rename or remove one of them",
        ],
    ),
    (
        "secrets: [A=hunter2]",
        &[
            "5:15: services.web.secrets[0]: found `=` at position 2 of a variable name; a variable name has A-Z, 0-9 and `_` and does not begin with a digit, such as `DATABASE_URL`",
        ],
    ),
    (
        "healthcheck: x",
        &["5:5: services.web.healthcheck: found an unknown key `healthcheck`; did you mean `readiness`?"],
    ),
    (
        "idle_sleep: 5m",
        &[
            "5:5: services.web.idle_sleep: found an unknown key `idle_sleep`; `idle_sleep` belongs to the top of the file, not to a service",
        ],
    ),
    (
        "kind: x",
        &[
            "5:5: services.web.kind: found an unknown key `kind`; `kind` belongs to a resource (`resources.<name>.kind`); a service has `command`, `directory`, `port`, `route`, `readiness`, `cpu`, `memory`, `environment` and `secrets`",
        ],
    ),
    (
        "zzz: x",
        &[
            "5:5: services.web.zzz: found an unknown key `zzz`; a service has `command`, `directory`, `port`, `route`, `readiness`, `cpu`, `memory`, `environment` and `secrets`",
        ],
    ),
];

#[test]
fn a_wrong_file_is_refused_with_every_mistake_at_its_place() {
    for (text, expected) in FILES {
        assert_eq!(messages(text), *expected, "{text}");
    }
}

#[test]
fn a_wrong_key_of_a_service_is_refused_at_its_place() {
    for (line, expected) in IN_A_SERVICE {
        let text = format!("version: 1\nservices:\n  web:\n    command: ./serve\n    {line}\n");
        assert_eq!(messages(&text), *expected, "{line}");
    }
}

fn service(rest: &str) -> String {
    format!("version: 1\nservices: {{ web: {{ command: a, {rest} }} }}\n")
}

#[test]
fn limits_are_held_and_named() {
    let many = |count: usize, one: &dyn Fn(usize) -> String| (0..count).map(one).collect::<Vec<_>>().join(", ");
    let services =
        |count| format!("version: 1\nservices: {{ {} }}\n", many(count, &|n| format!("svc-{n}: {{ command: a }}")));
    let sockets =
        |count| service(&format!("route: {{ web: {{}}, websockets: [{}] }}", many(count, &|n| format!("/s{n}"))));
    let variables =
        |count| service(&format!("secrets: [KEY], environment: {{ {} }}", many(count - 1, &|n| format!("V{n}: v"))));
    let command = |count| format!("version: 1\nservices: {{ web: {{ command: {} }} }}\n", "é".repeat(count));
    let jobs = |count| {
        format!(
            "version: 1\nservices: {{ web: {{ command: a }} }}\njobs: {{ {} }}\n",
            many(count, &|n| format!("j{n}: {{ command: a }}"))
        )
    };
    let resources = |count| {
        format!(
            "version: 1\nservices: {{ web: {{ command: a }} }}\nresources: {{ {} }}\n",
            many(count, &|n| format!("r{n}: {{ kind: a }}"))
        )
    };
    let bytes = |count: usize| {
        let text = "version: 1\nservices: { web: { command: a } }\n#";
        format!("{text}{}", "x".repeat(count - text.len()))
    };
    let path = |count: usize| service(&format!("route: {{ api: /{} }}", "a".repeat(count - 1)));
    let name = |count: usize| format!("version: 1\nservices: {{ {}: {{ command: a }} }}\n", "a".repeat(count));
    let name_of_variable = |count: usize| service(&format!("secrets: [{}]", "A".repeat(count)));
    type Text<'a> = &'a dyn Fn(usize) -> String;
    let cases: [(Text<'_>, usize, &str); 10] = [
        (&services, limits::MANIFEST_SERVICES_MAX, "2:1: services: found 33 entries; at most 32 are allowed"),
        (
            &sockets,
            limits::MANIFEST_ROUTES_MAX - 1,
            "2:1: services: found 33 routed services and WebSocket paths; at most 32 are allowed",
        ),
        (
            &variables,
            limits::MANIFEST_VARIABLES_MAX,
            "2:13: services.web: found 101 environment entries and secrets; a service has at most 100",
        ),
        (
            &command,
            limits::MANIFEST_COMMAND_CHARS_MAX,
            "2:29: services.web.command: found a command of 4001 characters; at most 4000 are allowed; put it into a script",
        ),
        (&jobs, limits::MANIFEST_JOBS_MAX, "3:1: jobs: found 65 entries; at most 64 are allowed"),
        (&resources, limits::MANIFEST_RESOURCES_MAX, "3:1: resources: found 33 entries; at most 32 are allowed"),
        (&bytes, limits::MANIFEST_BYTES_MAX, "1:1: found a file of 49153 bytes; at most 49152 are allowed"),
        (
            &path,
            200,
            "2:46: services.web.route.api: found `/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa…`; a path such as `/api/v1`: segments of letters, digits, `-`, `.`, `_` and `~`, at most 200 characters, no pattern",
        ),
        (
            &name,
            40,
            "2:13: services.aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa: found `aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa`; a service name has 3 to 40 characters, not 41",
        ),
        (
            &name_of_variable,
            128,
            "2:42: services.web.secrets[0]: found a name of 129 characters; a variable name has A-Z, 0-9 and `_` and does not begin with a digit, such as `DATABASE_URL`, and at most 128 characters",
        ),
    ];
    for (text, max, expected) in cases {
        assert_eq!(messages(&text(max)), Vec::<String>::new(), "{expected}");
        assert_eq!(messages(&text(max + 1)), [expected]);
    }
}

#[test]
fn nesting_is_bounded() {
    for (open, close) in [("[", "]"), ("{a: ", "}")] {
        for depth in [17, 300, 10_000] {
            let text = format!("version: 1\nservices: {}{}", open.repeat(depth), close.repeat(depth));
            let errors = Manifest::parse(&text).unwrap_err();
            assert_eq!(errors.errors()[0].kind, ErrorKind::OutOfLimits, "{errors}");
        }
    }
    let block: String = (0..300).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect();
    assert_eq!(Manifest::parse(&block).unwrap_err().errors()[0].kind, ErrorKind::OutOfLimits);
}

#[test]
fn what_would_not_fit_into_an_event_is_refused() {
    // Each of these characters takes two in the canonical text and four within JSON.
    let value = |count| service(&format!("environment: {{ A: '{}' }}", "\"".repeat(count)));
    assert!(Manifest::parse(&value(14_000)).is_ok());
    assert_eq!(
        messages(&value(16_000)),
        [
            "1:1: found a manifest of 64247 bytes once its defaults are written out and escaped as JSON; at most 57344 can be stored; shorten commands and environment"
        ]
    );
    let carried = Manifest::parse(&value(14_000)).unwrap().render();
    assert!(serde_json::to_string(&carried).unwrap().len() <= limits::MANIFEST_STORED_BYTES_MAX);
}

#[test]
fn the_first_twenty_mistakes_are_listed_and_the_rest_is_counted() {
    let wrong: String = (0..23).map(|n| format!("wrong-{n}: 1\n")).collect();
    let errors = Manifest::parse(&format!("{wrong}version: 1\nservices: {{ web: {{ command: a }} }}\n")).unwrap_err();
    assert_eq!((errors.errors().len(), errors.omitted()), (ManifestErrors::LISTED_MAX, 3));
    assert_eq!(errors.errors()[19].position.line, 20);
    assert!(errors.to_string().ends_with("\nand 3 more errors"), "{errors}");
}

#[test]
fn a_secret_pasted_into_the_file_is_not_repeated() {
    let value = "hunter2-postgres://u:pw@db";
    for text in [
        service(&format!("secrets: [\"{value}\"]")),
        service(&format!("secrets: \"{value}\"")),
        service(&format!("secrets: {{ KEY: \"{value}\" }}")),
        service(&format!("secrets: [{{ KEY: \"{value}\" }}]")),
        service(&format!("secrets: [[\"{value}\"]]")),
    ] {
        let errors = Manifest::parse(&text).unwrap_err();
        assert!(!errors.to_string().contains("hunter2"), "{errors}");
        assert!(!format!("{errors:?}").contains("hunter2"), "{errors:?}");
    }
}

#[test]
fn kinds_have_codes_for_programs() {
    let kind = |text: &str| Manifest::parse(text).unwrap_err().errors()[0].kind.code();
    assert_eq!(kind("a: ["), "syntax");
    assert_eq!(kind(&service("environment: { A: no }")), "ambiguous");
    assert_eq!(kind(&service("prot: A")), "unknown_key");
    assert_eq!(kind(&service("command: b")), "duplicate_key");
    assert_eq!(kind(&service("cpu: []")), "wrong_type");
    assert_eq!(kind(&service("cpu: many")), "invalid_value");
    assert_eq!(kind(&service("cpu: 65")), "out_of_limits");
    assert_eq!(kind(&service("secrets: [PORT]")), "conflict");
    assert_eq!(kind("version: 1"), "missing_key");
    assert_eq!(kind("version: &a 1\nservices: {}"), "unsupported_yaml");
}
