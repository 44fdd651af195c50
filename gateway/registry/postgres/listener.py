"""Learns of new versions from PostgreSQL, on a connection of its own that is made again whenever it breaks.

A notification only wakes. Notifications may be lost while nobody listens, so the listener asks for the version once
LISTEN is in force: later commits notify it, and earlier ones are in the answer. It asks the same now and then, with a
time limit. That finds a connection that is dead without having ended, and a pooler that has dropped LISTEN.
"""

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TypeAlias

import asyncpg
import structlog

from gateway.domain.pacing import Backoff
from gateway.registry.postgres.errors import FAILURES, explained, server_of
from gateway.registry.postgres.pool import CONNECT_SECONDS
from gateway.registry.postgres.sql import CHANNEL

log = structlog.get_logger()

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

RETRY_FIRST_SECONDS: Final = 0.1
RETRY_MAX_SECONDS: Final = 5.0
ASK_EVERY_SECONDS: Final = 10.0
ANSWER_SECONDS: Final = 5.0

ASK: Final = f"""
SELECT version, pg_backend_pid() AS pid, '{CHANNEL}' IN (SELECT pg_listening_channels()) AS is_listening
FROM state_version
"""  # noqa: S608 - constants only


class VersionListener:
    """Calls `advance_version`, on the asyncio side, with versions that the state has reached. A version may come late
    or twice.

    While the server answers, no version is missed for longer than `ASK_EVERY_SECONDS`.
    """

    def __init__(self, url: str, advance_version: Callable[[int], None]) -> None:
        self._url = url
        self._server = server_of(url)
        self._advance_version = advance_version
        self._backoff = Backoff(RETRY_FIRST_SECONDS, RETRY_MAX_SECONDS, random.Random())  # noqa: S311 - spreads a fleet
        self._is_lost = False
        self._is_stalled = False

    async def run_aio(self) -> None:
        """Listens for new versions, and connects again after each failure, until it is cancelled."""
        while True:
            try:
                await self._listen_aio()
            except FAILURES as error:
                if not self._is_lost:
                    log.warning("registry.listener_lost", error=str(explained(self._server, error)))
                self._is_lost = True
            await asyncio.sleep(self._backoff.next_seconds())

    async def _listen_aio(self) -> None:
        """Listens until the connection is lost. Then it returns, or raises one of `FAILURES`."""
        connection = await asyncpg.connect(
            self._url,
            timeout=CONNECT_SECONDS,
            command_timeout=ANSWER_SECONDS,
            statement_cache_size=0,
            server_settings={"application_name": "gateway listener"},
        )
        ended = asyncio.Event()
        try:
            connection.add_termination_listener(lambda _: ended.set())
            await connection.add_listener(CHANNEL, self._apply_notification)
            while not ended.is_set():
                await self._ask_aio(connection)
                self._record_success()
                with suppress(TimeoutError):
                    async with asyncio.timeout(ASK_EVERY_SECONDS):
                        await ended.wait()
        finally:
            connection.terminate()

    async def _ask_aio(self, connection: Connection) -> None:
        # Behind a transaction pooler, statements that belong together have to be one transaction.
        async with connection.transaction():
            (row,) = await connection.fetch(ASK)
        self._advance_version(row["version"])
        # A pooler answers for any server process, under a number that it has invented.
        is_stalled = not row["is_listening"] or row["pid"] != connection.get_server_pid()
        if is_stalled and not self._is_stalled:
            log.warning("registry.listener_stalled", remedy="let registry.listen_url name the server, not a pooler")
        self._is_stalled = is_stalled

    def _record_success(self) -> None:
        self._backoff.reset()
        if self._is_lost:
            log.info("registry.listener_back")
        self._is_lost = False

    def _apply_notification(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        with suppress(ValueError):  # Any client of the database may notify.
            self._advance_version(int(str(payload)))
