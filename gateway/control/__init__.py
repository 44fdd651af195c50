"""Loops that keep the fleet as it is wanted. Events only wake them; each looks at the whole state.

In reading order: `leader_election` (who plans), `reconciler` (reads the state, plans, writes), `health_monitor` with
`node_health` (what silence of a node means), `failure_reporter` (replicas found to be broken), `load_requests`
(loads that an admin asked for), `resource_estimates` (how much models take), `claims` (strict mode's way to the
registry); `sessions/` (workers at this gateway), `peers/` (the other gateways).
"""
