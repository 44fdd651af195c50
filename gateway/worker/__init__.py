"""The agent of one machine: makes its processes what the desired set says, and reports what it sees.

In reading order: `agent` (one task per replica), `replica` (the life of one), `startup` (from a process to a loaded
model), `session` and `outbox` (its end of a session), `settings`, `identity` (who it is after a restart),
`capacity_reader`; `process/`, `artifacts/`, `hostinfo/`.
"""
