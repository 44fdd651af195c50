"""The registry in this process's memory: for simulations and tests, and for a gateway that should forget everything."""

import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import chain

import trio

from gateway.domain.cluster import ClusterState, Demand
from gateway.domain.ids import GatewayId, new_id
from gateway.registry.changes import difference
from gateway.registry.protocol import Event
from gateway.registry.store import After, Clock, Decision, MakeId, Outcome, Store
from gateway.registry.tables import EVENTS_KEPT, Tables


@asynccontextmanager
async def open_memory_registry(
    url: str = "memory:",  # noqa: ARG001 - opened like every other store
    *,
    clock: Clock = time.time,
    make_id: MakeId = new_id,
) -> AsyncIterator["MemoryRegistry"]:
    yield MemoryRegistry(clock, make_id)


class MemoryRegistry(Store):
    """No threads and no files: under a `MockClock`, hours pass in milliseconds. A method is one statement."""

    def __init__(self, clock: Clock = time.time, make_id: MakeId = new_id) -> None:
        super().__init__(clock, make_id=make_id)
        self._tables = Tables()
        self._demand: dict[GatewayId, tuple[Demand, ...]] = {}
        self._events = deque[Event](maxlen=EVENTS_KEPT)

    async def read_state(self) -> ClusterState:
        await trio.lowlevel.checkpoint()
        self._statements["read_state"] += 1
        return self._tables.state(self._version, chain.from_iterable(self._demand.values()))

    async def read_events(self, newest: int) -> tuple[Event, ...]:
        await trio.lowlevel.checkpoint()
        self._statements["read_events"] += 1
        return tuple(reversed(self._events))[:newest]

    async def _transact(self, method: str, decide: Decision[After]) -> Outcome[After]:
        await trio.lowlevel.checkpoint()
        self._statements[method] += 1
        now, before = self._clock(), self._tables
        after = decide(before, now)
        stored: Tables = before if after is None else after
        changes = difference(before, stored, now)
        if changes:
            self._tables = stored
            self._events.extend(changes.events)
            self._grow(self._version + 1)
        return Outcome(before, after, changed=bool(changes))

    async def _replace_demand(self, gateway_id: GatewayId, demand: tuple[Demand, ...]) -> None:
        await trio.lowlevel.checkpoint()
        self._statements["publish_demand"] += 1
        self._demand[gateway_id] = demand
