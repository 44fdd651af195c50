"""The registry in PostgreSQL: one database for a fleet of any number of gateways.

Theory of operation. A control transaction (`_transact`) first locks the one row of `state_version`. Then it reads the
rows that the decision needs, decides in pure code, writes the difference and increments the counter; the commit
notifies. The lock makes these transactions run one at a time in the whole fleet, which gives three guarantees. Versions
are in the order of the commits, so "newer than the version I saw" misses nothing (pitfall 30). A decision is made on
rows that nobody changes meanwhile (R10). The epoch that `apply` compares cannot become outdated before its commit,
because a takeover is a control transaction too (L13; pitfall 31 shows how an old leader gets through where other rows
are locked). The lock is held for a handful of round trips, and never while anything else is waited for. Waiting for it
is limited. If its holder has stopped, the server disconnects it (see the module `pool`), or the other gateways do where
the server considers it busy.

Peer states and the leader's terms are written many times a second, without that lock and without a new version. LISTEN
only wakes (postgres_listener.py). The only clock is the server's; between two readings this process counts on.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import Final

import asyncpg
import structlog
import trio

from gateway.bridge import Bridge
from gateway.domain.cluster import ClusterState, Demand
from gateway.domain.ids import GatewayId, ReplicaId, new_id
from gateway.domain.peers import SILENT_SECONDS_MAX, PeerState, PeerStates, SlotRequest
from gateway.registry import rows
from gateway.registry.clock import RegistryClock
from gateway.registry.postgres import sql
from gateway.registry.postgres.errors import check_url
from gateway.registry.postgres.listener import VersionListener
from gateway.registry.postgres.peer_sync import PeerStateCache
from gateway.registry.postgres.pool import (
    POOL_SIZE,
    Bounds,
    Mode,
    PostgresPool,
    PostgresTransaction,
    open_postgres_pool,
)
from gateway.registry.postgres.reserve_slot import RESERVE_BOUNDS, reserve_slot_aio
from gateway.registry.postgres.rows import RowReader, demand_of
from gateway.registry.postgres.schema import check_schema, migrate
from gateway.registry.postgres.session import ServerSession, open_server_session
from gateway.registry.protocol import Event, RegistryError
from gateway.registry.store import After, Clock, Decision, MakeId, Outcome, RowScope, Store
from gateway.registry.tables import LeaderTerm, Tables
from gateway.registry.writes.diff import Changes, difference

log = structlog.get_logger()

FORGET_DEAD_EVERY_SECONDS: Final = 600.0
END_STOPPED_EVERY_SECONDS: Final = 1.0


@asynccontextmanager
async def open_postgres_registry(
    bridge: Bridge,
    url: str,
    *,
    listen_url: str | None = None,
    pool_size: int = POOL_SIZE,
    apply_migrations: bool = True,
    clock: Clock | None = None,
    make_id: MakeId = new_id,
) -> AsyncIterator["PostgresRegistry"]:
    """Connects to the database of `url`, and creates or migrates its tables unless told not to.

    `listen_url` leads to the server itself if `url` names a transaction pooler. `clock` is for tests.

    Raises `RegistryError` if the database cannot be used.
    """
    if listen_url is not None:
        check_url(listen_url, "registry.listen_url")
    async with open_postgres_pool(bridge, url, size=pool_size) as pool:
        await (migrate(pool) if apply_migrations else check_schema(pool))
        async with open_server_session(bridge, listen_url or url, pool.statements) as session:
            registry = PostgresRegistry(pool, session, clock, make_id)
            await registry.load_version()
            pool.statements.clear()
            listener = VersionListener(listen_url or url, registry.advance_version)
            async with bridge.open_task(listener.run_aio):
                yield registry


class PostgresRegistry(Store):
    """The registry in PostgreSQL. `open_postgres_registry` opens it. `statistics` counts the SQL statements between
    BEGIN and COMMIT."""

    def __init__(
        self, pool: PostgresPool, session: ServerSession, clock: Clock | None = None, make_id: MakeId = new_id
    ) -> None:
        super().__init__(make_id=make_id)
        self._statements = pool.statements
        self._pool = pool
        self._session = session
        self._reader = RowReader()
        self._clock = clock
        self._server_clock = RegistryClock()
        self._lost_version = -1
        """The highest version of a history that was rolled back. Versions from it down to the present one belong to
        that history."""
        self._peer_caches: dict[GatewayId, PeerStateCache] = {}
        self._forget_dead_at = 0.0
        self._end_stopped_at = 0.0

    async def load_version(self) -> None:
        """Reads the time and the version, and logs rows that it cannot read."""
        tables, _ = await self._pool.transaction("look", Mode.SHARED, self._read_state_aio)
        if tables.unreadable:
            log.warning(
                "registry.models_unreadable",
                registry=self._pool.server,
                models=sorted(tables.unreadable),
                cause="written by a newer gateway",
            )

    def advance_version(self, version: int) -> None:
        """Records that the version is at least this one."""
        self._advance_version(version)

    async def now(self) -> float:
        """Returns the server's clock, read last and counted on since, in seconds since the epoch; without I/O (H11)."""
        await trio.lowlevel.checkpoint()
        return self._clock() if self._clock else self._server_clock()

    async def read_state(self) -> ClusterState:
        """Reads the state of the fleet in one statement. Raises `RegistryError` if the server can't be used."""
        tables, demand = await self._pool.transaction("read_state", Mode.SHARED, self._read_state_aio)
        return tables.state(demand)

    async def read_events(self, newest: int) -> tuple[Event, ...]:
        """Returns the last `newest` lines of the audit trail, the newest first. Raises `RegistryError`."""

        async def read_aio(transaction: PostgresTransaction) -> tuple[Event, ...]:
            """Reads the lines in one transaction."""
            return tuple(Event(*row) for row in await transaction.rows_aio(sql.READ_EVENTS, newest))

        return await self._pool.transaction("read_events", Mode.SHARED, read_aio)

    async def sync_peers(self, peer_state: PeerState, ttl_seconds: float) -> PeerStates:
        """Publishes the gateway's peer state and returns those of the others. Raises `RegistryError`.

        It also deletes rows of dead gateways and ends stalled database sessions, now and then.
        """
        cache = self._peer_caches.setdefault(peer_state.gateway_id, PeerStateCache(peer_state.gateway_id))

        async def exchange_aio(transaction: PostgresTransaction) -> PeerStates:
            """Publishes and reads peer states, and cleans up now and then."""
            peer_states = await cache.exchange_aio(transaction, peer_state, ttl_seconds, self._test_time())
            await self._forget_dead_aio(transaction, peer_states.now)
            await self._end_stopped_aio(transaction, peer_states.now)
            return peer_states

        known = self._version
        # A gateway without peers exchanges so rarely that it needs no session.
        peer_states = await self._session.run("exchange", exchange_aio) if cache.has_peers else None
        if peer_states is None:
            peer_states = await self._pool.transaction("exchange", Mode.SHARED, exchange_aio)
        self._server_clock.update(peer_states.now)
        if peer_states.version < known:
            self._set_back(peer_states.version)
        self._advance_version(peer_states.version)
        return peer_states

    async def wait_newer(self, version: int) -> None:
        """Waits for a newer version, as the contract says. It also raises `RegistryError` if the database was replaced
        by another one, since nothing that was read before counts then."""
        await trio.lowlevel.checkpoint()
        while self._version <= version:
            if self._version < version <= self._lost_version:
                raise RegistryError(
                    f"{self._pool.server} is at an earlier version than it was: it was restored or replaced"
                )
            await self._advanced.wait()

    def _set_back(self, version: int) -> None:
        """Handles a version that went back: a standby took over that lacked the last commits, or a backup was
        restored."""
        log.error("registry.version_regressed", registry=self._pool.server, version=version, was=self._version)
        self._lost_version = self._version
        self._wake(version)

    async def reserve_slot(self, request: SlotRequest) -> ReplicaId | None:
        """Picks a replica for one request and counts the lease, exactly: see the module `reserve_slot`. Returns None if
        no slot is free.

        Raises `RegistryError`. The lease may be counted all the same, until the gateway publishes again.
        """
        work = partial(reserve_slot_aio, request, self._test_time())
        return await self._pool.transaction("claim_slot", Mode.SHARED, work, RESERVE_BOUNDS)

    async def leave(self, gateway_id: GatewayId) -> None:
        """Deletes the gateway's peer state and ends its term as leader. Raises `RegistryError`."""

        async def leave_aio(transaction: PostgresTransaction) -> None:
            """Deletes the gateway's row and ends its term."""
            await transaction.rows_aio(sql.LEAVE, gateway_id)
            await transaction.rows_aio(sql.END_TERM, gateway_id)

        await self._pool.transaction("leave", Mode.SHARED, leave_aio)

    async def _renew_term(self, gateway_id: GatewayId, term_seconds: float) -> int | None:
        async def renew_aio(transaction: PostgresTransaction) -> int | None:
            """Renews the term. Returns its epoch, or None if this gateway does not lead."""
            renewed = await transaction.rows_aio(sql.RENEW_TERM, self._test_time(), term_seconds, gateway_id)
            return renewed[0]["epoch"] if renewed else None

        return await self._pool.transaction("lead", Mode.SHARED, renew_aio)

    async def _transact(
        self, method: str, decide: Decision[After], scope: RowScope, epoch: int | None = None
    ) -> Outcome[After]:
        work = partial(self._decide_aio, decide, scope, epoch)
        outcome = await self._pool.transaction(method, Mode.CONTROL, work)
        self._advance_version(outcome.before.version + outcome.changed)
        return outcome

    async def _decide_aio(
        self, decide: Decision[After], scope: RowScope, epoch: int | None, transaction: PostgresTransaction
    ) -> Outcome[After]:
        row = await self._read_part_aio(transaction, scope)
        now, before = row["now"], self._reader.tables(row, is_whole=scope.everything)
        if scope.registration is not None:
            before = replace(before, other_nodes=row["nodes_total"] - len(before.nodes))
        self._server_clock.update(now)
        after = decide(before, now)
        stored: Tables = before if after is None else after
        changes = difference(before, stored, now, epoch)
        if stored.leader_term != before.leader_term:
            await _put_leader_term_aio(transaction, before.leader_term, stored.leader_term)
        if changes:
            await _write_aio(transaction, changes)
        return Outcome(before, after, changed=bool(changes))

    async def _read_part_aio(self, transaction: PostgresTransaction, scope: RowScope) -> asyncpg.Record:
        if scope.registration is None:
            return await transaction.row_aio(
                sql.READ_PART, self._test_time(), scope.everything, scope.model, scope.node
            )
        node_id, name = scope.registration.node_id, rows.storable(scope.registration.name)
        return await transaction.row_aio(sql.READ_FOR_REGISTRATION, self._test_time(), node_id, name)

    async def _read_state_aio(self, transaction: PostgresTransaction) -> tuple[Tables, list[Demand]]:
        row = await transaction.row_aio(sql.READ_STATE, self._test_time())
        self._server_clock.update(row["now"])
        self._advance_version(row["version"])
        return self._reader.tables(row, is_whole=True), demand_of(row)

    async def _forget_dead_aio(self, transaction: PostgresTransaction, now: float) -> None:
        if now >= self._forget_dead_at:
            self._forget_dead_at = now + FORGET_DEAD_EVERY_SECONDS
            await transaction.rows_aio(sql.FORGET_DEAD, self._test_time(), SILENT_SECONDS_MAX)

    async def _end_stopped_aio(self, transaction: PostgresTransaction, now: float) -> None:
        """Disconnects stopped gateways that the server does not disconnect itself: see `END_STOPPED`."""
        if now >= self._end_stopped_at:
            self._end_stopped_at = now + END_STOPPED_EVERY_SECONDS
            await transaction.rows_aio(sql.END_STOPPED, Bounds().idle_seconds)

    def _test_time(self) -> float | None:
        """Returns the time of a test's clock, or None if the server's clock counts."""
        return self._clock() if self._clock else None


