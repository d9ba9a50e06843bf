//! Refused attempts, counted in memory until they are written to the log as one report.
//!
//! Equal attempts become one entry with a count, so an attacker can neither fill the log nor hide in it. Counts are never
//! lost: when there are too many kinds, the rest is counted together.

use ahash::AHashMap;
use envforge_domain::access::Request;
use envforge_domain::commit::{Actor, Surface};
use envforge_domain::denial::{DeniedAttempts, REPORT_ATTEMPTS_MAX};
use envforge_domain::ids::{OrgId, UserId};
use envforge_domain::time::UnixMillis;
use parking_lot::Mutex;

/// Kinds of attempts held for one organization; further ones are counted as `other`.
const KINDS_MAX: usize = REPORT_ATTEMPTS_MAX - 1;
/// Organizations held between two reports. Attempts need a known organization, so this bounds memory, not counting.
const ORGANIZATIONS_MAX: usize = 100_000;

/// Collects denials until they are drained.
#[derive(Default)]
pub struct DenialSink {
    held: Mutex<AHashMap<OrgId, AHashMap<Kind, DeniedAttempts>>>,
}

#[derive(PartialEq, Eq, Hash, Clone, Debug)]
struct Kind {
    actor: Actor,
    action: String,
    resource: Option<String>,
    code: String,
}

impl DenialSink {
    /// Counts one refusal.
    pub fn record(&self, request: &Request, code: &'static str) {
        let kind = Kind {
            actor: request.actor,
            action: request.action.token().to_owned(),
            resource: Some(request.resource.display_id()),
            code: code.to_owned(),
        };
        self.count(request.resource.org(), kind, request.surface, request.now);
    }

    /// Counts a wrong password for a known account: nobody got as far as an action.
    pub fn record_failed_login(&self, org: OrgId, user: UserId, surface: Surface, now: UnixMillis) {
        let kind = Kind {
            actor: Actor::Anonymous,
            action: "authenticate".to_owned(),
            resource: Some(user.to_string()),
            code: "wrong_credentials".to_owned(),
        };
        self.count(org, kind, surface, now);
    }

    fn count(&self, org: OrgId, kind: Kind, surface: Surface, now: UnixMillis) {
        metrics::counter!(
            "envforge_denials_total",
            "code" => kind.code.clone(), "action" => kind.action.clone(), "surface" => surface.token()
        )
        .increment(1);
        let mut held = self.held.lock();
        if !held.contains_key(&org) && held.len() >= ORGANIZATIONS_MAX {
            metrics::counter!("envforge_denials_unrecorded_total").increment(1);
            return;
        }
        let kinds = held.entry(org).or_default();
        let kind = if kinds.contains_key(&kind) || kinds.len() < KINDS_MAX {
            kind
        } else {
            Kind { actor: Actor::Anonymous, action: "other".to_owned(), resource: None, code: "other".to_owned() }
        };
        let attempts = kinds.entry(kind.clone()).or_insert_with(|| DeniedAttempts {
            actor: kind.actor,
            action: kind.action,
            surface,
            resource: kind.resource,
            code: kind.code,
            count: 0,
            first_at: now,
            last_at: now,
        });
        attempts.count = attempts.count.saturating_add(1);
        attempts.last_at = attempts.last_at.max(now);
    }

    /// Takes everything that was counted since the last time, by organization.
    pub fn drain(&self) -> Vec<(OrgId, Vec<DeniedAttempts>)> {
        let held = std::mem::take(&mut *self.held.lock());
        held.into_iter()
            .map(|(org, kinds)| {
                let mut attempts: Vec<_> = kinds.into_values().collect();
                attempts.sort_by_key(|attempt| (attempt.first_at, attempt.code.clone()));
                (org, attempts)
            })
            .collect()
    }
}
