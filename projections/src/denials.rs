//! Refused attempts, counted in memory until they are written to the log as one report.
//!
//! Equal attempts become one entry with a count, so an attacker can neither fill the log nor hide in it. Counts are never
//! lost: when there are too many kinds, the rest is counted together. Some of the requests behind a count keep their ids,
//! so that they can be explained: few of each kind and of each actor, so that nobody's flood takes another's room. Not
//! here: writing the report (the binary).

use std::collections::hash_map::Entry;
use std::net::IpAddr;

use ahash::AHashMap;
use envforge_domain::access::Request;
use envforge_domain::commit::{Actor, Surface};
use envforge_domain::denial::{
    DeniedAttempts, KIND_REQUESTS_MAX, REPORT_ATTEMPTS_MAX, REPORT_REQUESTS_MAX, RefusedRequest,
};
use envforge_domain::ids::{OrgId, UserId};
use envforge_domain::time::UnixMillis;
use parking_lot::Mutex;

/// Kinds of attempts held for one organization; further ones are counted as `other`, by surface.
const KINDS_MAX: usize = REPORT_ATTEMPTS_MAX - Surface::ALL.len();
/// What attempts of too many kinds are counted as.
const OTHER: &str = "other";
/// Requests of one actor that one report names; of those who never signed in, of one address.
const ACTOR_REQUESTS_MAX: usize = 12;
/// Requests held for all organizations together.
const REQUESTS_MAX: usize = 4_096;

/// Collects denials until they are drained. One entry for each organization that exists, so memory is bounded.
#[derive(Default)]
pub struct DenialSink {
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    orgs: AHashMap<OrgId, OfOrganization>,
    requests: usize,
}

#[derive(Default)]
struct OfOrganization {
    kinds: AHashMap<Kind, Count>,
    requests: usize,
    requests_by: AHashMap<(Actor, Option<IpAddr>), usize>,
}

#[derive(PartialEq, Eq, Hash, Clone, Debug)]
struct Kind {
    actor: Actor,
    about: Option<Actor>,
    action: String,
    surface: Surface,
    resource: Option<String>,
    address: Option<IpAddr>,
    code: String,
}

struct Count {
    count: u32,
    first_at: UnixMillis,
    last_at: UnixMillis,
    requests: Vec<RefusedRequest>,
}

impl Count {
    fn once(at: UnixMillis, of: Option<RefusedRequest>) -> Self {
        Self { count: 1, first_at: at, last_at: at, requests: of.into_iter().collect() }
    }
}

impl DenialSink {
    /// Counts a refusal in the metrics alone.
    pub fn count(request: &Request, code: &'static str) {
        metrics::counter!(
            "envforge_denials_total",
            "code" => code, "action" => request.action.token(), "surface" => request.surface.token()
        )
        .increment(1);
    }

    /// Holds a refusal for the next report. The resource's organization must be one that exists. `of`: the request, where one
    /// was refused.
    pub fn hold(&self, request: &Request, code: &'static str, of: Option<RefusedRequest>) {
        self.hold_once(request.actor, None, request, code, of);
    }

    fn hold_once(
        &self,
        actor: Actor,
        about: Option<Actor>,
        request: &Request,
        code: &'static str,
        of: Option<RefusedRequest>,
    ) {
        let kind = Kind {
            actor,
            about,
            action: request.action.token().to_owned(),
            surface: request.surface,
            resource: Some(request.resource.display_id()),
            address: None,
            code: code.to_owned(),
        };
        self.held.lock().add(request.resource.org(), kind, Count::once(request.now, of));
    }

    /// Counts and holds a question about somebody else whose answer was no: no request was refused. The resource's organization
    /// must be one that exists.
    pub fn record_denied_check(&self, asked_by: Actor, request: &Request, code: &'static str) {
        metrics::counter!(
            "envforge_checks_denied_total",
            "code" => code, "action" => request.action.token(), "surface" => request.surface.token()
        )
        .increment(1);
        self.hold_once(asked_by, Some(request.actor), request, code, None);
    }

