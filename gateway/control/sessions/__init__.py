"""The sessions of workers at this gateway: desired sets go out, reports come in.

In reading order: `sessions` (all of them, one per node), `node_session` (one of them), `readiness_gate` (a replica
counts as ready once this gateway has got an answer from it), `load_progress` (how far loads are), `log_streams`
(readers of backends' output).
"""
