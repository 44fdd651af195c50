"""A limited pool of connections to PostgreSQL. A connection is used for a whole transaction, and every wait is limited
here.

Theory of operation. One transaction is one asyncio function on one connection (pitfalls 14 and 24), and needs no second
one. So callers that wait for the pool never hold what others wait for (L16). A transaction begins with one simple
query. For this transaction only, and whatever the settings of the role, the query also limits how long a statement, a
lock and the silence of this process may take (L1, L2). So it works behind a transaction pooler. A gateway that is
stopped in the middle (SIGSTOP, a machine that vanishes) is disconnected by the server and does not keep its row locks.
In addition, each attempt and each call has a deadline here. A transaction that was cancelled or ran into its deadline
is not asked to roll back: its connection is cut, which has the same effect without waiting.

A transaction leaves nothing behind in its session: no prepared statement, no setting, no advisory lock.
"""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeAlias, TypeVar

import asyncpg
import trio

from gateway.bridge import Bridge, CancelledByAsyncio
from gateway.domain.pacing import Backoff
from gateway.registry.postgres.errors import FAILURES, CommitUnknown, check_url, explained, is_transient, server_of
from gateway.registry.protocol import RegistryError

Result = TypeVar("Result")
Connection: TypeAlias = "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"
Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"

POOL_SIZE: Final = 5
CONNECT_SECONDS: Final = 5.0
IDLE_CONNECTION_SECONDS: Final = 60.0
CLOSE_SECONDS: Final = 5.0
RETRY_FIRST_SECONDS: Final = 0.05
RETRY_MAX_SECONDS: Final = 60.0


@dataclass(frozen=True)
class Bounds:
    """How long the parts of one call may take."""

    lock_seconds: float = 3.0
    statement_seconds: float = 5.0
    idle_seconds: float = 3.0
    """The longest silence of this process within a transaction."""
    attempt_seconds: float = 8.0
    """The time of one attempt, without the wait for a connection."""
    call_seconds: float = 20.0
    attempts: int = 4


class Mode(StrEnum):
    """How a transaction begins. A gateway's transaction touches `state_version` first: see the module `schema`."""

    PLAIN = ""
    """The transaction begins without a table of the registry, because there may be none yet."""
    SHARED = "; LOCK TABLE state_version IN ACCESS SHARE MODE"
    """The transaction does not change the version."""
    CONTROL = "; SELECT FROM state_version FOR UPDATE"
    """The transaction changes the version. Only one at a time runs in the whole fleet."""


class PostgresTransaction:
    """The operations between BEGIN and COMMIT, on the asyncio side. It counts its statements."""

    def __init__(self, connection: "Connection | asyncpg.Connection[asyncpg.Record]") -> None:
        self._connection = connection
        self.statements = 0
        self.is_committing = False
        """Whether COMMIT was sent. From then on the server decides the outcome."""

    async def rows_aio(self, sql: str, *parameters: object) -> list[asyncpg.Record]:
        """Executes one statement and returns all its rows. Raises an error of asyncpg."""
        self.statements += 1
        return await self._connection.fetch(sql, *parameters)

    async def row_aio(self, sql: str, *parameters: object) -> asyncpg.Record:
        """Executes a statement that returns one row, and returns that row."""
        (row,) = await self.rows_aio(sql, *parameters)
        return row

    async def write_aio(self, sql: str, rows: Sequence[Sequence[object]]) -> None:
        """Executes `sql` once for each row, all of them in one round trip."""
        self.statements += len(rows)
        if rows:
            await self._connection.executemany(sql, rows)

    async def script_aio(self, sql: str) -> None:
        """Executes several statements without parameters."""
        self.statements += 1
        await self._connection.execute(sql)


Work: TypeAlias = Callable[[PostgresTransaction], Awaitable[Result]]
"""One whole transaction, on the asyncio side. It may run more than once. An error that it raises rolls back."""


