"""The registry in PostgreSQL: one database for a fleet of any number of gateways.

In reading order: `registry` (the methods), `pool` (bounded connections, a whole transaction at a time), `schema`
(migrations), `sql` and `rows` (statements and records), `peer_sync` (what gateways tell each other), `listener`
(hears of new versions), `reserve_slot` with `pick_sql` (strict mode), `errors` (what is told of a server that
fails).
"""
