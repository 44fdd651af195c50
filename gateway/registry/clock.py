"""The registry's clock as this process knows it: the last time that the registry gave, plus the time since then (H11).

The clock of the machine is not used. It may be minutes off, and nothing may depend on it.
"""

import trio


class RegistryClock:
    """Calling it returns seconds of the registry's clock. They are late by no more than the last answer took to
    arrive."""

    def __init__(self) -> None:
        self._ahead_of_trio = 0.0

    def update(self, now: float) -> None:
        """Records that the registry's clock shows `now` at this moment."""
        self._ahead_of_trio = now - trio.current_time()

    def __call__(self) -> float:
        return trio.current_time() + self._ahead_of_trio

    def of_trio(self, at: float) -> float:
        """Converts `at`, in seconds of Trio's clock, to seconds of the registry's clock."""
        return at + self._ahead_of_trio

    def to_trio(self, at: float) -> float:
        """Converts `at`, in seconds of the registry's clock, to seconds of Trio's clock."""
        return at - self._ahead_of_trio
