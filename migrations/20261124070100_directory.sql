-- Read by the API, the CLI and the console: which organizations exist and what they allow. Instants and lengths of all
-- directory tables are milliseconds; `generation` is that of the read model; ids are as displayed (`org_...`).
CREATE TABLE directory_organizations (
    generation BIGINT NOT NULL,
    id TEXT NOT NULL,
    slug TEXT NOT NULL,
    name TEXT NOT NULL,
    link_lifetime_max_ms BIGINT NOT NULL,
    link_families TEXT NOT NULL,
    idle_sleep_max_ms BIGINT NOT NULL,
    keep_awake_max_ms BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (generation, id)
);
CREATE INDEX directory_organizations_slug ON directory_organizations (generation, slug);

-- Read by the members page and `GET .../members`: who belongs to an organization, with every grant as JSON.
-- One row a grantee, users and teams; `id` is `<org>/<grantee>`.
CREATE TABLE directory_members (
    generation BIGINT NOT NULL,
    id TEXT NOT NULL,
    org TEXT NOT NULL,
    grantee TEXT NOT NULL,
    is_member BIGINT NOT NULL,
    grants TEXT NOT NULL,
    since BIGINT NOT NULL,
    PRIMARY KEY (generation, id)
);
CREATE INDEX directory_members_grantee ON directory_members (generation, grantee);

-- Read wherever a person is shown by name. Never by authorization, which folds the log itself.
CREATE TABLE directory_users (
    generation BIGINT NOT NULL,
    id TEXT NOT NULL,
    org TEXT NOT NULL,
    issuer TEXT NOT NULL,
    subject TEXT NOT NULL,
    email TEXT NOT NULL,
    name TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    deactivated_at BIGINT,
    signed_in_at BIGINT,
    PRIMARY KEY (generation, id)
);
CREATE INDEX directory_users_org ON directory_users (generation, org, id);

-- Read by the projects page and by whoever names a project by its slug.
CREATE TABLE directory_projects (
    generation BIGINT NOT NULL,
    id TEXT NOT NULL,
    org TEXT NOT NULL,
    slug TEXT NOT NULL,
    name TEXT NOT NULL,
    repository TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (generation, id)
);
CREATE INDEX directory_projects_slug ON directory_projects (generation, org, slug);
CREATE INDEX directory_projects_org ON directory_projects (generation, org, id);

-- Read by the workspaces page and by whoever names a workspace by its slug. `manifest` is the canonical text.
CREATE TABLE directory_workspaces (
    generation BIGINT NOT NULL,
    id TEXT NOT NULL,
    org TEXT NOT NULL,
    project TEXT NOT NULL,
    slug TEXT NOT NULL,
    branch TEXT NOT NULL,
    manifest TEXT NOT NULL,
    manifest_digest TEXT NOT NULL,
    access_mode TEXT NOT NULL,
    created_by TEXT,
    created_at BIGINT NOT NULL,
    archived_at BIGINT,
    PRIMARY KEY (generation, id)
);
CREATE INDEX directory_workspaces_slug ON directory_workspaces (generation, org, slug);
CREATE INDEX directory_workspaces_org ON directory_workspaces (generation, org, id);
CREATE INDEX directory_workspaces_project ON directory_workspaces (generation, project, id);

-- Read with the workspace: what its runtime does, since when and why. No row before the first wake; `id` is the
-- workspace's. `services` is JSON and holds no address.
CREATE TABLE directory_runtimes (
    generation BIGINT NOT NULL,
    id TEXT NOT NULL,
    org TEXT NOT NULL,
    project TEXT NOT NULL,
    phase TEXT NOT NULL,
    stage TEXT,
    epoch BIGINT NOT NULL,
    since BIGINT NOT NULL,
    wake_cause TEXT NOT NULL,
    sleep_cause TEXT,
    queued_cause TEXT,
    failure TEXT,
    ready_at BIGINT,
    lease_until BIGINT,
    keep_awake_until BIGINT,
    keep_awake_reason TEXT,
    keep_awake_by TEXT,
    postponed TEXT,
    active_at BIGINT,
    open_streams BIGINT,
    commit_hash TEXT,
    services TEXT NOT NULL,
    PRIMARY KEY (generation, id)
);

-- Read by the links page, the handoff card and `link show`. Holds no token and no cookie. `blocked` is JSON: attempts
-- by the denial's code.
CREATE TABLE directory_links (
    generation BIGINT NOT NULL,
    id TEXT NOT NULL,
    org TEXT NOT NULL,
    project TEXT NOT NULL,
    workspace TEXT NOT NULL,
    service TEXT NOT NULL,
    phase TEXT NOT NULL,
    families TEXT NOT NULL,
    label TEXT NOT NULL,
    token_generation BIGINT NOT NULL,
    issued_by TEXT NOT NULL,
    issued_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    ended_at BIGINT,
    revoke_reason TEXT,
    wake_budget BIGINT,
    wakes_spent BIGINT NOT NULL,
    first_used_at BIGINT,
    sessions_opened BIGINT NOT NULL,
    blocked TEXT NOT NULL,
    blocked_at BIGINT,
    PRIMARY KEY (generation, id)
);
CREATE INDEX directory_links_org ON directory_links (generation, org, id);
CREATE INDEX directory_links_workspace ON directory_links (generation, workspace, id);

-- Read by operators alone: machines never reach a developer's or reviewer's screen. `placed` is JSON: what each
-- workspace takes.
CREATE TABLE directory_hosts (
    generation BIGINT NOT NULL,
    id TEXT NOT NULL,
    org TEXT NOT NULL,
    provider TEXT NOT NULL,
    machine TEXT NOT NULL,
    cpu_millicores BIGINT NOT NULL,
    memory_mib BIGINT NOT NULL,
    placed TEXT NOT NULL,
    registered_at BIGINT NOT NULL,
    retired_at BIGINT,
    PRIMARY KEY (generation, id)
);
CREATE INDEX directory_hosts_org ON directory_hosts (generation, org, id);
