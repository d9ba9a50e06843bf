//! Secrets of a project or of a workspace: which there are, in which version, who set them, and who may use them.
//!
//! Values are nowhere here: they lie in a store (runtime), under the keys that this module names. All secrets of one owner
//! stand on one stream, so that their number is bounded for sure. A workspace's own secret goes before its project's.
//!
//! INVARIANT: what a name is called in the store is never used again. A name that was removed and is set once more gets
//! another generation, so that whoever clears up after the removal cannot hit the new value.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use crate::access::Action;
use crate::aggregate::{Aggregate, Refusal, RefusalKind};
use crate::commit::StreamKind;
use crate::event::Event;
use crate::ids::{OrgId, ProjectId, UserId, WorkspaceId};
use crate::limits::{
    MANIFEST_SERVICES_MAX, SECRET_CHANGES_MAX, SECRET_LIFETIME_MAX, SECRET_WORKSPACES_MAX, SECRETS_MAX,
    SECRETS_REMEMBERED_MAX,
};
use crate::manifest::{self, Job, Manifest};
use crate::project::GitCredential;
use crate::slug::ServiceName;
use crate::time::{Millis, UnixMillis};

/// A secret's name, which is also the variable that carries it: A-Z, 0-9 and `_`, as `envforge.yml` declares it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SecretName(Box<str>);

/// The name itself is not repeated: it may be a pasted secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a secret's name is a variable's: A-Z, 0-9 and `_`, not beginning with a digit or `ENVFORGE_`, at most 128 characters"
)]
pub struct InvalidSecretName;

impl SecretName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SecretName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl FromStr for SecretName {
    type Err = InvalidSecretName;

    fn from_str(text: &str) -> Result<Self, InvalidSecretName> {
        if manifest::variable_is_valid(text) { Ok(Self(text.into())) } else { Err(InvalidSecretName) }
    }
}

/// Whose secrets they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SecretOwner {
    Project(ProjectId),
    Workspace { project: ProjectId, workspace: WorkspaceId },
}

impl SecretOwner {
    pub const fn workspace(self) -> Option<WorkspaceId> {
        match self {
            Self::Project(_) => None,
            Self::Workspace { workspace, .. } => Some(workspace),
        }
    }

    /// `project` or `workspace`.
    pub const fn token(self) -> &'static str {
        match self {
            Self::Project(_) => "project",
            Self::Workspace { .. } => "workspace",
        }
    }
}

/// The id of the one whose secrets they are.
impl fmt::Display for SecretOwner {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Project(project) => project.fmt(formatter),
            Self::Workspace { workspace, .. } => workspace.fmt(formatter),
        }
    }
}

/// Where a store keeps the versions of one secret.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SecretKey {
    pub org: OrgId,
    pub owner: SecretOwner,
    pub name: SecretName,
    pub generation: u32,
}

/// One version of one secret. Names a value, and is none.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PinnedSecret {
    pub key: SecretKey,
    /// From 1, as the store counts.
    pub version: u64,
}

/// What a new version does to runtimes that run with an older one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Rotation {
    /// They go on, and are shown as stale until their next wake.
    #[default]
    MarkStale,
    /// They are put to sleep and woken again.
    Restart,
}

impl Rotation {
    pub const ALL: [Self; 2] = [Self::MarkStale, Self::Restart];

    pub const fn token(self) -> &'static str {
        match self {
            Self::MarkStale => "mark_stale",
            Self::Restart => "restart",
        }
    }
}

/// Who may use a secret, and what a new version does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SecretRules {
    /// Services that may declare it; all of them where it is empty.
    pub services: BTreeSet<ServiceName>,
    /// Workspaces of the project that may use it; all of them where it is empty. Of a project's secrets alone.
    pub workspaces: BTreeSet<WorkspaceId>,
    pub rotation: Rotation,
}

impl SecretRules {
    /// Rules that name services are for those alone: neither jobs nor git get the secret.
    pub fn allow(&self, consumer: &SecretConsumer, workspace: WorkspaceId) -> bool {
        let named = match consumer {
            SecretConsumer::Service(service) => self.services.contains(service),
            SecretConsumer::Job(_) | SecretConsumer::Git => false,
        };
        (self.services.is_empty() || named) && (self.workspaces.is_empty() || self.workspaces.contains(&workspace))
    }
}

