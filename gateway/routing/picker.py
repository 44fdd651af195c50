"""The one routing policy: which candidate serves the next request, and why. Pure."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from random import Random
from types import MappingProxyType
from typing import Final, NamedTuple, Protocol

from gateway.domain.ids import ReplicaId
from gateway.routing.eligibility import Candidate


class ReplicaLoad(Protocol):
    """What the picker has to know of a replica's load."""

    @property
    def open_leases(self) -> int:
        """Leases on it, here and (as far as published) at other gateways: each takes one of its slots."""

    @property
    def last_used(self) -> float:
        """When it was last picked (seconds of the caller's clock)."""

    @property
    def full_until(self) -> float:
        """It said "no free slot" and is not asked again before this time."""

    @property
    def busy_until(self) -> float:
        """It did not answer a probe; until this time another one is preferred."""

    def phantoms(self, now: float) -> int:
        """Leases that recent failures have left behind: they count as load and take no slot."""


class Standing(NamedTuple):
    """How one candidate stood when a pick was made; in the order in which it is compared."""

    taken: bool
    busy: bool
    load: int
    chance_first: float
    """0 unless ties are broken by chance before anything else."""
    last_used: float
    vram: float
    chance: float


WORDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "taken": "no free slot",
        "busy": "it did not answer the last probe",
        "load": "more load ({mine} against {best})",
        "chance_first": "chance, since several gateways pick from one view",
        "last_used": "used more recently",
        "vram": "less free VRAM",
        "chance": "chance",
    }
)


@dataclass(frozen=True, slots=True)
class Choice:
    candidate: Candidate
    has_free_slot: bool
    """False: it is the best of those that are all taken, and nothing may be bound to it now."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What changes the order."""

    several_gateways: bool = False
    """Break ties by chance before `last_used`: gateways that share a stale order would all pick the same one."""


ALONE = Policy()


def pick(
    candidates: Iterable[Candidate],
    load_of: Callable[[ReplicaId], ReplicaLoad],
    now: float,
    rng: Random,
    policy: Policy = ALONE,
) -> Choice | None:
    """The best candidate; None if there is none.

    A free slot comes first; then one that answers, the least load, the longest unused (R2), the most free VRAM, chance.
    """
    best: Candidate | None = None
    best_standing: Standing | None = None
    for candidate in candidates:
        standing = standing_of(candidate, load_of(candidate.replica_id), now, rng, policy)
        if best_standing is None or standing < best_standing:
            best, best_standing = candidate, standing
    if best is None or best_standing is None:
        return None
    return Choice(best, has_free_slot=not best_standing.taken)


def standing_of(candidate: Candidate, load: ReplicaLoad, now: float, rng: Random, policy: Policy = ALONE) -> Standing:
    in_use = load.open_leases
    return Standing(
        in_use >= candidate.slots or now < load.full_until,
        now < load.busy_until,
        in_use + load.phantoms(now),
        rng.random() if policy.several_gateways else 0.0,
        load.last_used,
        -(candidate.free_vram_bytes or 0),
        rng.random(),
    )


def why_not_chosen(standing: Standing, winner: Standing) -> str:
    """What `standing` lost by against `winner`: the first thing in which they differ, in words."""
    for name, mine, best in zip(Standing._fields, standing, winner, strict=True):
        if mine != best:
            return WORDS[name].format(mine=mine, best=best)
    return WORDS["chance"]
