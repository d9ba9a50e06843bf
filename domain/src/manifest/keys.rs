//! The keys of `envforge.yml`, section by section: the parser, the test of the schema and the hints all read this table.
//!
//! Owns which key may stand where, and what to say about one that may not. Not here: what a key's value may be.

/// One kind of mapping in the file.
#[derive(Debug, PartialEq, Eq)]
pub struct Section {
    /// With its article, as messages say it.
    pub name: &'static str,
    /// Where it stands; `<name>` is a name that the author chooses. Empty for the file itself.
    pub path: &'static str,
    /// In the order of the canonical text.
    pub keys: &'static [&'static str],
}

pub(super) const FILE: Section = Section {
    name: "the file",
    path: "",
    keys: &["version", "idle_sleep", "on_sleep", "services", "resources", "jobs"],
};
pub(super) const ON_SLEEP: Section = Section { name: "`on_sleep`", path: "on_sleep", keys: &["command", "deadline"] };
pub(super) const SERVICE: Section = Section {
    name: "a service",
    path: "services.<name>",
    keys: &["command", "directory", "port", "route", "readiness", "cpu", "memory", "environment", "secrets"],
};
pub(super) const ROUTE: Section = Section {
    name: "a route",
    path: "services.<name>.route",
    keys: &["web", "api", "assets", "marketing", "websockets"],
};
pub(super) const READINESS: Section = Section {
    name: "a readiness probe",
    path: "services.<name>.readiness",
    keys: &["http", "tcp", "command", "none", "interval", "deadline"],
};
pub(super) const RESOURCE: Section = Section { name: "a resource", path: "resources.<name>", keys: &["kind", "mode"] };
pub(super) const JOB: Section = Section { name: "a job", path: "jobs.<name>", keys: &["command", "kind", "secrets"] };

/// Every section of the file.
pub const SECTIONS: [&Section; 7] = [&FILE, &ON_SLEEP, &SERVICE, &ROUTE, &READINESS, &RESOURCE, &JOB];

/// What other tools call our keys.
const SYNONYMS: [(&str, &str); 18] = [
    ("env", "environment"),
    ("variables", "environment"),
    ("cmd", "command"),
    ("run", "command"),
    ("exec", "command"),
    ("start", "command"),
    ("entrypoint", "command"),
    ("dir", "directory"),
    ("workdir", "directory"),
    ("working_dir", "directory"),
    ("cwd", "directory"),
    ("mem", "memory"),
    ("ram", "memory"),
    ("healthcheck", "readiness"),
    ("health", "readiness"),
    ("probe", "readiness"),
    ("timeout", "deadline"),
    ("ws", "websockets"),
];

/// What would be right where `found` is not a key of `section`.
pub(super) fn hint(section: &Section, found: &str) -> String {
    if let Some(near) = nearest(section.keys, found) {
        return format!("did you mean `{near}`?");
    }
    let keys = list(section.keys);
    match SECTIONS.iter().find(|other| other.keys.contains(&found)) {
        Some(other) if other.path.is_empty() => {
            format!("`{found}` belongs to the top of the file, not to {}", section.name)
        }
        Some(other) => {
            format!("`{found}` belongs to {} (`{}.{found}`); {} has {keys}", other.name, other.path, section.name)
        }
        None => format!("{} has {keys}", section.name),
    }
}

/// The word of `known` that `found` most likely means.
pub(super) fn nearest<'a>(known: &[&'a str], found: &str) -> Option<&'a str> {
    // A longer one is no misspelling of ours, and the distance costs length times length.
    if found.chars().count() > 32 {
        return None;
    }
    let plain: String = found.chars().map(|c| if c == '-' { '_' } else { c.to_ascii_lowercase() }).collect();
    if let Some(synonym) = SYNONYMS.iter().find(|(other, ours)| *other == plain && known.contains(ours)) {
        return Some(synonym.1);
    }
    known
        .iter()
        .map(|word| (distance(word, &plain), *word))
        .filter(|(distance, word)| *distance <= if word.len() <= 4 { 1 } else { 2 })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, word)| word)
}

/// `a`, `b` and `c`, each in backticks.
pub(super) fn list(words: &[&str]) -> String {
    let mut text = String::new();
    for (index, word) in words.iter().enumerate() {
        if index > 0 {
            text.push_str(if index + 1 == words.len() { " and " } else { ", " });
        }
        text.push('`');
        text.push_str(word);
        text.push('`');
    }
    text
}

/// Insertions, deletions, substitutions and swaps of neighbours that lead from one to the other (optimal string alignment).
fn distance(left: &str, right: &str) -> usize {
    let (left, right): (Vec<char>, Vec<char>) = (left.chars().collect(), right.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut previous: Vec<usize> = (0..=right.len()).collect();
    for i in 1..=left.len() {
        let mut row = vec![i; right.len() + 1];
        for j in 1..=right.len() {
            let same = usize::from(left[i - 1] != right[j - 1]);
            row[j] = (previous[j] + 1).min(row[j - 1] + 1).min(previous[j - 1] + same);
            if i > 1 && j > 1 && left[i - 1] == right[j - 2] && left[i - 2] == right[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut previous, row);
    }
    previous[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misspelled_and_borrowed_keys_find_ours() {
        for (section, found, expected) in [
            (&SERVICE, "readyness", "did you mean `readiness`?"),
            (&SERVICE, "comand", "did you mean `command`?"),
            (&SERVICE, "Command", "did you mean `command`?"),
            (&SERVICE, "prot", "did you mean `port`?"),
            (&SERVICE, "ports", "did you mean `port`?"),
            (&SERVICE, "env", "did you mean `environment`?"),
            (&FILE, "idle-sleep", "did you mean `idle_sleep`?"),
            (&FILE, "service", "did you mean `services`?"),
            (&READINESS, "timeout", "did you mean `deadline`?"),
            (
                &JOB,
                "mode",
                "`mode` belongs to a resource (`resources.<name>.mode`); a job has `command`, `kind` and `secrets`",
            ),
            (&SERVICE, "idle_sleep", "`idle_sleep` belongs to the top of the file, not to a service"),
            (&JOB, "zzz", "a job has `command`, `kind` and `secrets`"),
        ] {
            assert_eq!(hint(section, found), expected, "{found}");
        }
    }
}
