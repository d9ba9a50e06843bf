//! Every limit of the domain in one place, units last in the name.

use crate::time::Millis;

/// Events of one commit.
pub const COMMIT_EVENTS_MAX: usize = 64;
/// One encoded event.
pub const EVENT_BYTES_MAX: usize = 64 * 1024;
/// One encoded commit. Below the server's default message limit of 1 MiB.
pub const COMMIT_BYTES_MAX: usize = 512 * 1024;
/// Commits appended together for a claim.
pub const BATCH_COMMITS_MAX: usize = 16;

pub const MANIFEST_BYTES_MAX: usize = 48 * 1024;
pub const MANIFEST_SERVICES_MAX: usize = 32;
/// Services with a route plus the websocket paths of all services.
pub const MANIFEST_ROUTES_MAX: usize = 32;
pub const MANIFEST_RESOURCES_MAX: usize = 32;
pub const MANIFEST_JOBS_MAX: usize = 64;
/// Environment entries and secrets of one service together.
pub const MANIFEST_VARIABLES_MAX: usize = 100;
pub const MANIFEST_COMMAND_CHARS_MAX: usize = 4_000;
/// A manifest's canonical text, escaped as a JSON string: what an event that carries it spends of `EVENT_BYTES_MAX`.
pub const MANIFEST_STORED_BYTES_MAX: usize = 56 * 1024;

pub const REASON_CHARS_MAX: usize = 400;
pub const NAME_CHARS_MAX: usize = 120;
pub const EMAIL_CHARS_MAX: usize = 254;
/// What a program that people sign in with calls itself.
pub const CLIENT_CHARS_MAX: usize = 100;

/// Roles of one invitation.
pub const INVITATION_ROLES_MAX: usize = 16;
/// How long an invitation may be accepted at most, and where nothing else was asked for.
pub const INVITATION_LIFETIME_MAX: Millis = Millis::from_hours(24 * 30);
pub const INVITATION_LIFETIME_MIN: Millis = Millis::from_secs(60);
pub const INVITATION_LIFETIME_DEFAULT: Millis = Millis::from_hours(24 * 7);
/// How old a proof of identity may be for what a stolen session must not be able to do. Fixed: acting does not prolong it.
pub const REAUTHENTICATION_WINDOW: Millis = Millis::from_minutes(15);

/// Grants of one organization; keeps its state and view bounded.
pub const GRANTS_MAX: usize = 200_000;
pub const TEAMS_MAX: usize = 5_000;
pub const TEAM_MEMBERS_MAX: usize = 10_000;
/// Teams that one person is in: leaving all of them fits into one commit.
pub const TEAMS_OF_MEMBER_MAX: usize = 50;
/// Identity providers that an organization's policy may name.
pub const IDENTITY_PROVIDERS_MAX: usize = 8;
pub const IDENTITY_PROVIDER_CHARS_MAX: usize = 200;
/// How long people stay signed in at most, whatever the policy says; also where it says nothing.
pub const SESSION_LIFETIME_MAX: Millis = Millis::from_hours(24 * 30);
pub const SESSION_LIFETIME_MIN: Millis = Millis::from_minutes(15);

/// Sessions of one person on workspaces' hosts; one more ends the oldest.
pub const WORKSPACE_SESSIONS_MAX: usize = 100;

/// Service tokens of one organization that are not over, and those that are remembered with ended ones.
pub const SERVICE_TOKENS_MAX: usize = 100;
pub const SERVICE_TOKENS_REMEMBERED_MAX: usize = 1_000;
/// How long a service token's secret lives at most, whatever the policy says.
pub const SERVICE_TOKEN_LIFETIME_MAX: Millis = Millis::from_hours(24 * 365);
pub const SERVICE_TOKEN_LIFETIME_MIN: Millis = Millis::from_minutes(5);
/// Where nobody says how long, and where the organization's policy was never changed.
pub const SERVICE_TOKEN_LIFETIME_DEFAULT: Millis = Millis::from_hours(24 * 90);
/// How long a rotated token's former secret may still count.
pub const SERVICE_TOKEN_OVERLAP_MAX: Millis = Millis::from_hours(24 * 7);
pub const SERVICE_TOKEN_OVERLAP_DEFAULT: Millis = Millis::from_hours(24);

/// How long a root window may be open at most, whatever the policy says, and where it was never changed.
pub const ROOT_WINDOW_MAX: Millis = Millis::from_hours(8);
pub const ROOT_WINDOW_DEFAULT: Millis = Millis::from_minutes(30);
pub const ROOT_WINDOW_MIN: Millis = Millis::from_minutes(1);
/// How long a request waits for somebody's answer, and an approval for its use.
pub const ROOT_REQUEST_LIFETIME: Millis = Millis::from_hours(24);
pub const ROOT_APPROVAL_LIFETIME: Millis = Millis::from_hours(8);
/// Requests of one person for one workspace that wait for an answer.
pub const ROOT_REQUESTS_MAX: usize = 5;
/// After a window's end: for a host that was away to come back and say how its command ended. Then that is lost.
pub const ROOT_LOST_AFTER: Millis = Millis::from_hours(1);
/// One command in a root window.
pub const ROOT_COMMAND_WORDS_MAX: usize = 64;
pub const ROOT_COMMAND_CHARS_MAX: usize = 4_000;
/// Shells of one root window, of which each after the first is for one that was lost.
pub const ROOT_SHELLS_MAX: usize = 20;
/// Packages, and files, that are told of one command; and what is told of each.
pub const ROOT_CHANGES_MAX: usize = 100;
pub const ROOT_CHANGE_CHARS_MAX: usize = 120;
/// How long the host that runs a command may take to say how it ended, once the window is over.
pub const ROOT_CLOSEOUT_PATIENCE: Millis = Millis::from_secs(15);

