"""Backend processes of this machine: how they are started, watched and ended.

In reading order: `command` and `environment` (what is run, with which variables), `spawn` and `launcher` (a process
that cannot outlive its worker), `ports` with `port_locks`, `output` (its last lines), `journal` (processes that a
successor has to end), `memory_watch` and `resource_usage`.
"""
