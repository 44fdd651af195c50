"""The agent of one machine. It converges the machine's processes to the desired set, and reports what it observes.

In reading order: `agent` (one task per replica), `replica` (the life of one), `startup` (from a process to a loaded
model), `membership` (one session after the other), `session` and `outbox` (its end of a session), `settings`,
`identity` (who it is after a restart), `capacity_reader`; `process/`, `artifacts/`, `hostinfo/`.
"""
