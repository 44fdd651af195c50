"""Runs a gateway in this process, alone or as one of several with a supervisor."""

import sys
from dataclasses import dataclass
from pathlib import Path

import structlog
import trio

from gateway.api.http.listener.retirement import wait_first
from gateway.cli.processes.greeting import greeting
from gateway.cli.processes.until_signal import run_program, running_until_signal
from gateway.composition.config_reload import ConfigReload, Read, run_file_watch
from gateway.composition.gateway import open_gateway
from gateway.composition.parts import Gateway
from gateway.concurrency import Wake
from gateway.config.model import Config
from gateway.observability.heap import freeze_startup_objects, return_large_blocks
from gateway.process_place import ProcessPlace
from gateway.supervisor.child import RETIRE
from gateway.supervisor.readiness import READY, STOPPING, Notifier

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class ConfigSource:
    """The origin of the configuration, for a gateway that reads it again."""

    read: Read
    file: Path | None
    """The file. It is None if there is none, and the defaults are used."""


def serve_here(config: Config, source: ConfigSource, place: ProcessPlace | None, notifier: Notifier) -> int:
    """Runs the gateway until a signal ends it. Returns the exit code. `place` is that of a process with a
    supervisor."""
    return_large_blocks()
    return run_program(_run_gateway, config, source, place, notifier)


async def _run_gateway(config: Config, source: ConfigSource, place: ProcessPlace | None, notifier: Notifier) -> None:
    """Runs until SIGTERM or SIGINT, then drains and ends."""
    wanted = Wake()
    async with (
        # SIGHUP has another meaning for a process with a supervisor.
        running_until_signal(wanted.set if place is None else None) as stop,
        open_gateway(config, place=place) as gateway,
    ):
        freeze_startup_objects()
        if place is None:
            print(greeting(config, gateway.url), file=sys.stderr, flush=True)
        notifier.notify(READY)
        await (_reload_until(stop, gateway, source, wanted) if place is None else _wait_stop_or_retire(gateway, stop))
        notifier.notify(STOPPING)
        log.info("gateway.stopping", drain_seconds=config.server.drain_timeout)
    log.info("gateway.stopped")


async def _reload_until(stop: trio.Event, gateway: Gateway, source: ConfigSource, wanted: Wake) -> None:
    """Reloads the configuration whenever that is wanted, until the stop."""
    config, registry = gateway.shared.config, gateway.shared.registry
    reload = ConfigReload(config, source.read, authenticator=gateway.authenticator, registry=registry)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reload.run, wanted)
        if config.server.watch_config and source.file is not None:
            nursery.start_soon(run_file_watch, source.file, wanted)
        await stop.wait()
        nursery.cancel_scope.cancel()


async def _wait_stop_or_retire(gateway: Gateway, stop: trio.Event) -> None:
    """Waits for the stop, or for the signal to retire and until the clients have left."""
    retirement = gateway.shared.retirement

    async def retire() -> None:
        """Waits for the signal, then until no client is surprised by a drain."""
        with trio.open_signal_receiver(RETIRE) as signals:
            async for _ in signals:
                log.info("gateway.retiring")
                retirement.begun.set()
                await retirement.over.wait()
                return

    await wait_first(stop.wait, retire)
