//! Share URLs: what a link's events grant, signed.
//!
//! The token follows from the events of one generation alone, so whoever may see it again gets the very same URL, and a
//! repeated request its first answer. Not here: what a token opens (the gateway holds it against the link's state).

use std::sync::Arc;

use envforge_domain::commit::{Position, StreamId};
use envforge_domain::dev_link::{DevLinkEvent, Generation};
use envforge_domain::event::Event;
use envforge_domain::ids::{LinkId, OrgId};
use envforge_domain::secret::Secret;
use envforge_eventlog::{LogError, SharedLog};
use envforge_identity::share_token::{ShareClaims, SigningKey};
use envforge_identity::workspace_handoff::WorkspaceHandoff;

use crate::config::GatewayUrl;
use crate::disclosed::Disclosed;

/// Commits per read of a link's stream.
const PAGE: usize = 500;

/// Makes share URLs.
#[derive(Clone)]
pub(crate) struct Share {
    log: SharedLog,
    key: Arc<SigningKey>,
    gateway: GatewayUrl,
}

impl Share {
    pub(crate) fn new(log: SharedLog, key: Arc<SigningKey>, gateway: GatewayUrl) -> Self {
        Self { log, key, gateway }
    }

    pub(crate) fn gateway(&self) -> &GatewayUrl {
        &self.gateway
    }

    pub(crate) fn url(&self, claims: &ShareClaims) -> Disclosed {
        let token = self.key.mint(claims);
        Disclosed(Secret::new(self.gateway.share(token.expose())))
    }

    /// Where a member's browser goes with a handoff.
    pub(crate) fn arrival(&self, handoff: &WorkspaceHandoff) -> Secret {
        let (host, code) = (self.gateway.host(&handoff.host), self.key.mint_handoff(handoff));
        Secret::new(format!("{host}.envforge/signed-in?code={}", code.expose()))
    }

    /// What one generation of a link states, the newest one without a number. `None` where there is no such link or
    /// generation.
    pub(crate) async fn claims(
        &self,
        org: OrgId,
        link: LinkId,
        wanted: Option<Generation>,
    ) -> Result<Option<ShareClaims>, LogError> {
        let stream = StreamId::dev_link(org, link);
        let (mut claims, mut families) = (None::<ShareClaims>, None);
        let mut after = Position::START;
        loop {
            let page = self.log.read_stream(&stream, after, PAGE).await?;
            let full = page.len() == PAGE;
            for recorded in page {
                after = recorded.position;
                for event in &recorded.commit.events {
                    let Event::DevLink(event) = event else { continue };
                    match event {
                        DevLinkEvent::AllowlistChanged { families: changed } => families = Some(*changed),
                        DevLinkEvent::Rotated { generation, issued_at, expires_at } => {
                            if let Some(claims) = &mut claims {
                                claims.generation = *generation;
                                claims.issued_at = *issued_at;
                                claims.expires_at = *expires_at;
                                claims.families = families.unwrap_or(claims.families);
                            }
                        }
                        event => {
                            if let Some(issued) = of_issued(org, event) {
                                claims = Some(issued);
                            }
                        }
                    }
                    if wanted.is_some() && claims.as_ref().map(|claims| claims.generation) == wanted {
                        return Ok(claims);
                    }
                }
            }
            if !full {
                return Ok(if wanted.is_none() { claims } else { None });
            }
        }
    }
}

/// What the first generation states.
pub(crate) fn of_issued(org: OrgId, event: &DevLinkEvent) -> Option<ShareClaims> {
    let DevLinkEvent::Issued { link, workspace, service, families, issued_at, expires_at, .. } = event else {
        return None;
    };
    Some(ShareClaims {
        link: *link,
        generation: Generation(1),
        org,
        workspace: *workspace,
        service: service.clone(),
        families: *families,
        issued_at: *issued_at,
        expires_at: *expires_at,
    })
}
