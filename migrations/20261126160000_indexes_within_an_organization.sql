-- Read by the members page and by whoever asks for the roles of teams: without it every organization was walked.
CREATE INDEX directory_members_org ON directory_members (generation, org, id);

-- Read by auditors who ask for one actor, one link, one correlation or a span of time: what is rare in a large
-- organization is found without walking all of its rows. Rows without such an id are not asked for by it.
CREATE INDEX audit_rows_actor ON audit_rows (generation, org, actor_id, position, ordinal) WHERE actor_id IS NOT NULL;
CREATE INDEX audit_rows_link ON audit_rows (generation, org, link, position, ordinal) WHERE link IS NOT NULL;
CREATE INDEX audit_rows_correlation ON audit_rows (generation, org, correlation, position, ordinal);
CREATE INDEX audit_rows_recorded ON audit_rows (generation, org, recorded_at, position, ordinal);
