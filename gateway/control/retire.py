"""Which replicas have to go, and why: by what became of their node and of their model. Pure.

| the node is                        | its replicas                                                             |
|------------------------------------|--------------------------------------------------------------------------|
| healthy                            | count                                                                    |
| draining, or not approved          | drain; others are started elsewhere at once                              |
| unhealthy, or offline              | stay and don't count: they serve again when the node is back             |
| offline for `FORGET_AFTER_SECONDS` | are forgotten: no report of their end will ever come (W13)               |
| removed                            | are forgotten                                                            |
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

from gateway.domain.cluster import Node, NodeStatus, Replica
from gateway.domain.lifecycle import COMING_UP, FINAL
from gateway.domain.model_spec import ModelSpec
from gateway.routing.eligibility import matches_selector

FORGET_AFTER_SECONDS: Final = 900.0
"""A node that is offline for so long is not waited for any more (W13)."""
TAKES_NOTHING: Final[Mapping[NodeStatus, str]] = MappingProxyType(
    {NodeStatus.DRAINING: "its node drains", NodeStatus.PENDING: "its node is not approved"}
)


def forget_at(node: Node | None) -> float | None:
    """When the node's replicas are given up if nothing changes: seconds of the registry's clock; None: never."""
    if node is None or node.link is not NodeStatus.OFFLINE:
        return None
    return node.since + FORGET_AFTER_SECONDS


def why_forget(replica: Replica, node: Node | None, now: float) -> str | None:
    """Why no further word of the replica is expected, or None."""
    if replica.observed in FINAL:
        return f"it is {replica.observed}"
    if node is None:
        return "its node does not exist any more"
    given_up_at = forget_at(node)
    if given_up_at is not None and now >= given_up_at:
        return f"its node has been offline for {FORGET_AFTER_SECONDS / 60:.0f} minutes"
    return None


def why_drain(node: Node | None, replica: Replica, spec: ModelSpec | None) -> str | None:
    """Why a replica that runs should not, or None."""
    if spec is None:
        return "its model was removed"
    if spec.revision != replica.revision:
        return "its model's spec has changed"
    if node is None:
        return None
    if node.status is NodeStatus.HEALTHY and not matches_selector(node, spec):
        return "its node does not match the model's selector"
    return TAKES_NOTHING.get(node.status)


def surplus(live: Iterable[Replica], spec: ModelSpec) -> list[Replica]:
    """What is too much by the model's maximum: first what does not serve yet, then the youngest."""
    if not spec.max_replicas:
        return []
    staying_first = sorted(live, key=lambda each: (each.observed in COMING_UP, each.since, each.id))
    return staying_first[spec.max_replicas :]
