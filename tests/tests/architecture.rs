//! Holds ARCHITECTURE.md's dependency table against the workspace, and the house rules against every source file.
//!
//! It does not judge behaviour. Which crate may use which library stands in deny.toml and is checked by `cargo xtask check`.
#![allow(clippy::unwrap_used)]

use envforge_domain::access::{Action, TABLE};
use envforge_domain::commit::Surface;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Crate name -> names of the workspace crates it depends on. Names as in the table: `domain` for `envforge-domain`.
type Graph = BTreeMap<String, BTreeSet<String>>;

const LINES_MAX: usize = 800;
const FORBIDDEN_MODULES: [&str; 8] = ["utils", "util", "common", "helpers", "helper", "manager", "managers", "types"];
/// Every crate's tests may start servers.
const TEST_SUPPORT: &str = "testkit";

#[test]
fn crates_depend_only_on_what_the_table_in_architecture_md_allows() {
    let table = parse_table(&read("ARCHITECTURE.md")).unwrap();
    let (dependencies, for_tests) = workspace_graph();
    assert_no_findings(violations(&table, &dependencies, &for_tests));
}

#[test]
fn no_crates_depend_on_each_other_in_a_circle() {
    let table = parse_table(&read("ARCHITECTURE.md")).unwrap();
    assert_eq!(cycle(&table), None, "the table itself allows a circle");
    assert_eq!(cycle(&workspace_graph().0), None);
}

#[test]
fn the_domain_reads_no_clock_and_does_no_io() {
    assert_no_findings(each_source(
        |path, text| if path.starts_with("domain/src") { impurities(text) } else { vec![] },
    ));
    let manifest = read("domain/Cargo.toml");
    let product = manifest.split("[dev-dependencies]").next().unwrap();
    let impure =
        ["tokio", "async-trait", "futures-util", "rand", "getrandom", "sqlx", "reqwest", "hyper", "nix", "jiff"];
    let is_impure = |line: &str| impure.iter().any(|name| line.split(['.', ' ', '=']).next() == Some(name));
    let found = lines_with(product, is_impure).map(|line| format!("domain/Cargo.toml:{line}: not for a pure crate"));
    assert_no_findings(found.collect());
}

/// Whoever makes `ActorFacts::System` acts with EnvForge's own rights, so these files and no others do: a new one is
/// reviewed like a change of the policy.
const MAY_ACT_AS_ENVFORGE: [&str; 5] = [
    // The policy itself.
    "domain/src/access/mod.rs",
    // Whoever has the machine's command line, at the first start.
    "envforge/src/server/bootstrap.rs",
    // The gateway's counters of a link, which outlive it.
    "gateway/src/admission.rs",
    // The facts of an actor that says it is a component of ours.
    "projections/src/authorization.rs",
    // Reactors and timers.
    "reactors/src/permit.rs",
];

#[test]
fn only_the_listed_files_act_with_envforges_own_rights() {
    assert_no_findings(each_source(|path, text| {
        let listed = MAY_ACT_AS_ENVFORGE.iter().any(|listed| path == Path::new(listed));
        let found = acts_as_envforge(path, text);
        match (listed, found.is_empty()) {
            (true, true) => vec!["1: does not act as EnvForge any more: take it off the list".to_owned()],
            (true, false) => vec![],
            (false, _) => found,
        }
    }));
}

/// The verbs of the command line are walked where they are made: `envforge/src/cli/rights.rs`.
#[test]
fn every_route_and_every_step_of_the_gateway_has_a_row_in_the_reviewed_matrix() {
    let matrix = read("tests/golden/access.txt");
    let reviewed: BTreeSet<&str> = matrix
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    let document: Value = serde_json::from_str(&read("docs/openapi.json")).unwrap();
    let mut found = routes_without_a_row(&document, &reviewed);
    found.extend(each_source(|path, text| {
        if path.starts_with("gateway/src") { gateway_steps_without_a_row(text, &reviewed) } else { vec![] }
    }));
    assert_no_findings(found);
}

#[test]
fn every_source_file_opens_by_saying_what_it_owns() {
    assert_no_findings(each_source(|_, text| opening(text)));
}

#[test]
fn no_module_is_a_drawer_for_everything() {
    assert_no_findings(each_source(forbidden_modules));
}

