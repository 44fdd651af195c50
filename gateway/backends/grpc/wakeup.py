"""Wakes the one task that waits for a call. It costs less than an event, which a call would need anew for each wait."""

import trio


class Wakeup:
    """A place at which at most one task waits."""

    __slots__ = ("_task",)

    def __init__(self) -> None:
        self._task: trio.lowlevel.Task | None = None

    async def wait(self) -> None:
        """Waits for the next `wake`. A wake-up that nobody waits for is lost, so the caller checks its condition
        first, and again afterwards."""
        self._task = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._abort)

    def wake(self) -> None:
        """Wakes the waiting task, if there is one."""
        task, self._task = self._task, None
        if task is not None:
            trio.lowlevel.reschedule(task)

    def _abort(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED
