"""Reads the configuration: a TOML file, the environment and the command line become one frozen, checked record.

In reading order: `model` (every key), `fields` and `units` (single values), `rules` (values together), `load` over
`partial`, `environment`, `secret_files` and `toml_lines`, `problems` and `messages` (what the user reads), `changes`
(what a changed file changes in a gateway that runs).
"""
