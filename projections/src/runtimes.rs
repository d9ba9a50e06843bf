//! Runtimes as whoever waits for one sees them: a channel for each workspace, told by every change.
//!
//! Not here: deciding to wake (domain, commands) and what is due for a runtime (reactors).

use std::net::SocketAddr;

use ahash::AHashMap;
use envforge_domain::ids::WorkspaceId;
use envforge_domain::runtime::{Epoch, RuntimeEvent, WakeStage};
use envforge_domain::slug::ServiceName;
use envforge_domain::time::UnixMillis;
use parking_lot::RwLock;
use tokio::sync::watch;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RuntimePhase {
    Asleep,
    Waking,
    Ready,
    Sleeping,
    Failed,
    /// Ready by the log, on a host that is trusted no more: nobody is led there, and the log is about to say that it is lost.
    Leaving,
}

/// A runtime as of now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuntimeView {
    pub phase: RuntimePhase,
    pub epoch: Epoch,
    pub stage: Option<WakeStage>,
    /// When the phase began, by the log's clock. The epoch's start for one that was never woken.
    pub since: UnixMillis,
    /// Only while ready.
    pub endpoints: Vec<(ServiceName, SocketAddr)>,
    /// Whether its last wake failed for secrets. Which ones is for the team alone.
    pub secrets_refused: bool,
}

impl Default for RuntimeView {
    /// Never woken.
    fn default() -> Self {
        Self {
            phase: RuntimePhase::Asleep,
            epoch: Epoch(0),
            stage: None,
            since: UnixMillis::EPOCH,
            endpoints: Vec::new(),
            secrets_refused: false,
        }
    }
}

/// All runtimes.
#[derive(Default)]
pub(crate) struct Runtimes {
    channels: RwLock<AHashMap<WorkspaceId, watch::Sender<RuntimeView>>>,
}

impl Runtimes {
    pub(crate) fn subscribe(&self, workspace: WorkspaceId) -> watch::Receiver<RuntimeView> {
        if let Some(sender) = self.channels.read().get(&workspace) {
            return sender.subscribe();
        }
        self.channels.write().entry(workspace).or_default().subscribe()
    }

    /// A look without waiting: costs less than a subscription.
    pub(crate) fn look<T>(&self, workspace: WorkspaceId, look: impl FnOnce(&RuntimeView) -> T) -> T {
        match self.channels.read().get(&workspace) {
            Some(sender) => look(&sender.borrow()),
            None => look(&RuntimeView::default()),
        }
    }

    pub(crate) fn apply(&self, workspace: WorkspaceId, event: &RuntimeEvent, at: UnixMillis) {
        if let Some(sender) = self.channels.read().get(&workspace) {
            tell(sender, event, at);
            return;
        }
        tell(self.channels.write().entry(workspace).or_default(), event, at);
    }

    /// Leads nobody to where it was ready.
    pub(crate) fn withdraw(&self, workspace: WorkspaceId, since: UnixMillis) {
        if let Some(sender) = self.channels.read().get(&workspace) {
            sender.send_modify(|view| {
                let (phase, epoch) = (RuntimePhase::Leaving, view.epoch);
                *view = RuntimeView { phase, epoch, since, ..RuntimeView::default() };
            });
        }
    }
}

fn tell(sender: &watch::Sender<RuntimeView>, event: &RuntimeEvent, at: UnixMillis) {
    sender.send_if_modified(|view| match next(view, event, at) {
        Some(next) => {
            *view = next;
            true
        }
        None => false,
    });
}

/// The view after an event; `None` where nobody who waits would see a difference.
fn next(view: &RuntimeView, event: &RuntimeEvent, since: UnixMillis) -> Option<RuntimeView> {
    let phase = |phase, epoch: &Epoch| {
        Some(RuntimeView { phase, epoch: *epoch, stage: None, since, endpoints: Vec::new(), secrets_refused: false })
    };
    match event {
        RuntimeEvent::WakeRequested { epoch, .. } => phase(RuntimePhase::Waking, epoch),
        RuntimeEvent::StageReached { stage, .. } if view.phase == RuntimePhase::Waking => {
            Some(RuntimeView { stage: Some(stage.clone()), ..view.clone() })
        }
        // Ready only with endpoints: both events stand in one commit, the second one makes it visible.
        RuntimeEvent::EndpointsBound { epoch, endpoints, .. } => Some(RuntimeView {
            phase: RuntimePhase::Ready,
            epoch: *epoch,
            stage: None,
            since,
            endpoints: endpoints.clone(),
            secrets_refused: false,
        }),
        RuntimeEvent::SleepRequested { epoch, .. } => phase(RuntimePhase::Sleeping, epoch),
        RuntimeEvent::Slept { epoch } | RuntimeEvent::Lost { epoch, .. } => phase(RuntimePhase::Asleep, epoch),
        // Both stand in one commit: who waits sees the reason with the failure.
        RuntimeEvent::SecretsRefused { .. } => Some(RuntimeView { secrets_refused: true, ..view.clone() }),
        RuntimeEvent::Failed { epoch, .. } => phase(RuntimePhase::Failed, epoch)
            .map(|failed| RuntimeView { secrets_refused: view.secrets_refused, ..failed }),
        RuntimeEvent::HostChosen { .. }
        | RuntimeEvent::StageReached { .. }
        | RuntimeEvent::SecretsResolved { .. }
        | RuntimeEvent::WakeQueued { .. }
        | RuntimeEvent::Ready { .. }
        | RuntimeEvent::LeaseRenewed { .. }
        | RuntimeEvent::ActivitySeen { .. }
        | RuntimeEvent::KeptAwake { .. }
        | RuntimeEvent::KeepAwakeShortened { .. }
        | RuntimeEvent::SleepPostponed { .. } => None,
    }
}
