"""The load of each replica: its open leases, and no counter that is counted up and down (R4 to R9).

A failure counts as a lease, too. It leaves a *penalty*, which expires by itself, later with every failure in a row. So
a replica that fails at once never looks idle, and the next request that tries a recovered replica finds out that it
works. This is the whole circuit breaker.

This file is longer than others because leases, penalties and the leases of peers make up one number, the load.
"""

from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from types import TracebackType
from typing import Final, Protocol, Self

import trio

from gateway.domain.activity import Usage
from gateway.domain.ids import ModelName, ReplicaId
from gateway.domain.inference import Origin
from gateway.domain.pacing import doubled_seconds
from gateway.domain.routability import Candidate
from gateway.routing.fair_queue import Share
from gateway.routing.load_index import LoadIndex

NEVER: Final = float("-inf")
FOREVER: Final = float("inf")
PENALTY_FIRST_SECONDS: Final = 1.0
"""How long the first failure counts as load. Each further failure in a row counts twice as long."""
PENALTY_MAX_SECONDS: Final = 60.0


@dataclass(eq=False, slots=True)
class Lease:
    """The right to have one request on a replica, from the pick to the last byte. The scope of that request holds it.
    Ending it is synchronous and idempotent, so no cancel can skip it (pitfall 13)."""

    candidate: Candidate
    """The replica. Strict mode may move the lease to another one before the call."""
    origin: Origin
    opened_at: float
    _end: "Callable[[Lease], None] | None"
    called: bool = False
    """Whether the replica has the request, or may have it. Before that, the request still waits for a probe of the
    replica."""
    confirmed: bool = False
    """Whether peers count the lease. In strict mode they do once the registry has confirmed the replica."""
    refused: bool = False
    """Whether the replica refused the request because it is full. Then the end of this lease frees no slot."""

    def release(self) -> None:
        """Ends the lease, so that another request can have the slot. Further calls do nothing."""
        if self._end is not None:
            end, self._end = self._end, None
            end(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        state = "open" if self._end is not None else "ended"
        return f"<Lease {state} replica={self.candidate.replica_id} request={self.origin.request_id}>"


class Peers(Protocol):
    """The other gateways, which count the leases of this one."""

    @property
    def has_peers(self) -> bool:
        """Whether there are any. A gateway alone does nothing for them."""

    def report_leases(self) -> None:
        """Takes note that a lease has begun or ended, so `LoadTracker.published` may have changed. It is called only if
        there are peers."""


class NoPeers:
    """The peers of a gateway that is alone."""

    has_peers: Final = False

    def report_leases(self) -> None:
        """Does nothing."""


@dataclass(slots=True)
class ReplicaLoad:
    """The load of one replica, as the picker reads it. Who changes one gets it from `LoadTracker.change`."""

    leases: set[Lease] = field(default_factory=set)
    at_peers: int = 0
    """The leases of this replica that peers have published."""
    last_used: float = NEVER
    ended_at: float = NEVER
    """The time at which the last lease ended."""
    last_contact_at: float = NEVER
    """The time at which the last part of an answer came."""
    full_until: float = NEVER
    refusals: int = 0
    """The number of refusals ("no free slot") in a row."""
    busy_until: float = NEVER
    failures: int = 0
    """The number of failures in a row."""
    expiries: list[float] = field(default_factory=list)
    """The time at which each penalty ends."""

    @property
    def open_leases(self) -> int:
        """The number of leases on the replica, here and at peers as far as they have published them."""
        return len(self.leases) + self.at_peers

    def changes_at(self, now: float) -> float:
        """Returns the time at which the next penalty ends, or the replica is no longer full or busy."""
        if self.full_until <= now and self.busy_until <= now and not self.expiries:
            return FOREVER
        return min((at for at in (self.full_until, self.busy_until, *self.expiries) if at > now), default=FOREVER)

    def penalties(self, now: float) -> int:
        """Returns the number of recent failures that still count as load at `now`, and forgets those that have
        expired."""
        if not self.expiries:
            return 0
        self.expiries = [expiry for expiry in self.expiries if expiry > now]
        return len(self.expiries)


@dataclass(frozen=True)
class LoadStatistics:
    """The open leases of this gateway and the failures of replicas, for metrics."""

    in_flight: dict[ReplicaId, int]
    """The number of open leases of each replica that has any."""
    in_flight_by_model: dict[ModelName, int]
    failures: dict[ReplicaId, int]
    """The number of failures in a row of each replica that has any."""


class LoadTracker:
    """The table of all leases of this gateway. The methods are synchronous, so no other task can see a half-done
    change."""

    def __init__(
        self,
        clock: Callable[[], float] = trio.current_time,
        *,
        strict: bool = False,
        peers: Peers | None = None,
        on_release: Callable[[ModelName], None] = lambda _model: None,
        on_free: Callable[[ModelName], None] = lambda _model: None,
        on_peers_changed: Callable[[Mapping[ReplicaId, int]], None] = lambda _changes: None,
    ) -> None:
        """`strict`: leases begin unclaimed (see `StrictReservations`). The callbacks say that something has happened:

        - `on_release`: free slots of a model have become good again, or may be asked for again;
        - `on_free`: a slot of a model has become free;
        - `on_peers_changed`: the numbers of other gateways' leases on these replicas have changed by so many.
        """
        self._clock = clock
        self._loads = defaultdict[ReplicaId, ReplicaLoad](ReplicaLoad)
        self.load_of: Callable[[ReplicaId], ReplicaLoad] = self._loads.__getitem__
        """Returns the load of a replica. A new replica gets an empty one."""
        self._in_use: dict[ReplicaId, ReplicaLoad] = {}
        """The loads with open leases of this gateway."""
        self._held: dict[tuple[ModelName, str], set[Lease]] = {}
        """The open leases of each model and caller."""
        self.index = LoadIndex(self)
        self._at_peers: Mapping[ReplicaId, int] = {}
        self.is_strict = strict
        self.peers = peers or NoPeers()
        self._on_release = on_release
        self._on_free = on_free
        self._on_peers_changed = on_peers_changed
        self._turn = count(1)
        self._turns: dict[tuple[ModelName, str], int] = {}
        """The number of the last lease of each model and caller, counted over all leases. Callers are keys of the
        configuration."""

    def change(self, replica_id: ReplicaId) -> ReplicaLoad:
        """Returns the load of the replica, which is about to change: the index files it anew before it is read."""
        self.index.changed.add(replica_id)
        return self.load_of(replica_id)

    def lease(self, candidate: Candidate, origin: Origin, now: float) -> Lease:
        """Opens a lease. The scope that takes it has to release it."""
        lease = Lease(candidate, origin, now, self._end)
        replica_id, key = candidate.replica_id, (candidate.model, origin.caller)
        load = self._in_use[replica_id] = self.change(replica_id)
        load.leases.add(lease)
        self._turns[key] = next(self._turn)
        held = self._held.get(key)
        if held is None:
            held = self._held[key] = set()
        held.add(lease)
        if not self.is_strict:
            self._confirm(lease, load, now)
        return lease

    def _take_off(self, lease: Lease) -> ReplicaLoad:
        replica_id = lease.candidate.replica_id
        load = self.change(replica_id)
        load.leases.discard(lease)
        if not load.leases:
            self._in_use.pop(replica_id, None)
        return load

    def confirm(self, lease: Lease, now: float) -> None:
        """Confirms that the lease is for this replica. From now on peers count it."""
        self._confirm(lease, self.change(lease.candidate.replica_id), now)

    def _confirm(self, lease: Lease, load: ReplicaLoad, now: float) -> None:
        lease.confirmed = True
        load.last_used = now
        if self.peers.has_peers:
            self.peers.report_leases()

    def move(self, lease: Lease, candidate: Candidate) -> None:
        """Moves the lease to another replica of the model."""
        self._take_off(lease)
        load = self._in_use[candidate.replica_id] = self.change(candidate.replica_id)
        load.leases.add(lease)
        lease.candidate = candidate
        self._on_release(candidate.model)

    def record_none_free(self, candidates: Iterable[Candidate], until: float, refusals: int) -> None:
        """Records that none of the candidates has a free slot. Each counts as full until `until`, or until a lease on
        it ends."""
        for candidate in candidates:
            load = self.change(candidate.replica_id)
            load.full_until, load.refusals = max(load.full_until, until), max(load.refusals, refusals)

    def _end(self, lease: Lease) -> None:
        load = self._take_off(lease)
        load.ended_at = self._clock()
        self._held[lease.candidate.model, lease.origin.caller].discard(lease)
        if lease.confirmed and self.peers.has_peers:
            self.peers.report_leases()
        if lease.refused:
            self._on_release(lease.candidate.model)
        else:
            load.full_until, load.refusals = NEVER, 0
            self._on_free(lease.candidate.model)

    def in_flight(self, replica_id: ReplicaId) -> int:
        """Returns the number of requests that the replica has or may have, those of peers included. A lease of this
        gateway whose request still waits for a probe does not count, because it cannot be what keeps the replica
        busy."""
        load = self._loads.get(replica_id)
        return sum(lease.called for lease in load.leases) + load.at_peers if load is not None else 0

    def share_of(self, model: ModelName, candidates: Sequence[Candidate], caller: str) -> Share:
        """Returns the share of `caller` in `model`, whose replicas are `candidates`."""
        left, key = self.index.of(model, candidates, self._clock()).left, (model, caller)
        on_left = sum(lease.origin.caller == caller for each in left for lease in self.load_of(each).leases)
        return Share(len(self._held.get(key, ())) - on_left, self._turns.get(key, 0))

    def is_doubtful(self, candidate: Candidate) -> bool:
        """Returns whether the replica is full only according to peers. The replica itself knows better."""
        load = self.load_of(candidate.replica_id)
        return candidate.refuses_when_full and len(load.leases) < candidate.slots <= load.open_leases

    def record_full(self, lease: Lease, until: float) -> None:
        """Records that the replica refused because it is full. It counts as full until `until`, or until another lease
        on it ends here."""
        lease.refused = True
        load = self.change(lease.candidate.replica_id)
        load.full_until = until
        load.refusals += 1

    def record_busy(self, replica_id: ReplicaId, until: float) -> None:
        """Records that the replica did not answer a probe. Until `until` other replicas are preferred."""
        self.change(replica_id).busy_until = until

    def record_failure(self, replica_id: ReplicaId, now: float) -> None:
        """Records a failed call. It counts as load on the replica for 1 s, doubled with each failure in a row, at most
        60 s."""
        load = self.change(replica_id)
        seconds = doubled_seconds(PENALTY_FIRST_SECONDS, load.failures, PENALTY_MAX_SECONDS)
        load.failures += 1
        load.expiries.append(now + seconds)

    def record_success(self, candidate: Candidate) -> None:
        """Records an answer. It clears the failures of the replica, and its free slots count as any others from now
        on."""
        load = self.load_of(candidate.replica_id)
        load.last_contact_at = self._clock()
        load.failures = load.refusals = 0
        if load.busy_until > NEVER:
            self.change(candidate.replica_id).busy_until = NEVER
        if load.expiries:
            self.change(candidate.replica_id).expiries = []
            self._on_release(candidate.model)

    def keep_only(self, known: Container[ReplicaId]) -> None:
        """Forgets replicas that are not in the fleet any more and have no lease.

        A replica with a lease at a peer may be so new that only that peer knows it yet.
        """
        for replica_id in [each for each, load in self._loads.items() if each not in known and not load.open_leases]:
            del self._loads[replica_id]
        self.index.changed &= self._loads.keys()

    def published(self) -> dict[ReplicaId, int]:
        """Returns the number of leases that peers have to count for each replica that has any. A lease counts while its
        probe is pending, but not before it is confirmed (strict mode)."""
        counts = (
            (replica_id, sum(lease.confirmed for lease in load.leases)) for replica_id, load in self._in_use.items()
        )
        return {replica_id: open_leases for replica_id, open_leases in counts if open_leases}

    def uses(self) -> dict[ReplicaId, float]:
        """Returns for each replica that had a request here the time since which it is silent, or idle if it has no
        request now: see `domain.activity.Usage`, but in seconds of this gateway's clock.

        Use it together with `published` of the same moment. With an older one, an idle replica that has just got a
        request would look as if it had been silent all the time.
        """
        return {replica_id: _since(load) for replica_id, load in self._loads.items() if load.last_used > NEVER}

    def apply_peers(self, at_peers: Mapping[ReplicaId, int]) -> None:
        """Replaces the leases that peers have published. A replica that is not named has none.

        A replica of which peers have fewer leases than before may have a free slot, even if it refused a call.
        """
        changed = {replica_id for replica_id, _ in self._at_peers.items() ^ at_peers.items()}
        if changed:
            self._at_peers = dict(at_peers)
            self._on_peers_changed({each: self._set_at_peers(each, at_peers.get(each, 0)) for each in changed})

    def _set_at_peers(self, replica_id: ReplicaId, open_leases: int) -> int:
        load = self.change(replica_id)
        change, load.at_peers = open_leases - load.at_peers, open_leases
        if change < 0:
            load.full_until, load.refusals = NEVER, 0
        return change

    def usage(self) -> dict[ReplicaId, Usage]:
        """Returns the usage of each replica that had a request here since it came up."""
        now = self._clock()
        return {replica_id: _usage(load, now) for replica_id, load in self._loads.items() if load.last_used > NEVER}

    def statistics(self) -> LoadStatistics:
        """Counts the open leases of this gateway by replica and by model, and failures in a row by replica."""
        by_model: dict[ModelName, int] = {}
        for (model, _), leases in self._held.items():
            if leases:
                by_model[model] = by_model.get(model, 0) + len(leases)
        return LoadStatistics(
            {replica_id: len(load.leases) for replica_id, load in self._in_use.items()},
            by_model,
            {replica_id: load.failures for replica_id, load in self._loads.items() if load.failures},
        )


def _since(load: ReplicaLoad) -> float:
    if not load.leases:
        return load.ended_at
    called = [lease.opened_at for lease in load.leases if lease.called]
    return max(min(called or (lease.opened_at for lease in load.leases)), load.last_contact_at)


def _usage(load: ReplicaLoad, now: float) -> Usage:
    called = [lease.opened_at for lease in load.leases if lease.called]
    if not called:
        return Usage(0, 0.0 if load.leases else now - load.ended_at, 0.0)
    return Usage(len(called), 0.0, now - max(min(called), load.last_contact_at))
