//! Enrolment tokens of machines that come up: issued, put where the machine's agent finds them, and taken away again (ADR 0016).
//!
//! Level-triggered, as everything here: a token counts once the log has it, and is put after that. A process that was killed in
//! between has lost the token's text; whoever looks next finds that another one lies there, or none, and issues a new one,
//! which makes the lost one void. Not here: when a machine is given up (`plan`), what a token is worth (domain).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use envforge_commands::{Commands, Context, hosts};
use envforge_domain::access::{Action, Resource};
use envforge_domain::commit::{Component, Position};
use envforge_domain::enrolment::EnrolmentToken;
use envforge_domain::host::Enrolment;
use envforge_domain::ids::{HostId, OrgId};
use envforge_domain::limits::ENROLMENT_LIFETIME_DEFAULT;
use envforge_domain::secret::TokenDigest;
use envforge_domain::slug::{HostName, InvalidSlug};
use envforge_domain::time::{Millis, UnixMillis};
use envforge_runtime::EnrolmentStore;
use envforge_runtime::secret_store::StoreError;

use super::executor::ActError;
use super::known::{Known, KnownMachine};
use crate::permit::system_permit;

/// A token with less left than this is replaced: the agent needs some of it.
const LEFT_MIN: Millis = Millis::from_minutes(5);
/// How long whoever issued a token may take to put it, before somebody else issues another one.
const PUT_PATIENCE: Millis = Millis::from_secs(10);
/// What lies in the store is listed anew after that.
const KEPT_FOR: Millis = Millis::from_secs(60);

/// Draws 32 random bytes from the system; `None` where it has none.
pub type DrawSecret = Arc<dyn Fn() -> Option<[u8; 32]> + Send + Sync>;

/// Reads the fingerprint of the authority for agents, which may be replaced at any time; `None` where it cannot be read.
pub type ReadAuthority = Arc<dyn Fn() -> Option<TokenDigest> + Send + Sync>;

/// Issues tokens and keeps the store in step with the log.
pub struct Enrolling {
    store: Arc<dyn EnrolmentStore>,
    authority: ReadAuthority,
    draw: DrawSecret,
    kept: HashMap<OrgId, Kept>,
    /// Tokens that this process issued, until they are put.
    held: HashMap<HostId, EnrolmentToken>,
    /// Since when the token that counts lies ready, one after the other without a gap.
    ready: HashMap<HostId, UnixMillis>,
}

struct Kept {
    listed_at: UnixMillis,
    tokens: BTreeMap<HostId, Option<TokenDigest>>,
}

/// What has to be done for one host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    Nothing,
    /// The token that this process holds.
    Put,
    /// A new token.
    Issue,
    /// Nobody is to use what lies there.
    Remove,
}

/// Holds what lies in the store for a machine's host against what has to. `kept`: `None` where nothing lies there. `held`: the
/// token that this process could put.
pub fn due(known: &KnownMachine, kept: Option<Option<TokenDigest>>, held: Option<TokenDigest>, now: UnixMillis) -> Due {
    if !known.awaits_enrolment(now) {
        return if kept.is_some() { Due::Remove } else { Due::Nothing };
    }
    match lasting(known, now) {
        None => Due::Issue,
        Some(open) if kept == Some(Some(open.token)) => Due::Nothing,
        Some(open) if held == Some(open.token) => Due::Put,
        Some(_) if now.since(known.host.issued_at) >= PUT_PATIENCE => Due::Issue,
        Some(_) => Due::Nothing,
    }
}

/// The enrolment that an agent may use for long enough.
fn lasting(known: &KnownMachine, now: UnixMillis) -> Option<&Enrolment> {
    known.host.open().filter(|open| now.plus(LEFT_MIN) < open.expires_at)
}

