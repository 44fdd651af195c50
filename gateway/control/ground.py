"""What the planner decides from: the fleet as it will be, its requests, and what it has promised already. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf
from types import MappingProxyType
from typing import Final

from gateway.control.remembered import NOTHING_REMEMBERED, Remembered
from gateway.domain.cluster import ClusterState, Node, NodeStatus, Replica
from gateway.domain.ids import ModelName, NodeId, ReplicaId
from gateway.domain.lifecycle import Desired, Observed
from gateway.domain.model_spec import ModelSpec
from gateway.routing.eligibility import matches_selector
from gateway.routing.load_table import Usage

NEVER_USED: Final = Usage(0, inf, 0.0)
NONE_USED: Final[Mapping[ReplicaId, Usage]] = MappingProxyType({})


@dataclass(frozen=True)
class Claim:
    """A model waits for room that others are about to leave; until then nobody else may have it."""

    model: ModelName
    node_id: NodeId


@dataclass
class Ground:
    """The fleet while a plan grows."""

    state: ClusterState
    now: float
    """The registry's clock."""
    usage: Mapping[ReplicaId, Usage] = field(default_factory=lambda: NONE_USED)
    remembered: Remembered = NOTHING_REMEMBERED
    doubtful: frozenset[NodeId] = frozenset()
    """Nodes on which something has just broken: the whole node may have died without being unhealthy yet."""
    seen_version: int | None = None
    """See `plan`."""
    claims: list[Claim] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.replicas = dict(self.state.replicas)
        """As they will be once the plan is carried out; changed by `put` and `drop` only."""
        self._on: dict[NodeId, dict[ReplicaId, Replica]] = {}
        self._of: dict[ModelName, dict[ReplicaId, Replica]] = {}
        for replica in self.replicas.values():
            self.put(replica)

    def put(self, replica: Replica) -> None:
        self.replicas[replica.id] = replica
        self._on.setdefault(replica.node_id, {})[replica.id] = replica
        self._of.setdefault(replica.model, {})[replica.id] = replica

    def drop(self, replica: Replica) -> None:
        del self.replicas[replica.id], self._on[replica.node_id][replica.id], self._of[replica.model][replica.id]

    def on(self, node: Node) -> list[Replica]:
        return list(self._on.get(node.id, {}).values())

    def of(self, model: ModelName) -> list[Replica]:
        return list(self._of.get(model, {}).values())

    def claims_on(self, node: Node) -> list[Claim]:
        return [claim for claim in self.claims if claim.node_id == node.id]

    def node_of(self, replica: Replica) -> Node | None:
        return self.state.nodes.get(replica.node_id)

    def use_of(self, replica: Replica) -> Usage:
        return self.usage.get(replica.id, NEVER_USED)

    def all_know(self, replica: Replica) -> bool:
        """Whether every gateway knows what is wanted of it now."""
        return self.seen_version is None or self.seen_version >= replica.desired_version

    def idle_seconds(self, replica: Replica) -> float:
        """Since its last request ended, or since it is what it is; 0 while it has one."""
        return min(self.use_of(replica).idle_seconds, self.now - replica.since)

    def waiting_since(self, model: ModelName) -> float | None:
        """When the oldest request that waits for the model began to; None: none waits."""
        return min((each.since for each in self.state.demand if each.model == model and each.waiting), default=None)

    def live(self, spec: ModelSpec) -> list[Replica]:
        """Replicas that count: of the present revision, to stay, on a healthy node."""
        return [each for each in self.of(spec.name) if each.revision == spec.revision and self.is_staying(each)]

    def is_staying(self, replica: Replica) -> bool:
        node = self.node_of(replica)
        return replica.desired is Desired.RUN and node is not None and node.status is NodeStatus.HEALTHY

    def fitting_nodes(self, spec: ModelSpec) -> list[Node]:
        """Nodes on which the model may run at all, whatever runs there now."""
        return [
            node
            for node in self.state.nodes.values()
            if node.status is NodeStatus.HEALTHY and matches_selector(node, spec)
        ]

    def floor(self, spec: ModelSpec) -> int:
        """Replicas that the model has to have, whether anybody asks for them or not."""
        if spec.on_every_node:
            return len(self.fitting_nodes(spec))
        return min(spec.min_replicas, spec.max_replicas) if spec.max_replicas else spec.min_replicas


def is_leaving(replica: Replica) -> bool:
    """It holds its room for now, and gives it back without anybody doing anything more."""
    return replica.desired is not Desired.RUN or replica.observed is Observed.DRAINING
