"""The end of a command: its exit code, and one line on standard error if it failed."""

import sys
from typing import Final

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2


def print_error(message: str) -> None:
    """Prints one line to standard error, with the name of the program before it."""
    print(f"gateway: {message}", file=sys.stderr)
