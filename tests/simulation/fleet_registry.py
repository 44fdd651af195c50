"""The registry of several gateways, which looks at each write in the moment in which it is made."""

from collections.abc import Iterable, Sequence
from typing import Final

import trio

from gateway.domain.cluster import NodeStatus, Replica
from gateway.domain.ids import GatewayId, ModelName, NodeId, ReplicaId
from gateway.domain.lifecycle import COMING_UP, Desired
from gateway.domain.model_spec import ModelSpec
from gateway.domain.plan_write import ControlWrite
from gateway.registry.protocol import StaleEpoch
from tests.simulation.registry import SimRegistry
from tests.simulation.world import World

LINGER_SECONDS: Final = 5.0
"""For which a plan may still be one for the specs or nodes of before."""
GIVEN_UP: Final = (NodeStatus.UNHEALTHY, NodeStatus.OFFLINE)


class FleetRegistry(SimRegistry):
    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.away_until = 0.0
        self.leaders: dict[int, GatewayId] = {}
        """By epoch."""
        self.refused = 0
        """Writes of leaders whose term was over."""
        self.unwanted_at: dict[ReplicaId, float] = {}
        """When it was first written that a replica is to end, and not by a fault (Trio's clock)."""
        self.stopped_by_fault: set[ReplicaId] = set()
        self.nodes_given_up: list[tuple[float, NodeId, NodeStatus]] = []
        """Nodes that a gateway has just written off."""
        self._writers: dict[int, GatewayId] = {}
        self._declared_at = 0.0

    @property
    def disturbed_until(self) -> float:
        return max(self.away_until, self.slow_until)

    async def acquire_or_renew(self, gateway_id: GatewayId, term_seconds: float) -> int | None:
        epoch = await super().acquire_or_renew(gateway_id, term_seconds)
        if epoch is not None:
            self._note_leader(epoch, gateway_id)
        return epoch

    def _note_leader(self, epoch: int, gateway_id: GatewayId) -> None:
        """L13, L15: an epoch belongs to one gateway, and none comes back."""
        if self.leaders.setdefault(epoch, gateway_id) != gateway_id or epoch != max(self.leaders):
            self._world.object_to(f"{gateway_id} leads with epoch {epoch} after {self.leaders}")

    async def declare_models(self, specs: Sequence[ModelSpec]) -> None:
        await super().declare_models(specs)
        self._declared_at = trio.current_time()

    async def apply_from(self, gateway_id: GatewayId, epoch: int, write: ControlWrite) -> bool:
        try:
            changed = await self.apply(epoch, write)
        except StaleEpoch:
            self.refused += 1
            self._world.note(f"{gateway_id} is refused: epoch {epoch} is over")
            raise
        if self._writers.setdefault(epoch, gateway_id) != gateway_id:
            self._world.object_to(f"{gateway_id} and {self._writers[epoch]} both plan with epoch {epoch}")
        if epoch != max(self._writers):
            self._world.object_to(f"a plan of epoch {epoch} came through after one of {max(self._writers)}")
        for replica_id, _ in write.set_desired:
            self.unwanted_at.setdefault(replica_id, trio.current_time())
        self._check_placed(write.create)
        return changed

    async def overrule(self, write: ControlWrite) -> None:
        """In the name of whoever leads."""
        try:
            await self.apply(self._tables.leader_term.epoch, write)
        except StaleEpoch:
            self._world.note("the leader has changed in between")

    def _check_placed(self, placed: Iterable[Replica]) -> None:
        """L14, R10: whatever several gateways ask for, the fleet does not get more than it is to have."""
        if trio.current_time() < self._declared_at + LINGER_SECONDS:
            return
        for model in sorted({replica.model for replica in placed}):
            row = self._tables.models.get(model)
            if row is None:
                continue
            rows = self._staying(model, row.spec)
            if 0 < row.spec.max_replicas < len(rows):
                self._world.object_to(f"{model} has {len(rows)} replicas, which is more than {row.spec.max_replicas}")
            coming = sum(each.observed in COMING_UP for each in rows)
            if row.spec.min_replicas <= 1 < coming:
                self._world.object_to(f"{coming} replicas of {model} come up at a time")

    def _staying(self, model: ModelName, spec: ModelSpec) -> list[Replica]:
        """Of the present revision, on nodes that have been healthy for a while."""
        since = self._world.wall_clock() - LINGER_SECONDS
        nodes = {
            row.node.id
            for row in self._tables.nodes.values()
            if row.node.status is NodeStatus.HEALTHY and row.node.since <= since
        }
        return [
            each
            for each in self._tables.replicas.values()
            if each.model == model
            and each.revision == spec.revision
            and each.desired is Desired.RUN
            and each.node_id in nodes
        ]

    async def mark_node(self, node_id: NodeId, session: int, link: NodeStatus | None, *, ended: bool = False) -> bool:
        before = self._tables.nodes.get(node_id)
        written = await super().mark_node(node_id, session, link, ended=ended)
        if written and link in GIVEN_UP and before is not None and before.node.condition is not link:
            self.nodes_given_up.append((trio.current_time(), node_id, link))
        return written
