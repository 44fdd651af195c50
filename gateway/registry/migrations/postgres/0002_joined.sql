-- oldest: 1
-- Of the agent whose session began last, whatever has registered since; NULL: none ever did.
ALTER TABLE nodes ADD COLUMN joined_boot_id text;
UPDATE nodes SET joined_boot_id = boot_id;
