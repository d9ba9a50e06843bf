//! Ends of shells and jobs that nobody could tell: whoever carried them was killed, or the line to their host was cut.
//!
//! A host's own records say what ended there. What is open by the log and unknown to its host never began, or left no record: it is
//! looked for again and again.
//!
//! Not here: ending them (runtime, agent), and the ends that whoever carries a shell sees (api).

use std::collections::HashSet;
use std::time::Duration;

use envforge_agent::{DueEnds, Host};
use envforge_commands::{CommandError, Commands, Context, job_runs, shells};
use envforge_domain::access::{Action, Resource};
use envforge_domain::commit::{Component, Position};
use envforge_domain::shell::ShellEnd;
use envforge_domain::time::SharedClock;
use envforge_runtime::{EndedShell, ShellPlace, UntoldEnd};

use crate::host_machine::HostMachine;
use crate::open_shells::Looks;
use crate::permit::system_permit;
use crate::shared_world::SharedWorld;

const ATTEMPTS_MAX: u32 = 60;
/// How often what is open by the log is held against what its host knows.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);

/// Tells what this machine's host has on record from an earlier process and comes to have, what an agent's comes to have for as long as its
/// connection lives, and what is open by the log and neither knows. Goes on until it is dropped: what could not be told is told by the next
/// start, or on the next connection. Two that tell the same tell it once.
pub async fn tell_shell_ends(
    world: SharedWorld,
    commands: Commands,
    host: Host,
    machine: HostMachine,
    clock: SharedClock,
) {
    tokio::join!(tell_recorded(&commands, &host, &clock), tell_lost(&world, &commands, &host, &machine, &clock));
}

async fn tell_lost(world: &SharedWorld, commands: &Commands, host: &Host, machine: &HostMachine, clock: &SharedClock) {
    let mut looks = Looks::new(clock.now());
    let mut tick = tokio::time::interval(LOOK_INTERVAL);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if !world.is_caught_up() {
            continue;
        }
        let now = clock.now();
        let open = world.read().shells_of(machine.host, machine.org, now);
        if open.is_empty() {
            continue;
        }
        let known: HashSet<_> = match host.known_shells().await {
            Ok(known) => known.into_iter().collect(),
            Err(error) => {
                tracing::debug!(host = %machine.host, %error, "a host does not say which shells it knows");
                continue;
            }
        };
        for (what, place) in looks.look(&open, &known, now) {
            tracing::warn!(?what, host = %machine.host, "a shell or job of which its host knows nothing is lost");
            tell(commands, clock, what, place).await;
        }
    }
}

async fn tell_recorded(commands: &Commands, host: &Host, clock: &SharedClock) {
    match host {
        Host::Local(host) => {
            let tell_all = async |ends: Vec<UntoldEnd>| {
                for end in ends {
                    if tell(commands, clock, end.what, end.place).await
                        && let Err(error) = host.told(end.what).await
                    {
                        tracing::warn!(what = ?end.what, %error, "the record of what was left was not removed");
                    }
                }
            };
            let left = host.untold_ends().borrow().clone();
            tell_all(left).await;
            // Where ends are kept: of what another process carried, which is gone.
            let mut due = DueEnds::of(host);
            while let Ok(ends) = due.next(None).await {
                tell_all(ends).await;
            }
        }
        Host::Remote(host) => {
            let mut ends = match host.ends().await {
                Ok(ends) => ends,
                Err(error) => {
                    tracing::warn!(%error, "a host does not say which of its shells ended");
                    return;
                }
            };
            while let Some((what, place)) = ends.next().await {
                if tell(commands, clock, what, place).await && ends.told(what, place).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// `false` where the log did not answer. One that is told already stays as it is.
async fn tell(commands: &Commands, clock: &SharedClock, what: EndedShell, place: ShellPlace) -> bool {
    let ShellPlace { org, project, workspace } = place;
    let resource = Resource::Workspace { org, project, workspace };
    let action = match what {
        EndedShell::Shell(_) => Action::ShellReport,
        EndedShell::Job(_) => Action::JobReport,
    };
    let (context, component) = (Context::new(clock.now()), Component::RuntimeReactor);
    for attempt in 0..ATTEMPTS_MAX {
        let Ok(permit) = system_permit(component, action, resource, Position::START, clock.now()) else { return false };
        let told = match what {
            EndedShell::Shell(shell) => {
                shells::disconnect(commands, &permit, &context, shell, ShellEnd::Lost, None).await
            }
            EndedShell::Job(run) => job_runs::finish(commands, &permit, &context, run, ShellEnd::Lost, None).await,
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
