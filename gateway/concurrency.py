"""Two ways in which one task wakes another: a `Wake` is remembered, and a `ParkingSpot` only knows who waits now."""

import trio
from trio.lowlevel import Abort, Task, current_task, reschedule, wait_task_rescheduled


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


class ParkingSpot:
    """A place where one task waits until another one wakes it. It costs less than an event for each wait."""

    __slots__ = ("_task",)

    def __init__(self) -> None:
        self._task: Task | None = None

    async def wait(self) -> None:
        """Waits for the next `wake`. One that nobody waits for is lost, so the caller checks its condition before and
        after. Raises `trio.BusyResourceError` if another task waits here."""
        if self._task is not None:
            raise trio.BusyResourceError("another task waits here already")
        self._task = current_task()
        await wait_task_rescheduled(self._abort)

    def wake(self) -> None:
        """Wakes the task that waits, if there is one."""
        task, self._task = self._task, None
        if task is not None:
            reschedule(task)

    def _abort(self, _raise_cancel: object) -> Abort:
        self._task = None
        return Abort.SUCCEEDED
