"""What the planner decides from: the fleet as it will be, its requests, and what it has promised already. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf
from types import MappingProxyType
from typing import Final, TypeVar, cast

from gateway.domain.activity import Usage
from gateway.domain.cluster import ClusterState, Demand, Node, NodeStatus, Replica
from gateway.domain.ids import ModelName, NodeId, ReplicaId
from gateway.domain.lifecycle import Desired, Observed
from gateway.domain.model_spec import ModelSpec
from gateway.domain.peers import Audience
from gateway.domain.routability import matches_selector
from gateway.planner.history import NO_HISTORY, PlanningHistory, record_released

NEVER_USED: Final = Usage(0, inf, 0.0)
NONE_USED: Final[Mapping[ReplicaId, Usage]] = MappingProxyType({})
T = TypeVar("T")


@dataclass(frozen=True)
class Reservation:
    """A model waits for room that others are about to leave; until then nobody else may have it."""

    model: ModelName
    node_id: NodeId


@dataclass
class WorkingState:
    """The fleet while a plan grows."""

    state: ClusterState
    now: float
    """The registry's clock."""
    usage: Mapping[ReplicaId, Usage] = field(default_factory=lambda: NONE_USED)
    history: PlanningHistory = NO_HISTORY
    doubtful: frozenset[NodeId] = frozenset()
    """Nodes on which something has just broken: the whole node may have died without being unhealthy yet."""
    audience: Audience | None = None
    """See `plan`."""
    reservations: list[Reservation] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.replicas = dict(self.state.replicas)
        """The replicas as they will be once the plan is carried out; changed by `put` and `delete` only."""
        self._on: dict[NodeId, dict[ReplicaId, Replica]] = {}
        self._of: dict[ModelName, dict[ReplicaId, Replica]] = {}
        self._live: dict[ModelName, tuple[Replica, ...]] = {}
        self._fitting: dict[ModelName, tuple[Node, ...]] = {}
        self._cache: dict[NodeId, dict[Callable[[WorkingState, Node], object], object]] = {}
        self._waiting: dict[ModelName, int] = {}
        self._waiting_since: dict[ModelName, float] = {}
        for replica in self.replicas.values():
            self._insert(replica)
        for demand in self.state.demand:
            self._add_demand(demand)

    def _insert(self, replica: Replica) -> None:
        self._on.setdefault(replica.node_id, {})[replica.id] = replica
        self._of.setdefault(replica.model, {})[replica.id] = replica

    def _add_demand(self, demand: Demand) -> None:
        self._waiting[demand.model] = self.waiting(demand.model) + demand.waiting
        if demand.waiting:
            self._waiting_since[demand.model] = min(self._waiting_since.get(demand.model, inf), demand.since)

    def put(self, replica: Replica) -> None:
        """Adds a replica, or replaces it by a changed one."""
        self.replicas[replica.id] = replica
        self._insert(replica)
        self._invalidate(replica)

    def delete(self, replica: Replica) -> None:
        """Removes a replica, and remembers what memory its node gets back by that."""
        self._invalidate(replica)
        del self.replicas[replica.id], self._on[replica.node_id][replica.id], self._of[replica.model][replica.id]
        self.history = record_released(self.history, self.state, [replica], self.now)

    def reserve(self, spec: ModelSpec, node: Node) -> None:
        """Nobody else gets the room that is being made."""
        self.reservations.append(Reservation(spec.name, node.id))
        self._cache.pop(node.id, None)

    def _invalidate(self, replica: Replica) -> None:
        """Forgets what was worked out: whether others of its model may go depends on how many there are."""
        self._live.pop(replica.model, None)
        for each in self._of[replica.model].values():
            self._cache.pop(each.node_id, None)

    def cached(self, compute: Callable[["WorkingState", Node], T], node: Node) -> T:
        """`compute(self, node)`, anew only after a change. It may look at the replicas of the node and of their
        models, at the node's claims and at what it has given back, and at what no plan changes."""
        cache = self._cache.setdefault(node.id, {})
        if compute not in cache:
            cache[compute] = compute(self, node)
        return cast("T", cache[compute])

    def on(self, node: Node) -> list[Replica]:
        """Returns the replicas that are on the node once the plan is carried out."""
        return list(self._on.get(node.id, {}).values())

    def of(self, model: ModelName) -> list[Replica]:
        """Returns the replicas that the model has once the plan is carried out."""
        return list(self._of.get(model, {}).values())

    def reservations_on(self, node: Node) -> list[Reservation]:
        """Returns the room on the node that is reserved for models."""
        return [reservation for reservation in self.reservations if reservation.node_id == node.id]

    def node_of(self, replica: Replica) -> Node | None:
        """Returns the node that the replica is on. Returns None if there is no such node any more."""
        return self.state.nodes.get(replica.node_id)

    def usage_of(self, replica: Replica) -> Usage:
        """Returns what is known of the replica's requests; if nothing is, it counts as never used."""
        return self.usage.get(replica.id, NEVER_USED)

    def is_known_everywhere(self, replica: Replica) -> bool:
        """Whether what is wanted of it now is written and every gateway knows it, and no request is there of one that
        can't be heard any more."""
        written = self.state.replicas.get(replica.id)
        if written is None or written.desired is not replica.desired:
            return False
        if self.audience is None:
            return True
        return self.audience.seen_version >= replica.desired_version and replica.id not in self.audience.held

    def idle_seconds(self, replica: Replica) -> float:
        """Since its last request ended, or since it is what it is; 0 while it has one."""
        return min(self.usage_of(replica).idle_seconds, self.now - replica.since)

    def waiting(self, model: ModelName) -> int:
        """Requests that wait for it."""
        return self._waiting.get(model, 0)

    def waiting_since(self, model: ModelName) -> float | None:
        """When the oldest request that waits for the model began to; None: none waits."""
        return self._waiting_since.get(model)

    def live(self, spec: ModelSpec) -> tuple[Replica, ...]:
        """Replicas that count: of the present revision, to stay, on a healthy node."""
        if spec.name not in self._live:
            rows = [each for each in self.of(spec.name) if each.revision == spec.revision and self.is_staying(each)]
            self._live[spec.name] = tuple(rows)
        return self._live[spec.name]

    def is_staying(self, replica: Replica) -> bool:
        """Tells whether the replica is to go on running, and its node is healthy."""
        node = self.node_of(replica)
        return replica.desired is Desired.RUN and node is not None and node.status is NodeStatus.HEALTHY

    def fitting_nodes(self, spec: ModelSpec) -> tuple[Node, ...]:
        """Nodes on which the model may run at all, whatever runs there now."""
        if spec.name not in self._fitting:
            healthy = [node for node in self.state.nodes.values() if node.status is NodeStatus.HEALTHY]
            self._fitting[spec.name] = tuple(node for node in healthy if matches_selector(node, spec))
        return self._fitting[spec.name]

    def floor(self, spec: ModelSpec) -> int:
        """Replicas that the model has to have, whether anybody asks for them or not."""
        if spec.on_every_node:
            return len(self.fitting_nodes(spec))
        return min(spec.min_replicas, spec.max_replicas) if spec.max_replicas else spec.min_replicas

    def beyond_floor(self, spec: ModelSpec) -> int:
        """Replicas that the model could do without."""
        return len(self.live(spec)) - self.floor(spec)


def is_leaving(replica: Replica) -> bool:
    """It holds its room for now, and gives it back without anybody doing anything more."""
    return replica.desired is not Desired.RUN or replica.observed is Observed.DRAINING