#[test]
fn no_source_file_is_longer_than_one_noun_needs() {
    assert_no_findings(each_source(|_, text| {
        let lines = text.lines().count();
        let finding = || format!("{lines}: {lines} lines, at most {LINES_MAX}: split it along a noun");
        if lines > LINES_MAX { vec![finding()] } else { vec![] }
    }));
}

#[test]
fn no_test_is_ignored() {
    let attribute = concat!("#[", "ignore");
    assert_no_findings(each_source(|_, text| {
        let ignored = lines_with(text, |line| line.contains(attribute));
        ignored.map(|line| format!("{line}: an ignored test proves nothing: mend or delete it")).collect()
    }));
}

#[test]
fn tests_wait_for_conditions_and_never_sleep() {
    assert_no_findings(each_source(|path, text| {
        // The one loop that waits.
        if path == Path::new("testkit/src/wait.rs") { vec![] } else { sleeps_in_tests(path, text) }
    }));
}

#[test]
fn tests_that_start_servers_or_browsers_say_so_in_their_names() {
    let words = server_words(&read("xtask/src/test.rs"));
    assert_no_findings(each_source(|path, text| unnamed_servers(path, text, &words)));
}

#[test]
fn nextest_limits_the_tests_that_the_fast_run_leaves_out() {
    let words = server_words(&read("xtask/src/test.rs")).join("|");
    let filter = format!("binary(/{words}/) | test(/{words}/)");
    assert!(
        read(".config/nextest.toml").contains(&filter),
        ".config/nextest.toml lacks `{filter}`, the words of xtask/src/test.rs"
    );
}

#[test]
fn nextest_retries_nothing() {
    let text = read(".config/nextest.toml");
    let found: Vec<usize> = lines_with(&text, |line| !line.starts_with('#') && line.contains("retries")).collect();
    assert!(
        found.is_empty(),
        ".config/nextest.toml retries tests in lines {found:?}: a test that fails sometimes is a bug"
    );
}

#[test]
fn every_invariant_in_architecture_md_names_a_test_that_exists() {
    let mut tests = BTreeSet::new();
    each_source(|_, text| vec![tests_of(text).into_iter().collect::<Vec<_>>().join(" ")])
        .iter()
        .for_each(|names| tests.extend(names.split([' ', ':']).map(str::to_owned)));
    assert_no_findings(unheld_invariants(&read("ARCHITECTURE.md"), &tests));
}

#[test]
fn what_the_documents_link_to_exists() {
    let mut found = Vec::new();
    let mut documents = vec![PathBuf::from("README.md"), PathBuf::from("ARCHITECTURE.md")];
    let mut folders = vec![PathBuf::from("docs")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(root().join(&folder)).unwrap() {
            let path = folder.join(entry.unwrap().file_name());
            if root().join(&path).is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                documents.push(path);
            }
        }
    }
    for document in &documents {
        let folder = root().join(document.parent().unwrap());
        let targets = relative_links(&read(document.to_str().unwrap()));
        let dead = targets.into_iter().filter(|target| !folder.join(target).exists());
        found.extend(dead.map(|target| format!("{}: links to {target}, which does not exist", document.display())));
    }
    assert!(documents.len() > 4, "{documents:?}");
    assert_no_findings(found);
}

// The rules, each a pure function over text or graphs.

/// The rows of the table headed `| crate | may depend on |`. A row without dependencies holds a dash.
fn parse_table(text: &str) -> Result<Graph, String> {
    let mut lines = text.lines().map(str::trim).skip_while(|line| cells(line) != ["crate", "may depend on"]);
    lines.next().ok_or("ARCHITECTURE.md has no table headed `| crate | may depend on |`")?;
    let mut table = Graph::new();
    for line in lines.skip(1).take_while(|line| line.starts_with('|')) {
        let cells = cells(line);
        let [name, dependencies] = cells.as_slice() else { return Err(format!("not two cells: {line}")) };
        let names = dependencies.split(',').map(str::trim).filter(|name| !["", "-", "—"].contains(name));
        if table.insert(name.clone(), names.map(str::to_owned).collect()).is_some() {
            return Err(format!("two rows for {name}"));
        }
    }
    if table.is_empty() { Err("the dependency table has no rows".into()) } else { Ok(table) }
}

fn cells(line: &str) -> Vec<String> {
    let inner = line.trim().trim_matches('|');
    inner.split('|').map(|cell| cell.replace('`', "").trim().to_owned()).collect()
}

