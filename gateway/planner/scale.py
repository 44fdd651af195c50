"""How many replicas a model should have, by who waits for it and how full the ones are that it has. Pure.

Growing and shrinking go one replica at a time: no second one is decided while the first is still coming or going, so
one burst grows a model by one (P10).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Final

from gateway.domain.cluster import Replica
from gateway.domain.lifecycle import COMING_UP, Desired, Observed
from gateway.domain.model_spec import ModelSpec
from gateway.planner.reconcile import Action, WatchdogLimits, check_idle
from gateway.planner.working_state import WorkingState, is_leaving

SCALE_UP_AFTER_SECONDS: Final = 1.0
"""Requests that wait for a model for so long, although it has replicas, ask for one more."""
UNWANTED_SECONDS: Final = 30.0
"""A load for which nobody has waited for so long is given up."""


@dataclass(frozen=True)
class Growth:
    """Whether one more replica is wanted."""

    is_wanted: bool = False
    because: str = ""
    again_in: float = inf
    """Seconds until time alone can change this."""


def wanted(working: WorkingState, spec: ModelSpec) -> tuple[int, str]:
    """How many replicas there have to be now, and why. Demand asks for one."""
    waiting, floor = working.waiting(spec.name), working.floor(spec)
    if waiting and floor <= 1:
        return 1, f"{waiting} requests wait for it"
    return floor, "it is to be on every node" if spec.on_every_node else f"min_replicas is {spec.min_replicas}"


def growth(working: WorkingState, spec: ModelSpec) -> Growth:
    """Whether a model that has what it has to have needs one more: all of them are full, or requests wait although the
    newest has had time to take them."""
    live = working.live(spec)
    if spec.on_every_node or not live or 0 < spec.max_replicas <= len(live):
        return Growth()
    if any(each.observed is not Observed.READY for each in live):
        return Growth()
    if _are_full(working, live):
        return Growth(True, f"all {sum(each.parallel for each in live)} slots are taken")
    waiting_since = working.waiting_since(spec.name)
    if waiting_since is None:
        return Growth()
    waited = working.now - max(waiting_since, *(each.since for each in live))
    if waited >= SCALE_UP_AFTER_SECONDS:
        return Growth(True, f"requests wait for {waited:.0f} s although it is loaded")
    return Growth(again_in=SCALE_UP_AFTER_SECONDS - waited)


def spare(working: WorkingState, spec: ModelSpec, limits: WatchdogLimits) -> tuple[Replica | None, Action]:
    """The replica that the model can do without, if there is one, and what is to become of it. One beside which all
    others are full is what growing was for: it would come back at once."""
    live = working.live(spec)
    if len(live) <= working.floor(spec) or working.waiting_since(spec.name) is not None or _one_leaves(working, spec):
        return None, Action()
    idle = [each for each in live if each.observed is Observed.READY and not working.usage_of(each).open]
    longest = max(idle, key=lambda each: (working.idle_seconds(each), -each.since, each.id), default=None)
    if longest is None or _are_full(working, [each for each in live if each is not longest]):
        return None, Action()
    return longest, check_idle(working.idle_seconds(longest), limits)


def unwanted(working: WorkingState, spec: ModelSpec, replica: Replica) -> Action:
    """Gives up a load that nobody waits for any more, of a model that need not be there."""
    live = working.live(spec)
    if replica.observed not in COMING_UP or working.floor(spec) or working.waiting_since(spec.name) is not None:
        return Action()
    if any(each.observed is Observed.READY for each in live):
        return Action()
    asked_at = working.history.asked_at.get(spec.name, replica.since)
    passed = working.now - asked_at
    if passed >= UNWANTED_SECONDS:
        return Action(Desired.STOP, f"nobody has waited for it for {passed:.0f} s")
    return Action(again_in=UNWANTED_SECONDS - passed)


def _are_full(working: WorkingState, replicas: Sequence[Replica]) -> bool:
    return bool(replicas) and all(working.usage_of(each).open >= each.parallel for each in replicas)


def _one_leaves(working: WorkingState, spec: ModelSpec) -> bool:
    return any(is_leaving(each) for each in working.of(spec.name) if working.node_of(each))
