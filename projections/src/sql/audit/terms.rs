//! What rows are looked for by: an organization's actor, workspace, type and so on, each as one number.
//!
//! INVARIANT: the numbers stand in databases. Whoever changes how they are made gives the read model a new name
//! (`ModelName::stored_name`), so that it is folded again. Different terms may share a number: what is found by it is held
//! against the question itself.

use super::entry::Entry;

/// One thing that rows have in common, within one organization: 40 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Term(u64);

/// What kind of thing.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(super) enum Kind {
    /// Every row of the organization; the value is empty.
    Organization = 0,
    Actor = 1,
    Type = 2,
    Project = 3,
    Workspace = 4,
    Link = 5,
    Correlation = 6,
    /// `done` or `denied`.
    Outcome = 7,
}

/// FNV-1a, 64 bits.
const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

fn mixed_in(hash: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(hash, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(FNV_PRIME))
}

/// An organization's terms: its id is hashed once for all of them.
#[derive(Clone, Copy)]
pub(super) struct Terms(u64);

impl Terms {
    pub(super) fn of(org: &str) -> Self {
        Self(mixed_in(FNV_OFFSET, org.as_bytes()))
    }

    pub(super) fn term(self, kind: Kind, value: &str) -> Term {
        let hash = mixed_in(mixed_in(self.0, &[0, kind as u8]), value.as_bytes());
        // SplitMix64's last step: FNV's upper bits alone would be uneven.
        let hash = (hash ^ (hash >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Term((hash ^ (hash >> 31)) >> 24)
    }

    /// Hands over every term by which the entry can be asked for.
    pub(super) fn each(self, entry: &Entry, mut take: impl FnMut(Term)) {
        take(self.term(Kind::Organization, ""));
        take(self.term(Kind::Type, &entry.event_type));
        take(self.term(Kind::Correlation, &entry.correlation));
        take(self.term(Kind::Outcome, outcome(entry.denied.is_some())));
        for request in entry.denied.iter().flat_map(|denied| &denied.requests) {
            take(self.term(Kind::Correlation, request));
        }
        for (kind, value) in [
            (Kind::Actor, &entry.actor_id),
            (Kind::Project, &entry.project),
            (Kind::Workspace, &entry.workspace),
            (Kind::Link, &entry.link),
        ] {
            if let Some(value) = value {
                take(self.term(kind, value));
            }
        }
    }
}

pub(super) const fn outcome(denied: bool) -> &'static str {
    if denied { "denied" } else { "done" }
}

/// That a term's row stands at a place of the part; in one number, which sorts by bucket, tag and place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Posting(u64);

impl Posting {
    pub(super) const fn new(term: Term, place: u16) -> Self {
        Self(term.0 << 16 | place as u64)
    }

    pub(super) const fn term(self) -> Term {
        Term(self.0 >> 16)
    }

    pub(super) const fn place(self) -> u16 {
        self.0 as u16
    }
}

impl Term {
    /// Which of a part's 256 rows of postings has it.
    pub(super) const fn bucket(self) -> u8 {
        (self.0 >> 32) as u8
    }

    /// What it is called there.
    pub(super) const fn tag(self) -> u32 {
        self.0 as u32
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_term_is_the_number_that_databases_hold() {
        let terms = Terms::of("org_1");
        let found = [terms.term(Kind::Actor, "usr_1"), terms.term(Kind::Organization, "")];
        assert_eq!(found.map(|term| (term.bucket(), term.tag())), [(0x45, 0xfcc3_f23b), (0x01, 0x7b32_13a9)]);
    }

    #[test]
    fn an_organizations_terms_are_its_own_and_each_kinds_too() {
        let (one, two) = (Terms::of("org_1"), Terms::of("org_2"));
        assert_ne!(one.term(Kind::Actor, "usr_1"), two.term(Kind::Actor, "usr_1"));
        assert_ne!(one.term(Kind::Actor, "usr_1"), one.term(Kind::Workspace, "usr_1"));
    }
}
