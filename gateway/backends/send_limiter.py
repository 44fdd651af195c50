"""Sends large requests to backends one after the other, because a request is in memory several times while it is sent.

Everything here is on the asyncio side.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

TURN_SECONDS: Final = 5.0
"""How long a request waits for its turn. A backend that does not read must not delay all the others."""


class SendLimiter:
    """Gives turns to large requests, one after the other."""

    def __init__(self) -> None:
        self._taken = asyncio.Lock()

    @asynccontextmanager
    async def open_aio(self) -> AsyncIterator[None]:
        """Waits for a turn and holds it. It begins when no other request has one, or after `TURN_SECONDS`."""
        is_ours = await self._wait_aio()
        try:
            yield
        finally:
            if is_ours:
                self._taken.release()

    async def _wait_aio(self) -> bool:
        try:
            async with asyncio.timeout(TURN_SECONDS):
                return await self._taken.acquire()
        except TimeoutError:
            return False
