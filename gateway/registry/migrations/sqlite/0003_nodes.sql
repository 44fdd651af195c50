-- A node has three authors: the holder of its session writes link, an admin approved, draining and overrides, its worker
-- declared and capacity. labels, max_replicas_per_model and free_vram_bytes are what follows from all of that.
ALTER TABLE nodes RENAME COLUMN status TO link;
ALTER TABLE nodes ADD COLUMN approved INTEGER NOT NULL DEFAULT 1;
ALTER TABLE nodes ADD COLUMN draining INTEGER NOT NULL DEFAULT 0;
ALTER TABLE nodes ADD COLUMN capacity TEXT NOT NULL DEFAULT '{}';   -- JSON: the fields of Capacity
ALTER TABLE nodes ADD COLUMN since REAL NOT NULL DEFAULT 0;         -- seconds since the epoch
ALTER TABLE nodes ADD COLUMN declared TEXT NOT NULL DEFAULT '{}';   -- JSON: the fields of Declared
ALTER TABLE nodes ADD COLUMN overrides TEXT NOT NULL DEFAULT '{}';  -- JSON: the fields of NodeOverrides

-- So far a node was what its worker declared. A row whose labels nobody can read stays unreadable: no node is lost.
UPDATE nodes
SET declared = json_object('labels', json(labels), 'max_replicas_per_model', max_replicas_per_model)
WHERE json_valid(labels);
