"""The memory registry at a distance: each statement may take a moment, so what one task reads is old for another."""

from typing import Final

import trio

from gateway.domain.cluster import ClusterState
from gateway.domain.peers import PeerState, PeerStates
from gateway.registry.embedded.memory import MemoryRegistry
from gateway.registry.store import After, Decision, Outcome, RowScope
from tests.simulation.world import World

LATENCIES_SECONDS: Final = (0.0, 0.005, 0.2)


class SimRegistry(MemoryRegistry):
    def __init__(self, world: World) -> None:
        super().__init__(world.wall_clock)
        self._world = world
        self.slow_until = 0.0
        self._under_way = 0

    @property
    def is_at_rest(self) -> bool:
        return not self._under_way

    async def read_state(self) -> ClusterState:
        await self._travel()
        return await super().read_state()

    async def _transact(
        self, method: str, decide: Decision[After], scope: RowScope, epoch: int | None = None
    ) -> Outcome[After]:
        await self._travel()
        return await super()._transact(method, decide, scope, epoch)

    async def sync_peers(self, peer_state: PeerState, ttl_seconds: float) -> PeerStates:
        await self._travel()
        return await super().sync_peers(peer_state, ttl_seconds)

    async def _travel(self) -> None:
        if trio.current_time() < self.slow_until:
            self._under_way += 1
            try:
                await trio.sleep(self._world.random.choice(LATENCIES_SECONDS))
            finally:
                self._under_way -= 1
