//! One sample of each event of root windows.

use envforge_domain::root_window::{
    FileChange, FileChangeKind, PackageChange, RootAccess, RootChanges, RootCloseout, RootCommand, RootEnded, RootMode,
    RootOutcome, RootTerms, RootWindowEvent,
};

use super::*;

pub(crate) fn samples(project: ProjectId, workspace: WorkspaceId, requester: UserId) -> Vec<RootWindowEvent> {
    let (window, approver) = (RootWindowId::from_uuid(uuid(20)), UserId::from_uuid(uuid(21)));
    let asked = [(RootMode::Elevation, RootAccess::Command), (RootMode::BreakGlass, RootAccess::Shell)];
    let requested = asked.map(|(mode, access)| RootWindowEvent::Requested {
        terms: RootTerms {
            window,
            project,
            workspace,
            requester,
            mode,
            access,
            reason: "a missing „library“".to_owned(),
            length: Millis::from_minutes(20),
            requested_at: at(0),
        },
        expires_at: at(86_400),
    });
    let ends = RootOutcome::ALL.map(|outcome| {
        let code = match outcome {
            RootOutcome::Exited => Some(3),
            RootOutcome::Signalled => Some(11),
            _ => None,
        };
        let changes = code.map(|_| RootChanges {
            packages: [(None, Some("15.1")), (Some("15.1"), None), (Some("15.1"), Some("15.2"))]
                .map(|(before, after)| PackageChange {
                    name: "libpq5:amd64".to_owned(),
                    before: before.map(str::to_owned),
                    after: after.map(str::to_owned),
                })
                .into(),
            files: [FileChangeKind::Added, FileChangeKind::Removed, FileChangeKind::Changed]
                .map(|kind| FileChange { path: "/etc/ld.so.cache".to_owned(), kind })
                .into(),
            incomplete: outcome == RootOutcome::Signalled,
        });
        RootEnded { outcome, code, at: at(90), changes }
    });
    let words = vec!["apt-get".to_owned(), "install".to_owned(), "libpq5".to_owned()];
    let closed = [(Some(approver), Some(ends[0].clone()), RootMode::Elevation), (None, None, RootMode::BreakGlass)]
        .map(|(approver, ended, mode)| RootWindowEvent::Closed {
            closeout: RootCloseout {
                requester,
                approver,
                mode,
                access: if mode == RootMode::Elevation { RootAccess::Command } else { RootAccess::Shell },
                opened_at: at(60),
                closed_at: at(90),
                commands: vec![RootCommand {
                    words: words.clone(),
                    epoch: Epoch(2),
                    asked_at: at(60),
                    started_at: ended.is_some().then(|| at(61)),
                    ended,
                }],
            },
        });
    let reasons = [None, Some("not now".to_owned())];
    let denied = reasons.clone().map(|reason| RootWindowEvent::Denied { by: approver, reason });
    let revoked = reasons.map(|reason| RootWindowEvent::Revoked { by: approver, reason });
    let reviewed = [true, false].map(|justified| RootWindowEvent::Reviewed {
        reviewer: approver,
        justified,
        note: "the disk was full".to_owned(),
    });
    let others = [
        RootWindowEvent::Approved { approver, at: at(30), use_until: at(30_000) },
        RootWindowEvent::Withdrawn,
        RootWindowEvent::Expired,
        RootWindowEvent::Opened { at: at(60), ends_at: at(1_260) },
        RootWindowEvent::CommandAsked { words, epoch: Epoch(2), at: at(60) },
        RootWindowEvent::CommandStarted { at: at(61) },
    ];
    let ended = ends.map(|ended| RootWindowEvent::CommandEnded { ended });
    let mut all: Vec<_> = requested.into_iter().chain(others).collect();
    all.extend(denied.into_iter().chain(revoked).chain(ended).chain(closed).chain(reviewed));
    all
}
