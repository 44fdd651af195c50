"""The PostgreSQL registry on a real server: many gateways at once, roles with limits, and a server that goes away."""

import asyncio
import itertools
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import asyncpg
import pytest
import trio
from structlog.testing import capture_logs

from gateway.bridge import Bridge, open_bridge
from gateway.domain.cluster import EMPTY_STATE, ClusterState
from gateway.domain.ids import ModelName, ReplicaId
from gateway.domain.peers import SILENT_SECONDS_MAX, PeerState
from gateway.domain.plan_write import ControlWrite
from gateway.registry.peer_rows import TEXT_COLUMNS
from gateway.registry.postgres import listener as postgres_listener
from gateway.registry.postgres.peer_sync import PeerStateCache
from gateway.registry.postgres.pool import Bounds, Mode, PostgresPool, PostgresTransaction, open_postgres_pool
from gateway.registry.postgres.registry import FORGET_DEAD_EVERY_SECONDS, PostgresRegistry, open_postgres_registry
from gateway.registry.postgres.sql import RENEW_TERM
from gateway.registry.protocol import RegistryError, StaleEpoch
from gateway.registry.snapshot import SnapshotStore, run_snapshot_watcher
from tests.contract.samples import (
    GATEWAY,
    NODE,
    OTHER_GATEWAY,
    REPLICA,
    SettableClock,
    join,
    replica,
    spec,
)
from tests.fakes.fleet import at_once
from tests.fakes.postgres_fleet import held_open, hold_for, open_two, until_waiting
from tests.fakes.postgres_server import PostgresServer
from tests.fakes.relay import open_relay

PATIENCE_SECONDS = 60.0
"""More than anything here takes; only something that hangs runs into it."""
ROUNDS_MIN = 50
CANCELS_MIN = 50
"""Of writes that are cancelled at any moment, in all lanes."""


@pytest.fixture
async def bridge() -> AsyncIterator[Bridge]:
    async with open_bridge() as bridge:
        yield bridge


async def put(registry: PostgresRegistry, name: str) -> None:
    await registry.put_model(spec(name))


# Many at once


@pytest.mark.parametrize("limit", ["statement_timeout", "lock_timeout"])
async def test_l1_l2_a_role_with_short_limits_waits_as_long_as_we_say(
    bridge: Bridge, postgres_server: PostgresServer, migrated_postgres_url: str, limit: str
) -> None:
    url = postgres_server.make_role(migrated_postgres_url, **{limit: "100ms"})
    with trio.fail_after(PATIENCE_SECONDS):
        async with (
            open_postgres_registry(bridge, url, pool_size=20) as registry,
            open_postgres_pool(bridge, migrated_postgres_url) as pool,
        ):
            async with trio.open_nursery() as nursery:
                await nursery.start(hold_for, pool, 1.5)
                for number in range(20):
                    nursery.start_soon(put, registry, f"m{number}")
            assert len((await registry.read_state()).models) == 20


async def test_r10_twenty_claims_of_a_node_with_four_slots_are_four_rows(
    bridge: Bridge, emptied_postgres_url: str
) -> None:
    async with open_two(bridge, emptied_postgres_url) as both:
        await join(both[0])
        epoch = await both[0].acquire_or_renew(GATEWAY, 60)
        assert epoch is not None

        async def claim(number: int) -> None:
            row = replica(ReplicaId(f"r{number}"), slot=number % 4)
            if await both[number % 2].apply(epoch, ControlWrite(create=(row,))):
                placed.append(row)

        placed: list[object] = []
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(claim, number)
        rows = (await both[0].read_state()).replicas
    assert len(placed) == 4
    assert sorted(row.slot for row in rows.values()) == [0, 1, 2, 3]


async def test_l16_fifty_transactions_share_five_connections(bridge: Bridge, emptied_postgres_url: str) -> None:
    with trio.fail_after(PATIENCE_SECONDS):
        async with open_postgres_registry(bridge, emptied_postgres_url, pool_size=5) as registry:
            async with trio.open_nursery() as nursery:
                for number in range(50):
                    nursery.start_soon(put, registry, f"m{number}")
                    nursery.start_soon(registry.read_state)
            assert (await registry.read_state()).version == 50


