"""The exchange of state between this gateway and the other gateways of its fleet, through the registry.

In reading order: `peer_table` (the newest states), `sync` (publishes and reads states, and detects when this gateway is
cut off), `publisher` (makes this gateway's state, and applies those of its peers).
"""
