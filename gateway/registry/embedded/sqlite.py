"""The embedded registry: one SQLite file that serves one gateway and survives kill -9 at any moment.

All statements run on a worker thread, one transaction at a time (a `CapacityLimiter` of 1, in order of arrival). A
caller that is cancelled while it queues has done nothing. Once its transaction has begun, the caller waits for the
thread to the end. So there are no half-done transactions, and no commit that nobody learns of.

While the file refuses writes (a full disk), reports of workers are kept in `refused_writes`, and reads show them.
"""

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Final, TypeVar

import structlog
import trio

from gateway.domain.cluster import ClusterState
from gateway.domain.ids import GatewayId, NodeId, new_id
from gateway.domain.session import Report
from gateway.registry import rows
from gateway.registry.embedded.base import EmbeddedStore
from gateway.registry.embedded.refused_writes import RefusedWrites
from gateway.registry.embedded.sqlite_file import SqliteFile, SqliteTransaction, database_path
from gateway.registry.protocol import Event, WritesRefused
from gateway.registry.row_cache import RowCache
from gateway.registry.store import After, Clock, Decision, MakeId, Outcome, RowScope
from gateway.registry.tables import EVENTS_KEPT, LeaderTerm, Tables
from gateway.registry.writes.diff import Changes, difference

Result = TypeVar("Result")
log = structlog.get_logger()

CLOSE_SECONDS: Final = 10.0


def _upsert(table: str, key: str, columns: Sequence[str]) -> str:
    """Returns an insert that overwrites. (INSERT OR REPLACE would delete first, and a node would take its replicas
    along.)"""
    names, values = ", ".join(columns), ", ".join(f":{column}" for column in columns)
    overwritten = ", ".join(f"{column} = excluded.{column}" for column in columns if column != key)
    return f"INSERT INTO {table} ({names}) VALUES ({values}) ON CONFLICT ({key}) DO UPDATE SET {overwritten}"  # noqa: S608 - constants only


READ_MODELS: Final = f"SELECT {', '.join(rows.MODEL_COLUMNS)} FROM models"  # noqa: S608 - constants only
READ_NODES: Final = f"SELECT {', '.join(rows.NODE_COLUMNS)} FROM nodes"  # noqa: S608 - constants only
_OF_REGISTRATION: Final = "id = ? OR name = ? OR (joined_boot_id IS NULL AND link = 'offline')"
NODES_OF_REGISTRATION: Final = f"{READ_NODES} WHERE {_OF_REGISTRATION}"
READ_REPLICAS: Final = f"SELECT {', '.join(rows.REPLICA_COLUMNS)} FROM replicas"  # noqa: S608 - constants only
REPLICAS_OF_REGISTRATION: Final = f"{READ_REPLICAS} WHERE node_id IN (SELECT id FROM nodes WHERE {_OF_REGISTRATION})"  # noqa: S608 - constants only
NAME: Final = rows.MODEL_COLUMNS.index("name")
SOURCE: Final = rows.MODEL_COLUMNS.index("source")
PUT_MODEL: Final = _upsert("models", "name", rows.MODEL_COLUMNS)
PUT_NODE: Final = _upsert("nodes", "id", rows.NODE_COLUMNS)
PUT_REPLICA: Final = _upsert("replicas", "id", rows.REPLICA_COLUMNS)
ADD_EVENT: Final = (
    "INSERT INTO events (at, kind, subject, detail, epoch) VALUES (:at, :kind, :subject, :detail, :epoch)"
)
TRY_WRITE: Final = "UPDATE state_version SET version = version"
TRIM_EVENTS: Final = "DELETE FROM events WHERE id <= (SELECT max(id) FROM events) - :kept"


@asynccontextmanager
async def open_sqlite_registry(
    url: str, *, clock: Clock = time.time, make_id: MakeId = new_id
) -> AsyncIterator["SqliteRegistry"]:
    """Opens the file of `url` (see `database_path`) for this process alone, and creates it if necessary.

    The rows of a gateway that was killed are taken over unchanged.

    Raises `RegistryLocked` if another process has the file, `RegistryError` if it cannot be used.
    """
    path = database_path(url)
    file = await trio.to_thread.run_sync(SqliteFile.open, path)
    try:
        version, unreadable = await trio.to_thread.run_sync(_load_version, file)
        if unreadable:
            log.warning(
                "registry.models_unreadable", registry=str(path), models=unreadable, cause="written by a newer gateway"
            )
        yield SqliteRegistry(file, clock, version, make_id)
    finally:
        with trio.move_on_after(CLOSE_SECONDS, shield=True):
            await trio.to_thread.run_sync(file.close)


