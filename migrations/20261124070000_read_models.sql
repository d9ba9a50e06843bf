-- Read by every query and projector: which generation of a read model answers, and how many generations it has had.
-- A rebuild fills a new generation beside the live one; changing `generation` here switches all readers at once.
CREATE TABLE read_models (
    name TEXT NOT NULL PRIMARY KEY,
    generation BIGINT NOT NULL,
    last_generation BIGINT NOT NULL
);

-- Read by projectors and by whoever waits for a position: how far a generation has folded which log. Written in the
-- transaction of the rows that it accounts for. `digest` is the SHA-256 of the commit at `position`, in hexadecimal.
CREATE TABLE read_model_checkpoints (
    read_model TEXT NOT NULL,
    generation BIGINT NOT NULL,
    position BIGINT NOT NULL,
    log_identity TEXT,
    digest TEXT,
    PRIMARY KEY (read_model, generation)
);

INSERT INTO read_models (name, generation, last_generation) VALUES
    ('directory', 1, 1), ('audit', 1, 1), ('meter', 1, 1), ('command_ids', 1, 1);

INSERT INTO read_model_checkpoints (read_model, generation, position) VALUES
    ('directory', 1, 0), ('audit', 1, 0), ('meter', 1, 0), ('command_ids', 1, 0);
