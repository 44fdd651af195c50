"""A gateway that stops in the one moment in which PostgreSQL does not end its transaction by itself."""

import subprocess
import sys

import trio

from gateway.bridge import open_bridge
from gateway.domain.ids import GatewayId
from gateway.domain.peers import PeerState
from gateway.registry.postgres.pool import Bounds
from gateway.registry.postgres.registry import open_postgres_registry

STOPPED = """
import asyncio, os, signal, sys, trio
from gateway.bridge import open_bridge
from gateway.registry.postgres.pool import Mode, open_postgres_pool

async def stop_aio(transaction):
    await transaction._connection.prepare("SELECT $1::int")
    print("between two messages", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)

async def main():
    async with open_bridge() as bridge, open_postgres_pool(bridge, sys.argv[1]) as pool:
        await pool.transaction("stop", Mode.CONTROL, stop_aio)

trio.run(main)
"""
PATIENCE_SECONDS = 30.0


async def test_l13_a_gateway_that_is_stopped_in_the_middle_of_a_statement_holds_nobody_up(
    migrated_postgres_url: str,
) -> None:
    """It has sent what the statement is, and not yet what it is for. The others go on exchanging, and one wants to
    lead."""
    command = [sys.executable, "-c", STOPPED, migrated_postgres_url]
    one, other = GatewayId("one"), GatewayId("other")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as stopped:  # noqa: ASYNC220 - it is brief
        try:
            assert stopped.stdout is not None
            assert await trio.to_thread.run_sync(stopped.stdout.readline) == "between two messages\n"
            with trio.fail_after(PATIENCE_SECONDS):
                async with (
                    open_bridge() as bridge,
                    open_postgres_registry(bridge, migrated_postgres_url) as registry,
                    trio.open_nursery() as nursery,
                ):

                    async def exchange() -> None:
                        while True:
                            await registry.sync_peers(PeerState(other), 10.0)
                            await trio.sleep(Bounds().idle_seconds / 4)

                    nursery.start_soon(exchange)
                    assert await registry.acquire_or_renew(one, 10.0) == 1
                    nursery.cancel_scope.cancel()
        finally:
            stopped.kill()
