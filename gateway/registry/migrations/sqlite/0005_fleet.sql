-- What gateways say many times a second lives in the process of the one gateway that an embedded registry serves.
DROP TABLE demand;
DROP TABLE leases;

ALTER TABLE replicas ADD COLUMN desired_version INTEGER NOT NULL DEFAULT 0;  -- of the state in which `desired` changed
ALTER TABLE replicas ADD COLUMN broken TEXT;                                 -- why it is of no use; NULL: it is not
ALTER TABLE replicas ADD COLUMN lost INTEGER NOT NULL DEFAULT 0;             -- it went with its worker
ALTER TABLE events ADD COLUMN epoch INTEGER;                                 -- of the leader whose plan it was
