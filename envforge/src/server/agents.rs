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
use envforge_domain::host::{Capacity, Enrolling as EnrollingHost, Host as HostState, HostCommand};
use envforge_domain::ids::{HostId, OrgId};
use envforge_domain::machine::{Machine, MachineRefusal};
use envforge_domain::time::Millis;
use envforge_projections::DenialSink;
use envforge_reactors::fleet::{AgentWatch, Looked, Told, machine_key};
use envforge_reactors::{HostMachine, RootReactor, RuntimeReactor, SharedWorld, tell_shell_ends};
use envforge_runtime::secret_store::SecretStore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::control_plane::ControlPlane;
use super::handshakes::{Handshakes, Place};
use super::hosts::Hosts;
use super::running::Running;
use super::{roles, usable};

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
    /// How often it is looked which agents of a provider's machines are there; never where there is no provider.
    pub(crate) look: Option<Millis>,
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
    handshakes: Handshakes,
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
        handshakes: Handshakes::default(),
    };
    let (watching, stop) = (desk.clone(), running.stop.clone());
    running.essential.spawn("trust in agents", async move {
        stop.run_until_cancelled(watching.watch_trust()).await;
        Ok(())
    });
    if let Some(interval) = agents.look {
        let (watching, stop) = (desk.clone(), running.stop.clone());
        running.essential.spawn("the watch over machines' agents", async move {
            stop.run_until_cancelled(watching.watch_presence(interval)).await;
            Ok(())
        });
    }
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
        let mut connections = JoinSet::new();
        loop {
            while connections.try_join_next().is_some() {}
            match stop.run_until_cancelled(listener.accept()).await {
                None => break,
                Some(Ok(incoming)) => {
                    let (desk, stop, address) = (self.clone(), stop.child_token(), incoming.address());
                    let Some(place) = self.handshakes.place(address) else {
                        let failed =
                            metrics::counter!("envforge_agent_connections_failed_total", "reason" => "too_many");
                        failed.increment(1);
                        tracing::debug!(%address, "too many connections wait to say who they are");
                        continue;
                    };
                    connections.spawn(async move {
                        if let Err(error) = desk.serve(incoming, place, stop).await {
                            let reason = reason(&error);
                            metrics::counter!("envforge_agent_connections_failed_total", "reason" => reason)
                                .increment(1);
                            tracing::info!(%address, %error, reason, "a connection to the listener for agents failed");
                        }
                    });
                }
                Some(Err(error)) => {
                    tracing::warn!(%error, "a connection of an agent could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        self.hosts.close(|_| true);
        while connections.join_next().await.is_some() {}
    }

    async fn serve(self, incoming: Incoming, place: Place, stop: CancellationToken) -> io::Result<()> {
        let arriving = async {
            let greeted = incoming.hello().await?;
            let turn = place.turn().await?;
            Ok::<_, io::Error>((turn, greeted.arrive().await?))
        };
        let Some(arrived) = stop.run_until_cancelled(arriving).await else { return Ok(()) };
        let (turn, arrival) = arrived?;
        match arrival {
            Arrival::Enrolling(enrolling) => stop.run_until_cancelled(self.enrol(enrolling)).await.unwrap_or(Ok(())),
            Arrival::Agent(connection) => {
                drop((turn, place));
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
        // A certificate is a signature: nobody gets one made for nothing.
        let opens = state.opens_to(request.token.digest(), now);
        opens.map_err(|refusal| Refusal { code: refusal.code(), text: refusal.to_string() })?;
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
        self.handshakes.know(address);
        let (remote, mut session, agent_version) = connection.establish().await?;
        let closed = session.closed().clone();
        let connection = self.hosts.enter(identity, remote.clone(), &closed);
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
        let beside = closed.run_until_cancelled(async { tokio::join!(self.hosts.find_lasting(&connection), telling) });
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

    /// Tells the log which agents of a provider's machines are there, and which have been away for how long while this process was here:
    /// whoever asks for machines replaces those to which nobody comes through.
    async fn watch_presence(self, interval: Millis) {
        let mut watch = AgentWatch::new(interval);
        let mut tick = tokio::time::interval(interval.to_duration());
        // What stood still looked at nothing.
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            // An agent that is connected elsewhere would not be known of.
            if self.plane.hot.fresh().is_err() {
                continue;
            }
            let wanted = self.plane.hot.placement.agents_wanted();
            let look = |(org, host, heard_at): (OrgId, HostId, _)| {
                let is_here = self.hosts.is_heard_here(org, host);
                Looked { org, host, is_here, heard_at }
            };
            for told in watch.look(&wanted.into_iter().map(look).collect::<Vec<_>>()) {
                if let Err(refusal) = self.tell_look(told).await {
                    tracing::warn!(host = %told.host, code = refusal.code, text = refusal.text, "a look was not recorded");
                }
            }
        }
    }

    async fn tell_look(&self, told: Told) -> Result<(), Refusal> {
        if told.away > Millis::ZERO {
            tracing::warn!(host = %told.host, away = %told.away, "the agent of a machine that is up is away");
        }
        let permit = self.permit(told.org, told.host).await?;
        let (context, command) = (Context::new(self.plane.clock.now()), HostCommand::RecordLook { away: told.away });
        let done = hosts::execute(&self.plane.commands, &permit, &context, told.host, &command).await;
        done.map(drop).map_err(|error| Refusal::of(&error))
    }

    /// INVARIANT: a host that is revoked, retired or enrolled anew loses the connection that it had before.
    async fn watch_trust(self) {
        let mut tick = tokio::time::interval(TRUST_INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut seen = None;
        loop {
            tick.tick().await;
            let placement = &self.plane.hot.placement;
            // Who is there and who may be there are looked at only where one of them is news.
            let news = Some((placement.trust_changes(), self.hosts.entries()));
            if std::mem::replace(&mut seen, news) == news {
                continue;
            }
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
