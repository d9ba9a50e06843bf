//! Stored events of jobs. A job's command stands here as the manifest says it, its output never.

use envforge_domain::ids::{JobRunId, ProjectId, UserId, WorkspaceId};
use envforge_domain::job_run::{JobRunEvent, JobRunTerms};
use envforge_domain::manifest::JobKind;
use envforge_domain::secrets::ConsumedSecret;
use envforge_domain::shell::ShellEnded;
use envforge_domain::time::UnixMillis;
use serde_json::Value;

use super::wire::{events, object};

events! {
    JobRunEvent {
        "job.started.v2" => Started { terms: JobRunTerms = "terms" },
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
        secrets: Vec<ConsumedSecret> = "secrets",
        at: UnixMillis = "at",
    }
}

/// Jobs had no secrets.
pub(super) fn started_v1_to_v2(mut data: Value) -> Result<Value, String> {
    data["terms"]["secrets"] = Value::Array(Vec::new());
    Ok(data)
}
