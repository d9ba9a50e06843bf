//! The role that agents connect to: who may come in, and one reactor for each host that has.
//!
//! Owns the way from a connection to a trusted host: what TLS proved is held against the log, here and for as long as the connection
//! lives. Not here: the connection itself (agent), what reactors do (reactors).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use envforge_agent::{
    AgentConnection, Arrival, Authority, Enrolling, Happened, Host, HostIdentity, Incoming, Listener, Session,
    UNDECIDED,
};
use envforge_commands::{CommandError, Context, hosts, machines};
use envforge_domain::access::{Action, Permit, Request, Resource};
use envforge_domain::aggregate::Refusal as _;
use envforge_domain::commit::{Actor, Component, Surface};
use envforge_domain::denial::RefusedRequest;
use envforge_domain::host::{Capacity, Enrolling as EnrollingHost, Host as HostState};
use envforge_domain::ids::{HostId, OrgId};
use envforge_domain::machine::{Machine, MachineRefusal};
use envforge_domain::time::Millis;
use envforge_projections::DenialSink;
use envforge_reactors::fleet::machine_key;
use envforge_reactors::{HostMachine, RootReactor, RuntimeReactor, SharedWorld, tell_shell_ends};
use envforge_runtime::secret_store::SecretStore;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::control_plane::ControlPlane;
use super::hosts::Hosts;
use super::running::Running;
use super::{roles, usable};

/// Handshakes at the same time: certificates cost a signature each.
const HANDSHAKES_MAX: usize = 256;
/// How often open connections are held against who is trusted.
const TRUST_INTERVAL: Duration = Duration::from_millis(200);
/// How long the view of hosts may take to know what the log's leader knows.
const VIEW_WAIT: Duration = Duration::from_secs(5);

/// Where the authority's key lies, and its certificate beside it.
pub(crate) const AUTHORITY_KEY: &str = "agents.key";
pub(crate) const AUTHORITY_CERTIFICATE: &str = "agents.crt";

/// How agents are listened for.
pub(crate) struct Agents {
    pub(crate) listen: SocketAddr,
    /// How long an agent's certificate lives; it renews it at half of that.
    pub(crate) certificate_lifetime: Millis,
    /// What follows a host label in a public address.
    pub(crate) public_authority: String,
    /// Where values of secrets are read, which a wake's order then carries to its host.
    pub(crate) secret_store: Option<Arc<dyn SecretStore>>,
}

/// How long agents' certificates live, from the command line.
pub(crate) fn certificate_lifetime(seconds: u64) -> anyhow::Result<Millis> {
    let range = 2..=7 * 24 * 3_600;
    let lifetime = range.contains(&seconds).then(|| Millis::from_secs(seconds)).ok_or("2 to 604800 seconds");
    Ok(usable("--agent-certificate-seconds", lifetime)?)
}

/// The authority in a folder of keys, made where there is none.
pub(crate) fn authority(keys: &Path, plane_now: envforge_domain::time::UnixMillis) -> anyhow::Result<Arc<Authority>> {
    let (key, certificate) = (keys.join(AUTHORITY_KEY), keys.join(AUTHORITY_CERTIFICATE));
    Ok(Arc::new(Authority::load_or_create(&key, &certificate, plane_now)?))
}

/// Everything that connections share.
#[derive(Clone)]
struct Desk {
    plane: ControlPlane,
    authority: Arc<Authority>,
    world: SharedWorld,
    certificate_lifetime: Millis,
    public_authority: String,
    secret_store: Option<Arc<dyn SecretStore>>,
    hosts: Hosts,
}

/// Listens for agents. Answers the address.
pub(crate) async fn start(
    running: &mut Running,
    plane: &ControlPlane,
    world: &SharedWorld,
    hosts: &Hosts,
    authority: Arc<Authority>,
    agents: Agents,
) -> anyhow::Result<SocketAddr> {
    let listener = Listener::bind(agents.listen, &authority, Arc::clone(&plane.clock)).await?;
    let address = listener.local_address()?;
    let desk = Desk {
        plane: plane.clone(),
        authority,
        world: world.clone(),
        certificate_lifetime: agents.certificate_lifetime,
        public_authority: agents.public_authority,
        secret_store: agents.secret_store,
        hosts: hosts.clone(),
    };
    let (watching, stop) = (desk.clone(), running.stop.clone());
    running.essential.spawn("trust in agents", async move {
        stop.run_until_cancelled(watching.watch_trust()).await;
        Ok(())
    });
    let stop = running.stop.clone();
    running.essential.spawn("the listener for agents", async move {
        desk.listen(listener, stop).await;
        Ok(())
    });
    Ok(address)
}

