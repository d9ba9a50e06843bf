-- Read with the organization's policy: how long service tokens live at most; zero: none is allowed. The default is that of
-- organizations whose policy was last changed before there were such tokens.
ALTER TABLE directory_organizations ADD COLUMN service_token_lifetime_max_ms BIGINT NOT NULL DEFAULT 7776000000;
