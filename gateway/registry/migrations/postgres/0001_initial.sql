-- oldest: 1
-- What a fleet of gateways shares. Columns carry the names of the records in gateway/domain.
-- States and statuses have no CHECK: a newer gateway may know more of them, and rows.py reads those as "not routable".
-- JSON columns are json and not jsonb, which writes numbers anew (1e16) and takes no \u0000: a revision follows from
-- the text. Times are seconds since the epoch, of this server's clock.

-- One row: the number of the newest migration, and of the oldest whose gateways can work with these tables.
CREATE TABLE schema_version (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    version  bigint NOT NULL,
    oldest   bigint NOT NULL
);
INSERT INTO schema_version (version, oldest) VALUES (0, 0);

-- One row, locked first by every transaction that changes one of the tables below it (gateways excepted) and bumped
-- with its commit, so that versions are in the order of the commits (a sequence is not).
CREATE TABLE state_version (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    version  bigint NOT NULL
);
INSERT INTO state_version (version) VALUES (0);

CREATE TABLE leadership (
    only_row   boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    gateway_id text,
    epoch      bigint NOT NULL,
    expires_at double precision NOT NULL         -- of the term; no part of the version
);
INSERT INTO leadership (epoch, expires_at) VALUES (0, 0);

CREATE TABLE models (
    name             text PRIMARY KEY,
    source           text NOT NULL,              -- 'file' or 'api'
    revision         text NOT NULL,              -- for queries: always computed from spec
    spec             json NOT NULL,              -- every other field of ModelSpec
    failure_cause    text,
    failure_attempts bigint,
    failure_retry_at double precision,
    requirement      json,                       -- the fields of Requirement; NULL: nothing is known
    unload_at        double precision            -- NULL: never
);

CREATE TABLE nodes (
    id                     text PRIMARY KEY,
    name                   text NOT NULL UNIQUE,
    boot_id                text NOT NULL,
    link                   text NOT NULL,        -- written by the holder of the session
    labels                 json NOT NULL,        -- strings; what follows from declared and overrides
    max_replicas_per_model bigint NOT NULL,
    free_vram_bytes        bigint,
    approved               boolean NOT NULL,
    draining               boolean NOT NULL,
    capacity               json NOT NULL,
    since                  double precision NOT NULL,
    session                bigint NOT NULL,      -- grows with each session; a write that names an older one is void
    gateway_id             text,                 -- who holds the session; NULL: nobody
    declared               json NOT NULL,        -- what the worker says
    overrides              json NOT NULL         -- what an admin says
);

CREATE TABLE replicas (
    id              text PRIMARY KEY,
    model           text NOT NULL,               -- may name a removed model: the planner ends its replicas
    node_id         text NOT NULL REFERENCES nodes (id),
    slot            bigint NOT NULL,
    revision        text NOT NULL,
    desired         text NOT NULL,               -- written by the leader only
    observed        text NOT NULL,               -- written by the session holder only
    parallel        bigint NOT NULL,
    address         text,
    pid             bigint,
    error           text,
    exit_code       bigint,
    since           double precision NOT NULL,
    desired_version bigint NOT NULL,             -- of the state in which `desired` changed
    broken          text,                        -- why it is of no use; NULL: it is not
    lost            boolean NOT NULL,            -- it went with its worker
    UNIQUE (node_id, model, slot)                -- an ended row keeps its slot until it is forgotten
);
CREATE INDEX replicas_by_model ON replicas (model);

-- The newest bulletin of each gateway, written many times a second. Nothing in here bumps the version or notifies.
-- Each json column has the hash of its text, so that nobody is sent what he has.
CREATE TABLE gateways (
    id                 text PRIMARY KEY,
    url                text NOT NULL,
    secret_fingerprint text NOT NULL,
    seen_version       bigint NOT NULL,
    expires_at         double precision NOT NULL,
    leases             json NOT NULL,
    leases_hash        bigint NOT NULL,
    uses               json NOT NULL,
    uses_hash          bigint NOT NULL,
    demand             json NOT NULL,
    demand_hash        bigint NOT NULL,
    notes              json NOT NULL,
    notes_hash         bigint NOT NULL
) WITH (fillfactor = 50);

-- The audit trail: one row for each change that people want to know of. Only the newest are kept.
CREATE TABLE events (
    id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at      double precision NOT NULL,
    kind    text NOT NULL,
    subject text NOT NULL,
    detail  text NOT NULL,
    epoch   bigint                               -- of the leader whose plan it was; NULL: nobody planned it
);
