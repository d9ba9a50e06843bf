//! Runs of the jobs that `envforge.yml` declares: tests and agent jobs, with who ran which command and how it ended.
//!
//! Not here: what a job is (`manifest`), and its output, which no event ever holds.

use crate::access::{Action, Resource};
use crate::aggregate::{Aggregate, Refusal, RefusalKind};
use crate::commit::StreamKind;
use crate::event::Event;
use crate::ids::{JobRunId, OrgId, ProjectId, UserId, WorkspaceId};
use crate::manifest::JobKind;
use crate::secrets::{ConsumedSecret, RefusedSecret};
use crate::shell::{ShellEnd, ShellEnded};
use crate::time::UnixMillis;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobRunTerms {
    pub run: JobRunId,
    pub project: ProjectId,
    pub workspace: WorkspaceId,
    pub name: String,
    /// As the manifest said it then.
    pub command: String,
    pub kind: JobKind,
    /// The person; of a program, whoever made its token.
    pub by: UserId,
    /// The commit that is checked out, in hexadecimal.
    pub commit: String,
    /// The versions that it is given.
    pub secrets: Vec<ConsumedSecret>,
    pub at: UnixMillis,
}

/// What a host is asked to run where the runtime is awake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobOrder {
    pub run: JobRunId,
    pub org: OrgId,
    pub project: ProjectId,
    pub workspace: WorkspaceId,
    /// As `envforge.yml` calls it.
    pub name: String,
    pub command: String,
    /// What it is given, by reference. Whoever has a store hands the values to the host beside the order.
    pub secrets: Vec<ConsumedSecret>,
}

impl JobOrder {
    /// The workspace that it is for.
    pub const fn place(&self) -> Resource {
        Resource::Workspace { org: self.org, project: self.project, workspace: self.workspace }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobRunEvent {
    Started {
        terms: JobRunTerms,
    },
    /// Says by itself whose it was: its commit is EnvForge's own.
    Finished {
        by: UserId,
        workspace: WorkspaceId,
        name: String,
        ended: ShellEnded,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobRunCommand {
    Start { terms: JobRunTerms },
    Finish { end: ShellEnd, code: Option<u32>, now: UnixMillis },
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum JobRun {
    #[default]
    Unknown,
    Running(JobRunTerms),
    Over,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JobRunRefusal {
    #[error("there is no such run of a job")]
    Unknown,
    #[error("this run of a job was started already")]
    Exists,
    #[error("envforge.yml declares no job `{name}`{}", if .known.is_empty() { "; it declares none".to_owned() } else { format!("; it declares {}", .known.join(", ")) })]
    NoSuchJob { name: String, known: Vec<String> },
    #[error("its secrets cannot be given, and nothing was started: {}", RefusedSecret::named(.refused))]
    Secrets { refused: Vec<RefusedSecret> },
}

impl Refusal for JobRunRefusal {
    fn code(&self) -> &'static str {
        match self {
            Self::Unknown => "job_run_unknown",
            Self::Exists => "job_run_exists",
            Self::NoSuchJob { .. } => "job_unknown",
            Self::Secrets { .. } => "job_secrets_refused",
        }
    }

    fn kind(&self) -> RefusalKind {
        match self {
            Self::Unknown | Self::NoSuchJob { .. } => RefusalKind::NotFound,
            Self::Exists | Self::Secrets { .. } => RefusalKind::Conflict,
        }
    }
}

impl Aggregate for JobRun {
    const KIND: StreamKind = StreamKind::JobRun;
    type State = Self;
    type Command = JobRunCommand;
    type Event = JobRunEvent;
    type Refusal = JobRunRefusal;

    fn decide(state: &Self, command: &JobRunCommand) -> Result<Vec<JobRunEvent>, JobRunRefusal> {
        match (state, command) {
            (Self::Unknown, JobRunCommand::Start { terms }) => Ok(vec![JobRunEvent::Started { terms: terms.clone() }]),
            (Self::Running(_) | Self::Over, JobRunCommand::Start { .. }) => Err(JobRunRefusal::Exists),
            (Self::Unknown, JobRunCommand::Finish { .. }) => Err(JobRunRefusal::Unknown),
            (Self::Running(terms), JobRunCommand::Finish { end, code, now }) => Ok(vec![JobRunEvent::Finished {
                by: terms.by,
                workspace: terms.workspace,
                name: terms.name.clone(),
                ended: ShellEnded { end: *end, code: *code, at: *now, duration: now.since(terms.at) },
            }]),
            (Self::Over, JobRunCommand::Finish { .. }) => Ok(vec![]),
        }
    }

    fn evolve(state: Self, event: &JobRunEvent) -> Self {
        match (state, event) {
            (_, JobRunEvent::Started { terms }) => Self::Running(terms.clone()),
            (_, JobRunEvent::Finished { .. }) => Self::Over,
        }
    }

    fn event_of(event: &Event) -> Option<&JobRunEvent> {
        if let Event::JobRun(event) = event { Some(event) } else { None }
    }

    fn action_of(command: &JobRunCommand) -> Action {
        match command {
            JobRunCommand::Start { .. } => Action::JobRun,
            JobRunCommand::Finish { .. } => Action::JobReport,
        }
    }
}

impl From<JobRunEvent> for Event {
    fn from(event: JobRunEvent) -> Self {
        Self::JobRun(event)
    }
}
