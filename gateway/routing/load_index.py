"""Finds the best replica without a look at all of them, so that a pick costs the same in a fleet of any size.

`picker.pick` says which replica is the best, by looking at each. A `ModelIndex` gives the same answer with the same
random numbers, but it keeps the replicas filed under their ranks. A rank changes for two reasons:

- The load of the replica changes. `LoadTracker` marks it, and the next look at an index files it anew.
- Time passes: a penalty ends, or a replica that was full or busy counts as others again. The index knows the time of
  the next such change of each replica, and keeps those times in order.

So a look at an index costs what has changed since the last one. Pure: it gets time and chance as arguments.

This file is longer than others because the order, the counts and the times of changes are kept by the same steps.
"""

from collections.abc import Callable, Collection, Container, Iterator, Mapping, Sequence
from heapq import heappop, heappush
from itertools import islice
from math import inf
from operator import indexOf, is_not
from random import Random
from typing import Final, Protocol

from gateway.domain.ids import ModelName, ReplicaId
from gateway.domain.routability import Candidate
from gateway.routing.picker import (
    ALONE,
    CANDIDATES_KEPT,
    Choice,
    LoadView,
    Policy,
    Rank,
    Ranked,
    rank_of,
)
from gateway.routing.rank_order import Place, RankOrder

PREPARED_AT_ONCE: Final = 128
"""The number of replicas that are filed in less than a millisecond."""


class TimedLoad(LoadView, Protocol):
    """The load of a replica, as an index reads it."""

    def changes_at(self, now: float) -> float:
        """Returns the time at which its rank changes next if nothing happens to it, or infinity."""


class IndexedLoads(Protocol):
    """Where an index looks up loads."""

    def load_of(self, replica_id: ReplicaId) -> TimedLoad:
        """Returns the load of the replica. A new replica gets an empty one."""

    def is_doubtful(self, candidate: Candidate) -> bool:
        """Returns whether the replica is full only according to peers."""


class _Entry:
    """A replica as it is filed."""

    __slots__ = (
        *("candidate", "changes_at", "free_slots", "guess_place", "is_doubtful", "is_first", "owner"),
        *("place", "ranked"),
    )

    def __init__(self, owner: "ModelIndex", candidate: Candidate) -> None:
        self.owner = owner
        self.candidate = candidate
        self.ranked: Ranked | None = None
        """The candidate with its rank; None if it is not filed yet."""
        self.place: Place | None = None
        """Where it is filed; None if it is not filed yet."""
        self.guess_place: Place | None = None
        """Where it is filed among those that requests may be sent to by guess; None if it is not one of them."""
        self.is_first = False
        """Whether it is one of the first candidates, which each decision keeps."""
        self.changes_at = inf
        self.free_slots = 0
        self.is_doubtful = False

    def is_filed_as(self, candidate: Candidate, rank: Rank, is_doubtful: bool, is_guessable: bool) -> bool:
        """Returns whether the replica is filed in just this way."""
        ranked = self.ranked
        return (
            ranked is not None
            and ranked[1] == rank
            and ranked[0] is candidate
            and self.is_doubtful == is_doubtful
            and (self.guess_place is not None) == is_guessable
        )


class LoadIndex:
    """The indexes of all models that had a request."""

    def __init__(self, loads: IndexedLoads) -> None:
        self._loads = loads
        self._models: dict[ModelName, ModelIndex] = {}
        self._entries: dict[ReplicaId, _Entry] = {}
        self.changed: set[ReplicaId] = set()
        """The replicas whose load has changed, or may have, since they were filed."""

    def of(self, model: ModelName, candidates: Sequence[Candidate], now: float) -> "ModelIndex":
        """Returns the index of the model as it is at `now`. `candidates` are all that may serve it, in the order of
        their ids."""
        index = self._models.get(model) or self._model(model)
        if index.candidates is not candidates:
            index.adopt(candidates, now)
        if self.changed:
            self._file_changed(now)
        if index.changes and index.changes[0][0] <= now:
            index.pass_time(now)
        return index

    def prepare(self, candidates: Mapping[ModelName, Sequence[Candidate]], now: Callable[[], float]) -> Iterator[None]:
        """Files the replicas of large models ahead of their next request. Yields after each part, so that the caller
        can let other tasks run in between; a request that comes then does the rest itself."""
        for model, several in candidates.items():
            if len(several) > PREPARED_AT_ONCE:
                yield from self._prepare(model, several, now)

    def _prepare(self, model: ModelName, candidates: Sequence[Candidate], now: Callable[[], float]) -> Iterator[None]:
        index = self._model(model)
        for end in range(len(index.candidates) + PREPARED_AT_ONCE, len(candidates), PREPARED_AT_ONCE):
            part = candidates[:end]
            index.adopt(part, now())
            yield
            if index.candidates is not part:
                return
        self.of(model, candidates, now())
        yield

    def _model(self, model: ModelName) -> "ModelIndex":
        index = self._models.get(model)
        if index is None:
            index = self._models[model] = ModelIndex(self._loads, self._entries)
        return index

    def _file_changed(self, now: float) -> None:
        for replica_id in self.changed:
            if (entry := self._entries.get(replica_id)) is not None:
                entry.owner.file(entry, now)
        self.changed.clear()

    def keep_only(self, models: Container[ModelName]) -> None:
        """Forgets models that are not in the fleet any more."""
        for model in [each for each in self._models if each not in models]:
            self._models.pop(model).adopt((), 0.0)


