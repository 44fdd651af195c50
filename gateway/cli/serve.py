"""`gateway serve`: the gateway until a signal ends it."""

import argparse
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Final

import structlog
import trio

from gateway import __version__
from gateway.app import Gateway, open_gateway
from gateway.cli import FAILED, OK, USAGE, complain
from gateway.cli.check_config import find_config
from gateway.config.load import load_config
from gateway.config.model import Config
from gateway.config.problems import ConfigError
from gateway.local_state import StartupError
from gateway.observability.logging import configure_logging
from gateway.registry.protocol import RegistryError

log = structlog.get_logger(__name__)

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


def serve(arguments: argparse.Namespace) -> int:
    given = {"server.host": arguments.host, "server.port": arguments.port}
    overrides = {key: value for key, value in given.items() if value is not None}
    try:
        config = load_config(find_config(arguments.config), os.environ, overrides)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return USAGE
    configure_logging(config.log.level, config.log.format)
    return _run(config)


def _run(config: Config) -> int:
    try:
        trio.run(run_gateway, config)
    except (Exception, BaseExceptionGroup) as error:
        causes = list(_leaves(error))
        for cause in causes:
            if isinstance(cause, StartupError | RegistryError):
                complain(str(cause))
        if any(not isinstance(cause, StartupError | RegistryError) for cause in causes):
            log.exception("gateway.crashed")
            complain("stopped by an error of its own; the log above says more")
        return FAILED
    return OK


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


async def run_gateway(config: Config) -> None:
    """Runs until SIGTERM or SIGINT, then drains and ends. A second signal ends at once: the kernel takes the backends
    along (they ask for it at their start)."""
    stop = trio.Event()
    with trio.open_signal_receiver(*STOP_SIGNALS) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(_watch_signals, signals, stop))
            async with open_gateway(config) as gateway:
                print(greeting(gateway), file=sys.stderr, flush=True)
                await stop.wait()
                log.info("gateway.stopping", drain_seconds=config.server.drain_timeout)
            nursery.cancel_scope.cancel()
    log.info("gateway.stopped")


async def _watch_signals(signals: AsyncIterator[int], stop: trio.Event) -> None:
    async for number in signals:
        if stop.is_set():
            os._exit(128 + number)
        stop.set()


def greeting(gateway: Gateway) -> str:
    """What a person needs to know in the first minute."""
    models = [entry.name for entry in gateway.config.models]
    body = f'{{"model":"{models[0]}","messages":[{{"role":"user","content":"hello"}}],"stream":true}}' if models else ""
    lines = [f"gateway {__version__} listens on {gateway.url}", f"models: {', '.join(models) or 'none'}"]
    if models:
        lines.append(f"try: curl {gateway.url}/v1/chat/completions -H 'content-type: application/json' -d '{body}'")
    return "\n".join(lines)