async def _write_aio(transaction: PostgresTransaction, changes: Changes) -> None:
    for statement, keys in (
        (sql.DELETE_MODELS, changes.removed_models),
        (sql.DELETE_REPLICAS, changes.removed_replicas),
        (sql.DELETE_NODES, changes.removed_nodes),
    ):
        if keys:
            await transaction.rows_aio(statement, keys)
    for statement, columns, put in (
        (sql.PUT_MODEL, rows.MODEL_COLUMNS, map(rows.model_to_row, changes.models)),
        (sql.PUT_NODE, rows.NODE_COLUMNS, map(rows.node_to_row, changes.nodes)),
        (sql.PUT_REPLICA, rows.REPLICA_COLUMNS, map(rows.replica_to_row, changes.replicas)),
    ):
        await transaction.write_aio(statement, [[row[column] for column in columns] for row in put])
    events = [[getattr(event, column) for event in changes.events] for column in sql.EVENT_COLUMNS]
    await transaction.rows_aio(sql.BUMP, *events)


async def _put_leader_term_aio(transaction: PostgresTransaction, before: LeaderTerm, after: LeaderTerm) -> None:
    if not await transaction.rows_aio(
        sql.PUT_LEADER_TERM, after.gateway_id, after.epoch, after.expires_at, before.expires_at
    ):
        raise asyncpg.SerializationError("the leader has prolonged its term meanwhile")
