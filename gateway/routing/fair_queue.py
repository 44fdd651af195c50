"""The waiting requests of one model: in order of arrival for one caller, and in turn between callers. Pure.

The next slot goes to the caller that holds the fewest slots of this model now. Between equal callers, as with a single
slot, it goes to the one whose last slot is the longest ago. So a caller with a thousand waiting requests delays the
single request of another caller by no more than the time until the next slot becomes free.
"""

from bisect import insort
from collections.abc import Callable, Container, Iterator
from typing import Generic, NamedTuple, Protocol, TypeVar


class Share(NamedTuple):
    """The slots that a caller has of a model. The caller with the smallest share is served next."""

    held: int
    """The number of slots that the caller holds now."""
    last_turn: int
    """The number of the caller's last slot, counted over the slots of all callers. It is 0 if the caller never got
    one."""


class Waiter(Protocol):
    """The properties of a waiting request that the queue needs."""

    @property
    def number(self) -> int:
        """A unique number that grows with each arrival."""

    @property
    def caller(self) -> str:
        """The name of the caller. Slots are shared fairly between callers."""


W = TypeVar("W", bound=Waiter)


class FairQueue(Generic[W]):
    """Orders the waiting requests of one model: in turn between callers, by arrival within a caller."""

    def __init__(self) -> None:
        self._lines: dict[str, list[W]] = {}
        """The waiting requests by caller, in order of arrival. No line is empty."""

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def __iter__(self) -> Iterator[W]:
        return (waiter for line in tuple(self._lines.values()) for waiter in tuple(line))

    def __contains__(self, waiter: W) -> bool:
        return waiter in self._lines.get(waiter.caller, ())

    def add(self, waiter: W) -> None:
        """Puts a request at its place by number. A request that comes back keeps its number."""
        insort(self._lines.setdefault(waiter.caller, []), waiter, key=lambda each: each.number)

    def remove(self, waiter: W) -> W | None:
        """Removes a request. Returns the one that is now the first of its caller's line, or None if the first has not
        changed."""
        line = self._lines[waiter.caller]
        was_first = line[0] is waiter
        line.remove(waiter)
        if not line:
            del self._lines[waiter.caller]
            return None
        return line[0] if was_first else None

    def firsts(self) -> Iterator[W]:
        """Yields the first request of each caller."""
        return (line[0] for line in self._lines.values())

    def is_first(self, waiter: W) -> bool:
        """Returns whether the request is the first of its caller."""
        return self._lines[waiter.caller][0] is waiter

    def next_in_turn(self, share_of: Callable[[str], Share], passed_over: Container[W] = ()) -> W | None:
        """Returns the request that is served next, given the share of each caller. Returns None if there is none."""
        first = (next((waiter for waiter in line if waiter not in passed_over), None) for line in self._lines.values())
        waiting = [waiter for waiter in first if waiter is not None]
        if len(waiting) < 2:  # In the usual case nobody's share has to be computed.
            return waiting[0] if waiting else None
        return min(waiting, key=lambda waiter: (share_of(waiter.caller), waiter.number))

    def to_displace(self, caller: str) -> W | None:
        """Returns the request that has to leave so that a full queue can take one more request of `caller`: the latest
        one of the caller with the most requests. Returns None if that is the same caller, or if its requests would not
        outnumber those of `caller`."""
        longest = max(self._lines.values(), key=len, default=[])
        mine = len(self._lines.get(caller, ()))
        return longest[-1] if len(longest) > mine + 1 else None
