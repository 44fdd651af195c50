"""Loops that keep the fleet in its desired state. Events only wake them; each loop looks at the whole state.

In reading order: `leader_election` (decides which gateway plans), `reconciler` (reads the state, plans, writes),
`health_monitor` with `node_health` (decides what the silence of a node means), `failure_reporter` (reports broken
replicas), `load_requests` (loads that an admin requested), `resource_estimates` (memory that models need),
`plan_outcome` (what the last plan could not bring about), `fleet_status` (what clients and admins are told of it);
`sessions/` (workers at this gateway), `peers/` (the other gateways).
"""