    /// Counts and holds a wrong password: nobody got as far as an action. What nobody's account was tried with stands in
    /// the records of the installation, which belong to no organization, without what was typed: that may be a password.
    pub fn record_failed_login(
        &self,
        account: Option<(OrgId, UserId)>,
        address: IpAddr,
        surface: Surface,
        of: RefusedRequest,
    ) {
        let code = if account.is_some() { "wrong_credentials" } else { "unknown_account" };
        let (org, user) = account.map_or((OrgId::SYSTEM, None), |(org, user)| (org, Some(user)));
        self.record_refused_sign_in(org, user, code, address, surface, of);
    }

    /// Counts and holds an attempt to sign in that was refused, whichever way it came. The organization must be one that
    /// exists, or `OrgId::SYSTEM` where nobody knows for whom it was.
    pub fn record_refused_sign_in(
        &self,
        org: OrgId,
        user: Option<UserId>,
        code: &'static str,
        address: IpAddr,
        surface: Surface,
        of: RefusedRequest,
    ) {
        metrics::counter!(
            "envforge_denials_total",
            "code" => code, "action" => "authenticate", "surface" => surface.token()
        )
        .increment(1);
        let kind = Kind {
            actor: Actor::Anonymous,
            about: None,
            action: "authenticate".to_owned(),
            surface,
            resource: user.map(|user| user.to_string()),
            address: Some(address),
            code: code.to_owned(),
        };
        self.held.lock().add(org, kind, Count::once(of.at, Some(of)));
    }

    /// Takes everything that was counted since the last time, by organization. At most `REPORT_ATTEMPTS_MAX` kinds each.
    pub fn drain(&self) -> Vec<(OrgId, Vec<DeniedAttempts>)> {
        let held = std::mem::take(&mut *self.held.lock());
        held.orgs
            .into_iter()
            .map(|(org, held)| {
                let mut attempts: Vec<_> = held.kinds.into_iter().map(|(kind, count)| attempts(kind, count)).collect();
                attempts.sort_by(|one, other| (one.first_at, &one.code).cmp(&(other.first_at, &other.code)));
                (org, attempts)
            })
            .collect()
    }

    /// Takes back what was drained and could not be written, so that its counts stand in the next report.
    pub fn put_back(&self, org: OrgId, drained: Vec<DeniedAttempts>) {
        let mut held = self.held.lock();
        for attempts in drained {
            let DeniedAttempts {
                actor,
                about,
                action,
                surface,
                resource,
                address,
                code,
                count,
                first_at,
                last_at,
                requests,
            } = attempts;
            let kind = Kind { actor, about, action, surface, resource, address, code };
            held.add(org, kind, Count { count, first_at, last_at, requests });
        }
    }
}

impl Held {
    fn add(&mut self, org: OrgId, kind: Kind, mut more: Count) {
        let of_org = self.orgs.entry(org).or_default();
        let kinds = &mut of_org.kinds;
        let room = kinds.len() < KINDS_MAX;
        let mut requests = std::mem::take(&mut more.requests);
        let kind = if room || kinds.contains_key(&kind) {
            kind
        } else {
            requests.clear();
            let surface = kind.surface;
            let (action, code) = (OTHER.to_owned(), OTHER.to_owned());
            Kind { actor: Actor::Anonymous, about: None, action, surface, resource: None, address: None, code }
        };
        let by = (kind.actor, kind.address);
        let held = match kinds.entry(kind) {
            Entry::Vacant(vacant) => vacant.insert(more),
            Entry::Occupied(held) => {
                let held = held.into_mut();
                held.count = held.count.saturating_add(more.count);
                held.first_at = held.first_at.min(more.first_at);
                held.last_at = held.last_at.max(more.last_at);
                held
            }
        };
        for request in requests {
            let of_actor = of_org.requests_by.get(&by).copied().unwrap_or_default();
            let room =
                self.requests < REQUESTS_MAX && of_org.requests < REPORT_REQUESTS_MAX && of_actor < ACTOR_REQUESTS_MAX;
            if room {
                if request.keep_in(&mut held.requests, KIND_REQUESTS_MAX) {
                    self.requests += 1;
                    of_org.requests += 1;
                    *of_org.requests_by.entry(by).or_default() += 1;
                }
            } else {
                // One of its own kind gives way, where there is one.
                let most = held.requests.len();
                request.keep_in(&mut held.requests, most);
            }
        }
    }
}

