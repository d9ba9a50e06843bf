//! Our own reading of deny.toml: who may depend on which library, which licences and sources we accept.
//!
//! It stands in for cargo-deny where that is not installed, with the same file and the same meaning, for the platform at hand.

use crate::workspace::Workspace;
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Deserialize)]
struct Rules {
    bans: Bans,
    licenses: Licenses,
    sources: Sources,
}

#[derive(Deserialize)]
struct Bans {
    deny: Vec<Ban>,
}

#[derive(Deserialize)]
struct Ban {
    #[serde(rename = "crate")]
    library: String,
    /// Who may depend on it directly; nobody when empty.
    #[serde(default)]
    wrappers: BTreeSet<String>,
    reason: String,
}

#[derive(Deserialize)]
struct Licenses {
    allow: BTreeSet<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Sources {
    allow_registry: Vec<String>,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    source: Option<String>,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    dependencies: Vec<String>,
}

/// Holds deny.toml against the resolved dependencies; returns what was looked at.
pub(crate) fn check(workspace: &Workspace) -> Result<String> {
    let text = std::fs::read_to_string(workspace.root().join("deny.toml")).context("cannot read deny.toml")?;
    let rules: Rules = toml::from_str(&text).context("deny.toml")?;
    let version = workspace.output_of(workspace.command("rustc").arg("-vV"))?;
    let host =
        version.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc -vV names no host")?.to_owned();
    let mut cargo = workspace.cargo();
    cargo.args(["metadata", "--format-version", "1", "--locked", "--filter-platform", &host]);
    let metadata: Metadata = serde_json::from_str(&workspace.output_of(&mut cargo)?).context("cargo metadata")?;
    let findings = findings(&rules, &metadata);
    if !findings.is_empty() {
        bail!("{}", findings.join("\n"));
    }
    Ok(format!("{} packages", metadata.packages.len()))
}

fn findings(rules: &Rules, metadata: &Metadata) -> Vec<String> {
    let packages: BTreeMap<&str, &Package> =
        metadata.packages.iter().map(|package| (package.id.as_str(), package)).collect();
    let mut found = Vec::new();
    for node in &metadata.resolve.nodes {
        let Some(user) = packages.get(node.id.as_str()) else { continue };
        for library in node.dependencies.iter().filter_map(|id| packages.get(id.as_str())) {
            for ban in
                rules.bans.deny.iter().filter(|ban| ban.library == library.name && !ban.wrappers.contains(&user.name))
            {
                let owners = if ban.wrappers.is_empty() {
                    "nobody".to_owned()
                } else {
                    ban.wrappers.iter().cloned().collect::<Vec<_>>().join(", ")
                };
                found.push(format!(
                    "{} depends on {}, which is for {owners}: {} (deny.toml, bans.deny)",
                    user.name, library.name, ban.reason
                ));
            }
        }
    }
    for package in &metadata.packages {
        let shown = format!("{} {}", package.name, package.version);
        match &package.license {
            None => found.push(format!("{shown} names no licence")),
            Some(license) if !is_allowed(license, &rules.licenses.allow) => {
                found.push(format!("{shown} comes under `{license}`, which deny.toml does not allow"));
            }
            Some(_) => {}
        }
        // Without a source it is a crate of this workspace.
        if let Some(source) = &package.source {
            let registry = source.strip_prefix("registry+").unwrap_or(source);
            if !rules.sources.allow_registry.iter().any(|allowed| allowed == registry) {
                found.push(format!("{shown} comes from {source}, which deny.toml does not allow"));
            }
        }
    }
    found
}

/// Whether an SPDX expression can be met with allowed licences. `/` is the old way to write `OR`.
fn is_allowed(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = words.as_slice();
    // What cannot be read is not allowed.
    any_of(&mut rest, allowed).is_some_and(|met| met && rest.is_empty())
}

fn any_of(words: &mut &[&str], allowed: &BTreeSet<String>) -> Option<bool> {
    let mut met = all_of(words, allowed)?;
    while let Some(("OR", rest)) = words.split_first().map(|(word, rest)| (*word, rest)) {
        *words = rest;
        met |= all_of(words, allowed)?;
    }
    Some(met)
}

fn all_of(words: &mut &[&str], allowed: &BTreeSet<String>) -> Option<bool> {
    let mut met = one(words, allowed)?;
    while let Some(("AND", rest)) = words.split_first().map(|(word, rest)| (*word, rest)) {
        *words = rest;
        met &= one(words, allowed)?;
    }
    Some(met)
}

fn one(words: &mut &[&str], allowed: &BTreeSet<String>) -> Option<bool> {
    let (word, rest) = words.split_first()?;
    *words = rest;
    match *word {
        "(" => {
            let met = any_of(words, allowed)?;
            let (close, rest) = words.split_first()?;
            *words = rest;
            (*close == ")").then_some(met)
        }
        ")" | "OR" | "AND" | "WITH" => None,
        license => match **words {
            ["WITH", exception, ..] => {
                *words = &words[2..];
                Some(allowed.contains(&format!("{license} WITH {exception}")))
            }
            _ => Some(allowed.contains(license)),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DENY: &str = r#"
        [bans]
        deny = [{ crate = "sqlx", wrappers = ["projections"], reason = "SQL stays there" }, { crate = "chrono", reason = "jiff" }]
        [licenses]
        allow = ["MIT", "ISC", "Apache-2.0 WITH LLVM-exception"]
        [sources]
        allow-registry = ["https://example.org/index"]
    "#;

    fn metadata(user: &str, library: &str, license: &str, source: &str) -> Metadata {
        let json = serde_json::json!({
            "packages": [
                { "id": "u", "name": user, "version": "1", "license": "MIT", "source": null },
                { "id": "l", "name": library, "version": "2", "license": license, "source": source },
            ],
            "resolve": { "nodes": [{ "id": "u", "dependencies": ["l"] }, { "id": "l", "dependencies": [] }] },
        });
        serde_json::from_value(json).unwrap()
    }

    fn findings_of(user: &str, library: &str, license: &str, source: &str) -> String {
        findings(&toml::from_str(DENY).unwrap(), &metadata(user, library, license, source)).join("\n")
    }

    const REGISTRY: &str = "registry+https://example.org/index";

    #[test]
    fn only_its_owners_may_use_a_library() {
        assert_eq!(findings_of("projections", "sqlx", "MIT", REGISTRY), "");
        assert!(
            findings_of("api", "sqlx", "MIT", REGISTRY)
                .starts_with("api depends on sqlx, which is for projections: SQL stays there")
        );
        assert!(findings_of("api", "chrono", "MIT", REGISTRY).contains("which is for nobody"));
    }

    #[test]
    fn a_foreign_licence_or_source_is_named() {
        assert!(findings_of("a", "b", "GPL-3.0", REGISTRY).contains("b 2 comes under `GPL-3.0`"));
        assert!(findings_of("a", "b", "MIT", "git+https://example.org/b").contains("b 2 comes from git+"));
    }

    #[test]
    fn licence_expressions_are_read_as_spdx_has_them() {
        let allowed = toml::from_str::<Rules>(DENY).unwrap().licenses.allow;
        for (expression, met) in [
            ("MIT", true),
            ("GPL-3.0 OR MIT", true),
            ("GPL-3.0/MIT", true),
            ("MIT AND GPL-3.0", false),
            ("ISC AND (GPL-3.0 OR MIT)", true),
            ("(ISC OR MIT) AND GPL-3.0", false),
            ("GPL-3.0 OR MIT AND ISC", true),
            ("Apache-2.0 WITH LLVM-exception", true),
            ("Apache-2.0", false),
            ("(MIT", false),
            ("MIT ISC", false),
            ("", false),
        ] {
            assert_eq!(is_allowed(expression, &allowed), met, "{expression}");
        }
    }
}
