"""Hands reports over without ever holding up the replica that makes them: a newer report overtakes an unsent one."""

import trio

from gateway.domain.ids import ReplicaId
from gateway.domain.session import Report


class Outbox:
    """The latest unsent report of each replica. Reports are complete and their states only go forward, so skipping
    some loses nothing (see `lifecycle.may_follow`), and the size is bounded by the number of replicas."""

    def __init__(self) -> None:
        self._waiting: dict[ReplicaId, Report] = {}
        self._filled = trio.Event()

    def put(self, report: Report) -> None:
        self._waiting[report.replica_id] = report
        self._filled.set()

    async def run_sending(self, reports: trio.MemorySendChannel[Report]) -> None:
        """Runs until cancelled. A report whose sending was cancelled stays for `offer`."""
        while True:
            await self._filled.wait()
            self._filled = trio.Event()
            while self._waiting:
                report = next(iter(self._waiting.values()))
                await reports.send(report)
                if self._waiting[report.replica_id] is report:
                    del self._waiting[report.replica_id]

    def offer_nowait(self, reports: trio.MemorySendChannel[Report]) -> None:
        """At shutdown: sends what the receiver takes at once. A new boot id stands in for what it does not take."""
        try:
            for report in self._waiting.values():
                reports.send_nowait(report)
        except (trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
            pass
