"""Loops that keep the fleet in its desired state. Events only wake them; each loop looks at the whole state.

In reading order: `leader_election` (who plans), `reconciler` (reads the state, plans, writes), `health_monitor` with
`node_health` (what silence of a node means), `failure_reporter` (replicas found to be broken), `load_requests`
(loads that an admin asked for), `resource_estimates` (how much models take), `plan_outcome` and `fleet_status` (what
is known of the whole fleet); `sessions/` (workers at this gateway), `peers/` (the other gateways).
"""
