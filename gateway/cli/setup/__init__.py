"""Commands that prepare an installation and need no running gateway.

In reading order: `check_config` finds and checks a configuration file, and `migrate` brings a PostgreSQL registry up
to date.
"""
