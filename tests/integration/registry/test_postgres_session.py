"""The session for exchanges of peer states: one round trip each, and the pool does the same work without it."""

from collections.abc import AsyncIterator

import pytest
import trio
from structlog.testing import capture_logs

from gateway.bridge import Bridge, open_bridge
from gateway.domain.ids import GatewayId, ReplicaId
from gateway.domain.peers import PeerState
from gateway.registry.postgres.registry import PostgresRegistry, open_postgres_registry
from tests.contract.samples import GATEWAY, OTHER_GATEWAY, SettableClock
from tests.fakes.postgres_server import PostgresServer
from tests.fakes.transaction_pooler import open_transaction_pooler

PATIENCE_SECONDS = 60.0
OF_SESSIONS = "FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND query LIKE '%WITH counter%'"
"""The connections whose last statement is an exchange. In a transaction of the pool the last one is COMMIT."""
R = ReplicaId("r")


@pytest.fixture
async def bridge() -> AsyncIterator[Bridge]:
    with trio.fail_after(PATIENCE_SECONDS):
        async with open_bridge() as bridge:
            yield bridge


async def exchange(registry: PostgresRegistry, leases: int, gateway_id: GatewayId = GATEWAY) -> PeerState | None:
    """Returns what the other gateway has published."""
    peer_states = await registry.sync_peers(PeerState(gateway_id, leases={R: leases}), 60)
    return peer_states.peers.get(OTHER_GATEWAY if gateway_id == GATEWAY else GATEWAY)


async def test_an_exchange_between_peers_is_one_statement_and_no_transaction(
    bridge: Bridge, postgres_server: PostgresServer, emptied_postgres_url: str
) -> None:
    async with open_postgres_registry(bridge, emptied_postgres_url, clock=SettableClock()) as registry:
        await exchange(registry, 1)
        assert postgres_server.ask(emptied_postgres_url, f"SELECT count(*) {OF_SESSIONS}") == ["0"]  # it has no peer
        await exchange(registry, 1, OTHER_GATEWAY)
        await exchange(registry, 2)
        before = registry.statistics().statements["exchange"]
        for number in range(10):
            await exchange(registry, number, OTHER_GATEWAY)
            assert await exchange(registry, number) == PeerState(OTHER_GATEWAY, leases={R: number})
        assert registry.statistics().statements["exchange"] == before + 20
        assert postgres_server.ask(emptied_postgres_url, f"SELECT count(*) {OF_SESSIONS}") == ["1"]


async def test_a_session_that_the_server_has_ended_costs_no_exchange(
    bridge: Bridge, postgres_server: PostgresServer, emptied_postgres_url: str
) -> None:
    async with open_postgres_registry(bridge, emptied_postgres_url) as registry:
        for number in range(3):
            await exchange(registry, number, OTHER_GATEWAY)
            await exchange(registry, number)
        ended = postgres_server.ask(emptied_postgres_url, f"SELECT pg_terminate_backend(pid, 60000) {OF_SESSIONS}")
        assert ended == ["t"]
        with capture_logs() as logs:
            assert await exchange(registry, 7) == PeerState(OTHER_GATEWAY, leases={R: 2})
            assert await exchange(registry, 8, OTHER_GATEWAY) == PeerState(GATEWAY, leases={R: 7})
        assert [entry["event"] for entry in logs].count("registry.session_lost") == 1


async def test_a_cancelled_exchange_harms_none_that_follows(bridge: Bridge, emptied_postgres_url: str) -> None:
    async with open_postgres_registry(bridge, emptied_postgres_url) as registry:
        for number in range(3):
            await exchange(registry, number, OTHER_GATEWAY)
            await exchange(registry, number)
        with trio.CancelScope() as scope:
            scope.cancel()
            await exchange(registry, 5)
        assert await exchange(registry, 6) == PeerState(OTHER_GATEWAY, leases={R: 2})


async def test_a_pooler_gives_no_session_and_the_exchange_works(
    bridge: Bridge, postgres_server: PostgresServer, emptied_postgres_url: str
) -> None:
    async with (
        open_transaction_pooler(emptied_postgres_url, size=2) as pooler,
        open_postgres_registry(bridge, pooler.url) as registry,
    ):
        for number in range(1, 5):
            await exchange(registry, number, OTHER_GATEWAY)
            assert await exchange(registry, number) == PeerState(OTHER_GATEWAY, leases={R: number})
        assert postgres_server.ask(emptied_postgres_url, f"SELECT count(*) {OF_SESSIONS}") == ["0"]
