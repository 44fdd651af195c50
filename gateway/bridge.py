"""The border between Trio and asyncio: the only module that imports trio_asyncio.

What crosses: whole asyncio functions one way (`Bridge.run`, `Bridge.open_task`), messages both ways (`AioSender`,
`AioReceiver`). A Trio cancel becomes an asyncio cancel and waits until the asyncio side agrees (pitfalls 14 to 19).
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, Generic, TypeVar, TypeVarTuple

import structlog
import trio
import trio_asyncio

log = structlog.get_logger(__name__)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

ABANDON_SECONDS: Final = 5.0
"""How long a cancelled asyncio function may take to end before it is left behind (pitfall 15)."""


class CancelledByAsyncio(Exception):
    """The asyncio side was cancelled although no Trio task asked for it: its connection or loop went away."""


class Bridge:
    """Runs asyncio functions for Trio tasks, all in one thread. Made by `open_bridge`."""

    def __init__(self, loop: trio_asyncio.TrioEventLoop) -> None:
        self._loop = loop

    async def run(self, function: Callable[[*Ts], Awaitable[T]], *args: *Ts) -> T:
        """Runs one asyncio function and returns its result. A cancel reaches it and waits for it to end.

        Raises the errors of the function, and `CancelledByAsyncio` for a cancel that did not come from Trio (pitfall
        16).
        """
        try:
            result: T = await trio_asyncio.aio_as_trio(function)(*args)
        except asyncio.CancelledError as cancelled:
            raise CancelledByAsyncio("the call was cancelled on the asyncio side") from cancelled
        return result

    @asynccontextmanager
    async def open_task(self, function: Callable[[*Ts], Awaitable[None]], *args: *Ts) -> AsyncIterator[None]:
        """Runs one asyncio function beside the body; leaving the body cancels it and waits for its end.

        The function must deliver its failures itself (an exception of its own is logged, nothing else). Neither a
        nursery nor a Trio task is needed, so that an exception of the body stays what it was.
        """
        ended = trio.Event()
        task = self._loop.create_task(_coroutine(function, *args))
        task.add_done_callback(lambda done: _record_end(done, ended))
        try:
            yield
        finally:
            if not ended.is_set():
                task.cancel()
                with trio.move_on_after(ABANDON_SECONDS, shield=True) as scope:
                    await ended.wait()
                if scope.cancelled_caught:
                    log.error("bridge.abandoned", function=function.__qualname__, seconds=ABANDON_SECONDS)


class AioSender(Generic[T]):
    """The asyncio end of a Trio memory channel. It passes items on synchronously and waits only while the reader
    lags."""

    def __init__(self, channel: trio.MemorySendChannel[T]) -> None:
        self._channel = channel

    async def send_aio(self, item: T) -> None:
        """Sends an item. Raises `trio.BrokenResourceError` if the reader is gone."""
        try:
            self._channel.send_nowait(item)
        except trio.WouldBlock:
            await trio_asyncio.trio_as_aio(self._channel.send)(item)
            _raise_if_cancelled()

    def close(self) -> None:
        """Closes the channel: its reader gets `trio.EndOfChannel` once it has taken what was sent."""
        self._channel.close()


class AioReceiver(Generic[T]):
    """The asyncio end of a Trio memory channel that Trio tasks send into."""

    def __init__(self, channel: trio.MemoryReceiveChannel[T]) -> None:
        self._channel = channel

    async def receive_aio(self) -> T:
        """Waits for an item. Raises `trio.EndOfChannel` if no sender is left. A cancel may lose the item that comes in
        that moment."""
        try:
            return self._channel.receive_nowait()
        except trio.WouldBlock:
            item: T = await trio_asyncio.trio_as_aio(self._channel.receive)()
            _raise_if_cancelled()
            return item

    def close(self) -> None:
        """Closes the channel: senders get `trio.BrokenResourceError` from now on."""
        self._channel.close()


@asynccontextmanager
async def open_bridge() -> AsyncIterator[Bridge]:
    """Opens the asyncio loop inside Trio. It has to enclose everything that uses it (pitfall 18)."""
    async with trio_asyncio.open_loop() as loop:
        # The default handler re-raises into the loop's own nursery, which then hung for good under cancelled work.
        loop.set_exception_handler(_log_loop_error)
        yield Bridge(loop)


def _raise_if_cancelled() -> None:
    """Raises the cancel of the running task that was lost at a channel: one that comes in the moment in which an item
    passes finds the Trio side done. The task would go on, and who waits for its end would wait for ever."""
    if (task := asyncio.current_task()) is not None and task.cancelling():
        raise asyncio.CancelledError


async def _coroutine(function: Callable[[*Ts], Awaitable[None]], *args: *Ts) -> None:
    await function(*args)


def _record_end(task: "asyncio.Task[None]", ended: trio.Event) -> None:
    ended.set()
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("bridge.task_failed", exc_info=error)


def _log_loop_error(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    log.warning("bridge.loop_error", message=context.get("message"), exc_info=context.get("exception"))
