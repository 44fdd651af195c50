"""How fast somebody may go who is free to go faster: a token bucket. Pure; the time is an argument."""

from dataclasses import dataclass, field


@dataclass
class TokenBucket:
    """`burst` at once, and `per_second` in the long run; in whatever unit the caller counts."""

    per_second: float
    burst: float
    _used: float = field(default=0.0, init=False)
    """Of the burst, at `_at`. More than all of it: a debt."""
    _at: float = field(default=float("-inf"), init=False)

    def take(self, amount: float, now: float) -> float:
        """Takes `amount` and returns after how many seconds it may be used: 0 if at once. Whoever takes and does not
        wait makes everybody after him wait the longer."""
        self._settle(now)
        self._used += amount
        return max(0.0, (self._used - self.burst) / self.per_second)

    def try_take(self, amount: float, now: float) -> float:
        """0, and `amount` is taken; or after how many seconds it could be, and nothing is."""
        self._settle(now)
        missing = self._used + amount - self.burst
        if missing > 0:
            return missing / self.per_second
        self._used += amount
        return 0.0

    def is_untouched(self, now: float) -> bool:
        """Whether it is as one that was never used."""
        self._settle(now)
        return self._used == 0.0

    def _settle(self, now: float) -> None:
        if now > self._at:
            self._used = max(0.0, self._used - (now - self._at) * self.per_second)
            self._at = now