fn violations(table: &Graph, dependencies: &Graph, for_tests: &Graph) -> Vec<String> {
    let mut found = Vec::new();
    for name in table.keys().filter(|name| !dependencies.contains_key(*name)) {
        found.push(format!("ARCHITECTURE.md has a row for {name}, which is no crate of the workspace"));
    }
    for (name, allowed) in table {
        for unknown in allowed.iter().filter(|name| !dependencies.contains_key(*name)) {
            found.push(format!("ARCHITECTURE.md lets {name} depend on {unknown}, which is no crate of the workspace"));
        }
    }
    for (name, used) in dependencies {
        let Some(allowed) = table.get(name) else {
            found.push(format!("{name} has no row in ARCHITECTURE.md's dependency table"));
            continue;
        };
        for other in used.difference(allowed) {
            found.push(format!("{name} depends on {other}: the table in ARCHITECTURE.md does not allow it"));
        }
        let in_tests = for_tests.get(name).into_iter().flatten();
        for other in in_tests.filter(|other| *other != TEST_SUPPORT && !allowed.contains(*other)) {
            found
                .push(format!("the tests of {name} depend on {other}: the table in ARCHITECTURE.md does not allow it"));
        }
    }
    found
}

/// A way from a crate back to itself, if there is one.
fn cycle(graph: &Graph) -> Option<Vec<String>> {
    fn walk(graph: &Graph, way: &mut Vec<String>, done: &mut BTreeSet<String>) -> bool {
        let last = way.last().unwrap().clone();
        for next in graph.get(&last).into_iter().flatten() {
            if let Some(start) = way.iter().position(|name| name == next) {
                way.drain(..start);
                way.push(next.clone());
                return true;
            }
            if !done.contains(next) {
                way.push(next.clone());
                if walk(graph, way, done) {
                    return true;
                }
                way.pop();
            }
        }
        done.insert(last);
        false
    }
    let mut done = BTreeSet::new();
    graph.keys().find_map(|name| {
        let mut way = vec![name.clone()];
        walk(graph, &mut way, &mut done).then_some(way)
    })
}

/// Names of a file's tests: functions below a test attribute, also inside proptest's macro, and the names that are given to
/// a macro which writes such functions.
fn tests_of(text: &str) -> BTreeSet<String> {
    let mut tests = BTreeSet::new();
    let mut marked = false;
    for line in text.lines().map(str::trim) {
        if line.starts_with("#[test]") || line.starts_with(concat!("#[tokio::", "test")) {
            marked = true;
        } else if let Some(rest) = line.trim_start_matches("pub ").trim_start_matches("async ").strip_prefix("fn ")
            && std::mem::take(&mut marked)
        {
            tests.insert(rest.split(['(', '<']).next().unwrap().to_owned());
        }
    }
    for rest in text.split("macro_rules! ").skip(1) {
        let name = rest.split([' ', '{']).next().unwrap();
        let body = rest.split("\n}").next().unwrap();
        if !(body.contains("fn $") && (body.contains("#[test]") || body.contains(concat!("#[tokio::", "test")))) {
            continue;
        }
        for call in text.split(&format!("\n{name}! {{")).skip(1) {
            let names = call.split("\n}").next().unwrap().split(|c: char| !(c.is_alphanumeric() || c == '_'));
            tests.extend(names.filter(|name| !name.is_empty()).map(str::to_owned));
        }
    }
    tests
}

/// What a document links to in this repository, without the part after `#`.
fn relative_links(text: &str) -> Vec<String> {
    let outside_code = text.split("```").step_by(2).collect::<Vec<_>>().join("\n");
    let targets = outside_code.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target);
    let paths = targets.filter(|target| !target.contains("://") && !target.starts_with("mailto:"));
    paths.map(|target| target.split('#').next().unwrap().to_owned()).filter(|path| !path.is_empty()).collect()
}

