-- What an embedded gateway has to remember. Columns carry the names of the records in gateway/domain.
-- States and statuses have no CHECK: a newer gateway may know more of them, and rows.py reads those as "not routable".

-- Bumped inside every transaction that changes one of the tables below it, demand and events excepted.
CREATE TABLE state_version (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    version  INTEGER NOT NULL
);
INSERT INTO state_version VALUES (1, 0);

CREATE TABLE leadership (
    only_row   INTEGER PRIMARY KEY CHECK (only_row = 1),
    gateway_id TEXT,
    epoch      INTEGER NOT NULL
);
INSERT INTO leadership VALUES (1, NULL, 0);

CREATE TABLE models (
    name             TEXT PRIMARY KEY NOT NULL,
    source           TEXT NOT NULL,              -- 'file' or 'api'
    revision         TEXT NOT NULL,              -- for people who look: always computed from spec
    spec             TEXT NOT NULL,              -- JSON: every other field of ModelSpec
    failure_cause    TEXT,
    failure_attempts INTEGER,
    failure_retry_at REAL,                       -- seconds since the epoch
    CHECK ((failure_cause IS NULL) = (failure_attempts IS NULL)),
    CHECK ((failure_cause IS NULL) = (failure_retry_at IS NULL))
);

CREATE TABLE nodes (
    id                     TEXT PRIMARY KEY NOT NULL,
    name                   TEXT NOT NULL UNIQUE,
    boot_id                TEXT NOT NULL,
    status                 TEXT NOT NULL,
    labels                 TEXT NOT NULL,        -- JSON object of strings
    max_replicas_per_model INTEGER NOT NULL,
    free_vram_bytes        INTEGER,
    session                INTEGER NOT NULL,     -- grows with each session; a write that names an older one is void
    gateway_id             TEXT                  -- who holds the session; NULL: nobody
);

CREATE TABLE replicas (
    id        TEXT PRIMARY KEY NOT NULL,
    model     TEXT NOT NULL,                     -- may name a removed model: the planner ends its replicas
    node_id   TEXT NOT NULL REFERENCES nodes (id),
    slot      INTEGER NOT NULL,
    revision  TEXT NOT NULL,
    desired   TEXT NOT NULL,                     -- written by the leader only
    observed  TEXT NOT NULL,                     -- written by the session holder only
    parallel  INTEGER NOT NULL,
    address   TEXT,
    pid       INTEGER,
    error     TEXT,
    exit_code INTEGER,
    since     REAL NOT NULL,                     -- seconds since the epoch
    UNIQUE (node_id, model, slot)                -- an ended row keeps its slot until it is forgotten
);

CREATE TABLE demand (
    gateway_id TEXT NOT NULL,
    model      TEXT NOT NULL,
    waiting    INTEGER NOT NULL,
    since      REAL NOT NULL,                    -- seconds since the epoch
    PRIMARY KEY (gateway_id, model)
);

-- The audit trail: one row for each change of the tables above, demand excepted. Only the newest are kept.
CREATE TABLE events (
    id      INTEGER PRIMARY KEY AUTOINCREMENT,
    at      REAL NOT NULL,                       -- seconds since the epoch
    kind    TEXT NOT NULL,
    subject TEXT NOT NULL,
    detail  TEXT NOT NULL
);
