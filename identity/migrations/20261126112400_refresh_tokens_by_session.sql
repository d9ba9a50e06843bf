-- Read when a session ends, by logout, by a newer one in its place or by removal: its tokens are revoked by their session.
CREATE INDEX credential_refresh_tokens_by_session ON credential_refresh_tokens (session_id);
