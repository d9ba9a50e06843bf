//! Stored events of root windows. A command's words stand here, its output never.

use envforge_domain::ids::{ProjectId, RootWindowId, UserId, WorkspaceId};
use envforge_domain::root_window::{
    FileChange, FileChangeKind, PackageChange, RootAccess, RootChanges, RootCloseout, RootCommand, RootEnded, RootMode,
    RootOutcome, RootPolicy, RootTerms, RootWindowEvent,
};
use envforge_domain::runtime::Epoch;
use envforge_domain::time::{Millis, UnixMillis};

use serde_json::Value;

use super::wire::{events, object, tokens};

events! {
    RootWindowEvent {
        "root_window.requested.v2" => Requested { terms: RootTerms = "terms", expires_at: UnixMillis = "expires_at" },
        "root_window.approved.v1" => Approved {
            approver: UserId = "approver",
            at: UnixMillis = "at",
            use_until: UnixMillis = "use_until",
        },
        "root_window.denied.v1" => Denied { by: UserId = "by", reason: Option<String> = "reason" },
        "root_window.withdrawn.v1" => Withdrawn,
        "root_window.revoked.v1" => Revoked { by: UserId = "by", reason: Option<String> = "reason" },
        "root_window.expired.v1" => Expired,
        "root_window.opened.v1" => Opened { at: UnixMillis = "at", ends_at: UnixMillis = "ends_at" },
        "root_window.command_asked.v1" => CommandAsked {
            words: Vec<String> = "words",
            epoch: Epoch = "epoch",
            at: UnixMillis = "at",
        },
        "root_window.command_started.v1" => CommandStarted { at: UnixMillis = "at" },
        "root_window.command_ended.v1" => CommandEnded { ended: RootEnded = "ended" },
        "root_window.closed.v2" => Closed { closeout: RootCloseout = "closeout" },
        "root_window.reviewed.v1" => Reviewed {
            reviewer: UserId = "reviewer",
            justified: bool = "justified",
            note: String = "note",
        },
    }
}

/// All windows were for one command then.
pub(super) fn requested_v1_to_v2(data: Value) -> Result<Value, String> {
    for_a_command(data, "terms")
}

/// As above.
pub(super) fn closed_v1_to_v2(data: Value) -> Result<Value, String> {
    for_a_command(data, "closeout")
}

fn for_a_command(mut data: Value, of: &str) -> Result<Value, String> {
    let object = data.get_mut(of).and_then(Value::as_object_mut).ok_or_else(|| format!("no {of}"))?;
    object.insert("access".to_owned(), "command".into());
    Ok(data)
}

object! {
    RootTerms {
        window: RootWindowId = "window",
        project: ProjectId = "project",
        workspace: WorkspaceId = "workspace",
        requester: UserId = "requester",
        mode: RootMode = "mode",
        access: RootAccess = "access",
        reason: String = "reason",
        length: Millis = "length_ms",
        requested_at: UnixMillis = "requested_at",
    }
}

object! {
    RootCommand {
        words: Vec<String> = "words",
        epoch: Epoch = "epoch",
        asked_at: UnixMillis = "asked_at",
        started_at: Option<UnixMillis> = "started_at",
        ended: Option<RootEnded> = "ended",
    }
}

object! {
    RootEnded {
        outcome: RootOutcome = "outcome",
        code: Option<u32> = "code",
        at: UnixMillis = "at",
        changes: Option<RootChanges> = "changes",
    }
}

object! {
    RootChanges {
        packages: Vec<PackageChange> = "packages",
        files: Vec<FileChange> = "files",
        incomplete: bool = "incomplete",
    }
}

object! {
    PackageChange {
        name: String = "name",
        before: Option<String> = "before",
        after: Option<String> = "after",
    }
}

object! {
    FileChange {
        path: String = "path",
        kind: FileChangeKind = "kind",
    }
}

tokens! {
    FileChangeKind {
        "added" => Added,
        "removed" => Removed,
        "changed" => Changed,
    }
}

object! {
    RootCloseout {
        requester: UserId = "requester",
        approver: Option<UserId> = "approver",
        mode: RootMode = "mode",
        access: RootAccess = "access",
        opened_at: UnixMillis = "opened_at",
        closed_at: UnixMillis = "closed_at",
        commands: Vec<RootCommand> = "commands",
    }
}

tokens! {
    RootAccess {
        "command" => Command,
        "shell" => Shell,
    }
}

tokens! {
    RootMode {
        "elevation" => Elevation,
        "break_glass" => BreakGlass,
    }
}

tokens! {
    RootPolicy {
        "disabled" => Disabled,
        "break_glass" => BreakGlass,
        "workspace_elevation" => WorkspaceElevation,
    }
}

tokens! {
    RootOutcome {
        "exited" => Exited,
        "signalled" => Signalled,
        "deadline" => Deadline,
        "revoked" => Revoked,
        "withdrawn" => Withdrawn,
        "right_lost" => RightLost,
        "runtime_gone" => RuntimeGone,
        "host_stopped" => HostStopped,
        "no_root" => NoRoot,
        "not_started" => NotStarted,
        "lost" => Lost,
    }
}
