"""The one routing policy: which candidate serves the next request, and why. Pure."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from random import Random
from types import MappingProxyType
from typing import Final, NamedTuple, Protocol

from gateway.domain.ids import ReplicaId
from gateway.domain.routability import Candidate


class LoadView(Protocol):
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


Rank = tuple[bool, bool, bool, int, float, int]
"""What decides, in its order: suspect, taken, busy, load, last used, VRAM (negative: more is better)."""

DECIDES_FOR_SEVERAL: Final = 4
"""So much of a rank counts if gateways share one stale order: chance comes before the rest."""


class Score(NamedTuple):
    """How one candidate stood when a pick was made; in the order in which it is compared."""

    suspect: bool
    """It has failed lately. While another one has not, requests wait for that one rather than try this one."""
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
        "suspect": "it has failed lately",
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
    """Names the best candidate for a request, and tells whether that one has a free slot."""

    candidate: Candidate
    has_free_slot: bool
    """False: it is the best of those that are all taken."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What changes the order."""

    several_gateways: bool = False
    """Break ties by chance before `last_used`: gateways that share a stale order would all pick the same one."""


ALONE = Policy()


def pick(
    candidates: Iterable[Candidate],
    load_of: Callable[[ReplicaId], LoadView],
    now: float,
    rng: Random,
    policy: Policy = ALONE,
) -> Choice | None:
    """The best candidate; None if there is none.

    One that has not failed lately comes first, and a free slot; then one that answers, the least load, the longest
    unused (R2), the most free VRAM, chance.
    """
    decisive = DECIDES_FOR_SEVERAL if policy.several_gateways else None
    tied: list[Candidate] = []
    best: tuple[float, ...] = ()
    for candidate in candidates:
        rank = _rank(candidate, load_of(candidate.replica_id), now)[:decisive]
        if not tied or rank < best:
            tied, best = [candidate], rank
        elif rank == best:
            tied.append(candidate)
    if not tied:
        return None
    return Choice(tied[0] if len(tied) == 1 else rng.choice(tied), has_free_slot=not best[1])


def _rank(candidate: Candidate, load: LoadView, now: float) -> Rank:
    """A plain tuple: building a named one takes as long as all the rest, and every candidate of every pick has one."""
    in_use, phantoms = load.open_leases, load.phantoms(now)
    return (
        phantoms > 0,
        in_use >= candidate.slots or now < load.full_until,
        now < load.busy_until,
        in_use + phantoms,
        load.last_used,
        -(candidate.free_vram_bytes or 0),
    )


def score(candidate: Candidate, load: LoadView, now: float, rng: Random, policy: Policy = ALONE) -> Score:
    """Returns how the candidate stands in a pick at `now`; `rng` draws what breaks ties."""
    rank = _rank(candidate, load, now)
    chance_first = rng.random() if policy.several_gateways else 0.0
    return Score(*rank[:DECIDES_FOR_SEVERAL], chance_first, *rank[DECIDES_FOR_SEVERAL:], rng.random())


def why_not_chosen(standing: Score, winner: Score) -> str:
    """What `standing` lost by against `winner`: the first thing in which they differ, in words."""
    for name, mine, best in zip(Score._fields, standing, winner, strict=True):
        if mine != best:
            return WORDS[name].format(mine=mine, best=best)
    return WORDS["chance"]
