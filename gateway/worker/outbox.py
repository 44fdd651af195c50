"""Passes reports on without ever delaying the replica that makes them. A newer report replaces an unsent one."""

from collections.abc import Awaitable, Callable

import trio

from gateway.domain.ids import ReplicaId
from gateway.domain.session import Report


class Outbox:
    """The latest unsent report of each replica. Reports are complete and their states only go forward, so skipping some
    loses nothing (see `lifecycle.may_follow`), and there are no more of them than replicas."""

    def __init__(self) -> None:
        self._waiting: dict[ReplicaId, Report] = {}
        self._filled = trio.Event()
        self._emptied = trio.Event()

    def put(self, report: Report) -> None:
        """Queues a report in place of an unsent one of the same replica; never blocks."""
        self._waiting[report.replica_id] = report
        self._filled.set()

    def clear(self) -> None:
        """Drops all reports, because a new session begins with the newest report of every replica."""
        self._waiting.clear()

    async def wait_empty(self) -> None:
        """Waits until every report was sent."""
        await trio.lowlevel.checkpoint()
        while self._waiting:
            await self._emptied.wait()

    async def run_sending(self, send: Callable[[Report], Awaitable[None]]) -> None:
        """Sends reports until cancelled. A report whose sending was cancelled stays."""
        while True:
            await self._filled.wait()
            self._filled = trio.Event()
            while self._waiting:
                report = next(iter(self._waiting.values()))
                await send(report)
                if self._waiting.get(report.replica_id) is report:
                    del self._waiting[report.replica_id]
            self._emptied.set()
            self._emptied = trio.Event()