/// Rows of the table headed `| invariant | held by |` that name no test, or one that is not among `tests`.
fn unheld_invariants(text: &str, tests: &BTreeSet<String>) -> Vec<String> {
    let mut lines = text.lines().skip_while(|line| cells(line) != ["invariant", "held by"]);
    if lines.next().is_none() {
        return vec!["ARCHITECTURE.md has no table headed `| invariant | held by |`".into()];
    }
    let mut found = Vec::new();
    for line in lines.skip(1).take_while(|line| line.starts_with('|')) {
        let held_by = line.trim().trim_matches('|').rsplit('|').next().unwrap().trim();
        if held_by.starts_with("the compiler: ") {
            continue;
        }
        let named: Vec<&str> = held_by.split('`').skip(1).step_by(2).collect();
        if named.is_empty() {
            found.push(format!("held by no test: {line}"));
        }
        let missing = named.into_iter().filter(|name| !tests.contains(*name));
        found.extend(missing.map(|name| format!("no test is called {name}, which ARCHITECTURE.md names")));
    }
    found
}

fn opening(text: &str) -> Vec<String> {
    let first = text.trim_start().strip_prefix("//!").and_then(|rest| rest.lines().next());
    if first.is_some_and(|line| line.trim().len() > 5) {
        vec![]
    } else {
        vec!["1: opens without `//!` and a sentence: what does it own, and what not?".into()]
    }
}

fn forbidden_modules(path: &Path, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let stem = path.with_extension("");
    for part in stem.iter().filter_map(|part| part.to_str()).filter(|part| FORBIDDEN_MODULES.contains(part)) {
        found.push(format!("1: a file or folder called {part} has no noun: name what it owns"));
    }
    let names_drawer = |line: &str| {
        let line = line.trim().trim_start_matches("pub(crate) ").trim_start_matches("pub ");
        let name = line.strip_prefix("mod ").map(|rest| rest.trim_end_matches([';', '{', ' ', '}']));
        name.is_some_and(|name| FORBIDDEN_MODULES.contains(&name))
    };
    found.extend(lines_with(text, names_drawer).map(|line| format!("{line}: no noun: name what this module owns")));
    found
}

/// Where a file of the product names EnvForge's own rights, or the type of facts by another name, which would hide that.
fn acts_as_envforge(path: &Path, text: &str) -> Vec<String> {
    if path.iter().any(|part| part == "tests") || path.file_stem().is_some_and(|name| name == "tests") {
        return vec![];
    }
    let end = text.lines().position(|line| line.trim() == "#[cfg(test)]").unwrap_or(usize::MAX);
    // `concat!`, so that this file is not among what it finds.
    let marks = ["::System", "::{", "::*", " as "].map(|after| format!("{}{after}", concat!("Actor", "Facts")));
    lines_with(text, |line| marks.iter().any(|mark| line.contains(mark)))
        .filter(|line| *line <= end)
        .map(|line| format!("{line}: acts with EnvForge's own rights: ask for a permit of the one who asked"))
        .collect()
}

/// Operations of an OpenAPI document that name no action, or one that nobody has reviewed or nobody may do on the API.
fn routes_without_a_row(document: &Value, reviewed: &BTreeSet<&str>) -> Vec<String> {
    let mut found = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let finding = match operation["x-envforge-action"].as_str() {
                None => Some("names no action"),
                Some("public") => None,
                Some(token) if !reviewed.contains(token) => Some("names an action that is not in the matrix"),
                Some(token) => match Action::from_token(token) {
                    Some(action) if possible_on(action, Surface::Api) => None,
                    Some(_) | None => Some("names an action that nobody may do on the API"),
                },
            };
            found.extend(finding.map(|finding| format!("{method} {path}: {finding}")));
        }
    }
    found
}

/// Actions that a file of the gateway asks for and that are not reviewed, or nobody may do on the gateway.
fn gateway_steps_without_a_row(text: &str, reviewed: &BTreeSet<&str>) -> Vec<String> {
    let mut found = Vec::new();
    for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim_start().starts_with("//")) {
        for rest in line.split("Action::").skip(1) {
            let name: String = rest.chars().take_while(char::is_ascii_alphanumeric).collect();
            let row = TABLE.iter().find(|row| format!("{:?}", row.action) == name);
            let has_row =
                row.is_some_and(|row| reviewed.contains(row.token) && possible_on(row.action, Surface::Gateway));
            if !has_row {
                found.push(format!("{number}: asks for Action::{name}, which nobody may do on the gateway"));
            }
        }
    }
    found
}

fn possible_on(action: Action, surface: Surface) -> bool {
    let row = action.row();
    row.surfaces.contains(&surface) || row.principals.iter().any(|(_, surfaces)| surfaces.contains(&surface))
}