/// What is given a secret. Displays as it stands in events: no service's name holds a colon.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SecretConsumer {
    Service(ServiceName),
    /// By its name in `envforge.yml`.
    Job(String),
    /// Git, for the project's repository.
    Git,
}

const JOB_PREFIX: &str = "job:";
const GIT: &str = "git:repository";

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is neither a service, nor `job:NAME`, nor `git:repository`")]
pub struct InvalidSecretConsumer;

impl SecretConsumer {
    /// In words, for people.
    fn told(&self) -> String {
        match self {
            Self::Service(service) => format!("service `{service}`"),
            Self::Job(job) => format!("job `{job}`"),
            Self::Git => "git".to_owned(),
        }
    }
}

impl fmt::Display for SecretConsumer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(service) => service.fmt(formatter),
            Self::Job(job) => write!(formatter, "{JOB_PREFIX}{job}"),
            Self::Git => formatter.write_str(GIT),
        }
    }
}

impl FromStr for SecretConsumer {
    type Err = InvalidSecretConsumer;

    fn from_str(text: &str) -> Result<Self, InvalidSecretConsumer> {
        if text == GIT {
            return Ok(Self::Git);
        }
        match text.strip_prefix(JOB_PREFIX) {
            Some(job) if !job.is_empty() => Ok(Self::Job(job.to_owned())),
            _ => text.parse().map(Self::Service).map_err(|_| InvalidSecretConsumer),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretsEvent {
    /// There is another version; the store has its value already.
    Set {
        owner: SecretOwner,
        name: SecretName,
        generation: u32,
        version: u64,
        /// From when on nothing is given this version any more.
        expires_at: Option<UnixMillis>,
        by: UserId,
        at: UnixMillis,
    },
    RulesChanged {
        name: SecretName,
        rules: SecretRules,
        by: UserId,
        at: UnixMillis,
    },
    /// No wake gets it any more; the store is cleared after this.
    Removed {
        name: SecretName,
        generation: u32,
        by: UserId,
        at: UnixMillis,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretsCommand {
    /// `generation` and `version` are what the value was kept under. `rules`: others than before.
    Set {
        owner: SecretOwner,
        name: SecretName,
        generation: u32,
        version: u64,
        expires_at: Option<UnixMillis>,
        rules: Option<SecretRules>,
        by: UserId,
        now: UnixMillis,
    },
    ChangeRules {
        name: SecretName,
        rules: SecretRules,
        by: UserId,
        now: UnixMillis,
    },
    Remove {
        name: SecretName,
        by: UserId,
        now: UnixMillis,
    },
}

/// What was done to a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecretDeed {
    Set { version: u64 },
    RulesChanged,
    Removed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SecretChange {
    pub deed: SecretDeed,
    pub by: UserId,
    pub at: UnixMillis,
}

/// What is known of one secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownSecret {
    pub generation: u32,
    /// `None`: removed.
    pub version: Option<u64>,
    /// Of that version.
    pub expires_at: Option<UnixMillis>,
    pub rules: SecretRules,
    /// The newest, oldest first; never empty.
    pub changes: Vec<SecretChange>,
}

/// The secrets of one owner; removed ones too, of which the oldest are forgotten.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Secrets {
    known: BTreeMap<SecretName, KnownSecret>,
    /// The generation of the next name that is set for the first time, or again.
    next_generation: u32,
}

impl Secrets {
    /// Those that may be used.
    pub fn held(&self) -> impl Iterator<Item = (&SecretName, &KnownSecret)> {
        self.known.iter().filter(|(_, known)| known.version.is_some())
    }

    /// Also one that was removed.
    pub fn known(&self, name: &SecretName) -> Option<&KnownSecret> {
        self.known.get(name)
    }

    fn get(&self, name: &SecretName) -> Option<(&KnownSecret, u64)> {
        self.known.get(name).and_then(|known| Some((known, known.version?)))
    }

    /// Under which generation the next value of a name is kept.
    pub fn generation_of(&self, name: &SecretName) -> u32 {
        self.get(name).map_or(self.next_generation, |(known, _)| known.generation)
    }

    /// Whether nothing will ever be read under that name and generation: it was removed. By what the log says of that very name: one
    /// of which it has never heard is somebody's who is just setting it, or another log's.
    pub fn is_over(&self, name: &SecretName, generation: u32) -> bool {
        let removed = |known: &KnownSecret| match known.version {
            Some(_) => generation < known.generation,
            None => generation <= known.generation,
        };
        self.known.get(name).is_some_and(removed)
    }

    /// What the log says of one version that a store keeps.
    pub fn standing(&self, name: &SecretName, generation: u32, version: u64) -> VersionStanding {
        let Some(known) = self.known.get(name) else {
            // The oldest removed ones are forgotten once there are so many.
            let all_remembered = self.known.len() < SECRETS_REMEMBERED_MAX;
            return if all_remembered { VersionStanding::Absent } else { VersionStanding::Unknown };
        };
        if generation > known.generation {
            return VersionStanding::Absent;
        }
        let Some(newest) = known.version.filter(|_| generation == known.generation) else {
            return VersionStanding::Unknown;
        };
        // Only this generation's: the ones before count from 1, too.
        let since = known.changes.iter().rposition(|change| change.deed == SecretDeed::Removed);
        let changes = &known.changes[since.map_or(0, |removed| removed + 1)..];
        if changes.iter().any(|change| change.deed == SecretDeed::Set { version }) || version == newest {
            return VersionStanding::Recorded;
        }
        let all_told = since.is_some() || known.changes.len() < SECRET_CHANGES_MAX;
        if all_told || version > newest { VersionStanding::Absent } else { VersionStanding::Unknown }
    }
}

/// What the log says of one version of a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VersionStanding {
    Recorded,
    /// It was never told of it.
    Absent,
    /// It was told of more than is remembered, or of a later generation.
    Unknown,
}

/// Why a secret that a service declares cannot be given to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SecretProblem {
    /// Neither the workspace nor its project has one of that name.
    Missing,
    /// Its rules do not name this service or this workspace, or it is git's and something else declares it.
    Forbidden,
    /// Its end is over.
    Expired,
    /// The store does not have the version that the log names, or cannot read it.
    Damaged,
}

impl SecretProblem {
    pub const fn token(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Forbidden => "forbidden",
            Self::Expired => "expired",
            Self::Damaged => "damaged",
        }
    }
}

