-- The audit's former tables, which `audit_trail` replaced: nobody reads them. A version from before 20261127090000 that is
-- rolled back to beyond this finds no audit of its own, and cannot fold one. On SQLite the room is used for what comes next.
DROP TABLE audit_rows;
DROP TABLE audit_subjects;
DELETE FROM read_model_checkpoints WHERE read_model = 'audit';
DELETE FROM read_models WHERE name = 'audit';
