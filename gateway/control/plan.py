"""What should change so that the fleet becomes what is wanted: one pure function from state to plan.

Level-triggered: the plan follows from the whole state alone, so a lost event costs time and never correctness, and a
plan that was carried out leaves nothing to plan. Every entry says why.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

from gateway.control.placement import Place, pick_place
from gateway.domain.cluster import ClusterState, LoadFailure, Replica
from gateway.domain.ids import ModelName, ReplicaId
from gateway.domain.lifecycle import FINAL, Desired, Observed
from gateway.domain.model_spec import ModelSpec
from gateway.registry.protocol import ControlWrite

BACKOFF_FIRST_SECONDS: Final = 10.0
BACKOFF_MAX_SECONDS: Final = 300.0
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
    replicas: dict[ReplicaId, Replica]
    failures: dict[ModelName, LoadFailure]
    start: list[Start] = field(default_factory=list)
    want: list[Want] = field(default_factory=list)
    forget: list[Forget] = field(default_factory=list)
    mark: list[Mark] = field(default_factory=list)
    wait: list[Wait] = field(default_factory=list)
    again_at: list[float] = field(default_factory=list)

    def live(self, spec: ModelSpec) -> list[Replica]:
        """Replicas that count: of the present revision and to stay."""
        return [
            each
            for each in self.replicas.values()
            if each.model == spec.name and each.revision == spec.revision and each.desired is Desired.RUN
        ]


def plan(
    state: ClusterState,
    now: float,
    new_replica_id: Callable[[], ReplicaId],
    broken: Mapping[ReplicaId, str] = NONE_BROKEN,
) -> Plan:
    """`now` is the registry's clock; `new_replica_id` gives ids that were never used before; `broken` are replicas
    that live and are of no use, and why: a gateway has found out in passing."""
    draft = _Draft(state, now, new_replica_id, dict(state.replicas), dict(state.failures))
    for replica in state.replicas.values():
        _settle_ended(draft, replica)
    for replica in tuple(draft.replicas.values()):
        _retire_unwanted(draft, replica, broken=broken.get(replica.id))
    for spec in state.models.values():
        _note_success(draft, spec)
        _start_wanted(draft, spec)
    return Plan(
        tuple(draft.start),
        tuple(draft.want),
        tuple(draft.forget),
        tuple(draft.mark),
        tuple(draft.wait),
        min(draft.again_at, default=None),
    )


def _settle_ended(draft: _Draft, replica: Replica) -> None:
    """A replica whose process is gone frees its slot; one that never came up leaves a cause and a time to try again."""
    if replica.observed not in FINAL:
        return
    draft.forget.append(Forget(replica.id, f"it is {replica.observed}"))
    del draft.replicas[replica.id]
    spec = draft.state.models.get(replica.model)
    if replica.observed is Observed.FAILED and spec is not None and spec.revision == replica.revision:
        attempts = draft.failures[spec.name].attempts + 1 if spec.name in draft.failures else 1
        failure = LoadFailure(replica.error or "no cause was given", attempts, draft.now + backoff_seconds(attempts))
        draft.failures[spec.name] = failure
        draft.mark.append(Mark(spec.name, failure, f"load attempt {attempts} failed"))


def backoff_seconds(attempts: int) -> float:
    """How long a model is left alone after that many failed loads in a row (L9)."""
    return min(BACKOFF_FIRST_SECONDS * 2.0 ** min(attempts - 1, 30), BACKOFF_MAX_SECONDS)


def _retire_unwanted(draft: _Draft, replica: Replica, *, broken: str | None) -> None:
    """Drains what no spec asks for any more, which is unroutable already (A8); stops what is of no use (H1, R14)."""
    if broken is not None and replica.desired is not Desired.STOP:
        draft.want.append(Want(replica.id, Desired.STOP, broken))
        draft.replicas[replica.id] = replace(replica, desired=Desired.STOP)
        return
    if replica.desired is not Desired.RUN:
        return
    spec = draft.state.models.get(replica.model)
    if spec is None or spec.revision != replica.revision:
        because = "its model was removed" if spec is None else "its model's spec has changed"
        draft.want.append(Want(replica.id, Desired.DRAIN, because))
        draft.replicas[replica.id] = replace(replica, desired=Desired.DRAIN)


def _note_success(draft: _Draft, spec: ModelSpec) -> None:
    if spec.name in draft.failures and any(each.observed is Observed.READY for each in draft.live(spec)):
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
        place = pick_place(draft.state, spec, draft.replicas.values())
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
