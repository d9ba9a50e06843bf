//! The rows of the directory's tables, column by column as in the migration.

use super::super::table::{Row, Table, id_table};

id_table! {
    pub(crate) struct OrganizationRow in "directory_organizations" {
        id: String,
        slug: String,
        name: String,
        link_lifetime_max_ms: i64,
        link_families: String,
        idle_sleep_max_ms: i64,
        keep_awake_max_ms: i64,
        created_at: i64,
        link_issuers: String,
        session_lifetime_max_ms: i64,
        identity_providers: String,
        service_token_lifetime_max_ms: i64,
        root_policy: String,
        root_window_max_ms: i64,
    }
}

id_table! {
    pub(crate) struct MemberRow in "directory_members" {
        id: String,
        org: String,
        grantee: String,
        is_member: i64,
        grants: String,
        since: i64,
    }
}

id_table! {
    pub(crate) struct UserRow in "directory_users" {
        id: String,
        org: String,
        issuer: String,
        subject: String,
        email: String,
        name: String,
        created_at: i64,
        deactivated_at: Option<i64>,
        signed_in_at: Option<i64>,
    }
}

id_table! {
    pub(crate) struct ProjectRow in "directory_projects" {
        id: String,
        org: String,
        slug: String,
        name: String,
        repository: String,
        created_at: i64,
    }
}

id_table! {
    pub(crate) struct WorkspaceRow in "directory_workspaces" {
        id: String,
        org: String,
        project: String,
        slug: String,
        branch: String,
        manifest: String,
        manifest_digest: String,
        access_mode: String,
        created_by: Option<String>,
        created_at: i64,
        archived_at: Option<i64>,
    }
}

id_table! {
    pub(crate) struct RuntimeRow in "directory_runtimes" {
        id: String,
        org: String,
        project: String,
        phase: String,
        stage: Option<String>,
        epoch: i64,
        since: i64,
        wake_cause: String,
        sleep_cause: Option<String>,
        queued_cause: Option<String>,
        failure: Option<String>,
        ready_at: Option<i64>,
        lease_until: Option<i64>,
        keep_awake_until: Option<i64>,
        keep_awake_reason: Option<String>,
        keep_awake_by: Option<String>,
        postponed: Option<String>,
        active_at: Option<i64>,
        open_streams: Option<i64>,
        commit_hash: Option<String>,
        services: String,
    }
}

id_table! {
    pub(crate) struct LinkRow in "directory_links" {
        id: String,
        org: String,
        project: String,
        workspace: String,
        service: String,
        phase: String,
        families: String,
        label: String,
        token_generation: i64,
        issued_by: String,
        issued_at: i64,
        expires_at: i64,
        ended_at: Option<i64>,
        revoke_reason: Option<String>,
        wake_budget: Option<i64>,
        wakes_spent: i64,
        first_used_at: Option<i64>,
        sessions_opened: i64,
        blocked: String,
        blocked_at: Option<i64>,
    }
}

id_table! {
    pub(crate) struct HostRow in "directory_hosts" {
        id: String,
        org: String,
        provider: String,
        machine: String,
        cpu_millicores: i64,
        memory_mib: i64,
        placed: String,
        registered_at: i64,
        retired_at: Option<i64>,
    }
}

pub(crate) const TABLES: &[&Table] = &[
    &OrganizationRow::TABLE,
    &MemberRow::TABLE,
    &UserRow::TABLE,
    &ProjectRow::TABLE,
    &WorkspaceRow::TABLE,
    &RuntimeRow::TABLE,
    &LinkRow::TABLE,
    &HostRow::TABLE,
];
