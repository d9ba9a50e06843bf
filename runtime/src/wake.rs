//! One wake: checkout, ports, services, probes; and when any of it fails, nothing left running.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use envforge_domain::ids::WorkspaceId;
use envforge_domain::limits;
use envforge_domain::manifest::Service;
use envforge_domain::slug::ServiceName;
use envforge_domain::time::Millis;
use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::accounts::Names;
use crate::checkout::Checkout;
use crate::config::Config;
use crate::environment::Surroundings;
use crate::failure::WakeFailure;
use crate::git_login::LoginSocket;
use crate::order::{Awake, Stage, WakeOrder};
use crate::output::private_directory;
use crate::port::{self, Ports};
use crate::process::Family;
use crate::readiness::Prober;
use crate::record::{KeeperMark, Records, RunningRecord, blocking};
use crate::report::Reports;
use crate::root::RootRuns;
use crate::running::{Running, SleepHook};
use crate::service::{Life, ServicePlan, Stop, Supervised, Supervision};
use crate::shell::{Shells, login_shell};
use crate::unix_user::{self, UnixUser, UnixUsers, UserBlock};

/// Starts of all services with other ports, where some program took one before its service did.
const PORT_ATTEMPTS_MAX: usize = 3;

/// What all workspaces of a host share.
pub(crate) struct Host {
    pub(crate) config: Arc<Config>,
    pub(crate) boot: String,
    /// Where each service has a user of its own.
    pub(crate) users: Option<UnixUsers>,
    pub(crate) root: RootRuns,
    pub(crate) shells: Shells,
    pub(crate) runtimes: Arc<Runtimes>,
}

impl Host {
    pub(crate) fn place(&self, workspace: WorkspaceId) -> PathBuf {
        self.runtimes.place(workspace)
    }
}

/// What runtimes need, in the process that holds them: a host's, or a keeper's, which holds one.
pub(crate) struct Runtimes {
    pub(crate) config: Arc<Config>,
    pub(crate) records: Records,
    pub(crate) boot: String,
    pub(crate) ports: Ports,
    pub(crate) room: Arc<Semaphore>,
    pub(crate) reports: Reports,
    /// Counts how often what is up here changed.
    pub(crate) changes: watch::Sender<u64>,
    /// Where each service has a user of its own.
    pub(crate) users: Option<UnixUsers>,
    /// In a keeper: what it is found by.
    pub(crate) keeper: Option<KeeperMark>,
    /// On the state directory, until the last actor has ended what it ran. A keeper holds none.
    pub(crate) _lock: Option<File>,
}

impl Runtimes {
    pub(crate) fn place(&self, workspace: WorkspaceId) -> PathBuf {
        self.config.state_dir.join("workspaces").join(workspace.to_string())
    }
}

/// Everybody who watches one wake.
#[derive(Clone)]
pub(crate) struct Stages(Arc<Mutex<(Stage, Vec<watch::Sender<Stage>>)>>);

impl Stages {
    pub(crate) fn new(watcher: watch::Sender<Stage>) -> Self {
        watcher.send_replace(Stage::CheckingOut);
        Self(Arc::new(Mutex::new((Stage::CheckingOut, vec![watcher]))))
    }

    pub(crate) fn join(&self, watcher: watch::Sender<Stage>) {
        let mut stages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        watcher.send_replace(stages.0.clone());
        stages.1.retain(|watcher| !watcher.is_closed());
        stages.1.push(watcher);
    }

    pub(crate) fn set(&self, stage: Stage) {
        let mut stages = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for watcher in &stages.1 {
            watcher.send_replace(stage.clone());
        }
        stages.0 = stage;
    }
}

/// A wake that did not succeed, and what could not be ended after it.
pub(crate) struct Failed {
    pub(crate) failure: WakeFailure,
    pub(crate) stuck: Option<Family>,
}

impl From<WakeFailure> for Failed {
    fn from(failure: WakeFailure) -> Self {
        Self { failure, stuck: None }
    }
}