/// A secret that stopped a wake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefusedSecret {
    pub consumer: SecretConsumer,
    pub name: SecretName,
    pub problem: SecretProblem,
}

impl RefusedSecret {
    /// In one sentence, for people of the team: as many names as fit.
    pub fn told(refused: &[Self]) -> String {
        format!("secrets stopped this wake before anything started: {}", Self::named(refused))
    }

    /// As many names as fit, each with what is wrong.
    pub fn named(refused: &[Self]) -> String {
        const NAMED_MAX: usize = 5;
        let one = |refused: &Self| {
            let (name, consumer) = (&refused.name, refused.consumer.told());
            match refused.problem {
                SecretProblem::Missing => format!("{name} ({consumer}) has no value"),
                SecretProblem::Forbidden => format!("{name} may not be used by {consumer} here"),
                SecretProblem::Expired => format!("{name} ({consumer}) has expired"),
                SecretProblem::Damaged => format!("{name} ({consumer}) cannot be read from the store"),
            }
        };
        let mut text = refused.iter().take(NAMED_MAX).map(one).collect::<Vec<_>>().join(", ");
        if refused.len() > NAMED_MAX {
            text.push_str(&format!(", and {} more", refused.len() - NAMED_MAX));
        }
        text
    }
}

/// A version that a service, a job or git was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumedSecret {
    pub consumer: SecretConsumer,
    pub name: SecretName,
    pub owner: SecretOwner,
    pub generation: u32,
    pub version: u64,
}

impl ConsumedSecret {
    /// Whether both are about one variable of one service.
    pub fn is_for_the_same(&self, other: &Self) -> bool {
        self.consumer == other.consumer && self.name == other.name
    }

    /// Where the store keeps it.
    pub fn pinned(&self, org: OrgId) -> PinnedSecret {
        let (owner, name, generation) = (self.owner, self.name.clone(), self.generation);
        PinnedSecret { key: SecretKey { org, owner, name, generation }, version: self.version }
    }
}

/// A secret as a workspace sees it: its own, or its project's.
#[derive(Clone, Copy, Debug)]
pub struct EffectiveSecret<'a> {
    pub owner: SecretOwner,
    pub known: &'a KnownSecret,
    pub version: u64,
}

/// The secrets that a workspace may be given.
#[derive(Clone, Copy, Debug)]
pub struct SecretView<'a> {
    pub project: ProjectId,
    pub workspace: WorkspaceId,
    pub of_project: &'a Secrets,
    pub of_workspace: &'a Secrets,
    /// What the project names for git.
    pub git: Option<&'a GitCredential>,
    pub now: UnixMillis,
}

