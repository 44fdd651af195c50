"""Large requests go to backends one after the other: while one is sent, it is in memory several times.

All on the asyncio side.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

TURN_SECONDS: Final = 5.0
"""How long one waits for its turn. A backend that does not read what it is sent must not hold up all the others."""


class SendLimiter:
    """Has large requests sent to backends one after the other, since each takes much memory meanwhile."""

    def __init__(self) -> None:
        self._taken = asyncio.Lock()

    @asynccontextmanager
    async def open_aio(self) -> AsyncIterator[None]:
        """One turn; it begins when nobody else has one, or after `TURN_SECONDS`."""
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
