-- What is known of a model besides its spec: how much one replica takes, and when somebody last wished it unloaded.
ALTER TABLE models ADD COLUMN requirement TEXT;  -- JSON: the fields of Requirement; NULL: nothing is known
ALTER TABLE models ADD COLUMN unload_at REAL;    -- seconds since the epoch; NULL: never
