//! The step of a member's browser from the API to a workspace's host: a signed statement that works for 30 seconds, on one
//! host, in the browser that asked the host for it, and once (by the log's word, when a gateway redeems it).
//!
//! Signed with the key of share tokens, for another audience: gateways verify and cannot mint. Not here: whether the member
//! may open the workspace (the policy, when it is minted and again when it is redeemed), and cookies (the gateway).

use envforge_domain::ids::{HandoffId, OrgId, ProjectId, SessionId, UserId, WorkspaceId};
use envforge_domain::limits::HANDOFF_LIFETIME;
use envforge_domain::secret::{Secret, TokenDigest};
use envforge_domain::slug::HostLabel;
use envforge_domain::time::UnixMillis;
use jsonwebtoken::{Algorithm, Header, Validation};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::share_token::{InvalidShareToken, ShareVerifier, SigningKey, TOKEN_CHARS_MAX};

const VERSION: u8 = 1;
const AUDIENCE: &str = "envforge-workspace";

/// What a handoff states.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkspaceHandoff {
    pub handoff: HandoffId,
    pub user: UserId,
    /// The session of the member's browser at the API.
    pub parent: SessionId,
    pub org: OrgId,
    pub project: ProjectId,
    pub workspace: WorkspaceId,
    /// The one host that takes it.
    pub host: HostLabel,
    /// Digest of what the host gave the browser to keep when it sent it here.
    pub browser: TokenDigest,
    pub expires_at: UnixMillis,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    v: u8,
    aud: String,
    jti: String,
    sub: String,
    sid: String,
    org: String,
    prj: String,
    wsp: String,
    hst: String,
    brw: String,
    /// Seconds, rounded up; `ms` is exact.
    exp: u64,
    ms: u64,
}

impl WorkspaceHandoff {
    /// When one that is minted now is over.
    pub fn end(now: UnixMillis) -> UnixMillis {
        now.plus(HANDOFF_LIFETIME)
    }

    /// A new one's id.
    pub fn new_id() -> HandoffId {
        HandoffId::from_uuid(Uuid::now_v7())
    }
}

/// A browser's digest as it stands in URLs and tokens: 64 hexadecimal digits.
pub fn browser_text(browser: TokenDigest) -> String {
    hex::encode(browser.as_bytes())
}

/// The reverse; `None` for whatever `browser_text` would not write.
pub fn browser_of(text: &str) -> Option<TokenDigest> {
    let lower = text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    let bytes: [u8; 32] = hex::decode(text).ok().filter(|_| lower)?.try_into().ok()?;
    Some(TokenDigest::from_bytes(bytes))
}

impl SigningKey {
    pub fn mint_handoff(&self, handoff: &WorkspaceHandoff) -> Secret {
        let wire = Wire {
            v: VERSION,
            aud: AUDIENCE.to_owned(),
            jti: handoff.handoff.to_string(),
            sub: handoff.user.to_string(),
            sid: handoff.parent.to_string(),
            org: handoff.org.to_string(),
            prj: handoff.project.to_string(),
            wsp: handoff.workspace.to_string(),
            hst: handoff.host.to_string(),
            brw: browser_text(handoff.browser),
            exp: handoff.expires_at.get().div_ceil(1_000),
            ms: handoff.expires_at.get(),
        };
        let mut header = Header::new(Algorithm::EdDSA);
        header.kid = Some(self.id().as_str().to_owned());
        let token = jsonwebtoken::encode(&header, &wire, self.encoding())
            .expect("the key was checked when it was loaded, and these claims are plain JSON");
        Secret::new(token)
    }
}

impl ShareVerifier {
    /// Checks form, key, signature, claims and expiry. Host and browser are the caller's to hold it against.
    pub fn verify_handoff(&self, token: &str, now: UnixMillis) -> Result<WorkspaceHandoff, InvalidShareToken> {
        if token.len() > TOKEN_CHARS_MAX || !token.is_ascii() {
            return Err(InvalidShareToken::Malformed);
        }
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_audience(&[AUDIENCE]);
        validation.set_required_spec_claims(&["exp", "aud"]);
        // Held against the caller's clock, in milliseconds.
        validation.validate_exp = false;
        let key = self.key_of(token)?;
        let wire = jsonwebtoken::decode::<Wire>(token, key, &validation).map_err(|error| match error.kind() {
            jsonwebtoken::errors::ErrorKind::InvalidSignature => InvalidShareToken::Signature,
            _ => InvalidShareToken::Claims,
        })?;
        let handoff = wire.claims.read().ok_or(InvalidShareToken::Claims)?;
        if now >= handoff.expires_at { Err(InvalidShareToken::Expired) } else { Ok(handoff) }
    }
}

