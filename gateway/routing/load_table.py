"""Who uses which replica now: open leases, and nothing that is counted up and down (R4 to R9)."""

from collections.abc import Callable, Container
from dataclasses import dataclass, field

from gateway.domain.ids import ModelName, ReplicaId, RequestId
from gateway.routing.eligibility import Candidate
from gateway.routing.lease import Lease


@dataclass
class ReplicaUse:
    """A replica's load as the picker reads it."""

    leases: set[Lease] = field(default_factory=set)
    last_used: float = float("-inf")
    full_until: float = float("-inf")

    @property
    def in_flight(self) -> int:
        return len(self.leases)


@dataclass(frozen=True)
class LoadStatistics:
    in_flight: dict[ReplicaId, int]
    """Open leases of each replica that has any."""
    in_flight_by_model: dict[ModelName, int]


class LoadTable:
    """The leases of this gateway. All methods are synchronous: no other task can see a half-done change."""

    def __init__(self) -> None:
        self._uses: dict[ReplicaId, ReplicaUse] = {}
        self.on_release: Callable[[ModelName], None] = lambda _model: None
        """Called after a lease ended, when its slot is free already. Set once, by admission."""

    def use_of(self, replica_id: ReplicaId) -> ReplicaUse:
        use = self._uses.get(replica_id)
        if use is None:
            use = self._uses[replica_id] = ReplicaUse()
        return use

    def lease(self, candidate: Candidate, request_id: RequestId, now: float) -> Lease:
        """Opens a lease; the same scope that took it has to release it."""
        lease = Lease(candidate, request_id, now, self._end)
        use = self.use_of(candidate.replica_id)
        use.leases.add(lease)
        use.last_used = now
        return lease

    def _end(self, lease: Lease) -> None:
        use = self.use_of(lease.candidate.replica_id)
        use.leases.discard(lease)
        if not lease.refused:
            use.full_until = float("-inf")
        self.on_release(lease.candidate.model)

    def note_full(self, lease: Lease, until: float) -> None:
        """The replica refused: it is taken as full until `until`, or until another lease on it ends here."""
        lease.refused = True
        self.use_of(lease.candidate.replica_id).full_until = until

    def keep_only(self, known: Container[ReplicaId]) -> None:
        """Forgets replicas that are not in the fleet any more and have no lease here."""
        for replica_id in [each for each, use in self._uses.items() if each not in known and not use.leases]:
            del self._uses[replica_id]

    def statistics(self) -> LoadStatistics:
        in_flight = {replica_id: use.in_flight for replica_id, use in self._uses.items() if use.leases}
        by_model: dict[ModelName, int] = {}
        for use in self._uses.values():
            for lease in use.leases:
                by_model[lease.candidate.model] = by_model.get(lease.candidate.model, 0) + 1
        return LoadStatistics(in_flight, by_model)