impl Enrolling {
    pub fn new(store: Arc<dyn EnrolmentStore>, authority: ReadAuthority, draw: DrawSecret) -> Self {
        Self { store, authority, draw, kept: HashMap::new(), held: HashMap::new(), ready: HashMap::new() }
    }

    /// Since when an agent could have enrolled as a host at any time, as far as this process has seen.
    pub(super) fn ready_since(&self, host: HostId) -> Option<UnixMillis> {
        self.ready.get(&host).copied()
    }

    /// Does what is due. Answers how far the log has moved by it.
    pub(super) async fn look(&mut self, known: &Known, commands: &Commands, now: UnixMillis) -> Position {
        let mut ahead = Position::START;
        let mut machines: BTreeMap<OrgId, Vec<(HostId, &KnownMachine)>> = BTreeMap::new();
        for (host, machine) in known.machines() {
            if let Some(terms) = machine.state.terms() {
                machines.entry(terms.org).or_default().push((*host, machine));
            }
        }
        for (org, machines) in machines {
            if !self.list(org, machines.iter().any(|(_, machine)| machine.awaits_enrolment(now)), now).await {
                // What cannot be listed cannot be read either, as a rule.
                for (host, _) in machines {
                    self.ready.remove(&host);
                }
                continue;
            }
            for (host, machine) in machines {
                let done = self.one(known.position(), commands, (org, host), machine, now).await;
                // Issued, and put after that.
                let put = matches!(&done, Ok(Some(_)));
                if machine.awaits_enrolment(now) && (put || self.lies_ready((org, host), machine)) {
                    self.ready.entry(host).or_insert(now);
                } else {
                    self.ready.remove(&host);
                }
                match done {
                    Ok(position) => ahead = ahead.max(position.unwrap_or_default()),
                    Err(error) => {
                        metrics::counter!("envforge_fleet_enrolments_failed_total").increment(1);
                        tracing::warn!(%org, %host, %error, "a machine's enrolment token; looking again");
                    }
                }
            }
        }
        ahead
    }

    /// Whether it is known what lies in the store for an organization.
    async fn list(&mut self, org: OrgId, awaiting: bool, now: UnixMillis) -> bool {
        let fresh = match self.kept.get(&org) {
            None => false,
            Some(kept) => (!awaiting && kept.tokens.is_empty()) || now.since(kept.listed_at) < KEPT_FOR,
        };
        if fresh {
            return true;
        }
        match self.list_anew(org, now).await {
            Ok(()) => true,
            Err(error) => {
                metrics::counter!("envforge_fleet_enrolments_failed_total").increment(1);
                tracing::warn!(%org, %error, "the enrolment tokens of machines could not be listed; looking again");
                false
            }
        }
    }

    async fn list_anew(&mut self, org: OrgId, now: UnixMillis) -> Result<(), StoreError> {
        let tokens = self.store.kept(org).await?;
        self.kept.insert(org, Kept { listed_at: now, tokens });
        Ok(())
    }

    fn kept(&self, (org, host): (OrgId, HostId)) -> Option<Option<TokenDigest>> {
        self.kept.get(&org).and_then(|kept| kept.tokens.get(&host).copied())
    }

    fn due(&self, (org, host): (OrgId, HostId), machine: &KnownMachine, now: UnixMillis) -> Due {
        due(machine, self.kept((org, host)), self.held.get(&host).map(EnrolmentToken::digest), now)
    }

    /// Whether what lies in the store is what the log takes.
    fn lies_ready(&self, of: (OrgId, HostId), machine: &KnownMachine) -> bool {
        machine.host.open().is_some_and(|open| self.kept(of) == Some(Some(open.token)))
    }

