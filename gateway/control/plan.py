"""What should change so that the fleet becomes what is wanted: one pure function from state to plan.

Level-triggered: the plan follows from the whole state alone, so a lost event costs time and never correctness, and a
plan that was carried out leaves nothing to plan. Every entry says why.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import inf
from types import MappingProxyType
from typing import Final

from gateway.control.placement import Place, pick_place
from gateway.control.retire import NEVER_USED, Limits, forget_at, judge_use, surplus, why_drain, why_forget
from gateway.domain.cluster import ClusterState, LoadFailure, Node, NodeStatus, Replica
from gateway.domain.ids import ModelName, NodeId, ReplicaId
from gateway.domain.lifecycle import COMING_UP, Desired, Observed
from gateway.domain.model_spec import ModelSpec
from gateway.registry.protocol import ControlWrite
from gateway.routing.load_table import Usage

BACKOFF_FIRST_SECONDS: Final = 10.0
BACKOFF_MAX_SECONDS: Final = 300.0
NONE_USED: Final[Mapping[ReplicaId, Usage]] = MappingProxyType({})
NO_LIMITS: Final = Limits()
NONE_BROKEN: Final[Mapping[ReplicaId, str]] = MappingProxyType({})


@dataclass(frozen=True)
class Start:
    replica: Replica
    because: str


@dataclass(frozen=True)
class Want:
    """Let `replica_id` be drained or stopped."""

    replica_id: ReplicaId
    desired: Desired
    because: str


@dataclass(frozen=True)
class Forget:
    replica_id: ReplicaId
    because: str


@dataclass(frozen=True)
class Mark:
    """Record or clear (`None`) a model's load failure."""

    model: ModelName
    failure: LoadFailure | None
    because: str


@dataclass(frozen=True)
class Wait:
    """A replica is wanted and can't be started now."""

    model: ModelName
    because: str


@dataclass(frozen=True)
class Plan:
    start: tuple[Start, ...] = ()
    want: tuple[Want, ...] = ()
    forget: tuple[Forget, ...] = ()
    mark: tuple[Mark, ...] = ()
    wait: tuple[Wait, ...] = ()
    again_at: float | None = None
    """When the same state has to be planned again because time alone changes the outcome (registry clock)."""

    def as_write(self) -> ControlWrite:
        return ControlWrite(
            place=tuple(entry.replica for entry in self.start),
            desire=tuple((entry.replica_id, entry.desired) for entry in self.want),
            forget=tuple(entry.replica_id for entry in self.forget),
            failures=tuple((entry.model, entry.failure) for entry in self.mark),
        )


@dataclass
class _Draft:
    """A plan while it grows, over the state as it will be once the plan is carried out."""

    state: ClusterState
    now: float
    new_replica_id: Callable[[], ReplicaId]
    doubtful: frozenset[NodeId]
    """Nodes on which something has just broken."""
    replicas: dict[ReplicaId, Replica]
    failures: dict[ModelName, LoadFailure]
    start: list[Start] = field(default_factory=list)
    want: dict[ReplicaId, Want] = field(default_factory=dict)
    """One per replica: a later reason to end it more quickly takes the place of an earlier one."""
    forget: list[Forget] = field(default_factory=list)
    mark: list[Mark] = field(default_factory=list)
    wait: list[Wait] = field(default_factory=list)
    again_at: list[float] = field(default_factory=list)

    def live(self, spec: ModelSpec) -> list[Replica]:
        """Replicas that count: of the present revision, to stay, on a healthy node."""
        return [
            each
            for each in self.replicas.values()
            if each.model == spec.name
            and each.revision == spec.revision
            and each.desired is Desired.RUN
            and (node := self.node_of(each)) is not None
            and node.status is NodeStatus.HEALTHY
        ]

    def node_of(self, replica: Replica) -> Node | None:
        return self.state.nodes.get(replica.node_id)

    def let_end(self, replica: Replica, desired: Desired, because: str) -> None:
        self.want[replica.id] = Want(replica.id, desired, because)
        self.replicas[replica.id] = replace(replica, desired=desired)

    def note_failure(self, replica: Replica, cause: str) -> None:
        """A load has failed, which matters if it was one of the model as it is now."""
        spec = self.state.models.get(replica.model)
        if spec is None or spec.revision != replica.revision:
            return
        attempts = self.failures[spec.name].attempts + 1 if spec.name in self.failures else 1
        failure = LoadFailure(cause, attempts, self.now + backoff_seconds(attempts))
        self.failures[spec.name] = failure
        self.mark.append(Mark(spec.name, failure, f"load attempt {attempts} failed"))


def plan(
    state: ClusterState,
    now: float,
    new_replica_id: Callable[[], ReplicaId],
    broken: Mapping[ReplicaId, str] = NONE_BROKEN,
    usage: Mapping[ReplicaId, Usage] = NONE_USED,
    limits: Limits = NO_LIMITS,
) -> Plan:
    """`now` is the registry's clock; `new_replica_id` gives ids that were never used before; `broken` are replicas
    that live and are of no use, and why: a gateway has found out in passing. `usage` is what is known of replicas'
    requests; one that is not there has had none."""
    doubtful = frozenset(state.replicas[each].node_id for each in broken if each in state.replicas)
    draft = _Draft(state, now, new_replica_id, doubtful, dict(state.replicas), dict(state.failures))
    for replica in state.replicas.values():
        _settle_ended(draft, replica)
    for replica in tuple(draft.replicas.values()):
        _retire_unwanted(draft, replica, broken=broken.get(replica.id))
    for replica in tuple(draft.replicas.values()):
        _judge_use(draft, replica, usage.get(replica.id, NEVER_USED), limits)
    for spec in state.models.values():
        for replica in surplus(draft.live(spec), spec):
            draft.let_end(replica, Desired.DRAIN, "more than max_replicas")
        _note_success(draft, spec)
        _start_wanted(draft, spec)
    return Plan(
        tuple(draft.start),
        tuple(draft.want.values()),
        tuple(draft.forget),
        tuple(draft.mark),
        tuple(draft.wait),
        min(draft.again_at, default=None),
    )