fn attempts(kind: Kind, count: Count) -> DeniedAttempts {
    let Kind { actor, about, action, surface, resource, address, code } = kind;
    let Count { count, first_at, last_at, requests } = count;
    DeniedAttempts { actor, about, action, surface, resource, address, code, count, first_at, last_at, requests }
}

#[cfg(test)]
mod tests {
    use envforge_domain::access::{Action, Resource};
    use envforge_domain::commit::Position;
    use envforge_domain::ids::{CorrelationId, ProjectId, UserId};
    use uuid::Uuid;

    use super::*;

    fn org() -> OrgId {
        OrgId::from_uuid(Uuid::from_u128(1))
    }

    fn attempt(project: u128, surface: Surface, at: u64) -> Request {
        Request {
            actor: Actor::User(UserId::from_uuid(Uuid::from_u128(9))),
            action: Action::ProjectRead,
            resource: Resource::Project { org: org(), project: ProjectId::from_uuid(Uuid::from_u128(project)) },
            surface,
            now: UnixMillis::new(at),
        }
    }

    fn named(at: u64) -> RefusedRequest {
        let request = CorrelationId::from_uuid(Uuid::from_u128(u128::from(at)));
        RefusedRequest { request, at: UnixMillis::new(at), position: Position::new(at) }
    }

    fn names(attempts: &DeniedAttempts) -> Vec<u64> {
        attempts.requests.iter().map(|request| request.at.get()).collect()
    }

    fn report(sink: &DenialSink) -> Vec<DeniedAttempts> {
        let mut drained = sink.drain();
        assert!(drained.len() <= 1);
        drained.pop().map(|(_, attempts)| attempts).unwrap_or_default()
    }

    #[test]
    fn equal_attempts_are_one_entry_with_their_first_and_last_time() {
        let sink = DenialSink::default();
        for at in [30, 10, 20] {
            sink.hold(&attempt(1, Surface::Api, at), "role_missing", None);
        }
        sink.hold(&attempt(1, Surface::Cli, 40), "role_missing", None);
        let report = report(&sink);
        let found: Vec<_> = report.iter().map(|kind| (kind.surface, kind.count, kind.first_at, kind.last_at)).collect();
        assert_eq!(
            found,
            [
                (Surface::Api, 3, UnixMillis::new(10), UnixMillis::new(30)),
                (Surface::Cli, 1, UnixMillis::new(40), UnixMillis::new(40)),
            ]
        );
        assert!(sink.drain().is_empty());
    }

    #[test]
    fn a_flood_of_different_attempts_stays_one_report_and_loses_no_count() {
        let sink = DenialSink::default();
        for number in 0..10_000 {
            let surface = Surface::ALL[number % Surface::ALL.len()];
            sink.hold(&attempt(number as u128, surface, number as u64), "role_missing", None);
        }
        let report = report(&sink);
        assert_eq!(report.len(), REPORT_ATTEMPTS_MAX);
        assert_eq!(report.iter().map(|kind| kind.count).sum::<u32>(), 10_000);
    }

