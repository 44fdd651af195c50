"""The logs and metrics of a running gateway.

In reading order: `logging` (one line per event, set up once), `metrics` (the Prometheus series), `heap` (makes the
memory that the system shows be the memory that is in use).
"""
