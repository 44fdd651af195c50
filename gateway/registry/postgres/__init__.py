"""The registry in PostgreSQL: one database for a fleet of any number of gateways.

In reading order: `registry` (the methods), `pool` (a limited number of connections, each used for whole transactions),
`schema` (migrations), `sql` and `rows` (statements and records), `peer_sync` (the exchange of peer states), `listener`
(waits for new versions), `session` (a connection for exchanges), `reserve_slot` with `pick_sql` (strict mode),
`errors` (the messages about a server that fails).
"""
