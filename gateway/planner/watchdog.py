"""The rules that end a replica because of its requests: it is stuck, it has drained, or nobody uses it. Pure."""

from dataclasses import dataclass
from math import inf
from typing import Final

from gateway.domain.cluster import Replica
from gateway.domain.lifecycle import Desired, Observed
from gateway.planner.planning_input import WatchdogLimits
from gateway.planner.working_state import WorkingState

DRAINED_SECONDS: Final = 1.0
"""A draining replica has drained once it had no request for this long. By then, calls that were on their way when the
last gateway learned of the drain have arrived."""
DRAIN_RECHECK_SECONDS: Final = 0.5
"""How soon to check again whether every gateway knows of a drain, since nothing wakes the planner when they do."""


@dataclass(frozen=True)
class Action:
    """The decision about one replica. The default is to keep it as it is, whatever time passes."""

    desired: Desired | None = None
    """The new desired state of the replica. None means that nothing changes."""
    because: str = ""
    replan_in_seconds: float = inf
    """How long it takes until time alone changes this answer."""


def check(working: WorkingState, replica: Replica, limits: WatchdogLimits) -> Action:
    """Stops a replica whose requests make no progress, and one that has drained."""
    usage = working.usage_of(replica)
    if replica.observed is Observed.DRAINING and replica.desired is not Desired.STOP:
        # A replica drains although it should run if its worker ends, and the worker stops it then.
        if replica.desired is Desired.RUN or not working.is_end_known_everywhere(replica):
            return Action(replan_in_seconds=DRAIN_RECHECK_SECONDS)
        return act_after(DRAINED_SECONDS, working.idle_seconds(replica), Desired.STOP, "its last request has ended")
    if not usage.open or replica.observed is not Observed.READY or replica.desired is not Desired.RUN:
        return Action()
    because = f"{usage.open} requests and no piece of an answer for {usage.silent_seconds:.0f} s"
    return act_after(limits.busy_seconds, usage.silent_seconds, Desired.STOP, because)


def check_idle(idle_seconds: float, limits: WatchdogLimits) -> Action:
    """Drains a replica that its model could do without, once no request has used it for long."""
    limit = min(limits.idle_seconds, limits.scale_down_seconds)
    return act_after(limit, idle_seconds, Desired.DRAIN, f"no request for {idle_seconds:.0f} s")


def act_after(limit_seconds: float, passed_seconds: float, desired: Desired, because: str) -> Action:
    """Returns the action if the limit has passed, or else when it will have passed."""
    if passed_seconds >= limit_seconds:
        return Action(desired, because)
    return Action(replan_in_seconds=limit_seconds - passed_seconds)
