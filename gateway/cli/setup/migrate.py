"""`gateway migrate`: brings the tables of a PostgreSQL registry up to date, while gateways work with them."""

import argparse
import os
import sys

from gateway.cli.outcome import USAGE
from gateway.cli.processes.until_signal import run_program
from gateway.cli.setup.check_config import find_config
from gateway.composition.migration import migrate_postgres
from gateway.config.load import load_config
from gateway.config.model import RegistrySection
from gateway.config.problems import ConfigError


def migrate_command(arguments: argparse.Namespace) -> int:
    """Applies the missing migrations to the configured registry. Returns the exit code, 2 for a bad configuration."""
    try:
        config = load_config(find_config(arguments.config), os.environ)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return USAGE
    return run_program(apply_migrations, config.registry)


async def apply_migrations(registry: RegistrySection) -> None:
    """Migrates a PostgreSQL registry and prints what was applied; leaves others alone. Raises `RegistryError`."""
    scheme, _, _ = registry.url.partition(":")
    if scheme not in {"postgresql", "postgres"}:
        print(f"nothing to do: a {scheme} registry is brought up to date by the gateway that opens it")
        return
    done = await migrate_postgres(registry.url)
    numbers = ", ".join(map(str, done.applied))
    print(f"{done.server}: applied {numbers}" if done.applied else f"{done.server}: up to date, nothing to do")