impl<'a> SecretView<'a> {
    /// The workspace's own goes before its project's.
    pub fn get(&self, name: &SecretName) -> Option<EffectiveSecret<'a>> {
        let (project, workspace) = (self.project, self.workspace);
        let own = self.of_workspace.get(name).map(|found| (SecretOwner::Workspace { project, workspace }, found));
        let found = own.or_else(|| self.of_project.get(name).map(|found| (SecretOwner::Project(project), found)));
        found.map(|(owner, (known, version))| EffectiveSecret { owner, known, version })
    }

    /// Which version each service of a manifest is to be given, and git for the checkout.
    ///
    /// # Errors
    /// Every secret that some service declares and may not have, and git's.
    pub fn resolve(&self, manifest: &Manifest) -> Result<Vec<ConsumedSecret>, Vec<RefusedSecret>> {
        let declared = manifest.services.iter().flat_map(|service| {
            service.secrets.iter().map(|name| (SecretConsumer::Service(service.name.clone()), name.as_str()))
        });
        self.resolve_all(declared.chain(self.git.map(|git| (SecretConsumer::Git, git.secret.as_str()))))
    }

    /// Which version of each secret a job is to be given.
    ///
    /// # Errors
    /// Every secret that it declares and may not have.
    pub fn resolve_job(&self, job: &Job) -> Result<Vec<ConsumedSecret>, Vec<RefusedSecret>> {
        self.resolve_all(job.secrets.iter().map(|name| (SecretConsumer::Job(job.name.clone()), name.as_str())))
    }

    /// Which version git is to be given; `None` where the project names none.
    ///
    /// # Errors
    /// Where it may not have it.
    pub fn resolve_git(&self) -> Option<Result<ConsumedSecret, RefusedSecret>> {
        self.git.map(|git| self.resolve_one(SecretConsumer::Git, git.secret.clone()))
    }

    fn resolve_all<'d>(
        &self,
        declared: impl Iterator<Item = (SecretConsumer, &'d str)>,
    ) -> Result<Vec<ConsumedSecret>, Vec<RefusedSecret>> {
        let (mut consumed, mut refused) = (Vec::new(), Vec::new());
        for (consumer, text) in declared {
            // A manifest of former times may name what no secret can be called today: there is none.
            let Ok(name) = text.parse::<SecretName>() else { continue };
            match self.resolve_one(consumer, name) {
                Ok(one) => consumed.push(one),
                Err(one) => refused.push(one),
            }
        }
        if refused.is_empty() { Ok(consumed) } else { Err(refused) }
    }

    fn resolve_one(&self, consumer: SecretConsumer, name: SecretName) -> Result<ConsumedSecret, RefusedSecret> {
        let problem = match self.get(&name) {
            None => SecretProblem::Missing,
            Some(found) if !self.allows(&found, &consumer, &name) => SecretProblem::Forbidden,
            Some(found) if self.is_over(&found) => SecretProblem::Expired,
            Some(EffectiveSecret { owner, known, version }) => {
                return Ok(ConsumedSecret { consumer, name, owner, generation: known.generation, version });
            }
        };
        Err(RefusedSecret { consumer, name, problem })
    }

    /// What git is given is git's alone: whoever pushes a manifest must not read by it what opens the repository.
    fn allows(&self, found: &EffectiveSecret<'_>, consumer: &SecretConsumer, name: &SecretName) -> bool {
        let is_gits = self.git.is_some_and(|git| git.secret == *name);
        found.known.rules.allow(consumer, self.workspace) && (*consumer == SecretConsumer::Git || !is_gits)
    }

    fn is_over(&self, found: &EffectiveSecret<'_>) -> bool {
        found.known.expires_at.is_some_and(|end| end <= self.now)
    }

    /// Whether a runtime that was given this runs with something else than its next wake would get; what to do then.
    pub fn stale(&self, consumed: &ConsumedSecret) -> Option<Rotation> {
        let Some(now) = self.get(&consumed.name) else {
            // Removed: the next wake fails. Nothing is restarted into that.
            return Some(Rotation::MarkStale);
        };
        let same = now.owner == consumed.owner
            && now.known.generation == consumed.generation
            && now.version == consumed.version;
        // Nothing is restarted into a wake that fails.
        let refused = !self.allows(&now, &consumed.consumer, &consumed.name) || self.is_over(&now);
        match (same, refused) {
            (true, false) => None,
            (_, true) => Some(Rotation::MarkStale),
            (false, false) => Some(now.known.rules.rotation),
        }
    }

    /// The workspace's own secrets that nothing of the manifest declares and git does not use: mistyped, or left over.
    pub fn undeclared(&self, manifest: &Manifest) -> Vec<&'a SecretName> {
        let of_services = manifest.services.iter().flat_map(|service| &service.secrets);
        let of_jobs = manifest.jobs.iter().flat_map(|job| &job.secrets);
        let declared: BTreeSet<&str> =
            of_services.chain(of_jobs).map(String::as_str).chain(self.git.map(|git| git.secret.as_str())).collect();
        self.of_workspace.held().map(|(name, _)| name).filter(|name| !declared.contains(name.as_str())).collect()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SecretsRefusal {
    #[error("there is no secret `{name}` here")]
    Unknown { name: SecretName },
    #[error("somebody else set or removed this secret at the same time; look at it, and set it again")]
    Overtaken,
    #[error("there are at most {max} secrets of a project or of a workspace; remove what is not needed")]
    TooMany { max: usize },
    #[error("a secret's rules name at most {max_services} services and {max_workspaces} workspaces")]
    RulesTooLong { max_services: usize, max_workspaces: usize },
    #[error("a workspace's own secret is that workspace's alone; its rules name services, no workspaces")]
    RulesOfWorkspace,
    #[error("a secret's end lies in the future and at most {max} away")]
    End { max: Millis },
}

