//! Stored events of shells. Nothing of what was typed or shown stands here.

use envforge_domain::ids::{HostId, ProjectId, SessionId, ShellId, UserId, WorkspaceId};
use envforge_domain::secrets::ConsumedSecret;
use envforge_domain::shell::{ShellEnd, ShellEnded, ShellEvent, ShellKind, ShellTerms};
use envforge_domain::time::{Millis, UnixMillis};

use serde_json::Value;

use super::wire::{events, object, tokens};

events! {
    ShellEvent {
        "shell.connected.v3" => Connected { terms: ShellTerms = "terms" },
        "shell.disconnected.v1" => Disconnected {
            user: UserId = "user",
            workspace: WorkspaceId = "workspace",
            ended: ShellEnded = "ended",
        },
    }
}

object! {
    ShellTerms {
        shell: ShellId = "shell",
        project: ProjectId = "project",
        workspace: WorkspaceId = "workspace",
        user: UserId = "user",
        session: SessionId = "session",
        kind: ShellKind = "kind",
        host: Option<HostId> = "host",
        git: Option<ConsumedSecret> = "git",
        at: UnixMillis = "at",
    }
}

/// All shells were on the control plane's own machine then, which had no name in the log before something woke there.
pub(super) fn connected_v1_to_v2(mut data: Value) -> Result<Value, String> {
    let terms = data.get_mut("terms").and_then(Value::as_object_mut).ok_or("no terms")?;
    terms.insert("host".to_owned(), Value::Null);
    Ok(data)
}

object! {
    ShellEnded {
        end: ShellEnd = "end",
        code: Option<u32> = "code",
        at: UnixMillis = "at",
        duration: Millis = "duration_ms",
    }
}

tokens! {
    ShellKind {
        "terminal" => Terminal,
        "command" => Command,
        "ssh" => Ssh,
    }
}

tokens! {
    ShellEnd {
        "exited" => Exited,
        "signalled" => Signalled,
        "closed" => Closed,
        "silent" => Silent,
        "violation" => Violation,
        "time_over" => TimeOver,
        "session_ended" => SessionEnded,
        "right_lost" => RightLost,
        "workspace_archived" => WorkspaceArchived,
        "rights_unknown" => RightsUnknown,
        "runtime_gone" => RuntimeGone,
        "host_stopped" => HostStopped,
        "not_started" => NotStarted,
        "lost" => Lost,
    }
}

/// No shell was given a secret for git.
pub(super) fn connected_v2_to_v3(mut data: Value) -> Result<Value, String> {
    data["terms"]["git"] = Value::Null;
    Ok(data)
}
