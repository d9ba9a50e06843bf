//! Share tokens and workspace handoffs, which one key signs: neither passes for the other, and each says what was signed.

use std::sync::LazyLock;

use envforge_domain::dev_link::{Generation, RouteFamilies};
use envforge_domain::ids::{HandoffId, LinkId, OrgId, ProjectId, SessionId, UserId, WorkspaceId};
use envforge_domain::secret::TokenDigest;
use envforge_domain::slug::HostLabel;
use envforge_domain::time::Millis;
use jsonwebtoken::{Algorithm, EncodingKey};

use super::{NOW, edited, parts, signed, uuid};
use crate::share_token::{ShareClaims, ShareVerifier, SigningKey};
use crate::workspace_handoff::WorkspaceHandoff;

struct Fixed {
    key: SigningKey,
    verifier: ShareVerifier,
    share: String,
    handoff: String,
}

static FIXED: LazyLock<Fixed> = LazyLock::new(|| {
    let key = SigningKey::of_seed(&[9; 32]);
    let verifier = ShareVerifier::new([key.verification_key()]).unwrap();
    let share = ShareClaims {
        link: LinkId::from_uuid(uuid(1)),
        generation: Generation(1),
        org: OrgId::from_uuid(uuid(2)),
        workspace: WorkspaceId::from_uuid(uuid(3)),
        service: "web".parse().unwrap(),
        families: RouteFamilies::ALL,
        issued_at: NOW,
        expires_at: NOW.plus(Millis::from_hours(1)),
    };
    let handoff = WorkspaceHandoff {
        handoff: HandoffId::from_uuid(uuid(4)),
        user: UserId::from_uuid(uuid(5)),
        parent: SessionId::from_uuid(uuid(6)),
        org: share.org,
        project: ProjectId::from_uuid(uuid(7)),
        workspace: share.workspace,
        host: HostLabel::parse("web--links--acme").unwrap(),
        browser: TokenDigest::from_bytes([7; 32]),
        expires_at: WorkspaceHandoff::end(NOW),
    };
    let (share, handoff) = (key.mint(&share), key.mint_handoff(&handoff));
    Fixed { share: share.expose().to_owned(), handoff: handoff.expose().to_owned(), key, verifier }
});

pub fn share_token(bytes: &[u8]) {
    let Some((mode, rest)) = bytes.split_first() else { return };
    let Fixed { key, verifier, share, handoff } = &*FIXED;
    let token = match mode % 5 {
        0 => std::str::from_utf8(rest).ok().map(str::to_owned),
        1 => edited(share, rest),
        2 => edited(handoff, rest),
        3 => signed(rest, key.encoding(), Algorithm::EdDSA),
        _ => signed(rest, &EncodingKey::from_secret(key.public()), Algorithm::HS256),
    };
    let Some(token) = token else { return };
    let (as_share, as_handoff) = (verifier.verify(&token, NOW), verifier.verify_handoff(&token, NOW));
    if as_share.is_err() && as_handoff.is_err() {
        return;
    }
    assert!(as_share.is_err() || as_handoff.is_err(), "both: {token}");
    assert!(mode % 5 == 3 || token == *share || token == *handoff, "signed by nobody: {token}");
    let (header, claims) = parts(&token);
    assert_eq!((header["alg"].as_str(), header["kid"].as_str()), (Some("EdDSA"), Some(key.id().as_str())));
    let text = |name: &str| claims[name].as_str().unwrap().to_owned();
    let same = |name: &str, value: &dyn ToString| assert_eq!(text(name), value.to_string(), "{name}");
    if let Ok(share) = as_share {
        assert_eq!((claims["v"].as_u64(), text("aud").as_str()), (Some(1), "envforge-share"));
        same("lid", &share.link);
        same("org", &share.org);
        same("wsp", &share.workspace);
        same("svc", &share.service);
        assert_eq!(claims["gen"].as_u64(), Some(u64::from(share.generation.0)));
        let at =
            |name: &str, index: usize| claims[name].as_u64().unwrap() * 1_000 + claims["ms"][index].as_u64().unwrap();
        assert_eq!((share.issued_at.get(), share.expires_at.get()), (at("iat", 0), at("exp", 1)));
        assert!(NOW < share.expires_at);
        let mut families: Vec<&str> =
            claims["fam"].as_array().unwrap().iter().map(|one| one.as_str().unwrap()).collect();
        let mut ours: Vec<&str> = share.families.iter().map(|family| family.token()).collect();
        families.sort_unstable();
        ours.sort_unstable();
        families.dedup();
        assert_eq!(families, ours);
        assert_eq!(verifier.verify(key.mint(&share).expose(), NOW), Ok(share));
    }
    if let Ok(handoff) = as_handoff {
        assert_eq!((claims["v"].as_u64(), text("aud").as_str()), (Some(1), "envforge-workspace"));
        same("jti", &handoff.handoff);
        same("sub", &handoff.user);
        same("sid", &handoff.parent);
        same("org", &handoff.org);
        same("prj", &handoff.project);
        same("wsp", &handoff.workspace);
        same("hst", &handoff.host);
        assert_eq!(text("brw"), hex::encode(handoff.browser.as_bytes()));
        assert!(claims["ms"].as_u64() == Some(handoff.expires_at.get()) && NOW < handoff.expires_at);
        assert_eq!(verifier.verify_handoff(key.mint_handoff(&handoff).expose(), NOW), Ok(handoff));
    }
}