/// One secret's value: what the smallest store takes.
pub const SECRET_BYTES_MAX: usize = 4 * 1024;
/// Secrets of one project, or of one workspace.
pub const SECRETS_MAX: usize = 200;
/// And those that are remembered with removed ones.
pub const SECRETS_REMEMBERED_MAX: usize = 400;
/// Versions of one secret that a store keeps: a wake that was pinned before a rotation still reads its own.
pub const SECRET_VERSIONS_MAX: usize = 20;
/// How far away a secret's end may lie.
pub const SECRET_LIFETIME_MAX: Millis = Millis::from_secs(5 * 366 * 24 * 60 * 60);
/// Changes of one secret that are told.
pub const SECRET_CHANGES_MAX: usize = 50;
/// Workspaces that one secret's rules may name.
pub const SECRET_WORKSPACES_MAX: usize = 64;
/// Secrets that are read from a store at once.
pub const SECRET_READ_MAX: usize = 10;
/// Secrets that all services of one workspace are given together, and those that one event tells of.
pub const SECRETS_CONSUMED_MAX: usize = 1_000;
pub const SECRETS_OF_EVENT_MAX: usize = 100;
/// How long a wake tries to get its secrets from a store that is out of reach.
pub const SECRETS_DEADLINE: Millis = Millis::from_secs(60);
/// Words and characters of one command in a shell.
pub const SHELL_WORDS_MAX: usize = 1_024;
pub const SHELL_CHARS_MAX: usize = 128 * 1024;
/// Input of one shell that is on its way.
pub const SHELL_WINDOW_BYTES: usize = 256 * 1024;
/// Shells open at the same time: in one workspace, and of one person.
pub const SHELLS_OF_WORKSPACE_MAX: usize = 64;
pub const SHELLS_OF_PERSON_MAX: usize = 32;
/// How long one connection to a shell may be open; one that lasts is attached to again.
pub const SHELL_OPEN_MAX: Millis = Millis::from_hours(24);
/// How long a job may run.
pub const JOB_RUN_MAX: Millis = Millis::from_hours(6);

/// Live sessions of one link; the next one is refused.
pub const LINK_SESSIONS_MAX: usize = 1_000;
/// A link's lifetime where the organization sets none (2 h as the product documents show).
pub const LINK_LIFETIME_DEFAULT: Millis = Millis::from_hours(2);
/// What an organization's policy may allow at most.
pub const LINK_LIFETIME_MAX: Millis = Millis::from_hours(24 * 30);
pub const LINK_LIFETIME_MIN: Millis = Millis::from_secs(60);
pub const HANDOFF_LIFETIME: Millis = Millis::from_secs(30);

pub const IDLE_SLEEP_MIN: Millis = Millis::from_secs(30);
pub const IDLE_SLEEP_MAX: Millis = Millis::from_hours(24);
pub const IDLE_SLEEP_DEFAULT: Millis = Millis::from_minutes(15);
pub const KEEP_AWAKE_MAX: Millis = Millis::from_hours(12);
/// How long a host's word that a runtime is up is believed without another one; the meter never runs past it.
pub const RUNTIME_LEASE: Millis = Millis::from_secs(30);
/// A wake that is not ready by then has failed.
pub const WAKE_DEADLINE: Millis = Millis::from_minutes(5);
/// `on_sleep` may take this long at most.
pub const ON_SLEEP_MAX: Millis = Millis::from_secs(30);
/// Between SIGTERM and SIGKILL.
pub const STOP_GRACE: Millis = Millis::from_secs(10);
/// A gateway reports activity of one workspace at most this often.
pub const ACTIVITY_INTERVAL: Millis = Millis::from_secs(10);
/// A host renews its runtimes' leases this often.
pub const LEASE_RENEWAL_INTERVAL: Millis = Millis::from_secs(10);

/// Whoever needs a machine up on which nothing is awake says so this often; it is believed for so long.
pub const MACHINE_USE_INTERVAL: Millis = Millis::from_secs(15);
pub const MACHINE_USE_LASTS: Millis = Millis::from_secs(30);
/// How long whoever has a machine started waits for it and its agent.
pub const MACHINE_START_WAIT: Millis = Millis::from_minutes(6);

/// How long an agent may use its enrolment token.
pub const ENROLMENT_LIFETIME_MIN: Millis = Millis::from_secs(30);
pub const ENROLMENT_LIFETIME_DEFAULT: Millis = Millis::from_minutes(15);
pub const ENROLMENT_LIFETIME_MAX: Millis = Millis::from_hours(24);
/// Renewed certificates whose ends lie closer together are recorded once.
pub const RENEWAL_RECORD_INTERVAL: Millis = Millis::from_hours(6);
