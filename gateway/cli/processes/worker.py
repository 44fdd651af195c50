"""`gateway worker`: runs the agent of a further machine until a signal ends it."""

import argparse
import os
import sys
from functools import partial
from pathlib import Path
from typing import Final

import structlog
import trio

from gateway import __version__
from gateway.cli.outcome import USAGE, print_error
from gateway.cli.processes.until_signal import run_program, running_until_signal
from gateway.cli.setup.check_config import find_config
from gateway.composition.joiner import Join
from gateway.composition.worker import run_worker
from gateway.config.load import load_config
from gateway.config.model import Config
from gateway.config.problems import ConfigError
from gateway.observability.heap import freeze_startup_objects
from gateway.observability.logging import configure_logging

log = structlog.get_logger(__name__)

TOKEN_VARIABLE: Final = "GATEWAY_JOIN_TOKEN"  # noqa: S105 - the name of a variable
TOKEN_BYTES_MAX: Final = 64 * 1024


class BadUsage(Exception):
    """The command was called with wrong arguments. The message says what to give instead."""


def worker(arguments: argparse.Namespace) -> int:
    """Joins this machine to a fleet and runs its agent until a signal. Returns the exit code, 2 for bad usage."""
    given = {"worker.name": arguments.name, "worker.advertise": arguments.advertise}
    overrides = {key: value for key, value in given.items() if value is not None}
    try:
        config = load_config(find_config(arguments.config), os.environ, overrides)
        join = Join(_urls(arguments.join), _token(arguments.token_file))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return USAGE
    except BadUsage as error:
        print_error(str(error))
        return USAGE
    configure_logging(config.log.level, config.log.format)
    return run_program(_run_until_signal, config, join)


async def _run_until_signal(config: Config, join: Join) -> None:
    async with running_until_signal(_say_nothing_is_reloaded) as stop, trio.open_nursery() as nursery:
        name = await nursery.start(partial(run_worker, config, join, stop))
        freeze_startup_objects()
        print(f"gateway worker {__version__} has joined as {name}", file=sys.stderr, flush=True)


def _say_nothing_is_reloaded() -> None:
    """Answers SIGHUP, which ends a process that does not handle it."""
    log.warning("worker.reload_unsupported", remedy="restart the worker to read its configuration again")


def _urls(text: str) -> tuple[str, ...]:
    urls = tuple(url.strip().rstrip("/") for url in text.split(",") if url.strip())
    if not urls or not all(url.startswith(("http://", "https://")) for url in urls):
        raise BadUsage(f"--join takes the URLs of gateways, such as http://gateway-1:8080, got {text!r}")
    return urls


def _token(file: Path | None) -> str:
    """Reads the join token from the file or the environment, never from an argument, which all local users see."""
    if file is None:
        token = os.environ.get(TOKEN_VARIABLE, "").strip()
        if not token:
            raise BadUsage(f"the join token is missing: give --token-file FILE or set {TOKEN_VARIABLE}")
        return token
    try:
        with file.open("rb") as opened:
            token = opened.read(TOKEN_BYTES_MAX).decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BadUsage(f"the join token can't be read from {file}: {error}") from error
    if not token or not token.isprintable() or " " in token:
        raise BadUsage(f"{file} has to hold one token of visible ASCII characters and nothing else")
    return token