/// Runs in a task of its own: a caller that goes away does not cut it short, `cancel` does.
pub(crate) async fn wake(
    host: Arc<Runtimes>,
    order: WakeOrder,
    stages: Stages,
    cancel: CancellationToken,
) -> Result<(Running, Awake), Failed> {
    check_secrets(&order)?;
    let room = Arc::clone(&host.room)
        .try_acquire_owned()
        .map_err(|_| WakeFailure::HostFull { max: host.config.runtimes_max })?;
    let block = users_of(&host, &order).await?;
    let (records, boot) = (host.records.clone(), host.boot.clone());
    let keeper = host.keeper.clone();
    let begun = RunningRecord::begin(records, order.workspace, order.epoch, boot, block.clone(), keeper);
    let record = begun.await.map_err(state)?;
    let (given_up_sender, given_up) = mpsc::channel(order.manifest.services.len().max(1));
    let place = host.place(order.workspace);
    let mut running = Running {
        config: Arc::clone(&host.config),
        record,
        output: place.join("output"),
        services: Vec::new(),
        ports: Vec::new(),
        stop: Stop::default(),
        ready: watch::channel(false).0,
        given_up,
        hook: None,
        jobs: None,
        _room: room,
    };
    let limit = order.deadline.to_duration().min(limits::WAKE_DEADLINE.to_duration());
    let result = {
        let attempt = Attempt {
            host: &host,
            order: &order,
            stages: &stages,
            place: &place,
            block: block.as_ref(),
            given_up: given_up_sender,
        };
        tokio::select! {
            biased;
            () = cancel.cancelled() => Err(WakeFailure::Cancelled),
            result = tokio::time::timeout(limit, attempt.run(&mut running)) => result.unwrap_or_else(|_| {
                Err(WakeFailure::DeadlinePassed { limit: Millis::new(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)) })
            }),
        }
    };
    match result {
        Ok(awake) => {
            stages.set(Stage::Ready);
            Ok((running, awake))
        }
        Err(failure) => {
            let family = running.family();
            let stuck = running.end().await.is_err().then_some(family);
            Err(Failed { failure, stuck })
        }
    }
}

/// The ids of an order's workspace, where workspaces have users of their own.
pub(crate) async fn users_of(host: &Runtimes, order: &WakeOrder) -> Result<Option<UserBlock>, WakeFailure> {
    let Some(users) = host.users.clone() else { return Ok(None) };
    let names: Vec<_> = order.manifest.services.iter().map(|service| service.name.clone()).collect();
    let workspace = order.workspace;
    blocking(move || users.of(workspace, &names)).await.map(Some).map_err(state)
}

/// A task that did not come to its end counts as a wake that failed.
pub(crate) fn settle<T>(ended: Result<Result<T, Failed>, tokio::task::JoinError>) -> Result<T, Failed> {
    ended.unwrap_or_else(|error| {
        Err(WakeFailure::State { reason: format!("the wake ended unexpectedly: {error}") }.into())
    })
}

fn check_secrets(order: &WakeOrder) -> Result<(), WakeFailure> {
    for service in &order.manifest.services {
        for secret in &service.secrets {
            if !order.secrets.contains_key(secret) {
                return Err(WakeFailure::SecretMissing { service: service.name.clone(), secret: secret.clone() });
            }
        }
    }
    Ok(())
}

pub(crate) fn state(error: io::Error) -> WakeFailure {
    WakeFailure::State { reason: error.to_string() }
}

struct Attempt<'a> {
    host: &'a Runtimes,
    order: &'a WakeOrder,
    stages: &'a Stages,
    place: &'a Path,
    /// Where each service has a user of its own.
    block: Option<&'a UserBlock>,
    given_up: mpsc::Sender<crate::service::GivenUp>,
}

