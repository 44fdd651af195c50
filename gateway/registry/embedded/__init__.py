"""Registries that belong to a single gateway.

In reading order: `base` (the shared part: a clock, peer states and terms in memory), `memory` (forgets everything),
`sqlite` over `sqlite_file` (one file that survives a kill at any moment) and `refused_writes` (what is known while that
file takes no writes).
"""
