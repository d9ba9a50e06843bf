//! The single step from the share page to a workspace host: a code that lives for 30 seconds and works once.
//!
//! The code names its id, link, generation and host and is bound to the browser that posted the form. It is
//! authenticated by a key that all gateways of a domain share. That it works once is the log's to hold: opening a
//! session records its id.
//!
//! Not here: the pages around it (`share`).

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use envforge_domain::dev_link::Generation;
use envforge_domain::ids::{HandoffId, LinkId};
use envforge_domain::limits::HANDOFF_LIFETIME;
use envforge_domain::secret::{Secret, TokenDigest};
use envforge_domain::time::UnixMillis;
use uuid::Uuid;

/// id 16, link 16, generation 4, expiry 8, then the tag.
const BODY_BYTES: usize = 44;
const CODE_BYTES: usize = BODY_BYTES + 32;
/// Base64url of `CODE_BYTES`, without padding.
pub(crate) const CODE_CHARS: usize = 102;

/// Authenticates handoff codes; the same on all gateways of a domain. Made of a secret, has no `Debug`.
pub struct HandoffKey(hmac::Key);

impl HandoffKey {
    /// Derives the key from a secret of at least 32 random bytes.
    pub fn derive(secret: &Secret) -> Self {
        let root = hmac::Key::new(hmac::HMAC_SHA256, secret.expose().as_bytes());
        let derived = hmac::sign(&root, b"envforge gateway handoff v1");
        Self(hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref()))
    }

    /// A key of this process alone, for a single gateway.
    pub fn random() -> Option<Self> {
        let mut bytes = [0_u8; 32];
        getrandom::fill(&mut bytes).ok()?;
        Some(Self(hmac::Key::new(hmac::HMAC_SHA256, &bytes)))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Handoff {
    pub(crate) id: HandoffId,
    pub(crate) link: LinkId,
    pub(crate) generation: Generation,
    pub(crate) expires_at: UnixMillis,
}

/// What the code is bound to besides itself: the host it is for and the browser it was given to.
pub(crate) struct Binding<'a> {
    pub(crate) host: &'a str,
    pub(crate) browser: TokenDigest,
}

impl Handoff {
    pub(crate) fn new(link: LinkId, generation: Generation, now: UnixMillis) -> Self {
        let id = HandoffId::from_uuid(Uuid::now_v7());
        Self { id, link, generation, expires_at: now.plus(HANDOFF_LIFETIME) }
    }

    pub(crate) fn seal(&self, key: &HandoffKey, binding: &Binding<'_>) -> Secret {
        let mut code = Vec::with_capacity(CODE_BYTES);
        code.extend_from_slice(self.id.as_uuid().as_bytes());
        code.extend_from_slice(self.link.as_uuid().as_bytes());
        code.extend_from_slice(&self.generation.0.to_be_bytes());
        code.extend_from_slice(&self.expires_at.get().to_be_bytes());
        let tag = hmac::sign(&key.0, &message(&code, binding));
        code.extend_from_slice(tag.as_ref());
        Secret::new(URL_SAFE_NO_PAD.encode(code))
    }

    /// `None` for whatever is not a code of ours, for this host and browser, in time.
    pub(crate) fn open(code: &str, key: &HandoffKey, binding: &Binding<'_>, now: UnixMillis) -> Option<Self> {
        if code.len() != CODE_CHARS {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(code).ok().filter(|bytes| bytes.len() == CODE_BYTES)?;
        let (body, tag) = bytes.split_at(BODY_BYTES);
        hmac::verify(&key.0, &message(body, binding), tag).ok()?;
        let uuid = |from: usize| Uuid::from_slice(&body[from..from + 16]).ok();
        let handoff = Self {
            id: HandoffId::from_uuid(uuid(0)?),
            link: LinkId::from_uuid(uuid(16)?),
            generation: Generation(u32::from_be_bytes(body[32..36].try_into().ok()?)),
            expires_at: UnixMillis::new(u64::from_be_bytes(body[36..44].try_into().ok()?)),
        };
        (now < handoff.expires_at).then_some(handoff)
    }
}

fn message(body: &[u8], binding: &Binding<'_>) -> Vec<u8> {
    let mut message = Vec::with_capacity(BODY_BYTES + 32 + binding.host.len());
    message.extend_from_slice(body);
    message.extend_from_slice(binding.browser.as_bytes());
    message.extend_from_slice(binding.host.as_bytes());
    message
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    const NOW: UnixMillis = UnixMillis::new(1_000_000);

    fn binding(host: &str, browser: u8) -> Binding<'_> {
        Binding { host, browser: TokenDigest::from_bytes([browser; 32]) }
    }

    fn sealed(key: &HandoffKey) -> (Handoff, Secret) {
        let handoff = Handoff::new(LinkId::from_uuid(Uuid::from_u128(7)), Generation(2), NOW);
        let code = handoff.seal(key, &binding("a.dev", 1));
        (handoff, code)
    }

    #[test]
    fn a_code_opens_for_its_host_and_browser_in_its_time() {
        let key = HandoffKey::derive(&Secret::new("0123456789abcdef0123456789abcdef".to_owned()));
        let (handoff, code) = sealed(&key);
        assert_eq!(code.expose().len(), CODE_CHARS);
        let open = |host, browser, now| Handoff::open(code.expose(), &key, &binding(host, browser), now);
        assert_eq!(open("a.dev", 1, NOW), Some(handoff));
        assert_eq!(open("b.dev", 1, NOW), None);
        assert_eq!(open("a.dev", 2, NOW), None);
        assert_eq!(open("a.dev", 1, NOW.plus(HANDOFF_LIFETIME)), None);
        let other = HandoffKey::random().unwrap();
        assert_eq!(Handoff::open(code.expose(), &other, &binding("a.dev", 1), NOW), None);
    }

    proptest! {
        #[test]
        fn a_code_that_was_touched_does_not_open(at in 0_usize..CODE_CHARS, with in "[A-Za-z0-9_-]") {
            let key = HandoffKey::derive(&Secret::new("0123456789abcdef0123456789abcdef".to_owned()));
            let (_, code) = sealed(&key);
            let mut touched = code.expose().to_owned();
            touched.replace_range(at..=at, &with);
            prop_assume!(touched != code.expose());
            prop_assert_eq!(Handoff::open(&touched, &key, &binding("a.dev", 1), NOW), None);
        }
    }
}
