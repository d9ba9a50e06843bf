//! One sentence for people about each event. The actor stands in a column of their own and is not repeated.

use envforge_domain::access::{Grantee, Scope};
use envforge_domain::claim::ClaimEvent;
use envforge_domain::denial::DeniedAttempts;
use envforge_domain::dev_link::{BlockedAttempts, DevLinkEvent};
use envforge_domain::event::Event;
use envforge_domain::job_run::JobRunEvent;
use envforge_domain::manifest::JobKind;
use envforge_domain::organization::OrganizationEvent;
use envforge_domain::project::ProjectEvent;
use envforge_domain::revocation::Receipt;
use envforge_domain::root_window::{
    RootAccess, RootChanges, RootCloseout, RootCommand, RootEnded, RootMode, RootOutcome, RootTerms, RootWindowEvent,
};
use envforge_domain::runtime::{ActivitySource, PostponeCause, RuntimeEvent, SleepCause, WakeCause, WakeStage};
use envforge_domain::secrets::{ConsumedSecret, RefusedSecret, SecretsEvent};
use envforge_domain::service_token::ServiceTokenEvent;
use envforge_domain::shell::{ShellEnd, ShellEnded, ShellEvent, ShellKind};
use envforge_domain::user::{SessionEnd, UserEvent};
use envforge_domain::workspace::{AccessMode, WorkspaceEvent};

use super::fold::Names;

pub(super) fn of(event: &Event, key: &str, names: &Names<'_>) -> String {
    match event {
        Event::Organization(event) => organization(event, names),
        Event::User(event) => user(event, &names.of(key)),
        Event::Project(event) => project(event),
        Event::Workspace(event) => workspace(event, key, names),
        Event::Runtime(event) => runtime(event, &names.of(key), names),
        Event::DevLink(event) => link(event, &names.of(key), names),
        Event::Claim(event) => claim(event, key),
        // Never shown: its visibility is the operator's.
        Event::Host(_) | Event::Machine(_) => "Changed a machine".to_owned(),
        Event::Denial(_) => "Refused attempts".to_owned(),
        // Never a row of its own: it says why the event beside it was allowed.
        Event::Decision(_) => "Decided on rights".to_owned(),
        Event::ServiceToken(event) => service_token(event, names),
        Event::RootWindow(event) => root_window(event, names),
        Event::Secrets(event) => secrets(event, &names.of(key)),
        Event::Shell(event) => shell(event, names),
        Event::JobRun(event) => job_run(event, names),
    }
}

/// `link` is the sentence about the link as a whole.
pub(super) fn of_blocked(attempts: &BlockedAttempts, link: &str) -> String {
    format!("{link}: {} times {}", attempts.count, attempts.code)
}

pub(super) fn of_denied(attempt: &DeniedAttempts, names: &Names<'_>) -> String {
    let what = attempt.resource.as_deref().map(|id| format!(" on “{}”", names.of(id))).unwrap_or_default();
    if let Some(about) = attempt.about {
        let who = super::fold::actor_name(about, names);
        return format!(
            "Asked {} times whether {who} may {}{what}: no ({})",
            attempt.count, attempt.action, attempt.code
        );
    }
    let from = attempt.address.map(|address| format!(" from {address}")).unwrap_or_default();
    format!("Refused {} times: {}{what}{from} ({})", attempt.count, attempt.action, attempt.code)
}

fn grantee_name(grantee: Grantee, names: &Names<'_>) -> String {
    match grantee {
        Grantee::User(user) => names.of(user),
        Grantee::Team(team) => format!("the team {}", names.of(team)),
    }
}

fn scope_name(scope: Scope, names: &Names<'_>) -> String {
    match scope {
        Scope::Organization => "the whole organization".to_owned(),
        Scope::Project(project) => format!("project “{}”", names.of(project)),
        Scope::Workspace { workspace, .. } => format!("workspace “{}”", names.of(workspace)),
    }
}

