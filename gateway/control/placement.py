"""Which node a new replica goes to. Pure.

For now a node fits when it is healthy, matches the model's selector and has a free slot for the model; memory and
evictions follow with the capacity issue.
"""

from collections.abc import Collection, Container
from dataclasses import dataclass

from gateway.domain.cluster import ClusterState, Node, NodeStatus, Replica
from gateway.domain.ids import ModelName, NodeId
from gateway.domain.model_spec import ModelSpec
from gateway.routing.eligibility import matches_selector


@dataclass(frozen=True)
class Place:
    """Room for one replica."""

    node: Node
    slot: int


def fitting_nodes(state: ClusterState, spec: ModelSpec) -> list[Node]:
    """Nodes on which the model may run at all, whatever runs there now."""
    return [node for node in state.nodes.values() if node.status is NodeStatus.HEALTHY and matches_selector(node, spec)]


def pick_place(
    state: ClusterState, spec: ModelSpec, taken: Collection[Replica], doubtful: Container[NodeId] = ()
) -> Place | None:
    """A free slot for one more replica of the model, on the node that runs the fewest replicas; None if there is none.

    `taken` are all replicas that hold a slot, those included that this planning round adds. `doubtful` are nodes on
    which something has just broken: they come last, since the whole node may have died without being unhealthy yet.
    """
    places = [
        (node.id in doubtful, sum(replica.node_id == node.id for replica in taken), node.name, Place(node, slot))
        for node in fitting_nodes(state, spec)
        if (slot := _free_slot(node, spec.name, taken)) is not None
    ]
    return min(places, key=lambda each: each[:3])[3] if places else None


def _free_slot(node: Node, model: ModelName, taken: Collection[Replica]) -> int | None:
    used = {replica.slot for replica in taken if replica.node_id == node.id and replica.model == model}
    return next((slot for slot in range(node.max_replicas_per_model) if slot not in used), None)