async def test_m1_a_write_of_one_gateway_wakes_the_other(
    bridge: Bridge, emptied_postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_listener, "ASK_EVERY_SECONDS", 2 * PATIENCE_SECONDS)
    with trio.fail_after(PATIENCE_SECONDS):
        async with open_two(bridge, emptied_postgres_url) as (one, other), trio.open_nursery() as nursery:
            await put(one, "m")
            await other.wait_newer(
                0
            )  # maybe by the question that follows LISTEN: only what comes now is heard for sure
            nursery.start_soon(put, one, "n")
            await other.wait_newer(1)
            assert (await other.read_state()).version == 2


async def test_m3_a_database_that_went_back_is_read_anew_and_its_writes_are_seen(
    bridge: Bridge, emptied_postgres_url: str, postgres_server: PostgresServer
) -> None:
    """As after the failover to a standby that had not heard of the last commits."""
    async with open_two(bridge, emptied_postgres_url) as (one, other), trio.open_nursery() as nursery:
        for number in range(10):
            await one.put_model(spec(f"m{number}"))
        store: SnapshotStore[ClusterState] = SnapshotStore(EMPTY_STATE)
        await nursery.start(run_snapshot_watcher, one, store, at_once(lambda state: state))
        assert store.current.version == 10
        postgres_server.ask(emptied_postgres_url, "UPDATE state_version SET version = 3")
        await other.put_model(spec("after"))
        with trio.fail_after(PATIENCE_SECONDS):
            await one.sync_peers(PeerState(GATEWAY), 10)
            while "after" not in store.current.models:
                await store.wait_change(store.current)
            assert store.current.version == 4
            reads = one.statistics().statements["read_state"]
            await trio.sleep(0.3)  # a watcher that spins shows here
            assert one.statistics().statements["read_state"] <= reads + 1
            await other.put_model(spec("later"))
            while "later" not in store.current.models:
                await store.wait_change(store.current)
        nursery.cancel_scope.cancel()


async def test_m1_versions_come_in_the_order_of_commits_and_none_is_missed(
    bridge: Bridge, emptied_postgres_url: str
) -> None:
    async def write(registry: PostgresRegistry, names: range) -> None:
        for number in names:
            await put(registry, f"m{number}")

    with trio.fail_after(PATIENCE_SECONDS):
        async with open_two(bridge, emptied_postgres_url) as (one, other), trio.open_nursery() as nursery:
            for first in range(0, 100, 10):
                nursery.start_soon(write, one if first % 20 else other, range(first, first + 10))
            seen = 0
            while seen < 100:
                await one.wait_newer(seen)
                state = await one.read_state()
                assert state.version == len(state.models) > seen
                seen = state.version


async def test_l13_an_epoch_that_was_taken_over_while_its_plan_waited_writes_nothing(
    bridge: Bridge,
    emptied_postgres_url: str,
) -> None:
    async with (
        open_two(bridge, emptied_postgres_url) as (old, new),
        open_postgres_pool(bridge, emptied_postgres_url) as pool,
    ):
        await join(old)
        assert await old.acquire_or_renew(GATEWAY, 0) == 1

        async def plan() -> None:
            with pytest.raises(StaleEpoch):
                await old.apply(1, ControlWrite(create=(replica(),)))

        async with trio.open_nursery() as nursery, held_open(pool, Mode.CONTROL):
            nursery.start_soon(new.acquire_or_renew, OTHER_GATEWAY, 60)
            await until_waiting(pool, 1)
            nursery.start_soon(plan)
            await until_waiting(pool, 2)
        assert (await old.read_state()).replicas == {}