fn organization(event: &OrganizationEvent, names: &Names<'_>) -> String {
    match event {
        OrganizationEvent::Created { name, .. } => format!("Created the organization “{name}”"),
        OrganizationEvent::MemberAdded { user } => format!("Added {} as a member", names.of(user)),
        OrganizationEvent::MemberRemoved { user } => format!("Removed the member {} with all roles", names.of(user)),
        OrganizationEvent::RoleAssigned { grant } => {
            let until = if grant.expires_at.is_some() { ", with an end" } else { "" };
            let (who, whole) = (grantee_name(grant.grantee, names), scope_name(grant.scope, names));
            format!("Gave {who} the role {} for {whole}{until}", grant.role)
        }
        OrganizationEvent::RoleRevoked { grantee, role, scope } => {
            format!("Took the role {role} for {} from {}", scope_name(*scope, names), grantee_name(*grantee, names))
        }
        OrganizationEvent::PolicyChanged { policy } => format!(
            "Changed the policy: links live at most {}, open {}, are given by {}; idle sleep at most {}, keep-awake at \
             most {}; sessions last at most {}, of {}; service tokens live at most {}; root is {}, open at most {}",
            policy.link_lifetime_max,
            policy.link_families.display(),
            if policy.link_issuers.is_empty() { "nobody".to_owned() } else { policy.link_issuers.display() },
            policy.idle_sleep_max,
            policy.keep_awake_max,
            policy.session_lifetime_max,
            match policy.identity_providers.len() {
                0 => "any identity provider".to_owned(),
                _ => policy.identity_providers.iter().map(String::as_str).collect::<Vec<_>>().join(", "),
            },
            policy.service_token_lifetime_max,
            policy.root.token(),
            policy.root_window_max,
        ),
        OrganizationEvent::OwnerRecovered { user } => {
            format!("Made {} an owner from the machine's command line (recovery)", names.of(user))
        }
        OrganizationEvent::RevocationRecorded { receipt } => format!("With that were closed: {}", closed(receipt)),
        OrganizationEvent::TeamCreated { slug, .. } => format!("Created the team {slug}"),
        OrganizationEvent::TeamRenamed { slug, .. } => format!("Renamed a team to {slug}"),
        OrganizationEvent::TeamDeleted { team } => format!("Deleted the team {} with all its roles", names.of(team)),
        OrganizationEvent::TeamMemberAdded { team, user } => {
            format!("Added {} to the team {}", names.of(user), names.of(team))
        }
        OrganizationEvent::TeamMemberRemoved { team, user } => {
            format!("Took {} out of the team {}", names.of(user), names.of(team))
        }
    }
}

fn user(event: &UserEvent, name: &str) -> String {
    match event {
        UserEvent::Created { email, .. } => format!("Created the user {name} ({})", email.as_str()),
        UserEvent::Deactivated => format!("Deactivated the user {name}"),
        UserEvent::Reactivated => format!("Reactivated the user {name}"),
        UserEvent::ProfileChanged { name } => format!("Changed their name to {name}"),
        UserEvent::Invited { invitation } => {
            let roles: Vec<_> = invitation.roles.iter().map(|invited| invited.role.token()).collect();
            let roles = if roles.is_empty() { "no role".to_owned() } else { roles.join(", ") };
            format!("Invited {} with {roles}", invitation.email.as_str())
        }
        UserEvent::InvitationRevoked => format!("Revoked the invitation of {name}"),
        UserEvent::InvitationAccepted => format!("{name} accepted their invitation"),
        UserEvent::SessionOpened { surface, client, .. } => {
            format!("{name} signed in ({}, {})", surface.token(), client.as_str())
        }
        UserEvent::WorkspaceOpened { service, .. } => format!("{name} opened a workspace in a browser ({service})"),
        UserEvent::Reauthenticated { .. } => format!("{name} proved their identity once more"),
        UserEvent::SessionEnded { reason, .. } => format!("A session of {name} ended: {}", why_ended(*reason)),
        UserEvent::PasswordChanged => format!("{name} got a new password"),
        UserEvent::RevocationRecorded { cause, receipt } => {
            format!("Of {name} were closed: {} ({})", closed(receipt), why_ended(*cause))
        }
    }
}

