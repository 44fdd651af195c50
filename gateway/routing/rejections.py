"""The errors of requests for which waiting makes no sense, or no sense any more. Pure."""

from collections import Counter
from collections.abc import Callable, Container
from typing import Final, Protocol, TypeAlias

from gateway.domain.cluster import Node, NodeStatus, Progress, Replica
from gateway.domain.errors import (
    BackendFailed,
    GatewayError,
    InsufficientCapacity,
    ModelLoadFailed,
    ModelLoading,
    ModelNotFound,
    NoNode,
    Overloaded,
    Unavailable,
)
from gateway.domain.ids import ModelName, ReplicaId
from gateway.domain.lifecycle import COMING_UP, Desired, Observed
from gateway.domain.routability import FleetView

RETRY_AFTER_SECONDS: Final = 5.0
"""The `Retry-After` of a client if nothing better is known."""
RETRY_AFTER_SECONDS_MAX: Final = 300.0


ProgressOf: TypeAlias = Callable[[ReplicaId], Progress | None]
"""Returns how far the load of a replica is, or None if this gateway knows nothing of it."""


def no_progress(_replica_id: ReplicaId) -> None:
    """A `ProgressOf` for a gateway that knows of no loads. Returns None."""


class LoadOutlook(Protocol):
    """Tells routing what may become of a model that no replica serves yet."""

    def progress_of(self, replica_id: ReplicaId) -> Progress | None:
        """Returns how far the load of a replica is. Returns None if nothing was heard of it here."""

    def shortage_of(self, model: ModelName) -> str | None:
        """Returns why the fleet has no room for the model. Returns None if that is not what the model waits for."""

    def control_paused(self) -> bool:
        """Tells whether nothing can be loaded now, since the registry is away."""


class UnknownOutlook:
    """The `LoadOutlook` of a router that has nobody to ask."""

    def progress_of(self, _replica_id: ReplicaId) -> Progress | None:
        """Returns None for each replica."""
        return None

    def shortage_of(self, _model: ModelName) -> str | None:
        """Returns None for each model."""
        return None

    def control_paused(self) -> bool:
        """Returns False."""
        return False


def immediate_rejection(view: FleetView, model: ModelName, wall_now: float) -> GatewayError | None:
    """Returns the error if no amount of waiting can help now, or None if waiting can help:

    - The model does not exist, or not any more.
    - Its last load failed, it is too early for another try, no other load is running, and no node that has the model is
      only temporarily silent (L9, L10, H12). A replica that was ready and broke for the first time (no attempt has
      failed) is replaced at once, even if `wall_now` is a moment behind the registry's clock.
    """
    if model not in view.state.models:
        return ModelNotFound(model)
    failure = view.state.failures.get(model)
    if failure is None or not failure.attempts or wall_now >= failure.retry_at:
        return None
    if view.candidates.get(model) or coming_up(view, model):
        return None
    return ModelLoadFailed(
        f"The model '{model}' could not be loaded: {failure.cause}",
        retry_after_seconds=max(1.0, failure.retry_at - wall_now),
        param="model",
    )


def timeout_rejection(
    view: FleetView,
    model: ModelName,
    waited_seconds: float,
    excluded: Container[ReplicaId],
    progress_of: ProgressOf = no_progress,
    shortage: str | None = None,
    *,
    control_paused: bool = False,
) -> GatewayError:
    """Returns the error of a request that has waited long enough. `shortage` says why no node has room for the model,
    if the request waits for room. `control_paused` says that nothing can be loaded now, for whatever reason."""
    candidates = [each for each in view.candidates.get(model, ()) if each.replica_id not in excluded]
    if candidates:
        slots = sum(candidate.slots for candidate in candidates)
        return Overloaded(
            f"All {slots} slots of '{model}' stayed busy for {waited_seconds:.0f} s.", retry_after_seconds=1
        )
    if view.candidates.get(model) and not coming_up(view, model):
        return BackendFailed(f"Every replica of '{model}' failed this request, and no other came up in time.")
    if control_paused and not coming_up(view, model):
        return Unavailable(
            f"The model '{model}' is not loaded, and nothing could be for {waited_seconds:.0f} s: the gateway's "
            "registry can't be used now.",
            retry_after_seconds=RETRY_AFTER_SECONDS,
            code="registry_unavailable",
        )
    if not any(node.status is NodeStatus.HEALTHY for node in view.state.nodes.values()):
        return NoNode(
            f"No healthy node could serve '{model}' within {waited_seconds:.0f} s: {_nodes_there_are(view)}.",
            retry_after_seconds=RETRY_AFTER_SECONDS,
        )
    if shortage is not None and not coming_up(view, model):
        return InsufficientCapacity(
            f"The model '{model}' could not be loaded within {waited_seconds:.0f} s: {shortage}.",
            retry_after_seconds=RETRY_AFTER_SECONDS,
            param="model",
        )
    loading = loading_state(view, model, progress_of)
    return ModelLoading(
        f"The model '{model}' is still loading after {waited_seconds:.0f} s; the load goes on.",
        retry_after_seconds=_retry_after(loading.get("eta_seconds")),
        loading=loading,
    )


def _retry_after(eta_seconds: object) -> float:
    """Returns the `Retry-After` that fits the estimated end of the load (L11)."""
    if not isinstance(eta_seconds, float):
        return RETRY_AFTER_SECONDS
    return min(max(eta_seconds, RETRY_AFTER_SECONDS), RETRY_AFTER_SECONDS_MAX)


def _nodes_there_are(view: FleetView) -> str:
    counts = Counter(node.status for node in view.state.nodes.values())
    return ", ".join(f"{counts[status]} {status}" for status in sorted(counts)) or "none has joined"


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
