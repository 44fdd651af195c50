"""Decides which replicas may take a request, and which may soon: one predicate each for every path that asks (R11, R12,
A8). Pure.

`build_view` applies it to all replicas of a state, and `ViewBuilder` to those that have changed since the last state.
"""

from bisect import bisect_left, insort
from collections.abc import Callable, Container, Generator, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import compress, islice
from operator import attrgetter, eq, is_not
from types import MappingProxyType
from typing import Final, TypeAlias, TypeVar

from gateway.domain.builtin_backends import REFUSING
from gateway.domain.cluster import EMPTY_STATE, ClusterState, Node, NodeStatus, Progress, Replica
from gateway.domain.ids import Address, ModelName, NodeId, ReplicaId
from gateway.domain.lifecycle import COMING_UP, Desired, Observed
from gateway.domain.model_spec import ModelSpec

Key = TypeVar("Key", bound=str)
Row = TypeVar("Row")
_BY_ID: Final = attrgetter("replica_id")
ROWS_AT_ONCE: Final = 128
"""The number of replicas that are looked at in less than a millisecond."""

ProgressOf: TypeAlias = Callable[[ReplicaId], Progress | None]
"""Returns how far the load of a replica is, or None if this gateway knows nothing of it."""


def no_progress(_replica_id: ReplicaId) -> None:
    """Returns None: the `ProgressOf` of a gateway that knows of no loads."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A routable replica, with what the picker compares and the address for the call."""

    replica_id: ReplicaId
    model: ModelName
    node_id: NodeId
    node_name: str
    address: Address
    slots: int
    """The number of requests that it serves at a time."""
    free_vram_bytes: int | None
    refuses_when_full: bool = True
    """Whether it refuses calls itself and notices when a call is cancelled. Foreign backends may do neither."""
    context_size: int | None = None
    """The number of tokens that its model is configured to take. None if that is not said."""


@dataclass(frozen=True)
class FleetView:
    """The view of routing: one version of the fleet, with the candidates of each model computed once."""

    state: ClusterState
    candidates: Mapping[ModelName, tuple[Candidate, ...]]
    """In the order of their ids. No model has none."""


def why_not_routable(
    replica: Replica, node: Node | None, spec: ModelSpec | None, newest_serving: Container[ModelName] = ()
) -> str | None:
    """Returns the first reason why `replica` may take no request, or None if it may. `newest_serving` is the result of
    that function."""
    if spec is None:
        return "its model does not exist any more"
    if replica.revision != spec.revision and (spec.rollout != "surge" or spec.name in newest_serving):
        return "its model's spec has changed since it was loaded"
    if node is None or node.status is not NodeStatus.HEALTHY:
        return f"its node is {node.status if node else 'unknown'}"
    if not matches_selector(node, spec):
        return "its node does not match the model's selector"
    if replica.desired is not Desired.RUN:
        return f"it is to {replica.desired}"
    if replica.observed is not Observed.READY or replica.address is None:
        return f"it is {replica.observed}"
    return None


def newest_serving(state: ClusterState) -> frozenset[ModelName]:
    """Returns the surge-rollout models with a ready replica of the current revision. Older replicas of these models get
    no more traffic; until then they do (A8)."""
    return frozenset(replica.model for replica in state.replicas.values() if _serves_newest(replica, state))


def _serves_newest(replica: Replica, state: ClusterState) -> bool:
    spec = state.models.get(replica.model)
    return (
        spec is not None
        and spec.rollout == "surge"
        and replica.revision == spec.revision
        and why_not_routable(replica, state.nodes.get(replica.node_id), spec) is None
    )


def matches_selector(node: Node, spec: ModelSpec) -> bool:
    """Returns whether the node has every label that the model's selector asks for."""
    return all(node.labels.get(label) == value for label, value in spec.selector.items())