/// What a receipt holds. Connections are told where all gateways told theirs.
fn closed(receipt: &Receipt) -> String {
    let Receipt { sessions, cli_sessions, links, sockets, uncounted, shells, shells_uncounted: _, took } = receipt;
    let some = |count: u32, one: &str| format!("{count} {one}{}", if count == 1 { "" } else { "s" });
    let cli = if *cli_sessions > 0 { format!(" ({cli_sessions} on the command line)") } else { String::new() };
    let sockets = if uncounted.is_empty() { format!(", {}", some(*sockets, "connection")) } else { String::new() };
    let shells = if *shells > 0 { format!(", {}", some(*shells, "shell")) } else { String::new() };
    format!("{}{cli}, {}{sockets}{shells}, in {took}", some(*sessions, "session"), some(*links, "link"))
}

fn why_ended(reason: SessionEnd) -> &'static str {
    match reason {
        SessionEnd::LoggedOut => "signed out",
        SessionEnd::Revoked => "revoked",
        SessionEnd::PasswordChanged => "the password was changed",
        SessionEnd::RefreshReused => "a refresh token was used twice",
        SessionEnd::Deactivated => "the account was deactivated",
        SessionEnd::Expired => "its time was over",
        SessionEnd::Displaced => "it was the oldest of too many",
    }
}

fn service_token(event: &ServiceTokenEvent, names: &Names<'_>) -> String {
    match event {
        ServiceTokenEvent::Created { slug, actions, place, .. } => {
            let actions: Vec<_> = actions.iter().map(|action| action.token()).collect();
            format!("Created the service token {slug} for {} in {}", actions.join(", "), scope_name(*place, names))
        }
        ServiceTokenEvent::Rotated { token, generation, .. } => {
            format!("Rotated the service token {}: secret {generation}", names.of(token))
        }
        ServiceTokenEvent::Revoked { token } => format!("Revoked the service token {}", names.of(token)),
    }
}

fn root_window(event: &RootWindowEvent, names: &Names<'_>) -> String {
    let because = |reason: &Option<String>| reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
    match event {
        RootWindowEvent::Requested { terms, .. } => {
            let RootTerms { workspace, mode, access, reason, length, .. } = terms;
            let mode = match mode {
                RootMode::Elevation => "Asked for root",
                RootMode::BreakGlass => "Broke the glass for root",
            };
            let what = match access {
                RootAccess::Command => "",
                RootAccess::Shell => ", a shell,",
            };
            format!("{mode}{what} in workspace {} for {length}: {reason}", names.of(workspace))
        }
        RootWindowEvent::Approved { .. } => "Approved the root window".to_owned(),
        RootWindowEvent::Denied { reason, .. } => format!("Denied the root window{}", because(reason)),
        RootWindowEvent::Withdrawn => "Gave up their root window".to_owned(),
        RootWindowEvent::Revoked { reason, .. } => format!("Revoked the root window{}", because(reason)),
        RootWindowEvent::Expired => "The root window was not used in time".to_owned(),
        RootWindowEvent::Opened { at, ends_at } => format!("The root window opened for {}", ends_at.since(*at)),
        RootWindowEvent::CommandAsked { words, .. } if words.is_empty() => "Asked for the shell as root".to_owned(),
        RootWindowEvent::CommandAsked { words, .. } => format!("Asked to run as root: {}", words.join(" ")),
        RootWindowEvent::CommandStarted { .. } => "It runs as root".to_owned(),
        RootWindowEvent::CommandEnded { ended } => format!("What ran as root ended: {}", root_end(ended)),
        RootWindowEvent::Closed { closeout } => {
            let RootCloseout { requester, approver, opened_at, closed_at, commands, .. } = closeout;
            let approved = match approver {
                Some(approver) => format!("approved by {}", names.of(approver)),
                None => "break-glass".to_owned(),
            };
            let ran: Vec<_> = commands.iter().map(ran_as_root).collect();
            let ran = if ran.is_empty() { "nothing was run".to_owned() } else { format!("run: {}", ran.join("; ")) };
            let open = closed_at.since(*opened_at);
            format!("The root window of {} ({approved}) closed after {open}; {ran}", names.of(requester))
        }
        RootWindowEvent::Reviewed { justified, note, .. } => {
            let found = if *justified { "justified" } else { "not justified" };
            format!("Reviewed the break-glass: {found}: {note}")
        }
    }
}

