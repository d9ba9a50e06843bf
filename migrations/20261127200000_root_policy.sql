-- Read with the organization's policy: whether there is a way to root at all, and how long a root window is open at most. The
-- defaults are those of organizations whose policy was last changed before there were root windows.
ALTER TABLE directory_organizations ADD COLUMN root_policy TEXT NOT NULL DEFAULT 'disabled';
ALTER TABLE directory_organizations ADD COLUMN root_window_max_ms BIGINT NOT NULL DEFAULT 1800000;
