//! One sample of each event of shells and of jobs.

use envforge_domain::ids::{HostId, JobRunId, ShellId};
use envforge_domain::job_run::{JobRunEvent, JobRunTerms};
use envforge_domain::secrets::SecretOwner;
use envforge_domain::shell::{ShellEnd, ShellEnded, ShellEvent, ShellKind, ShellTerms};

use super::*;

fn ended(end: ShellEnd) -> ShellEnded {
    let code = match end {
        ShellEnd::Exited => Some(3),
        ShellEnd::Signalled => Some(15),
        _ => None,
    };
    ShellEnded { end, code, at: at(90), duration: Millis::from_secs(90) }
}

pub(crate) fn samples(project: ProjectId, workspace: WorkspaceId, user: UserId, session: SessionId) -> Vec<Event> {
    let shell = ShellId::from_uuid(uuid(22));
    let given = |consumer: &str| secrets::consumed(parsed(consumer), SecretOwner::Project(project));
    let git = |kind| (kind == ShellKind::Ssh).then(|| given("git:repository"));
    let connected = ShellKind::ALL.map(|kind| ShellEvent::Connected {
        terms: ShellTerms {
            shell,
            project,
            workspace,
            user,
            session,
            kind,
            host: Some(HostId::from_uuid(uuid(24))),
            git: git(kind),
            at: at(0),
        },
    });
    let disconnected = ShellEnd::ALL.map(|end| ShellEvent::Disconnected { user, workspace, ended: ended(end) });
    let started = [JobKind::Test, JobKind::Agent].map(|kind| JobRunEvent::Started {
        terms: JobRunTerms {
            run: JobRunId::from_uuid(uuid(23)),
            project,
            workspace,
            name: "unit".to_owned(),
            command: "make test".to_owned(),
            kind,
            by: user,
            commit: "0123456789abcdef0123456789abcdef01234567".to_owned(),
            secrets: if kind == JobKind::Agent { vec![given("job:unit")] } else { Vec::new() },
            at: at(0),
        },
    });
    let finished =
        JobRunEvent::Finished { by: user, workspace, name: "unit".to_owned(), ended: ended(ShellEnd::Exited) };
    let shells = connected.into_iter().chain(disconnected).map(Event::Shell);
    shells.chain(started.into_iter().chain([finished]).map(Event::JobRun)).collect()
}