/// A command's words; how long a shell was open.
fn ran_as_root(command: &RootCommand) -> String {
    if !command.words.is_empty() {
        return command.words.join(" ");
    }
    match (command.started_at, &command.ended) {
        (Some(started), Some(ended)) => format!("a shell, for {}", ended.at.since(started)),
        _ => "a shell".to_owned(),
    }
}

fn shell(event: &ShellEvent, names: &Names<'_>) -> String {
    match event {
        ShellEvent::Connected { terms } => {
            let what = match terms.kind {
                ShellKind::Terminal => "a terminal",
                ShellKind::Command => "a shell for one command",
                ShellKind::Ssh => "SSH",
            };
            format!("Opened {what} in workspace {}", names.of(terms.workspace))
        }
        ShellEvent::Disconnected { user, workspace, ended } => {
            format!(
                "The shell of {} in workspace {} is over after {}: {}",
                names.of(user),
                names.of(workspace),
                ended.duration,
                shell_end(ended)
            )
        }
    }
}

fn job_run(event: &JobRunEvent, names: &Names<'_>) -> String {
    match event {
        JobRunEvent::Started { terms } => {
            let kind = match terms.kind {
                JobKind::Test => "test",
                JobKind::Agent => "agent job",
            };
            format!("Ran the {kind} {} in workspace {}: {}", terms.name, names.of(terms.workspace), terms.command)
        }
        JobRunEvent::Finished { by, workspace, name, ended } => {
            format!(
                "The job {name} of {} in workspace {} is over after {}: {}",
                names.of(by),
                names.of(workspace),
                ended.duration,
                shell_end(ended)
            )
        }
    }
}

fn shell_end(ended: &ShellEnded) -> String {
    match (ended.end, ended.code) {
        (ShellEnd::Exited, Some(code)) => format!("exit status {code}"),
        (ShellEnd::Signalled, Some(code)) => format!("signal {code}"),
        (ShellEnd::Closed, _) => "its client went away".to_owned(),
        (end, _) => end.token().replace('_', " "),
    }
}

fn root_end(ended: &RootEnded) -> String {
    let how = match (ended.outcome, ended.code) {
        (RootOutcome::Exited, Some(code)) => format!("exit status {code}"),
        (RootOutcome::Signalled, Some(code)) => format!("signal {code}"),
        (outcome, _) => outcome.token().replace('_', " "),
    };
    match &ended.changes {
        None => how,
        Some(RootChanges { packages, files, incomplete }) => {
            let least = if *incomplete { "at least " } else { "" };
            format!("{how}; meanwhile {least}{} packages and {} files changed", packages.len(), files.len())
        }
    }
}

fn project(event: &ProjectEvent) -> String {
    match event {
        ProjectEvent::Created { name, slug, .. } => format!("Created the project “{name}” ({slug})"),
        ProjectEvent::Edited { name, .. } => format!("Edited the project “{name}”"),
        ProjectEvent::GitCredentialChanged { credential: Some(credential) } => {
            let shells = if credential.in_shells { ", in shells too" } else { "" };
            format!("Git is given the secret {} as {}{shells}", credential.secret, credential.username)
        }
        ProjectEvent::GitCredentialChanged { credential: None } => "Git is given no secret any more".to_owned(),
    }
}

