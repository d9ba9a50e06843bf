//! The passwords that anybody would guess first: a list of 20,000 from breaches, and a short one of this product's own words.
//!
//! The long list is Royce Williams', as Django ships it (BSD; see common_passwords_20k.LICENSE). It is sorted, and each line
//! says by its first character (0-9, a-z) how many bytes it shares with the one before. Not here: the other rules
//! (`password`).

use std::collections::HashSet;
use std::sync::LazyLock;

static OWN: &str = include_str!("common_passwords.txt");
static BREACHED: &str = include_str!("common_passwords_20k.txt");

static ALL: LazyLock<HashSet<String>> = LazyLock::new(|| {
    let own = OWN.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).map(str::to_owned);
    own.chain(unfolded(BREACHED)).collect()
});

/// Whether a lower-case text is on one of the lists.
pub(crate) fn contains(lower: &str) -> bool {
    ALL.contains(lower)
}

fn unfolded(lines: &str) -> impl Iterator<Item = String> + '_ {
    let mut before = String::new();
    lines.lines().filter_map(move |line| {
        let shared = line.chars().next().and_then(|digit| digit.to_digit(36))? as usize;
        let mut word = before.get(..shared)?.to_owned();
        word.push_str(&line[1..]);
        before.clone_from(&word);
        Some(word)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_list_is_read_and_nothing_of_it_is_lost() {
        let words: Vec<_> = unfolded(BREACHED).collect();
        assert_eq!(words.len(), BREACHED.lines().count());
        assert!(words.len() > 19_000, "{}", words.len());
        assert!(words.windows(2).all(|pair| pair[0] < pair[1]), "sorted, each once");
        for known in ["123456", "qwerty", "dolphin", "iloveyou", "zzzzzz", "trustno1"] {
            assert!(contains(known), "{known}");
        }
        assert!(contains("password") && contains("correcthorsebatterystaple") && !contains("plum kite engine 7"));
    }
}
