//! Secrets of what one process opens on a host that another one has: named in the call, and read by the process that has the host.
//!
//! INVARIANT: no value passes to or from the process that asks. Not here: which versions there are to give (whoever asks knows the log), and
//! the store (the caller's).

use std::collections::BTreeMap;

use envforge_domain::access::Resource;
use envforge_domain::ids::{OrgId, ProjectId, WorkspaceId};
use envforge_domain::job_run::JobOrder;
use envforge_domain::project::GitCredential;
use envforge_domain::secret::Secret;
use envforge_domain::secrets::{ConsumedSecret, SecretConsumer, SecretName, SecretOwner};
use envforge_domain::shell::{ShellGit, ShellOrder};
use envforge_domain::time::UnixMillis;
use envforge_runtime::ShellLogin;
use envforge_runtime::wire::text;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use crate::shell_wire::{JOB, SHELL};

/// Reads values from the store of the process that has the host.
pub trait SecretSource: Send + Sync {
    /// What git shows the repository's server.
    ///
    /// # Errors
    /// In one sentence for people of the team.
    fn login(&self, place: Resource, git: ShellGit) -> BoxFuture<'_, Result<ShellLogin, String>>;

    /// A job's, by name.
    ///
    /// # Errors
    /// In one sentence for people of the team.
    fn of_job(
        &self,
        place: Resource,
        secrets: Vec<ConsumedSecret>,
    ) -> BoxFuture<'_, Result<BTreeMap<String, Secret>, String>>;
}

/// What is to be read.
#[derive(Serialize, Deserialize)]
#[serde(tag = "given", rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum GivenCall {
    Git {
        #[serde(with = "text")]
        project: ProjectId,
        secret: Reference,
        username: String,
        inside: bool,
        expires_at_unix_ms: Option<u64>,
    },
    Job {
        #[serde(with = "text")]
        project: ProjectId,
        secrets: Vec<Reference>,
    },
}

/// A version of a secret of the call's project, or of its workspace.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Reference {
    #[serde(with = "text")]
    consumer: SecretConsumer,
    #[serde(with = "text")]
    name: SecretName,
    of_workspace: bool,
    generation: u32,
    version: u64,
}

/// What was read. Without `Debug`.
pub(crate) enum Values {
    Login(ShellLogin),
    OfJob(BTreeMap<String, Secret>),
}

impl Reference {
    fn of(secret: &ConsumedSecret) -> Self {
        let ConsumedSecret { consumer, name, owner, generation, version } = secret.clone();
        Self { consumer, name, of_workspace: owner.workspace().is_some(), generation, version }
    }

    fn consumed(self, project: ProjectId, workspace: WorkspaceId) -> ConsumedSecret {
        let Self { consumer, name, of_workspace, generation, version } = self;
        let owner = match of_workspace {
            true => SecretOwner::Workspace { project, workspace },
            false => SecretOwner::Project(project),
        };
        ConsumedSecret { consumer, name, owner, generation, version }
    }
}

impl GivenCall {
    /// `None` where git is given nothing.
    pub(crate) fn of_git(order: &ShellOrder) -> Option<Self> {
        let git = order.git.as_ref()?;
        Some(Self::Git {
            project: order.project,
            secret: Reference::of(git.given.as_ref().ok()?),
            username: git.credential.username.clone(),
            inside: git.credential.in_shells,
            expires_at_unix_ms: git.expires_at.map(UnixMillis::get),
        })
    }

    /// `None` where the job declares none.
    pub(crate) fn of_job(order: &JobOrder) -> Option<Self> {
        let secrets: Vec<_> = order.secrets.iter().map(Reference::of).collect();
        (!secrets.is_empty()).then_some(Self::Job { project: order.project, secrets })
    }

    /// What it is given to.
    pub(crate) fn purpose(&self) -> &'static str {
        match self {
            Self::Git { .. } => SHELL,
            Self::Job { .. } => JOB,
        }
    }

    /// # Errors
    /// In one sentence for people of the team.
    pub(crate) async fn read(
        self,
        source: &dyn SecretSource,
        (org, workspace): (OrgId, WorkspaceId),
    ) -> Result<Values, String> {
        let place = |project| Resource::Workspace { org, project, workspace };
        match self {
            Self::Git { project, secret, username, inside, expires_at_unix_ms } => {
                let given = secret.consumed(project, workspace);
                let credential = GitCredential { secret: given.name.clone(), username, in_shells: inside };
                let expires_at = expires_at_unix_ms.map(UnixMillis::new);
                let git = ShellGit { credential, given: Ok(given), expires_at };
                source.login(place(project), git).await.map(Values::Login)
            }
            Self::Job { project, secrets } => {
                let consumed = secrets.into_iter().map(|secret| secret.consumed(project, workspace)).collect();
                source.of_job(place(project), consumed).await.map(Values::OfJob)
            }
        }
    }
}