class SqliteRegistry(EmbeddedStore):
    """The registry in one SQLite file. `open_sqlite_registry` opens it. `statistics` counts the SQL statements between
    BEGIN and COMMIT."""

    def __init__(self, file: SqliteFile, clock: Clock, version: int, make_id: MakeId = new_id) -> None:
        super().__init__(clock, version, make_id)
        self._file = file
        self._one_transaction = trio.CapacityLimiter(1)
        self._rows = _RowReader()
        self._file_version = version
        """The version in the file, as of the last transaction that has ended."""
        self._refused = RefusedWrites()
        """It changes between two transactions only, in their order, so that two states of one version are equal."""

    async def read_state(self) -> ClusterState:
        """Reads the state of the fleet in one read transaction. Raises `RegistryError` if the file can't be used."""
        tables, cause = await self._run("read_state", self._read, mode="DEFERRED")
        state = tables.state(self._demand())
        return state if cause is None else replace(state, writes_refused=cause)

    def _read(self, transaction: SqliteTransaction) -> tuple[Tables, str | None]:
        return self._refused.applied(self._rows.tables(transaction)), self._refused.cause

    async def read_events(self, newest: int) -> tuple[Event, ...]:
        """Returns the last `newest` lines of the audit trail, the newest first. Raises `RegistryError`."""
        return await self._run("read_events", partial(_read_events, newest=newest), mode="DEFERRED")

    async def _transact(
        self,
        method: str,
        decide: Decision[After],
        scope: RowScope,
        epoch: int | None = None,
    ) -> Outcome[After]:
        # Reading everything is no round trip. Only registrations read less: anybody with the join token may send many.
        outcome, _ = await self._run(method, partial(self._decide, decide, scope, epoch), committed=self._committed)
        return outcome

    def _committed(self, result: tuple[Outcome[After], int]) -> None:
        outcome, self._file_version = result
        if outcome.changed:
            self._refused.accept()

    def _decide(
        self, decide: Decision[After], scope: RowScope, epoch: int | None, transaction: SqliteTransaction
    ) -> tuple[Outcome[After], int]:
        now = self._clock()
        stored = self._with_term(self._rows.part(transaction, scope))
        before = replace(stored, version=stored.version + self._refused.changes)
        after = decide(before, now)
        changes = difference(before, before if after is None else after, now, epoch)
        if changes:
            _write(transaction, changes)
        return Outcome(before, after, changed=bool(changes)), stored.version + bool(changes)

    async def record_reports(self, node_id: NodeId, session: int, reports: Sequence[Report]) -> bool:
        """Stores what a worker reports of its replicas. Reads show it even if the file refuses it. Returns False if
        `session` is not the node's newest. Raises `WritesRefused`."""
        try:
            recorded = await super().record_reports(node_id, session, reports)
        except WritesRefused:
            await self._change_refused(partial(self._refused.keep, node_id, session, tuple(reports), self._clock()))
            raise
        if node_id in self._refused:
            await self._change_refused(partial(self._refused.forget, node_id))
        return recorded

    async def _renew_term(self, gateway_id: GatewayId, term_seconds: float) -> int | None:
        """Renews the term in memory, and sees whether a file that has refused writes takes them again: after a refused
        request of an admin nobody else may try."""
        if self._refused.cause is not None:
            with suppress(WritesRefused):
                await self._run("try_write", _try_write, committed=lambda _: self._refused.accept())
        return await super()._renew_term(gateway_id, term_seconds)

    async def _change_refused(self, change: Callable[[], None]) -> None:
        """Applies a change between two transactions, and wakes readers."""
        async with self._one_transaction:
            change()
            self._advance_version(self._file_version + self._refused.changes)

    async def _run(
        self,
        method: str,
        work: Callable[[SqliteTransaction], Result],
        mode: str = "IMMEDIATE",
        committed: Callable[[Result], None] = lambda _: None,
    ) -> Result:
        """Runs a transaction, then `committed` with its result, before any other transaction begins."""

        def run() -> Result:
            """Runs in a worker thread, and counts the statements."""
            try:
                with self._file.transaction(mode) as transaction:
                    try:
                        result = work(transaction)
                    finally:
                        self._statements[method] += transaction.statements
            except WritesRefused as error:
                self._refused.refuse(error)
                raise
            committed(result)
            return result

        try:
            return await trio.to_thread.run_sync(run, limiter=self._one_transaction)
        finally:
            self._advance_version(self._file_version + self._refused.changes)


