"""The composition roots: each opens its parts in order, hands each what it needs, and closes them in reverse.

`gateway` (`open_gateway`) is the root of `gateway serve`. It opens `parts`, which are `shared`, `routing`, `control`
and the HTTP API (`http_sockets`, `http_settings`, `http_api`), and starts `services`, among them `embedded_worker` and
`session_server`. `config_reload` applies a changed file to it.
`worker` (`run_worker`) is the root of `gateway worker`, and `joiner` reaches the gateways that it may join. Workers get
the file of `tiny_model`. `migration` (`migrate_postgres`) is the root of `gateway migrate`, and `file_warnings` are for
`gateway check-config`.
"""
