//! Reviewers' sessions by the digest of their cookie: 1,000,000 of them in less than 96 MiB.
//!
//! One writer, any number of readers. Entries stand densely, found by a small index of 4 bytes a bucket; whatever takes
//! time (a larger index, forgetting) is built beside the table and swapped in, so that readers wait for single writes
//! only. Not here: whether a session still counts, which is its link's word.

use envforge_domain::dev_link::Generation;
use envforge_domain::ids::{LinkId, SessionId};
use envforge_domain::secret::TokenDigest;
use parking_lot::RwLock;

/// Locks over which sessions are spread.
const SHARDS: usize = 64;
/// Entries for which a shard makes room at first.
const SHARD_ENTRIES_MIN: usize = 16;

/// A reviewer's session, found by its cookie's digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionView {
    pub session: SessionId,
    pub link: LinkId,
    pub generation: Generation,
}

pub(crate) struct SessionTable {
    shards: [RwLock<Shard>; SHARDS],
}

/// On a cache line of its own: readers of one shard do not disturb those of the next.
#[derive(Default)]
#[repr(align(64))]
struct Shard {
    entries: Vec<Entry>,
    /// Open addressing with linear probing: 0 for empty, else the entry's index plus one. A power of two, at most half
    /// full, or empty.
    buckets: Box<[u32]>,
}

#[derive(Clone, Copy)]
struct Entry {
    digest: TokenDigest,
    view: SessionView,
}

impl Default for SessionTable {
    fn default() -> Self {
        Self { shards: std::array::from_fn(|_| RwLock::default()) }
    }
}

impl SessionTable {
    pub(crate) fn get(&self, digest: &TokenDigest) -> Option<SessionView> {
        let shard = self.shard(digest).read();
        shard.find(digest).map(|index| shard.entries[index].view)
    }

    /// Adds a session. One caller at a time.
    pub(crate) fn insert(&self, digest: TokenDigest, view: SessionView) {
        let lock = self.shard(&digest);
        let larger = {
            let shard = lock.read();
            let full = (shard.entries.len() + 1) * 2 > shard.buckets.len();
            full.then(|| index_of(&shard.entries, (shard.entries.len() + 1).max(SHARD_ENTRIES_MIN)))
        };
        let mut shard = lock.write();
        if let Some(larger) = larger {
            shard.buckets = larger;
        }
        shard.put(Entry { digest, view });
    }

    /// Forgets what does not count any more; answers how many. One caller at a time, and no `insert` meanwhile.
    pub(crate) fn retain(&self, keep: impl Fn(&SessionView) -> bool) -> usize {
        let mut forgotten = 0;
        for lock in &self.shards {
            let shard = lock.read();
            let mut kept: Vec<Entry> = shard.entries.iter().filter(|entry| keep(&entry.view)).copied().collect();
            kept.shrink_to_fit();
            let gone = shard.entries.len() - kept.len();
            drop(shard);
            if gone > 0 {
                let buckets = index_of(&kept, kept.len().max(SHARD_ENTRIES_MIN));
                *lock.write() = Shard { entries: kept, buckets };
                forgotten += gone;
            }
        }
        forgotten
    }

    pub(crate) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().entries.len()).sum()
    }

    /// Bytes that the table has allocated.
    pub(crate) fn allocated_bytes(&self) -> usize {
        let of_shard = |shard: &RwLock<Shard>| {
            let shard = shard.read();
            shard.entries.capacity() * size_of::<Entry>() + size_of_val(&*shard.buckets)
        };
        size_of::<Self>() + self.shards.iter().map(of_shard).sum::<usize>()
    }

    fn shard(&self, digest: &TokenDigest) -> &RwLock<Shard> {
        // Another byte than those of the bucket: a SHA-256 digest is uniform in all of them.
        &self.shards[digest.as_bytes()[31] as usize % SHARDS]
    }
}

impl Shard {
    fn find(&self, digest: &TokenDigest) -> Option<usize> {
        if self.buckets.is_empty() {
            return None;
        }
        let mut bucket = home(digest, self.buckets.len());
        loop {
            // INVARIANT: at least half of the buckets are empty, so the walk ends.
            let index = self.buckets[bucket].checked_sub(1)? as usize;
            if self.entries[index].digest == *digest {
                return Some(index);
            }
            bucket = (bucket + 1) % self.buckets.len();
        }
    }

    fn put(&mut self, entry: Entry) {
        if let Some(index) = self.find(&entry.digest) {
            self.entries[index] = entry;
            return;
        }
        if self.entries.len() == self.entries.capacity() {
            // In small steps: doubling would hold up to twice the memory that is needed.
            self.entries.reserve_exact((self.entries.len() / 8).max(SHARD_ENTRIES_MIN));
        }
        self.entries.push(entry);
        let place = u32::try_from(self.entries.len()).expect("a shard holds fewer than four billion sessions");
        fill(&mut self.buckets, &entry.digest, place);
    }
}

