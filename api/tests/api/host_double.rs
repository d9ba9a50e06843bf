//! A host of shells that begins what it is asked for once a test lets it, and keeps what lasts as one does.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use envforge_api::{OpenShell, ShellHost};
use envforge_domain::ids::{HostId, OrgId, RootWindowId, UserId, WorkspaceId};
use envforge_domain::job_run::JobOrder;
use envforge_domain::shell::{
    LastingShell, LogChunk, LogPlace, ShellFacts, ShellFailure, ShellInput, ShellOrder, ShellWhat, TerminalSize,
};
use envforge_domain::slug::ServiceName;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::{Semaphore, mpsc};
use uuid::Uuid;

/// What each answer for a log holds.
pub(crate) const LINE: &str = "one more line\n";

/// Clones are one.
#[derive(Clone)]
pub(crate) struct HostDouble(Arc<Inner>);

struct Inner {
    host: HostId,
    is_reached: AtomicBool,
    answers: Semaphore,
    awaited: AtomicUsize,
    begun: AtomicUsize,
    heard: Mutex<Vec<ShellInput>>,
    attached: Mutex<Vec<LastingShell>>,
    ends_asked: AtomicUsize,
}

/// Somebody who waits for an answer.
struct Awaiting<'a>(&'a Inner);

impl Drop for Awaiting<'_> {
    fn drop(&mut self) {
        self.0.awaited.fetch_sub(1, Ordering::SeqCst);
    }
}

impl HostDouble {
    /// It is reached, and answers nothing yet.
    pub(crate) fn new() -> Self {
        Self(Arc::new(Inner {
            host: HostId::from_uuid(Uuid::now_v7()),
            is_reached: AtomicBool::new(true),
            answers: Semaphore::new(0),
            awaited: AtomicUsize::default(),
            begun: AtomicUsize::default(),
            heard: Mutex::default(),
            attached: Mutex::default(),
            ends_asked: AtomicUsize::default(),
        }))
    }

    pub(crate) fn reach(&self, is_reached: bool) {
        self.0.is_reached.store(is_reached, Ordering::SeqCst);
    }

    /// So many more get their answer.
    pub(crate) fn answer(&self, count: usize) {
        self.0.answers.add_permits(count);
    }

    /// How many wait for an answer.
    pub(crate) fn awaited(&self) -> usize {
        self.0.awaited.load(Ordering::SeqCst)
    }

    /// Shells and jobs that ever began.
    pub(crate) fn begun(&self) -> usize {
        self.0.begun.load(Ordering::SeqCst)
    }

    /// What all of them were told.
    pub(crate) fn heard(&self) -> Vec<ShellInput> {
        self.0.heard.lock().unwrap().clone()
    }

    /// Sign-ins that are attached to what lasts.
    pub(crate) fn attached(&self) -> usize {
        self.0.attached.lock().unwrap().len()
    }

    /// How often what lasts was to be ended.
    pub(crate) fn ends_asked(&self) -> usize {
        self.0.ends_asked.load(Ordering::SeqCst)
    }

    async fn answered(&self) {
        self.0.awaited.fetch_add(1, Ordering::SeqCst);
        let _awaiting = Awaiting(&self.0);
        self.0.answers.acquire().await.unwrap().forget();
    }

    async fn begin(&self, lasting: bool) -> Result<OpenShell, ShellFailure> {
        self.answered().await;
        self.0.begun.fetch_add(1, Ordering::SeqCst);
        let ((input, mut fed), (said, output)) = (mpsc::channel(1), mpsc::channel(1));
        let double = self.clone();
        tokio::spawn(async move {
            while let Some(input) = fed.recv().await {
                double.0.heard.lock().unwrap().push(input);
            }
            drop(said);
        });
        Ok(OpenShell { facts: ShellFacts { lasting, ..ShellFacts::default() }, input, output })
    }

    fn here(&self) -> Result<HostId, ShellFailure> {
        if self.0.is_reached.load(Ordering::SeqCst) { Ok(self.0.host) } else { Err(ShellFailure::OutOfReach) }
    }

    async fn line(&self) -> LogChunk {
        self.answered().await;
        LogChunk { bytes: LINE.into(), ..LogChunk::default() }
    }
}

impl ShellHost for HostDouble {
    fn place(&self, _: OrgId, _: WorkspaceId) -> Result<HostId, ShellFailure> {
        self.here()
    }

    fn shell_place(&self, _: OrgId, _: WorkspaceId) -> Result<HostId, ShellFailure> {
        self.here()
    }

    fn open(&self, _: HostId, order: ShellOrder) -> BoxFuture<'_, Result<OpenShell, ShellFailure>> {
        async move {
            let lasting = matches!(order.what, ShellWhat::Terminal { lasting: true, .. });
            let open = self.begin(lasting).await?;
            if lasting {
                let ShellOrder { org, project, workspace, user, session, surface, .. } = order;
                let attached = LastingShell { org, project, workspace, user, session, surface };
                self.0.attached.lock().unwrap().push(attached);
            }
            Ok(open)
        }
        .boxed()
    }

    fn run_job(&self, _: JobOrder) -> BoxFuture<'_, Result<OpenShell, ShellFailure>> {
        self.begin(false).boxed()
    }

    fn commit(&self, _: OrgId, _: WorkspaceId) -> BoxFuture<'_, Option<String>> {
        async { Some("4bd5cd8".to_owned()) }.boxed()
    }

    fn end_lasting<'a>(
        &'a self,
        org: OrgId,
        workspace: WorkspaceId,
        user: UserId,
        stands: &'a (dyn Fn(&LastingShell) -> bool + Send + Sync),
    ) -> BoxFuture<'a, Vec<LastingShell>> {
        async move {
            let mut all = self.0.attached.lock().unwrap();
            let is_theirs = |one: &&LastingShell| (one.org, one.workspace, one.user) == (org, workspace, user);
            let standing: Vec<_> = all.iter().filter(is_theirs).filter(|one| stands(one)).copied().collect();
            if standing.is_empty() {
                all.retain(|one| !is_theirs(&one));
            }
            self.0.ends_asked.fetch_add(1, Ordering::SeqCst);
            standing
        }
        .boxed()
    }

    fn found_lasting(&self) -> BoxFuture<'_, LastingShell> {
        std::future::pending().boxed()
    }

    fn attach_root(
        &self,
        _: OrgId,
        _: WorkspaceId,
        _: RootWindowId,
        _: TerminalSize,
        _: String,
    ) -> BoxFuture<'_, Result<OpenShell, ShellFailure>> {
        async {
            self.here()?;
            self.begin(false).await
        }
        .boxed()
    }

    fn root_output(
        &self,
        _: OrgId,
        _: WorkspaceId,
        _: RootWindowId,
    ) -> BoxFuture<'_, Result<Option<(String, u64)>, ShellFailure>> {
        async { Ok(None) }.boxed()
    }

    fn tail(&self, _: OrgId, _: WorkspaceId, _: ServiceName, _: usize) -> BoxFuture<'_, io::Result<Option<LogChunk>>> {
        async { Ok(Some(self.line().await)) }.boxed()
    }

    fn more(&self, _: OrgId, _: WorkspaceId, _: ServiceName, _: LogPlace) -> BoxFuture<'_, io::Result<LogChunk>> {
        async { Ok(self.line().await) }.boxed()
    }
}