fn workspace(event: &WorkspaceEvent, key: &str, names: &Names<'_>) -> String {
    let name = names.of(key);
    match event {
        WorkspaceEvent::Created { project, slug, branch, .. } => {
            format!("Created the workspace {slug} of “{}” on branch {}", names.of(project), branch.as_str())
        }
        WorkspaceEvent::ManifestChanged { .. } => format!("Changed the manifest of workspace {name}"),
        WorkspaceEvent::AccessModeChanged { access_mode } => match access_mode {
            AccessMode::SignedLinks => format!("Opened workspace {name} to signed links"),
            AccessMode::TailscaleOnly => format!("Closed workspace {name} to everything but Tailscale"),
        },
        WorkspaceEvent::Archived => format!("Archived workspace {name}"),
        WorkspaceEvent::RevocationRecorded { receipt } => {
            format!("Of workspace {name} were closed: {}", closed(receipt))
        }
    }
}

fn wake_cause(cause: &WakeCause, names: &Names<'_>) -> String {
    match cause {
        WakeCause::Link { link, .. } => format!("for a visitor of link “{}”", names.of(link)),
        WakeCause::Person(by) => format!("for {}", names.of(by)),
        WakeCause::Job { name, by } => format!("for the job {name} of {}", names.of(by)),
        WakeCause::Agent { name, by } => format!("for the agent {name} of {}", names.of(by)),
    }
}

const fn stage(stage: &WakeStage) -> &'static str {
    match stage {
        WakeStage::Placed => "being placed",
        WakeStage::CheckingOut => "checking out",
        WakeStage::Starting => "starting",
        WakeStage::Probing => "probing",
    }
}

fn runtime(event: &RuntimeEvent, name: &str, names: &Names<'_>) -> String {
    match event {
        RuntimeEvent::WakeRequested { cause, .. } => format!("Woke {name} {}", wake_cause(cause, names)),
        RuntimeEvent::WakeQueued { cause } => {
            format!("{name} is woken again once it sleeps, {}", wake_cause(cause, names))
        }
        RuntimeEvent::StageReached { stage: reached, .. } => format!("{name} is waking: {}", stage(reached)),
        RuntimeEvent::Ready { services, .. } => {
            let services = services.iter().map(|service| service.name.as_str()).collect::<Vec<_>>().join(", ");
            format!("{name} is ready: {services}")
        }
        RuntimeEvent::SecretsResolved { consumed, .. } => {
            let one = |secret: &ConsumedSecret| format!("{} {} of {}", secret.consumer, secret.name, secret.version);
            let given = consumed.iter().map(one).collect::<Vec<_>>().join(", ");
            format!("{name} is given secrets (service, name, version): {given}")
        }
        RuntimeEvent::SecretsRefused { refused, .. } => format!("{name}: {}", RefusedSecret::told(refused)),
        // These two are never shown: their visibility is the operator's.
        RuntimeEvent::HostChosen { .. } => format!("Chose a host for {name}"),
        RuntimeEvent::EndpointsBound { .. } => format!("Bound the endpoints of {name}"),
        RuntimeEvent::LeaseRenewed { .. } => format!("{name} still runs"),
        RuntimeEvent::ActivitySeen { source, .. } => match source {
            ActivitySource::Link(link) => format!("{name} was used through link “{}”", names.of(link)),
            ActivitySource::Person(user) => format!("{name} was used by {}", names.of(user)),
        },
        RuntimeEvent::KeptAwake { reason, by, .. } => format!("{} keeps {name} awake: {reason}", names.of(by)),
        RuntimeEvent::KeepAwakeShortened { .. } => {
            format!("{name} is kept awake for less: the organization's policy allows no more")
        }
        RuntimeEvent::SleepPostponed { cause } => match cause {
            PostponeCause::KeepAwake { .. } => format!("{name} does not sleep yet: it is kept awake"),
            PostponeCause::OpenStreams { count } => format!("{name} does not sleep yet: {count} open streams"),
        },
        RuntimeEvent::SleepRequested { cause, .. } => match cause {
            SleepCause::Idle { idle_for } => format!("{name} goes to sleep: idle for {idle_for}"),
            SleepCause::Person(by) => format!("{name} goes to sleep: asked for by {}", names.of(by)),
            SleepCause::WorkspaceArchived => format!("{name} goes to sleep: its workspace was archived"),
            SleepCause::Shutdown => format!("{name} goes to sleep: EnvForge stops"),
            SleepCause::UsageCap => format!("{name} goes to sleep: the usage cap is reached"),
            SleepCause::SecretRotated { name: secret } => {
                format!("{name} is restarted: the secret {secret} has another version")
            }
        },
        RuntimeEvent::Slept { .. } => format!("{name} is asleep"),
        RuntimeEvent::Failed { stage: Some(at), reason, .. } => {
            format!("{name} failed while {}: {reason}", stage(at))
        }
        RuntimeEvent::Failed { stage: None, reason, .. } => format!("{name} failed: {reason}"),
        RuntimeEvent::Lost { .. } => format!("{name} was lost; it is billed up to its last sign of life"),
    }
}

