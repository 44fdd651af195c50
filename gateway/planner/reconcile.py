"""Which replicas have to go, and why: by what became of their node and of their model. Pure.

| the node is                        | its replicas                                                 |
|------------------------------------|--------------------------------------------------------------|
| healthy                            | count                                                        |
| draining, or not approved          | drain; others are started elsewhere at once                  |
| unhealthy, or offline              | stay and don't count: they serve again when the node is back |
| offline for `DELETE_AFTER_SECONDS` | are forgotten: no report of their end will ever come (W13)   |
| removed                            | are forgotten                                                |
"""

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from math import inf
from types import MappingProxyType
from typing import Final

from gateway.domain.cluster import Node, NodeStatus, Replica
from gateway.domain.ids import ModelName
from gateway.domain.lifecycle import COMING_UP, FINAL, Desired, Observed
from gateway.domain.model_spec import ModelSpec
from gateway.domain.routability import matches_selector
from gateway.planner.working_state import WorkingState

DELETE_AFTER_SECONDS: Final = 900.0
"""A node that is offline for so long is not waited for any more (W13)."""
TAKES_NOTHING: Final[Mapping[NodeStatus, str]] = MappingProxyType(
    {NodeStatus.DRAINING: "its node drains", NodeStatus.PENDING: "its node is not approved"}
)


def delete_at(node: Node | None) -> float | None:
    """When the node's replicas are given up if nothing changes: seconds of the registry's clock; None: never."""
    if node is None or node.condition is not NodeStatus.OFFLINE:
        return None
    return node.since + DELETE_AFTER_SECONDS


def why_delete(replica: Replica, node: Node | None, now: float) -> str | None:
    """Why no further word of the replica is expected, or None."""
    if replica.observed in FINAL:
        return f"it is {replica.observed}"
    if node is None:
        return "its node does not exist any more"
    deleted_at = delete_at(node)
    if deleted_at is not None and now >= deleted_at:
        return f"its node has been offline for {DELETE_AFTER_SECONDS / 60:.0f} minutes"
    return None


def why_drain(working: WorkingState, replica: Replica, newest_serving: Container[ModelName]) -> str | None:
    """Why a replica that runs should not, or None. `newest_serving`: see `routability.newest_serving`."""
    node, spec = working.node_of(replica), working.state.models.get(replica.model)
    if spec is None:
        return "its model was removed"
    if spec.revision != replica.revision and not _outlives_change(replica, spec, newest_serving):
        return "its model's spec has changed"
    if working.state.unloads.get(spec.name, -inf) >= replica.since:
        return "it was unloaded"
    if node is None:
        return None
    if node.status is NodeStatus.HEALTHY and not matches_selector(node, spec):
        return "its node does not match the model's selector"
    return TAKES_NOTHING.get(node.status)


def _outlives_change(replica: Replica, spec: ModelSpec, newest_serving: Container[ModelName]) -> bool:
    """With a surge it serves until the first of the new ones does. One that no worker has heard of yet would be loaded
    by the new spec, which its row does not say."""
    return spec.rollout == "surge" and spec.name not in newest_serving and replica.observed is not Observed.PLACED


def surplus(live: Iterable[Replica], spec: ModelSpec) -> list[tuple[Replica, str]]:
    """What is too much, and why: first what does not serve yet, then the youngest."""
    staying_first = sorted(live, key=lambda each: (each.observed in COMING_UP, each.since, each.id))
    if spec.on_every_node:
        first_on = {each.node_id: each.id for each in reversed(staying_first)}
        return [(each, "one on each node is enough") for each in staying_first if first_on[each.node_id] != each.id]
    if not spec.max_replicas:
        return []
    return [(each, "more than max_replicas") for each in staying_first[spec.max_replicas :]]


def exclusive_group_conflicts(working: WorkingState, on: Node) -> list[tuple[Replica, str]]:
    """Those that have to leave a node because it has, by a change of the specs, several models of one exclusive group
    (R17): the one that is used stays, or the one that has been there longest."""
    groups: dict[str, list[Replica]] = {}
    for row in working.on(on):
        spec = working.state.models.get(row.model)
        if spec is not None and spec.exclusive_group is not None and row.desired is Desired.RUN:
            groups.setdefault(spec.exclusive_group, []).append(row)
    found: list[tuple[Replica, str]] = []
    for group, rows in groups.items():
        first = min(rows, key=lambda row: (not working.usage_of(row).open, row.since, row.id)).model
        because = f"'{first}' of its exclusive group '{group}' is on its node"
        found += [(row, because) for row in rows if row.model != first]
    return found


@dataclass(frozen=True)
class WatchdogLimits:
    """When a replica counts as stuck, and when as not worth its memory (`watchdog` and `reconciler` in the
    configuration)."""

    busy_seconds: float = inf
    idle_seconds: float = inf
    scale_down_seconds: float = inf
    """How long one above the minimum is kept without any request; the lesser of this and `idle_seconds` counts."""


@dataclass(frozen=True)
class Action:
    """What its requests say of a replica."""

    desired: Desired | None = None
    """What is to be wanted of it from now on; None: nothing else."""
    because: str = ""
    again_in: float = inf
    """Seconds until time alone can change this."""


DRAINED_SECONDS: Final = 1.0
"""A draining replica without a request for so long gets none any more, if every gateway knows that it drains: calls
that were on their way have arrived."""
UNSEEN_SECONDS: Final = 0.5
"""How soon to look again whether they do: nothing wakes the planner when they have learned it."""


def check_watchdog(working: WorkingState, replica: Replica, limits: WatchdogLimits) -> Action:
    """Stops what is stuck, and what has drained."""
    usage = working.usage_of(replica)
    if replica.observed is Observed.DRAINING and replica.desired is not Desired.STOP:
        if replica.desired is Desired.RUN or not working.is_known_everywhere(
            replica
        ):  # it drains because its worker ends
            return Action(again_in=UNSEEN_SECONDS)
        return _when(working.idle_seconds(replica), DRAINED_SECONDS, Desired.STOP, "its last request has ended")
    if not usage.open or replica.observed is not Observed.READY or replica.desired is not Desired.RUN:
        return Action()
    because = f"{usage.open} requests and no piece of an answer for {usage.silent_seconds:.0f} s"
    return _when(usage.silent_seconds, limits.busy_seconds, Desired.STOP, because)


def check_idle(idle_seconds: float, limits: WatchdogLimits) -> Action:
    """Drains what its model can do without, once nobody has used it for long."""
    limit = min(limits.idle_seconds, limits.scale_down_seconds)
    return _when(idle_seconds, limit, Desired.DRAIN, f"no request for {idle_seconds:.0f} s")


def _when(passed_seconds: float, limit_seconds: float, desired: Desired, because: str) -> Action:
    if passed_seconds >= limit_seconds:
        return Action(desired, because)
    return Action(again_in=limit_seconds - passed_seconds)
