//! Ends of shells and jobs that nobody could tell: this host was killed while they ran, and its next start ended them.
//!
//! Not here: finding and ending them (runtime), and the ends that whoever carries a shell sees (api).

use std::time::Duration;

use envforge_commands::{CommandError, Commands, Context, job_runs, shells};
use envforge_domain::access::{Action, Resource};
use envforge_domain::commit::{Component, Position};
use envforge_domain::ids::{JobRunId, ShellId};
use envforge_domain::shell::ShellEnd;
use envforge_domain::time::SharedClock;
use envforge_runtime::{LocalHost, ShellPlace};

use crate::permit::system_permit;

const ATTEMPTS_MAX: u32 = 60;

/// What was left.
#[derive(Clone, Copy, Debug)]
enum Left {
    Shell(ShellId),
    Job(JobRunId),
}

/// Tells each once. What could not be told is told by the next start.
pub async fn tell_shell_leftovers(commands: Commands, host: LocalHost, clock: SharedClock) {
    let shells = host.shell_leftovers().iter().map(|(shell, place)| (Left::Shell(*shell), *place));
    let jobs = host.job_leftovers().iter().map(|(run, place)| (Left::Job(*run), *place));
    let all: Vec<_> = shells.chain(jobs).collect();
    for (left, place) in all {
        if !tell(&commands, &clock, left, place).await {
            continue;
        }
        let forgotten = match left {
            Left::Shell(shell) => host.forget_shell(shell).await,
            Left::Job(run) => host.forget_job(run).await,
        };
        if let Err(error) = forgotten {
            tracing::warn!(?left, %error, "the record of what was left was not removed");
        }
    }
}

/// `false` where the log did not answer.
async fn tell(commands: &Commands, clock: &SharedClock, left: Left, place: ShellPlace) -> bool {
    let ShellPlace { org, project, workspace } = place;
    let resource = Resource::Workspace { org, project, workspace };
    let action = match left {
        Left::Shell(_) => Action::ShellReport,
        Left::Job(_) => Action::JobReport,
    };
    let (context, component) = (Context::new(clock.now()), Component::RuntimeReactor);
    for attempt in 0..ATTEMPTS_MAX {
        let Ok(permit) = system_permit(component, action, resource, Position::START, clock.now()) else { return false };
        let told = match left {
            Left::Shell(shell) => shells::disconnect(commands, &permit, &context, shell, ShellEnd::Lost, None).await,
            Left::Job(run) => job_runs::finish(commands, &permit, &context, run, ShellEnd::Lost, None).await,
        };
        match told {
            // One that the log does not know was killed before it was said.
            Ok(_) | Err(CommandError::Refused(_)) => return true,
            Err(error) => {
                tracing::warn!(%error, attempt, "the end of a shell was not recorded yet");
                tokio::time::sleep(Duration::from_millis(u64::from(attempt.min(20)) * 100 + 50)).await;
            }
        }
    }
    false
}
