"""Who uses which replica now: open leases, and nothing that is counted up and down (R4 to R9).

Failures are leases, too: each leaves a *phantom* that expires by itself, later with every failure in a row. So a
replica that fails at once never looks idle, and one that recovers is found out by the next request that tries it. That
is the whole circuit breaker.
"""

from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Final

import trio

from gateway.domain.activity import Usage
from gateway.domain.ids import ModelName, ReplicaId
from gateway.domain.inference import Origin
from gateway.domain.routability import Candidate
from gateway.routing.fair_queue import Share
from gateway.routing.lease import Lease

NEVER: Final = float("-inf")
FOREVER: Final = float("inf")
PHANTOM_FIRST_SECONDS: Final = 1.0
"""How long the first failure weighs; each further one in a row twice as long."""
PHANTOM_MAX_SECONDS: Final = 60.0


@dataclass
class ReplicaLoad:
    """A replica's load as the picker reads it."""

    leases: set[Lease] = field(default_factory=set)
    elsewhere: int = 0
    """Leases that other gateways have published."""
    last_used: float = NEVER
    ended_at: float = NEVER
    """When the last lease ended."""
    heard_at: float = NEVER
    """When the last piece of an answer came."""
    full_until: float = NEVER
    refusals: int = 0
    """In a row: "no free slot", and nothing else since."""
    busy_until: float = NEVER
    failures: int = 0
    """In a row."""
    expiries: list[float] = field(default_factory=list)
    """When each phantom ends."""

    @property
    def open_leases(self) -> int:
        """Counts the leases on the replica, here and (as far as published) at other gateways."""
        return len(self.leases) + self.elsewhere

    @property
    def suspect_until(self) -> float:
        """When its last phantom ends."""
        return max(self.expiries, default=NEVER)

    def phantoms(self, now: float) -> int:
        """Counts the recent failures that still weigh on the replica at `now`, and forgets those that have expired."""
        if not self.expiries:
            return 0
        self.expiries = [expiry for expiry in self.expiries if expiry > now]
        return len(self.expiries)


@dataclass(frozen=True)
class LoadStatistics:
    """Counts this gateway's open leases and the failures of replicas, for metrics."""

    in_flight: dict[ReplicaId, int]
    """Open leases of each replica that has any."""
    in_flight_by_model: dict[ModelName, int]
    failures: dict[ReplicaId, int]
    """Failures in a row of each replica that has any."""


