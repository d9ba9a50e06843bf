//! The modules of `deploy/aws` against the provider's schema, as HashiCorp's own bindings show it (`golden/aws_provider.json`, which
//! `provider_schema.py` makes): arguments, blocks, attributes, and what refers to what. It is for machines without Terraform, and finds
//! two things that `terraform validate` leaves to the provider or to nobody: an argument that only the provider sets, and a variable that
//! nobody uses.
//!
//! Reads files as `terraform fmt` leaves them. Not here: types of values (`validate`).

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::stand_in::members;

/// What Terraform itself takes in every resource.
const META: [&str; 5] = ["count", "depends_on", "for_each", "lifecycle", "provider"];

/// `kind` is the block's type with its labels.
#[derive(Debug, Default)]
struct Block {
    kind: Vec<String>,
    arguments: BTreeSet<String>,
    blocks: Vec<Block>,
}

impl Block {
    fn of<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Block> {
        self.blocks.iter().filter(move |block| block.kind.first().is_some_and(|first| first == kind))
    }
}

/// The line without its comment and what stands between quotes.
fn bare(line: &str) -> String {
    let outside = line.split('"').step_by(2).collect::<Vec<_>>().join("\"\"");
    outside.split('#').next().unwrap_or_default().trim_end().to_owned()
}

/// A file's blocks, as a block without a kind.
fn parse(text: &str) -> Block {
    let mut open = vec![Block::default()];
    let (mut depth, mut heredoc) = (0_i32, None::<String>);
    for line in text.lines() {
        if let Some(end) = &heredoc {
            if line.trim() == end {
                heredoc = None;
            }
            continue;
        }
        heredoc = line.split_once("<<").map(|(_, mark)| mark.trim_start_matches('-').trim().to_owned());
        let bare = bare(line);
        let brackets = bare.chars().map(|c| match c {
            '[' | '(' | '{' => 1,
            ']' | ')' | '}' => -1,
            _ => 0,
        });
        let (change, within) = (brackets.sum::<i32>(), depth > 0);
        let innermost = open.last_mut().unwrap();
        if within {
            depth += change;
        } else if let Some((name, _)) = bare.split_once(" = ") {
            innermost.arguments.insert(name.trim().to_owned());
            depth = change;
        } else if bare.trim() == "}" {
            let closed = open.pop().unwrap();
            open.last_mut().unwrap().blocks.push(closed);
        } else if let Some(head) = line.trim().strip_suffix("{}").or_else(|| line.trim().strip_suffix('{')) {
            let kind = head.split_whitespace().map(|word| word.trim_matches('"').to_owned()).collect();
            let block = Block { kind, ..Block::default() };
            if change == 0 { innermost.blocks.push(block) } else { open.push(block) }
        }
    }
    assert_eq!(open.len(), 1, "a block is not closed");
    open.remove(0)
}

/// Everything that is wrong with a module, one sentence each.
pub(crate) fn mistakes(schema: &Value, text: &str) -> Vec<String> {
    let (module, mut found) = (parse(text), Vec::new());
    let mut attributes: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    for (kind, prefix, schemas) in [("resource", "", "resource_schemas"), ("data", "data.", "data_source_schemas")] {
        for block in module.of(kind) {
            let [_, of, name] = block.kind.as_slice() else { panic!("{block:?} has not two labels") };
            let known = &schema[schemas][of]["block"];
            if known.is_null() {
                found.push(format!("`{of}` is not in the schema: add it to provider_schema.py"));
                continue;
            }
            let at = format!("{prefix}{of}.{name}");
            against(known, block, &at, &mut found);
            let shown = ["attributes", "block_types"].into_iter().flat_map(|kind| members(&known[kind]));
            attributes.insert(at, shown.map(|(name, _)| name.as_str()).collect());
        }
    }
    let labels = |kind| module.of(kind).map(|block| block.kind[1].clone()).collect::<BTreeSet<_>>();
    let (variables, mut unused) = (labels("variable"), labels("variable"));
    let locals: BTreeSet<_> = module.of("locals").flat_map(|block| block.arguments.clone()).collect();
    let words = |line: &str| {
        let line = line.split("# ").next().unwrap_or_default().to_owned();
        let part_of_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.');
        line.split(|c: char| !part_of_word(c)).map(str::to_owned).collect::<Vec<_>>()
    };
    for word in text.lines().flat_map(words) {
        let parts: Vec<_> = word.split('.').collect();
        match parts.as_slice() {
            ["var", name, ..] => {
                unused.remove(*name);
                if !variables.contains(*name) {
                    found.push(format!("`{word}` is not declared"));
                }
            }
            ["local", name, ..] if !locals.contains(*name) => found.push(format!("`{word}` is not declared")),
            ["data", of, name, shown, ..] => refers(&attributes, &format!("data.{of}.{name}"), shown, &mut found),
            [of, name, shown, ..] if of.starts_with("aws_") => {
                refers(&attributes, &format!("{of}.{name}"), shown, &mut found);
            }
            _ => {}
        }
    }
    found.extend(unused.into_iter().map(|name| format!("the variable `{name}` is used nowhere")));
    found
}

fn refers(attributes: &BTreeMap<String, BTreeSet<&str>>, to: &str, shown: &str, found: &mut Vec<String>) {
    match attributes.get(to) {
        None => found.push(format!("`{to}` is not declared")),
        Some(attributes) if !attributes.contains(shown) => found.push(format!("`{to}` has no `{shown}`")),
        Some(_) => {}
    }
}

fn against(known: &Value, block: &Block, at: &str, found: &mut Vec<String>) {
    let (attributes, blocks) = (&known["attributes"], &known["block_types"]);
    let taken = |name: &str| ["required", "optional"].iter().any(|how| attributes[name][how] == true);
    for name in block.arguments.iter().filter(|name| !META.contains(&name.as_str())) {
        if !taken(name) {
            found.push(format!("`{at}` takes no `{name}`"));
        }
    }
    for inner in &block.blocks {
        let name = &inner.kind[0];
        if let Some(known) = blocks.get(name) {
            against(&known["block"], inner, &format!("{at}.{name}"), found);
        } else if !META.contains(&name.as_str()) {
            found.push(format!("`{at}` takes no block `{name}`"));
        }
    }
    let arguments = members(attributes).filter(|(_, what)| what["required"] == true);
    for (name, _) in arguments.chain(members(blocks).filter(|(_, what)| what.get("min_items").is_some())) {
        if !block.arguments.contains(name) && block.of(name).next().is_none() {
            found.push(format!("`{at}` lacks `{name}`"));
        }
    }
}
