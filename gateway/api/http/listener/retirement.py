"""The end of a listener at whose address others go on: it accepts nothing more, and no client loses a request by it.

A drain closes idle connections at once and refuses later requests. A client that sends a request at that moment gets an
error, although another process could have served it. A retirement lets each client leave by itself: the next response
on its connection says that the connection ends, and a connection without any request ends after the usual time. Only
then does the drain begin, and only requests that are still running are left for it.
"""

from collections.abc import Awaitable, Callable

import trio


class Retirement:
    """The two moments of a retirement."""

    def __init__(self) -> None:
        self.begun = trio.Event()
        """Set by whoever retires the listener. From then on it accepts nothing more."""
        self.over = trio.Event()
        """Set by the listener once a drain surprises no client. Running requests may be left."""


async def wait_first(*waits: Callable[[], Awaitable[object]]) -> None:
    """Returns as soon as one of the waits returns."""
    async with trio.open_nursery() as nursery:

        async def wait(until: Callable[[], Awaitable[object]]) -> None:
            """Ends all waits with its own."""
            await until()
            nursery.cancel_scope.cancel()

        for until in waits:
            nursery.start_soon(wait, until)
