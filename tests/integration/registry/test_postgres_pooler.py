"""The PostgreSQL registry behind a transaction pooler: nothing of ours lives in a session, LISTEN excepted."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import asyncpg
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from structlog.testing import capture_logs

from gateway.bridge import Bridge, open_bridge
from gateway.domain.ids import GatewayId, ModelName, ReplicaId
from gateway.domain.peers import PeerState
from gateway.registry.postgres import listener as postgres_listener
from gateway.registry.postgres.registry import PostgresRegistry, open_postgres_registry
from gateway.registry.store import MakeId, Store
from tests.amounts import examples_to_run
from tests.contract.samples import SettableClock, spec
from tests.fakes.postgres_server import PostgresServer
from tests.fakes.transaction_pooler import open_transaction_pooler
from tests.properties.test_registry_model import Call, compare, histories

PATIENCE_SECONDS = 60.0


@pytest.fixture
async def bridge() -> AsyncIterator[Bridge]:
    async with open_bridge() as bridge:
        yield bridge


async def live(registry: PostgresRegistry, gateway_id: GatewayId, rounds: int) -> None:
    """What a gateway does, and what it has to get for an answer, whoever has a connection before and after it."""
    for number in range(rounds):
        name = f"{gateway_id}-{number}"
        assert await registry.put_model(spec(name))
        peer_states = await registry.sync_peers(PeerState(gateway_id, leases={ReplicaId("r"): number}), 60)
        state = await registry.read_state()
        assert peer_states.version <= state.version == len(state.models) + state.epoch
        assert ModelName(name) in state.models
        assert gateway_id not in peer_states.peers
        await registry.acquire_or_renew(gateway_id, 60)


async def test_l16_two_gateways_with_eight_connections_share_two_of_the_server(
    bridge: Bridge, postgres_url: str
) -> None:
    with trio.fail_after(PATIENCE_SECONDS):
        async with (
            open_transaction_pooler(postgres_url, size=2) as pooler,
            open_postgres_registry(bridge, pooler.url, listen_url=postgres_url, pool_size=4) as one,
            open_postgres_registry(bridge, pooler.url, listen_url=postgres_url, pool_size=4) as other,
        ):
            async with trio.open_nursery() as nursery:
                for number in range(4):
                    nursery.start_soon(live, one, GatewayId(f"one-{number}"), 5)
                    nursery.start_soon(live, other, GatewayId(f"other-{number}"), 5)
            assert (await one.read_state()).version == 40 + 1  # a leader has come


@given(history=histories)
@settings(max_examples=examples_to_run(10), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_memory_and_postgres_agree_through_a_pooler(
    postgres_server: PostgresServer, emptied_postgres_url: str, history: Sequence[Call]
) -> None:
    postgres_server.empty(emptied_postgres_url)

    @asynccontextmanager
    async def open_pooled(clock: SettableClock, make_id: MakeId) -> AsyncIterator[Store]:
        async with (
            open_transaction_pooler(emptied_postgres_url) as pooler,
            open_bridge() as bridge,
            open_postgres_registry(
                bridge, pooler.url, listen_url=emptied_postgres_url, clock=clock, make_id=make_id
            ) as registry,
        ):
            yield registry

    trio.run(compare, history, open_pooled)


async def test_m1_with_listen_url_a_write_wakes_at_once(
    bridge: Bridge, emptied_postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_listener, "ASK_EVERY_SECONDS", 2 * PATIENCE_SECONDS)
    with trio.fail_after(PATIENCE_SECONDS):
        async with (
            open_transaction_pooler(emptied_postgres_url) as pooler,
            open_postgres_registry(bridge, pooler.url, listen_url=emptied_postgres_url) as one,
            open_postgres_registry(bridge, pooler.url, listen_url=emptied_postgres_url) as other,
            trio.open_nursery() as nursery,
        ):
            await one.put_model(spec())
            await other.wait_newer(
                0
            )  # maybe by the question that follows LISTEN: only what comes now is heard for sure
            nursery.start_soon(one.put_model, spec("n"))
            await other.wait_newer(1)


async def test_without_listen_url_versions_come_late_and_the_log_says_what_to_do(
    bridge: Bridge, emptied_postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_listener, "ASK_EVERY_SECONDS", 0.05)
    with trio.fail_after(PATIENCE_SECONDS), capture_logs() as logs:
        async with (
            open_transaction_pooler(emptied_postgres_url) as pooler,
            open_postgres_registry(bridge, pooler.url) as one,
            open_postgres_registry(bridge, pooler.url) as other,
        ):
            await one.put_model(spec())
            await other.wait_newer(0)
    assert {
        "event": "registry.listener_stalled",
        "remedy": "let registry.listen_url name the server, not a pooler",
        "log_level": "warning",
    } in logs


async def test_the_pooler_is_one(bridge: Bridge, emptied_postgres_url: str) -> None:
    """What a client leaves in a session is not there in its next transaction, and settings are refused."""

    async def set_and_show_aio(url: str) -> str:
        connection = await asyncpg.connect(url, statement_cache_size=0)
        try:
            await connection.execute("SET lock_timeout = 4711")
            async with connection.transaction():
                shown: str = await connection.fetchval("SHOW lock_timeout")
                return shown
        finally:
            await connection.close()

    async def connect_aio(url: str) -> None:
        await asyncpg.connect(url, server_settings={"statement_timeout": "1s"})

    async with open_transaction_pooler(emptied_postgres_url) as pooler:
        assert await bridge.run(set_and_show_aio, pooler.url) == "0"
        with pytest.raises(asyncpg.PostgresError, match="unsupported startup parameter: statement_timeout"):
            await bridge.run(connect_aio, pooler.url)