/// Why somebody is not let in.
struct Refusal {
    code: &'static str,
    text: String,
}

impl Refusal {
    fn of(error: &CommandError) -> Self {
        let code = match error.refusal_code() {
            // The machine's name is what was taken: by another organization.
            Some("name_taken") => {
                let text = "this machine belongs to another organization; a machine serves one".to_owned();
                return Self { code: "machine_of_another_organization", text };
            }
            Some(code) => code,
            None => UNDECIDED,
        };
        Self { code, text: error.to_string() }
    }

    fn of_machine(refusal: &MachineRefusal) -> Self {
        Self { code: refusal.code(), text: refusal.to_string() }
    }
}

impl Desk {
    async fn listen(self, listener: Listener, stop: CancellationToken) {
        let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            let accepted = stop.run_until_cancelled(async {
                let turn = Arc::clone(&handshakes).acquire_owned().await;
                (turn, listener.accept().await)
            });
            match accepted.await {
                None => break,
                Some((Ok(turn), Ok(incoming))) => {
                    let (desk, stop) = (self.clone(), stop.child_token());
                    connections.spawn(async move {
                        let address = incoming.address();
                        if let Err(error) = desk.serve(incoming, turn, stop).await {
                            let reason = reason(&error);
                            metrics::counter!("envforge_agent_connections_failed_total", "reason" => reason)
                                .increment(1);
                            tracing::info!(%address, %error, reason, "a connection to the listener for agents failed");
                        }
                    });
                }
                Some((_, Err(error))) => {
                    tracing::warn!(%error, "a connection of an agent could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                Some((Err(_), _)) => break,
            }
        }
        self.hosts.close(|_| true);
        while connections.join_next().await.is_some() {}
    }

    async fn serve(
        self,
        incoming: Incoming,
        turn: tokio::sync::OwnedSemaphorePermit,
        stop: CancellationToken,
    ) -> io::Result<()> {
        let Some(arrival) = stop.run_until_cancelled(incoming.arrive()).await else { return Ok(()) };
        match arrival? {
            Arrival::Enrolling(enrolling) => stop.run_until_cancelled(self.enrol(enrolling)).await.unwrap_or(Ok(())),
            Arrival::Agent(connection) => {
                drop(turn);
                self.take_in(connection, stop).await
            }
        }
    }

    async fn enrol(&self, enrolling: Enrolling) -> io::Result<()> {
        let token = enrolling.request.token.clone();
        let (org, host, address) = (token.org(), token.host(), enrolling.address);
        match self.certify_new(&enrolling, org, host).await {
            Ok(certificate) => {
                metrics::counter!("envforge_enrolments_total", "outcome" => "enrolled").increment(1);
                tracing::info!(%org, %host, "an agent enrolled");
                enrolling.grant(&certificate).await
            }
            Err(refusal) => {
                metrics::counter!("envforge_enrolments_total", "outcome" => refusal.code).increment(1);
                self.record(Actor::Anonymous, org, host, refusal.code, address);
                enrolling.refuse(refusal.code, refusal.text).await
            }
        }
    }

    async fn certify_new(
        &self,
        enrolling: &Enrolling,
        org: OrgId,
        host: HostId,
    ) -> Result<envforge_agent::HostCertificate, Refusal> {
        let now = self.plane.clock.now();
        let request = &enrolling.request;
        let invalid = |text: String| Refusal { code: "enrolment_invalid", text };
        let (key, capacity) = self.machine_of(enrolling, org, host).await?;
        let machine = hosts::MachineKey::parse(&key).map_err(|error| invalid(error.to_string()))?;
        let state = hosts::load(&self.plane.commands, org, host).await.map_err(|error| Refusal::of(&error))?.state;
        // Which one it is going to be; the command below decides whether it comes to be.
        let enrolment = match &state {
            HostState::Active(active) => active.agent.as_ref().map_or(1, |agent| agent.enrolment.saturating_add(1)),
            HostState::Unknown | HostState::Expected(_) | HostState::Retired | HostState::Revoked => 1,
        };
        let identity = HostIdentity { org, host, enrolment };
        let certificate = self
            .authority
            .certify(&request.request, identity, now, self.certificate_lifetime)
            .map_err(|error| invalid(error.to_string()))?;
        let permit = self.permit(org, host).await?;
        let enrolling = EnrollingHost {
            host,
            org,
            token: request.token.digest(),
            machine: key,
            capacity,
            certificate: certificate.fingerprint,
            certificate_expires_at: certificate.expires_at,
            agent_version: request.agent_version.clone(),
            now,
        };
        let done = hosts::enrol(&self.plane.commands, &permit, &Context::new(now), machine, enrolling).await;
        done.map(|_| certificate).map_err(|error| Refusal::of(&error))
    }

    /// What an agent's machine goes by, and what of it workspaces may take. Of a provider's machine the log knows both: the claim is
    /// the one that its launch has taken.
    async fn machine_of(&self, enrolling: &Enrolling, org: OrgId, host: HostId) -> Result<(String, Capacity), Refusal> {
        let loaded = machines::load(&self.plane.commands, org, host).await;
        match loaded.map_err(|error| Refusal::of(&error))?.state {
            Machine::Unknown | Machine::Strange => Ok((enrolling.request.machine.clone(), enrolling.request.capacity)),
            Machine::Live(live) => Ok((machine_key(&live.terms.provider, &live.instance), live.terms.capacity)),
            Machine::Requested { .. } => Err(Refusal::of_machine(&MachineRefusal::NotLaunched)),
            Machine::Over { .. } => Err(Refusal::of_machine(&MachineRefusal::Over)),
        }
    }

    async fn permit(&self, org: OrgId, host: HostId) -> Result<Permit, Refusal> {
        let (actor, on) = (Actor::System(Component::RuntimeReactor), Resource::Host { org, host });
        let now = self.plane.clock.now();
        let permit = self.plane.authorizer.permit(actor, None, Action::HostRegister, on, Surface::Agent, now).await;
        permit.map_err(|error| Refusal { code: UNDECIDED, text: error.to_string() })
    }

    /// Counts a refusal, and has it stand in the organization's audit.
    fn record(&self, actor: Actor, org: OrgId, host: HostId, code: &'static str, address: IpAddr) {
        let now = self.plane.clock.now();
        tracing::warn!(%org, %host, %address, code, "an agent was refused");
        let resource = Resource::Host { org, host };
        let request = Request { actor, action: Action::HostRegister, resource, surface: Surface::Agent, now };
        DenialSink::count(&request, code);
        let of =
            RefusedRequest { request: Context::new(now).correlation, at: now, position: self.plane.hot.position() };
        // An organization that does not exist has nobody to read it.
        if self.plane.hot.authorization.organization(org).is_some() {
            self.plane.authorizer.denials().hold(&request, code, Some(of));
        }
    }

    /// Who a certificate names, as the log's leader has them: the machine and what it offers.
    async fn trusted(&self, identity: HostIdentity) -> Result<(String, Capacity), Refusal> {
        let loaded = hosts::load(&self.plane.commands, identity.org, identity.host).await;
        let loaded = loaded.map_err(|error| Refusal::of(&error))?;
        // Else the watch would take what it does not know yet for what is trusted no more.
        let known = self.plane.hot.wait_for(loaded.position, VIEW_WAIT).await;
        known.map_err(|error| Refusal { code: UNDECIDED, text: error.to_string() })?;
        let refused = |code, text: &str| Err(Refusal { code, text: text.to_owned() });
        match loaded.state {
            HostState::Active(active) => match active.agent {
                Some(agent) if agent.enrolment == identity.enrolment => Ok((active.machine, active.capacity)),
                Some(_) => refused("enrolment_replaced", "another enrolment of this host has replaced this one"),
                None => refused("host_without_agent", "this host has no agent"),
            },
            HostState::Unknown | HostState::Expected(_) => refused("enrolment_unknown", "nobody enrolled as this host"),
            HostState::Retired => refused("host_retired", "this host was retired"),
            HostState::Revoked => refused("host_revoked", "this host was revoked"),
        }
    }

    async fn take_in(&self, connection: AgentConnection, stop: CancellationToken) -> io::Result<()> {
        let (identity, address) = (connection.identity, connection.address);
        let (machine, capacity) = match self.trusted(identity).await {
            Ok(trusted) => trusted,
            // No word about what runs there: whoever is refused ends it.
            Err(Refusal { code: UNDECIDED, text }) => return Err(io::Error::new(io::ErrorKind::ResourceBusy, text)),
            Err(refusal) => {
                self.record(Actor::Agent(identity.host), identity.org, identity.host, refusal.code, address);
                return connection.refuse(refusal.code, refusal.text).await;
            }
        };
        let (remote, mut session, agent_version) = connection.establish().await?;
        let closed = session.closed().clone();
        self.hosts.enter(identity, remote.clone(), &closed);
        tracing::info!(host = %identity.host, agent_version, "an agent is connected");
        let machine = HostMachine { key: machine, host: identity.host, capacity, org: Some(identity.org) };
        let telling = tell_shell_ends(
            self.world.clone(),
            self.plane.commands.clone(),
            Host::Remote(remote.clone()),
            machine.clone(),
            Arc::clone(&self.plane.clock),
        );
        let reactor = RuntimeReactor::new(
            &self.world,
            self.plane.commands.clone(),
            Host::Remote(remote.clone()),
            machine,
            Arc::clone(&self.plane.clock),
            self.public_authority.clone(),
        );
        let reactor = roles::with_secrets(reactor, self.secret_store.clone());
        let ending = closed.clone();
        let reacting = async {
            // The world says itself why it ended, and the process with it.
            let _ = reactor.run(ending.clone()).await;
            ending.cancel();
        };
        let listening = async {
            while let Some(Happened::Renew(request)) = stop.run_until_cancelled(session.next()).await {
                self.renew(identity, &request, &mut session).await;
            }
            session.closed().cancel();
        };
        let (commands, hot, clock) =
            (self.plane.commands.clone(), Arc::clone(&self.plane.hot), Arc::clone(&self.plane.clock));
        let root = RootReactor::new(commands, hot, Host::Remote(remote.clone()), clock);
        let beside = closed.run_until_cancelled(async { tokio::join!(self.hosts.find_lasting(&remote), telling) });
        tokio::join!(reacting, listening, beside, root.run(closed.clone()));
        self.hosts.leave(identity, &closed);
        tracing::info!(host = %identity.host, "an agent is gone");
        Ok(())
    }

    async fn renew(&self, identity: HostIdentity, request: &str, session: &mut Session) {
        let now = self.plane.clock.now();
        let renewing = async {
            self.trusted(identity).await?;
            let certificate = self.authority.certify(request, identity, now, self.certificate_lifetime);
            let certificate =
                certificate.map_err(|error| Refusal { code: "enrolment_invalid", text: error.to_string() })?;
            let permit = self.permit(identity.org, identity.host).await?;
            let (context, host, enrolment) = (Context::new(now), identity.host, identity.enrolment);
            let (fingerprint, expires_at) = (certificate.fingerprint, certificate.expires_at);
            let recorded = hosts::record_renewal(
                &self.plane.commands,
                &permit,
                &context,
                host,
                enrolment,
                fingerprint,
                expires_at,
            );
            recorded.await.map_err(|error| Refusal::of(&error))?;
            Ok::<_, Refusal>(certificate)
        };
        let outcome = match renewing.await {
            Ok(certificate) => {
                session.certify(&certificate, now).await;
                "renewed"
            }
            Err(refusal) => {
                session.do_not_certify(refusal.text).await;
                refusal.code
            }
        };
        metrics::counter!("envforge_agent_renewals_total", "outcome" => outcome).increment(1);
    }

    /// INVARIANT: a host that is revoked, retired or enrolled anew loses the connection that it had before.
    async fn watch_trust(self) {
        let mut tick = tokio::time::interval(TRUST_INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let placement = &self.plane.hot.placement;
            self.hosts
                .close(|identity| placement.enrolment_of(identity.org, identity.host) != Some(identity.enrolment));
        }
    }
}

/// Why a connection came to nothing, for metrics.
fn reason(error: &io::Error) -> &'static str {
    use rustls::{CertificateError, Error};
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    match (tls, error.kind()) {
        (Some(Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. })), _) => {
            "certificate_expired"
        }
        (Some(Error::InvalidCertificate(_)), _) => "certificate_unknown",
        (Some(_), _) => "tls",
        (None, io::ErrorKind::TimedOut) => "slow",
        (None, io::ErrorKind::ResourceBusy) => "undecided",
        (None, io::ErrorKind::InvalidData) => "protocol",
        (None, _) => "connection",
    }
}
