"""The registry in PostgreSQL: one database for a fleet of any number of gateways."""
