"""A place where one task waits until another one wakes it; it costs less than an event for each wait."""

import trio
from trio.lowlevel import Abort, Task, current_task, reschedule, wait_task_rescheduled


class ParkingSpot:
    """At most one task waits here."""

    __slots__ = ("_task",)

    def __init__(self) -> None:
        self._task: Task | None = None

    async def wait(self) -> None:
        """Waits for `wake`. The caller checks before and after what it waits for. Raises `trio.BusyResourceError`."""
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
