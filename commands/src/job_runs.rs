//! Runs of jobs that a workspace's manifest declares.

use envforge_domain::access::Permit;
use envforge_domain::commit::StreamId;
use envforge_domain::ids::{JobRunId, ProjectId, UserId, WorkspaceId};
use envforge_domain::job_run::{JobRun, JobRunCommand, JobRunRefusal, JobRunTerms};
use envforge_domain::manifest::Job;
use envforge_domain::runtime::{Runtime, RuntimeCommand};
use envforge_domain::secrets::ConsumedSecret;
use envforge_domain::shell::ShellEnd;

use crate::links::active_workspace;
use crate::secrets;
use crate::{CommandError, Commands, Context, Done};

/// A job as the manifest declares it now.
///
/// # Errors
/// `NoSuchJob`, with those that there are.
pub async fn declared(
    commands: &Commands,
    permit: &Permit,
    workspace: WorkspaceId,
    name: &str,
) -> Result<(ProjectId, Job), CommandError> {
    let active = active_workspace(commands, permit, workspace).await?;
    match active.manifest.jobs.iter().find(|job| job.name == name) {
        Some(job) => Ok((active.project, job.clone())),
        None => {
            let known = active.manifest.jobs.into_iter().map(|job| job.name).collect();
            Err(CommandError::refused(JobRunRefusal::NoSuchJob { name: name.chars().take(80).collect(), known }))
        }
    }
}

/// Which versions of its secrets a job is given now.
///
/// # Errors
/// `Secrets`, with all that it declares and cannot be given.
pub async fn secrets_of(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    (project, workspace): (ProjectId, WorkspaceId),
    job: &Job,
) -> Result<Vec<ConsumedSecret>, CommandError> {
    if job.secrets.is_empty() {
        return Ok(Vec::new());
    }
    let seen = secrets::seen(commands, permit.org(), project, workspace).await?;
    let resolved = seen.view(context.now).resolve_job(job);
    resolved.map_err(|refused| CommandError::refused(JobRunRefusal::Secrets { refused }))
}

/// Who runs what, on which commit.
#[derive(Clone, Debug)]
pub struct NewJobRun {
    pub workspace: WorkspaceId,
    pub project: ProjectId,
    pub job: Job,
    pub by: UserId,
    pub commit: String,
    pub secrets: Vec<ConsumedSecret>,
}

/// Writes down that a job runs, where its runtime is ready; the run's id follows from the request. INVARIANT: in one append with the
/// runtime's stream. A sleep stands behind it, and an idle one is none any more, or the job is refused.
///
/// # Errors
/// `NotAwake`, of the runtime.
pub async fn start(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    new: NewJobRun,
) -> Result<(JobRunId, Done), CommandError> {
    let NewJobRun { workspace, project, job, by, commit, secrets } = new;
    let run = JobRunId::from_uuid(context.new_id());
    let Job { name, command, kind, secrets: _ } = job;
    let terms = JobRunTerms { run, project, workspace, name, command, kind, by, commit, secrets, at: context.now };
    let (stream, runtime) = (StreamId::job_run(permit.org(), run), StreamId::runtime(permit.org(), workspace));
    let done = commands
        .transaction(context)
        .step::<JobRun>(permit, stream, JobRunCommand::Start { terms })
        .step::<Runtime>(permit, runtime, RuntimeCommand::BeginJob { at: context.now, by })
        .commit()
        .await?;
    Ok((run, done))
}

/// Writes down how a run ended. One that is over stays as it is.
pub async fn finish(
    commands: &Commands,
    permit: &Permit,
    context: &Context,
    run: JobRunId,
    end: ShellEnd,
    code: Option<u32>,
) -> Result<Done, CommandError> {
    let command = JobRunCommand::Finish { end, code, now: context.now };
    commands.execute::<JobRun>(permit, context, &StreamId::job_run(permit.org(), run), &command).await
}
