"""Shows a running gateway from outside: logs, metrics and tasks.

In reading order: `logging` (one line per event, set up once), `metrics` (the Prometheus series), `expositions` (those
of several processes in one), `heap` (makes the memory that the system shows be the memory that is in use), `task_tree`
(where each task waits, for SIGUSR1).
"""