async def test_l15_a_term_that_is_prolonged_in_the_last_moment_is_not_taken(
    bridge: Bridge, emptied_postgres_url: str
) -> None:
    clock, taken = SettableClock(), []
    async with (
        open_two(bridge, emptied_postgres_url, clock=clock) as (old, new),
        open_postgres_pool(bridge, emptied_postgres_url) as pool,
    ):
        assert await old.acquire_or_renew(GATEWAY, 10) == 1
        clock.seconds += 11

        async def take_over() -> None:
            taken.append(await new.acquire_or_renew(OTHER_GATEWAY, 10))

        async with (
            trio.open_nursery() as nursery,
            held_open(pool, Mode.SHARED, RENEW_TERM, clock.seconds, 10.0, GATEWAY),
        ):
            nursery.start_soon(take_over)
            await until_waiting(pool, 1)
        assert taken == [None]
        assert await old.acquire_or_renew(GATEWAY, 10) == 1


# A process that stops, a caller that leaves

STOPPED = """
import os, signal, sys, trio
from gateway.bridge import open_bridge
from gateway.registry.postgres.registry import open_postgres_registry
from gateway.registry.store import EVERYTHING

def stop(tables, now):
    print("deciding", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)

async def main():
    async with open_bridge() as bridge, open_postgres_registry(bridge, sys.argv[1]) as registry:
        await registry._transact("stop", stop, EVERYTHING)

trio.run(main)
"""


