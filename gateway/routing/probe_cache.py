"""Remembers which replicas live, and runs one probe at a time per replica to learn more.

A success counts for `ttl_seconds`. Every successful call and every streamed message is one, so a replica in use is
never probed (H3). Several requests that need the same answer share one probe. The probe runs in the cache's own
nursery, so the request that started it may end without harm to the others (H4).
"""

from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Container
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import structlog
import trio

from gateway.backends.protocol import Target
from gateway.domain.cluster import ProbeOutcome
from gateway.domain.ids import ReplicaId
from gateway.routing.load_tracker import Lease

log = structlog.get_logger(__name__)

Probe = Callable[[Target], Awaitable[ProbeOutcome]]
"""Probes one replica. It limits its own time and never raises."""
ReportBroken = Callable[[ReplicaId, str], None]
"""Takes a replica that is of no use, and the reason."""

BUSY_SECONDS: Final = 1.0
"""How long a "busy" result is trusted before the replica is probed again."""
HOLD_PAUSE_SECONDS: Final = 0.5
"""The pause between two probes of a replica that still works on a cancelled request."""
HOLD_SECONDS_MAX: Final = 600.0
"""The time after which the slot of a cancelled request counts as free anyway, so that a hanging replica is detected."""
HUNG_PROBES: Final = 3
"""The number of probes that must find a replica busy, without any request on it and without a sign of life since the
first of them, before it counts as hanging."""


@dataclass
class _Known:
    """The knowledge about one replica."""

    last_contact_at: float = float("-inf")
    """The time of its last sign of life (Trio's clock, seconds)."""
    alive_at: float = float("-inf")
    """The same, or minus infinity if a failure has contradicted it since."""
    busy_until: float = float("-inf")
    idle_busy_probes: int = 0


@dataclass
class _Running:
    """A running probe."""

    done: trio.Event = field(default_factory=trio.Event)
    outcome: ProbeOutcome = ProbeOutcome.UNREACHABLE
    """The result, valid once `done` is set. It is the result for a probe that failed itself."""


@dataclass(frozen=True)
class ProbeStatistics:
    """The probes by outcome, and the requests that needed no probe of their own."""

    outcomes: dict[ProbeOutcome, int]
    hits: int
    """The number of requests that needed no probe."""
    shared: int
    """The number of requests that waited for a probe of another request."""
    running: int
    """The number of probes that are under way now."""


