"""What a gateway costs and adds between a client and an upstream, side by side with another checkout and with peers.

In reading order: `run` has the rounds and prints the tables, `sections` says what is measured. `servers` starts what is
measured, `gateways` and `peers` know how each kind is started, `processes` reads CPU time and memory. `programs` makes
the upstream and the load generator. Where there is no compiler, `python_upstream` and `python_load` take their places,
and `http_reader` reads answers for the latter. `load_result` has what a load generator has measured, and `summary` is
the arithmetic.
"""
