//! Whether a gateway stands where the services are.
//!
//! A loopback address means another machine's own services everywhere else: a gateway there would hand reviewers to
//! whatever listens. Addresses that agents name with `--bind-apps` mean the same everywhere. Not here: what a gateway forwards
//! (gateway).

use std::collections::{HashMap, HashSet};
use std::path::Path;

use envforge_domain::commit::{Recorded, StreamKind};
use envforge_domain::event::Event;
use envforge_domain::host::HostEvent;
use envforge_domain::ids::HostId;
use envforge_domain::runtime::RuntimeEvent;
use envforge_eventlog::{Checkpoint, Filter, Follow, LogError, SharedLog};
use envforge_reactors::{MACHINE_ID, ThisMachine};
use futures_util::StreamExt as _;
use tokio::sync::oneshot;

use super::running::Running;
use crate::cli::failure::Failure;

/// The machine whose loopback a gateway may reach.
pub(crate) struct GatewayPlace {
    machine: ThisMachine,
}

impl GatewayPlace {
    /// `state_dir` is where reactors run on this machine, if any do.
    pub(crate) fn here(state_dir: &Path) -> anyhow::Result<Self> {
        Ok(Self { machine: ThisMachine::look(state_dir, Path::new(MACHINE_ID))? })
    }

    /// Looks through the log, and on: a process whose log sends the gateway to another machine's loopback does not start,
    /// or ends.
    pub(crate) async fn watch(self, running: &mut Running, log: SharedLog) -> anyhow::Result<()> {
        let (looked, caught_up) = oneshot::channel();
        let stop = running.stop.clone();
        running.essential.spawn("the gateway's place", async move {
            stop.run_until_cancelled(self.follow(log, looked)).await.unwrap_or(Ok(()))
        });
        // Where the watch ended before, its own error says why.
        if caught_up.await.is_err() {
            return Err(running.essential.first_failure().await);
        }
        Ok(())
    }

    async fn follow(self, log: SharedLog, looked: oneshot::Sender<()>) -> anyhow::Result<()> {
        let mut looked = Some(looked);
        let mut elsewhere = Elsewhere::than(self.machine);
        let mut checkpoint = Checkpoint::START;
        loop {
            let ended = elsewhere.follow(&log, &mut checkpoint, &mut looked).await?;
            // The gateway refuses by itself while the log is out of reach; this only comes back to it.
            tracing::warn!(error = %ended, "the watch over the gateway's place lost the log; following again");
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        }
    }
}

/// Ready runtimes of other machines that answer on a loopback address.
struct Elsewhere {
    /// Hosts on this machine: its own, and those whose agents run beside it.
    here: HashSet<HostId>,
    machine: Option<String>,
    ready: HashMap<String, HostId>,
}

impl Elsewhere {
    fn than(machine: ThisMachine) -> Self {
        Self { here: machine.host.into_iter().collect(), machine: machine.key, ready: HashMap::new() }
    }

    async fn follow(
        &mut self,
        log: &SharedLog,
        checkpoint: &mut Checkpoint,
        looked: &mut Option<oneshot::Sender<()>>,
    ) -> anyhow::Result<LogError> {
        let lost = |error| match error {
            error @ LogError::Unavailable(_) => Ok(error),
            error => Err(error.into()),
        };
        let filter = Filter { org: None, kinds: vec![StreamKind::Runtime, StreamKind::Host] };
        let mut follow = match log.follow(checkpoint.clone(), filter).await {
            Ok(follow) => follow,
            Err(error) => return lost(error),
        };
        while let Some(next) = follow.next().await {
            match next {
                Err(error) => return lost(error),
                Ok(Follow::Commit { recorded, checkpoint: reached, .. }) => {
                    self.apply(&recorded);
                    *checkpoint = reached;
                    if looked.is_none() {
                        self.judge()?;
                    }
                }
                Ok(Follow::Caught { .. }) => {
                    self.judge()?;
                    if let Some(looked) = looked.take() {
                        // Whoever waited for it has given up; then this ends with the process.
                        let _ = looked.send(());
                    }
                }
            }
        }
        Ok(LogError::Unavailable("the log's stream ended".to_owned()))
    }

