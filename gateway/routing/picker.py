"""The only routing policy: it decides which candidate serves the next request, and why. Pure.

`pick` defines the order by looking at each candidate. Requests for a model with many replicas get its answer from
`load_index`, at the same cost in a fleet of any size.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from types import MappingProxyType
from typing import Final, NamedTuple, Protocol

from gateway.domain.ids import ReplicaId
from gateway.domain.routability import Candidate


class LoadView(Protocol):
    """The properties of a replica's load that the picker compares."""

    @property
    def open_leases(self) -> int:
        """The leases on the replica, here and at peers as far as they have published them. Each takes one of its
        slots."""

    @property
    def last_used(self) -> float:
        """The time of the last pick of this replica (seconds of the caller's clock)."""

    @property
    def full_until(self) -> float:
        """The time before which the replica is not asked again, because it refused a call as full."""

    @property
    def busy_until(self) -> float:
        """The time until which other replicas are preferred, because this one did not answer a probe."""

    def penalties(self, now: float) -> int:
        """Returns the number of recent failures that count as load. They take no slot."""


Rank = tuple[bool, bool, bool, int, float, int]
"""The values that are compared, in this order: suspect, taken, busy, load, last used, VRAM (negative: more is
better)."""
Ranked = tuple[Candidate, Rank]

CANDIDATES_KEPT: Final = 16
"""The number of candidates that a decision keeps, the chosen one included. A fleet of thousands must not make a pick
expensive."""
DECIDES_FOR_SEVERAL: Final = 4
"""The number of leading values that count if several gateways share one outdated order. Chance decides before the
rest."""


class Score(NamedTuple):
    """The values of one candidate when a pick was made, in the order in which they are compared."""

    suspect: bool
    """Whether the replica has failed recently. Requests wait for a replica that has not failed rather than try this
    one."""
    taken: bool
    busy: bool
    load: int
    chance_first: float
    """A random number if ties are broken by chance before anything else, otherwise 0."""
    last_used: float
    vram: float
    chance: float


REASONS: Final[Mapping[str, str]] = MappingProxyType(
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


class Considered(NamedTuple):
    """One candidate as it stood when a pick was made."""

    candidate: Candidate
    rank: Rank
    chance_first: float
    chance: float

    @property
    def score(self) -> Score:
        """The values that were compared. They are put in order only when somebody asks."""
        decisive, rest = self.rank[:DECIDES_FOR_SEVERAL], self.rank[DECIDES_FOR_SEVERAL:]
        return Score(*decisive, self.chance_first, *rest, self.chance)


@dataclass(frozen=True, slots=True)
class Policy:
    """The settings that change the order."""

    tie_break_by_chance: bool = False
    """Whether ties are broken by chance before `last_used`. Gateways that share an outdated order would all pick the
    same replica otherwise."""


ALONE: Final = Policy()
"""The policy of a gateway without peers."""
SEVERAL: Final = Policy(tie_break_by_chance=True)
"""The policy of each gateway of a fleet."""


@dataclass(slots=True)
class Choice:
    """The best candidate for a request, with what it was compared with."""

    candidate: Candidate
    has_free_slot: bool
    """False: it is the best of those that are all taken."""
    ranked: Ranked
    kept: Sequence[Ranked] = field(default=(), compare=False, repr=False)
    """The first candidates, in their order."""
    policy: Policy = field(default=ALONE, compare=False)
    others: Sequence[Considered] | None = field(default=None, compare=False, repr=False)
    """The other candidates, if they were not compared in this pick."""

    @property
    def considered(self) -> tuple[Considered, ...]:
        """The numbers that were compared, of the chosen one, which comes first, and of the first others. Of two
        whose ranks are the same, chance has preferred the chosen one."""
        others = self.others
        if others is None:
            late = 1.0 if self.policy.tie_break_by_chance else 0.0
            others = [Considered(*each, late, 1.0) for each in self.kept if each is not self.ranked]
        return (Considered(*self.ranked, 0.0, 0.0), *others[: CANDIDATES_KEPT - 1])

    def among(self, all_of_them: "Choice") -> "Choice":
        """Returns this choice from a part of the candidates with what was compared of all of them."""
        others = [each for each in all_of_them.considered if each.candidate != self.candidate]
        return replace(self, others=others)


def pick(
    candidates: Iterable[Candidate],
    load_of: Callable[[ReplicaId], LoadView],
    now: float,
    rng: Random,
    policy: Policy = ALONE,
) -> Choice | None:
    """Returns the best candidate, or None if there is none.

    A replica that has not failed recently comes first, then one with a free slot, then one that answers. Then the least
    load decides, the longest time without use (R2), the most free VRAM, and chance.
    """
    decisive = DECIDES_FOR_SEVERAL if policy.tie_break_by_chance else None
    kept: list[Ranked] = []
    tied: list[Ranked] = []
    best: tuple[float, ...] = ()
    for candidate in candidates:
        ranked = candidate, rank_of(candidate, load_of(candidate.replica_id), now)
        rank = ranked[1][:decisive]
        if len(kept) < CANDIDATES_KEPT:
            kept.append(ranked)
        if not tied or rank < best:
            tied, best = [ranked], rank
        elif rank == best:
            tied.append(ranked)
    if not tied:
        return None
    chosen = tied[0] if len(tied) == 1 else rng.choice(tied)
    return Choice(chosen[0], not best[1], chosen, kept, policy)


def rank_of(candidate: Candidate, load: LoadView, now: float) -> Rank:
    """Returns what is compared of the candidate at `now`. It is a plain tuple, because a named one takes as long as all
    the rest."""
    in_use, penalties = load.open_leases, load.penalties(now)
    return (
        penalties > 0,
        in_use >= candidate.slots or now < load.full_until,
        now < load.busy_until,
        in_use + penalties,
        load.last_used,
        -(candidate.free_vram_bytes or 0),
    )


def consider(candidate: Candidate, load: LoadView, now: float, rng: Random, policy: Policy = ALONE) -> Considered:
    """Returns how the candidate stands in a pick at `now`; `rng` draws what breaks ties."""
    chance_first = rng.random() if policy.tie_break_by_chance else 0.0
    return Considered(candidate, rank_of(candidate, load, now), chance_first, rng.random())


def why_not_chosen(score: Score, winner: Score) -> str:
    """Returns why `score` lost against `winner`: the first value in which they differ, in words."""
    for name, mine, best in zip(Score._fields, score, winner, strict=True):
        if mine != best:
            return REASONS[name].format(mine=mine, best=best)
    return REASONS["chance"]
