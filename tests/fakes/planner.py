"""A planner at work over a registry: one gateway's leadership and its reconciler."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from gateway.control.leader_election import LeaderElection
from gateway.control.reconciler import Reconciler
from gateway.domain.ids import GatewayId
from gateway.registry.protocol import Registry
from tests.fakes.fleet import GATEWAY

GATEWAY_TTL_SECONDS = 15.0


@asynccontextmanager
async def open_reconciler(
    registry: Registry, gateway_id: GatewayId = GATEWAY, interval_seconds: float = 30
) -> AsyncIterator[Reconciler]:
    election = LeaderElection(registry, gateway_id, GATEWAY_TTL_SECONDS)
    reconciler = Reconciler(registry, election, interval_seconds)
    election.changed = reconciler.wake.set
    async with trio.open_nursery() as nursery:
        await nursery.start(election.run)
        await nursery.start(reconciler.run)
        yield reconciler
        nursery.cancel_scope.cancel()
