"""The registry's clock as this process knows it: what the registry said last, and what has passed here since (H11).

The clock of the machine is not asked: one gateway's may be minutes off, and nothing may depend on that.
"""

import trio


class RegistryClock:
    """Calling it gives seconds of the registry's clock, late by no more than an answer was under way."""

    def __init__(self) -> None:
        self._ahead_of_trio = 0.0

    def update(self, now: float) -> None:
        """The registry has just said that it is `now`."""
        self._ahead_of_trio = now - trio.current_time()

    def __call__(self) -> float:
        return trio.current_time() + self._ahead_of_trio

    def of_trio(self, at: float) -> float:
        """Converts `at`, in seconds of Trio's clock, to seconds of the registry's clock."""
        return at + self._ahead_of_trio

    def to_trio(self, at: float) -> float:
        """Converts `at`, in seconds of the registry's clock, to seconds of Trio's clock."""
        return at - self._ahead_of_trio
