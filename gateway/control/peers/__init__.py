"""The exchange of state between this gateway and the other gateways of its fleet, through the registry.

`peer_table` (what was said last), `sync` (publishes and reads, and detects when it is cut off), `publisher` (what is
published, and who is told what was read).
"""