impl Wire {
    fn read(&self) -> Option<WorkspaceHandoff> {
        if self.v != VERSION || self.ms.div_ceil(1_000) != self.exp {
            return None;
        }
        Some(WorkspaceHandoff {
            handoff: self.jti.parse().ok()?,
            user: self.sub.parse().ok()?,
            parent: self.sid.parse().ok()?,
            org: self.org.parse().ok()?,
            project: self.prj.parse().ok()?,
            workspace: self.wsp.parse().ok()?,
            host: HostLabel::parse(&self.hst)?,
            browser: browser_of(&self.brw)?,
            expires_at: UnixMillis::new(self.ms),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::share_token::ShareClaims;
    use envforge_domain::dev_link::{Generation, RouteFamilies};
    use envforge_domain::ids::LinkId;
    use proptest::prelude::*;

    const NOW: UnixMillis = UnixMillis::new(1_795_000_000_123);

    fn key() -> SigningKey {
        let directory = tempfile::tempdir().unwrap();
        SigningKey::create(&directory.path().join("share.key")).unwrap()
    }

    fn uuid(number: u128) -> Uuid {
        // Ids are UUIDv7.
        Uuid::from_u128(0x0193_0000_0000_7000_8000_0000_0000_0000 | number)
    }

    fn handoff() -> WorkspaceHandoff {
        WorkspaceHandoff {
            handoff: HandoffId::from_uuid(uuid(1)),
            user: UserId::from_uuid(uuid(2)),
            parent: SessionId::from_uuid(uuid(3)),
            org: OrgId::from_uuid(uuid(4)),
            project: ProjectId::from_uuid(uuid(5)),
            workspace: WorkspaceId::from_uuid(uuid(6)),
            host: HostLabel::parse("web--signed-links--acme").unwrap(),
            browser: TokenDigest::from_bytes([7; 32]),
            expires_at: WorkspaceHandoff::end(NOW),
        }
    }

    #[test]
    fn what_was_minted_is_read_back_until_it_is_over() {
        let key = key();
        let verifier = ShareVerifier::new([key.verification_key()]).unwrap();
        let token = key.mint_handoff(&handoff());
        assert_eq!(verifier.verify_handoff(token.expose(), NOW), Ok(handoff()));
        let end = handoff().expires_at;
        assert_eq!(verifier.verify_handoff(token.expose(), end), Err(InvalidShareToken::Expired));
        let other = ShareVerifier::new([self::key().verification_key()]).unwrap();
        assert_eq!(other.verify_handoff(token.expose(), NOW), Err(InvalidShareToken::UnknownKey));
    }

    #[test]
    fn a_share_token_is_no_handoff_and_a_handoff_no_share_token() {
        let key = key();
        let verifier = ShareVerifier::new([key.verification_key()]).unwrap();
        let share = key.mint(&ShareClaims {
            link: LinkId::from_uuid(uuid(9)),
            generation: Generation(1),
            org: handoff().org,
            workspace: handoff().workspace,
            service: "web".parse().unwrap(),
            families: RouteFamilies::ALL,
            issued_at: NOW,
            expires_at: NOW.plus(HANDOFF_LIFETIME),
        });
        assert_eq!(verifier.verify_handoff(share.expose(), NOW), Err(InvalidShareToken::Claims));
        assert_eq!(verifier.verify(key.mint_handoff(&handoff()).expose(), NOW), Err(InvalidShareToken::Claims));
    }

    proptest! {
        #[test]
        fn a_handoff_that_was_touched_does_not_open(at in 0_usize..400, with in "[A-Za-z0-9_.-]") {
            let key = key();
            let verifier = ShareVerifier::new([key.verification_key()]).unwrap();
            let token = key.mint_handoff(&handoff());
            let mut touched = token.expose().to_owned();
            touched.replace_range(at..=at, &with);
            prop_assume!(touched != token.expose());
            prop_assert!(verifier.verify_handoff(&touched, NOW).is_err());
        }

        #[test]
        fn a_browsers_digest_has_one_spelling(bytes in any::<[u8; 32]>()) {
            let digest = TokenDigest::from_bytes(bytes);
            let text = browser_text(digest);
            prop_assert_eq!(browser_of(&text), Some(digest));
            prop_assert!(text.to_uppercase() == text || browser_of(&text.to_uppercase()).is_none());
            prop_assert_eq!(browser_of(&text[1..]), None);
        }
    }
}
