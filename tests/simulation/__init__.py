"""A gateway or a fleet of them, with workers and backends in one process, in virtual time, under seeded faults.

Replay one run, the same to the last scheduling step:   SEED=123 pytest tests/simulation
Many runs, spread over the cores:                       SEEDS=2000 pytest tests/simulation -n auto
Only those with two or three gateways:                  SEEDS=500 pytest tests/simulation/test_fleet_simulation.py

What is real: router, admission, load tracker, probe cache, planner, sessions, worker agents, registry (in memory), and
grpclib on both ends of every call. What is simulated: the network between them, processes, backends, clients, time.
A failure prints its seed and the last events before it.
"""
