"""Keeps ranked candidates in the order of the picker, and finds the best ones without a look at the others. Pure."""

from bisect import bisect_left, bisect_right, insort
from random import Random
from typing import Final, TypeAlias

from gateway.domain.ids import ReplicaId
from gateway.routing.picker import DECIDES_FOR_SEVERAL, Ranked

Group: TypeAlias = tuple[float, ...]
"""The leading values of a rank: suspect, taken, busy and load. Even a large fleet has few different ones."""
Key: TypeAlias = tuple[float, float, ReplicaId]
"""The values that decide within a group: last used and VRAM, unless chance comes before them. Candidates with the
same two values are tied, and stand in the order of their ids."""

CHUNK_MAX: Final = 512
"""Keys per list. To insert into a list moves all keys behind, so a list of all would make that dearer with the
fleet."""


class RankOrder:
    """The candidates in groups of equal load, best group first, and in order within each group."""

    def __init__(self, *, by_chance: bool) -> None:
        """`by_chance` says that all candidates of a group are tied (`Policy.tie_break_by_chance`)."""
        self.by_chance = by_chance
        self._groups: dict[Group, _Keys] = {}
        """The candidates of each group that there was, empty or not."""
        self._order: list[Group] = []
        """The groups that are not empty, the best one first."""

    def add(self, ranked: Ranked) -> None:
        """Adds a candidate, which is not in here yet."""
        candidate, rank = ranked
        group = rank[:DECIDES_FOR_SEVERAL]
        keys = self._groups.get(group)
        if keys is None:
            keys = self._groups[group] = _Keys()
        if not keys.chunks:
            insort(self._order, group)
        keys.add((0.0, 0.0, candidate.replica_id) if self.by_chance else (rank[4], rank[5], candidate.replica_id))

    def remove(self, ranked: Ranked) -> None:
        """Removes a candidate, given as it was added."""
        candidate, rank = ranked
        group = rank[:DECIDES_FOR_SEVERAL]
        keys = self._groups[group]
        keys.remove((0.0, 0.0, candidate.replica_id) if self.by_chance else (rank[4], rank[5], candidate.replica_id))
        if not keys.chunks:
            self._order.remove(group)

    def best(self, rng: Random) -> ReplicaId | None:
        """Returns the best candidate, one of the best by chance if several are tied, or None if there is none."""
        if not self._order:
            return None
        keys = self._groups[self._order[0]]
        tied = keys.tied()
        return keys.chunks[0][0][2] if tied == 1 else keys.at(rng.choice(range(tied)))[2]


class _Keys:
    """A sorted list, cut into chunks."""

    __slots__ = ("_lasts", "chunks")

    def __init__(self) -> None:
        self.chunks: list[list[Key]] = []
        """The keys. No chunk is empty."""
        self._lasts: list[Key] = []
        """The last key of each chunk."""

    def add(self, key: Key) -> None:
        """Adds a key at its place."""
        if not self.chunks:
            self.chunks.append([key])
            self._lasts.append(key)
            return
        number = min(bisect_left(self._lasts, key), len(self.chunks) - 1) if len(self.chunks) > 1 else 0
        chunk = self.chunks[number]
        insort(chunk, key)
        self._lasts[number] = chunk[-1]
        if len(chunk) > CHUNK_MAX:
            self._split(number)

    def _split(self, number: int) -> None:
        chunk, middle = self.chunks[number], CHUNK_MAX // 2
        self.chunks[number : number + 1] = chunk[:middle], chunk[middle:]
        self._lasts.insert(number, chunk[middle - 1])

    def remove(self, key: Key) -> None:
        """Removes a key that is there."""
        number = bisect_left(self._lasts, key) if len(self.chunks) > 1 else 0
        chunk = self.chunks[number]
        del chunk[bisect_left(chunk, key)]
        if chunk:
            self._lasts[number] = chunk[-1]
        else:
            del self.chunks[number], self._lasts[number]

    def at(self, place: int) -> Key:
        """Returns the key at a place."""
        for chunk in self.chunks:
            if place < len(chunk):
                return chunk[place]
            place -= len(chunk)
        raise IndexError(place)

    def tied(self) -> int:
        """Returns the number of keys that are equal to the first one but for the id."""
        first = self.chunks[0]
        if first[0][0] != first[1][0] if len(first) > 1 else len(self.chunks) == 1:
            return 1  # The usual case: no two were last used at the same time.
        best, count = first[0][:2], 0
        for chunk in self.chunks:
            if chunk[-1][:2] != best:
                return count + (bisect_right(chunk, best, key=_without_id) if chunk[0][:2] == best else 0)
            count += len(chunk)
        return count


def _without_id(key: Key) -> tuple[float, float]:
    return key[:2]
