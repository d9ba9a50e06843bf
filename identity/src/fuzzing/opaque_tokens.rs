//! Tokens that are known by their hash: refresh tokens, service tokens, invitations, cookies of browsers. One that is taken
//! was given, letter for letter, as that kind of token.

use std::sync::LazyLock;

use envforge_domain::commit::Surface;
use envforge_domain::ids::{OrgId, ServiceTokenId, SessionId, UserId};
use envforge_domain::secret::Secret;
use envforge_domain::session::OpenSession;
use envforge_domain::time::Millis;
use tokio::runtime::{Builder, Runtime};

use super::{NOW, edited, uuid};
use crate::credentials::{Credentials, InvitationKey, ServiceTokenKey};
use crate::key_ring::KeyRing;
use crate::randomness::Randomness;
use crate::self_hosted::INVITATION_PREFIX;
use crate::service_tokens::{SERVICE_TOKEN_PREFIX, ServiceTokenSecrets};
use crate::sessions::Sessions;
use crate::tokens::{AccessTokens, Description, Session};

struct Fixed {
    runtime: Runtime,
    credentials: Credentials,
    sessions: Sessions,
    service_tokens: ServiceTokenSecrets,
    /// Refresh token, service token, invitation, cookie.
    genuine: [String; 4],
}

static FIXED: LazyLock<Fixed> = LazyLock::new(|| {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let (credentials, sessions, service_tokens, genuine) = runtime.block_on(async {
        let credentials = Credentials::open_in_memory().await.unwrap();
        let access = AccessTokens::new("i".to_owned(), "a".to_owned(), KeyRing::of_secret(&[7; 32]));
        let sessions = Sessions::new(credentials.clone(), access, Randomness);
        let service_tokens = ServiceTokenSecrets::new(credentials.clone(), Randomness);
        let end = NOW.plus(Millis::from_hours(1));
        let session = Session {
            user: UserId::from_uuid(uuid(1)),
            org: OrgId::from_uuid(uuid(2)),
            session: SessionId::from_uuid(uuid(3)),
            expires_at: end,
        };
        let opened = OpenSession::of_local_account(Surface::Console, NOW, end);
        let tokens = sessions.open(&session, &opened, &Description::default(), NOW).await.unwrap();
        let key = ServiceTokenKey { token: ServiceTokenId::from_uuid(uuid(4)), org: session.org, generation: 1 };
        let service_token = service_tokens.issue(key, end).await.unwrap();
        let invitation = Randomness.token(INVITATION_PREFIX).unwrap();
        let invited = InvitationKey { user: session.user, org: session.org };
        credentials.put_invitation(invitation.digest(), invited, end).await.unwrap();
        let cookie = Randomness.token("").unwrap();
        credentials.insert_browser_session(&cookie, &session, &opened).await.unwrap();
        let genuine = [&tokens.refresh, &service_token, &invitation, &cookie].map(|secret| secret.expose().to_owned());
        (credentials, sessions, service_tokens, genuine)
    });
    Fixed { runtime, credentials, sessions, service_tokens, genuine }
});

/// First byte: which of the genuine ones is edited, or none of them.
pub fn opaque_tokens(bytes: &[u8]) {
    let Some((mode, rest)) = bytes.split_first() else { return };
    let Fixed { runtime, credentials, sessions, service_tokens, genuine } = &*FIXED;
    let token = match genuine.get(usize::from(mode % 5)) {
        Some(genuine) => edited(genuine, rest),
        None => std::str::from_utf8(rest).ok().map(str::to_owned),
    };
    let Some(token) = token else { return };
    let secret = Secret::new(token.clone());
    let known = runtime.block_on(async {
        let refresh = sessions.session_of(&secret, NOW).await.is_ok();
        let service_token = service_tokens.recognise(&token, NOW).await.unwrap().is_some();
        let invited = token.starts_with(INVITATION_PREFIX)
            && credentials.invitation(secret.digest(), NOW).await.unwrap().is_some();
        let browser = credentials.browser_session(&secret, NOW).await.unwrap().is_some();
        [refresh, service_token, invited, browser]
    });
    for (known, genuine) in known.iter().zip(genuine) {
        assert_eq!(*known, token == *genuine, "{token}");
    }
    assert_eq!(ServiceTokenSecrets::is_one(&token), token.starts_with(SERVICE_TOKEN_PREFIX));
    // No bearer token is of two kinds.
    assert!(sessions.verify(&token, NOW).is_err());
}