/// What would make a decision depend on more than its arguments. Tests of the domain may read golden files.
fn impurities(text: &str) -> Vec<String> {
    let end = text.lines().position(|line| line.trim() == "#[cfg(test)]").unwrap_or(usize::MAX);
    let marks = [
        "std::fs",
        "TcpStream",
        "TcpListener",
        "UdpSocket",
        "std::env",
        "std::process",
        "std::thread",
        "::now()",
        "::now_v7()",
        "::new_v4()",
        "async fn",
    ];
    lines_with(text, |line| marks.iter().any(|mark| line.contains(mark)))
        .filter(|line| *line <= end)
        .map(|line| format!("{line}: the domain is pure: time, ids and looked-up facts ride in the command"))
        .collect()
}

fn sleeps_in_tests(path: &Path, text: &str) -> Vec<String> {
    let in_tests_folder = path.iter().any(|part| part == "tests");
    let begin = text.lines().position(|line| line.trim() == "#[cfg(test)]");
    let begin = if in_tests_folder { 0 } else { begin.unwrap_or(usize::MAX) };
    let sleeps = |line: &str| {
        // A pause between two looks at a condition, or of a peer that is slow on purpose, says so on its own line.
        let reasoned = line.contains("// pause: ");
        let calls =
            !reasoned && (line.contains(concat!("thread::", "sleep")) || line.contains(concat!("time::", "sleep")));
        calls || (line.trim().starts_with("use ") && line.contains("time::{") && line.contains("sleep"))
    };
    let what_instead = "wait for a condition (envforge_testkit::wait_until, eventually) or advance the clock";
    lines_with(text, sleeps)
        .filter(|line| *line > begin)
        .map(|line| format!("{line}: sleeps: {what_instead}"))
        .collect()
}

/// The words of `const SERVERS: &str = "a|b";`.
fn server_words(source: &str) -> Vec<String> {
    let (_, rest) = source.split_once("const SERVERS: &str = \"").unwrap();
    rest.split_once('"').unwrap().0.split('|').map(str::to_owned).collect()
}

fn unnamed_servers(path: &Path, text: &str, words: &[String]) -> Vec<String> {
    let named = |name: &str| words.iter().any(|word| name.contains(word.as_str()));
    let is_test = text.contains("#[test]") || text.contains(concat!("#[tokio::", "test"));
    if !is_test || named(&path.to_string_lossy()) || text.lines().any(|line| line.contains("mod ") && named(line)) {
        return vec![];
    }
    let starts = [
        "NatsServer::start",
        "Postgres::start",
        "Postgres::shared",
        "OidcProvider::start",
        "Tool::Chromium.path",
        "Tool::BrowserDir.path",
    ];
    let what_instead = format!("put one of {} into the name of the file or module", words.join(", "));
    // Quoted names, as here above, start nothing.
    lines_with(text, |line| !line.contains('"') && starts.iter().any(|start| line.contains(start)))
        .map(|line| format!("{line}: starts a server or browser: {what_instead}"))
        .collect()
}

/// Numbers, from one, of the lines outside comments for which `wanted` holds.
fn lines_with(text: &str, wanted: impl Fn(&str) -> bool) -> std::vec::IntoIter<usize> {
    let lines = text.lines().enumerate();
    let hits =
        lines.filter(|(_, line)| !line.trim_start().starts_with("//") && wanted(line)).map(|(index, _)| index + 1);
    hits.collect::<Vec<_>>().into_iter()
}

// The workspace as it is.

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// What crates depend on in the product, and in tests alone.
fn workspace_graph() -> (Graph, Graph) {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["metadata", "--no-deps", "--format-version", "1", "--offline"]).current_dir(root());
    let output = cargo.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let members: BTreeSet<&str> = packages.iter().map(|package| package["name"].as_str().unwrap()).collect();
    let short = |name: &str| name.strip_prefix("envforge-").unwrap_or(name).to_owned();
    let (mut product, mut tests) = (Graph::new(), Graph::new());
    for package in packages {
        let name = short(package["name"].as_str().unwrap());
        product.entry(name.clone()).or_default();
        for dependency in package["dependencies"].as_array().unwrap() {
            let other = dependency["name"].as_str().unwrap();
            if members.contains(other) {
                let graph = if dependency["kind"] == "dev" { &mut tests } else { &mut product };
                graph.entry(name.clone()).or_default().insert(short(other));
            }
        }
    }
    (product, tests)
}

