"""Decides which replicas may take a request, and which may soon: one predicate each for every path that asks (R11, R12,
A8). Pure."""

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, TypeAlias

from gateway.domain.builtin_backends import REFUSING
from gateway.domain.cluster import EMPTY_STATE, ClusterState, Node, NodeStatus, Progress, Replica
from gateway.domain.ids import Address, ModelName, NodeId, ReplicaId
from gateway.domain.lifecycle import COMING_UP, Desired, Observed
from gateway.domain.model_spec import ModelSpec

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
    return frozenset(
        replica.model
        for replica in state.replicas.values()
        if (spec := state.models.get(replica.model)) is not None
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
    newest = newest_serving(state)
    for replica in state.replicas.values():
        node = state.nodes.get(replica.node_id)
        if why_not_routable(replica, node, state.models.get(replica.model), newest) is None:
            assert node is not None  # noqa: S101 - both follow from being routable
            assert replica.address is not None  # noqa: S101
            spec = state.models[replica.model]
            found.setdefault(replica.model, []).append(_candidate(replica, node, spec, replica.address, refusing))
    return FleetView(state, MappingProxyType({model: tuple(several) for model, several in found.items()}))


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
        context_size=spec.context_size,
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
