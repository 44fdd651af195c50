-- How much of each replica each gateway has in use, as it last published it. Only gateways that share a fleet publish.
-- Nothing in here bumps the version or leaves an event.
CREATE TABLE leases (
    gateway_id TEXT NOT NULL,
    replica_id TEXT NOT NULL,                    -- may name a forgotten replica; ids are never used again
    open       INTEGER NOT NULL CHECK (open >= 0),
    last_used  REAL,                             -- seconds since the epoch; NULL: never
    PRIMARY KEY (replica_id, gateway_id)         -- in this order: a pick looks up the rows of one replica
);

-- A pick in SQL reads one model's replicas, and takes models.revision for what a replica's revision has to be.
CREATE INDEX replicas_by_model ON replicas (model);
