"""What each write of the registry means: pure functions from the stored rows to those that should be stored.

`replicas` (reports, plans, terms of the leader), `nodes` (registration, sessions, edits), `models` (specs and
requests to unload), `diff` (which rows and lines of the audit trail follow).
"""
