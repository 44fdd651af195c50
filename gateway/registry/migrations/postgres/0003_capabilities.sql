-- oldest: 1
-- What a backend said of a model's current revision when it had loaded it. JSON: the fields of Capabilities; NULL:
-- nothing is known.
ALTER TABLE models ADD COLUMN capabilities text;
