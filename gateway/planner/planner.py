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
    exclusive_group_conflicts,
    forget_at,
    judge_use,
    surplus,
    why_drain,
    why_forget,
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
    remembered: PlanningHistory = NO_HISTORY,
    audience: Audience | None = None,
) -> Plan:
    """`now` is the registry's clock; `new_replica_id` gives ids that were never used before; `broken` are replicas
    that live and are of no use, and why: a gateway has found out in passing. `usage` is what is known of replicas'
    requests; one that is not there has had none. `lost` are those of the broken ones that went with their worker, which
    says nothing of their model. `remembered` is what the leader knows from before. `audience` is
    what the gateways know that may route requests; None: all of them route by this state."""
    doubtful = frozenset(state.replicas[each].node_id for each in broken if each in state.replicas)
    ground = WorkingState(
        state=state, now=now, usage=usage, remembered=remembered, doubtful=doubtful, audience=audience
    )
    draft = PlanBuilder(ground, new_replica_id, dict(state.failures))
    _settle_ended(draft)
    _stop_broken(draft, broken, lost)
    _retire_unwanted(draft)
    _judge_use(draft, limits)
    specs = sorted(state.models.values(), key=lambda spec: _precedence(ground, spec))
    for spec in specs:
        _shrink(draft, spec, limits)
    for spec in specs:
        _note_success(draft, spec)
        _start_wanted(draft, spec)
    return draft.finish()


def _precedence(ground: WorkingState, spec: ModelSpec) -> tuple[bool, float, ModelName]:
    """Who gets room first: models that lack what they have to have, then those that are waited for longest."""
    waiting_since = ground.waiting_since(spec.name)
    return len(ground.live(spec)) >= ground.floor(spec), inf if waiting_since is None else waiting_since, spec.name


def _settle_ended(draft: PlanBuilder) -> None:
    """A replica that is over frees its slot; one that never came up, or that broke, leaves a cause and a time to try
    again (L9)."""
    for replica in draft.ground.state.replicas.values():
        node = draft.ground.node_of(replica)
        because = why_forget(replica, node, draft.ground.now)
        if because is None:
            draft.look_again(forget_at(node))
            continue
        draft.drop(replica, because)
        if replica.observed is Observed.FAILED:
            draft.note_failure(replica, replica.error or "no cause was given")
        elif replica.observed is Observed.GONE and replica.error is not None and replica.desired is Desired.RUN:
            draft.note_failure(replica, replica.error, forgives_first=True)


def _stop_broken(draft: PlanBuilder, broken: Mapping[ReplicaId, str], lost: Container[ReplicaId]) -> None:
    """Stops what is of no use (H1, R14). What breaks before it was of use is a failed load: else it would be tried
    again and again at once (L9). Not so what is lost with its worker: another node may have it at once (L3)."""
    for replica in tuple(draft.ground.replicas.values()):
        because = broken.get(replica.id)
        if because is None or replica.desired is Desired.STOP:
            continue
        if replica.observed in COMING_UP and replica.desired is Desired.RUN and replica.id not in lost:
            draft.note_failure(replica, because)
        draft.let_end(replica, Desired.STOP, because)


def _retire_unwanted(draft: PlanBuilder) -> None:
    """Drains what no spec asks for or no node may serve, which is unroutable already (A8, R12)."""
    ground = draft.ground
    newest = newest_serving(replace(ground.state, replicas=ground.replicas))
    for replica in tuple(ground.replicas.values()):
        if replica.desired is Desired.RUN and (because := why_drain(ground, replica, newest)) is not None:
            draft.let_end(replica, Desired.DRAIN, because)
    for node in ground.state.nodes.values():
        for rival, because in exclusive_group_conflicts(ground, node) if node.status is NodeStatus.HEALTHY else ():
            draft.let_end(rival, Desired.DRAIN, because)


def _judge_use(draft: PlanBuilder, limits: WatchdogLimits) -> None:
    for replica in tuple(draft.ground.replicas.values()):
        _carry_out(draft, replica, judge_use(draft.ground, replica, limits))


def _carry_out(draft: PlanBuilder, replica: Replica, judgement: Action) -> None:
    if judgement.desired is not None:
        draft.let_end(replica, judgement.desired, judgement.because)
    elif judgement.again_in < inf:
        draft.look_again(draft.ground.now + judgement.again_in)


def _shrink(draft: PlanBuilder, spec: ModelSpec, limits: WatchdogLimits) -> None:
    """What is too much goes at once, what is merely not needed one by one."""
    ground = draft.ground
    for replica, because in surplus(ground.live(spec), spec):
        draft.let_end(replica, Desired.DRAIN, because)
    if _old_ones(ground, spec):
        return
    idle, judgement = spare(ground, spec, limits)
    if idle is not None:
        _carry_out(draft, idle, judgement)
    for replica in ground.live(spec):
        _carry_out(draft, replica, unwanted(ground, spec, replica))


