//! What an organization allows at most, and what that makes of links and sessions that exist already.
//!
//! A policy never changes what it limits: it is held against links and sessions whenever somebody asks. So tightening ends
//! what is beyond it at once, and loosening gives back what the policy alone took, never what a person ended. Not here:
//! deciding over a change (`organization`), and who asks (projections' views).

use std::collections::BTreeSet;

use super::refusal::OrganizationRefusal;
use crate::access::{Action, Roles};
use crate::dev_link::RouteFamilies;
use crate::limits;
use crate::root_window::RootPolicy;
use crate::time::{Millis, UnixMillis};

/// EnvForge's own accounts, among the identity providers.
pub const LOCAL_PROVIDER: &str = crate::session::LOCAL_ISSUER;

/// What an organization allows at most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrganizationPolicy {
    /// From the issue of a link, or of its latest share URL.
    pub link_lifetime_max: Millis,
    pub link_families: RouteFamilies,
    /// The roles that give links, of those that may at all.
    pub link_issuers: Roles,
    pub idle_sleep_max: Millis,
    pub keep_awake_max: Millis,
    /// From signing in.
    pub session_lifetime_max: Millis,
    /// Issuers whose users may be signed in, `LOCAL_PROVIDER` for accounts with a password here. Empty: all.
    pub identity_providers: BTreeSet<String>,
    /// From making a service token's secret. Zero: none is allowed.
    pub service_token_lifetime_max: Millis,
    pub root: RootPolicy,
    /// From the opening of a root window.
    pub root_window_max: Millis,
}

/// The roles of which a policy may choose who gives links.
pub const LINK_ISSUERS: Roles = Roles::of(Action::LinkIssue.row().roles);

/// Why a session counts for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SessionOver {
    /// Its time is over, or it is longer ago than the organization's policy lets people stay signed in.
    TooOld,
    /// The policy does not allow its identity provider.
    Provider,
}

impl Default for OrganizationPolicy {
    fn default() -> Self {
        Self {
            link_lifetime_max: Millis::from_hours(24 * 7),
            link_families: RouteFamilies::ALL,
            link_issuers: LINK_ISSUERS,
            idle_sleep_max: Millis::from_hours(4),
            keep_awake_max: Millis::from_hours(4),
            session_lifetime_max: limits::SESSION_LIFETIME_MAX,
            identity_providers: BTreeSet::new(),
            service_token_lifetime_max: limits::SERVICE_TOKEN_LIFETIME_DEFAULT,
            root: RootPolicy::Disabled,
            root_window_max: limits::ROOT_WINDOW_DEFAULT,
        }
    }
}

impl OrganizationPolicy {
    /// When a link that was issued then is over at the latest.
    pub fn link_ends_at(&self, issued_at: UnixMillis) -> UnixMillis {
        issued_at.plus(self.link_lifetime_max)
    }

    /// When somebody who signed in then has to sign in again at the latest.
    pub fn session_ends_at(&self, signed_in_at: UnixMillis) -> UnixMillis {
        signed_in_at.plus(self.session_lifetime_max)
    }

    /// Holds a session against the policy as it is now, whatever it was at sign-in: when it is used, and when it is opened or
    /// renewed.
    pub fn session_over(
        &self,
        provider: &str,
        opened_at: UnixMillis,
        expires_at: UnixMillis,
        now: UnixMillis,
    ) -> Option<SessionOver> {
        if !self.allows_provider(provider) {
            return Some(SessionOver::Provider);
        }
        (now >= expires_at.min(self.session_ends_at(opened_at))).then_some(SessionOver::TooOld)
    }

    /// Until when a runtime that was asked then to stay awake does so at the latest.
    pub fn keep_awake_ends_at(&self, asked_at: UnixMillis) -> UnixMillis {
        asked_at.plus(self.keep_awake_max)
    }

    /// When a service token whose secret was made then is over at the latest.
    pub fn service_token_ends_at(&self, issued_at: UnixMillis) -> UnixMillis {
        issued_at.plus(self.service_token_lifetime_max)
    }

    /// Whether it opens a way to root that the other one does not, or for longer.
    pub(super) fn opens_more_root_than(&self, other: &Self) -> bool {
        self.root > other.root || (self.root != RootPolicy::Disabled && self.root_window_max > other.root_window_max)
    }

    pub fn allows_provider(&self, issuer: &str) -> bool {
        self.identity_providers.is_empty() || self.identity_providers.contains(issuer)
    }

    /// Whether it keeps the product's own limits.
    pub(super) fn check(&self) -> Result<(), OrganizationRefusal> {
        let ranges = [
            ("link_lifetime_max", self.link_lifetime_max, limits::LINK_LIFETIME_MIN, limits::LINK_LIFETIME_MAX),
            ("idle_sleep_max", self.idle_sleep_max, limits::IDLE_SLEEP_MIN, limits::IDLE_SLEEP_MAX),
            ("keep_awake_max", self.keep_awake_max, Millis::ZERO, limits::KEEP_AWAKE_MAX),
            (
                "session_lifetime_max",
                self.session_lifetime_max,
                limits::SESSION_LIFETIME_MIN,
                limits::SESSION_LIFETIME_MAX,
            ),
            (
                "service_token_lifetime_max",
                self.service_token_lifetime_max,
                Millis::ZERO,
                limits::SERVICE_TOKEN_LIFETIME_MAX,
            ),
            ("root_window_max", self.root_window_max, limits::ROOT_WINDOW_MIN, limits::ROOT_WINDOW_MAX),
        ];
        if let Some((setting, _, min, max)) = ranges.into_iter().find(|(_, value, min, max)| value < min || value > max)
        {
            return Err(OrganizationRefusal::PolicyOutOfRange { setting, min, max });
        }
        let never = self.link_issuers.minus(LINK_ISSUERS);
        if !never.is_empty() {
            return Err(OrganizationRefusal::PolicyLinkIssuers { never });
        }
        if self.identity_providers.len() > limits::IDENTITY_PROVIDERS_MAX
            || !self.identity_providers.iter().all(|issuer| provider_is_valid(issuer))
        {
            return Err(OrganizationRefusal::PolicyIdentityProviders {
                max: limits::IDENTITY_PROVIDERS_MAX,
                max_chars: limits::IDENTITY_PROVIDER_CHARS_MAX,
            });
        }
        Ok(())
    }
}

/// `local`, or an issuer as OpenID Connect has them: a URL.
fn provider_is_valid(issuer: &str) -> bool {
    let url = ["https://", "http://"].iter().any(|scheme| issuer.len() > scheme.len() && issuer.starts_with(scheme));
    (issuer == LOCAL_PROVIDER || url)
        && issuer.len() <= limits::IDENTITY_PROVIDER_CHARS_MAX
        && issuer.bytes().all(|byte| byte.is_ascii_graphic())
}
