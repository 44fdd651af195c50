"""Registries that one gateway has for itself.

`base` (what they share: a clock, peer states and terms in memory), `memory` (forgets everything), `sqlite` over
`sqlite_file` (one file that survives a kill at any moment).
"""
