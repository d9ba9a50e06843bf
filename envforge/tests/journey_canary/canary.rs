//! Secret values that were planted, every spelling in which one could come out again, and the search for them.
//!
//! Not here: where they are planted, and where they may be.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use sha2::{Digest, Sha256};

/// Of a longer value its end is looked for: tokens begin alike and end with their signature.
const CORE_BYTES_MAX: usize = 28;

/// All planted values.
#[derive(Default)]
pub(crate) struct Canaries {
    needles: Vec<Needle>,
    /// Needles by their first four bytes.
    index: HashMap<[u8; 4], Vec<usize>>,
}

struct Needle {
    canary: String,
    spelling: &'static str,
    bytes: Vec<u8>,
}

impl Canaries {
    /// `value` must not come out, in whatever spelling.
    pub(crate) fn plant(&mut self, name: &str, value: impl AsRef<[u8]>) {
        let value = value.as_ref();
        assert!(value.len() >= 20, "{name} is too short to be found for certain");
        let core = &value[value.len().saturating_sub(CORE_BYTES_MAX)..];
        for (spelling, bytes) in spellings(core) {
            self.add(name, spelling, bytes);
        }
    }

    /// A password: a plain digest of it could be guessed from, so that must not come out either.
    pub(crate) fn plant_password(&mut self, name: &str, value: &str) {
        self.plant(name, value);
        self.plant(&format!("SHA-256 of {name}"), Sha256::digest(value.as_bytes()));
    }

    fn add(&mut self, canary: &str, spelling: &'static str, bytes: Vec<u8>) {
        let first: [u8; 4] = bytes[..4].try_into().unwrap();
        let same = self.index.entry(first).or_default();
        if !same.iter().any(|known| self.needles[*known].bytes == bytes) {
            same.push(self.needles.len());
            self.needles.push(Needle { canary: canary.to_owned(), spelling, bytes });
        }
    }

    /// What of all this stands in `haystack`: `name (spelling)`.
    pub(crate) fn found_in(&self, haystack: &[u8]) -> BTreeSet<String> {
        let mut begins = vec![false; 1 << 16];
        for first in self.index.keys() {
            begins[usize::from(u16::from_be_bytes([first[0], first[1]]))] = true;
        }
        let mut found = BTreeSet::new();
        for at in 0..haystack.len().saturating_sub(3) {
            if !begins[usize::from(u16::from_be_bytes([haystack[at], haystack[at + 1]]))] {
                continue;
            }
            let first: [u8; 4] = haystack[at..at + 4].try_into().unwrap();
            for needle in self.index.get(&first).into_iter().flatten().map(|index| &self.needles[*index]) {
                if haystack[at..].starts_with(&needle.bytes) {
                    found.insert(format!("{} ({})", needle.canary, needle.spelling));
                }
            }
        }
        found
    }
}

/// Shows every file below `place` that can be read, with its content.
pub(crate) fn each_file_below(place: &Path, mut look: impl FnMut(&Path, &[u8])) {
    let mut open = vec![place.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => open.push(path),
                Ok(kind) if kind.is_file() => look(&path, &std::fs::read(&path).unwrap_or_default()),
                _ => {}
            }
        }
    }
}

/// 28 random letters and digits, in no spelling special.
pub(crate) fn plain() -> String {
    const LETTERS: &[u8] = b"ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnpqrstuvwxyz23456789";
    let mut random = [0_u8; 28];
    getrandom::fill(&mut random).unwrap();
    random.iter().map(|byte| char::from(LETTERS[usize::from(*byte) % LETTERS.len()])).collect()
}

/// A value that every notation escapes in its own way, at its beginning, so that what is looked for comes out whole.
pub(crate) fn rich() -> String {
    format!("\"\\ é<&/+%{}", plain())
}

fn spellings(core: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let unreserved = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte);
    let percent = |write: fn(u8) -> String| -> Vec<u8> {
        core.iter().flat_map(|byte| if unreserved(byte) { vec![*byte] } else { write(*byte).into_bytes() }).collect()
    };
    let numbers: Vec<String> = core.iter().map(u8::to_string).collect();
    let mut all = vec![
        ("as it is", core.to_vec()),
        ("hex", hex::encode(core).into_bytes()),
        ("hex in capitals", hex::encode_upper(core).into_bytes()),
        ("percent-encoded", percent(|byte| format!("%{byte:02X}"))),
        ("percent-encoded in small letters", percent(|byte| format!("%{byte:02x}"))),
        ("escaped", core.escape_ascii().to_string().into_bytes()),
        ("a list of numbers", numbers.join(", ").into_bytes()),
        ("a JSON list", numbers.join(",").into_bytes()),
    ];
    if let Ok(text) = std::str::from_utf8(core) {
        let quoted = serde_json::to_string(text).unwrap();
        all.push(("JSON", quoted.as_bytes()[1..quoted.len() - 1].to_vec()));
    }
    // Within a longer text a value begins at any of three places of a group.
    for before in 0..3 {
        let standard = base64_from(core, before);
        let url = standard.iter().map(|letter| match letter {
            b'+' => b'-',
            b'/' => b'_',
            letter => *letter,
        });
        all.push(("base64url", url.collect()));
        all.push(("base64", standard));
    }
    all
}

/// The letters that `bytes` determine alone when `before` bytes stand before them and any after them.
fn base64_from(bytes: &[u8], before: usize) -> Vec<u8> {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bits: Vec<bool> = std::iter::repeat_n(false, before * 8)
        .chain(bytes.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1 == 1)))
        .collect();
    let known_from = (before * 8).div_ceil(6);
    bits.chunks_exact(6)
        .skip(known_from)
        .map(|six| LETTERS[six.iter().fold(0, |number, bit| number << 1 | usize::from(*bit))])
        .collect()
}

#[test]
fn every_spelling_of_a_value_is_found_and_no_other_value_is() {
    let value = plain();
    let mut canaries = Canaries::default();
    canaries.plant_password("value", &value);
    let mut token = "eyJhbGciOiJIUzI1NiJ9.".repeat(3);
    token.push_str(&plain());
    canaries.plant("token", &token);
    assert!(canaries.found_in(plain().as_bytes()).is_empty());
    assert!(canaries.found_in(&token.as_bytes()[..60]).is_empty(), "how tokens begin is no secret");
    let within = |spelled: String| canaries.found_in(format!("some {spelled} text").as_bytes());
    for (spelling, bytes) in spellings(value.as_bytes()) {
        assert!(!within(String::from_utf8(bytes).unwrap()).is_empty(), "{spelling}");
    }
    assert_eq!(within(format!("{:?}", value.as_bytes())), BTreeSet::from(["value (a list of numbers)".to_owned()]));
    assert!(!within(hex::encode(Sha256::digest(value.as_bytes()))).is_empty());
    assert!(!within(token).is_empty());
    // `printf 'user:secret words here' | base64`, with one, two and no bytes before.
    canaries.plant("words", "secret words here, all of them");
    for encoded in [
        "c2VjcmV0IHdvcmRzIGhlcmUsIGFsbCBvZiB0aGVt",
        "dTpzZWNyZXQgd29yZHMgaGVyZSwgYWxsIG9mIHRoZW0=",
        "OnNlY3JldCB3b3JkcyBoZXJlLCBhbGwgb2YgdGhlbQ==",
    ] {
        assert!(!canaries.found_in(encoded.as_bytes()).is_empty(), "{encoded}");
    }
}
