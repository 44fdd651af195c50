"""Commands about the machines and replicas of a running fleet.

In reading order: `status` shows the whole fleet, `nodes` administers machines, and `logs` shows the output of a
replica. `status_tables` turns the status document into rows.
"""