async def test_a_gateway_that_is_stopped_while_it_decides_holds_nobody_up(
    bridge: Bridge, emptied_postgres_url: str
) -> None:
    command = [sys.executable, "-c", STOPPED, emptied_postgres_url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as stopped:  # noqa: ASYNC220 - it is brief
        try:
            assert stopped.stdout is not None
            assert await trio.to_thread.run_sync(stopped.stdout.readline) == "deciding\n"
            with trio.fail_after(PATIENCE_SECONDS):
                async with open_postgres_registry(bridge, emptied_postgres_url) as registry:
                    assert await registry.put_model(spec())
        finally:
            stopped.kill()


async def test_cancels_at_any_moment_leave_whole_writes_and_a_whole_pool(
    bridge: Bridge, emptied_postgres_url: str
) -> None:
    """The moments are shares of what a write takes at the time, so that there are many on any machine."""
    rng, size, cancelled, write_seconds = random.Random(7), 4, 0, 0.05

    async def write_pairs(registry: PostgresRegistry, lane: int) -> None:
        nonlocal cancelled, write_seconds
        for number in itertools.count():
            if number >= ROUNDS_MIN and cancelled >= CANCELS_MIN:
                return
            pair = tuple(replica(ReplicaId(f"{lane}-{number}-{half}"), slot=2 * lane + half) for half in (0, 1))
            old = [row.id for row in (await registry.read_state()).replicas.values() if row.slot // 2 == lane]
            began = trio.current_time()
            with trio.move_on_after(rng.uniform(0, 2 * write_seconds)) as scope:
                await registry.apply(1, ControlWrite(create=pair, delete=tuple(old)))
            if scope.cancelled_caught:
                cancelled += 1
            else:
                write_seconds = trio.current_time() - began
            rows = [row.id for row in (await registry.read_state()).replicas.values() if row.slot // 2 == lane]
            assert len(rows) in (0, 2)

    with trio.fail_after(PATIENCE_SECONDS):
        async with open_postgres_registry(bridge, emptied_postgres_url, pool_size=size) as registry:
            await join(registry)
            assert await registry.acquire_or_renew(GATEWAY, 600) == 1
            async with trio.open_nursery() as nursery:
                for lane in range(6):
                    nursery.start_soon(write_pairs, registry, lane)
            await all_at_once(registry, size)


async def all_at_once(registry: PostgresRegistry, size: int) -> None:
    """Returns once so many transactions are open together."""
    inside = 0
    everybody = asyncio.Event()

    async def meet_aio(_: PostgresTransaction) -> None:
        nonlocal inside
        inside += 1
        if inside == size:
            everybody.set()
        await everybody.wait()

    async with trio.open_nursery() as nursery:
        for _ in range(size):
            nursery.start_soon(registry._pool.transaction, "meet", Mode.PLAIN, meet_aio)


# A server that goes away

END_WAITING = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"


@pytest.mark.parametrize("end", ["stop", "kill"])
async def test_m3_without_a_server_methods_fail_and_afterwards_everything_goes_on(
    bridge: Bridge, postgres_server: PostgresServer, emptied_postgres_url: str, end: str
) -> None:
    with trio.fail_after(PATIENCE_SECONDS), capture_logs() as logs:
        async with open_two(bridge, emptied_postgres_url) as (one, other), trio.open_nursery() as nursery:
            await put(one, "m")
            await other.wait_newer(0)
            getattr(postgres_server, end)()
            for call in (
                one.read_state,
                partial(put, one, "n"),
                partial(one.acquire_or_renew, GATEWAY, 10),
                partial(one.sync_peers, PeerState(GATEWAY), 10),
            ):
                with pytest.raises(RegistryError, match=r"PostgreSQL at 127\.0\.0\.1:\d+/test_\d+ can't be used"):
                    await call()
            postgres_server.start()
            nursery.start_soon(put, one, "n")
            await other.wait_newer(1)
            assert set((await other.read_state()).models) == {"m", "n"}
            await until(lambda: count(logs, "registry.listener_back") == 2)
            assert count(logs, "registry.listener_lost") == 2


async def test_m3_what_was_committed_while_the_listener_was_away_wakes_all_the_same(
    bridge: Bridge, emptied_postgres_url: str, postgres_server: PostgresServer
) -> None:
    async with open_relay(postgres_server.port) as relay:
        relayed = emptied_postgres_url.replace(f"127.0.0.1:{postgres_server.port}", relay.address)
        with trio.fail_after(PATIENCE_SECONDS):
            async with (
                open_postgres_registry(bridge, emptied_postgres_url) as writer,
                open_postgres_registry(bridge, emptied_postgres_url, listen_url=relayed) as reader,
            ):
                await put(writer, "m")
                await reader.wait_newer(0)
                relay.down.hold()
                await relay.hang_up()
                await put(writer, "n")
                relay.down.release()
                await reader.wait_newer(1)


async def test_a_listener_notices_a_connection_that_is_dead_without_having_ended(
    bridge: Bridge, emptied_postgres_url: str, postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_listener, "ASK_EVERY_SECONDS", 0.05)
    monkeypatch.setattr(postgres_listener, "ANSWER_SECONDS", 0.3)
    async with open_relay(postgres_server.port) as relay:
        relayed = emptied_postgres_url.replace(f"127.0.0.1:{postgres_server.port}", relay.address)
        with trio.fail_after(PATIENCE_SECONDS):
            async with open_postgres_registry(bridge, emptied_postgres_url, listen_url=relayed) as registry:
                await until(lambda: relay.connections == 1)
                relay.down.hold()
                await until(lambda: relay.connections > 1)
                relay.down.release()
                await put(registry, "m")
                await registry.wait_newer(0)


async def test_a_connection_that_is_ended_in_a_transaction_costs_a_repetition(
    bridge: Bridge, emptied_postgres_url: str
) -> None:
    with trio.fail_after(PATIENCE_SECONDS):
        async with (
            open_postgres_registry(bridge, emptied_postgres_url) as registry,
            open_postgres_pool(bridge, emptied_postgres_url) as pool,
        ):
            async with trio.open_nursery() as nursery, held_open(pool, Mode.CONTROL):
                nursery.start_soon(put, registry, "m")
                await until_waiting(pool, 1)
                await pool.transaction("end", Mode.PLAIN, partial(ask_aio, END_WAITING))
            assert set((await registry.read_state()).models) == {"m"}


@pytest.mark.parametrize(
    ("statement", "error"), [("SELECT", LookupError), ("SELECT 1 / 0", RegistryError), ("SELECT", trio.Cancelled)]
)
async def test_no_connection_is_used_again_in_the_middle_of_a_transaction(
    bridge: Bridge,
    postgres_server: PostgresServer,
    migrated_postgres_url: str,
    statement: str,
    error: type[BaseException],
) -> None:
    """Else the next commit would be that of what was broken off, too. The driver would notice, and complain."""
    postgres_server.ask(migrated_postgres_url, "CREATE TABLE t (x int)")
    has_written = trio.Event()
    loop_errors: list[str] = []

    async def break_off_aio(transaction: PostgresTransaction) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: loop_errors.append(context["message"]))
        await transaction.rows_aio("INSERT INTO t VALUES (1)")
        await transaction.rows_aio(statement)
        if error is LookupError:
            raise LookupError
        has_written.set()
        await asyncio.Event().wait()

    async def break_off(pool: PostgresPool) -> None:
        with pytest.raises(error):
            await pool.transaction("break_off", Mode.PLAIN, break_off_aio)
        has_written.set()
        await trio.lowlevel.checkpoint_if_cancelled()

    with trio.fail_after(PATIENCE_SECONDS):
        async with open_postgres_pool(bridge, migrated_postgres_url, size=1) as pool:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(break_off, pool)
                await has_written.wait()
                nursery.cancel_scope.cancel()
            await pool.transaction("write", Mode.PLAIN, partial(ask_aio, "INSERT INTO t VALUES (2)"))
    assert loop_errors == []
    assert postgres_server.ask(migrated_postgres_url, "SELECT x FROM t") == ["2"]


FAILS_IN_COMMIT = """
CREATE TABLE t (x int);
CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE SQLSTATE '40001'; END $$;
CREATE CONSTRAINT TRIGGER fails AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION fail()
"""


async def test_a_commit_that_nobody_knows_the_outcome_of_is_not_repeated(
    bridge: Bridge, postgres_server: PostgresServer, migrated_postgres_url: str
) -> None:
    """Whatever COMMIT is answered with, also what any other statement's transaction is repeated after."""
    postgres_server.ask(migrated_postgres_url, FAILS_IN_COMMIT)
    attempts = 0

    async def write_aio(transaction: PostgresTransaction) -> None:
        nonlocal attempts
        attempts += 1
        await transaction.rows_aio("INSERT INTO t VALUES (1)")

    with trio.fail_after(PATIENCE_SECONDS):
        async with open_postgres_pool(bridge, migrated_postgres_url) as pool:
            with pytest.raises(RegistryError, match="was lost during a commit, which may or may not have happened"):
                await pool.transaction("write", Mode.PLAIN, write_aio)
    assert attempts == 1


DIES_IN_COMMIT = """
CREATE TABLE t (x int);
CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER dies AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION die()
"""


async def test_a_commit_whose_connection_ends_is_not_repeated(
    bridge: Bridge, postgres_server: PostgresServer, migrated_postgres_url: str
) -> None:
    """Its connection ends after COMMIT was said: if that has happened, once more would be twice."""
    postgres_server.ask(migrated_postgres_url, DIES_IN_COMMIT)
    attempts = 0

    async def write_aio(transaction: PostgresTransaction) -> None:
        nonlocal attempts
        attempts += 1
        await transaction.rows_aio("INSERT INTO t VALUES (1)")

    with trio.fail_after(PATIENCE_SECONDS):
        async with open_postgres_pool(bridge, migrated_postgres_url) as pool:
            with pytest.raises(RegistryError, match="was lost during a commit, which may or may not have happened"):
                await pool.transaction("write", Mode.PLAIN, write_aio)
    assert attempts == 1


async def test_a_commit_that_is_not_answered_in_time_is_not_repeated(
    bridge: Bridge, postgres_server: PostgresServer, migrated_postgres_url: str
) -> None:
    """It has happened here, and its answer is lost on the way: once more would be twice."""
    postgres_server.ask(migrated_postgres_url, "CREATE TABLE t (x int)")
    commits = 0

    async with open_relay(postgres_server.port) as relay:
        relayed = migrated_postgres_url.replace(f"127.0.0.1:{postgres_server.port}", relay.address)

        async def write_aio(transaction: PostgresTransaction) -> None:
            nonlocal commits
            await transaction.rows_aio("INSERT INTO t VALUES (1)")
            commits += 1
            relay.down.hold()

        with trio.fail_after(PATIENCE_SECONDS):
            async with open_postgres_pool(bridge, relayed) as pool:
                await pool.transaction("connect", Mode.PLAIN, partial(ask_aio, "SELECT"))
                with pytest.raises(RegistryError, match="was lost during a commit, which may or may not have happened"):
                    await pool.transaction("write", Mode.PLAIN, write_aio, Bounds(attempt_seconds=1.0))
                relay.down.release()
    assert commits == 1
    assert postgres_server.ask(migrated_postgres_url, "SELECT x FROM t") == ["1"]


async def test_a_server_that_does_not_answer_is_an_error_within_the_bounds(
    bridge: Bridge, postgres_server: PostgresServer, emptied_postgres_url: str
) -> None:
    bounds = Bounds(attempt_seconds=0.3, call_seconds=1.0)
    with trio.fail_after(PATIENCE_SECONDS):
        async with open_postgres_pool(bridge, emptied_postgres_url) as pool:
            await pool.transaction("ask", Mode.PLAIN, partial(ask_aio, "SELECT"))
            postgres_server.pause()
            with pytest.raises(RegistryError, match="no answer in time; is it overloaded"):
                await pool.transaction("ask", Mode.PLAIN, partial(ask_aio, "SELECT"), bounds)
            postgres_server.resume()
            await pool.transaction("ask", Mode.PLAIN, partial(ask_aio, "SELECT"))


async def test_a_connection_that_is_dead_without_having_ended_costs_a_repetition(
    bridge: Bridge, emptied_postgres_url: str, postgres_server: PostgresServer
) -> None:
    bounds = Bounds(attempt_seconds=0.3)
    async with open_relay(postgres_server.port) as relay:
        relayed = emptied_postgres_url.replace(f"127.0.0.1:{postgres_server.port}", relay.address)
        with trio.fail_after(PATIENCE_SECONDS):
            async with open_postgres_pool(bridge, relayed) as pool, trio.open_nursery() as nursery:
                await pool.transaction("ask", Mode.PLAIN, partial(ask_aio, "SELECT"))
                relay.down.hold()
                nursery.start_soon(pool.transaction, "ask", Mode.PLAIN, partial(ask_aio, "SELECT"), bounds)
                await until(lambda: relay.connections > 1)
                relay.down.release()


# Bulletins and the clock


class Recorded(PostgresTransaction):
    """A transaction whose bulletins' texts, sent and heard, are counted."""

    def __init__(self, transaction: PostgresTransaction) -> None:
        super().__init__(transaction._connection)
        self.texts: list[object] = []

    async def rows_aio(self, sql: str, *parameters: object) -> list[asyncpg.Record]:
        rows = await super().rows_aio(sql, *parameters)
        sent = [value for value in parameters if isinstance(value, str) and value.startswith("{")]
        peer_states = [row[column] for row in rows for column in TEXT_COLUMNS if row[column] is not None]
        self.texts += [*sent, *peer_states]
        return rows


async def test_a_text_of_a_peer_state_crosses_the_network_once(bridge: Bridge, emptied_postgres_url: str) -> None:
    """Ours to the server and theirs to us, in each of the exchanges; an empty one is never sent at all."""
    one, other = PeerStateCache(GATEWAY), PeerStateCache(OTHER_GATEWAY)
    said = PeerState(GATEWAY, leases={REPLICA: 3})

    async with open_postgres_pool(bridge, emptied_postgres_url) as pool:

        async def texts(conversation: PeerStateCache, peer_state: PeerState) -> list[object]:
            async def exchange_aio(transaction: PostgresTransaction) -> list[object]:
                recorded = Recorded(transaction)
                await conversation.exchange_aio(recorded, peer_state, 60, None)
                return recorded.texts

            return await pool.transaction("exchange", Mode.SHARED, exchange_aio)

        leases = '{"replica-1":3}'
        assert await texts(one, said) == [leases, "{}", "{}", "{}"]
        assert await texts(one, replace(said, seen_version=2)) == []
        assert await texts(other, PeerState(OTHER_GATEWAY)) == ["{}", "{}", "{}", "{}", leases, "{}", "{}", "{}"]
        assert await texts(other, PeerState(OTHER_GATEWAY)) == []
        assert await texts(one, replace(said, leases={})) == ["{}", "{}", "{}", "{}", "{}"]
        assert await texts(other, PeerState(OTHER_GATEWAY)) == ["{}"]


async def test_a_peer_state_whose_row_was_removed_is_published_again_whole(
    bridge: Bridge, postgres_server: PostgresServer, emptied_postgres_url: str
) -> None:
    said = PeerState(GATEWAY, leases={REPLICA: 3})
    async with open_postgres_registry(bridge, emptied_postgres_url) as registry:
        await registry.sync_peers(said, 60)
        postgres_server.ask(emptied_postgres_url, "DELETE FROM gateways")
        await registry.sync_peers(said, 60)
        peer_states = await registry.sync_peers(PeerState(OTHER_GATEWAY), 60)
    assert peer_states.peers == {GATEWAY: said}


async def test_rows_of_gateways_that_are_long_dead_are_removed(
    bridge: Bridge, postgres_server: PostgresServer, emptied_postgres_url: str
) -> None:
    clock = SettableClock()
    async with open_postgres_registry(bridge, emptied_postgres_url, clock=clock) as registry:
        await registry.sync_peers(PeerState(GATEWAY), 10)
        clock.seconds += SILENT_SECONDS_MAX
        await registry.sync_peers(PeerState(OTHER_GATEWAY), 10)
        assert postgres_server.ask(emptied_postgres_url, "SELECT count(*) FROM gateways") == ["2"]
        clock.seconds += FORGET_DEAD_EVERY_SECONDS
        await registry.sync_peers(PeerState(OTHER_GATEWAY), 10)
    assert postgres_server.ask(emptied_postgres_url, "SELECT id FROM gateways") == [OTHER_GATEWAY]


async def test_h11_the_clock_is_the_servers(
    bridge: Bridge, postgres_server: PostgresServer, emptied_postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 120.0)

    def servers() -> float:
        return float(postgres_server.ask(emptied_postgres_url, "SELECT extract(epoch FROM clock_timestamp())")[0])

    began = time.monotonic()
    async with open_postgres_registry(bridge, emptied_postgres_url) as registry:
        before = servers()
        now = await registry.now()
        # The clock is counted on by a steady one, and a machine may set its wall clock back a little meanwhile.
        ahead_max = time.monotonic() - began
        peer_states = await registry.sync_peers(PeerState(GATEWAY), 10)
        assert before <= now <= servers() + ahead_max
        assert now <= peer_states.now + ahead_max
        assert peer_states.now <= servers()


async def test_a_row_that_is_as_it_was_is_not_parsed_again(bridge: Bridge, emptied_postgres_url: str) -> None:
    async with open_two(bridge, emptied_postgres_url) as (one, other):
        await join(one)
        await one.declare_models([spec(), spec("other")])
        before = await one.read_state()
        await other.declare_models([spec("other", parallel=2)])
        after = await one.read_state()
    assert after.nodes[NODE] is before.nodes[NODE]
    assert set(after.models) == {"other"}
    assert after.models[ModelName("other")].parallel == 2


def count(logs: Sequence[Mapping[str, object]], event: str) -> int:
    return sum(line["event"] == event for line in logs)


async def ask_aio(statement: str, transaction: PostgresTransaction) -> None:
    await transaction.rows_aio(statement)


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110 - a counter's
        await trio.sleep(0.01)
