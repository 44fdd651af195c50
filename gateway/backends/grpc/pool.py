"""The connections to backends: one per replica, kept while the replica is in the fleet."""

from collections.abc import AsyncIterator, Container
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from gateway.backends.grpc.connection import BackendConnection
from gateway.backends.grpc.transport import Connect, connect
from gateway.domain.ids import Address, ReplicaId


@dataclass(frozen=True)
class ConnectionPoolStatistics:
    """The number of connections of a pool."""

    open: int
    """The number of replicas with a connection, or with one that is coming about."""


class ConnectionPool:
    """The connections by replica id, because an address never identifies a replica (H5). A replica with a new address
    gets a new connection: the old one may lead to another process by now. Made by `open_connection_pool`."""

    def __init__(self, nursery: trio.Nursery, connect: Connect) -> None:
        self._nursery = nursery
        self._connect = connect
        self._current: dict[ReplicaId, tuple[Address, BackendConnection]] = {}
        self._running: dict[ReplicaId, set[BackendConnection]] = {}
        """All connections of each replica, also those that only finish their calls."""

    def get(self, replica_id: ReplicaId, address: Address) -> BackendConnection:
        """Returns the replica's connection, which may still have to come about."""
        known = self._current.get(replica_id)
        if known is not None:
            if known[0] == address and known[1].takes_calls:
                return known[1]
            if known[0] != address:
                self._close(replica_id)
        connection = BackendConnection(address, self._connect)
        self._current[replica_id] = address, connection
        self._running.setdefault(replica_id, set()).add(connection)
        self._nursery.start_soon(self._run, replica_id, connection)
        return connection

    def keep_only(self, alive: Container[ReplicaId]) -> None:
        """Closes the connections of all other replicas; their open calls end with a lost connection."""
        known = self._current.keys() | self._running.keys()
        for replica_id in [each for each in known if each not in alive]:
            self._close(replica_id)

    def close(self) -> None:
        """Closes all connections; their open calls end with a lost connection."""
        self.keep_only(())

    def statistics(self) -> ConnectionPoolStatistics:
        """Returns the number of replicas that have a connection now."""
        return ConnectionPoolStatistics(open=len(self._current))

    def _close(self, replica_id: ReplicaId) -> None:
        self._current.pop(replica_id, None)
        for connection in self._running.pop(replica_id, ()):
            connection.close()

    async def _run(self, replica_id: ReplicaId, connection: BackendConnection) -> None:
        try:
            await connection.run()
        finally:
            self._forget(replica_id, connection)

    def _forget(self, replica_id: ReplicaId, connection: BackendConnection) -> None:
        running = self._running.get(replica_id, set())
        running.discard(connection)
        known = self._current.get(replica_id)
        if known is not None and known[1] is connection:
            del self._current[replica_id]
        if not running:
            self._running.pop(replica_id, None)


@asynccontextmanager
async def open_connection_pool(connect: Connect = connect) -> AsyncIterator[ConnectionPool]:
    """Opens a pool without connections. Leaving the context closes those that it has by then."""
    async with trio.open_nursery() as nursery:
        pool = ConnectionPool(nursery, connect)
        try:
            yield pool
        finally:
            pool.close()
            nursery.cancel_scope.cancel()