class ProbeCache:
    """Knows which replicas live. Use `open_probe_cache` to make one."""

    def __init__(
        self,
        nursery: trio.Nursery,
        probe: Probe,
        *,
        ttl_seconds: float,
        in_flight: Callable[[ReplicaId], int],
        report_broken: ReportBroken,
    ) -> None:
        """`report_broken` is called with each replica that lives and is of no use, so that it is replaced."""
        self._nursery = nursery
        self._probe = probe
        self._ttl_seconds = ttl_seconds
        self._in_flight = in_flight
        self._known = defaultdict[ReplicaId, _Known](_Known)
        self._running: dict[Target, _Running] = {}
        """The running probes by target: if a replica has a new address, it is probed there, whatever runs at the old
        one."""
        self._outcomes: Counter[ProbeOutcome] = Counter()
        self._hits = 0
        self._shared = 0
        self.report_broken = report_broken

    def record_alive(self, replica_id: ReplicaId) -> None:
        """Records that the replica answered something just now."""
        known = self._known[replica_id]
        known.last_contact_at = known.alive_at = trio.current_time()
        known.busy_until = float("-inf")
        known.idle_busy_probes = 0

    def record_failure(self, replica_id: ReplicaId) -> None:
        """Records that a call failed, so that nothing known before counts any more."""
        self._known[replica_id].alive_at = float("-inf")

    def last_contact_at(self, replica_id: ReplicaId) -> float:
        """Returns the time of its last sign of life (Trio's clock, seconds), or minus infinity if there was none."""
        return self._known[replica_id].last_contact_at

    def was_silent_when_idle(self, replica_id: ReplicaId) -> bool:
        """Returns whether a probe since its last sign of life found it busy although it had no request."""
        return self._known[replica_id].idle_busy_probes > 0

    def hold_until_answered(self, lease: Lease, target: Target) -> None:
        """Takes over a lease whose call was cancelled on a backend that may continue to compute. The slot is free only
        when Health answers again, or when the replica is gone (backend-protocol.md B3)."""
        self._nursery.start_soon(self._hold, lease, target)

    async def _hold(self, lease: Lease, target: Target) -> None:
        with lease:
            with trio.move_on_after(HOLD_SECONDS_MAX):
                while await self.ask(target) is ProbeOutcome.BUSY:  # noqa: ASYNC110 - another machine's event
                    await trio.sleep(HOLD_PAUSE_SECONDS)

    async def check(self, target: Target) -> ProbeOutcome:
        """Returns what is known of the replica, or else the result of a probe. Without a probe there is no
        checkpoint."""
        known = self._known[target.replica_id]
        now = trio.current_time()
        if now - known.alive_at < self._ttl_seconds:
            self._hits += 1
            return ProbeOutcome.ALIVE
        if now < known.busy_until:
            self._hits += 1
            return ProbeOutcome.BUSY
        return await self.ask(target)

    async def ask(self, target: Target) -> ProbeOutcome:
        """Returns the result of a probe now, whatever is known. It shares a running probe. Never raises."""
        running = self._running.get(target)
        if running is None:
            running = self._running[target] = _Running()
            self._nursery.start_soon(self._run_probe, target, running)
        else:
            self._shared += 1
        await running.done.wait()
        return running.outcome

    async def _run_probe(self, target: Target, running: _Running) -> None:
        idle_before, began_at = not self._in_flight(target.replica_id), trio.current_time()
        try:
            running.outcome = await self._probe(target)
        except Exception:
            log.exception("probe.failed", replica_id=target.replica_id)
        finally:
            del self._running[target]
            running.done.set()
        self._learn(target.replica_id, running.outcome, began_at, idle=idle_before)

    def _learn(self, replica_id: ReplicaId, outcome: ProbeOutcome, began_at: float, *, idle: bool) -> None:
        self._outcomes[outcome] += 1
        known = self._known[replica_id]
        if outcome is ProbeOutcome.ALIVE:
            self.record_alive(replica_id)
            return
        if known.last_contact_at <= began_at:
            known.alive_at = float("-inf")  # No request may be sent there because of earlier knowledge.
        if outcome is ProbeOutcome.BUSY:
            known.busy_until = trio.current_time() + BUSY_SECONDS
            self._record_busy(replica_id, known, idle=idle)

    def _record_busy(self, replica_id: ReplicaId, known: _Known, *, idle: bool) -> None:
        """Records that the replica is busy. This proves nothing if it has a request, and it does not clear earlier
        evidence either: a request that waits for a hanging replica is no sign of life."""
        known.idle_busy_probes += idle
        if idle and known.idle_busy_probes == HUNG_PROBES:
            log.warning("probe.replica_hangs", replica_id=replica_id)
            self.report_broken(replica_id, "it hangs: busy without any request")

    def keep_only(self, fleet: Container[ReplicaId]) -> None:
        """Forgets replicas that are not in the fleet any more."""
        for replica_id in [each for each in self._known if each not in fleet]:
            del self._known[replica_id]

    def statistics(self) -> ProbeStatistics:
        """Returns the numbers of probes, and of requests that needed none, since this gateway started."""
        return ProbeStatistics(dict(self._outcomes), self._hits, self._shared, len(self._running))


@asynccontextmanager
async def open_probe_cache(
    probe: Probe, *, ttl_seconds: float, in_flight: Callable[[ReplicaId], int], report_broken: ReportBroken
) -> AsyncIterator[ProbeCache]:
    """Opens a probe cache. Leaving the context cancels its running probes."""
    async with trio.open_nursery() as nursery:
        yield ProbeCache(nursery, probe, ttl_seconds=ttl_seconds, in_flight=in_flight, report_broken=report_broken)
        nursery.cancel_scope.cancel()