def build_view(state: ClusterState, refusing: Container[str] = REFUSING) -> FleetView:
    """Returns the view of a state. `refusing` names the backends whose processes refuse calls themselves."""
    found: dict[ModelName, list[Candidate]] = {}
    for candidate in _routable(state.replicas.values(), state, refusing, newest_serving(state)):
        found.setdefault(candidate.model, []).append(candidate)
    return FleetView(state, MappingProxyType({model: _ordered(several) for model, several in found.items()}))


def _routable(
    replicas: Iterable[Replica], state: ClusterState, refusing: Container[str], newest: Container[ModelName]
) -> Iterator[Candidate]:
    for replica in replicas:
        node = state.nodes.get(replica.node_id)
        if why_not_routable(replica, node, state.models.get(replica.model), newest) is None:
            assert node is not None  # noqa: S101 - both follow from being routable
            assert replica.address is not None  # noqa: S101
            yield _candidate(replica, node, state.models[replica.model], replica.address, refusing)


def _ordered(candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
    return tuple(sorted(candidates, key=_BY_ID))


def _candidate(replica: Replica, node: Node, spec: ModelSpec, address: Address, refusing: Container[str]) -> Candidate:
    return Candidate(
        replica_id=replica.id,
        model=replica.model,
        node_id=node.id,
        node_name=node.name,
        address=address,
        slots=replica.parallel,
        free_vram_bytes=node.free_vram_bytes,
        refuses_when_full=spec.backend in refusing,
        context_size=spec.context_tokens,
    )


def coming_up(view: FleetView, model: ModelName) -> list[Replica]:
    """Returns the replicas of the model's current revision that may serve soon: those that load, and those whose node
    is silent and may be back at any moment."""
    spec = view.state.models[model]
    return [
        replica
        for replica in view.state.replicas.values()
        if replica.model == model
        and replica.revision == spec.revision
        and replica.desired is Desired.RUN
        and _may_yet_serve(replica, view.state.nodes.get(replica.node_id))
    ]


def _may_yet_serve(replica: Replica, node: Node | None) -> bool:
    if node is None or node.status not in (NodeStatus.HEALTHY, NodeStatus.UNHEALTHY):
        return False
    back = node.status is NodeStatus.UNHEALTHY and replica.observed is Observed.READY
    return back or replica.observed in COMING_UP


def loading_state(view: FleetView, model: ModelName, progress_of: ProgressOf = no_progress) -> dict[str, object]:
    """Returns the `loading` object of a 503 `model_loading`. What is not known is absent, never guessed (L11)."""
    state: dict[str, object] = {"model": str(model), "state": "waiting"}
    for replica in sorted(coming_up(view, model), key=_load_state, reverse=True)[:1]:
        if replica.observed in COMING_UP:
            state["state"] = replica.observed.value
        if (node := view.state.nodes.get(replica.node_id)) is not None:
            state["node"] = node.name
        state |= _progress_text(progress_of(replica.id))
    if (failure := view.state.failures.get(model)) is not None:
        state["error"] = failure.cause
    return state


def _load_state(replica: Replica) -> int:
    """Returns the sort key of a replica: a replica that loads comes before one whose node is silent."""
    return tuple(Observed).index(replica.observed) if replica.observed in COMING_UP else -1


def _progress_text(progress: Progress | None) -> dict[str, object]:
    if progress is None:
        return {}
    fraction, eta = progress.fraction, progress.eta_seconds
    text = {
        "progress": None if fraction is None else round(fraction, 4),
        "bytes_done": progress.done_bytes,
        "bytes_total": progress.total_bytes,
        "eta_seconds": None if eta is None else round(eta, 1),
    }
    return {name: value for name, value in text.items() if value is not None}


EMPTY_VIEW: Final = build_view(EMPTY_STATE)


class ViewBuilder:
    """Builds the views of successive states. Each takes over what has not changed from the one before.

    The rows of two states are compared by identity, because a registry returns the same object for an unchanged row.
    What has changed is looked at as `build_view` does, and the models that it does not concern keep their candidates.
    """

    def __init__(self, refusing: Container[str] = REFUSING) -> None:
        """`refusing`: see `build_view`."""
        self._refusing = refusing
        self._last = EMPTY_VIEW

    def build(self, state: ClusterState) -> Generator[None, None, FleetView]:
        """Returns the view of `state` at its end: the same as `build_view` returns. Yields after each part, so that the
        caller can let other tasks run in between."""
        before = self._last.state
        models = _changed(before.models, state.models)
        changed = yield from _changed_by_model(before, state)
        # In a surge rollout, a replica depends on the others of its model: see `newest_serving`.
        surges = {each for each in changed if (spec := state.models.get(each)) is not None and spec.rollout == "surge"}
        whole = models | surges
        found = dict(self._last.candidates)
        for model, replicas in _replicas_of(whole, state).items():
            newest = (model,) if any(_serves_newest(each, state) for each in replicas) else ()
            found[model] = _ordered((yield from _routable_in_parts(replicas, state, self._refusing, newest)))
        for model in changed.keys() - whole:
            rows = [
                row for each in changed[model] if (row := state.replicas.get(each)) is not None and row.model == model
            ]
            came = yield from _routable_in_parts(rows, state, self._refusing, ())
            found[model] = _patched(found.get(model, ()), changed[model], came)
        self._last = FleetView(state, MappingProxyType({model: several for model, several in found.items() if several}))
        return self._last


def _routable_in_parts(
    replicas: Iterable[Replica], state: ClusterState, refusing: Container[str], newest: Container[ModelName]
) -> Generator[None, None, list[Candidate]]:
    found, left = list[Candidate](), iter(replicas)
    while part := tuple(islice(left, ROWS_AT_ONCE)):
        if found:
            yield
        found += _routable(part, state, refusing, newest)
    return found


def _patched(before: Sequence[Candidate], gone: Set[ReplicaId], came: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """Returns the candidates without those that are gone and with those that came. Both may be of one replica."""
    if len(gone) > ROWS_AT_ONCE:  # Each one by itself would move all behind it.
        return _ordered([*(each for each in before if each.replica_id not in gone), *came])
    candidates = list(before)
    for replica_id in gone:
        place = bisect_left(candidates, replica_id, key=_BY_ID)
        if place < len(candidates) and candidates[place].replica_id == replica_id:
            del candidates[place]
    for candidate in came:
        insort(candidates, candidate, key=_BY_ID)
    return tuple(candidates)


def _changed(before: Mapping[Key, Row], after: Mapping[Key, Row]) -> Set[Key]:
    """Returns the keys of the rows that came, went or changed."""
    if len(before) == len(after) and all(map(eq, before, after)):
        return frozenset(compress(after, map(is_not, before.values(), after.values())))
    return before.keys() - after.keys() | {key for key, row in after.items() if before.get(key) is not row}


def _changed_by_model(
    before: ClusterState, after: ClusterState
) -> Generator[None, None, dict[ModelName, set[ReplicaId]]]:
    """Returns the replicas of each model that came, went or changed, or whose node did."""
    found: dict[ModelName, set[ReplicaId]] = {}
    for number, replica_id in enumerate(_changed(before.replicas, after.replicas)):
        if number % ROWS_AT_ONCE == ROWS_AT_ONCE - 1:
            yield
        for replica in (before.replicas.get(replica_id), after.replicas.get(replica_id)):
            if replica is not None:
                found.setdefault(replica.model, set()).add(replica_id)
    if nodes := _changed(before.nodes, after.nodes):
        for replica in after.replicas.values():
            if replica.node_id in nodes:
                found.setdefault(replica.model, set()).add(replica.id)
    return found


def _replicas_of(models: Iterable[ModelName], state: ClusterState) -> dict[ModelName, list[Replica]]:
    found: dict[ModelName, list[Replica]] = {model: [] for model in models}
    if found:
        for replica in state.replicas.values():
            if replica.model in found:
                found[replica.model].append(replica)
    return found
