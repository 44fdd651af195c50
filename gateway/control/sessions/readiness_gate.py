"""Accepts `ready` only once this gateway has got an answer from the replica at its advertised address.

The worker reaches the replica on its own machine, which says nothing about the way from here. Otherwise the first
requests would discover a wrong `worker.advertise` or a firewall.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

import trio

from gateway.backends.protocol import Target
from gateway.concurrency import Wake
from gateway.domain.cluster import ProbeOutcome
from gateway.domain.ids import ReplicaId
from gateway.domain.session import Report

ANSWER_SECONDS_MAX: Final = 15.0
"""How long a replica that is ready according to its worker may take to answer this gateway."""
PAUSE_SECONDS: Final = 0.2
"""The pause between two probes of it."""


@dataclass
class ReadinessGate:
    """The replicas of one session that are ready according to their worker and have not answered this gateway yet."""

    probe: Callable[[Target], Awaitable[ProbeOutcome]]
    target_of: Callable[[Report], Target | None]
    """Returns the target of a report, or None if the replica is not known yet, or not any more."""
    accept: Callable[[Report], None]
    report_broken: Callable[[ReplicaId, str], None]
    _asked: dict[ReplicaId, trio.CancelScope] = field(default_factory=dict, init=False)
    _waiting: list[Report] = field(default_factory=list, init=False)
    _wake: Wake = field(default_factory=Wake, init=False)

    def __len__(self) -> int:
        """Returns how many replicas are being probed."""
        return len(self._asked) + len(self._waiting)

    def ask(self, report: Report) -> None:
        """Has the replica probed. Its report is accepted once the replica has answered."""
        self._waiting.append(report)
        self._wake.set()

    def forget(self, replica_id: ReplicaId) -> None:
        """Stops probing the replica, because its worker has sent another report since."""
        self._waiting = [report for report in self._waiting if report.replica_id != replica_id]
        if (scope := self._asked.pop(replica_id, None)) is not None:
            scope.cancel()

    async def run(self) -> None:
        """Runs until cancelled. A slow replica holds up no other."""
        async with trio.open_nursery() as nursery:
            while True:
                await self._wake.wait()
                for report in self._waiting:
                    self._asked[report.replica_id] = scope = trio.CancelScope()
                    nursery.start_soon(self._check, report, scope)
                self._waiting.clear()

    async def _check(self, report: Report, scope: trio.CancelScope) -> None:
        """Probes the replica until it answers. A report of a replica that never becomes known is dropped: this gateway
        gets it again with the next hello if the replica exists."""
        outcome: ProbeOutcome | None = None
        with scope:
            with trio.move_on_after(ANSWER_SECONDS_MAX):
                while True:
                    if (target := self.target_of(report)) is not None:
                        outcome = outcome or ProbeOutcome.UNREACHABLE
                        outcome = await self.probe(target)
                    if outcome is ProbeOutcome.ALIVE:
                        self.accept(report)
                        break
                    await trio.sleep(PAUSE_SECONDS)
            if outcome is not None and outcome is not ProbeOutcome.ALIVE:
                self.report_broken(
                    report.replica_id,
                    f"its worker calls it ready, but from this gateway it is {outcome} at {report.address}; "
                    "worker.advertise has to name a host that gateways reach",
                )
        if self._asked.get(report.replica_id) is scope:
            del self._asked[report.replica_id]
