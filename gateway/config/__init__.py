"""Configuration: a TOML file, the environment and the command line become one frozen, checked record."""
