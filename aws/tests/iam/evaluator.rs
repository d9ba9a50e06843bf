//! As much of IAM's evaluation as these policies use, by AWS's "Policy evaluation logic": an explicit deny goes before every
//! allow, and what nothing allows is refused. Unknown operators and elements are a panic, never a guess.
//!
//! It shares no code with what makes the policies.

use std::collections::BTreeMap;

use serde_json::Value;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    Allowed,
    /// By an explicit deny.
    Denied,
    /// No statement allows it.
    NotAllowed,
}

/// One request: an action on a resource, in a context.
pub(crate) struct Asked {
    action: String,
    resource: String,
    principal: Option<String>,
    context: BTreeMap<String, String>,
}

impl std::fmt::Display for Asked {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{} on {} with {:?}", self.action, self.resource, self.context)
    }
}

impl Asked {
    pub(crate) fn new(action: &str, resource: &str) -> Self {
        let (action, resource) = (action.to_owned(), resource.to_owned());
        Self { action, resource, principal: None, context: BTreeMap::new() }
    }

    /// Who asks, for policies of resources. An account in their place stands for its own policies, and allows nothing here.
    pub(crate) fn by(mut self, principal: &str) -> Self {
        self.principal = Some(principal.to_owned());
        self
    }

    pub(crate) fn with(mut self, key: &str, value: &str) -> Self {
        self.context.insert(key.to_lowercase(), value.to_owned());
        self
    }
}

pub(crate) fn evaluate(documents: &[&Value], asked: &Asked) -> Decision {
    let statements = documents.iter().flat_map(|document| list(&document["Statement"]));
    let matching: Vec<&Value> = statements.filter(|statement| applies(statement, asked)).collect();
    let is = |effect: &str| matching.iter().any(|statement| statement["Effect"] == effect);
    match (is("Deny"), is("Allow")) {
        (true, _) => Decision::Denied,
        (false, true) => Decision::Allowed,
        (false, false) => Decision::NotAllowed,
    }
}

fn applies(statement: &Value, asked: &Asked) -> bool {
    for element in statement.as_object().unwrap().keys() {
        let known = ["Sid", "Effect", "Action", "NotAction", "Resource", "NotResource", "Principal", "Condition"];
        assert!(known.contains(&element.as_str()), "the evaluator does not know `{element}`");
    }
    // Actions match whatever their case, resources exactly.
    let action = asked.action.to_lowercase();
    let on = |pattern: &Value| like(&pattern.as_str().unwrap().to_lowercase(), &action);
    let of = |pattern: &Value| like(pattern.as_str().unwrap(), &asked.resource);
    let acts = match (&statement["Action"], &statement["NotAction"]) {
        (Value::Null, patterns) => !list(patterns).any(on),
        (patterns, _) => list(patterns).any(on),
    };
    let touches = match (&statement["Resource"], &statement["NotResource"]) {
        (Value::Null, patterns) => !list(patterns).any(of),
        (patterns, _) => list(patterns).any(of),
    };
    let asks = match (&statement["Principal"], &asked.principal) {
        (Value::Null, _) => true,
        (named, Some(principal)) => list(&named["AWS"]).any(|one| one == principal.as_str()),
        (_, None) => panic!("a policy of a resource is asked for nobody"),
    };
    acts && touches && asks && holds(&statement["Condition"], &asked.context)
}

/// All operators and all keys must hold, of a key's values one. A key that the request does not bring holds nothing.
fn holds(condition: &Value, context: &BTreeMap<String, String>) -> bool {
    let Some(operators) = condition.as_object() else { return true };
    operators.iter().all(|(operator, keys)| {
        keys.as_object().unwrap().iter().all(|(key, values)| {
            let Some(brought) = context.get(&key.to_lowercase()) else { return false };
            list(values).any(|value| {
                let value = value.as_str().unwrap();
                match operator.as_str() {
                    "StringEquals" => value == brought,
                    "StringLike" => like(value, brought),
                    "ArnLike" => arn_like(value, brought),
                    "Bool" => value.parse::<bool>().unwrap() == (brought.to_lowercase() == "true"),
                    "NumericEquals" => value.parse::<f64>().unwrap() == brought.parse::<f64>().unwrap(),
                    other => panic!("the evaluator does not know `{other}`"),
                }
            })
        })
    })
}

/// Each of the six parts by itself: a wildcard reaches no other one.
fn arn_like(pattern: &str, arn: &str) -> bool {
    let (patterns, parts): (Vec<&str>, Vec<&str>) = (pattern.splitn(6, ':').collect(), arn.splitn(6, ':').collect());
    patterns.len() == parts.len() && patterns.iter().zip(&parts).all(|(pattern, part)| like(pattern, part))
}

/// `*` for any text, `?` for one character.
fn like(pattern: &str, text: &str) -> bool {
    let (pattern, text): (Vec<char>, Vec<char>) = (pattern.chars().collect(), text.chars().collect());
    let mut reached = vec![false; text.len() + 1];
    reached[0] = true;
    for one in pattern {
        let mut next = vec![false; text.len() + 1];
        for index in 0..=text.len() {
            let before = index > 0 && reached[index - 1];
            next[index] = match one {
                '*' => reached[index] || (index > 0 && next[index - 1]),
                '?' => before,
                exact => before && text[index - 1] == exact,
            };
        }
        reached = next;
    }
    reached[text.len()]
}

