"""Limits the pace of callers and of attempts: a token bucket, and pauses between attempts that double up to a bound.
Pure: time and chance are arguments."""

from dataclasses import dataclass, field
from random import Random
from typing import Final


@dataclass
class TokenBucket:
    """A token bucket: `burst` at once, and `per_second` in the long run, in whatever unit the caller counts."""

    per_second: float
    burst: float
    _used: float = field(default=0.0, init=False)
    """The used part of the burst at `_at`. More than the whole burst is a debt."""
    _at: float = field(default=float("-inf"), init=False)

    def take(self, amount: float, now: float) -> float:
        """Takes `amount` and returns the seconds to wait before it may be used, 0 if none. A caller that does not wait
        makes all later callers wait longer."""
        self._settle(now)
        self._used += amount
        return max(0.0, (self._used - self.burst) / self.per_second)

    def try_take(self, amount: float, now: float) -> float:
        """Takes `amount` if it is there, and returns 0. Otherwise takes nothing, and returns the seconds until it could
        be taken."""
        self._settle(now)
        missing = self._used + amount - self.burst
        if missing > 0:
            return missing / self.per_second
        self._used += amount
        return 0.0

    def give_back(self, amount: float) -> None:
        """Returns `amount` to the bucket, which never holds more than the burst."""
        self._used = max(0.0, self._used - amount)

    def is_untouched(self, now: float) -> bool:
        """Returns whether the bucket is in the state of an unused one."""
        self._settle(now)
        return self._used == 0.0

    def _settle(self, now: float) -> None:
        if now > self._at:
            self._used = max(0.0, self._used - (now - self._at) * self.per_second)
            self._at = now


DOUBLINGS_MAX: Final = 30
"""The largest number of doublings. More of them would make numbers beyond every limit."""


def doubled_seconds(first_seconds: float, doublings: int, max_seconds: float) -> float:
    """Returns `first_seconds`, doubled that many times, or `max_seconds` if that is less."""
    return min(first_seconds * 2.0 ** min(doublings, DOUBLINGS_MAX), max_seconds)


class Backoff:
    """The pauses of one loop that tries again until it succeeds."""

    def __init__(self, first_seconds: float, max_seconds: float, rng: Random | None = None) -> None:
        """`rng` shortens each pause by up to a half, so that callers that failed together do not return together.

        Without it the pauses are exact.
        """
        self._first_seconds = first_seconds
        self._max_seconds = max_seconds
        self._rng = rng
        self._failures = 0

    def next_seconds(self) -> float:
        """Counts one more failure and returns how many seconds to wait after it."""
        seconds = doubled_seconds(self._first_seconds, self._failures, self._max_seconds)
        self._failures += 1
        return seconds if self._rng is None else seconds * self._rng.uniform(0.5, 1.0)

    def reset(self) -> None:
        """Forgets the failures, after a success: the next pause is the first one again."""
        self._failures = 0
