"""The vocabulary of the gateway: immutable records and pure rules, no I/O.

In reading order: `ids`, `builtin_backends`, `model_spec` and `artifact`, `lifecycle` (states of a replica), `cluster`
(nodes, replicas, demand), `resources`, `routability` (which replicas may take a request), `activity`, `peers` (what
gateways tell and ask), `plan_write`, `session` (what a worker and a gateway tell each other), `inference` (a request
and its answer), `errors`; `host_port`, `special_addresses`, `texts`, `causes`, `pacing`.
"""
