//! What a runtime refuses, and what would be allowed.

use crate::aggregate::{Refusal, RefusalKind};
use crate::time::{Millis, UnixMillis};

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuntimeRefusal {
    #[error("the workspace is archived; its runtime cannot be woken")]
    WorkspaceArchived,
    #[error("the runtime is not awake")]
    NotAwake,
    #[error("this report is about wake {reported}, the runtime is at wake {current}")]
    OtherEpoch { reported: u64, current: u64 },
    #[error("only the host that was chosen for this wake may start it and report about it")]
    OtherHost,
    #[error("the runtime is kept awake until {} (Unix milliseconds)", .until.get())]
    KeptAwake { until: UnixMillis },
    #[error("the services of one workspace are given at most {max} secrets together")]
    TooManySecrets { max: usize },
    #[error("a runtime may be kept awake for at most {max}")]
    KeepAwakeTooLong { max: Millis },
    #[error("the end of keeping awake must lie in the future")]
    KeepAwakeInThePast,
    #[error("a reason must have 1 to {max} characters")]
    Reason { max: usize },
    #[error("the host's lease holds until {} (Unix milliseconds)", .until.get())]
    LeaseHolds { until: UnixMillis },
}

impl Refusal for RuntimeRefusal {
    fn code(&self) -> &'static str {
        match self {
            Self::WorkspaceArchived => "workspace_archived",
            Self::NotAwake => "runtime_not_awake",
            Self::OtherEpoch { .. } => "runtime_other_epoch",
            Self::OtherHost => "runtime_other_host",
            Self::KeptAwake { .. } => "runtime_kept_awake",
            Self::TooManySecrets { .. } => "runtime_too_many_secrets",
            Self::KeepAwakeTooLong { .. } => "keep_awake_too_long",
            Self::KeepAwakeInThePast => "keep_awake_in_the_past",
            Self::Reason { .. } => "reason_invalid",
            Self::LeaseHolds { .. } => "lease_holds",
        }
    }

    fn kind(&self) -> RefusalKind {
        match self {
            Self::WorkspaceArchived => RefusalKind::Gone,
            Self::NotAwake
            | Self::OtherEpoch { .. }
            | Self::OtherHost
            | Self::KeptAwake { .. }
            | Self::LeaseHolds { .. } => RefusalKind::Conflict,
            Self::KeepAwakeTooLong { .. }
            | Self::KeepAwakeInThePast
            | Self::Reason { .. }
            | Self::TooManySecrets { .. } => RefusalKind::Invalid,
        }
    }

    fn bounds(&self) -> Vec<(&'static str, u64)> {
        match self {
            Self::KeepAwakeTooLong { max } => vec![("max_ms", max.get())],
            Self::Reason { max } => vec![("max_chars", *max as u64)],
            Self::TooManySecrets { max } => vec![("max", *max as u64)],
            Self::KeptAwake { until } | Self::LeaseHolds { until } => vec![("until_unix_ms", until.get())],
            Self::OtherEpoch { current, .. } => vec![("current_epoch", *current)],
            Self::WorkspaceArchived | Self::NotAwake | Self::OtherHost | Self::KeepAwakeInThePast => vec![],
        }
    }
}
