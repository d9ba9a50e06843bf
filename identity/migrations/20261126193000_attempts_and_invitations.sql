-- Who reads these tables: envforge-identity alone, when somebody signs in or accepts an invitation. One text for SQLite and
-- PostgreSQL. Instants are Unix milliseconds.

-- Failed attempts to sign in, which all API processes count together; forgotten after an hour of quiet.
CREATE TABLE credential_attempts (
    -- `account:` with the SHA-256 of what was typed as address, or `address:` with the network it came from.
    key TEXT PRIMARY KEY,
    failures BIGINT NOT NULL,
    last_at BIGINT NOT NULL
);

CREATE INDEX credential_attempts_by_time ON credential_attempts (last_at);

-- Tokens of invitations that nobody accepted yet. What was offered, to whom and by whom stands in the log.
CREATE TABLE credential_invitations (
    -- Hexadecimal SHA-256 of the token. The token itself is nowhere.
    token_hash TEXT PRIMARY KEY,
    -- Who the person will be.
    user_id TEXT NOT NULL UNIQUE,
    org_id TEXT NOT NULL,
    expires_at BIGINT NOT NULL
);

CREATE INDEX credential_invitations_by_expiry ON credential_invitations (expires_at);