fn link(event: &DevLinkEvent, name: &str, names: &Names<'_>) -> String {
    match event {
        DevLinkEvent::Issued { service, workspace, families, .. } => {
            format!("Issued the link “{name}” to {service} of {} for {}", names.of(workspace), families.display())
        }
        DevLinkEvent::FirstUsed { .. } => format!("The link “{name}” was used for the first time"),
        DevLinkEvent::SessionOpened { .. } => format!("Opened a session through link “{name}”"),
        DevLinkEvent::AllowlistChanged { families } => {
            format!("The link “{name}” now opens {}", families.display())
        }
        DevLinkEvent::Rotated { .. } => format!("Rotated the link “{name}”; older share links are void"),
        DevLinkEvent::WakeSpent { .. } => format!("The link “{name}” spent a wake"),
        DevLinkEvent::AttemptsBlocked { .. } => format!("Blocked at link “{name}”"),
        DevLinkEvent::Expired => format!("The link “{name}” expired"),
        DevLinkEvent::Revoked { reason: Some(reason) } => format!("Revoked the link “{name}”: {reason}"),
        DevLinkEvent::Revoked { reason: None } => format!("Revoked the link “{name}”"),
        DevLinkEvent::RevocationRecorded { receipt } => {
            format!("Of the link “{name}” were closed: {}", closed(receipt))
        }
    }
}

fn secrets(event: &SecretsEvent, owner: &str) -> String {
    match event {
        SecretsEvent::Set { name, version, expires_at, .. } => {
            let end = if expires_at.is_some() { ", which expires" } else { "" };
            format!("Set the secret {name} of {owner}, version {version}{end}")
        }
        SecretsEvent::RulesChanged { name, .. } => format!("Changed who may use the secret {name} of {owner}"),
        SecretsEvent::Removed { name, .. } => format!("Removed the secret {name} of {owner}"),
    }
}

fn claim(event: &ClaimEvent, key: &str) -> String {
    let (what, value) = key.split_once('_').unwrap_or(("", key));
    let name = match what {
        "orgslug" => format!("the organization slug {value}"),
        "prjslug" => format!("the project slug {value}"),
        "wspslug" => format!("the workspace slug {value}"),
        "machine" => "a machine".to_owned(),
        "" if value == "breakglass" => "the organization's one unreviewed break-glass".to_owned(),
        _ => "a name".to_owned(),
    };
    match event {
        ClaimEvent::Taken { .. } => format!("Took {name}"),
        ClaimEvent::Released { .. } => format!("Gave back {name}"),
        ClaimEvent::Retired { .. } => format!("Retired {name}: nobody gets it again"),
    }
}