def _settle_ended(draft: _Draft, replica: Replica) -> None:
    """A replica that is over frees its slot; one that never came up leaves a cause and a time to try again."""
    node = draft.node_of(replica)
    because = why_forget(replica, node, draft.now)
    if because is None:
        if (given_up_at := forget_at(node)) is not None:
            draft.again_at.append(given_up_at)
        return
    draft.forget.append(Forget(replica.id, because))
    del draft.replicas[replica.id]
    if replica.observed is Observed.FAILED:
        draft.note_failure(replica, replica.error or "no cause was given")


def backoff_seconds(attempts: int) -> float:
    """How long a model is left alone after that many failed loads in a row (L9)."""
    return min(BACKOFF_FIRST_SECONDS * 2.0 ** min(attempts - 1, 30), BACKOFF_MAX_SECONDS)


def _retire_unwanted(draft: _Draft, replica: Replica, *, broken: str | None) -> None:
    """Drains what no spec asks for or no node may serve, which is unroutable already (A8, R12); stops what is of no use
    (H1, R14). What breaks before it was of use is a failed load: else it would be tried again and again at once (L9).
    """
    if broken is not None and replica.desired is not Desired.STOP:
        if replica.observed in COMING_UP and replica.desired is Desired.RUN:
            draft.note_failure(replica, broken)
        draft.let_end(replica, Desired.STOP, broken)
    elif replica.desired is Desired.RUN:
        because = why_drain(draft.node_of(replica), replica, draft.state.models.get(replica.model))
        if because is not None:
            draft.let_end(replica, Desired.DRAIN, because)


def _judge_use(draft: _Draft, replica: Replica, usage: Usage, limits: Limits) -> None:
    """Stops what is stuck, and what has drained; lets an idle one go if its model has more than it has to have."""
    judgement = judge_use(replica, usage, limits, draft.now)
    if judgement.desired is Desired.DRAIN and not _is_spare(draft, replica):
        return
    if judgement.desired is not None:
        draft.let_end(replica, judgement.desired, judgement.because)
    elif judgement.again_in < inf:
        draft.again_at.append(draft.now + judgement.again_in)


def _is_spare(draft: _Draft, replica: Replica) -> bool:
    spec = draft.state.models.get(replica.model)
    return spec is not None and len(draft.live(spec)) > _wanted(draft.state, spec)[0]


def _note_success(draft: _Draft, spec: ModelSpec) -> None:
    """Only what became ready after the failure disproves it: beside one that serves, another may fail for ever (L9)."""
    failure = draft.failures.get(spec.name)
    if failure is None:
        return
    failed_at = failure.retry_at - backoff_seconds(failure.attempts)
    if any(each.observed is Observed.READY and each.since > failed_at for each in draft.live(spec)):
        del draft.failures[spec.name]
        draft.mark.append(Mark(spec.name, None, "it is loaded"))


def _start_wanted(draft: _Draft, spec: ModelSpec) -> None:
    wanted, because = _wanted(draft.state, spec)
    missing = wanted - len(draft.live(spec))
    failure = draft.failures.get(spec.name)
    if missing > 0 and failure is not None and failure.retry_at > draft.now:
        draft.wait.append(Wait(spec.name, f"its last load failed; next try in {failure.retry_at - draft.now:.0f} s"))
        draft.again_at.append(failure.retry_at)
        return
    for _ in range(missing):
        place = pick_place(draft.state, spec, draft.replicas.values(), draft.doubtful)
        if place is None:
            draft.wait.append(Wait(spec.name, "no healthy node has room for it"))
            return
        replica = _new_replica(draft, spec, place)
        draft.replicas[replica.id] = replica
        draft.start.append(Start(replica, because))


def _wanted(state: ClusterState, spec: ModelSpec) -> tuple[int, str]:
    """How many replicas there should be, and why. Demand asks for one; growing with load comes later."""
    waiting = sum(demand.waiting for demand in state.demand if demand.model == spec.name)
    wanted = max(spec.min_replicas, 1 if waiting else 0)
    if spec.max_replicas:
        wanted = min(wanted, spec.max_replicas)
    because = f"{waiting} requests wait for it" if waiting else f"min_replicas is {spec.min_replicas}"
    return wanted, because


def _new_replica(draft: _Draft, spec: ModelSpec, place: Place) -> Replica:
    return Replica(
        id=draft.new_replica_id(),
        model=spec.name,
        node_id=place.node.id,
        slot=place.slot,
        revision=spec.revision,
        desired=Desired.RUN,
        observed=Observed.PLACED,
        parallel=spec.slots,
        since=draft.now,
    )


def reasons(plan: Plan) -> Iterable[tuple[str, str, str]]:
    """(verb, subject, because) of everything the plan changes, for the log."""
    yield from (("start", f"{entry.replica.model}/{entry.replica.id}", entry.because) for entry in plan.start)
    yield from ((entry.desired.value, entry.replica_id, entry.because) for entry in plan.want)
    yield from (("forget", entry.replica_id, entry.because) for entry in plan.forget)
    yield from (("mark", entry.model, entry.because) for entry in plan.mark)
