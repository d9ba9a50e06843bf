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

/// Issues tokens and keeps the store in step with the log.
pub struct Enrolling {
    store: Arc<dyn EnrolmentStore>,
    /// The fingerprint of the authority for agents.
    authority: TokenDigest,
    draw: DrawSecret,
    kept: HashMap<OrgId, Kept>,
    /// Tokens that this process issued, until they are put.
    held: HashMap<HostId, EnrolmentToken>,
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
    let lasts = |open: &&Enrolment| now.plus(LEFT_MIN) < open.expires_at;
    match known.host.open().filter(lasts) {
        None => Due::Issue,
        Some(open) if kept == Some(Some(open.token)) => Due::Nothing,
        Some(open) if held == Some(open.token) => Due::Put,
        Some(_) if now.since(known.host.issued_at) >= PUT_PATIENCE => Due::Issue,
        Some(_) => Due::Nothing,
    }
}

impl Enrolling {
    pub fn new(store: Arc<dyn EnrolmentStore>, authority: TokenDigest, draw: DrawSecret) -> Self {
        Self { store, authority, draw, kept: HashMap::new(), held: HashMap::new() }
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
                continue;
            }
            for (host, machine) in machines {
                match self.one(known.position(), commands, (org, host), machine, now).await {
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
        match self.store.kept(org).await {
            Ok(tokens) => {
                self.kept.insert(org, Kept { listed_at: now, tokens });
                true
            }
            Err(error) => {
                metrics::counter!("envforge_fleet_enrolments_failed_total").increment(1);
                tracing::warn!(%org, %error, "the enrolment tokens of machines could not be listed; looking again");
                false
            }
        }
    }

    async fn one(
        &mut self,
        position: Position,
        commands: &Commands,
        (org, host): (OrgId, HostId),
        machine: &KnownMachine,
        now: UnixMillis,
    ) -> Result<Option<Position>, ActError> {
        let kept = self.kept.get(&org).and_then(|kept| kept.tokens.get(&host).copied());
        let held = self.held.get(&host).map(EnrolmentToken::digest);
        match due(machine, kept, held, now) {
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
        let token = EnrolmentToken::new(org, host, self.authority, &secret);
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
