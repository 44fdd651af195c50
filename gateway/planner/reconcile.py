"""Decides which replicas have to go because their node or their model has changed, and says why. Pure.

| the node is                        | its replicas                                                             |
|------------------------------------|--------------------------------------------------------------------------|
| healthy                            | count                                                                    |
| draining, or not approved          | drain; others are started elsewhere at once                              |
| unhealthy, or offline              | stay and don't count: they serve again when the node is back             |
| offline for `OFFLINE_SECONDS_MAX`  | are deleted: no report of their end will ever come (W13)                 |
| removed                            | are deleted                                                              |
"""

from collections.abc import Container, Iterable, Mapping
from math import inf
from types import MappingProxyType
from typing import Final

from gateway.domain.cluster import Node, NodeStatus, Replica
from gateway.domain.ids import ModelName, ReplicaId
from gateway.domain.lifecycle import COMING_UP, FINAL, Desired, Observed
from gateway.domain.model_spec import ModelSpec
from gateway.domain.routability import matches_selector
from gateway.planner.working_state import WorkingState

OFFLINE_SECONDS_MAX: Final = 900.0
"""How long a node may be offline until its replicas are deleted (W13)."""
WHY_NODE_DRAINS: Final[Mapping[NodeStatus, str]] = MappingProxyType(
    {NodeStatus.DRAINING: "its node drains", NodeStatus.PENDING: "its node is not approved"}
)


def given_up_at(node: Node | None) -> float | None:
    """Returns when the node's replicas are deleted if nothing changes, in seconds of the registry's clock.

    Returns None if the node is not offline.
    """
    if node is None or node.condition is not NodeStatus.OFFLINE:
        return None
    return node.since + OFFLINE_SECONDS_MAX


def why_delete(replica: Replica, node: Node | None, now: float) -> str | None:
    """Returns why no further report of the replica is expected. Returns None if its record has to stay."""
    if replica.observed in FINAL:
        return f"it is {replica.observed}"
    if node is None:
        return "its node does not exist any more"
    at = given_up_at(node)
    if at is not None and now >= at:
        return f"its node has been offline for {OFFLINE_SECONDS_MAX / 60:.0f} minutes"
    return None


def why_drain(working: WorkingState, replica: Replica, newest_serving: Container[ModelName]) -> str | None:
    """Returns why a replica that runs should not. Returns None if it may run.

    `newest_serving` names the models with a ready replica of the current revision (`routability.newest_serving`).
    """
    node, spec = working.node_of(replica), working.snapshot.models.get(replica.model)
    if spec is None:
        return "its model was removed"
    if spec.revision != replica.revision and not _outlives_change(replica, spec, newest_serving):
        return "its model's spec has changed"
    if working.snapshot.unloads.get(spec.name, -inf) >= replica.since:
        return "it was unloaded"
    if node is None:
        return None
    if node.status is NodeStatus.HEALTHY and not matches_selector(node, spec):
        return "its node does not match the model's selector"
    return WHY_NODE_DRAINS.get(node.status)


def _outlives_change(replica: Replica, spec: ModelSpec, newest_serving: Container[ModelName]) -> bool:
    """Returns whether an outdated replica goes on. With a surge rollout, it serves until the first current one does.

    One that no worker has received yet would be loaded by the new spec, which its record does not say.
    """
    return spec.rollout == "surge" and spec.name not in newest_serving and replica.observed is not Observed.PLACED


def outdated_replicas(working: WorkingState, spec: ModelSpec) -> list[Replica]:
    """Returns the replicas of earlier revisions that go on serving until one of the current revision does."""
    others = [each for each in working.replicas_of(spec.name) if each.revision != spec.revision]
    return [each for each in others if working.is_staying(each)]


def surplus_replicas(live: Iterable[Replica], spec: ModelSpec) -> list[tuple[Replica, str]]:
    """Returns the live replicas above the model's maximum, each with the reason.

    Replicas that do not serve yet go first, then the youngest.
    """
    staying_first = sorted(live, key=lambda each: (each.observed in COMING_UP, each.since, each.id))
    if spec.on_every_node:
        first_on = {each.node_id: each.id for each in reversed(staying_first)}
        return [(each, "one on each node is enough") for each in staying_first if first_on[each.node_id] != each.id]
    if not spec.max_replicas:
        return []
    return [(each, "more than max_replicas") for each in staying_first[spec.max_replicas :]]


def exclusive_group_conflicts(working: WorkingState, node: Node) -> list[tuple[Replica, str]]:
    """Returns the replicas that have to leave the node because of an exclusive group, each with the reason (R17).

    A change of the specs may put several models of one group on one node. A pinned model stays, or else one that is in
    use, or else the one that has been there longest.
    """
    groups: dict[str, list[Replica]] = {}
    for replica in working.node_info(node).replicas:
        spec = working.snapshot.models.get(replica.model)
        if spec is not None and spec.exclusive_group is not None and replica.desired is Desired.RUN:
            groups.setdefault(spec.exclusive_group, []).append(replica)
    found: list[tuple[Replica, str]] = []
    for group, members in groups.items():
        first = min(members, key=lambda each: _claim_to_node(working, each)).model
        because = f"'{first}' of its exclusive group '{group}' is on its node"
        found += [(each, because) for each in members if each.model != first]
    return found


def _claim_to_node(working: WorkingState, replica: Replica) -> tuple[bool, bool, float, ReplicaId]:
    """Returns the key by which one model of an exclusive group keeps its node, the strongest claim first."""
    is_pinned = working.snapshot.models[replica.model].pinned
    return not is_pinned, not working.usage_of(replica).open, replica.since, replica.id