fn each_source(judge: impl Fn(&Path, &str) -> Vec<String>) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![root().to_path_buf()];
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() && !path.is_symlink() {
                if !name.starts_with('.') && !["target", "node_modules"].contains(&name.as_str()) {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files += 1;
                let text = std::fs::read_to_string(&path).unwrap();
                let relative = path.strip_prefix(root()).unwrap();
                found.extend(
                    judge(relative, &text).into_iter().map(|finding| format!("{}:{finding}", relative.display())),
                );
            }
        }
    }
    assert!(files > 10, "only {files} source files found below {}", root().display());
    found
}

#[track_caller]
fn assert_no_findings(findings: Vec<String>) {
    assert!(findings.is_empty(), "{} finding(s):\n{}", findings.len(), findings.join("\n"));
}

mod each_rule_can_fail {
    //! A rule that never finds anything would hold nothing.

    use super::*;

    fn graph(rows: &[(&str, &[&str])]) -> Graph {
        rows.iter()
            .map(|(name, uses)| ((*name).to_owned(), uses.iter().map(|name| (*name).to_owned()).collect()))
            .collect()
    }

    #[test]
    fn the_table_is_read_with_ticks_and_dashes() {
        let head = "x\n| crate | may depend on |\n|---|---|\n";
        let table = parse_table(&format!("{head}| `domain` | — |\n| `log` | `domain`, other |\n\n| a | b |")).unwrap();
        assert_eq!(table, graph(&[("domain", &[]), ("log", &["domain", "other"])]));
        assert!(parse_table("| crate | uses |\n|---|---|\n| a | b |").is_err());
        assert!(parse_table(head).unwrap_err().contains("no rows"));
        assert!(parse_table(&format!("{head}| a | b |\n| a | c |")).unwrap_err().contains("two rows for a"));
    }

    #[test]
    fn a_missing_row_a_row_too_many_and_a_forbidden_dependency_are_found() {
        let real = graph(&[("a", &[]), ("b", &["a"]), ("c", &[])]);
        let table = graph(&[("a", &[]), ("b", &[]), ("ghost", &["phantom"])]);
        let found = violations(&table, &real, &graph(&[("a", &["testkit", "c"])])).join("\n");
        for part in ["row for ghost", "depend on phantom", "b depends on a", "c has no row", "tests of a depend on c"] {
            assert!(found.contains(part), "{part} is not in:\n{found}");
        }
        assert!(!found.contains("testkit"));
        assert_eq!(violations(&real, &real, &Graph::new()), Vec::<String>::new());
    }

    #[test]
    fn a_circle_is_found() {
        let circle = cycle(&graph(&[("a", &["b", "c"]), ("b", &[]), ("c", &["d"]), ("d", &["c"])]));
        assert_eq!(circle.unwrap(), ["c", "d", "c"]);
        assert_eq!(cycle(&graph(&[("a", &["b", "c"]), ("b", &["c"]), ("c", &[])])), None);
    }

    #[test]
    fn invariants_that_nothing_holds_are_found() {
        let functions = BTreeSet::from(["one".to_owned()]);
        let rows =
            |rows: &str| unheld_invariants(&format!("| invariant | held by |\n|---|---|\n{rows}"), &functions).len();
        assert_eq!(rows("| a | `one` |\n| b | the compiler: x |"), 0);
        assert_eq!(rows("| a | hope |\n| b | `one`, `two` |"), 2);
        assert_eq!(unheld_invariants("", &functions).len(), 1);
    }

    #[test]
    fn a_function_that_is_no_test_holds_nothing() {
        let text = "fn helper() {}\n#[test]\n#[allow(x)]\nfn a_test() {}\nfn other() {}\n#[tokio::test(flavor = \"x\")]\n\
                    async fn a_slow_one() {}\nmacro_rules! each {\n    (x) => { #[tokio::test]\n async fn $name() {} };\n}\n\
                    each! {\n    module::listed,\n}\nplain! {\n    unlisted,\n}\n";
        let tests = tests_of(&text.replace("tokio::test", concat!("tokio::", "test")));
        for (name, is_test) in [
            ("a_test", true),
            ("a_slow_one", true),
            ("listed", true),
            ("helper", false),
            ("other", false),
            ("unlisted", false),
        ] {
            assert_eq!(tests.contains(name), is_test, "{name} in {tests:?}");
        }
    }

