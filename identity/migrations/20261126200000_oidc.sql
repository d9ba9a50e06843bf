-- Who reads these tables: envforge-identity alone, when somebody signs in or out through an OpenID provider. Nothing of them is copied into
-- the log or a read model. Instants are Unix milliseconds. One text for SQLite and PostgreSQL.

-- Sign-ins under way in browsers: read once, by the callback.
CREATE TABLE oidc_flows (
    -- Hexadecimal SHA-256 of `state` and of the browser's cookie.
    state_hash TEXT PRIMARY KEY,
    browser_hash TEXT NOT NULL,
    nonce TEXT NOT NULL,
    verifier TEXT NOT NULL,
    organization TEXT,
    return_to TEXT NOT NULL,
    expires_at BIGINT NOT NULL
);
CREATE INDEX oidc_flows_by_expiry ON oidc_flows (expires_at);

-- Which session at the provider a session of ours came from: read by its logout and by deactivations.
CREATE TABLE oidc_sessions (
    session_id TEXT PRIMARY KEY,
    user_id TEXT NOT NULL,
    org_id TEXT NOT NULL,
    issuer TEXT NOT NULL,
    subject TEXT NOT NULL,
    provider_session TEXT,
    client TEXT NOT NULL,
    opened_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL
);
CREATE INDEX oidc_sessions_by_subject ON oidc_sessions (issuer, subject);
CREATE INDEX oidc_sessions_by_provider_session ON oidc_sessions (issuer, provider_session);
CREATE INDEX oidc_sessions_by_expiry ON oidc_sessions (expires_at);

-- Sessions and people that the provider has ended: read when a session is opened, so that none opens beside its own end.
CREATE TABLE oidc_endings (
    -- Hexadecimal SHA-256 of issuer and session, or of issuer and subject.
    what TEXT PRIMARY KEY,
    -- What was signed in before this instant is over.
    ended_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL
);
CREATE INDEX oidc_endings_by_expiry ON oidc_endings (expires_at);

-- Messages of the provider that were carried out: read when one comes, so that a repeated one does nothing.
CREATE TABLE oidc_messages (
    message TEXT PRIMARY KEY,
    expires_at BIGINT NOT NULL
);
CREATE INDEX oidc_messages_by_expiry ON oidc_messages (expires_at);

-- Cookies of browsers that are signed in: read with each of their requests.
CREATE TABLE browser_sessions (
    -- Hexadecimal SHA-256 of the cookie.
    cookie_hash TEXT PRIMARY KEY,
    session_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    org_id TEXT NOT NULL,
    -- As in the log, where the session was opened.
    surface TEXT NOT NULL,
    client TEXT NOT NULL,
    authenticated_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL
);
CREATE INDEX browser_sessions_by_session ON browser_sessions (session_id);
CREATE INDEX browser_sessions_by_expiry ON browser_sessions (expires_at);
