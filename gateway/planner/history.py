"""The leader's memory between two plans, for facts that no row of the registry has. Pure.

All of it may be lost when another gateway takes over. A load that nobody needs then lives a little longer, and memory
that was given back counts as free one heartbeat later.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

from gateway.domain.cluster import ClusterState, Replica
from gateway.domain.ids import ModelName, NodeId
from gateway.domain.lifecycle import COMING_UP, Observed
from gateway.planner.node_resources import ReleasedMemory, free_memory_reading, required_memory


@dataclass(frozen=True)
class PlanningHistory:
    """The leader's memory from one plan to the next."""

    last_demand_at: Mapping[ModelName, float] = field(default_factory=lambda: MappingProxyType({}))
    """The time at which a request was last seen waiting for the model, in seconds of the registry's clock."""
    in_demand: frozenset[ModelName] = frozenset()
    """The models for which requests waited at the last plan."""
    released: Mapping[NodeId, ReleasedMemory] = field(default_factory=lambda: MappingProxyType({}))
    """The memory that was given back and that no reading shows yet, by node."""


NO_HISTORY: Final = PlanningHistory()


def record_demand(history: PlanningHistory, snapshot: ClusterState, now: float) -> PlanningHistory:
    """Returns the history with the demand of the snapshot; called before each plan at the time `now`.

    A load that is seen for the first time counts as demanded now.
    """
    seen_at = {model: at for model, at in history.last_demand_at.items() if model in snapshot.models}
    for replica in snapshot.replicas.values():
        if replica.observed in COMING_UP:
            seen_at.setdefault(replica.model, now)
    in_demand = frozenset(demand.model for demand in snapshot.demand if demand.waiting)
    seen_at |= dict.fromkeys((in_demand | history.in_demand) & snapshot.models.keys(), now)
    return replace(history, last_demand_at=seen_at, in_demand=in_demand)


def record_released(
    history: PlanningHistory, snapshot: ClusterState, deleted: Iterable[Replica], now: float
) -> PlanningHistory:
    """Returns the history with the memory that the deleted replicas of the snapshot gave back at the time `now`."""
    released = {node_id: each for node_id, each in history.released.items() if node_id in snapshot.nodes}
    for replica in deleted:
        node = snapshot.nodes.get(replica.node_id)
        if node is None or replica.observed is not Observed.GONE:
            continue  # A replica that failed may never have taken any memory.
        reading, before = free_memory_reading(node), released.get(node.id)
        bytes_before = before.released_bytes if before is not None and before.reading == reading else 0
        given_back = required_memory(snapshot.requirements, node, replica.model) or 0
        released[node.id] = ReleasedMemory(now, bytes_before + given_back, reading)
    return replace(history, released=released)
