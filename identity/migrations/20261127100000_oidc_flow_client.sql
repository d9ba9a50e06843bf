-- Who reads it: envforge-identity's callback. A sign-in remembers through which of our clients it was begun: `web`, or `gateway` on the way
-- to a workspace. One text for SQLite and PostgreSQL.

ALTER TABLE oidc_flows ADD COLUMN client TEXT NOT NULL DEFAULT 'web';
