-- Read by auditors through the API: who did what, on which surface, why, when, with which outcome. One row an event, or
-- a kind of denied attempts; `ordinal` counts the rows of one commit.
CREATE TABLE audit_rows (
    generation BIGINT NOT NULL,
    position BIGINT NOT NULL,
    ordinal BIGINT NOT NULL,
    org TEXT NOT NULL,
    recorded_at BIGINT NOT NULL,
    actor_kind TEXT NOT NULL,
    actor_id TEXT,
    actor_name TEXT NOT NULL,
    surface TEXT NOT NULL,
    event_type TEXT NOT NULL,
    subject TEXT,
    project TEXT,
    workspace TEXT,
    link TEXT,
    command TEXT NOT NULL,
    commit_id TEXT NOT NULL,
    correlation TEXT NOT NULL,
    causation TEXT,
    outcome TEXT NOT NULL,
    code TEXT,
    attempts BIGINT,
    summary TEXT NOT NULL,
    PRIMARY KEY (generation, position, ordinal)
);
CREATE INDEX audit_rows_org ON audit_rows (generation, org, position, ordinal);
CREATE INDEX audit_rows_workspace ON audit_rows (generation, workspace, position, ordinal);

-- Read by the audit projector alone: what a thing is called and where it belongs, so that a row can say so.
CREATE TABLE audit_subjects (
    generation BIGINT NOT NULL,
    id TEXT NOT NULL,
    project TEXT,
    workspace TEXT,
    name TEXT NOT NULL,
    PRIMARY KEY (generation, id)
);
