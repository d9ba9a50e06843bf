//! bcrypt whose rounds give way to whatever else waits for the processor.
//!
//! A hash takes a quarter of a second of one core. Linux lets a thread that computes finish its slice of some milliseconds before
//! it looks at who has woken up meanwhile, whatever their niceness; a request that is answered in a third of one would wait for
//! that. So the thread offers the processor after every round, which takes less than a tenth of a millisecond.
//! Libraries run all rounds in one call, hence this loop of our own over Blowfish; the hashes are theirs, held by tests.
//! Not here: which passwords are accepted, threads and queues (`password`).

use base64::Engine as _;
use base64::alphabet;
use base64::engine::general_purpose::{GeneralPurpose, NO_PAD};
use bcrypt::{BcryptError, BcryptResult, HashParts};
use blowfish::Blowfish;
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

use crate::password::PASSWORD_BYTES_MAX;

const BASE64: GeneralPurpose = GeneralPurpose::new(&alphabet::BCRYPT, NO_PAD);
/// bcrypt's own bounds.
const COSTS: std::ops::RangeInclusive<u32> = 4..=31;
/// "OrpheanBeholderScryDoubt", which is what bcrypt encrypts.
const TEXT: [u32; 6] = [0x4f72_7068, 0x6561_6e42, 0x6568_6f6c, 0x6465_7253, 0x6372_7944, 0x6f75_6274];
/// Of the 24 bytes that come out, those that a hash holds.
const HASH_BYTES: usize = 23;

/// `$2b$<cost>$<salt><hash>`, 60 characters.
///
/// # Errors
/// Where the cost is none of bcrypt's.
pub(crate) fn hash(password: &str, cost: u32, salt: [u8; 16]) -> BcryptResult<String> {
    let computed = compute(password, cost, &salt)?;
    Ok(format!("$2b${cost:02}${}{}", BASE64.encode(salt), BASE64.encode(computed)))
}

/// Whether a stored hash is this password's. A password beyond bcrypt's 72 bytes is cut there, as bcrypt does.
///
/// # Errors
/// Where what is stored is no bcrypt hash.
pub(crate) fn verify(password: &str, stored: &str) -> BcryptResult<bool> {
    let parts: HashParts = stored.parse()?;
    let computed = compute(password, parts.get_cost(), &parts.get_salt_raw())?;
    // The parts do not give their hash away; it is what the text ends with.
    let expected = BASE64.decode(&stored[stored.len() - 31..]);
    let expected = expected.map_err(|_| BcryptError::InvalidHash("the hash part is not valid base64"))?;
    Ok(computed.ct_eq(expected.as_slice()).into())
}

fn compute(password: &str, cost: u32, salt: &[u8; 16]) -> BcryptResult<[u8; HASH_BYTES]> {
    if !COSTS.contains(&cost) {
        return Err(BcryptError::CostNotAllowed(cost));
    }
    // With its terminating NUL, where there is room for one.
    let mut key = Zeroizing::new(Vec::with_capacity(PASSWORD_BYTES_MAX));
    key.extend(password.bytes().chain([0]).take(PASSWORD_BYTES_MAX));
    let mut state = Blowfish::bc_init_state();
    state.salted_expand_key(salt, &key);
    for _ in 0..1_u32 << cost {
        state.bc_expand_key(&key);
        state.bc_expand_key(salt);
        std::thread::yield_now();
    }
    let mut text = TEXT;
    for pair in text.as_chunks_mut().0 {
        for _ in 0..64 {
            *pair = state.bc_encrypt(*pair);
        }
    }
    let mut computed = [0; HASH_BYTES];
    for (byte, from) in computed.iter_mut().zip(text.iter().flat_map(|word| word.to_be_bytes())) {
        *byte = from;
    }
    Ok(computed)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn published_hashes_are_reproduced() {
        // From jBCrypt's tests.
        for (password, hash_of) in [
            ("", "$2a$06$DCq7YPn5Rq63x1Lad4cll.TV4S6ytwfsfvkgY8jIucDrjc8deX1s."),
            ("a", "$2a$06$m0CrhHm10qJ3lXRY.5zDGO3rS2KdeeWLuGmsfGlMfOxih58VYVfxe"),
            ("abc", "$2a$06$If6bvum7DFjUnE9p2uDeDu0YHzrHM6tf.iqN8.yx.jNN1ILEf7h0i"),
            ("abcdefghijklmnopqrstuvwxyz", "$2a$06$.rCVZVOThsIa97pEDOxvGuRRgzG64bvtJ0938xuqzv18d3ZpQhstC"),
        ] {
            assert!(verify(password, hash_of).unwrap(), "{password}");
            assert!(!verify(&format!("{password}x"), hash_of).unwrap(), "{password}");
        }
    }

    #[test]
    fn what_is_no_hash_and_what_is_no_cost_is_refused() {
        for stored in ["", "$2b$04$short", "é".repeat(30).as_str(), &"$2b$04$".repeat(9)[..60]] {
            assert!(verify("password", stored).is_err(), "{stored}");
        }
        for cost in [0, 3, 32, 99] {
            assert!(matches!(hash("password", cost, [0; 16]), Err(BcryptError::CostNotAllowed(_))));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// An implementation by others takes our hashes, and ours takes theirs, at every length.
        #[test]
        fn hashes_are_those_of_the_library(password in "[^\\x00]{0,80}", salt: [u8; 16], other in "[a-z]{1,8}") {
            let ours = hash(&password, 4, salt).unwrap();
            let theirs = bcrypt::hash_with_salt(&password, 4, salt).unwrap().to_string();
            prop_assert_eq!(&ours, &theirs);
            prop_assert!(verify(&password, &theirs).unwrap());
            prop_assert_eq!(verify(&other, &theirs).unwrap(), bcrypt::verify(&other, &theirs).unwrap());
        }
    }
}
