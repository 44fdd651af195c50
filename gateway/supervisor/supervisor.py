"""All processes of one gateway: it starts them, replaces them one after another for a reload, and stops them."""

import os
import signal
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Final

import structlog
import trio

from gateway.concurrency import Wake
from gateway.config.model import Config
from gateway.data_dir import StartupError, keep_cluster_secret, prepare_data_dir
from gateway.supervisor.child import ProcessStarter
from gateway.supervisor.readiness import READY, STOPPING, Notifier
from gateway.supervisor.slot import Slot
from gateway.supervisor.sockets import ProcessSockets, open_sockets

log = structlog.get_logger(__name__)

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Supervisor:
    """The processes of one gateway."""

    def __init__(
        self,
        sockets: ProcessSockets,
        slots: Callable[[Callable[[str], None]], Sequence[Slot]],
        find_obstacle: Callable[[], str],
        greet: Callable[[], None],
    ) -> None:
        """`slots` makes them with the function that they call with the reason of a failed start. `find_obstacle`
        returns why the configuration cannot be reloaded, or nothing. `greet` is called once all processes serve."""
        self._sockets = sockets
        self._slots = slots(self._fail)
        self._find_obstacle = find_obstacle
        self._greet = greet
        self._reload = Wake()
        self._is_stopping = False
        self._failure = ""

    async def run(self) -> None:
        """Runs until SIGTERM or SIGINT, then until all processes have drained.

        Raises `StartupError` if one of them does not start.
        """
        with trio.open_signal_receiver(*SIGNALS) as signals:
            async with trio.open_nursery() as helpers:
                helpers.start_soon(self._obey, signals)
                helpers.start_soon(self._greet_once_ready)
                async with trio.open_nursery() as running:
                    for slot in self._slots:
                        running.start_soon(slot.run)
                helpers.cancel_scope.cancel()
        if self._failure:
            raise StartupError(self._failure)

    async def _obey(self, signals: AsyncIterator[int]) -> None:
        """Obeys signals. A second one that ends the supervisor ends it at once, and the kernel the processes with
        it."""
        async for number in signals:
            if number == signal.SIGHUP:
                self._reload.set()
            elif self._is_stopping:
                os._exit(128 + number)
            else:
                log.info("processes.stopping")
                self._stop()

    def _fail(self, reason: str) -> None:
        self._failure = self._failure or reason
        self._stop()

    def _stop(self) -> None:
        """Stops all processes. The sockets close first, so that no client waits where nobody accepts it any more."""
        self._is_stopping = True
        self._sockets.close()
        for slot in self._slots:
            slot.stop()

    async def _greet_once_ready(self) -> None:
        for slot in self._slots:
            await slot.ready.wait()
        self._greet()
        while True:
            await self._reload.wait()
            await self._replace_all()

    async def _replace_all(self) -> None:
        """Replaces one process after the other, unless the configuration does not allow it."""
        if obstacle := await trio.to_thread.run_sync(self._find_obstacle):
            log.error("reload.refused", error=obstacle)
            return
        log.info("reload.begun", processes=len(self._slots))
        for slot in self._slots:
            await slot.replace()
        log.info("reload.done")


async def run_processes(
    config: Config,
    count: int,
    *,
    options: Sequence[str],
    environ: Mapping[str, str],
    notifier: Notifier,
    find_obstacle: Callable[[], str],
    greet: Callable[[str], None],
) -> None:
    """Runs `count` processes of `gateway serve` with these options until a signal ends them.

    `find_obstacle` returns why the configuration cannot be reloaded as it is now, or nothing. `greet` gets the
    gateway's URL once all processes serve. Raises `StartupError`.
    """
    prepare_data_dir(config.server.data_dir)
    if config.auth.cluster_secret is None:
        keep_cluster_secret(config.server.data_dir)
    with ExitStack() as held:
        sockets = held.enter_context(open_sockets(config, count))
        folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="gateway-")))
        starter = ProcessStarter(options, environ, folder)

        def slots(failed: Callable[[str], None]) -> list[Slot]:
            """Returns the slots of all processes."""
            places = [sockets.place_of(number) for number in range(count)]
            return [Slot(place.number, partial(starter.start, place), failed) for place in places]

        def greet_all() -> None:
            """Tells people and systemd."""
            greet(sockets.url)
            notifier.notify(READY)

        try:
            await Supervisor(sockets, slots, find_obstacle, greet_all).run()
        finally:
            notifier.notify(STOPPING)
