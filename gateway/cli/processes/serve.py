"""`gateway serve`: runs the gateway until a signal ends it."""

import argparse
import os
import sys

import structlog

from gateway import __version__
from gateway.cli.outcome import USAGE
from gateway.cli.processes.until_signal import run_program, running_until_signal
from gateway.cli.setup.check_config import find_config
from gateway.composition.gateway import open_gateway
from gateway.composition.parts import Gateway
from gateway.config.load import load_config
from gateway.config.model import Config
from gateway.config.problems import ConfigError
from gateway.observability.heap import freeze_startup_objects, return_large_blocks
from gateway.observability.logging import configure_logging

log = structlog.get_logger(__name__)


def serve(arguments: argparse.Namespace) -> int:
    """Runs the gateway until a signal ends it. Returns the exit code, 2 for a bad configuration."""
    given = {"server.host": arguments.host, "server.port": arguments.port}
    overrides = {key: value for key, value in given.items() if value is not None}
    try:
        config = load_config(find_config(arguments.config), os.environ, overrides)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return USAGE
    configure_logging(config.log.level, config.log.format)
    return_large_blocks()
    return run_program(run_gateway, config)


async def run_gateway(config: Config) -> None:
    """Runs until SIGTERM or SIGINT, then drains and ends."""
    async with running_until_signal() as stop, open_gateway(config) as gateway:
        freeze_startup_objects()
        print(greeting(gateway), file=sys.stderr, flush=True)
        await stop.wait()
        log.info("gateway.stopping", drain_seconds=config.server.drain_timeout)
    log.info("gateway.stopped")


def greeting(gateway: Gateway) -> str:
    """Returns the lines that a person needs in the first minute: the address, the models and a first command."""
    models = [entry.name for entry in gateway.shared.config.models]
    body = f'{{"model":"{models[0]}","messages":[{{"role":"user","content":"hello"}}],"stream":true}}' if models else ""
    lines = [f"gateway {__version__} listens on {gateway.url}", f"models: {', '.join(models) or 'none'}"]
    if models:
        lines.append(f"try: curl {gateway.url}/v1/chat/completions -H 'content-type: application/json' -d '{body}'")
    return "\n".join(lines)
