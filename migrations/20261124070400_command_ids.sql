-- Read by the write side when a client repeats a command after the log's own window for duplicates: which commits
-- answered it, and for which request (SHA-256, hexadecimal). One row a commit; a batch has several.
CREATE TABLE command_ids (
    generation BIGINT NOT NULL,
    command TEXT NOT NULL,
    position BIGINT NOT NULL,
    org TEXT NOT NULL,
    request_digest TEXT NOT NULL,
    recorded_at BIGINT NOT NULL,
    PRIMARY KEY (generation, command, position)
);
