"""Sends large requests to backends one after the other, because a request is in memory several times while it is
sent."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio

TURN_SECONDS: Final = 5.0
"""How long a request waits for its turn. A backend that does not read must not delay all the others."""


class SendLimiter:
    """Gives turns to large requests, one after the other."""

    def __init__(self) -> None:
        self._taken = trio.Lock()

    @asynccontextmanager
    async def open_turn(self) -> AsyncIterator[None]:
        """Waits for a turn and holds it. It begins when no other request has one, or after `TURN_SECONDS`."""
        with trio.move_on_after(TURN_SECONDS) as waited:
            await self._taken.acquire()
        is_ours = not waited.cancelled_caught
        try:
            yield
        finally:
            if is_ours:
                self._taken.release()
