-- Read with the organization's policy: who gives links (role tokens joined by commas), how long people stay signed in at
-- most, and the allowed identity providers (a JSON list; empty: all). The defaults are those of organizations whose policy
-- was last changed before there were such settings.
ALTER TABLE directory_organizations ADD COLUMN link_issuers TEXT NOT NULL DEFAULT 'owner,admin,developer,mod';
ALTER TABLE directory_organizations ADD COLUMN session_lifetime_max_ms BIGINT NOT NULL DEFAULT 2592000000;
ALTER TABLE directory_organizations ADD COLUMN identity_providers TEXT NOT NULL DEFAULT '[]';
