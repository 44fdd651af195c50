"""The `gateway` program: one parser, one module per command. A command imports what it needs only when it runs.

In reading order: `parser` has the arguments of every command. `processes` holds the commands that stay (`serve`,
`worker`, `backend`), and `setup` those that prepare an installation (`check-config`, `migrate`). The other commands
ask a running gateway through `client`: `fleet` for its machines and replicas, `models` for its models, `requests` for
answers and for the way that a request took. `table` prints rows, and `outcome` has the exit codes and the form of an
error message. `without_rich` keeps out of memory what only some commands need.
"""

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence

from gateway.cli.outcome import FAILED, print_error
from gateway.cli.parser import build_parser
from gateway.cli.without_rich import without_rich


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command that `argv` names, and returns its exit code: 0 ok, 1 failed at run time, 2 bad usage or
    configuration. An error is one clear line on stderr."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    # `gateway` alone, or with options only, serves.
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in {"-h", "--help", "--version"}):
        arguments.insert(0, "serve")
    parsed = parser.parse_args(arguments)
    module, _, function = parsed.run.partition(":")
    try:
        with without_rich():
            command: Callable[[argparse.Namespace], int] = getattr(importlib.import_module(module), function)
        return command(parsed)
    except ImportError as error:
        print_error(f"can't import what this command needs: {error}; install the package again, with its dependencies")
        return FAILED
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # Another program has closed the pipe, as in `gateway status | head`.
        sys.stderr.close()
        return FAILED
