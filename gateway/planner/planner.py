"""Compares what is wanted with what is there: one pure function that makes a plan.

The planner is level-triggered. The plan follows from the whole state alone, so a lost event costs time and never
correctness, and a plan that was carried out leaves nothing to plan. Every entry says why.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from math import inf
from typing import Final

from gateway.domain.cluster import Node, NodeStatus, Replica
from gateway.domain.ids import ModelName, ReplicaId
from gateway.domain.lifecycle import COMING_UP, Desired, Observed
from gateway.domain.model_spec import ModelSpec
from gateway.domain.routability import newest_serving
from gateway.planner import watchdog
from gateway.planner.builder import PlanBuilder, backoff_seconds
from gateway.planner.node_resources import is_leaving
from gateway.planner.placement import Insufficient, Placement, Placer
from gateway.planner.plan import Plan
from gateway.planner.planning_input import PlanningInput, WatchdogLimits
from gateway.planner.reconcile import (
    exclusive_group_conflicts,
    given_up_at,
    outdated_replicas,
    surplus_replicas,
    why_delete,
    why_drain,
)
from gateway.planner.scale import abandon_load, required_replicas, scale_down, scale_up
from gateway.planner.working_state import WorkingState

UNLOAD_PAUSE_SECONDS: Final = 0.01
"""How long nothing is started after an unload: a replica of the same moment would count as unloaded, too."""
STABLE_SECONDS: Final = 10.0
"""How long a replica has to be ready before earlier failures of its model are forgiven."""


def plan(inputs: PlanningInput, new_replica_id: Callable[[], ReplicaId]) -> Plan:
    """Returns what should change. `new_replica_id` gives an id that was never used before, each time it is called."""
    working = WorkingState(inputs)
    builder = PlanBuilder(working, new_replica_id)
    _delete_ended(builder)
    _stop_broken(builder)
    _drain_undesired(builder)
    _apply_watchdog(builder, inputs.limits)
    specs = sorted(working.snapshot.models.values(), key=lambda spec: _precedence(working, spec))
    for spec in specs:
        _scale_down(builder, spec, inputs.limits)
    placer = Placer(working)
    for spec in specs:
        _forgive_failures(builder, spec)
        _start_missing(builder, placer, spec)
    return builder.build()


def _precedence(working: WorkingState, spec: ModelSpec) -> tuple[bool, float, ModelName]:
    """Returns the key by which models get room in order: first those that lack required replicas, then those whose
    requests have waited longest."""
    waiting_since = working.waiting_since(spec.name)
    has_minimum = working.replicas_above_minimum(spec) >= 0
    return has_minimum, inf if waiting_since is None else waiting_since, spec.name


# Reconcile: which replicas have to go


def _delete_ended(builder: PlanBuilder) -> None:
    """Frees the slots of replicas that are over.

    A replica that never came up, or that broke, leaves a cause and a time to try again (L9).
    """
    working = builder.working
    for replica in working.snapshot.replicas.values():
        node = working.node_of(replica)
        because = why_delete(replica, node, working.now)
        if because is None:
            builder.replan_by(given_up_at(node))
            continue
        builder.delete(replica, because)
        if replica.observed is Observed.FAILED:
            builder.record_load_failure(replica, replica.error or "no cause was given")
        elif replica.observed is Observed.GONE and replica.error is not None and replica.desired is Desired.RUN:
            builder.record_load_failure(replica, replica.error, is_first_forgiven=True)


def _stop_broken(builder: PlanBuilder) -> None:
    """Stops replicas that were found broken (H1, R14).

    One that broke while it was coming up counts as a failed load, or it would be tried again at once and for ever
    (L9). One that was lost with its worker does not: another node may load the model at once (L3).
    """
    inputs = builder.working.inputs
    for replica in tuple(builder.working.replicas.values()):
        because = inputs.broken.get(replica.id)
        if because is None or replica.desired is Desired.STOP:
            continue
        if replica.observed in COMING_UP and replica.desired is Desired.RUN and replica.id not in inputs.lost:
            builder.record_load_failure(replica, because)
        builder.set_desired(replica, Desired.STOP, because)


def _drain_undesired(builder: PlanBuilder) -> None:
    """Drains what no spec asks for or no node may serve, which gets no requests any more already (A8, R12)."""
    working = builder.working
    newest = newest_serving(replace(working.snapshot, replicas=working.replicas))
    for replica in tuple(working.replicas.values()):
        if replica.desired is Desired.RUN and (because := why_drain(working, replica, newest)) is not None:
            builder.set_desired(replica, Desired.DRAIN, because)
    for node in working.snapshot.nodes.values():
        if node.status is NodeStatus.HEALTHY:
            for replica, because in exclusive_group_conflicts(working, node):
                builder.set_desired(replica, Desired.DRAIN, because)


def _apply_watchdog(builder: PlanBuilder, limits: WatchdogLimits) -> None:
    for replica in tuple(builder.working.replicas.values()):
        builder.act(replica, watchdog.check(builder.working, replica, limits))


# Scale: how many replicas there should be


def _scale_down(builder: PlanBuilder, spec: ModelSpec, limits: WatchdogLimits) -> None:
    """Replicas above the maximum go at once, replicas that are merely not needed go one by one."""
    working = builder.working
    for replica, because in surplus_replicas(working.live_replicas(spec), spec):
        builder.set_desired(replica, Desired.DRAIN, because)
    if outdated_replicas(working, spec):
        return
    if (found := scale_down(working, spec, limits)) is not None:
        builder.act(*found)
    for replica in working.live_replicas(spec):
        builder.act(replica, abandon_load(working, spec, replica))


def _forgive_failures(builder: PlanBuilder, spec: ModelSpec) -> None:
    """Clears the load failure once a replica that became ready after it has lived for a while (L9).

    An older replica proves nothing, since another one beside it may fail for ever. A very young one may be about to
    break as the last one did.
    """
    failure = builder.failures.get(spec.name)
    if failure is None:
        return
    failed_at = failure.retry_at - backoff_seconds(failure.attempts)
    live = builder.working.live_replicas(spec)
    ready_since = [each.since for each in live if each.observed is Observed.READY and each.since > failed_at]
    if not ready_since:
        return
    if min(ready_since) + STABLE_SECONDS <= builder.working.now:
        builder.clear_load_failure(spec)
    else:
        builder.replan_by(min(ready_since) + STABLE_SECONDS)


@dataclass(frozen=True)
class _Missing:
    """The replicas that have to be started, and the reason."""

    nodes: tuple[tuple[Node, ...] | None, ...]
    """The nodes among which to choose, for each replica. None means all nodes on which the model may run."""
    because: str
    may_preempt: bool = True
    """Whether other replicas may be preempted. They may be so that a model is served at all, not so that it is
    served better."""


NOTHING_MISSING: Final = _Missing((), "")


def _missing_replicas(builder: PlanBuilder, spec: ModelSpec) -> _Missing:
    working = builder.working
    live = working.live_replicas(spec)
    if outdated_replicas(working, spec):
        return NOTHING_MISSING if live else _Missing((None,), "its spec has changed", may_preempt=False)
    count, because = required_replicas(working, spec)
    if spec.on_every_node:
        there = {each.node_id for each in live}
        return _Missing(tuple((node,) for node in working.feasible_nodes(spec) if node.id not in there), because)
    if count > len(live):
        return _Missing((None,) * (count - len(live)), because)
    more = scale_up(working, spec)
    builder.replan_by(working.now + more.replan_in_seconds)
    return _Missing((None,), more.because, may_preempt=False) if more.is_needed else NOTHING_MISSING


# Place: where they go, and who makes room


def _start_missing(builder: PlanBuilder, placer: Placer, spec: ModelSpec) -> None:
    missing = _missing_replicas(builder, spec)
    if not missing.nodes or _is_held_back(builder, spec):
        return
    for nodes in missing.nodes:
        placement = placer.place(spec, nodes, may_preempt=missing.may_preempt)
        if isinstance(placement, Insufficient):
            _report_shortage(builder, spec, placement)
        elif placement.is_free:
            builder.start(spec, placement, missing.because)
            continue
        else:
            _reserve(builder, spec, placement)
        if nodes is None:
            return  # The next one would get the same answer.


def _is_held_back(builder: PlanBuilder, spec: ModelSpec) -> bool:
    """Leaves the model alone for a while after a failed load, and for a moment after an unload."""
    failure, now = builder.failures.get(spec.name), builder.working.now
    if failure is not None and failure.retry_at > now:
        builder.add_pending(spec, f"its last load failed; next try in {failure.retry_at - now:.0f} s")
        builder.replan_by(failure.retry_at)
        return True
    if builder.working.snapshot.unloads.get(spec.name, -inf) >= now:
        builder.add_pending(spec, "it has just been unloaded")
        builder.replan_by(now + UNLOAD_PAUSE_SECONDS)
        return True
    return False


def _reserve(builder: PlanBuilder, spec: ModelSpec, placement: Placement) -> None:
    """Reserves the place and drains the victims. The replica is started once all that hold it are gone (W11)."""
    for replica in placement.victims:
        builder.set_desired(replica, Desired.DRAIN, f"makes room for '{spec.name}'")
    builder.working.reserve(spec.name, placement.node)
    builder.replan_by(placement.replan_at)
    leaving = [each for each in builder.working.node_info(placement.node).replicas if is_leaving(each)]
    builder.add_pending(spec, f"{_awaited(spec, leaving)} on {placement.node.name}")


def _awaited(spec: ModelSpec, leaving: Iterable[Replica]) -> str:
    others = sorted({each.model for each in leaving} - {spec.name})
    return f"evicting {', '.join(others)}" if others else "waiting for its room"


def _report_shortage(builder: PlanBuilder, spec: ModelSpec, shortage: Insufficient) -> None:
    """Handles a replica that fits on no node. A surge rollout then replaces replicas one by one; any other model waits
    (P5)."""
    builder.replan_by(shortage.replan_at)
    working = builder.working
    if outdated := outdated_replicas(working, spec):
        _drain_one(builder, spec, outdated)
        return
    builder.add_pending(spec, str(shortage), is_shortage=bool(shortage.reasons))
    live, minimum = len(working.live_replicas(spec)), working.min_replicas(spec)
    if live < minimum:
        builder.add_unsatisfiable(spec, f"{live} of {minimum} replicas: {shortage}")


def _drain_one(builder: PlanBuilder, spec: ModelSpec, outdated: Iterable[Replica]) -> None:
    """Drains the outdated replica that was used least of late, unless one of the model is leaving already."""
    working = builder.working
    builder.add_pending(spec, "its old replicas make room for the new ones")
    if not any(is_leaving(each) for each in working.replicas_of(spec.name)):
        least_used = max(outdated, key=lambda each: (working.idle_seconds(each), each.id))
        builder.set_desired(least_used, Desired.DRAIN, "makes room for its new revision")