    async fn one(
        &mut self,
        position: Position,
        commands: &Commands,
        (org, host): (OrgId, HostId),
        machine: &KnownMachine,
        now: UnixMillis,
    ) -> Result<Option<Position>, ActError> {
        let mut due = self.due((org, host), machine, now);
        // Another fleet may have put it since this one listed: one more would make that void.
        if due == Due::Issue && lasting(machine, now).is_some() {
            self.list_anew(org, now).await?;
            due = self.due((org, host), machine, now);
        }
        match due {
            Due::Nothing => Ok(None),
            Due::Put => self.put(org, host).await.map(|()| None),
            Due::Remove => {
                self.held.remove(&host);
                self.store.remove(org, host).await?;
                if let Some(kept) = self.kept.get_mut(&org) {
                    kept.tokens.remove(&host);
                }
                Ok(None)
            }
            Due::Issue => {
                let position = self.issue(position, commands, (org, host), machine, now).await?;
                // What goes wrong here goes on with the token that is held.
                if position.is_some() {
                    self.put(org, host).await?;
                }
                Ok(position)
            }
        }
    }

    async fn put(&mut self, org: OrgId, host: HostId) -> Result<(), ActError> {
        let Some(token) = self.held.get(&host) else { return Ok(()) };
        self.store.put(token).await?;
        let digest = token.digest();
        self.held.remove(&host);
        if let Some(kept) = self.kept.get_mut(&org) {
            kept.tokens.insert(host, Some(digest));
        }
        metrics::counter!("envforge_fleet_enrolments_put_total").increment(1);
        Ok(())
    }

    /// `None` where another fleet was faster: it puts its own.
    async fn issue(
        &mut self,
        position: Position,
        commands: &Commands,
        (org, host): (OrgId, HostId),
        machine: &KnownMachine,
        now: UnixMillis,
    ) -> Result<Option<Position>, ActError> {
        let secret = (self.draw)().ok_or(ActError::Randomness)?;
        let authority = (self.authority)().ok_or(ActError::Authority)?;
        let token = EnrolmentToken::new(org, host, authority, &secret);
        let resource = Resource::Host { org, host };
        let permit = system_permit(Component::Fleet, Action::HostEnrol, resource, position, now)?;
        // Whoever knows the host's stream no further issues the same enrolment: one of them is believed.
        let cause = machine.host.commit.unwrap_or(machine.requested);
        let context = Context::caused_by(cause, machine.correlation, "enrolment", now);
        let (digest, lifetime) = (token.digest(), ENROLMENT_LIFETIME_DEFAULT);
        let done = hosts::issue_enrolment(commands, &permit, &context, host, name(host)?, digest, lifetime).await?;
        if done.duplicate {
            return Ok(None);
        }
        self.held.insert(host, token);
        Ok(Some(done.position))
    }
}

