"""Keeps ranked candidates in the order of the picker, and finds the best ones without a look at the others. Pure."""

import sys
from bisect import bisect_left, insort
from random import Random
from typing import Final, NamedTuple, TypeAlias

from gateway.domain.ids import ReplicaId
from gateway.routing.picker import DECIDES_FOR_SEVERAL, Ranked

Group: TypeAlias = tuple[float, ...]
"""The leading values of a rank: suspect, taken, busy and load. Even a large fleet has few different ones."""
Key: TypeAlias = tuple[float, float, ReplicaId, Ranked]
"""The values that decide within a group: last used and VRAM, unless chance comes before them. Candidates with the
same two values are tied, and stand in the order of their ids. The last value is never compared, because each id is
there once."""

CHUNK_MAX: Final = 1024
"""Keys per list. To insert into a list moves all keys behind, so a list of all would make that dearer with the
fleet."""

BEHIND_ALL_IDS: Final = chr(sys.maxunicode)


class Place(NamedTuple):
    """The place at which a candidate is filed, by which it is found again without a search for its group."""

    keys: "_Keys"
    key: Key


class RankOrder:
    """The candidates in groups of equal load, best group first, and in order within each group."""

    def __init__(self, *, by_chance: bool) -> None:
        """`by_chance` says that all candidates of a group are tied (`Policy.tie_break_by_chance`)."""
        self.by_chance = by_chance
        self._groups: dict[Group, _Keys] = {}
        """The candidates of each group that there was, empty or not."""
        self._order: list[Group] = []
        """The groups that are not empty, the best one first."""
        self._best: _Keys | None = None
        """The candidates of the best group."""

    def add(self, ranked: Ranked) -> Place:
        """Adds a candidate, which is not in here yet. Returns its place."""
        group = ranked[1][:DECIDES_FOR_SEVERAL]
        keys = self._groups.get(group)
        if keys is None:
            keys = self._groups[group] = _Keys(group)
        place = Place(keys, self._key(ranked))
        self.put_back(place)
        return place

    def _key(self, ranked: Ranked) -> Key:
        candidate, rank = ranked
        return (
            (0.0, 0.0, candidate.replica_id, ranked)
            if self.by_chance
            else (rank[4], rank[5], candidate.replica_id, ranked)
        )

    def put_back(self, place: Place) -> None:
        """Adds a candidate that was removed from this place."""
        keys = place.keys
        if not keys.chunks:
            insort(self._order, keys.group)
            self._best = self._groups[self._order[0]]
        keys.add(place.key)

    def remove(self, place: Place) -> None:
        """Removes the candidate at a place."""
        keys = place.keys
        keys.remove(place.key)
        if not keys.chunks:
            self._order.remove(keys.group)
            self._best = self._groups[self._order[0]] if self._order else None

    def move(self, place: Place, ranked: Ranked) -> Place | None:
        """Gives the candidate at a place another rank of the same group. Returns its new place, or None if it does not
        stay in its group."""
        keys = place.keys
        group: Group = ranked[1][:DECIDES_FOR_SEVERAL]
        if group != keys.group:
            return None
        key = self._key(ranked)
        keys.remove(place.key)
        keys.add(key)
        return Place(keys, key)

    def best(self, rng: Random) -> Ranked | None:
        """Returns the best candidate, one of the best by chance if several are tied, or None if there is none."""
        keys = self._best
        if keys is None:
            return None
        tied = keys.tied()
        return keys.at(0 if tied == 1 else rng.choice(range(tied)))[3]


class _Keys:
    """The sorted keys of a group, cut into chunks. Most keys are added behind all others, because theirs were used
    last, and removed before all others, because theirs are picked next."""

    __slots__ = ("_found", "_lasts", "chunks", "group")

    def __init__(self, group: Group) -> None:
        self.group = group
        self.chunks: list[list[Key]] = []
        """The keys. No chunk is empty."""
        self._lasts: list[Key] = []
        """The last key of each chunk."""
        self._found = 0, 0
        """The chunk and the place in it of the key that was found last. It is the next one to be removed if its
        candidate gets the request, and then needs no search."""

    def add(self, key: Key) -> None:
        """Adds a key at its place."""
        chunks = self.chunks
        if not chunks:
            chunks.append([key])
            self._lasts.append(key)
        elif self._lasts[-1] < key:
            self._append(key)
        else:
            self._insert(bisect_left(self._lasts, key) if len(chunks) > 1 else 0, key)

    def _append(self, key: Key) -> None:
        last = self.chunks[-1]
        if len(last) < CHUNK_MAX:
            last.append(key)
            self._lasts[-1] = key
        else:
            self.chunks.append([key])
            self._lasts.append(key)

    def _insert(self, number: int, key: Key) -> None:
        chunk = self.chunks[number]
        insort(chunk, key)
        if len(chunk) > CHUNK_MAX:
            middle = CHUNK_MAX // 2
            self.chunks[number : number + 1] = chunk[:middle], chunk[middle:]
            self._lasts.insert(number, chunk[middle - 1])

    def remove(self, key: Key) -> None:
        """Removes a key that is there."""
        number, place = self._place_of(key)
        chunk = self.chunks[number]
        del chunk[place]
        if chunk:
            self._lasts[number] = chunk[-1]
        else:
            del self.chunks[number], self._lasts[number]

    def _place_of(self, key: Key) -> tuple[int, int]:
        number, place = self._found
        if number < len(self.chunks) and place < len(chunk := self.chunks[number]) and chunk[place] is key:
            return self._found
        number = bisect_left(self._lasts, key) if len(self.chunks) > 1 else 0
        return number, bisect_left(self.chunks[number], key)

    def at(self, place: int) -> Key:
        """Returns the key at a place."""
        for number, chunk in enumerate(self.chunks):
            if place < len(chunk):
                self._found = number, place
                return chunk[place]
            place -= len(chunk)
        raise IndexError(place)

    def tied(self) -> int:
        """Returns the number of keys that are equal to the first one but for the id."""
        first = self.chunks[0]
        if first[0][0] != first[1][0] if len(first) > 1 else len(self.chunks) == 1:
            return 1  # The usual case: no two were last used at the same time.
        end = (*first[0][:2], BEHIND_ALL_IDS)
        whole = bisect_left(self._lasts, end)
        count = sum(map(len, self.chunks[:whole]))
        return count if whole == len(self.chunks) else count + bisect_left(self.chunks[whole], end)