class PostgresPool:
    """The pool. `open_postgres_pool` makes it. `statements` counts the SQL statements between BEGIN and COMMIT by
    method."""

    def __init__(self, bridge: Bridge, pool: Pool, server: str) -> None:
        self._bridge = bridge
        self._pool = pool
        self.server = server
        self.statements = Counter[str]()

    async def transaction(self, method: str, mode: Mode, work: Work[Result], bounds: Bounds = Bounds()) -> Result:
        """Runs `work` in a transaction and commits it. It repeats the transaction after a temporary failure, within the
        bounds.

        Raises `RegistryError` if PostgreSQL or the network fails, and the errors of `work`.
        """
        try:
            return await self._bridge.run(self._call_aio, method, mode, work, bounds)
        except CancelledByAsyncio as error:
            raise RegistryError(f"{self.server} was left while it was in use") from error

    async def _call_aio(self, method: str, mode: Mode, work: Work[Result], bounds: Bounds) -> Result:
        try:
            async with asyncio.timeout(bounds.call_seconds):
                return await self._attempts_aio(method, mode, work, bounds)
        except (*FAILURES, CommitUnknown) as error:
            raise explained(self.server, error) from error

    async def _attempts_aio(self, method: str, mode: Mode, work: Work[Result], bounds: Bounds) -> Result:
        backoff = Backoff(RETRY_FIRST_SECONDS, RETRY_MAX_SECONDS, random.Random())  # noqa: S311 - spreads who collided
        for _ in range(bounds.attempts - 1):
            try:
                return await self._attempt_aio(method, mode, work, bounds)
            except FAILURES as error:
                if not is_transient(error):
                    raise
            await asyncio.sleep(backoff.next_seconds())
        return await self._attempt_aio(method, mode, work, bounds)

    async def _attempt_aio(self, method: str, mode: Mode, work: Work[Result], bounds: Bounds) -> Result:
        connection = await self._pool.acquire()
        transaction = PostgresTransaction(connection)
        try:
            async with asyncio.timeout(bounds.attempt_seconds):
                return await self._transaction_aio(transaction, connection, method, mode=mode, work=work, bounds=bounds)
        except TimeoutError as error:
            # A server that does not answer here does not answer on the older connections either.
            await self._pool.expire_connections()
            if transaction.is_committing:
                raise CommitUnknown from error
            raise
        finally:
            await self._pool.release(connection)

    async def _transaction_aio(
        self,
        transaction: PostgresTransaction,
        connection: Connection,
        method: str,
        mode: Mode,
        work: Work[Result],
        bounds: Bounds,
    ) -> Result:
        is_over = False
        try:
            await connection.execute(_begin(mode, bounds))
            try:
                result = await work(transaction)
            except Exception:
                await connection.execute("ROLLBACK")
                is_over = True
                raise
            transaction.is_committing = True
            await _commit_aio(connection)
            is_over = True
            return result
        finally:
            self.statements[method] += transaction.statements
            if not is_over:
                _end_connection(connection)


def _begin(mode: Mode, bounds: Bounds) -> str:
    limits = {
        "lock_timeout": bounds.lock_seconds,
        "statement_timeout": bounds.statement_seconds,
        "idle_in_transaction_session_timeout": bounds.idle_seconds,
    }
    settings = "".join(f"; SET LOCAL {name} = {round(seconds * 1000)}" for name, seconds in limits.items())
    # Compiling one of our statements takes a hundred times as long as running it.
    return f"BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL jit = off{settings}{mode.value}"


def _end_connection(connection: Connection) -> None:
    """Closes the connection, so that nobody can use it again. A connection that has broken needs no closing."""
    with suppress(asyncpg.InterfaceError):
        connection.terminate()


async def _commit_aio(connection: Connection) -> None:
    try:
        await connection.execute("COMMIT")
    except FAILURES as error:
        raise CommitUnknown from error


async def _keep_session_aio(_connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """Does nothing: there is nothing to reset, and so no round trip."""


@asynccontextmanager
async def open_postgres_pool(bridge: Bridge, url: str, *, size: int = POOL_SIZE) -> AsyncIterator[PostgresPool]:
    """Opens the pool. It connects when it is first needed, with at most `size` connections. Raises `RegistryError` for
    an invalid URL."""
    check_url(url)
    server = server_of(url)

    async def open_aio() -> Pool:
        """Creates the pool. It opens no connection yet."""
        return await asyncpg.create_pool(
            url,
            min_size=0,
            max_size=size,
            max_inactive_connection_lifetime=IDLE_CONNECTION_SECONDS,
            statement_cache_size=0,
            timeout=CONNECT_SECONDS,
            reset=_keep_session_aio,
            server_settings={"application_name": "gateway"},
        )

    try:
        pool = await bridge.run(open_aio)
    except FAILURES as error:
        raise explained(server, error) from error
    try:
        yield PostgresPool(bridge, pool, server)
    finally:
        with trio.move_on_after(CLOSE_SECONDS, shield=True):
            await bridge.run(_close_aio, pool)


async def _close_aio(pool: Pool) -> None:
    """Closes the pool, and says goodbye to the server if that answers."""
    with suppress(*FAILURES):
        async with asyncio.timeout(CLOSE_SECONDS / 2):
            await pool.close()
            return
    pool.terminate()