/// What people call a machine's host: the end of its id.
fn name(host: HostId) -> Result<HostName, InvalidSlug> {
    let digits = host.as_uuid().simple().to_string();
    format!("machine-{}", &digits[20..]).parse()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Mutex;

    use async_trait::async_trait;
    use envforge_domain::commit::{Actor, Commit, Recorded, StreamId, Surface};
    use envforge_domain::event::Event;
    use envforge_domain::host::{Capacity, HostEvent};
    use envforge_domain::ids::{CommandId, CommitId, CorrelationId};
    use envforge_domain::machine::{MachineCause, MachineEvent, MachinePurpose, MachineTerms};
    use uuid::Uuid;

    use super::*;

    const NOW: UnixMillis = UnixMillis::new(1_800_000_000_000);

    fn org() -> OrgId {
        OrgId::from_uuid(Uuid::from_u128(1))
    }

    fn host() -> HostId {
        HostId::from_uuid(Uuid::from_u128(2))
    }

    /// What is listed: `None` where it cannot be.
    #[derive(Default)]
    struct Listed(Mutex<Option<BTreeMap<HostId, Option<TokenDigest>>>>);

    #[async_trait]
    impl EnrolmentStore for Listed {
        async fn put(&self, _: &EnrolmentToken) -> Result<(), StoreError> {
            Err(StoreError::Unavailable { detail: "it refuses".to_owned() })
        }

        async fn remove(&self, _: OrgId, _: HostId) -> Result<(), StoreError> {
            Ok(())
        }

        async fn kept(&self, _: OrgId) -> Result<BTreeMap<HostId, Option<TokenDigest>>, StoreError> {
            let unavailable = || StoreError::Unavailable { detail: "no answer".to_owned() };
            self.0.lock().unwrap().clone().ok_or_else(unavailable)
        }
    }

    /// A machine that comes up, as whose host an agent may enrol with this token.
    fn known(token: TokenDigest) -> Known {
        let terms = MachineTerms {
            host: host(),
            org: org(),
            purpose: MachinePurpose::Runtime,
            provider: "aws-ec2".to_owned(),
            shape: "m7g.large".to_owned(),
            capacity: Capacity { cpu_millicores: 1, memory_mib: 1 },
        };
        let issued = HostEvent::EnrolmentIssued {
            host: host(),
            org: org(),
            name: name(host()).unwrap(),
            token,
            expires_at: NOW.plus(ENROLMENT_LIFETIME_DEFAULT),
        };
        let of_machine = [
            MachineEvent::Requested { terms, cause: MachineCause::Demand },
            MachineEvent::Launched { instance: "i-1".to_owned() },
        ];
        let commits = [
            (StreamId::machine(org(), host()), of_machine.map(Event::Machine).to_vec()),
            (StreamId::host(org(), host()), vec![Event::Host(issued)]),
        ];
        let mut known = Known::default();
        for (number, (stream, events)) in (1..).zip(commits) {
            let id = Uuid::from_u128(u128::from(number));
            let commit = Commit {
                id: CommitId::from_uuid(id),
                command: CommandId::from_uuid(id),
                request_digest: None,
                stream,
                actor: Actor::System(Component::Fleet),
                surface: Surface::Agent,
                correlation: CorrelationId::from_uuid(id),
                causation: None,
                decided_at: NOW,
                events,
            };
            known.apply(&Recorded { position: Position::new(number), recorded_at: NOW, commit });
        }
        known
    }

    #[tokio::test]
    async fn an_agent_can_enrol_from_when_the_token_that_counts_lies_where_it_looks() {
        let directory = tempfile::tempdir().unwrap();
        let config = envforge_eventlog::sqlite::Config::new(directory.path().join("log"));
        let commands = Commands::new(Arc::new(envforge_eventlog::sqlite::SqliteLog::open(config).await.unwrap()));
        let (token, void) = (TokenDigest::from_bytes([1; 32]), TokenDigest::from_bytes([2; 32]));
        let known = known(token);
        let store = Arc::new(Listed::default());
        let authority = Arc::new(|| Some(TokenDigest::from_bytes([9; 32])));
        let mut enrolling = Enrolling::new(Arc::clone(&store) as _, authority, Arc::new(|| Some([7; 32])));
        let mut at = NOW;
        let mut ready = async |listed: Option<Option<TokenDigest>>| {
            let tokens = listed.map(|lies| lies.map(|lies| (host(), Some(lies))).into_iter().collect());
            *store.0.lock().unwrap() = tokens;
            // Past what is kept of the last listing.
            at = at.plus(KEPT_FOR);
            enrolling.look(&known, &commands, at).await;
            enrolling.ready_since(host()).map(|since| at.since(since))
        };
        assert_eq!(ready(None).await, None);
        assert_eq!(ready(Some(Some(void))).await, None, "it is refused with that one");
        assert_eq!(ready(Some(Some(token))).await, Some(Millis::ZERO));
        assert_eq!(ready(Some(Some(token))).await, Some(KEPT_FOR));
        assert_eq!(ready(None).await, None, "where nobody can read it");
        assert_eq!(ready(Some(Some(token))).await, Some(Millis::ZERO), "anew");
        assert_eq!(ready(Some(None)).await, None);
    }
}
