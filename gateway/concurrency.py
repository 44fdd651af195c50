"""A wake-up for a loop. However often it is set before the loop waits, the loop wakes once."""

import trio


class Wake:
    """A wake-up for one task. It says "look again", never what happened, so nothing is lost by setting it twice."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def set(self) -> None:
        """Wakes the waiting task, or else the next one that waits."""
        self._event.set()

    async def wait(self) -> None:
        """Returns at once if it was set since the last `wait`."""
        await self._event.wait()
        self._event = trio.Event()

    async def wait_until(self, deadline: float) -> None:
        """Waits as `wait` does, but no longer than to `deadline` (trio clock, seconds)."""
        with trio.move_on_at(deadline):
            await self.wait()
