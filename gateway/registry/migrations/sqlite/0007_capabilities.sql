-- What a backend said of a model's current revision when it had loaded it.
ALTER TABLE models ADD COLUMN capabilities TEXT;  -- JSON: the fields of Capabilities; NULL: nothing is known
