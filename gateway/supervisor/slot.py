"""Keeps the process of one number running: it restarts a dead one, and replaces one for a reload."""

import signal
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Final

import structlog
import trio

from gateway.domain.pacing import Backoff
from gateway.supervisor.child import RETIRE, Child
from gateway.worker.process.spawn import describe_exit

log = structlog.get_logger(__name__)

PAUSE_FIRST_SECONDS: Final = 0.1
PAUSE_MAX_SECONDS: Final = 10.0
STABLE_SECONDS: Final = 10.0
"""How long a process has to serve, for its end to count as the first one."""


class Slot:
    """The place of one process, which one child after another takes."""

    def __init__(
        self, number: int, start: Callable[[], AbstractContextManager[Child]], failed: Callable[[str], None]
    ) -> None:
        """`failed` is called if the first child ends before it serves. Then the slot ends."""
        self.number = number
        self.ready = trio.Event()
        """Set when the first child serves."""
        self._start = start
        self._failed = failed
        self._child: Child | None = None
        self._retiring: Child | None = None
        """The child that a reload replaces."""
        self._successor = trio.Event()
        """Set when a child serves that a reload does not replace."""
        self._stopping = trio.Event()
        self._backoff = Backoff(PAUSE_FIRST_SECONDS, PAUSE_MAX_SECONDS)

    async def run(self) -> None:
        """Runs children one after another. Returns after `stop`, when the last one has ended."""
        while not self._stopping.is_set():
            with self._start() as child:
                code, served_seconds = await self._watch(child)
            if self._stopping.is_set() or child is self._retiring:
                continue
            if not self.ready.is_set():
                self._failed(f"process {self.number} {describe_exit(code)} before it was ready; see its lines above")
                return
            await self._pause(code, served_seconds)

    async def _watch(self, child: Child) -> tuple[int, float]:
        """Waits for the child's end. Returns its exit code and how long it has served."""
        self._child, ready_at = child, list[float]()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._record_ready, child, ready_at)
            code = await child.wait()
            nursery.cancel_scope.cancel()
        self._child = None
        return code, trio.current_time() - ready_at[0] if ready_at else 0.0

    async def _record_ready(self, child: Child, ready_at: list[float]) -> None:
        await child.wait_ready()
        ready_at.append(trio.current_time())
        log.info("process.ready", process=self.number, pid=child.pid)
        self.ready.set()
        if child is not self._retiring:
            self._successor.set()

    async def _pause(self, code: int, served_seconds: float) -> None:
        if served_seconds >= STABLE_SECONDS:
            self._backoff.reset()
        seconds = self._backoff.next_seconds()
        log.error("process.ended", process=self.number, how=describe_exit(code), restart_seconds=seconds)
        with trio.move_on_after(seconds):
            await self._stopping.wait()

    async def replace(self) -> None:
        """Has the child leave its clients to the others and end. Returns once its successor serves."""
        self._successor = trio.Event()
        self._retiring = self._child
        if self._child is not None:
            self._child.send_signal(RETIRE)
        await self._successor.wait()

    def stop(self) -> None:
        """Has the child drain and end. No other one follows."""
        self._stopping.set()
        if self._child is not None:
            self._child.send_signal(signal.SIGTERM)
