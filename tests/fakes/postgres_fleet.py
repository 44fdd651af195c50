"""Several gateways' ends of one PostgreSQL registry, and transactions that stay open while a test acts."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import trio

from gateway.bridge import Bridge
from gateway.registry.postgres.pool import Bounds, Mode, PostgresPool, PostgresTransaction
from gateway.registry.postgres.registry import PostgresRegistry, open_postgres_registry
from gateway.registry.store import Clock

WAITING: Final = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
PATIENT: Final = Bounds(60.0, 60.0, 60.0, 60.0, 60.0)


@asynccontextmanager
async def open_two(
    bridge: Bridge, url: str, *, clock: Clock | None = None
) -> AsyncIterator[tuple[PostgresRegistry, PostgresRegistry]]:
    async with (
        open_postgres_registry(bridge, url, clock=clock) as one,
        open_postgres_registry(bridge, url, clock=clock) as other,
    ):
        yield one, other


@asynccontextmanager
async def held_open(pool: PostgresPool, mode: Mode, statement: str = "SELECT", *values: object) -> AsyncIterator[None]:
    """The body runs while a transaction of `pool` has the locks of `mode` and of `statement`; it commits afterwards."""
    begun, release = trio.Event(), asyncio.Event()

    async def wait_aio(transaction: PostgresTransaction) -> None:
        await transaction.rows_aio(statement, *values)
        begun.set()
        await release.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.transaction, "hold", mode, wait_aio, PATIENT)
        await begun.wait()
        yield
        release.set()


async def until_waiting(pool: PostgresPool, count: int) -> None:
    """Until so many transactions of the database wait for a lock."""

    async def waiting_aio(transaction: PostgresTransaction) -> int:
        waiting: int = (await transaction.row_aio(WAITING))[0]
        return waiting

    while await pool.transaction("look", Mode.PLAIN, waiting_aio) < count:  # noqa: ASYNC110 - the server's
        await trio.sleep(0.01)


async def hold_for(pool: PostgresPool, seconds: float, *, task_status: trio.TaskStatus[None]) -> None:
    """Holds the lock of the control transactions, busy; started once it has it."""

    async def sleep_aio(transaction: PostgresTransaction) -> None:
        task_status.started()
        await transaction.rows_aio("SELECT pg_sleep($1)", seconds)

    await pool.transaction("hold", Mode.CONTROL, sleep_aio, PATIENT)
