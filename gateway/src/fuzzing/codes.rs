//! Handoff codes of share pages: what opens is what was sealed, for its host and browser.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use envforge_domain::dev_link::Generation;
use envforge_domain::ids::{HandoffId, LinkId};
use envforge_domain::secret::{Secret, TokenDigest};
use envforge_domain::time::UnixMillis;
use uuid::Uuid;

use crate::handoff::{Binding, Handoff, HandoffKey};

const NOW: UnixMillis = UnixMillis::new(1_795_000_000_000);

/// First byte 0: a code as it is. 1: a genuine code with edits, two bytes each. Else: a body that is sealed with our key.
pub(super) fn handoff_codes(bytes: &[u8]) {
    let key = HandoffKey::derive(&Secret::new("0123456789abcdef0123456789abcdef".to_owned()));
    let binding = Binding { host: "web--links--acme.dev.envforge.ai", browser: TokenDigest::from_bytes([7; 32]) };
    let Some((mode, rest)) = bytes.split_first() else { return };
    let genuine = Handoff {
        id: HandoffId::from_uuid(Uuid::from_u128(1)),
        link: LinkId::from_uuid(Uuid::from_u128(2)),
        generation: Generation(3),
        expires_at: UnixMillis::new(NOW.get() + 1),
    };
    let code = genuine.seal(&key, &binding).expose().to_owned();
    match mode {
        0 => {
            let Ok(text) = std::str::from_utf8(rest) else { return };
            assert!(text == code || Handoff::open(text, &key, &binding, NOW).is_none(), "{text}");
        }
        1 => {
            let mut edited = code.clone().into_bytes();
            for edit in rest.chunks_exact(2) {
                let at = usize::from(edit[0]) % (edited.len() + 1);
                match edit[1] {
                    0 => drop((at < edited.len()).then(|| edited.remove(at))),
                    byte if byte < 0x80 && at < edited.len() => edited[at] = byte,
                    byte => edited.insert(at, byte & 0x7f),
                }
                if edited.is_empty() {
                    return;
                }
            }
            let text = String::from_utf8(edited).unwrap();
            let opened = Handoff::open(&text, &key, &binding, NOW);
            assert_eq!(opened, (text == code).then_some(genuine), "{text}");
            let elsewhere = Binding { host: "web--links--other.dev.envforge.ai", ..binding };
            assert_eq!(Handoff::open(&text, &key, &elsewhere, NOW), None);
        }
        _ => {
            let uuid = |from: usize| rest.get(from..from + 16).and_then(|bytes| Uuid::from_slice(bytes).ok());
            let (Some(id), Some(link)) = (uuid(0), uuid(16)) else { return };
            let Some(numbers) = rest.get(32..44) else { return };
            let sealed = Handoff {
                id: HandoffId::from_uuid(id),
                link: LinkId::from_uuid(link),
                generation: Generation(u32::from_be_bytes(numbers[..4].try_into().unwrap())),
                expires_at: UnixMillis::new(u64::from_be_bytes(numbers[4..].try_into().unwrap())),
            };
            let code = sealed.seal(&key, &binding);
            assert_eq!(URL_SAFE_NO_PAD.decode(code.expose()).unwrap()[..44], rest[..44]);
            let opened = Handoff::open(code.expose(), &key, &binding, NOW);
            assert_eq!(opened, (NOW < sealed.expires_at).then_some(sealed));
        }
    }
}
