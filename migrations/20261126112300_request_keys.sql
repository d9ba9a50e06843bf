-- Read by the API before it decides a request with an `Idempotency-Key`: for which request (SHA-256, hexadecimal, without
-- secrets) the command that follows from the key was first used. One row a key, shared by all API processes. Not a read
-- model: no projector writes it and no rebuild touches it. `done_position` is set where the request was carried out and
-- changed nothing; what changed something stands in its stream. Rows are forgotten 30 days after `first_at`; what
-- changed something is found in `command_ids` from then on, which the log alone fills and which is never forgotten.
CREATE TABLE request_keys (
    command_id TEXT NOT NULL PRIMARY KEY,
    request_digest TEXT NOT NULL,
    first_at BIGINT NOT NULL,
    done_position BIGINT
);
CREATE INDEX request_keys_first_at ON request_keys (first_at);
