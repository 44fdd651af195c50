"""`gateway check-config`: reports every problem of a configuration, with its path and line, and warns of files that do
not match it."""

import argparse
import os
import sys
from pathlib import Path
from typing import Final

from gateway.cli.outcome import OK, USAGE
from gateway.config.load import load_config
from gateway.config.problems import ConfigError

DEFAULT_CONFIG: Final = Path("config.toml")


def find_config(named: Path | None) -> Path | None:
    """Returns the named file, or else `config.toml` in this folder, or None for the built-in defaults."""
    if named is not None:
        return named
    return DEFAULT_CONFIG if DEFAULT_CONFIG.is_file() else None


def check_config(arguments: argparse.Namespace) -> int:
    """Prints `ok`, or all problems of a configuration on standard error. Returns the exit code, 2 for problems.

    Warnings go to standard error as well and are no problems.
    """
    try:
        config = load_config(find_config(arguments.file), os.environ)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return USAGE
    from gateway.composition.file_warnings import read_file_warnings  # here, since a bad file needs none of it

    for warning in read_file_warnings(config):
        print(f"warning: {warning}", file=sys.stderr)
    print("ok")
    return OK
