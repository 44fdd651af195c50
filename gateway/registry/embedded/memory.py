"""The registry in this process's memory: for simulations, for tests, and for a gateway that should forget
everything."""

import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import trio

from gateway.domain.cluster import ClusterState
from gateway.domain.ids import new_id
from gateway.registry.embedded.base import EmbeddedStore
from gateway.registry.protocol import Event
from gateway.registry.store import After, Clock, Decision, MakeId, Outcome, RowScope
from gateway.registry.tables import EVENTS_KEPT, Tables
from gateway.registry.writes.diff import difference


@asynccontextmanager
async def open_memory_registry(
    *, clock: Clock = time.time, make_id: MakeId = new_id
) -> AsyncIterator["MemoryRegistry"]:
    """Opens an empty registry in memory; its content is lost when the last reference to it goes."""
    yield MemoryRegistry(clock, make_id)


class MemoryRegistry(EmbeddedStore):
    """A registry without threads and files. Under a `MockClock`, hours pass in milliseconds. A method is one statement.
    Several gateways of one process may share it."""

    def __init__(self, clock: Clock = time.time, make_id: MakeId = new_id) -> None:
        super().__init__(clock, make_id=make_id)
        self._tables = Tables()
        self._events = deque[Event](maxlen=EVENTS_KEPT)

    async def read_state(self) -> ClusterState:
        """Returns the state of the fleet as it is in memory."""
        await trio.lowlevel.checkpoint()
        self._statements["read_state"] += 1
        return self._tables.state(self._demand())

    async def read_events(self, newest: int) -> tuple[Event, ...]:
        """Returns the last `newest` lines of the audit trail, the newest first; at most `EVENTS_KEPT` are kept."""
        await trio.lowlevel.checkpoint()
        self._statements["read_events"] += 1
        return tuple(reversed(self._events))[:newest]

    async def _transact(
        self,
        method: str,
        decide: Decision[After],
        scope: RowScope,  # noqa: ARG002 - all rows are at hand
        epoch: int | None = None,
    ) -> Outcome[After]:
        await trio.lowlevel.checkpoint()
        self._statements[method] += 1
        now, before = self._clock(), self._with_term(self._tables)
        after = decide(before, now)
        stored: Tables = before if after is None else after
        changes = difference(before, stored, now, epoch)
        if changes:
            self._tables = replace(stored, version=self._version + 1)
            self._events.extend(changes.events)
            self._advance_version(self._version + 1)
        return Outcome(before, after, changed=bool(changes))
