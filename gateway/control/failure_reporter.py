"""Reports replicas found broken, so that the leader replaces them.

The request path only reports and continues. It need not know which gateway leads.
"""

from collections.abc import Container
from dataclasses import dataclass, field
from typing import NamedTuple, NoReturn

import structlog
import trio

from gateway.concurrency import Wake
from gateway.domain.ids import ReplicaId
from gateway.registry.protocol import RETRY_SECONDS, NodeRegistry, RegistryError

log = structlog.get_logger(__name__)


class FailureReport(NamedTuple):
    """The reason why a replica is broken, and whether it was lost with its worker."""

    because: str
    lost: bool


@dataclass
class FailureReporter:
    """Writes to the registry which replicas this gateway has found broken, so that the leader replaces them."""

    registry: NodeRegistry
    _unwritten: dict[ReplicaId, FailureReport] = field(default_factory=dict, init=False)
    _known: dict[ReplicaId, bool] = field(default_factory=dict, init=False)
    """The replicas that were reported. The value is True if the replica was lost with its worker."""
    _wake: Wake = field(default_factory=Wake, init=False)

    def report_broken(self, replica_id: ReplicaId, because: str) -> None:
        """Reports that the replica is broken and has to be replaced."""
        self._record(replica_id, because, lost=False)

    def report_lost(self, replica_id: ReplicaId, because: str) -> None:
        """Reports that the process of the replica is gone although its worker does not say so. The worker is probably
        gone, too."""
        self._record(replica_id, because, lost=True)

    def _record(self, replica_id: ReplicaId, because: str, *, lost: bool) -> None:
        if self._known.get(replica_id) in (True, lost):
            return
        self._known[replica_id] = lost
        self._unwritten[replica_id] = FailureReport(because, lost)
        self._wake.set()

    def keep_only(self, fleet: Container[ReplicaId]) -> None:
        """Forgets replicas that are not in the fleet any more."""
        self._known = {each: lost for each, lost in self._known.items() if each in fleet or each in self._unwritten}

    async def run(self) -> NoReturn:
        """Writes each report to the registry, again and again until that succeeds; runs until cancelled."""
        while True:
            await self._wake.wait()
            while self._unwritten:
                replica_id, failure = next(iter(self._unwritten.items()))
                try:
                    await self.registry.record_broken(replica_id, failure.because, lost=failure.lost)
                except RegistryError as error:
                    log.log(error.log_level, "failure_report.write_failed", replica_id=replica_id, error=str(error))
                    await trio.sleep(RETRY_SECONDS)
                else:
                    log.warning("control.replica_broken", replica_id=replica_id, because=failure.because)
                    if self._unwritten[replica_id] is failure:
                        del self._unwritten[replica_id]
