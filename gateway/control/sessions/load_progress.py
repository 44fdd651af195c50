"""Tracks how far the loads of this gateway's workers are, and how they ended. Nothing of it is stored (L11)."""

from collections.abc import Callable, Container
from dataclasses import dataclass
from enum import StrEnum

from gateway.domain.cluster import Progress
from gateway.domain.ids import ReplicaId
from gateway.domain.lifecycle import COMING_UP, Observed
from gateway.domain.session import Report


class LoadOutcome(StrEnum):
    """How the load of a replica ended."""

    READY = "ready"
    FAILED = "failed"
    STOPPED = "stopped"
    """The replica was stopped on request before it was ready."""


@dataclass
class _Load:
    began: float
    """The time of its first report (Trio's clock, seconds)."""
    newest: Report
    fetch_from: tuple[float, int] | None = None
    """The time of the first report with a number of bytes, and that number."""

    def update(self, report: Report, now: float) -> None:
        """Takes the newest report. `now` is the time of Trio's clock in seconds."""
        self.newest = report
        if self.fetch_from is None and report.done_bytes is not None:
            self.fetch_from = now, report.done_bytes

    def progress(self, now: float) -> Progress:
        """Returns how far the load is, with the average rate since bytes were first reported."""
        done, total = self.newest.done_bytes, self.newest.total_bytes
        if done is None or self.fetch_from is None:
            return Progress(done, total)
        since, done_before = self.fetch_from
        rate = (done - done_before) / (now - since) if now > since and done > done_before else None
        return Progress(done, total, rate)


OnLoadEnd = Callable[[ReplicaId, LoadOutcome, float | None], None]
"""Takes how a load ended, and how many seconds it took since its first report (None if that was its last)."""


class LoadProgress:
    """Tracks the loads of this gateway's workers. Times are seconds of Trio's clock."""

    def __init__(self, on_end: OnLoadEnd = lambda _replica_id, _outcome, _seconds: None) -> None:
        """`on_end` is called with each load that has ended."""
        self._on_end = on_end
        self._loads: dict[ReplicaId, _Load] = {}
        self._ended: set[ReplicaId] = set()
        """A report may come again: each load ends once."""

    def record(self, report: Report, now: float) -> None:
        """Records the report of a replica that has not ended as far as the registry knows."""
        replica_id = report.replica_id
        if replica_id in self._ended:
            return
        if report.observed in COMING_UP:
            self._loads.setdefault(replica_id, _Load(now, report)).update(report, now)
            return
        self._ended.add(replica_id)
        load = self._loads.pop(replica_id, None)
        if load is not None or report.observed is Observed.FAILED:
            self._on_end(replica_id, _outcome(report.observed), now - load.began if load is not None else None)

    def progress_of(self, replica_id: ReplicaId, now: float) -> Progress | None:
        """Returns how far the load is, or None if no report of such a load has come. The rate is measured until now, so
        it falls when the load stalls."""
        load = self._loads.get(replica_id)
        return None if load is None else load.progress(now)

    def all_progress(self, now: float) -> dict[ReplicaId, Progress]:
        """Returns how far each load is at `now` (Trio's clock, seconds)."""
        return {replica_id: load.progress(now) for replica_id, load in self._loads.items()}

    def keep_only(self, replicas: Container[ReplicaId]) -> None:
        """Forgets all replicas but these."""
        self._loads = {each: load for each, load in self._loads.items() if each in replicas}
        self._ended = {each for each in self._ended if each in replicas}


def _outcome(observed: Observed) -> LoadOutcome:
    match observed:
        case Observed.READY:
            return LoadOutcome.READY
        case Observed.FAILED:
            return LoadOutcome.FAILED
        case _:
            return LoadOutcome.STOPPED
