//! The OpenAPI document and the catalogue of problems: complete, true and current.

use std::collections::BTreeSet;
use std::path::Path;

use envforge_api::problem::catalogue::CATALOGUE;
use envforge_domain::access::Action;
use reqwest::Method;
use serde_json::json;

use crate::house::House;

/// Set it to write the file anew instead of comparing.
const UPDATE: &str = "UPDATE";

#[test]
fn the_committed_document_is_the_one_that_is_served() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/openapi.json");
    let current = envforge_api::render(&envforge_api::document());
    #[expect(clippy::disallowed_methods, reason = "a developer asks for the file to be written")]
    let update = std::env::var_os(UPDATE).is_some();
    if update {
        std::fs::write(&path, &current).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(committed == current, "docs/openapi.json is not current: run the tests of envforge-api with UPDATE=1");
}

#[tokio::test]
async fn the_served_document_is_the_generated_one() {
    let house = House::start().await;
    let served = house.anonymous(Method::GET, "/v1/openapi.json", json!(null)).await.expect(200);
    let generated: serde_json::Value = serde_json::from_str(&envforge_api::render(&envforge_api::document())).unwrap();
    assert_eq!(served.body, generated);
}

#[test]
fn every_operation_names_an_action_of_the_policy_and_documents_its_parameters_and_problems() {
    let document = envforge_api::document();
    let mut ids = BTreeSet::new();
    let mut count = 0;
    for (path, item) in &document.paths.paths {
        for operation in [&item.get, &item.post, &item.put, &item.patch, &item.delete].into_iter().flatten() {
            count += 1;
            let action = envforge_api::action_of(operation).unwrap_or_else(|| panic!("{path} names no action"));
            assert!(action == "public" || Action::from_token(action).is_some(), "{path}: `{action}`");
            assert!(operation.summary.as_ref().is_some_and(|text| !text.is_empty()), "{path} has no summary");
            assert!(operation.responses.responses.contains_key("default"), "{path} documents no problem");
            assert!(operation.security.is_some() == (action != "public"), "{path}");
            let id = operation.operation_id.clone().unwrap_or_default();
            assert!(ids.insert(id.clone()), "`{id}` names two operations");
        }
    }
    assert!(count > 35, "{count} operations");
}

/// Every schema that is referred to is there.
#[test]
fn the_document_refers_to_nothing_that_it_lacks() {
    let text = envforge_api::render(&envforge_api::document());
    let document: serde_json::Value = serde_json::from_str(&text).unwrap();
    let schemas = document["components"]["schemas"].as_object().unwrap();
    for reference in text.split("\"#/components/schemas/").skip(1) {
        let name = reference.split('"').next().unwrap();
        assert!(schemas.contains_key(name), "`{name}` is missing");
    }
}

/// Codes stand as texts in the domain; each that a client can meet has to be explained.
#[test]
fn every_code_of_the_domain_is_documented() {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../domain/src");
    let mut codes = BTreeSet::new();
    let mut files = vec![sources];
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let mut rest = text.as_str();
        // From each `impl Refusal for` or `impl Denial`, the texts of its `code` function.
        while let Some(start) = ["impl Refusal for ", "impl Denial {"].iter().filter_map(|what| rest.find(what)).min() {
            rest = &rest[start + 10..];
            let Some(from) = rest.find("fn code(") else { break };
            let function = &rest[from..];
            let function = &function[..function.find("\n    }").unwrap()];
            codes.extend(function.split('"').skip(1).step_by(2).map(str::to_owned));
        }
    }
    assert!(codes.len() > 40 && codes.contains("wake_budget_spent") && codes.contains("role_missing"), "{codes:?}");
    let hidden = ["not_a_member", "other_organization"];
    for code in codes.iter().filter(|code| !hidden.contains(&code.as_str())) {
        assert!(CATALOGUE.iter().any(|entry| entry.code == code), "`{code}` is not in the catalogue");
    }
}

/// Codes that this crate gives stand as texts in its sources.
#[test]
fn every_code_of_the_api_is_documented_once() {
    let mut codes: Vec<_> = CATALOGUE.iter().map(|entry| entry.code).collect();
    codes.sort_unstable();
    let mut unique = codes.clone();
    unique.dedup();
    assert_eq!(codes, unique, "a code stands twice in the catalogue");
    let mut files = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")];
    let mut found = 0;
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        for start in ["Problem::new(", "Self::new("] {
            for after in text.split(start).skip(1) {
                let Some(code) = after.trim_start().strip_prefix('"').and_then(|rest| rest.split('"').next()) else {
                    continue;
                };
                assert!(codes.contains(&code), "`{code}` of {} is not in the catalogue", path.display());
                found += 1;
            }
        }
    }
    assert!(found > 30, "{found}");
}

#[tokio::test]
async fn the_type_of_a_problem_leads_to_its_explanation() {
    let house = House::start().await;
    let problem = house.anonymous(Method::GET, "/v1/me", json!(null)).await.expect_problem(401, "unauthenticated");
    let explained = house.anonymous(Method::GET, &problem.text("type"), json!(null)).await.expect(200);
    assert_eq!(explained.body["code"], "unauthenticated");
    assert_eq!(explained.body["title"], problem.body["title"]);
    house.anonymous(Method::GET, "/v1/problems/nothing", json!(null)).await.expect_problem(404, "not_found");
}
