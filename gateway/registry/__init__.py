"""The store of the fleet's state: one protocol, several stores, one contract suite.

In reading order: `protocol` (the contract), `store` (its methods over the few primitives that each store brings),
`tables` and `rows` (what is stored, and as which columns), `row_cache` (what need not be parsed again), `peer_rows`,
`writes/` (what each write means), `embedded/` and `postgres/` (where rows live), `open`, `snapshot` (the view that
everybody else reads), `clock`.
"""
