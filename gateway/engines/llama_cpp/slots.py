"""Runs as many calls inside llama.cpp as it has slots, and never one more, because a call that waits there cannot be
cancelled."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from gateway.engines.llama_cpp.errors import full

P = ParamSpec("P")
T = TypeVar("T")


class Slots:
    """`total` threads into llama.cpp. It belongs to the event loop's thread, like everything without a lock."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.taken = 0
        self._threads = ThreadPoolExecutor(total, "slot")
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def has_free(self) -> bool:
        """Whether at least one slot is free."""
        return self.taken < self.total

    def start(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
        """Runs the blocking `function` in a slot, which is free again once the function has returned and no sooner.

        Cancelling the future drops the result and frees nothing. When its result arrives, the slot is already free.
        Raises `CallError` (full) at once if no slot is free.
        """
        if not self.has_free:
            raise full()
        running = asyncio.get_running_loop().run_in_executor(self._threads, lambda: function(*args, **kwargs))
        self.taken += 1
        self._idle.clear()
        running.add_done_callback(self._release)
        return asyncio.shield(running)

    async def wait_idle(self) -> None:
        """Waits until no slot is taken. Returns at once if none is."""
        await self._idle.wait()

    def close(self) -> None:
        """Ends the threads. It is called when a model is unloaded."""
        self._threads.shutdown(wait=False)

    def _release(self, _: asyncio.Future[Any]) -> None:
        self.taken -= 1
        if not self.taken:
            self._idle.set()