class ModelIndex:
    """The replicas of one model that may serve it, filed by their loads."""

    def __init__(self, loads: IndexedLoads, entries: dict[ReplicaId, _Entry]) -> None:
        """`entries` are those of all models. This index changes its own."""
        self._loads = loads
        self._entries = entries
        self.candidates: Sequence[Candidate] = ()
        self.free_slots = 0
        """The number of slots that requests could get now."""
        self.suspects = 0
        """The number of replicas that have failed lately."""
        self.doubtful = 0
        """The number of replicas that are full only according to peers."""
        self.left: set[ReplicaId] = set()
        """Replicas that are no candidates any more, and had a lease when they ceased to be."""
        self._first: list[_Entry] = []
        """The first candidates, which each decision keeps."""
        self._kept: Sequence[Ranked] | None = None
        """The first candidates with their ranks; None if a rank has changed."""
        self._order = RankOrder(by_chance=False)
        self._guesses = RankOrder(by_chance=False)
        """The doubtful ones that have not refused a call just now."""
        self.changes: list[tuple[float, ReplicaId]] = []
        """A heap of the times at which ranks change. A time that counts no more stays until it is over."""

    def pick(self, rng: Random, policy: Policy = ALONE, excluded: Collection[ReplicaId] = ()) -> Choice | None:
        """Returns what `picker.pick` returns for the candidates that are not excluded."""
        if policy.tie_break_by_chance != self._order.by_chance:
            self._reorder(by_chance=policy.tie_break_by_chance)
        ranked = self._best_without(self._order, rng, excluded) if excluded else self._order.best(rng)
        if ranked is None:
            return None
        kept = self._kept_without(excluded) if excluded else self._kept
        if kept is None:
            kept = self._kept = [each.ranked for each in self._first if each.ranked]
        return Choice(ranked[0], not ranked[1][1], ranked, kept, policy)

    def guess(self, rng: Random, excluded: Collection[ReplicaId] = ()) -> Choice | None:
        """Returns the best of the replicas that are full only according to peers, without what it was compared with.
        Returns None if there is none, or each has refused a call just now."""
        ranked = self._best_without(self._guesses, rng, excluded)
        return Choice(ranked[0], not ranked[1][1], ranked) if ranked is not None else None

    def next_change_at(self) -> float:
        """Returns the time at which a replica is the first to change by itself, for example because it may be asked
        again after a refusal."""
        while self.changes and self._is_void(*self.changes[0]):
            heappop(self.changes)
        return self.changes[0][0] if self.changes else inf

    def _is_void(self, at: float, replica_id: ReplicaId) -> bool:
        entry = self._entries.get(replica_id)
        return entry is None or entry.changes_at != at

    def pass_time(self, now: float) -> None:
        """Files the replicas anew whose ranks have changed by themselves."""
        while self.changes and self.changes[0][0] <= now:
            at, replica_id = heappop(self.changes)
            if not self._is_void(at, replica_id):
                self.file(self._entries[replica_id], now)

    def adopt(self, candidates: Sequence[Candidate], now: float) -> None:
        """Makes these the candidates. It costs little for those that stay what they were."""
        gone, come = _difference(self.candidates, candidates)
        self.candidates = candidates
        for replica_id in gone.keys() - come.keys():
            self._take_out(self._entries.pop(replica_id))
            self.left.add(replica_id)
        for replica_id, candidate in come.items():
            entry = self._entries.get(replica_id)
            if entry is None:
                entry = self._entries[replica_id] = _Entry(self, candidate)
            entry.candidate = candidate
            self.file(entry, now)
        self.left = {each for each in self.left - come.keys() if self._loads.load_of(each).open_leases}
        self._keep_first([self._entries[each.replica_id] for each in candidates[:CANDIDATES_KEPT]])

    def _keep_first(self, first: list[_Entry]) -> None:
        for entry in self._first:
            entry.is_first = False
        for entry in first:
            entry.is_first = True
        self._first, self._kept = first, None

    def file(self, entry: _Entry, now: float) -> None:
        """Puts the replica to its place by its load at `now`."""
        candidate = entry.candidate
        load = self._loads.load_of(candidate.replica_id)
        rank, changes_at = rank_of(candidate, load, now), load.changes_at(now)
        if changes_at != entry.changes_at:
            entry.changes_at = changes_at
            if changes_at < inf:
                heappush(self.changes, (changes_at, candidate.replica_id))
        if entry.is_first:
            self._kept = None
        if entry.place is not None and not rank[1] and self._move(entry, (candidate, rank)):
            return
        is_doubtful = rank[1] and self._loads.is_doubtful(candidate)
        is_guessable = is_doubtful and now >= load.full_until
        if entry.is_filed_as(candidate, rank, is_doubtful, is_guessable):
            return
        self._take_out(entry)
        entry.ranked, entry.is_doubtful = (candidate, rank), is_doubtful
        self._put_in(entry, is_guessable)

    def _move(self, entry: _Entry, ranked: Ranked) -> bool:
        """Moves the replica within its group, which changes no count. Returns False if it comes to another group, or
        is another candidate than before."""
        before, place = entry.ranked, entry.place
        if before is None or place is None or before[0] is not ranked[0]:
            return False
        place = self._order.move(place, ranked)
        if place is None:
            return False
        entry.ranked, entry.place = ranked, place
        return True

    def _put_in(self, entry: _Entry, is_guessable: bool) -> None:
        ranked = entry.ranked
        assert ranked is not None  # noqa: S101 - the caller has just made it
        suspect, taken, _, load, *_ = ranked[1]
        entry.free_slots = 0 if suspect or taken else entry.candidate.slots - load
        entry.place = self._order.add(ranked)
        if is_guessable:
            entry.guess_place = self._guesses.add(ranked)
        self.free_slots += entry.free_slots
        self.suspects += suspect
        self.doubtful += entry.is_doubtful

    def _take_out(self, entry: _Entry) -> None:
        ranked, place, guess_place = entry.ranked, entry.place, entry.guess_place
        if ranked is None or place is None:
            return
        entry.ranked = entry.place = entry.guess_place = None
        self._order.remove(place)
        if guess_place is not None:
            self._guesses.remove(guess_place)
        self.free_slots -= entry.free_slots
        self.suspects -= ranked[1][0]
        self.doubtful -= entry.is_doubtful

    def _reorder(self, *, by_chance: bool) -> None:
        self._order = RankOrder(by_chance=by_chance)
        for candidate in self.candidates:
            entry = self._entries[candidate.replica_id]
            if entry.ranked is not None:
                entry.place = self._order.add(entry.ranked)

    def _best_without(self, order: RankOrder, rng: Random, excluded: Collection[ReplicaId]) -> Ranked | None:
        absent = [place for each in excluded if (place := self._place_in(order, each)) is not None]
        for place in absent:
            order.remove(place)
        best = order.best(rng)
        for place in absent:
            order.put_back(place)
        return best

    def _place_in(self, order: RankOrder, replica_id: ReplicaId) -> Place | None:
        entry = self._entries.get(replica_id)
        if entry is None or entry.owner is not self:
            return None
        return entry.guess_place if order is self._guesses else entry.place

    def _kept_without(self, excluded: Collection[ReplicaId]) -> Sequence[Ranked]:
        there = (each.replica_id for each in self.candidates if each.replica_id not in excluded)
        entries = (self._entries[each] for each in islice(there, CANDIDATES_KEPT))
        return [each.ranked for each in entries if each.ranked is not None]


def _difference(
    before: Sequence[Candidate], after: Sequence[Candidate]
) -> tuple[dict[ReplicaId, Candidate], dict[ReplicaId, Candidate]]:
    """Returns the candidates of `before` and of `after` between the first and the last difference. The others are the
    same objects, which costs a few nanoseconds each to find out."""
    start = _same(before, after)
    end = _same(before[: start - len(before) - 1 : -1], after[: start - len(after) - 1 : -1])
    gone, come = before[start : len(before) - end], after[start : len(after) - end]
    return {each.replica_id: each for each in gone}, {each.replica_id: each for each in come}


def _same(one: Sequence[Candidate], other: Sequence[Candidate]) -> int:
    """Returns with how many of the same objects both begin."""
    try:
        return indexOf(map(is_not, one, other), True)
    except ValueError:
        return min(len(one), len(other))
