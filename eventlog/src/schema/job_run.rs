//! Stored events of jobs. A job's command stands here as the manifest says it, its output never.

use envforge_domain::ids::{JobRunId, ProjectId, UserId, WorkspaceId};
use envforge_domain::job_run::{JobRunEvent, JobRunTerms};
use envforge_domain::manifest::JobKind;
use envforge_domain::shell::ShellEnded;
use envforge_domain::time::UnixMillis;

use super::wire::{events, object};

events! {
    JobRunEvent {
        "job.started.v1" => Started { terms: JobRunTerms = "terms" },
        "job.finished.v1" => Finished {
            by: UserId = "by",
            workspace: WorkspaceId = "workspace",
            name: String = "name",
            ended: ShellEnded = "ended",
        },
    }
}

object! {
    JobRunTerms {
        run: JobRunId = "run",
        project: ProjectId = "project",
        workspace: WorkspaceId = "workspace",
        name: String = "name",
        command: String = "command",
        kind: JobKind = "kind",
        by: UserId = "by",
        commit: String = "commit",
        at: UnixMillis = "at",
    }
}