class LoadTracker:
    """The leases of this gateway. All methods are synchronous: no other task can see a half-done change."""

    def __init__(self, clock: Callable[[], float] = trio.current_time) -> None:
        self._clock = clock
        self._uses: dict[ReplicaId, ReplicaLoad] = {}
        self._elsewhere: Mapping[ReplicaId, int] = {}
        self.strict = False
        """Leases begin unclaimed: see `StrictClaims`, which sets it."""
        self._turn = count(1)
        self._turns: dict[tuple[ModelName, str], int] = {}
        """When each caller got its last lease of a model, counted in leases. Callers are keys of the configuration."""
        self.on_release: Callable[[ModelName], None] = lambda _model: None
        """Called when free slots have become good again, or may be asked for again. Set once, by admission."""
        self.on_free: Callable[[ModelName], None] = lambda _model: None
        """Called when a slot has become free. Set once, by admission."""
        self.on_heard: Callable[[Mapping[ReplicaId, int]], None] = lambda _changes: None
        """Called with how many leases more (less: negative) other gateways have on each replica. Set once, by
        admission."""
        self.on_change: Callable[[], None] = lambda: None
        """Called when a lease begins or ends: `published` may have changed. Set once, by who publishes it."""

    def use_of(self, replica_id: ReplicaId) -> ReplicaLoad:
        """Returns the load of the replica; one that had none so far gets an empty one."""
        use = self._uses.get(replica_id)
        if use is None:
            use = self._uses[replica_id] = ReplicaLoad()
        return use

    def lease(self, candidate: Candidate, origin: Origin, now: float) -> Lease:
        """Opens a lease; the same scope that took it has to release it."""
        lease = Lease(candidate, origin, now, self._end)
        self.use_of(candidate.replica_id).leases.add(lease)
        self._turns[candidate.model, origin.caller] = next(self._turn)
        lease.claimed = False
        if not self.strict:
            self.claim(lease, now)
        return lease

    def claim(self, lease: Lease, now: float) -> None:
        """It is for this replica for good, and others count it."""
        lease.claimed = True
        self.use_of(lease.candidate.replica_id).last_used = now
        self.on_change()

    def move(self, lease: Lease, candidate: Candidate) -> None:
        """It is for another replica of the model."""
        self.use_of(lease.candidate.replica_id).leases.discard(lease)
        self.use_of(candidate.replica_id).leases.add(lease)
        lease.candidate = candidate
        self.on_release(candidate.model)

    def note_none_free(self, candidates: Iterable[Candidate], until: float, refusals: int) -> None:
        """No slot is free on any of them; each is taken as full until `until`, or until a lease on it ends."""
        for candidate in candidates:
            use = self.use_of(candidate.replica_id)
            use.full_until, use.refusals = max(use.full_until, until), max(use.refusals, refusals)

    def _end(self, lease: Lease) -> None:
        use = self.use_of(lease.candidate.replica_id)
        use.leases.discard(lease)
        use.ended_at = self._clock()
        if lease.claimed:
            self.on_change()
        if lease.refused:
            self.on_release(lease.candidate.model)
        else:
            use.full_until, use.refusals = NEVER, 0
            self.on_free(lease.candidate.model)

    def in_flight(self, replica_id: ReplicaId) -> int:
        """Requests that it has, or may have, those of other gateways included. A lease of ours whose holder still waits
        for a probe is none yet: it can't be what keeps the replica busy."""
        use = self._uses.get(replica_id)
        return sum(lease.called for lease in use.leases) + use.elsewhere if use is not None else 0

    def share_of(self, model: ModelName, candidates: tuple[Candidate, ...], caller: str) -> Share:
        """What `caller` has of `model`, whose replicas are `candidates`."""
        uses = (self._uses.get(candidate.replica_id) for candidate in candidates)
        held = sum(lease.origin.caller == caller for use in uses if use is not None for lease in use.leases)
        return Share(held, self._turns.get((model, caller), 0))

    def is_doubtful(self, candidate: Candidate) -> bool:
        """It is full, but only as far as other gateways have published; the replica itself can tell better."""
        use = self.use_of(candidate.replica_id)
        return candidate.refuses_when_full and len(use.leases) < candidate.slots <= use.open_leases

    def free_slots(self, candidate: Candidate, now: float) -> int:
        """Slots that a request would be given now."""
        use = self.use_of(candidate.replica_id)
        if now < use.full_until or use.phantoms(now):
            return 0
        return max(0, candidate.slots - use.open_leases)

    def ask_at(self, candidate: Candidate, guess_at: float) -> float:
        """From when on it may be asked: it has a free slot, or a guess that it has one is allowed from `guess_at` on.

        Only what other gateways have published can be doubted, and only where the replica itself refuses if it is true.
        """
        use = self.use_of(candidate.replica_id)
        if use.open_leases < candidate.slots:
            return use.full_until
        if self.is_doubtful(candidate):
            return max(guess_at, use.full_until)
        return FOREVER

    def note_full(self, lease: Lease, until: float) -> None:
        """The replica refused: it is taken as full until `until`, or until another lease on it ends here."""
        lease.refused = True
        use = self.use_of(lease.candidate.replica_id)
        use.full_until = until
        use.refusals += 1

    def note_busy(self, replica_id: ReplicaId, until: float) -> None:
        """It did not answer a probe: until then another replica is preferred."""
        self.use_of(replica_id).busy_until = until

    def note_failure(self, replica_id: ReplicaId, now: float) -> None:
        """Records a failed call: it weighs on the replica for 1 s, doubled with each failure in a row, at most 60 s."""
        use = self.use_of(replica_id)
        seconds = min(PHANTOM_FIRST_SECONDS * 2.0 ** min(use.failures, 30), PHANTOM_MAX_SECONDS)
        use.failures += 1
        use.expiries.append(now + seconds)

    def note_success(self, candidate: Candidate) -> None:
        """It answered: its past is forgiven, and its free slots are as good as any from now on."""
        use = self.use_of(candidate.replica_id)
        use.heard_at = self._clock()
        use.failures = use.refusals = 0
        use.busy_until = NEVER
        if use.expiries:
            use.expiries = []
            self.on_release(candidate.model)

    def keep_only(self, known: Container[ReplicaId]) -> None:
        """Forgets replicas that are not in the fleet any more and have no lease.

        One with a lease elsewhere may be so new that only the other gateway knows it yet.
        """
        for replica_id in [each for each, use in self._uses.items() if each not in known and not use.open_leases]:
            del self._uses[replica_id]

    def published(self) -> dict[ReplicaId, int]:
        """Leases of each replica that has any, as other gateways are to count them: one whose holder still waits for a
        probe takes its slot already, one that is not claimed yet takes none."""
        counts = ((replica_id, sum(lease.claimed for lease in use.leases)) for replica_id, use in self._uses.items())
        return {replica_id: open_leases for replica_id, open_leases in counts if open_leases}

    def uses(self) -> dict[ReplicaId, float]:
        """Since when each replica that had a request here is silent, or idle if it has none now: see
        `domain.fleet.Use`, but seconds of this gateway's clock.

        It belongs to `published` of the same moment as far as that one says who has leases at all: with an older one
        an idle replica that has just got a request would look as if it had been silent all the time.
        """
        return {replica_id: _since(use) for replica_id, use in self._uses.items() if use.last_used > NEVER}

    def hear(self, elsewhere: Mapping[ReplicaId, int]) -> None:
        """Takes in how many leases all other gateways have published, in all: of replicas not named they have none.

        A replica of which they have fewer now may have a free slot, whatever it said before.
        """
        changed = {replica_id for replica_id, _ in self._elsewhere.items() ^ elsewhere.items()}
        if changed:
            self._elsewhere = dict(elsewhere)
            self.on_heard({each: self._note_elsewhere(each, elsewhere.get(each, 0)) for each in changed})

    def _note_elsewhere(self, replica_id: ReplicaId, open_leases: int) -> int:
        use = self.use_of(replica_id)
        change, use.elsewhere = open_leases - use.elsewhere, open_leases
        if change < 0:
            use.full_until, use.refusals = NEVER, 0
        return change

    def usage(self) -> dict[ReplicaId, Usage]:
        """Returns the usage of each replica that had a request here since it came up."""
        now = self._clock()
        return {replica_id: _usage(use, now) for replica_id, use in self._uses.items() if use.last_used > NEVER}

    def statistics(self) -> LoadStatistics:
        """Counts the open leases of this gateway by replica and by model, and failures in a row by replica."""
        by_model: dict[ModelName, int] = {}
        for use in self._uses.values():
            for lease in use.leases:
                by_model[lease.candidate.model] = by_model.get(lease.candidate.model, 0) + 1
        return LoadStatistics(
            {replica_id: len(use.leases) for replica_id, use in self._uses.items() if use.leases},
            by_model,
            {replica_id: use.failures for replica_id, use in self._uses.items() if use.failures},
        )


def _since(use: ReplicaLoad) -> float:
    if not use.leases:
        return use.ended_at
    called = [lease.opened_at for lease in use.leases if lease.called]
    return max(min(called or (lease.opened_at for lease in use.leases)), use.heard_at)


def _usage(use: ReplicaLoad, now: float) -> Usage:
    called = [lease.opened_at for lease in use.leases if lease.called]
    if not called:
        return Usage(0, 0.0 if use.leases else now - use.ended_at, 0.0)
    return Usage(len(called), 0.0, now - max(min(called), use.heard_at))
