"""What should change so that the fleet becomes what is wanted: one pure function from state to plan.

Level-triggered: the plan follows from the whole state alone, so a lost event costs time and never correctness, and a
plan that was carried out leaves nothing to plan. Every entry says why.
"""

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, replace
from math import inf
from types import MappingProxyType
from typing import Final

from gateway.domain.activity import Usage
from gateway.domain.cluster import ClusterState, Node, NodeStatus, Replica
from gateway.domain.ids import ModelName, ReplicaId
from gateway.domain.lifecycle import COMING_UP, Desired, Observed
from gateway.domain.model_spec import ModelSpec
from gateway.domain.peers import Audience
from gateway.domain.routability import newest_serving
from gateway.planner.builder import PlanBuilder, backoff_seconds
from gateway.planner.history import NO_HISTORY, PlanningHistory
from gateway.planner.placement import Insufficient, Placement, pick_place
from gateway.planner.plan import Pending, Plan
from gateway.planner.reconcile import (
    Action,
    WatchdogLimits,
    check_watchdog,
    delete_at,
    exclusive_group_conflicts,
    surplus,
    why_delete,
    why_drain,
)
from gateway.planner.scale import growth, spare, unwanted, wanted
from gateway.planner.working_state import NONE_USED, WorkingState, is_leaving

NO_LIMITS: Final = WatchdogLimits()
NONE_BROKEN: Final[Mapping[ReplicaId, str]] = MappingProxyType({})
UNLOAD_PAUSE_SECONDS: Final = 0.01
"""A replica that is placed in the very moment of an unload could not be told from one that it is meant for."""
STABLE_SECONDS: Final = 10.0
"""For a replica to live after it became ready before earlier failures of its model are forgiven."""


def plan(
    state: ClusterState,
    now: float,
    new_replica_id: Callable[[], ReplicaId],
    broken: Mapping[ReplicaId, str] = NONE_BROKEN,
    usage: Mapping[ReplicaId, Usage] = NONE_USED,
    limits: WatchdogLimits = NO_LIMITS,
    lost: Container[ReplicaId] = (),
    history: PlanningHistory = NO_HISTORY,
    audience: Audience | None = None,
) -> Plan:
    """`now` is the registry's clock; `new_replica_id` gives ids that were never used before; `broken` are replicas
    that live and are of no use, and why: a gateway has found out in passing. `usage` is what is known of replicas'
    requests; one that is not there has had none. `lost` are those of the broken ones that went with their worker, which
    says nothing of their model. `history` is what the leader knows from before. `audience` is
    what the gateways know that may route requests; None: all of them route by this state."""
    doubtful = frozenset(state.replicas[each].node_id for each in broken if each in state.replicas)
    working = WorkingState(state=state, now=now, usage=usage, history=history, doubtful=doubtful, audience=audience)
    builder = PlanBuilder(working, new_replica_id, dict(state.failures))
    _delete_ended(builder)
    _stop_broken(builder, broken, lost)
    _drain_unwanted(builder)
    _apply_watchdog(builder, limits)
    specs = sorted(state.models.values(), key=lambda spec: _precedence(working, spec))
    for spec in specs:
        _shrink(builder, spec, limits)
    for spec in specs:
        _record_success(builder, spec)
        _start_wanted(builder, spec)
    return builder.finish()


def _precedence(working: WorkingState, spec: ModelSpec) -> tuple[bool, float, ModelName]:
    """Who gets room first: models that lack what they have to have, then those that are waited for longest."""
    waiting_since = working.waiting_since(spec.name)
    return len(working.live(spec)) >= working.floor(spec), inf if waiting_since is None else waiting_since, spec.name


