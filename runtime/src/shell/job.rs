//! Jobs that `envforge.yml` declares, among the processes of their runtime.
//!
//! Not here: which job is run, and carrying bytes (`shell_process`).

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;

use envforge_domain::ids::{JobRunId, WorkspaceId};
use envforge_domain::job_run::JobOrder;
use envforge_domain::secret::Secret;
use envforge_domain::shell::{ShellFacts, ShellFailure};
use tokio::sync::mpsc;

use super::{EndedShell, JobRecord, OpenShell, Recorded, ShellPlace, block_of, login_shell, not_started, take_place};
use crate::accounts::{self, Names};
use crate::environment::{SERVICE_VARIABLE, is_name, is_reserved};
use crate::process;
use crate::record::blocking;
use crate::shell_process::{CHUNKS_MAX, Started};
use crate::unix_user::{self, UnixUser, UserBlock};
use crate::wake::Host;
use crate::workspace::JobPlace;

/// In the place of a service's name, none of which holds a colon.
pub(crate) fn name_of_job(run: JobRunId) -> String {
    format!("job:{run}")
}

/// Runs a job among the processes of its runtime, with which it ends. INVARIANT: it is written down before it starts.
/// `secrets`: what it is given, by name; a job that has some runs as a user of its own where services do.
pub(crate) async fn run_job(
    host: Arc<Host>,
    order: JobOrder,
    secrets: BTreeMap<String, Secret>,
    place: JobPlace,
) -> Result<OpenShell, ShellFailure> {
    let counted = take_place(&host, order.workspace)?;
    let JobOrder { run, org, project, workspace, name: job, command, secrets: _ } = order;
    let JobPlace { directory, mut environment, record, standing } = place;
    let name = name_of_job(run);
    environment.set(SERVICE_VARIABLE, name.as_str());
    for (name, value) in &secrets {
        if is_reserved(name) || !is_name(name) {
            return Err(not_started(&"it is given what no secret can be called"));
        }
        environment.set(name, value.expose());
    }
    let at = ShellPlace { org, project, workspace };
    let recorded = Recorded::new(&host, EndedShell::Job(run), at);
    let (jobs, kept) = (host.shells.jobs.clone(), JobRecord { place: at.into() });
    blocking(move || jobs.write(run, &kept)).await.map_err(|error| not_started(&error))?;
    let block = block_of(&host, workspace).await.map_err(|error| not_started(&error))?;
    let user = match (&block, secrets.is_empty()) {
        (Some(_), false) => {
            let (user, home) = job_user(&host, workspace, job).await.map_err(|error| not_started(&error))?;
            environment.set("HOME", home.to_string_lossy());
            Some(user)
        }
        (block, _) => block.as_ref().map(UserBlock::shell),
    };
    // With its own user, which may be new.
    let block = block_of(&host, workspace).await.map_err(|error| not_started(&error))?;
    let names = Names::of(host.place(workspace), block, login_shell().remove(0)).await;
    let names = names.map_err(|error| not_started(&error))?;
    let mut command = process::shell(&command, &directory, &environment, user);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    // The runtime may have been put to sleep meanwhile. Nothing slow may happen while this is held.
    let up = standing.read().await;
    if !*up {
        return Err(ShellFailure::NotAwake);
    }
    let started = accounts::start(&mut command, names.as_ref()).map_err(|error| not_started(&error))?;
    let started = Started::with_pipes(started);
    let leader = started.leader();
    let mut family = record.family_of(&name);
    family.groups.extend(leader);
    let (input, fed) = mpsc::channel(CHUNKS_MAX);
    let (said, output) = mpsc::channel(CHUNKS_MAX);
    let carrying = started.carry(family, fed, said, host.shells.stop.child_token());
    // INVARIANT: nothing is waited for between the start and this. Whoever drops this future later drops `input`, and that ends it.
    host.shells.tasks.clone().spawn(async move {
        let ended = carrying.await;
        drop(counted);
        recorded.over(ended);
    });
    if let Some(leader) = leader
        && let Err(error) = record.add_group(leader).await
    {
        tracing::warn!(%error, "a process group could not be recorded");
    }
    drop(up);
    Ok(OpenShell { facts: ShellFacts::default(), input, output })
}

/// The user of a job's own, with its home: neither shells nor services read what it is given.
async fn job_user(host: &Host, workspace: WorkspaceId, job: String) -> io::Result<(UnixUser, PathBuf)> {
    let homes = host.place(workspace).join("homes");
    let users = host.users.clone().ok_or(io::ErrorKind::Unsupported)?;
    blocking(move || {
        let name = unix_user::name_of_job(&job);
        let user = users.of_job(workspace, &name)?;
        let home = homes.join(name);
        unix_user::directory_of(&home, user, 0o700)?;
        Ok((user, home))
    })
    .await
}
