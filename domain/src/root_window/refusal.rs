//! What a root window says no to, and what would be allowed.

use super::RootPolicy;
use crate::aggregate::{Refusal, RefusalKind};
use crate::ids::UserId;
use crate::provenance::{Derived, Others};
use crate::time::Millis;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RootWindowRefusal {
    #[error("there is no such root window")]
    Unknown,
    #[error("the root window exists already")]
    Exists,
    #[error(
        "whoever asked for this root window may do so no more, or the organization's policy does not allow it any more"
    )]
    RightLost,
    #[error("only people ask for root, approve it and use it, in sessions of their own")]
    PeopleOnly,
    #[error("the organization's root policy is `{}`", .policy.token())]
    NotAllowed { policy: RootPolicy },
    #[error("a root window is open for {min} to {max}")]
    LengthOutOfRange { min: Millis, max: Millis },
    #[error("a reason must have 1 to {max} characters on one line")]
    Reason { max: usize },
    #[error("you asked for this root window yourself: somebody else, an owner or admin, decides on it")]
    OwnRequest,
    #[error(
        "you have your {} from whoever asked for this root window, directly or through others, and so cannot decide on it; {}",
        .on.token(),
        instead(.others)
    )]
    DeciderDepends { on: Derived, others: Others },
    #[error("only whoever asked for this root window may use it or give it up")]
    NotYours,
    #[error("nobody has approved this root window yet")]
    NotApproved,
    #[error("this root window is no request any more")]
    NotPending,
    #[error("the time for this root window's request or use is over; ask for another one")]
    Expired,
    #[error("this root window is over; ask for another one")]
    Over,
    #[error("this root window is not over yet")]
    NotYetOver,
    #[error(
        "this root window was for one command, or one shell at a time, which it has had or still has; ask for another one"
    )]
    Used,
    #[error("a command has 1 to {max_words} words of at most {max_chars} characters together")]
    Command { max_words: usize, max_chars: usize },
    #[error("this root window is for a shell, not for a command")]
    ForShell,
    #[error("this root window is for one command, not for a shell")]
    ForCommand,
    #[error("the workspace's runtime is not ready: wake it first")]
    RuntimeAsleep,
    #[error("no command was asked for in this root window")]
    NoCommand,
    #[error("at most {max} packages and files are told of one command")]
    TooManyChanges { max: usize },
    #[error("only break-glass windows are reviewed")]
    NothingToReview,
    #[error("this root window has been reviewed")]
    ReviewedAlready,
    #[error("{max} of your requests for root in this workspace wait for an answer: withdraw one, or wait")]
    TooManyRequests { max: usize },
    #[error("a break-glass window was not reviewed yet: {window}; somebody else reviews it first")]
    ReviewPending { window: String },
}

impl Refusal for RootWindowRefusal {
    fn code(&self) -> &'static str {
        match self {
            Self::Unknown => "root_window_unknown",
            Self::Exists => "root_window_exists",
            Self::PeopleOnly => "root_people_only",
            Self::RightLost => "root_right_lost",
            Self::NotAllowed { .. } => "root_not_allowed",
            Self::LengthOutOfRange { .. } => "root_window_length_out_of_range",
            Self::Reason { .. } => "reason_invalid",
            Self::OwnRequest => "root_own_request",
            Self::DeciderDepends { .. } => "root_decider_depends",
            Self::NotYours => "root_not_yours",
            Self::NotApproved => "root_not_approved",
            Self::NotPending => "root_not_pending",
            Self::Expired => "root_window_expired",
            Self::Over => "root_window_over",
            Self::NotYetOver => "root_window_not_over",
            Self::Used => "root_window_used",
            Self::Command { .. } => "root_command_invalid",
            Self::ForShell => "root_window_for_shell",
            Self::ForCommand => "root_window_for_command",
            Self::RuntimeAsleep => "root_runtime_not_ready",
            Self::NoCommand => "root_no_command",
            Self::TooManyChanges { .. } => "root_changes_too_many",
            Self::NothingToReview => "root_nothing_to_review",
            Self::ReviewedAlready => "root_reviewed_already",
            Self::TooManyRequests { .. } => "root_requests_too_many",
            Self::ReviewPending { .. } => "root_review_pending",
        }
    }

    fn kind(&self) -> RefusalKind {
        match self {
            Self::Unknown => RefusalKind::NotFound,
            Self::Exists
            | Self::NotApproved
            | Self::NotPending
            | Self::NotYetOver
            | Self::ForShell
            | Self::ForCommand
            | Self::RuntimeAsleep
            | Self::NoCommand
            | Self::NothingToReview
            | Self::ReviewedAlready
            | Self::TooManyRequests { .. }
            | Self::ReviewPending { .. } => RefusalKind::Conflict,
            Self::LengthOutOfRange { .. }
            | Self::Reason { .. }
            | Self::Command { .. }
            | Self::TooManyChanges { .. } => RefusalKind::Invalid,
            Self::Expired | Self::Over | Self::Used => RefusalKind::Gone,
            Self::PeopleOnly
            | Self::RightLost
            | Self::NotAllowed { .. }
            | Self::OwnRequest
            | Self::DeciderDepends { .. }
            | Self::NotYours => RefusalKind::Forbidden,
        }
    }

    fn bounds(&self) -> Vec<(&'static str, u64)> {
        match self {
            Self::LengthOutOfRange { min, max } => vec![("min_ms", min.get()), ("max_ms", max.get())],
            Self::Reason { max } => vec![("max_chars", *max as u64)],
            Self::TooManyChanges { max } | Self::TooManyRequests { max } => vec![("max", *max as u64)],
            Self::Command { max_words, max_chars } => {
                vec![("max_words", *max_words as u64), ("max_chars", *max_chars as u64)]
            }
            Self::Unknown
            | Self::Exists
            | Self::PeopleOnly
            | Self::RightLost
            | Self::NotAllowed { .. }
            | Self::OwnRequest
            | Self::DeciderDepends { .. }
            | Self::NotYours
            | Self::NotApproved
            | Self::NotPending
            | Self::Expired
            | Self::Over
            | Self::NotYetOver
            | Self::Used
            | Self::ForShell
            | Self::ForCommand
            | Self::RuntimeAsleep
            | Self::NoCommand
            | Self::NothingToReview
            | Self::ReviewedAlready
            | Self::ReviewPending { .. } => vec![],
        }
    }

    fn people(&self) -> &[(UserId, String)] {
        if let Self::DeciderDepends { others, .. } = self { &others.people } else { &[] }
    }
}

/// Who decides in their place.
fn instead(others: &Others) -> String {
    let names: Vec<_> = others.people.iter().map(|(_, name)| name.as_str()).collect();
    match names.split_last() {
        Some((last, [])) => format!("{last} can"),
        Some((last, names)) => format!("{} and {last} can", names.join(", ")),
        None if others.nobody => {
            "nobody here can: whoever operates EnvForge's machine makes somebody an owner who has it from nobody here, with \
             `envforge recover-owner`"
                .to_owned()
        }
        None => "an owner or admin can who does not have theirs from them".to_owned(),
    }
}
