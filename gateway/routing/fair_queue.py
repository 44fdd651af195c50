"""Waiting requests of one model: first come, first served within a caller, and in turn between callers. Pure.

In turn means: the caller that holds the fewest slots of this model now is served next; where that is equal, as it
always is with a single slot, the one that has got none for the longest. So a caller with a thousand waiting requests
delays another one's single request by no more than the time until the next slot becomes free.
"""

from bisect import insort
from collections.abc import Callable, Container, Iterator
from typing import Generic, NamedTuple, Protocol, TypeVar


class Share(NamedTuple):
    """What a caller has had of a model; the smallest share is served next."""

    held: int
    """Slots now."""
    last_turn: int
    """When it got its last one: a number that grows with every slot that anybody gets. 0: never."""


class Waiter(Protocol):
    """Describes what the queue has to know of a waiting request."""

    @property
    def number(self) -> int:
        """Grows with arrival; unique."""

    @property
    def caller(self) -> str:
        """Names the caller whose request it is; slots are shared fairly between callers."""


W = TypeVar("W", bound=Waiter)


class FairQueue(Generic[W]):
    """Orders the waiting requests of one model: in turn between callers, by arrival within a caller."""

    def __init__(self) -> None:
        self._lines: dict[str, list[W]] = {}
        """Waiting requests by caller, in order of arrival. No line is empty."""

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def __iter__(self) -> Iterator[W]:
        return (waiter for line in tuple(self._lines.values()) for waiter in tuple(line))

    def __contains__(self, waiter: W) -> bool:
        return waiter in self._lines.get(waiter.caller, ())

    def add(self, waiter: W) -> None:
        """Puts a request at its place by number: one that comes back has kept it."""
        insort(self._lines.setdefault(waiter.caller, []), waiter, key=lambda each: each.number)

    def remove(self, waiter: W) -> W | None:
        """Returns who has become the first of its line by that, if anybody."""
        line = self._lines[waiter.caller]
        was_first = line[0] is waiter
        line.remove(waiter)
        if not line:
            del self._lines[waiter.caller]
            return None
        return line[0] if was_first else None

    def firsts(self) -> Iterator[W]:
        """The first of each line."""
        return (line[0] for line in self._lines.values())

    def is_first(self, waiter: W) -> bool:
        """Whether it is the first of its caller's line."""
        return self._lines[waiter.caller][0] is waiter

    def next_in_turn(self, share_of: Callable[[str], Share], passed_over: Container[W] = ()) -> W | None:
        """Who is to be served next, given what each caller has had."""
        first = (next((waiter for waiter in line if waiter not in passed_over), None) for line in self._lines.values())
        waiting = [waiter for waiter in first if waiter is not None]
        if len(waiting) < 2:  # the usual case: nobody's share has to be looked up
            return waiting[0] if waiting else None
        return min(waiting, key=lambda waiter: (share_of(waiter.caller), waiter.number))

    def to_displace(self, caller: str) -> W | None:
        """Who has to go so that a full queue can take one more request of `caller`: the latest of the longest line.
        None if that line is the caller's own, or no longer than its would become."""
        longest = max(self._lines.values(), key=len, default=[])
        mine = len(self._lines.get(caller, ()))
        return longest[-1] if len(longest) > mine + 1 else None
