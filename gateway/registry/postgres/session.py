"""A session of its own with the server, for what a gateway with peers repeats up to fifty times a second.

A transaction of the pool takes four round trips: BEGIN with its settings, the preparation of the statement, the
statement, COMMIT. Here the settings are those of the session, the statements stay prepared, and each statement is a
transaction by itself. So one round trip is left, at a third of the CPU time.

Nothing depends on the session. It is left at the first error, and while there is none the pool does the same work. A
pooler cannot give one, which its answer shows: it does not know the number of the server's process.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import inf
from typing import Final, TypeAlias

import asyncpg
import structlog
import trio

from gateway.bridge import Bridge, CancelledByAsyncio
from gateway.registry.postgres.errors import FAILURES, explained, server_of
from gateway.registry.postgres.pool import CLOSE_SECONDS, CONNECT_SECONDS, Bounds, PostgresTransaction, Result, Work

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
Prepared: TypeAlias = "asyncpg.prepared_stmt.PreparedStatement[asyncpg.Record]"

log = structlog.get_logger(__name__)

OPEN_EVERY_SECONDS: Final = 10.0
"""The least time between two attempts to open a session."""
BOUNDS: Final = Bounds()
SETTINGS: Final = (
    f"SET lock_timeout = {round(BOUNDS.lock_seconds * 1000)}"
    f"; SET statement_timeout = {round(BOUNDS.statement_seconds * 1000)}"
    "; SET jit = off; SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED"
)


class SessionStatements(PostgresTransaction):
    """The operations of a session, on the asyncio side. Each statement commits itself, and is prepared once."""

    def __init__(self, connection: Connection, prepared: dict[str, Prepared]) -> None:
        super().__init__(connection)
        self._session = connection
        self._prepared = prepared

    async def rows_aio(self, sql: str, *parameters: object) -> list[asyncpg.Record]:
        """Executes one statement and returns all its rows. Raises an error of asyncpg."""
        self.statements += 1
        prepared = self._prepared.get(sql)
        if prepared is None:
            name = f"gateway_{len(self._prepared)}"  # Without a name, the server would parse it each time.
            prepared = self._prepared[sql] = await self._session.prepare(sql, name=name)
        return await prepared.fetch(*parameters)


class ServerSession:
    """The session. It is opened when it is first asked for."""

    def __init__(self, bridge: Bridge, url: str, statements: Counter[str]) -> None:
        """`statements` counts the SQL statements by method."""
        self._bridge = bridge
        self._url = url
        self._statements = statements
        self._connection: Connection | None = None
        self._prepared: dict[str, Prepared] = {}
        self._open_at = -inf
        """The time from which a session may be opened (asyncio's clock, seconds)."""
        self._is_busy = False

    async def run(self, method: str, work: Work[Result]) -> Result | None:
        """Runs `work`, each of its statements by itself. Returns None if there is no session, or it failed: the same
        work has to be done otherwise then, and may be done already. Raises the errors of `work`."""
        try:
            return await self._bridge.run(self._run_aio, method, work)
        except CancelledByAsyncio:
            return None

    async def _run_aio(self, method: str, work: Work[Result]) -> Result | None:
        if self._is_busy:
            return None
        self._is_busy, is_done = True, False
        try:
            async with asyncio.timeout(BOUNDS.attempt_seconds):
                result = await self._work_aio(method, work) if await self._is_open_aio() else None
            is_done = True
            return result
        except FAILURES as error:
            log.info("registry.session_lost", error=str(explained(server_of(self._url), error)))
            return None
        finally:
            self._is_busy = False
            if not is_done:
                self._leave()

    async def _work_aio(self, method: str, work: Work[Result]) -> Result:
        assert self._connection is not None  # noqa: S101 - the caller has just opened it
        statements = SessionStatements(self._connection, self._prepared)
        try:
            return await work(statements)
        finally:
            self._statements[method] += statements.statements

    async def _is_open_aio(self) -> bool:
        """Returns whether there is a session, and opens one if it is time to. Raises one of `FAILURES`."""
        if self._connection is not None:
            return True
        now = asyncio.get_running_loop().time()
        if now < self._open_at:
            return False
        self._open_at = now + OPEN_EVERY_SECONDS
        self._connection = await asyncpg.connect(
            self._url,
            timeout=CONNECT_SECONDS,
            statement_cache_size=0,
            server_settings={"application_name": "gateway"},
        )
        if not await _is_servers_own_aio(self._connection):
            self._open_at = inf
            self._leave()
            return False
        await self._connection.execute(SETTINGS)
        return True

    def _leave(self) -> None:
        connection, self._connection, self._prepared = self._connection, None, {}
        if connection is not None:
            connection.terminate()

    async def close_aio(self) -> None:
        """Ends the session."""
        self._leave()


async def _is_servers_own_aio(connection: Connection) -> bool:
    """Returns whether this is a connection to the server itself. It leaves nothing behind in the session of a
    pooler."""
    async with connection.transaction():
        pid: int = await connection.fetchval("SELECT pg_backend_pid()")
    return pid == connection.get_server_pid()


@asynccontextmanager
async def open_server_session(bridge: Bridge, url: str, statements: Counter[str]) -> AsyncIterator[ServerSession]:
    """Opens a session with the server of `url`, which connects when it is first needed."""
    session = ServerSession(bridge, url, statements)
    try:
        yield session
    finally:
        with trio.move_on_after(CLOSE_SECONDS, shield=True):
            await bridge.run(session.close_aio)