/// Where a digest would like to stand among so many buckets, a power of two.
fn home(digest: &TokenDigest, buckets: usize) -> usize {
    let bytes = digest.as_bytes();
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize & (buckets - 1)
}

fn fill(buckets: &mut [u32], digest: &TokenDigest, place: u32) {
    let mut bucket = home(digest, buckets.len());
    while buckets[bucket] != 0 {
        bucket = (bucket + 1) % buckets.len();
    }
    buckets[bucket] = place;
}

/// An index of these entries with room for `room` of them.
fn index_of(entries: &[Entry], room: usize) -> Box<[u32]> {
    let mut buckets = vec![0; (room * 2).next_power_of_two()].into_boxed_slice();
    for (place, entry) in (1..).zip(entries) {
        fill(&mut buckets, &entry.digest, place);
    }
    buckets
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::HashMap;
    use std::sync::atomic::{AtomicU64, Ordering};

    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    /// Uniform like a digest, without the time that a million SHA-256 take in a debug build.
    fn digest(number: u64) -> TokenDigest {
        let mut bytes = [0; 32];
        let mut state = number;
        for chunk in bytes.chunks_exact_mut(8) {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            chunk.copy_from_slice(&(mixed ^ (mixed >> 31)).to_le_bytes());
        }
        TokenDigest::from_bytes(bytes)
    }

    fn view(number: u64) -> SessionView {
        SessionView {
            session: SessionId::from_uuid(Uuid::from_u128(u128::from(number))),
            link: LinkId::from_uuid(Uuid::from_u128(u128::from(number / 1_000))),
            generation: Generation(1),
        }
    }

    #[test]
    fn a_million_sessions_take_less_than_96_mib_while_four_readers_look_on() {
        const SESSIONS: u64 = 1_000_000;
        let table = SessionTable::default();
        let written = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for reader in 0..4_u64 {
                let (table, written) = (&table, &written);
                scope.spawn(move || {
                    let (mut state, mut found) = (reader, 0_u64);
                    loop {
                        let upto = written.load(Ordering::Acquire);
                        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                        if upto > 0 {
                            let number = (state >> 20) % upto;
                            assert_eq!(
                                table.get(&digest(number)),
                                Some(view(number)),
                                "written before it was asked for"
                            );
                            found += 1;
                        }
                        assert_eq!(table.get(&digest(SESSIONS + (state >> 20))), None);
                        if upto == SESSIONS && found > 1_000 {
                            return;
                        }
                    }
                });
            }
            for number in 0..SESSIONS {
                table.insert(digest(number), view(number));
                written.store(number + 1, Ordering::Release);
            }
        });
        assert_eq!(table.len(), SESSIONS as usize);
        let mib = table.allocated_bytes() / (1 << 20);
        assert!(mib < 96, "{mib} MiB");
        let forgotten = table.retain(|session| session.link == view(0).link);
        assert_eq!((forgotten, table.len()), (999_000, 1_000));
        assert!((0..1_000).all(|number| table.get(&digest(number)) == Some(view(number))));
        assert!(table.allocated_bytes() < 1 << 20, "what was forgotten is given back");
    }

    #[test]
    fn digests_that_differ_in_their_last_byte_only_are_told_apart() {
        let table = SessionTable::default();
        // Bytes 0 to 3 choose the bucket and byte 31 the shard: all of these meet in one place.
        let near = |byte: u8| {
            let mut bytes = [7; 32];
            bytes[30] = byte;
            TokenDigest::from_bytes(bytes)
        };
        for byte in 0..200 {
            table.insert(near(byte), view(u64::from(byte)));
        }
        assert!((0..200).all(|byte| table.get(&near(byte)) == Some(view(u64::from(byte)))));
        assert_eq!(table.get(&near(200)), None);
    }

    proptest! {
        #[test]
        fn the_table_is_a_map(steps in prop::collection::vec((any::<bool>(), 0_u64..300, 0_u64..5), 1..400)) {
            let table = SessionTable::default();
            let mut model: HashMap<u64, SessionView> = HashMap::new();
            for (insert, number, modulus) in steps {
                if insert {
                    table.insert(digest(number), view(number * 7));
                    model.insert(number, view(number * 7));
                } else {
                    let keep = |view: &SessionView| view.session.as_uuid().as_u128() % 5 != u128::from(modulus);
                    table.retain(keep);
                    model.retain(|_, view| keep(view));
                }
                prop_assert_eq!(table.len(), model.len());
            }
            for number in 0..300 {
                prop_assert_eq!(table.get(&digest(number)), model.get(&number).copied());
            }
        }
    }
}