    #[test]
    fn links_into_the_repository_are_found_and_others_left_alone() {
        let text = "[a](docs/a.md#part) ![b](b.png) [c](https://x.example/c) [d](#here)\n```\n[e](e.md)\n```\n[f](f)";
        assert_eq!(relative_links(text), ["docs/a.md", "b.png", "f"]);
    }

    #[test]
    fn files_without_an_opening_and_drawers_are_found() {
        assert_eq!(opening("use std::fmt;\n").len() + opening("//!\nfn x() {}").len(), 2);
        assert_eq!(opening("//! What it owns, and what not.\n").len(), 0);
        assert_eq!(forbidden_modules(Path::new("api/src/utils.rs"), "").len(), 1);
        assert_eq!(
            forbidden_modules(Path::new("api/src/lib.rs"), "//! x\npub(crate) mod helpers;\nmod typeset;\n").len(),
            1
        );
    }

    #[test]
    fn clocks_and_io_in_the_domain_are_found() {
        assert_eq!(impurities("let now = Instant::now();\nlet text = std::fs::read(path);\n").len(), 2);
        assert_eq!(impurities("let now = context.now;\n#[cfg(test)]\nlet text = std::fs::read(path);\n").len(), 0);
    }

    #[test]
    fn acting_as_envforge_is_found() {
        let found = |path: &str, text: &str| acts_as_envforge(Path::new(path), text).len();
        let facts = concat!("let facts = Facts { position, actor: Actor", "Facts::System };\n");
        assert_eq!(found("api/src/access.rs", facts), 1);
        assert_eq!(found("api/src/access.rs", concat!("use envforge_domain::access::Actor", "Facts as Who;\n")), 1);
        assert_eq!(found("api/src/access.rs", concat!("use envforge_domain::access::Actor", "Facts::*;\n")), 1);
        assert_eq!(found("api/tests/api/house.rs", facts), 0);
        assert_eq!(found("api/src/access.rs", &format!("#[cfg(test)]\n{facts}")), 0);
        assert_eq!(found("api/src/access.rs", concat!("Actor", "Facts::Nobody => Err(Denial::NotAMember),\n")), 0);
    }

    #[test]
    fn routes_and_gateway_steps_without_a_row_are_found() {
        let reviewed = BTreeSet::from(["project.read", "app.forward", "link.expire"]);
        let document = |action: Value| serde_json::json!({"paths": {"/v1/x": {"get": {"x-envforge-action": action}}}});
        for (action, count) in [
            (Value::Null, 1),
            ("public".into(), 0),
            ("project.read".into(), 0),
            ("project.steal".into(), 1),
            ("project.edit".into(), 1),
            // Reviewed, and nobody's on the API.
            ("link.expire".into(), 1),
        ] {
            assert_eq!(routes_without_a_row(&document(action.clone()), &reviewed).len(), count, "{action}");
        }
        let steps = |text: &str| gateway_steps_without_a_row(text, &reviewed).len();
        assert_eq!(steps("authorize(link, Action::AppForward)\n// Action::ProjectRead\n"), 0);
        assert_eq!(steps("authorize(link, Action::ProjectRead)"), 1);
        assert_eq!(steps("authorize(link, Action::NoSuchThing)"), 1);
    }

    #[test]
    fn sleeps_and_unnamed_servers_are_found() {
        let sleep = format!("fn run() {{\n    {}{}(d);\n}}\n", "tokio::time::", "sleep");
        assert_eq!(sleeps_in_tests(Path::new("api/tests/x.rs"), &sleep).len(), 1);
        assert_eq!(sleeps_in_tests(Path::new("api/src/x.rs"), &sleep).len(), 0);
        assert_eq!(sleeps_in_tests(Path::new("api/src/x.rs"), &format!("#[cfg(test)]\n{sleep}")).len(), 1);
        let words = vec!["nats".to_owned()];
        let starts = "#[test]\nfn x() { NatsServer::start(); }\n";
        assert_eq!(unnamed_servers(Path::new("eventlog/tests/crash.rs"), starts, &words).len(), 1);
        assert_eq!(unnamed_servers(Path::new("eventlog/tests/crash_nats.rs"), starts, &words).len(), 0);
    }
}
