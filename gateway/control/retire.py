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
from dataclasses import dataclass
from math import inf
from types import MappingProxyType
from typing import Final

from gateway.domain.cluster import Node, NodeStatus, Replica
from gateway.domain.lifecycle import COMING_UP, FINAL, Desired, Observed
from gateway.domain.model_spec import ModelSpec
from gateway.routing.eligibility import matches_selector
from gateway.routing.load_table import Usage

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


@dataclass(frozen=True)
class Limits:
    """When a replica counts as stuck, and when as not worth its memory (`watchdog` in the configuration)."""

    busy_seconds: float = inf
    idle_seconds: float = inf


@dataclass(frozen=True)
class Judgement:
    """What its requests say of a replica."""

    desired: Desired | None = None
    """What is to be wanted of it from now on; None: nothing else."""
    because: str = ""
    again_in: float = inf
    """Seconds until time alone can change this."""


DRAINED_SECONDS: Final = 1.0
"""A draining replica without a request for so long gets none any more: every view shows by then that it drains."""
NEVER_USED: Final = Usage(0, inf, 0.0)


def judge_use(replica: Replica, usage: Usage, limits: Limits, now: float) -> Judgement:
    """By what it does with its requests. `now` is the registry's clock. That a replica may be spared is for the caller
    to say: an idle one is not let go below its model's floor."""
    idle_seconds = min(usage.idle_seconds, now - replica.since)
    if replica.observed is Observed.DRAINING and replica.desired is not Desired.STOP:
        return _when(idle_seconds, DRAINED_SECONDS, Desired.STOP, "its last request has ended")
    if replica.observed is not Observed.READY or replica.desired is not Desired.RUN:
        return Judgement()
    if usage.open:
        because = f"{usage.open} requests and no piece of an answer for {usage.silent_seconds:.0f} s"
        return _when(usage.silent_seconds, limits.busy_seconds, Desired.STOP, because)
    return _when(idle_seconds, limits.idle_seconds, Desired.DRAIN, f"no request for {idle_seconds:.0f} s")


def _when(passed_seconds: float, limit_seconds: float, desired: Desired, because: str) -> Judgement:
    if passed_seconds >= limit_seconds:
        return Judgement(desired, because)
    return Judgement(again_in=limit_seconds - passed_seconds)