    #[test]
    fn failed_logins_say_whose_account_and_from_where_and_unknown_ones_belong_to_no_organization() {
        let sink = DenialSink::default();
        let (home, away): (IpAddr, IpAddr) = ([192, 0, 2, 1].into(), [198, 51, 100, 7].into());
        let account = Some((org(), UserId::from_uuid(Uuid::from_u128(9))));
        for (account, address) in [(account, home), (account, home), (account, away), (None, away)] {
            sink.record_failed_login(account, address, Surface::Api, named(5));
        }
        let drained = sink.drain();
        let of = |wanted| drained.iter().find(|(org, _)| *org == wanted).map(|(_, attempts)| attempts.clone()).unwrap();
        let mut known: Vec<_> = of(org()).iter().map(|kind| (kind.address, kind.count)).collect();
        known.sort_unstable();
        assert_eq!(known, [(Some(home), 2), (Some(away), 1)]);
        let unknown = of(OrgId::SYSTEM);
        assert_eq!(
            (unknown[0].code.as_str(), unknown[0].address, &unknown[0].resource),
            ("unknown_account", Some(away), &None)
        );
    }

    #[test]
    fn what_could_not_be_written_is_counted_in_the_next_report() {
        let sink = DenialSink::default();
        sink.hold(&attempt(1, Surface::Api, 10), "role_missing", None);
        let failed = report(&sink);
        sink.hold(&attempt(1, Surface::Api, 20), "role_missing", None);
        sink.put_back(org(), failed);
        let report = report(&sink);
        assert_eq!((report.len(), report[0].count, report[0].first_at.get()), (1, 2, 10));
    }

    #[test]
    fn the_newest_requests_of_a_kind_keep_their_names_each_once() {
        let sink = DenialSink::default();
        for at in [1, 2, 3, 4, 4, 5] {
            sink.hold(&attempt(1, Surface::Api, at), "role_missing", Some(named(at)));
        }
        let report = report(&sink);
        assert_eq!((report[0].count, names(&report[0])), (6, vec![3, 4, 5]));
    }

    #[test]
    fn one_actors_flood_leaves_room_for_the_requests_of_others() {
        let sink = DenialSink::default();
        for at in 0..10_000 {
            sink.hold(&attempt(u128::from(at) % 50, Surface::Api, at), "role_missing", Some(named(at)));
        }
        let actor = Actor::User(UserId::from_uuid(Uuid::from_u128(8)));
        let other = Request { actor, ..attempt(1, Surface::Api, 20_000) };
        sink.hold(&other, "role_missing", Some(named(20_000)));
        let report = report(&sink);
        let named_by = |actor| report.iter().filter(move |kind| kind.actor == actor).map(|kind| kind.requests.len());
        assert_eq!(named_by(attempt(1, Surface::Api, 0).actor).sum::<usize>(), ACTOR_REQUESTS_MAX);
        assert_eq!(named_by(other.actor).sum::<usize>(), 1);
    }

    #[test]
    fn a_report_is_one_that_the_domain_takes_however_many_floods_come_together() {
        use envforge_domain::aggregate::Aggregate as _;
        use envforge_domain::denial::{DenialCommand, Denials};

        let sink = DenialSink::default();
        let flood = |from: u64| {
            for at in from..from + 5_000 {
                let actor = Actor::User(UserId::from_uuid(Uuid::from_u128(u128::from(at) % 40)));
                let request = Request { actor, ..attempt(1, Surface::Api, at) };
                sink.hold(&request, "role_missing", Some(named(at)));
            }
            sink.drain()
        };
        let drained = flood(0);
        flood(10_000).into_iter().chain(drained).for_each(|(org, attempts)| sink.put_back(org, attempts));
        let attempts = report(&sink);
        assert!(attempts.iter().all(|kind| kind.requests.len() <= KIND_REQUESTS_MAX));
        let requests: usize = attempts.iter().map(|kind| kind.requests.len()).sum();
        assert_eq!(requests, REPORT_REQUESTS_MAX);
        Denials::decide(&Denials, &DenialCommand::Record { attempts }).unwrap();
        assert_eq!(sink.held.lock().requests, 0);
    }
}
