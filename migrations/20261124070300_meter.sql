-- Read by usage queries and by billing: what one service used in one UTC hour (counted from 1970) of one wake. Rows are
-- written over by a deterministic fold, never added to. `id` is `<workspace>/<epoch>/<hour>/<service>`.
CREATE TABLE meter_usage (
    generation BIGINT NOT NULL,
    id TEXT NOT NULL,
    org TEXT NOT NULL,
    project TEXT NOT NULL,
    workspace TEXT NOT NULL,
    epoch BIGINT NOT NULL,
    hour BIGINT NOT NULL,
    service TEXT NOT NULL,
    cause_kind TEXT NOT NULL,
    cause_by TEXT,
    cause_name TEXT,
    link TEXT,
    service_ms BIGINT NOT NULL,
    millicore_ms BIGINT NOT NULL,
    mib_ms BIGINT NOT NULL,
    PRIMARY KEY (generation, id)
);
CREATE INDEX meter_usage_org ON meter_usage (generation, org, hour);

-- Read by the meter projector when it goes on after a restart, and for the running estimate: the meter of each runtime
-- as the domain folds it. `since` to `services` are empty while nothing is counted; `services` is JSON.
CREATE TABLE meter_runtimes (
    generation BIGINT NOT NULL,
    id TEXT NOT NULL,
    org TEXT NOT NULL,
    project TEXT NOT NULL,
    cause TEXT,
    epoch BIGINT,
    since BIGINT,
    heartbeat BIGINT,
    lease_until BIGINT,
    services TEXT,
    PRIMARY KEY (generation, id)
);
CREATE INDEX meter_runtimes_org ON meter_runtimes (generation, org, id);