def _try_write(transaction: SqliteTransaction) -> None:
    transaction.rows(TRY_WRITE)


def _load_version(file: SqliteFile) -> tuple[int, list[str]]:
    with file.transaction("DEFERRED") as transaction:
        tables = _RowReader().tables(transaction)
        return tables.version, sorted(tables.unreadable)


def _read_events(transaction: SqliteTransaction, newest: int) -> tuple[Event, ...]:
    found = transaction.rows("SELECT at, kind, subject, detail, epoch FROM events ORDER BY id DESC LIMIT ?", newest)
    return tuple(Event(*row) for row in found)


class _RowReader:
    """Reads rows. Only one thread may use it at a time."""

    def __init__(self) -> None:
        self._models = RowCache(rows.MODEL_COLUMNS, rows.model_from_row)
        self._nodes = RowCache(rows.NODE_COLUMNS, rows.node_from_row)
        self._replicas = RowCache(rows.REPLICA_COLUMNS, rows.replica_from_row)

    def part(self, transaction: SqliteTransaction, scope: RowScope) -> Tables:
        """Returns the rows that `scope` asks for, or all rows."""
        if scope.registration is None:
            return self.tables(transaction)
        key = scope.registration.node_id, rows.storable(scope.registration.name)
        nodes = self._nodes.records(map(tuple, transaction.rows(NODES_OF_REGISTRATION, *key)), is_whole=False)
        of_nodes = map(tuple, transaction.rows(REPLICAS_OF_REGISTRATION, *key))
        replicas = self._replicas.records(of_nodes, is_whole=False)
        return Tables(
            nodes={row.node.id: row for row in nodes.values()},
            replicas={replica.id: replica for replica in replicas.values()},
            leader_term=LeaderTerm(*transaction.rows("SELECT gateway_id, epoch FROM leadership")[0]),
            version=transaction.rows("SELECT version FROM state_version")[0][0],
            other_nodes=transaction.rows("SELECT count(*) FROM nodes")[0][0] - len(nodes),
        )

    def tables(self, transaction: SqliteTransaction) -> Tables:
        """Reads all rows."""
        models = self._models.records(map(tuple, transaction.rows(READ_MODELS)), is_whole=True)
        nodes = self._nodes.records(map(tuple, transaction.rows(READ_NODES)), is_whole=True)
        replicas = self._replicas.records(map(tuple, transaction.rows(READ_REPLICAS)), is_whole=True)
        return Tables(
            models={model.spec.name: model for model in models.values() if model},
            nodes={row.node.id: row for row in nodes.values()},
            replicas={replica.id: replica for replica in replicas.values()},
            leader_term=LeaderTerm(*transaction.rows("SELECT gateway_id, epoch FROM leadership")[0]),
            version=transaction.rows("SELECT version FROM state_version")[0][0],
            unreadable={values[NAME]: values[SOURCE] for values, model in models.items() if model is None},
        )


def _write(transaction: SqliteTransaction, changes: Changes) -> None:
    transaction.write("DELETE FROM models WHERE name = :key", _keys(changes.removed_models))
    transaction.write("DELETE FROM replicas WHERE id = :key", _keys(changes.removed_replicas))
    transaction.write("DELETE FROM nodes WHERE id = :key", _keys(changes.removed_nodes))
    transaction.write(PUT_MODEL, [rows.model_to_row(row) for row in changes.models])
    transaction.write(PUT_NODE, [rows.node_to_row(row) for row in changes.nodes])
    transaction.write(PUT_REPLICA, [rows.replica_to_row(replica) for replica in changes.replicas])
    if changes.leader_term:
        term = {"gateway_id": changes.leader_term.gateway_id, "epoch": changes.leader_term.epoch}
        transaction.write("UPDATE leadership SET gateway_id = :gateway_id, epoch = :epoch", [term])
    transaction.write(ADD_EVENT, [vars(event) for event in changes.events])
    transaction.write(TRIM_EVENTS, [{"kept": EVENTS_KEPT}])
    transaction.rows("UPDATE state_version SET version = version + 1")


def _keys(keys: Sequence[str]) -> list[dict[str, rows.SqlValue]]:
    return [{"key": key} for key in keys]