fn list(value: &Value) -> Box<dyn Iterator<Item = &Value> + '_> {
    match value {
        Value::Array(values) => Box::new(values.iter()),
        Value::Null => Box::new(std::iter::empty()),
        one => Box::new(std::iter::once(one)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn statement(effect: &str, action: &str, resource: &str) -> Value {
        json!({ "Effect": effect, "Action": action, "Resource": resource })
    }

    fn decide(statements: &[Value], asked: &Asked) -> Decision {
        evaluate(&[&json!({ "Statement": statements })], asked)
    }

    #[test]
    fn nothing_is_allowed_by_itself_and_a_deny_goes_before_every_allow() {
        let asked = Asked::new("s3:GetObject", "arn:aws:s3:::a/b");
        let allow = statement("Allow", "s3:Get*", "arn:aws:s3:::a/*");
        let deny = statement("Deny", "*", "*");
        assert_eq!(decide(&[], &asked), Decision::NotAllowed);
        assert_eq!(decide(std::slice::from_ref(&allow), &asked), Decision::Allowed);
        assert_eq!(decide(&[deny.clone(), allow.clone()], &asked), Decision::Denied);
        assert_eq!(decide(&[allow, deny], &asked), Decision::Denied);
    }

    #[test]
    fn wildcards_are_those_of_iam_and_actions_have_no_case() {
        for (pattern, text, same) in [
            ("*", "", true),
            ("a*c", "abbc", true),
            ("a*c", "abb", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("a/*", "a", false),
            ("a/*", "a/b/c", true),
        ] {
            assert_eq!(like(pattern, text), same, "{pattern} {text}");
        }
        let asked = Asked::new("S3:getobject", "arn:aws:s3:::a");
        assert_eq!(decide(&[statement("Allow", "s3:GetObject", "arn:aws:s3:::a")], &asked), Decision::Allowed);
        let upper = Asked::new("s3:GetObject", "arn:aws:s3:::A");
        assert_eq!(decide(&[statement("Allow", "s3:GetObject", "arn:aws:s3:::a")], &upper), Decision::NotAllowed);
    }

    #[test]
    fn operators_are_those_of_iam() {
        for (operator, value, brought, same) in [
            ("Bool", "true", "True", true),
            ("Bool", "true", "false", false),
            ("NumericEquals", "1", "1", true),
            ("NumericEquals", "1", "1.0", true),
            ("NumericEquals", "1", "10", false),
            ("StringLike", "a*", "abc", true),
            ("ArnLike", "arn:aws:iam::1:role/x-*", "arn:aws:iam::1:role/x-y:z", true),
            ("ArnLike", "arn:aws:iam::1:role/x-*", "arn:aws:iam::2:role/x-y", false),
            ("ArnLike", "arn:aws:*:role/x", "arn:aws:iam::1:role/x", false),
        ] {
            let mut allow = statement("Allow", "a:B", "*");
            allow["Condition"][operator]["key"] = json!(value);
            let with = decide(std::slice::from_ref(&allow), &Asked::new("a:B", "r").with("key", brought));
            assert_eq!(with == Decision::Allowed, same, "{operator} {value} {brought}");
            assert_eq!(decide(&[allow], &Asked::new("a:B", "r")), Decision::NotAllowed, "{operator} without the key");
        }
    }

    #[test]
    fn a_policy_of_a_resource_is_about_whom_it_names() {
        let mut allow = statement("Allow", "a:B", "*");
        allow["Principal"] = json!({ "AWS": ["arn:aws:iam::1:role/x"] });
        let by = |who: &str| decide(std::slice::from_ref(&allow), &Asked::new("a:B", "r").by(who));
        assert_eq!(by("arn:aws:iam::1:role/x"), Decision::Allowed);
        assert_eq!(by("arn:aws:iam::1:role/y"), Decision::NotAllowed);
    }

    #[test]
    fn what_is_not_named_is_everything_else() {
        let deny = json!({ "Effect": "Deny", "Action": "ssm:*", "NotResource": ["arn:a/*", "arn:b"] });
        let on = |resource: &str| decide(std::slice::from_ref(&deny), &Asked::new("ssm:GetParameter", resource));
        assert_eq!(on("arn:a/x"), Decision::NotAllowed);
        assert_eq!(on("arn:b"), Decision::NotAllowed);
        assert_eq!(on("arn:bc"), Decision::Denied);
    }

    #[test]
    fn a_condition_on_what_a_request_does_not_bring_does_not_hold() {
        let mut allow = statement("Allow", "kms:Decrypt", "*");
        allow["Condition"] = json!({ "StringEquals": { "kms:ViaService": ["a", "b"] }, "StringLike": { "x": "y*" } });
        let with = |service: Option<&str>, x: Option<&str>| {
            let mut asked = Asked::new("kms:Decrypt", "k");
            asked = service.map_or(Asked::new("kms:Decrypt", "k"), |service| asked.with("KMS:viaservice", service));
            let asked = match x {
                Some(x) => asked.with("x", x),
                None => asked,
            };
            decide(std::slice::from_ref(&allow), &asked)
        };
        assert_eq!(with(Some("b"), Some("yes")), Decision::Allowed);
        assert_eq!(with(Some("c"), Some("yes")), Decision::NotAllowed);
        assert_eq!(with(Some("b"), Some("no")), Decision::NotAllowed);
        assert_eq!(with(None, Some("yes")), Decision::NotAllowed);
        assert_eq!(with(Some("a"), None), Decision::NotAllowed);
    }
}
