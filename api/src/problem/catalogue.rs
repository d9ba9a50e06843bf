//! Every problem code that a client can meet, with its status, title and meaning.
//!
//! Codes are stable: clients branch on them. Served at `/v1/problems`. A test holds this list against the domain's
//! refusals and denials.

use http::StatusCode;

/// One documented problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub code: &'static str,
    pub status: StatusCode,
    /// The same for every occurrence (RFC 9457 3.1.3).
    pub title: &'static str,
    /// What it means and what helps.
    pub meaning: &'static str,
}

macro_rules! catalogue {
    ($($status:ident { $($code:literal $title:literal, $meaning:literal;)* })*) => {
        pub static CATALOGUE: &[Entry] = &[$($(
            Entry { code: $code, status: StatusCode::$status, title: $title, meaning: $meaning },
        )*)*];
    };
}

catalogue! {
    BAD_REQUEST {
        "body_invalid" "The body cannot be read", "The body is not JSON of the documented shape. `detail` names the line and column, or the field.";
        "query_invalid" "A query parameter cannot be read", "A parameter is unknown, malformed or out of range. `detail` names it.";
        "header_invalid" "A header cannot be read", "A header has a value outside of its documented form. `header` names it.";
        "position_unknown" "There is no such position", "`EnvForge-Min-Position` must be the `EnvForge-Position` of an earlier answer. `position` is the log's last one.";
        "cursor_invalid" "The cursor cannot be read", "`after` must be the `next` of an earlier answer of the same list.";
        "sign_in_unknown" "This sign-in was not begun here", "It was begun in another browser, was finished before, or took longer than ten minutes. Begin again.";
        "logout_token_invalid" "The logout token was not accepted", "`reason` names why.";
        "websocket_required" "This is a WebSocket", "Ask for it with an upgrade (RFC 6455) and the subprotocol `envforge.shell.v1`.";
        "idempotency_key_invalid" "The idempotency key cannot be used", "`Idempotency-Key` must be 1 to 200 visible ASCII characters, given once.";
    }
    UNAUTHORIZED {
        "unauthenticated" "Sign in first", "The access token is missing, expired or not valid. Refresh it or sign in.";
        "session_ended" "The session has ended", "The session was ended or revoked. Sign in again.";
        "wrong_credentials" "E-mail address and password do not belong together", "Nothing says which of the two is wrong.";
        "event_not_signed" "The event's signature was not accepted", "`reason` names why.";
        "sign_in_invalid" "The identity provider's answer was not accepted", "`reason` names why. Begin again.";
        "service_token_over" "The service token counts for nothing any more", "`reason` names why, where a program asked. Make another one.";
        "refresh_token_invalid" "The refresh token is not valid", "It is unknown, expired or revoked. Sign in again.";
        "refresh_token_reused" "The refresh token was used before", "Somebody may have copied it, so its session has ended. Sign in again.";
    }
    FORBIDDEN {
        "role_missing" "Your roles do not allow this", "`action` names what was asked; `detail` names the roles that may.";
        "sign_in_denied" "The identity provider did not sign you in", "`reason` is the provider's.";
        "identity_provider_not_allowed" "The organization does not allow this way to sign in", "`provider` is the one that vouches for you. Sign in with one that the organization's policy names.";
        "organization_not_mapped" "This organization of the identity provider is none here", "The operator has to map it.";
        "not_invited" "You are not a member of the organization", "An administrator can add you.";
        "no_role" "You have no role in the organization yet", "An administrator can give you one.";
        "cross_site_request" "The request came from another site", "A browser's session changes things only from the pages of its own site.";
        "grant_expired" "Your role for this has ended", "Ask for the role again.";
        "reauthentication_required" "Prove once more who you are", "`max_age_seconds` is how old the proof may be. POST to `reauthenticate` with the password, then repeat the request with the new access token.";
        "session_of_another_surface" "The session is of another surface", "`surface` is the one for which it was opened. Sign in on the other one.";
        "surface_not_allowed" "Not possible on this surface", "The action exists, but not on this surface.";
        "account_deactivated" "The account is deactivated", "An administrator can activate it.";
        "membership_ended" "You do not belong to the organization any more", "An administrator can add you again.";
        "outside_service_token" "The service token is not for this", "`action` names what was asked. A token acts within its own actions and place.";
        "service_tokens_not_allowed" "The organization allows no service tokens", "Its policy has `service_token_lifetime_max_seconds` at 0.";
        "service_token_above_yourself" "You may not do that there yourself", "Leave the action out: a token may no more than its creator.";
        "too_many_service_tokens" "The organization has too many service tokens", "`max` is the limit. Revoke what is not needed.";
        "shell_not_for_browsers" "Shells take no browser's session", "Send `Authorization: Bearer` and neither `Cookie` nor `Origin`.";
        "root_people_only" "Only people come to root", "Programs and links never do.";
        "root_not_allowed" "The organization does not allow this way to root", "`detail` names its root policy.";
        "root_own_request" "Somebody else decides on your request", "An owner or admin who did not ask for the window.";
        "root_decider_depends" "Somebody decides who does not depend on the requester", "Your account, membership or role comes from whoever asked, directly or through others. `detail` and `people` name who can; docs/root.md says what helps where nobody can.";
        "root_not_yours" "The root window is somebody else's", "Only whoever asked for it uses it or gives it up.";
        "root_right_lost" "The root window lost its ground", "Its requester may no more, or the organization's policy does not allow it any more.";
        "policy_root_owners_only" "Only owners open ways to root", "Closing them, or shortening windows, takes no owner.";
        "outside_link" "The link does not open this", "A signed link opens the app surface of one service only.";
        "link_ended" "The link is no longer open", "Ask for a new link.";
        "grant_above_yourself" "This role is above your own", "You can give and take only the roles that your own roles reach.";
        "link_issuer_not_allowed" "The organization does not let your roles give links", "`detail` names the roles that the organization's policy lets give links.";
        "too_many_secrets" "There are too many secrets", "`max` is the limit of one project or workspace. Remove what is not needed.";
        "too_many_teams" "The organization has too many teams", "`max` is the limit. Delete what is not needed.";
        "team_full" "The team has too many members", "`max` is the limit.";
        "member_of_too_many_teams" "The member is in too many teams", "`max` is the limit. Take them out of one first.";
        "too_many_grants" "The organization has too many grants", "`max` is the limit. Revoke what is not needed.";
        "link_families_not_allowed" "The organization does not allow these routes", "Choose fewer families, or have the organization's policy changed.";
        "link_too_many_sessions" "The link has too many open sessions", "`max` is the limit.";
        "wake_budget_spent" "The link has spent its wakes", "Somebody of the team can wake the workspace, or issue another link.";
        "host_cross_organization" "The host belongs to another organization", "One organization per machine.";
        "enrolment_unknown" "The enrolment is not of this host", "Issue one for it.";
        "enrolment_replaced" "Another enrolment of the host has replaced this one", "Only the newest one counts.";
        "machine_cross_organization" "The machine belongs to another organization", "One organization per machine.";
    }
    NOT_FOUND {
        "not_found" "There is no such thing", "It does not exist, or you may not know that it does.";
        "request_not_recorded" "Nothing is known of this request", "`why_not` says why: `too_recent` (ask again in a moment), `over_limit` (so many requests were refused at that time that this one may be one of those that were only counted), `unknown`. Here, a request is known that changed something, or that the policy refused to somebody whom it knows.";
        "provider_not_configured" "There is no such way to sign in", "GET /v1/auth/providers lists those that there are.";
        "organization_unknown" "There is no such organization", "It does not exist, or you may not know that it does.";
        "project_unknown" "There is no such project", "Check the slug or id.";
        "workspace_unknown" "There is no such workspace", "Check the slug or id.";
        "link_unknown" "There is no such link", "Check the id.";
        "invitation_unknown" "There is no such invitation", "The token is unknown, was used, or the invitation was revoked or has expired.";
        "user_unknown" "There is no such user", "Check the id.";
        "service_token_unknown" "There is no such service token", "Check the name or id.";
        "secret_unknown" "There is no such secret", "Check the name, and whether it is the project's or the workspace's.";
        "team_unknown" "There is no such team", "Check the slug or id.";
        "root_window_unknown" "There is no such root window", "Check the id.";
        "shell_unknown" "There is no such shell", "Check the id.";
        "job_unknown" "envforge.yml declares no such job", "`detail` names those that it declares.";
        "job_run_unknown" "There is no such run of a job", "Check the id.";
        "host_unknown" "There is no such host", "Check the id.";
        "machine_unknown" "There is no such machine", "Check the id.";
        "role_not_assigned" "This role is not assigned there", "Nothing was changed.";
    }
    METHOD_NOT_ALLOWED {
        "method_not_allowed" "This method is not possible here", "`Allow` lists the methods that are.";
    }
    REQUEST_TIMEOUT {
        "body_timeout" "The body came too slowly", "Send the request again.";
    }
    CONFLICT {
        "name_taken" "The name is taken", "Choose another slug.";
        "name_retired" "The name was used before and is retired", "A retired slug is never used again. Choose one that was never used.";
        "name_not_held" "The name is held by something else", "Nothing was changed.";
        "organization_exists" "The organization exists already", "Nothing was changed.";
        "project_exists" "The project exists already", "Nothing was changed.";
        "workspace_exists" "The workspace exists already", "Nothing was changed.";
        "user_exists" "The user exists already", "Nothing was changed.";
        "no_password_here" "The account has no password here", "It signs in with an identity provider: sign in again there.";
        "invitation_accepted" "The invitation was accepted already", "Sign in.";
        "account_exists" "This e-mail address has an account already", "Choose another address, or sign in.";
        "link_exists" "The link exists already", "Nothing was changed.";
        "link_not_yet_expired" "The link has not expired yet", "Revoke it to end it early.";
        "service_token_exists" "The service token exists already", "Nothing was changed.";
        "service_token_name_taken" "Another service token has this name", "Choose another one, or revoke that.";
        "team_name_taken" "Another team has this slug", "Choose another slug.";
        "policy_locks_you_out" "The policy would lock you out yourself", "Name the identity provider by which you are signed in too.";
        "last_owner" "The last owner cannot be removed", "Assign another owner first.";
        "job_secrets_refused" "The job's secrets cannot be given", "`detail` names them. Nothing was started.";
        "secret_overtaken" "Somebody else changed the secret at the same time", "Look at it, and set it again.";
        "runtime_not_awake" "The runtime is not awake", "Wake it first.";
        "runtime_other_epoch" "The runtime is at another wake", "`current_epoch` is the one it is at.";
        "runtime_other_host" "The wake belongs to another host", "Only the host that was chosen for it may start it and report about it.";
        "runtime_kept_awake" "The runtime is kept awake", "`until_unix_ms` says until when.";
        "lease_holds" "The host's lease holds", "`until_unix_ms` says until when.";
        "host_registered" "The host is registered already", "Nothing was changed.";
        "host_no_room" "The host has no room", "Choose another host, or smaller services.";
        "host_not_empty" "The host still holds workspaces", "Release them first.";
        "host_draining" "The host is being drained", "Nothing more is placed on it.";
        "host_without_agent" "The host has no agent", "It is the control plane's own machine.";
        "host_other_machine" "The host is another machine", "Issue an enrolment for a host of its own.";
        "enrolment_told" "The enrolment's token was told before", "It is told once. Send the request anew, with another key, for another token.";
        "agents_not_set_up" "There is no authority for agents yet", "The operator runs `envforge setup` once more.";
        "machine_requested" "The machine was requested already", "On other terms; nothing was changed.";
        "machine_not_launched" "No instance was launched for the machine yet", "Try again once it is.";
        "machine_other_instance" "Another instance was launched for the machine already", "The one that is not recorded is terminated.";
        "host_leaving" "The workspace's host is on its way out", "Its machine is off and is not started again, and what lies there goes with it. The next wake goes to another one.";
        "machine_leaving" "The machine is on its way out", "It is not started again; another one takes its place.";
        "machine_not_draining" "Only a draining machine is terminated", "Drain it first.";
        "machine_not_empty" "The machine still holds workspaces", "Release them first.";
        "root_window_exists" "The root window exists already", "Nothing was changed.";
        "root_not_approved" "Nobody has approved the root window yet", "An owner or admin who did not ask for it can.";
        "root_not_pending" "The root window is no request any more", "Nothing was changed.";
        "root_window_not_over" "The root window is not over yet", "Revoke it to end it early.";
        "root_window_for_shell" "The root window is for a shell", "Open it with `envforge root shell`.";
        "root_window_for_command" "The root window is for one command", "Ask for one with `--mode shell` for a shell.";
        "root_runtime_not_ready" "The workspace's runtime is not ready", "Wake it first: the command runs on its host.";
        "root_no_command" "No command was asked for in the root window", "Nothing was changed.";
        "root_nothing_to_review" "The root window needs no review", "Only break-glass windows are reviewed.";
        "root_reviewed_already" "The root window has been reviewed", "Nothing was changed.";
        "root_requests_too_many" "Too many of your requests for root in this workspace wait for an answer", "`max` is the limit. Withdraw one, or wait for an answer.";
        "root_review_pending" "A break-glass window was not reviewed yet", "`detail` names it. Somebody else, an owner or admin, reviews it first.";
        "shell_exists" "The shell was opened already", "Nothing was changed.";
        "job_run_exists" "The run was started already", "Nothing was changed.";
        "host_elsewhere" "The workspace's host is elsewhere", "This API's process, and those that it is told of with `--relays`, have no host of it.";
        "checkout_failed" "The repository could not be cloned", "`detail` says why.";
        "contended" "Too many changes to the same thing at once", "Try again with the same `Idempotency-Key`.";
    }
    GONE {
        "sign_in_expired" "The sign-in took too long", "Begin again.";
        "workspace_archived" "The workspace is archived", "Create a new one with another slug.";
        "link_revoked" "The link is revoked", "Issue a new one.";
        "link_expired" "The link has expired", "Issue a new one.";
        "link_rotated" "The share link was replaced by a newer one", "Ask for the current one.";
        "handoff_used" "The handoff was used already", "Open the share link again.";
        "handoff_expired" "The handoff is too old", "Open the share link again.";
        "link_session_unknown" "The session does not belong to the link any more", "Open the share link again.";
        "invitation_revoked" "The invitation was revoked", "Ask for another one.";
        "invitation_expired" "The invitation has expired", "Ask for another one.";
        "invitation_lapsed" "The invitation holds no more", "Whoever made it may no longer give its roles. Ask for another one.";
        "root_window_expired" "The root window was not answered or used in time", "Ask for another one.";
        "root_window_over" "The root window is over", "Ask for another one.";
        "root_window_used" "The root window has had its one command", "Ask for another one.";
        "host_retired" "The host is retired", "Register another one.";
        "host_revoked" "The host is revoked", "Enrol its machine as another one.";
        "enrolment_used" "The enrolment was used already", "It works once. Issue another one.";
        "enrolment_expired" "The enrolment has expired", "Issue another one.";
        "host_gone" "The workspace's host is gone", "It ran there last; what its services wrote is gone with it. The next wake begins anew elsewhere.";
        "machine_over" "The machine is gone", "Ask for another one.";
    }
    PAYLOAD_TOO_LARGE {
        "body_too_large" "The body is too large", "`max_bytes` is the limit.";
        "event_too_large" "What should be recorded is too large", "`max` is the limit, in `unit`.";
    }
    UNSUPPORTED_MEDIA_TYPE {
        "content_type_unsupported" "The body's content type is not understood", "`supported` lists what is.";
    }
    UNPROCESSABLE_ENTITY {
        "value_invalid" "A value breaks a rule", "`field` names it; `detail` says what would be right.";
        "manifest_invalid" "envforge.yml is not valid", "`errors` lists each mistake with line and column.";
        "idempotency_key_reused" "The idempotency key was used for another request", "Use a new key for a new request.";
        "secret_value_invalid" "The value is none that a secret can have", "1 to `max_bytes` bytes of UTF-8 without NUL; one that a project names for git has one line; `detail` says what a store refuses besides.";
        "secret_rules_invalid" "The secret's rules cannot be", "`detail` says what would be right.";
        "secret_end_invalid" "The secret's end cannot be", "It lies in the future, at most `max_ms` away.";
        "git_credential_invalid" "Git cannot be given that", "`detail` says what would be right.";
        "runtime_too_many_secrets" "The workspace's services are given too many secrets", "`max` is the limit.";
        "name_invalid" "The name is not valid", "1 to `max_chars` characters.";
        "member_unknown" "The user is not a member", "Add them first.";
        "invitation_lifetime_out_of_range" "The invitation would be open too long or too short", "`min_ms` and `max_ms` are the limits.";
        "invitation_roles_invalid" "The invitation's roles cannot be", "At most `max`, each once.";
        "history_too_long" "Too many changes of rights would have to be read", "`max` is the limit.";
        "role_org_wide_only" "The role counts for the whole organization only", "Leave `project` and `workspace` out.";
        "grant_ends_in_the_past" "The grant would end in the past", "Choose an end in the future.";
        "policy_link_issuers_invalid" "Some of these roles can never give links", "`detail` names those that can.";
        "policy_identity_providers_invalid" "The identity providers cannot be allowed", "At most `max`, each `local` or an issuer's URL of at most `max_chars` characters.";
        "service_token_lifetime_out_of_range" "The service token would live too long or too short", "`min_ms` and `max_ms` are the limits.";
        "service_token_overlap_too_long" "The former secret would count too long", "`max_ms` is the longest.";
        "service_token_actions_invalid" "A service token cannot be for these actions there", "`detail` says which and why.";
        "policy_out_of_range" "A policy setting is out of range", "`min_ms` and `max_ms` are the limits.";
        "keep_awake_too_long" "That is longer than the organization allows", "`max_ms` is the longest.";
        "keep_awake_in_the_past" "The end lies in the past", "Choose a longer time.";
        "root_window_length_out_of_range" "The root window would be open too long or too short", "`min_ms` and `max_ms` are the limits.";
        "root_changes_too_many" "Too many changes are told of one command", "`max` is the limit.";
        "shell_command_invalid" "The command cannot be run", "1 to `max_words` words without NUL, at most `max_chars` characters together.";
        "root_command_invalid" "The command cannot be run", "1 to `max_words` words, at most `max_chars` characters together.";
        "enrolment_lifetime" "The enrolment would live too long or too short", "`min_ms` and `max_ms` are the limits.";
        "reason_invalid" "The reason is not valid", "1 to `max_chars` characters on one line.";
        "host_label_too_long" "The host label would be too long", "DNS allows `max` characters: shorten the service, workspace or organization slug.";
        "link_lifetime_out_of_range" "The link would live too long or too short", "`min_ms` and `max_ms` are the limits.";
        "link_without_families" "The link would open nothing", "Name at least one route family.";
        "link_families_not_declared" "envforge.yml declares no such routes", "Name families that the service declares.";
        "link_label_invalid" "The label is not valid", "1 to `max_chars` characters.";
        "wake_budget_out_of_range" "The wake budget is out of range", "`min` to `max` wakes.";
        "denial_report_too_large" "The report holds too many kinds of attempts", "Split it.";
        "password_too_short" "The password is too short", "`min_chars` is the least.";
        "password_too_long" "The password is too long", "`max_bytes` is the limit. Nothing is cut off silently.";
        "password_common" "The password is too common", "Choose one that nobody would guess.";
        "password_control_character" "The password holds a control character", "Leave it out.";
    }
    TOO_MANY_REQUESTS {
        "too_many_attempts" "Too many failed attempts", "`Retry-After` says when the next one is looked at.";
        "too_many_sign_ins" "Too many sign-ins from this address", "Try again after `Retry-After`.";
        "too_many_requests" "Too many requests from this address", "Try again after `Retry-After`.";
        "sign_in_busy" "Too many people are signing in right now", "Try again after `Retry-After`.";
        "too_many_shells" "Too many shells are open", "Close one.";
        "too_many_streams" "Too many event streams are open", "Close one, or read without `follow`.";
    }
    INTERNAL_SERVER_ERROR {
        "internal" "Something went wrong on our side", "`instance` names the request for a report.";
    }
    SERVICE_UNAVAILABLE {
        "provider_unavailable" "The identity provider cannot be asked right now", "Nothing was changed. Try again.";
        "host_out_of_reach" "The workspace's host is out of reach", "Its files lie there and nowhere else. Try again once it is back.";
        "host_starting" "The workspace's host is on its way up", "Its machine was off, and is started for this. Try again after `Retry-After`.";
        "host_not_starting" "The workspace's host could not be started", "`reason` is `capacity`, `quota`, `refused` or `stopped_again`. Try again after `Retry-After`.";
        "shell_not_started" "The shell could not be started", "`detail` says why.";
        "overloaded" "Too many requests right now", "Try again after `Retry-After`.";
        "timed_out" "The answer took too long", "It may or may not have happened. Repeat it with the same `Idempotency-Key`.";
        "outcome_unknown" "The event log did not answer in time", "It may or may not have happened. Repeat it with the same `Idempotency-Key`.";
        "log_unavailable" "The event log is out of reach", "Part of a change may have happened. Repeat it with the same `Idempotency-Key`.";
        "rights_stale" "Rights cannot be checked right now", "Without fresh rights nothing is allowed. Try again.";
        "request_keys_unavailable" "Idempotency keys cannot be checked right now", "Nothing was changed. Repeat it with the same `Idempotency-Key`.";
        "secret_store_unavailable" "The secret store is out of reach", "Nothing was set. Try again.";
        "read_models_unavailable" "The read models are out of reach", "Try again.";
    }
    GATEWAY_TIMEOUT {
        "stale_read" "The answer would be older than asked for", "The read models have not reached `EnvForge-Min-Position` in time. Try again.";
    }
}

/// The entry of a code.
pub fn find(code: &str) -> Option<&'static Entry> {
    CATALOGUE.iter().find(|entry| entry.code == code)
}
