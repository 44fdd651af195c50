"""The fleet as it will be when the plan so far is carried out. All stages of the planner decide from it. Pure."""

from math import inf
from typing import Final

from gateway.domain.activity import Usage
from gateway.domain.cluster import Demand, Node, NodeStatus, Replica
from gateway.domain.ids import ModelName, NodeId, ReplicaId
from gateway.domain.lifecycle import Desired
from gateway.domain.model_spec import ModelSpec
from gateway.domain.routability import matches_selector
from gateway.planner.history import record_released
from gateway.planner.node_resources import NodeInfo
from gateway.planner.planning_input import PlanningInput

NEVER_USED: Final = Usage(0, inf, 0.0)


class WorkingState:
    """The fleet while a plan grows: the snapshot, with the plan's changes applied as they are decided.

    What it computes of a node or a model is kept until one of those changes touches it: a full fleet asks for every
    model of every node, and hardly any node changes in between.
    """

    def __init__(self, inputs: PlanningInput) -> None:
        self.inputs = inputs
        self.snapshot = inputs.snapshot
        self.now = inputs.now
        """The time of the plan in seconds of the registry's clock."""
        self.history = inputs.history
        self.replicas = dict(inputs.snapshot.replicas)
        """The replicas once the plan is carried out. Only `put` and `remove` change it."""
        self.reservations: dict[NodeId, tuple[ModelName, ...]] = {}
        """The models for which room is being made on each node. Only `reserve` changes it."""
        broken = (inputs.snapshot.replicas[each] for each in inputs.broken if each in inputs.snapshot.replicas)
        self.nodes_with_broken_replicas = frozenset(each.node_id for each in broken)
        """The nodes on which a replica has just broken. The whole node may be dead without being unhealthy yet."""
        self._by_node: dict[NodeId, dict[ReplicaId, Replica]] = {}
        self._by_model: dict[ModelName, dict[ReplicaId, Replica]] = {}
        self._live: dict[ModelName, tuple[Replica, ...]] = {}
        self._feasible_nodes: dict[ModelName, tuple[Node, ...]] = {}
        self._node_infos: dict[NodeId, NodeInfo] = {}
        self._generations: dict[NodeId, int] = {}
        self._waiting: dict[ModelName, int] = {}
        self._waiting_since: dict[ModelName, float] = {}
        for replica in self.replicas.values():
            self._insert(replica)
        for demand in self.snapshot.demand:
            self._add_demand(demand)

    def _insert(self, replica: Replica) -> None:
        self._by_node.setdefault(replica.node_id, {})[replica.id] = replica
        self._by_model.setdefault(replica.model, {})[replica.id] = replica

    def _add_demand(self, demand: Demand) -> None:
        self._waiting[demand.model] = self.waiting_requests(demand.model) + demand.waiting
        if demand.waiting:
            self._waiting_since[demand.model] = min(self._waiting_since.get(demand.model, inf), demand.since)

    # Changes

    def put(self, replica: Replica) -> None:
        """Adds a replica, or replaces the one that has its id."""
        self.replicas[replica.id] = replica
        self._insert(replica)
        self._invalidate(replica)

    def remove(self, replica: Replica) -> None:
        """Removes a replica, and records the memory that its node gets back."""
        self._invalidate(replica)
        del self.replicas[replica.id], self._by_node[replica.node_id][replica.id]
        del self._by_model[replica.model][replica.id]
        self.history = record_released(self.history, self.snapshot, [replica], self.now)

    def reserve(self, model: ModelName, node: Node) -> None:
        """Reserves what one replica of the model needs on the node, so that no other model gets it."""
        self.reservations[node.id] = (*self.reservations.get(node.id, ()), model)
        self._node_infos.pop(node.id, None)

    def _invalidate(self, replica: Replica) -> None:
        """Forgets what was concluded for the model's nodes: whether a replica may be preempted depends on how many
        there are, on any node."""
        self._live.pop(replica.model, None)
        self._node_infos.pop(replica.node_id, None)
        for node_id in {each.node_id for each in self._by_model[replica.model].values()}:
            self._generations[node_id] = self._generations.get(node_id, 0) + 1

    # Nodes

    def node_info(self, node: Node) -> NodeInfo:
        """Returns the node with its replicas and reservations."""
        info = self._node_infos.get(node.id)
        if info is None:
            info = self._node_infos[node.id] = NodeInfo(
                node=node,
                replicas=tuple(self._by_node.get(node.id, {}).values()),
                reserved_for=self.reservations.get(node.id, ()),
                requirements=self.snapshot.requirements,
                released=self.history.released.get(node.id),
                now=self.now,
            )
        return info

    def generation(self, node: Node) -> int:
        """Returns a number that grows when a replica of the node, or of a model that is on the node, has changed."""
        return self._generations.get(node.id, 0)

    def feasible_nodes(self, spec: ModelSpec) -> tuple[Node, ...]:
        """Returns the nodes on which the model may run at all, whatever runs there now."""
        if spec.name not in self._feasible_nodes:
            healthy = [node for node in self.snapshot.nodes.values() if node.status is NodeStatus.HEALTHY]
            self._feasible_nodes[spec.name] = tuple(node for node in healthy if matches_selector(node, spec))
        return self._feasible_nodes[spec.name]

    # Models

    def waiting_requests(self, model: ModelName) -> int:
        """Returns how many requests wait for the model, at all gateways."""
        return self._waiting.get(model, 0)

    def waiting_since(self, model: ModelName) -> float | None:
        """Returns when the oldest request that waits for the model began to wait. Returns None if none waits."""
        return self._waiting_since.get(model)

    def replicas_of(self, model: ModelName) -> list[Replica]:
        """Returns all replicas that the model will have."""
        return list(self._by_model.get(model, {}).values())

    def live_replicas(self, spec: ModelSpec) -> tuple[Replica, ...]:
        """Returns the replicas that count: of the current revision, to go on running, on a healthy node."""
        if spec.name not in self._live:
            current = [each for each in self.replicas_of(spec.name) if each.revision == spec.revision]
            self._live[spec.name] = tuple(each for each in current if self.is_staying(each))
        return self._live[spec.name]

    def min_replicas(self, spec: ModelSpec) -> int:
        """Returns how many replicas the model has to have, whether any request asks for it or not."""
        if spec.on_every_node:
            return len(self.feasible_nodes(spec))
        return min(spec.min_replicas, spec.max_replicas) if spec.max_replicas else spec.min_replicas

    def replicas_above_minimum(self, spec: ModelSpec) -> int:
        """Returns how many of its live replicas the model could do without. Negative if it has too few."""
        return len(self.live_replicas(spec)) - self.min_replicas(spec)

    # Replicas

    def node_of(self, replica: Replica) -> Node | None:
        """Returns the node that the replica is on. Returns None if there is no such node any more."""
        return self.snapshot.nodes.get(replica.node_id)

    def is_staying(self, replica: Replica) -> bool:
        """Returns whether the replica continues to run and its node is healthy."""
        node = self.node_of(replica)
        return replica.desired is Desired.RUN and node is not None and node.status is NodeStatus.HEALTHY

    def usage_of(self, replica: Replica) -> Usage:
        """Returns what is known of the replica's requests. If nothing is known, it counts as never used."""
        return self.inputs.usage.get(replica.id, NEVER_USED)

    def idle_seconds(self, replica: Replica) -> float:
        """Returns the seconds since its last request ended or since its state changed; 0 while it has a request."""
        return min(self.usage_of(replica).idle_seconds, self.now - replica.since)

    def is_end_known_everywhere(self, replica: Replica) -> bool:
        """Tells whether no gateway sends requests to the replica any more.

        Its desired state has to be written and seen by every gateway that may route. A gateway that has fallen silent
        must not have had requests on it.
        """
        written, audience = self.snapshot.replicas.get(replica.id), self.inputs.audience
        if written is None or written.desired is not replica.desired:
            return False
        if audience is None:
            return True
        return audience.seen_version >= replica.desired_version and replica.id not in audience.held