def _note_success(draft: PlanBuilder, spec: ModelSpec) -> None:
    """Only what became ready after the failure disproves it, since beside one that serves another may fail for ever;
    and only once it has lived for a while, since it may be about to break as the last one did (L9)."""
    failure = draft.failures.get(spec.name)
    if failure is None:
        return
    failed_at = failure.retry_at - backoff_seconds(failure.attempts)
    ready = [
        each.since for each in draft.ground.live(spec) if each.observed is Observed.READY and each.since > failed_at
    ]
    if not ready:
        return
    if min(ready) + STABLE_SECONDS <= draft.ground.now:
        draft.note_success(spec)
    else:
        draft.look_again(min(ready) + STABLE_SECONDS)


@dataclass(frozen=True)
class _Goal:
    """Replicas to start, each on any of its `nodes` (None: wherever the model may run)."""

    places: tuple[tuple[Node, ...] | None, ...]
    because: str
    may_evict: bool = True
    """Serving a model at all is worth it, serving it better is not."""


NOTHING_TO_START: Final = _Goal((), "")


def _start_wanted(draft: PlanBuilder, spec: ModelSpec) -> None:
    goal = _goal(draft, spec)
    if not goal.places or _is_held_back(draft, spec):
        return
    for nodes in goal.places:
        place = pick_place(draft.ground, spec, nodes, may_evict=goal.may_evict)
        if isinstance(place, Insufficient):
            _do_without(draft, spec, place)
        elif place.is_free:
            draft.begin(spec, place, goal.because)
            continue
        else:
            _make_room(draft, spec, place)
        if nodes is None:
            return


def _goal(draft: PlanBuilder, spec: ModelSpec) -> _Goal:
    ground = draft.ground
    if _old_ones(ground, spec):
        return NOTHING_TO_START if ground.live(spec) else _Goal((None,), "its spec has changed", may_evict=False)
    count, because = wanted(ground, spec)
    if spec.on_every_node:
        there = {each.node_id for each in ground.live(spec)}
        return _Goal(tuple((node,) for node in ground.fitting_nodes(spec) if node.id not in there), because)
    if (missing := count - len(ground.live(spec))) > 0:
        return _Goal((None,) * missing, because)
    grown = growth(ground, spec)
    draft.look_again(ground.now + grown.again_in)
    return _Goal((None,), grown.because, may_evict=False) if grown.is_wanted else NOTHING_TO_START


def _is_held_back(draft: PlanBuilder, spec: ModelSpec) -> bool:
    """It is left alone for a while after a failed load, and for a moment after an unload."""
    failure, now = draft.failures.get(spec.name), draft.ground.now
    if failure is not None and failure.retry_at > now:
        draft.wait.append(Pending(spec.name, f"its last load failed; next try in {failure.retry_at - now:.0f} s"))
        draft.look_again(failure.retry_at)
        return True
    if draft.ground.state.unloads.get(spec.name, -inf) >= now:
        draft.wait.append(Pending(spec.name, "it has just been unloaded"))
        draft.look_again(now + UNLOAD_PAUSE_SECONDS)
        return True
    return False


def _make_room(draft: PlanBuilder, spec: ModelSpec, place: Placement) -> None:
    """The room is the newcomer's from now on; it is started once those that hold it are gone (W11)."""
    for replica in place.evictions:
        draft.let_end(replica, Desired.DRAIN, f"makes room for '{spec.name}'")
    draft.claim(spec, place)
    leaving = sorted({row.model for row in draft.ground.on(place.node) if is_leaving(row)} - {spec.name})
    what = f"evicting {', '.join(leaving)}" if leaving else "waiting for its room"
    draft.wait.append(Pending(spec.name, f"{what} on {place.node.name}"))


def _do_without(draft: PlanBuilder, spec: ModelSpec, place: Insufficient) -> None:
    """Without room for one more, a surge replaces one by one; anybody else waits until something changes (P5)."""
    draft.look_again(place.again_at)
    ground = draft.ground
    if old := _old_ones(ground, spec):
        _give_up_one(draft, spec, old)
        return
    draft.wait.append(Pending(spec.name, str(place), is_shortage=bool(place.reasons)))
    live, floor = len(ground.live(spec)), ground.floor(spec)
    if live < floor:
        draft.unsatisfiable[spec.name] = f"{live} of {floor} replicas: {place}"


def _old_ones(ground: WorkingState, spec: ModelSpec) -> list[Replica]:
    """Returns the replicas of earlier revisions, which serve until a new one does."""
    return [each for each in ground.of(spec.name) if each.revision != spec.revision and ground.is_staying(each)]


def _give_up_one(draft: PlanBuilder, spec: ModelSpec, old: list[Replica]) -> None:
    """The one that was used least of late, unless one is leaving already."""
    draft.wait.append(Pending(spec.name, "its old replicas make room for the new ones"))
    if not any(is_leaving(row) for row in draft.ground.of(spec.name)):
        least_used = max(old, key=lambda row: (draft.ground.idle_seconds(row), row.id))
        draft.let_end(least_used, Desired.DRAIN, "makes room for its new revision")