impl Attempt<'_> {
    fn config(&self) -> &Config {
        &self.host.config
    }

    async fn run(&self, running: &mut Running) -> Result<Awake, WakeFailure> {
        let (home, data, homes) = (self.place.join("home"), self.place.join("data"), self.place.join("homes"));
        let tree = self.place.join("checkout");
        match self.block {
            None => {
                let directories = [home.clone(), data.clone(), running.output.clone()];
                blocking(move || directories.iter().try_for_each(|directory| private_directory(directory)))
                    .await
                    .map_err(state)?;
            }
            Some(block) => {
                let (block, place, output) = (block.clone(), self.place.to_owned(), running.output.clone());
                blocking(move || unix_user::make_place(&block, &place, &output)).await.map_err(state)?;
            }
        }
        let marker = running.record.marker().clone();
        let login = match &self.order.git {
            None => None,
            Some(login) => {
                Some(LoginSocket::for_envforge(&self.config().state_dir, &self.order.repository, login.clone())?)
            }
        };
        let checkout = Checkout {
            config: self.config(),
            marker: &marker,
            repository: self.place.join("repository.git"),
            tree: tree.clone(),
            index: self.place.join("index"),
            block: self.block,
            login: login.as_ref(),
        };
        let commit = checkout.update(&self.order.repository, &self.order.branch).await?;
        drop(login);
        let directories = self.directories(tree.clone()).await?;
        let names = Names::of(self.place.to_owned(), self.block.cloned(), login_shell().remove(0));
        let names = names.await.map_err(state)?;
        let mut attempt = 1;
        loop {
            let ports = self.reserve(running)?;
            let surroundings = Surroundings {
                config: self.config(),
                order: self.order,
                marker: &marker,
                home: &home,
                homes: self.block.map(|_| homes.as_path()),
                data: &data,
                ports: &ports,
            };
            running.jobs = Some((tree.clone(), surroundings.of_runtime()));
            running.hook = self.order.manifest.on_sleep.as_ref().map(|hook| SleepHook {
                hook: hook.clone(),
                directory: tree.clone(),
                environment: surroundings.of_runtime(),
                user: self.block.map(UserBlock::shell),
                names: names.clone(),
            });
            let probers = self.start(running, &surroundings, &directories, names.as_ref());
            match self.become_ready(running, &probers).await {
                Ok(()) => break,
                Err(failure) => {
                    let lost_its_port = match &failure {
                        WakeFailure::Exited { service, .. } => self.lost_its_port(running, service, &ports).await,
                        _ => false,
                    };
                    if !lost_its_port || attempt == PORT_ATTEMPTS_MAX {
                        return Err(failure);
                    }
                    tracing::warn!(workspace = %self.order.workspace, "another program took a port; all services start again with new ones");
                    attempt += 1;
                    running.end().await.map_err(|survivors| WakeFailure::Survivors { count: survivors.count })?;
                    running.stop = Stop::default();
                }
            }
        }
        running.ready.send_replace(true);
        let listening = self.order.manifest.services.iter().filter(|service| service.port_variable.is_some());
        let endpoints = listening.zip(&running.ports).map(|(service, port)| (service.name.clone(), port.address()));
        Ok(Awake { endpoints: endpoints.collect(), commit })
    }

    /// The directory of each service, symbolic links resolved, inside the checkout.
    async fn directories(&self, tree: PathBuf) -> Result<BTreeMap<ServiceName, PathBuf>, WakeFailure> {
        let mut found = BTreeMap::new();
        for service in &self.order.manifest.services {
            let (tree, wanted) = (tree.clone(), service.directory.clone().unwrap_or_default());
            let directory = blocking(move || {
                let directory = tree.join(wanted).canonicalize()?;
                let inside = directory.starts_with(tree.canonicalize()?) && directory.is_dir();
                if inside { Ok(directory) } else { Err(io::ErrorKind::NotADirectory.into()) }
            })
            .await
            .map_err(|_| WakeFailure::Directory {
                service: service.name.clone(),
                directory: service.directory.clone().unwrap_or_else(|| ".".to_owned()),
            })?;
            found.insert(service.name.clone(), directory);
        }
        Ok(found)
    }

    fn reserve(&self, running: &mut Running) -> Result<BTreeMap<ServiceName, u16>, WakeFailure> {
        let mut ports = BTreeMap::new();
        for service in &self.order.manifest.services {
            if service.port_variable.is_some() {
                let port =
                    self.host.ports.reserve().map_err(|error| WakeFailure::NoPort { reason: error.to_string() })?;
                ports.insert(service.name.clone(), port.number());
                running.ports.push(port);
            }
        }
        Ok(ports)
    }

    fn start(
        &self,
        running: &mut Running,
        surroundings: &Surroundings<'_>,
        directories: &BTreeMap<ServiceName, PathBuf>,
        names: Option<&Names>,
    ) -> Vec<Prober> {
        let mut probers = Vec::new();
        for service in &self.order.manifest.services {
            self.stages.set(Stage::Starting { service: service.name.clone() });
            let environment = surroundings.of_service(service);
            let directory = directories.get(&service.name).expect("every service's directory was resolved").clone();
            probers.push(Prober {
                readiness: service.readiness.clone(),
                port: surroundings.ports.get(&service.name).map(|port| (self.config().bind, *port).into()),
                public_host: self.order.public_hosts.get(&service.name).cloned(),
                directory: directory.clone(),
                environment: environment.clone(),
                user: self.user_of(service),
                names: names.cloned(),
            });
            let plan = ServicePlan {
                name: service.name.clone(),
                command: service.command.clone(),
                directory,
                environment,
                user: self.user_of(service),
                names: names.cloned(),
            };
            running.services.push(plan.start(Supervision {
                config: Arc::clone(&self.host.config),
                workspace: self.order.workspace,
                epoch: self.order.epoch,
                record: running.record.clone(),
                output: running.output.clone(),
                reports: self.host.reports.clone(),
                stop: running.stop.clone(),
                ready: running.ready.subscribe(),
                given_up: self.given_up.clone(),
            }));
        }
        probers
    }

    fn user_of(&self, service: &Service) -> Option<UnixUser> {
        self.block.and_then(|block| block.service(&service.name))
    }

    /// Until every service is ready, or the first that is not.
    async fn become_ready(&self, running: &Running, probers: &[Prober]) -> Result<(), WakeFailure> {
        let mut probes: FuturesUnordered<_> =
            running.services.iter().zip(probers).map(|(service, prober)| self.probe(service, prober)).collect();
        let mut ends: FuturesUnordered<_> = running.services.iter().map(first_end).collect();
        let mut pending: Vec<&ServiceName> = running.services.iter().map(|service| &service.name).collect();
        while let Some(service) = pending.first() {
            self.stages.set(Stage::Probing { service: (*service).clone() });
            tokio::select! {
                // A service that is gone is not ready, whatever a probe of the same moment said.
                biased;
                Some(failure) = ends.next() => return Err(failure),
                Some(ready) = probes.next() => {
                    let ready = ready?;
                    pending.retain(|name| *name != ready);
                }
            }
        }
        Ok(())
    }

    async fn probe<'s>(&self, service: &'s Supervised, prober: &Prober) -> Result<&'s ServiceName, WakeFailure> {
        let name = &service.name;
        if prober.needs_port() && prober.port.is_none() {
            return Err(WakeFailure::ProbeWithoutPort { service: name.clone() });
        }
        let mut life = service.life.clone();
        // Without a process there is nothing to probe; its end is seen by `first_end`.
        if life.wait_for(|life| matches!(life, Life::Running)).await.is_err() {
            return std::future::pending().await;
        }
        prober.wait().await.map(|()| name).map_err(|not_ready| WakeFailure::NotReady {
            service: name.clone(),
            probe: not_ready.probe,
            waited: prober.readiness.deadline,
            last: not_ready.last,
        })
    }

    async fn lost_its_port(
        &self,
        running: &Running,
        service: &ServiceName,
        ports: &BTreeMap<ServiceName, u16>,
    ) -> bool {
        let Some(port) = ports.get(service) else { return false };
        // A child of the service itself may hold the port; that is not a loss.
        let family = running.record.family_of(service.as_str());
        family.end(std::time::Duration::from_millis(200)).await.is_ok()
            && port::is_taken((self.config().bind, *port).into())
    }
}

async fn first_end(service: &Supervised) -> WakeFailure {
    let mut life = service.life.clone();
    let name = service.name.clone();
    match life.wait_for(|life| matches!(life, Life::Exited(_) | Life::NotStarted(_))).await.as_deref() {
        Ok(Life::Exited(status)) => WakeFailure::Exited { service: name, status: status.clone() },
        Ok(Life::NotStarted(reason)) => WakeFailure::NotStarted { service: name, reason: reason.clone() },
        _ => WakeFailure::NotStarted { service: name, reason: "its supervisor is gone".to_owned() },
    }
}
