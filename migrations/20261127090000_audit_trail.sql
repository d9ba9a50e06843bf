-- The audit, stored so that folding it stays cheap however large it is: a row is written at the end of one table, and what finds
-- it again is written once for each part of 4,096 positions, at the end of another. It is a read model of its own,
-- `audit_trail`, which the projector fills from the start of the log: `audit_rows` and `audit_subjects` stay as they are for
-- a version that is rolled back to, and a later migration removes them.

-- Read by auditors through the API: who did what, on which surface, why, when, with which outcome. One row an event, or a
-- kind of denied attempts; `ordinal` counts the rows of one commit. `entry` is a JSON object with everything else.
CREATE TABLE audit_trail (
    generation BIGINT NOT NULL,
    position BIGINT NOT NULL,
    ordinal BIGINT NOT NULL,
    org TEXT NOT NULL,
    recorded_at BIGINT NOT NULL,
    entry TEXT NOT NULL,
    PRIMARY KEY (generation, position, ordinal)
);

-- Read by the same questions: parts of 4,096 positions that are complete, and when their rows were recorded. Rows after the
-- last of them stand in no postings yet.
CREATE TABLE audit_parts (
    generation BIGINT NOT NULL,
    part BIGINT NOT NULL,
    recorded_from BIGINT NOT NULL,
    recorded_to BIGINT NOT NULL,
    PRIMARY KEY (generation, part)
);

-- Read by the same questions: in which places of a part the rows of an actor, a workspace and so on stand. `slot` is the part
-- times 256 plus the first byte of the term's hash; `postings` are the terms with that byte: `tag:1,4,9-12;`.
CREATE TABLE audit_postings (
    generation BIGINT NOT NULL,
    slot BIGINT NOT NULL,
    postings TEXT NOT NULL,
    PRIMARY KEY (generation, slot)
);

-- Read by questions for the beginning of a type: every type and action that there is.
CREATE TABLE audit_types (
    generation BIGINT NOT NULL,
    id TEXT NOT NULL,
    first_position BIGINT NOT NULL,
    PRIMARY KEY (generation, id)
);

-- Read by the audit projector alone: what a thing is called and where it belongs, so that a row can say so.
CREATE TABLE audit_names (
    generation BIGINT NOT NULL,
    id TEXT NOT NULL,
    project TEXT,
    workspace TEXT,
    name TEXT NOT NULL,
    PRIMARY KEY (generation, id)
);

INSERT INTO read_models (name, generation, last_generation) VALUES ('audit_trail', 1, 1);
INSERT INTO read_model_checkpoints (read_model, generation, position) VALUES ('audit_trail', 1, 0);
