//! Samples of events about secrets, of owners and of runtimes.

use std::collections::BTreeSet;

use envforge_domain::ids::{ProjectId, UserId, WorkspaceId};
use envforge_domain::runtime::{Epoch, RuntimeEvent, SleepCause};
use envforge_domain::secrets::{
    ConsumedSecret, RefusedSecret, Rotation, SecretConsumer, SecretName, SecretOwner, SecretProblem, SecretRules,
    SecretsEvent,
};

use super::{at, parsed};

fn name() -> SecretName {
    parsed("DATABASE_URL")
}

pub(crate) fn samples(project: ProjectId, workspace: WorkspaceId, by: UserId) -> Vec<SecretsEvent> {
    let owners = [SecretOwner::Project(project), SecretOwner::Workspace { project, workspace }];
    let set = owners.map(|owner| SecretsEvent::Set {
        owner,
        name: name(),
        generation: 1,
        version: 3,
        expires_at: owner.workspace().map(|_| at(9)),
        by,
        at: at(1),
    });
    let rules = [
        SecretRules::default(),
        SecretRules {
            services: BTreeSet::from([parsed("api"), parsed("web")]),
            workspaces: BTreeSet::from([workspace]),
            rotation: Rotation::Restart,
        },
    ];
    let changed = rules.map(|rules| SecretsEvent::RulesChanged { name: name(), rules, by, at: at(2) });
    let removed = SecretsEvent::Removed { name: name(), generation: 1, by, at: at(3) };
    set.into_iter().chain(changed).chain([removed]).collect()
}

pub(crate) fn consumed(consumer: SecretConsumer, owner: SecretOwner) -> ConsumedSecret {
    ConsumedSecret { consumer, name: name(), owner, generation: 1, version: 3 }
}

pub(crate) fn of_runtimes(epoch: Epoch, project: ProjectId, workspace: WorkspaceId) -> Vec<RuntimeEvent> {
    let owners = [SecretOwner::Project(project), SecretOwner::Workspace { project, workspace }];
    let of_services = owners.map(|owner| consumed(parsed("api"), owner));
    let of_git = vec![consumed(parsed("git:repository"), owners[0])];
    let refused = |consumer: &str, problem| RefusedSecret { consumer: parsed(consumer), name: name(), problem };
    let problems = [SecretProblem::Missing, SecretProblem::Forbidden, SecretProblem::Damaged];
    let refused_of_git = vec![refused("git:repository", SecretProblem::Expired)];
    vec![
        RuntimeEvent::SecretsResolved { epoch, consumed: of_services.into() },
        RuntimeEvent::SecretsResolved { epoch, consumed: of_git },
        RuntimeEvent::SecretsRefused { epoch, refused: problems.map(|problem| refused("api", problem)).into() },
        RuntimeEvent::SecretsRefused { epoch, refused: refused_of_git },
        RuntimeEvent::SleepRequested { epoch, cause: SleepCause::SecretRotated { name: name() } },
    ]
}
