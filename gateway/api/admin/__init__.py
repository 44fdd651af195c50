"""The admin API: the fleet, its models and its nodes, for people and for other gateways.

In reading order: `app` (Quart without its traps) and `routes` (health, metrics, status, explain), `documents` and
`load_status` (what is shown, pure), `models` with `model_body`, `nodes` with `body_fields`, `decisions`,
`replica_logs`, `artifacts`, `registration` (how a worker joins), `metrics_source`, `peer_client` (asks the gateway
that has something).
"""
