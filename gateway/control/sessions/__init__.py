"""Sessions of workers at this gateway: desired sets go out, reports come in.

`sessions` (all of them, one per node), `node_session` (one), `readiness_gate` (a replica counts as ready once this
gateway has had an answer from it), `load_progress` (how far loads are), `log_streams` (readers of backends' output).
"""