impl Refusal for SecretsRefusal {
    fn code(&self) -> &'static str {
        match self {
            Self::Unknown { .. } => "secret_unknown",
            Self::Overtaken => "secret_overtaken",
            Self::TooMany { .. } => "too_many_secrets",
            Self::RulesTooLong { .. } | Self::RulesOfWorkspace => "secret_rules_invalid",
            Self::End { .. } => "secret_end_invalid",
        }
    }

    fn kind(&self) -> RefusalKind {
        match self {
            Self::Unknown { .. } => RefusalKind::NotFound,
            Self::Overtaken => RefusalKind::Conflict,
            Self::TooMany { .. } => RefusalKind::Forbidden,
            Self::RulesTooLong { .. } | Self::RulesOfWorkspace | Self::End { .. } => RefusalKind::Invalid,
        }
    }

    fn bounds(&self) -> Vec<(&'static str, u64)> {
        match self {
            Self::TooMany { max } => vec![("max", *max as u64)],
            Self::RulesTooLong { max_services, max_workspaces } => {
                vec![("max_services", *max_services as u64), ("max_workspaces", *max_workspaces as u64)]
            }
            Self::End { max } => vec![("max_ms", max.get())],
            Self::Unknown { .. } | Self::Overtaken | Self::RulesOfWorkspace => vec![],
        }
    }
}

fn check_rules(rules: &SecretRules) -> Result<(), SecretsRefusal> {
    if rules.services.len() > MANIFEST_SERVICES_MAX || rules.workspaces.len() > SECRET_WORKSPACES_MAX {
        let (max_services, max_workspaces) = (MANIFEST_SERVICES_MAX, SECRET_WORKSPACES_MAX);
        return Err(SecretsRefusal::RulesTooLong { max_services, max_workspaces });
    }
    Ok(())
}

impl Aggregate for Secrets {
    const KIND: StreamKind = StreamKind::Secrets;
    type State = Self;
    type Command = SecretsCommand;
    type Event = SecretsEvent;
    type Refusal = SecretsRefusal;

