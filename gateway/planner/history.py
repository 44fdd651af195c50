"""What the leader remembers between two plans, because the state does not tell it. Pure.

All of it may be lost, when another gateway takes over: an unwanted load then lives a little longer, and a node's memory
counts as free a heartbeat later.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

from gateway.domain.cluster import ClusterState, Node, Replica
from gateway.domain.ids import ModelName, NodeId
from gateway.domain.lifecycle import COMING_UP, Observed


@dataclass(frozen=True)
class ReleasedMemory:
    """What replicas that have ended gave back, as long as the node has not told what it has since."""

    at: float
    """When the last of them was forgotten: seconds of the registry's clock."""
    bytes: int
    reading: int | None
    """The node's free memory as it was told before."""


@dataclass(frozen=True)
class PlanningHistory:
    """Holds what the leader remembers from one plan to the next."""

    asked_at: Mapping[ModelName, float] = field(default_factory=lambda: MappingProxyType({}))
    """When somebody last waited for the model: seconds of the registry's clock."""
    asked: frozenset[ModelName] = frozenset()
    """Models that somebody waited for at the last look, and so for some time after it."""
    released: Mapping[NodeId, ReleasedMemory] = field(default_factory=lambda: MappingProxyType({}))


NO_HISTORY: Final = PlanningHistory()


def free_reading(node: Node) -> int | None:
    """Memory that the node has told to be free, of the kind that its models take: its GPUs', or its own without any."""
    return node.free_vram_bytes if node.capacity.gpus else node.capacity.ram_free_bytes


def memory_need(state: ClusterState, node: Node, model: ModelName) -> int | None:
    """What one replica of the model takes of that memory. None: unknown."""
    requirement = state.requirements.get(model)
    if requirement is None:
        return None
    return requirement.vram_bytes if node.capacity.gpus else requirement.ram_bytes


def record_demand(history: PlanningHistory, state: ClusterState, now: float) -> PlanningHistory:
    """Before a plan. A load that is seen for the first time counts as wanted now."""
    asked = {model: at for model, at in history.asked_at.items() if model in state.models}
    for replica in state.replicas.values():
        if replica.observed in COMING_UP:
            asked.setdefault(replica.model, now)
    asking = frozenset(demand.model for demand in state.demand if demand.waiting)
    asked |= dict.fromkeys((asking | history.asked) & state.models.keys(), now)
    return replace(history, asked_at=asked, asked=asking)


def record_released(
    history: PlanningHistory, state: ClusterState, gone: Iterable[Replica], now: float
) -> PlanningHistory:
    """`gone` are replicas of `state` that are over."""
    released = {node_id: each for node_id, each in history.released.items() if node_id in state.nodes}
    for replica in gone:
        node = state.nodes.get(replica.node_id)
        if node is None or replica.observed is not Observed.GONE:
            continue  # what has failed may never have taken anything
        reading, before = free_reading(node), released.get(node.id)
        bytes_before = before.bytes if before is not None and before.reading == reading else 0
        given_back = memory_need(state, node, replica.model) or 0
        released[node.id] = ReleasedMemory(now, bytes_before + given_back, reading)
    return replace(history, released=released)
