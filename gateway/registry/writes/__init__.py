"""The meaning of each write of the registry: pure functions from the stored rows to those that should be stored.

In reading order: `replicas` (reports, plans, terms of the leader), `nodes` (registration, sessions, edits), `models`
(specs and requests to unload), `diff` (which rows and lines of the audit trail follow).
"""