    fn apply(&mut self, recorded: &Recorded) {
        for event in &recorded.commit.events {
            match event {
                Event::Runtime(event) => self.apply_one(recorded.commit.stream.key(), event),
                Event::Host(HostEvent::Registered { host, machine, .. }) if Some(machine) == self.machine.as_ref() => {
                    self.here.insert(*host);
                }
                _ => {}
            }
        }
    }

    fn apply_one(&mut self, workspace: &str, event: &RuntimeEvent) {
        match event {
            RuntimeEvent::EndpointsBound { host, endpoints, .. } => {
                let loopback = endpoints.iter().any(|(_, address)| address.ip().to_canonical().is_loopback());
                if loopback && !self.here.contains(host) {
                    self.ready.insert(workspace.to_owned(), *host);
                } else {
                    self.ready.remove(workspace);
                }
            }
            RuntimeEvent::WakeRequested { .. }
            | RuntimeEvent::SleepRequested { .. }
            | RuntimeEvent::Slept { .. }
            | RuntimeEvent::Failed { .. }
            | RuntimeEvent::Lost { .. } => {
                self.ready.remove(workspace);
            }
            RuntimeEvent::HostChosen { .. }
            | RuntimeEvent::StageReached { .. }
            | RuntimeEvent::SecretsResolved { .. }
            | RuntimeEvent::SecretsRefused { .. }
            | RuntimeEvent::WakeQueued { .. }
            | RuntimeEvent::Ready { .. }
            | RuntimeEvent::LeaseRenewed { .. }
            | RuntimeEvent::ActivitySeen { .. }
            | RuntimeEvent::KeptAwake { .. }
            | RuntimeEvent::KeepAwakeShortened { .. }
            | RuntimeEvent::SleepPostponed { .. } => {}
        }
    }

    fn judge(&self) -> anyhow::Result<()> {
        match self.ready.iter().next() {
            None => Ok(()),
            Some((workspace, host)) => Err(Failure::local(
                format!("workspace {workspace} runs on another machine ({host}) and answers on its loopback alone"),
                "run the gateway on that machine (where it has no /etc/machine-id: after the reactors, with their --runtime); \
                 agents elsewhere name the address that it reaches with --bind-apps",
            )
            .into()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use envforge_domain::runtime::Epoch;
    use uuid::Uuid;

    use super::*;

    fn host(number: u128) -> HostId {
        HostId::from_uuid(Uuid::from_u128(number))
    }

    fn bound(number: u128, address: &str) -> RuntimeEvent {
        let endpoints = vec![("web".parse().unwrap(), address.parse().unwrap())];
        RuntimeEvent::EndpointsBound { epoch: Epoch(1), host: host(number), endpoints }
    }

    #[test]
    fn another_machines_loopback_is_no_place_to_send_reviewers_to() {
        let mut elsewhere = Elsewhere::than(ThisMachine { key: Some("local-1".to_owned()), host: Some(host(1)) });
        elsewhere.apply_one("a", &bound(1, "127.0.0.1:3000"));
        elsewhere.apply_one("b", &bound(2, "10.0.3.4:3000"));
        assert!(elsewhere.judge().is_ok());
        for address in ["127.0.0.1:3000", "[::1]:3000", "[::ffff:127.0.0.1]:3000"] {
            elsewhere.apply_one("c", &bound(2, address));
            assert!(elsewhere.judge().unwrap_err().to_string().contains("another machine"), "{address}");
        }
        elsewhere.apply_one("c", &RuntimeEvent::Slept { epoch: Epoch(1) });
        assert!(elsewhere.judge().is_ok(), "what sleeps there harms nobody here");
    }

    #[test]
    fn a_machine_that_ran_nothing_is_a_place_for_a_gateway_until_a_loopback_elsewhere_is_meant() {
        let folder = tempfile::tempdir().unwrap();
        let nobody = GatewayPlace::here(folder.path()).unwrap().machine;
        assert_eq!(nobody.host, None);
        let mut elsewhere = Elsewhere::than(ThisMachine { key: None, ..nobody });
        elsewhere.apply_one("a", &bound(2, "10.0.3.4:3000"));
        assert!(elsewhere.judge().is_ok());
        elsewhere.apply_one("a", &bound(2, "127.0.0.1:3000"));
        assert!(elsewhere.judge().is_err());
    }
}