def _delete_ended(builder: PlanBuilder) -> None:
    """A replica that is over frees its slot; one that never came up, or that broke, leaves a cause and a time to try
    again (L9)."""
    for replica in builder.working.state.replicas.values():
        node = builder.working.node_of(replica)
        because = why_delete(replica, node, builder.working.now)
        if because is None:
            builder.replan_at(delete_at(node))
            continue
        builder.delete_replica(replica, because)
        if replica.observed is Observed.FAILED:
            builder.record_failure(replica, replica.error or "no cause was given")
        elif replica.observed is Observed.GONE and replica.error is not None and replica.desired is Desired.RUN:
            builder.record_failure(replica, replica.error, forgives_first=True)


def _stop_broken(builder: PlanBuilder, broken: Mapping[ReplicaId, str], lost: Container[ReplicaId]) -> None:
    """Stops what is of no use (H1, R14). What breaks before it was of use is a failed load: else it would be tried
    again and again at once (L9). Not so what is lost with its worker: another node may have it at once (L3)."""
    for replica in tuple(builder.working.replicas.values()):
        because = broken.get(replica.id)
        if because is None or replica.desired is Desired.STOP:
            continue
        if replica.observed in COMING_UP and replica.desired is Desired.RUN and replica.id not in lost:
            builder.record_failure(replica, because)
        builder.end_replica(replica, Desired.STOP, because)


def _drain_unwanted(builder: PlanBuilder) -> None:
    """Drains what no spec asks for or no node may serve, which is unroutable already (A8, R12)."""
    working = builder.working
    newest = newest_serving(replace(working.state, replicas=working.replicas))
    for replica in tuple(working.replicas.values()):
        if replica.desired is Desired.RUN and (because := why_drain(working, replica, newest)) is not None:
            builder.end_replica(replica, Desired.DRAIN, because)
    for node in working.state.nodes.values():
        for conflicting, because in (
            exclusive_group_conflicts(working, node) if node.status is NodeStatus.HEALTHY else ()
        ):
            builder.end_replica(conflicting, Desired.DRAIN, because)


def _apply_watchdog(builder: PlanBuilder, limits: WatchdogLimits) -> None:
    for replica in tuple(builder.working.replicas.values()):
        _plan_action(builder, replica, check_watchdog(builder.working, replica, limits))


def _plan_action(builder: PlanBuilder, replica: Replica, action: Action) -> None:
    if action.desired is not None:
        builder.end_replica(replica, action.desired, action.because)
    elif action.again_in < inf:
        builder.replan_at(builder.working.now + action.again_in)


def _shrink(builder: PlanBuilder, spec: ModelSpec, limits: WatchdogLimits) -> None:
    """What is too much goes at once, what is merely not needed one by one."""
    working = builder.working
    for replica, because in surplus(working.live(spec), spec):
        builder.end_replica(replica, Desired.DRAIN, because)
    if _old_ones(working, spec):
        return
    idle, action = spare(working, spec, limits)
    if idle is not None:
        _plan_action(builder, idle, action)
    for replica in working.live(spec):
        _plan_action(builder, replica, unwanted(working, spec, replica))


def _record_success(builder: PlanBuilder, spec: ModelSpec) -> None:
    """Only what became ready after the failure disproves it, since beside one that serves another may fail for ever;
    and only once it has lived for a while, since it may be about to break as the last one did (L9)."""
    failure = builder.failures.get(spec.name)
    if failure is None:
        return
    failed_at = failure.retry_at - backoff_seconds(failure.attempts)
    ready = [
        each.since for each in builder.working.live(spec) if each.observed is Observed.READY and each.since > failed_at
    ]
    if not ready:
        return
    if min(ready) + STABLE_SECONDS <= builder.working.now:
        builder.record_success(spec)
    else:
        builder.replan_at(min(ready) + STABLE_SECONDS)


@dataclass(frozen=True)
class _Goal:
    """Replicas to start, each on any of its `nodes` (None: wherever the model may run)."""

    places: tuple[tuple[Node, ...] | None, ...]
    because: str
    may_preempt: bool = True
    """Serving a model at all is worth it, serving it better is not."""


NOTHING_TO_START: Final = _Goal((), "")


