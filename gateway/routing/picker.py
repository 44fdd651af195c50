"""The one routing policy: which candidate serves the next request. Pure."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random
from typing import Protocol

from gateway.domain.ids import ReplicaId
from gateway.routing.eligibility import Candidate


class ReplicaLoad(Protocol):
    """What the picker has to know of a replica's load."""

    @property
    def in_flight(self) -> int:
        """Open leases."""

    @property
    def last_used(self) -> float:
        """When it was last picked (seconds of the caller's clock)."""

    @property
    def full_until(self) -> float:
        """It said "no free slot" and is not asked again before this time."""


@dataclass(frozen=True, slots=True)
class Choice:
    candidate: Candidate
    has_free_slot: bool
    """False: it is the best of those that are all taken, and nothing may be bound to it now."""


def pick(
    candidates: Iterable[Candidate], load_of: Callable[[ReplicaId], ReplicaLoad], now: float, rng: Random
) -> Choice | None:
    """The best candidate; None if there is none.

    A free slot comes first; then the least load, the longest unused (R2), the most free VRAM, chance.
    """
    best: Candidate | None = None
    best_key: tuple[bool, int, float, float, float] | None = None
    for candidate in candidates:
        load = load_of(candidate.replica_id)
        taken = load.in_flight >= candidate.slots or now < load.full_until
        key = (taken, load.in_flight, load.last_used, -(candidate.free_vram_bytes or 0), rng.random())
        if best_key is None or key < best_key:
            best, best_key = candidate, key
    if best is None or best_key is None:
        return None
    return Choice(best, has_free_slot=not best_key[0])
