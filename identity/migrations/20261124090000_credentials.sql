-- Who reads these tables: envforge-identity alone, when somebody signs in or refreshes a session. Nothing of them is
-- ever copied into the log or a read model. Instants are Unix milliseconds. One text for SQLite and PostgreSQL.

CREATE TABLE credential_accounts (
    user_id TEXT PRIMARY KEY,
    org_id TEXT NOT NULL,
    -- Lower-cased; what people sign in with. Users are keyed on their id, never on this.
    email TEXT NOT NULL UNIQUE,
    password_hash TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    password_changed_at BIGINT NOT NULL
);

CREATE TABLE credential_refresh_tokens (
    -- Hexadecimal SHA-256 of the token. The token itself is nowhere.
    token_hash TEXT PRIMARY KEY,
    -- Every token that followed from one login; revoked together.
    family TEXT NOT NULL,
    session_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    org_id TEXT NOT NULL,
    issued_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    used_at BIGINT,
    revoked_at BIGINT
);

CREATE INDEX credential_refresh_tokens_by_family ON credential_refresh_tokens (family);
CREATE INDEX credential_refresh_tokens_by_user ON credential_refresh_tokens (user_id);
CREATE INDEX credential_refresh_tokens_by_expiry ON credential_refresh_tokens (expires_at);