def _start_wanted(builder: PlanBuilder, spec: ModelSpec) -> None:
    goal = _goal(builder, spec)
    if not goal.places or _is_held_back(builder, spec):
        return
    for nodes in goal.places:
        place = pick_place(builder.working, spec, nodes, may_preempt=goal.may_preempt)
        if isinstance(place, Insufficient):
            _report_insufficient(builder, spec, place)
        elif place.is_free:
            builder.start_replica(spec, place, goal.because)
            continue
        else:
            _make_room(builder, spec, place)
        if nodes is None:
            return


def _goal(builder: PlanBuilder, spec: ModelSpec) -> _Goal:
    working = builder.working
    if _old_ones(working, spec):
        return NOTHING_TO_START if working.live(spec) else _Goal((None,), "its spec has changed", may_preempt=False)
    count, because = wanted(working, spec)
    if spec.on_every_node:
        there = {each.node_id for each in working.live(spec)}
        return _Goal(tuple((node,) for node in working.fitting_nodes(spec) if node.id not in there), because)
    if (missing := count - len(working.live(spec))) > 0:
        return _Goal((None,) * missing, because)
    grown = growth(working, spec)
    builder.replan_at(working.now + grown.again_in)
    return _Goal((None,), grown.because, may_preempt=False) if grown.is_wanted else NOTHING_TO_START


def _is_held_back(builder: PlanBuilder, spec: ModelSpec) -> bool:
    """It is left alone for a while after a failed load, and for a moment after an unload."""
    failure, now = builder.failures.get(spec.name), builder.working.now
    if failure is not None and failure.retry_at > now:
        builder.pending.append(Pending(spec.name, f"its last load failed; next try in {failure.retry_at - now:.0f} s"))
        builder.replan_at(failure.retry_at)
        return True
    if builder.working.state.unloads.get(spec.name, -inf) >= now:
        builder.pending.append(Pending(spec.name, "it has just been unloaded"))
        builder.replan_at(now + UNLOAD_PAUSE_SECONDS)
        return True
    return False


def _make_room(builder: PlanBuilder, spec: ModelSpec, place: Placement) -> None:
    """The room is the newcomer's from now on; it is started once those that hold it are gone (W11)."""
    for replica in place.victims:
        builder.end_replica(replica, Desired.DRAIN, f"makes room for '{spec.name}'")
    builder.reserve(spec, place)
    leaving = sorted({row.model for row in builder.working.on(place.node) if is_leaving(row)} - {spec.name})
    what = f"evicting {', '.join(leaving)}" if leaving else "waiting for its room"
    builder.pending.append(Pending(spec.name, f"{what} on {place.node.name}"))


def _report_insufficient(builder: PlanBuilder, spec: ModelSpec, place: Insufficient) -> None:
    """Without room for one more, a surge replaces one by one; anybody else waits until something changes (P5)."""
    builder.replan_at(place.again_at)
    working = builder.working
    if old := _old_ones(working, spec):
        _drain_one_old(builder, spec, old)
        return
    builder.pending.append(Pending(spec.name, str(place), is_shortage=bool(place.reasons)))
    live, floor = len(working.live(spec)), working.floor(spec)
    if live < floor:
        builder.unsatisfiable[spec.name] = f"{live} of {floor} replicas: {place}"


def _old_ones(working: WorkingState, spec: ModelSpec) -> list[Replica]:
    """Returns the replicas of earlier revisions, which serve until a new one does."""
    return [each for each in working.of(spec.name) if each.revision != spec.revision and working.is_staying(each)]


def _drain_one_old(builder: PlanBuilder, spec: ModelSpec, old: list[Replica]) -> None:
    """The one that was used least of late, unless one is leaving already."""
    builder.pending.append(Pending(spec.name, "its old replicas make room for the new ones"))
    if not any(is_leaving(row) for row in builder.working.of(spec.name)):
        least_used = max(old, key=lambda row: (builder.working.idle_seconds(row), row.id))
        builder.end_replica(least_used, Desired.DRAIN, "makes room for its new revision")
