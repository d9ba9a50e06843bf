//! Facts that a host tells the control plane without being asked, and the bounded queue they wait in.
//!
//! Not here: what the control plane does with them. A report that was taken and not stored is made good by the lease: a
//! runtime that is not up is not renewed.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use envforge_domain::ids::WorkspaceId;
use envforge_domain::slug::ServiceName;
use tokio::sync::Notify;

/// Something that happened on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// A ready service ended and was started again on the same port.
    ServiceRestarted { workspace: WorkspaceId, epoch: u64, service: ServiceName, status: String },
    /// A service crashed more often than its budget allows. The whole runtime is ended; it is not up any more.
    RuntimeFailed { workspace: WorkspaceId, epoch: u64, service: ServiceName, reason: String },
}

/// The reports of a host, in order. Clones share one queue: each report is read once.
#[derive(Clone)]
pub struct Reports(Arc<Queue>);

struct Queue {
    waiting: Mutex<VecDeque<Report>>,
    arrived: Notify,
    reports_max: usize,
}

impl Reports {
    pub fn new(reports_max: usize) -> Self {
        Self(Arc::new(Queue { waiting: Mutex::new(VecDeque::new()), arrived: Notify::new(), reports_max }))
    }

    /// Waits for the next report. Safe to cancel: a report is taken only when it is returned.
    pub async fn next(&self) -> Report {
        loop {
            let arrived = self.0.arrived.notified();
            if let Some(report) = self.take() {
                return report;
            }
            arrived.await;
        }
    }

    /// The next report if there is one now.
    pub fn take(&self) -> Option<Report> {
        let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let report = waiting.pop_front();
        // One permit may stand for several reports: hand it on to the next reader.
        if !waiting.is_empty() {
            self.0.arrived.notify_one();
        }
        report
    }

    /// Never waits. Where the queue is full, the oldest restart goes first: a failure says more.
    pub fn push(&self, report: Report) {
        let mut waiting = self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() >= self.0.reports_max {
            let oldest_restart =
                waiting.iter().position(|report| matches!(report, Report::ServiceRestarted { .. })).unwrap_or(0);
            let lost = waiting.remove(oldest_restart);
            metrics::counter!("runtime_reports_lost_total").increment(1);
            tracing::warn!(?lost, "nobody reads the host's reports, one was dropped");
        }
        waiting.push_back(report);
        drop(waiting);
        self.0.arrived.notify_one();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use envforge_domain::ids::WorkspaceId;

    fn restarted(epoch: u64) -> Report {
        let workspace = WorkspaceId::from_uuid(uuid::Uuid::from_u128(1));
        Report::ServiceRestarted {
            workspace,
            epoch,
            service: "web".parse().unwrap(),
            status: "exit status 1".to_owned(),
        }
    }

    fn failed(epoch: u64) -> Report {
        let workspace = WorkspaceId::from_uuid(uuid::Uuid::from_u128(1));
        Report::RuntimeFailed { workspace, epoch, service: "web".parse().unwrap(), reason: "budget".to_owned() }
    }

    #[test]
    fn a_full_queue_forgets_restarts_before_failures() {
        let reports = Reports::new(3);
        for report in [failed(1), restarted(2), restarted(3), failed(4), failed(5)] {
            reports.push(report);
        }
        let kept: Vec<_> = std::iter::from_fn(|| reports.take()).collect();
        assert_eq!(kept, [failed(1), failed(4), failed(5)]);
    }

    #[tokio::test]
    async fn two_readers_share_what_arrives() {
        let reports = Reports::new(8);
        let readers = [1, 2].map(|_| {
            tokio::spawn({
                let reports = reports.clone();
                async move { reports.next().await }
            })
        });
        reports.push(restarted(1));
        reports.push(restarted(2));
        let mut seen = Vec::new();
        for reader in readers {
            seen.push(tokio::time::timeout(std::time::Duration::from_secs(5), reader).await.unwrap().unwrap());
        }
        assert!(seen.contains(&restarted(1)) && seen.contains(&restarted(2)), "{seen:?}");
    }
}
