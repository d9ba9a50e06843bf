-- Who reads this table: envforge-identity alone, whenever a program shows the secret of a service token. One text for SQLite
-- and PostgreSQL. Instants are Unix milliseconds. What a token may do, and which of its secrets still count, stands in the log.
CREATE TABLE credential_service_tokens (
    -- Hexadecimal SHA-256 of the secret. The secret itself is nowhere.
    secret_hash TEXT PRIMARY KEY,
    token_id TEXT NOT NULL,
    org_id TEXT NOT NULL,
    -- Which of the token's secrets it is; 1 is the first.
    generation BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    -- To the hour.
    used_at BIGINT,
    UNIQUE (token_id, generation)
);

CREATE INDEX credential_service_tokens_by_organization ON credential_service_tokens (org_id);
CREATE INDEX credential_service_tokens_by_expiry ON credential_service_tokens (expires_at);
