"""How many replicas a model should have: by the requests that wait for it, and by how full its replicas are. Pure.

The planner scales up and down by one replica at a time. It decides on no second one while the first is still coming up
or leaving, so one burst of requests adds one replica (P10).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Final

from gateway.domain.cluster import Replica
from gateway.domain.lifecycle import COMING_UP, Desired, Observed
from gateway.domain.model_spec import ModelSpec
from gateway.planner.node_resources import is_leaving
from gateway.planner.planning_input import WatchdogLimits
from gateway.planner.watchdog import Action, act_after, check_idle
from gateway.planner.working_state import WorkingState

SCALE_UP_AFTER_SECONDS: Final = 1.0
"""How long requests have to wait for a model that has replicas until it gets one more."""
ABANDON_AFTER_SECONDS: Final = 30.0
"""How long a load goes on although no request waits for the model any more."""


@dataclass(frozen=True)
class ScaleUp:
    """The decision whether a model gets one replica more than its minimum."""

    is_needed: bool = False
    because: str = ""
    replan_in_seconds: float = inf
    """How long it takes until time alone changes this answer."""


def required_replicas(working: WorkingState, spec: ModelSpec) -> tuple[int, str]:
    """Returns how many replicas the model has to have now, and why. Waiting requests ask for one."""
    waiting, minimum = working.waiting_requests(spec.name), working.min_replicas(spec)
    if waiting and minimum <= 1:
        return 1, f"{waiting} requests wait for it"
    return minimum, "it is to be on every node" if spec.on_every_node else f"min_replicas is {spec.min_replicas}"


def scale_up(working: WorkingState, spec: ModelSpec) -> ScaleUp:
    """Decides whether a model that has the required replicas needs one more.

    It does if all of them are full, or if requests wait although the newest replica has had time to take them.
    """
    live = working.live_replicas(spec)
    if spec.on_every_node or not live or 0 < spec.max_replicas <= len(live):
        return ScaleUp()
    if any(each.observed is not Observed.READY for each in live):
        return ScaleUp()
    if _are_full(working, live):
        return ScaleUp(True, f"all {sum(each.parallel for each in live)} slots are taken")
    waiting_since = working.waiting_since(spec.name)
    if waiting_since is None:
        return ScaleUp()
    waited = working.now - max(waiting_since, *(each.since for each in live))
    if waited >= SCALE_UP_AFTER_SECONDS:
        return ScaleUp(True, f"requests wait for {waited:.0f} s although it is loaded")
    return ScaleUp(replan_in_seconds=SCALE_UP_AFTER_SECONDS - waited)


def scale_down(working: WorkingState, spec: ModelSpec, limits: WatchdogLimits) -> tuple[Replica, Action] | None:
    """Returns the one replica that the model could do without, and what to do about it. Returns None if it needs all
    or is pinned.

    An idle replica stays if all others are full: the next request would bring it back at once.
    """
    live = working.live_replicas(spec)
    if spec.pinned or len(live) <= working.min_replicas(spec) or working.waiting_since(spec.name) is not None:
        return None
    if _is_any_leaving(working, spec):
        return None
    idle = [each for each in live if each.observed is Observed.READY and not working.usage_of(each).open]
    longest = max(idle, key=lambda each: (working.idle_seconds(each), -each.since, each.id), default=None)
    if longest is None or _are_full(working, [each for each in live if each is not longest]):
        return None
    return longest, check_idle(working.idle_seconds(longest), limits)


def abandon_load(working: WorkingState, spec: ModelSpec, replica: Replica) -> Action:
    """Stops a load for which no request waits any more, if the model need not be there and has no ready replica. A
    pinned model is loaded to the end."""
    live = working.live_replicas(spec)
    if replica.observed not in COMING_UP or working.min_replicas(spec) or working.waiting_since(spec.name) is not None:
        return Action()
    if spec.pinned:
        return Action()
    if any(each.observed is Observed.READY for each in live):
        return Action()
    passed = working.now - working.history.last_demand_at.get(spec.name, replica.since)
    return act_after(ABANDON_AFTER_SECONDS, passed, Desired.STOP, f"nobody has waited for it for {passed:.0f} s")


def _are_full(working: WorkingState, replicas: Sequence[Replica]) -> bool:
    return bool(replicas) and all(working.usage_of(each).open >= each.parallel for each in replicas)


def _is_any_leaving(working: WorkingState, spec: ModelSpec) -> bool:
    return any(is_leaving(each) for each in working.replicas_of(spec.name) if working.node_of(each))
