"""The admin API: the fleet, its models and its nodes, for people and for other gateways.

In reading order: `app` (Quart with safe defaults) and `routes` (health, metrics, status, explain), `documents` and
`load_status` (the answers, pure), `models` with `model_body`, `nodes` with `body_fields`, `decisions`, `replica_logs`,
`artifacts`, `registration` (of workers), `metrics_source`, `peer_client` (asks the gateway that has a resource),
`process_metrics` (of all processes of one gateway), `about` and `openapi` (public pages that say what this is).
"""