    fn decide(state: &Self, command: &SecretsCommand) -> Result<Vec<SecretsEvent>, SecretsRefusal> {
        match command {
            SecretsCommand::Set { owner, name, generation, version, expires_at, rules, by, now } => {
                if expires_at.is_some_and(|end| end <= *now || end.since(*now) > SECRET_LIFETIME_MAX) {
                    return Err(SecretsRefusal::End { max: SECRET_LIFETIME_MAX });
                }
                if let Some(rules) = rules {
                    check_rules(rules)?;
                    if owner.workspace().is_some() && !rules.workspaces.is_empty() {
                        return Err(SecretsRefusal::RulesOfWorkspace);
                    }
                }
                if *generation != state.generation_of(name) {
                    return Err(SecretsRefusal::Overtaken);
                }
                let held = state.get(name);
                if held.is_none() && state.held().count() >= SECRETS_MAX {
                    return Err(SecretsRefusal::TooMany { max: SECRETS_MAX });
                }
                let mut events = Vec::new();
                match held {
                    Some((_, known)) if *version < known => return Err(SecretsRefusal::Overtaken),
                    Some((_, known)) if *version == known => {}
                    Some(_) | None => events.push(SecretsEvent::Set {
                        owner: *owner,
                        name: name.clone(),
                        generation: *generation,
                        version: *version,
                        expires_at: *expires_at,
                        by: *by,
                        at: *now,
                    }),
                }
                let before = held.map(|(known, _)| &known.rules);
                if let Some(rules) = rules.as_ref().filter(|rules| *rules != before.unwrap_or(&SecretRules::default()))
                {
                    let (name, rules) = (name.clone(), rules.clone());
                    events.push(SecretsEvent::RulesChanged { name, rules, by: *by, at: *now });
                }
                Ok(events)
            }
            SecretsCommand::ChangeRules { name, rules, by, now } => {
                check_rules(rules)?;
                let (known, _) = state.get(name).ok_or_else(|| SecretsRefusal::Unknown { name: name.clone() })?;
                if known.rules == *rules {
                    return Ok(vec![]);
                }
                let (name, rules) = (name.clone(), rules.clone());
                Ok(vec![SecretsEvent::RulesChanged { name, rules, by: *by, at: *now }])
            }
            SecretsCommand::Remove { name, by, now } => match state.known.get(name) {
                None => Err(SecretsRefusal::Unknown { name: name.clone() }),
                Some(KnownSecret { version: None, .. }) => Ok(vec![]),
                Some(KnownSecret { version: Some(_), generation, .. }) => {
                    let (name, generation) = (name.clone(), *generation);
                    Ok(vec![SecretsEvent::Removed { name, generation, by: *by, at: *now }])
                }
            },
        }
    }

    fn evolve(mut state: Self, event: &SecretsEvent) -> Self {
        let (name, deed, by, at) = match event {
            SecretsEvent::Set { name, version, by, at, .. } => (name, SecretDeed::Set { version: *version }, *by, *at),
            SecretsEvent::RulesChanged { name, by, at, .. } => (name, SecretDeed::RulesChanged, *by, *at),
            SecretsEvent::Removed { name, by, at, .. } => (name, SecretDeed::Removed, *by, *at),
        };
        let known = state.known.entry(name.clone()).or_insert_with(|| KnownSecret {
            generation: 0,
            version: None,
            expires_at: None,
            rules: SecretRules::default(),
            changes: Vec::new(),
        });
        match event {
            SecretsEvent::Set { generation, version, expires_at, .. } => {
                if known.version.is_none() {
                    // Whoever was allowed the one before is not for that reason allowed this one.
                    known.rules = SecretRules::default();
                }
                known.generation = *generation;
                known.version = Some(*version);
                known.expires_at = *expires_at;
                state.next_generation = state.next_generation.max(generation.saturating_add(1));
            }
            SecretsEvent::RulesChanged { rules, .. } => known.rules = rules.clone(),
            SecretsEvent::Removed { .. } => known.version = None,
        }
        if known.changes.len() >= SECRET_CHANGES_MAX {
            known.changes.remove(0);
        }
        known.changes.push(SecretChange { deed, by, at });
        if state.known.len() > SECRETS_REMEMBERED_MAX {
            let last = |known: &KnownSecret| known.changes.last().map(|change| change.at);
            let removed = state.known.iter().filter(|(_, known)| known.version.is_none());
            let oldest = removed.min_by_key(|(_, known)| last(known)).map(|(name, _)| name.clone());
            if let Some(oldest) = oldest {
                state.known.remove(&oldest);
            }
        }
        state
    }

    fn event_of(event: &Event) -> Option<&SecretsEvent> {
        if let Event::Secrets(event) = event { Some(event) } else { None }
    }

    fn action_of(command: &SecretsCommand) -> Action {
        match command {
            SecretsCommand::Set { .. } | SecretsCommand::ChangeRules { .. } => Action::SecretSet,
            SecretsCommand::Remove { .. } => Action::SecretRemove,
        }
    }
}

impl From<SecretsEvent> for Event {
    fn from(event: SecretsEvent) -> Self {
        Self::Secrets(event)
    }
}
