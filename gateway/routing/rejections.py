"""The errors of requests for which waiting makes no sense, or no sense any more. Pure."""

from collections import Counter
from collections.abc import Container, Sequence
from typing import Final, Protocol

from gateway.domain.cluster import LoadFailure, NodeStatus, Progress
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
from gateway.domain.routability import (
    Candidate,
    FleetView,
    ProgressOf,
    coming_up,
    loading_state,
    no_progress,
)

RETRY_AFTER_SECONDS: Final = 5.0
"""The `Retry-After` of a client if nothing better is known."""
RETRY_AFTER_SECONDS_MAX: Final = 300.0


class LoadOutlook(Protocol):
    """Tells routing what may become of a model that no replica serves yet."""

    def progress_of(self, replica_id: ReplicaId) -> Progress | None:
        """Returns how far the load of a replica is. Returns None if nothing was heard of it here."""

    def shortage_of(self, model: ModelName) -> str | None:
        """Returns why the fleet has no room for the model. Returns None if that is not what the model waits for."""

    def control_paused(self) -> bool:
        """Tells whether nothing can be loaded now, since the registry is away."""


class UnknownOutlook:
    """The `LoadOutlook` of a router without a control plane."""

    def progress_of(self, _replica_id: ReplicaId) -> Progress | None:
        """Returns None for each replica."""
        return None

    def shortage_of(self, _model: ModelName) -> str | None:
        """Returns None for each model."""
        return None

    def control_paused(self) -> bool:
        """Returns False."""
        return False


def immediate_rejection(
    view: FleetView, model: ModelName, wall_now: float, patience_seconds: float = 0.0
) -> GatewayError | None:
    """Returns the error if no amount of waiting can help now, or None if waiting can help:

    - The model does not exist, or not any more.
    - It is not loaded, and the registry takes no writes, so that nothing can be (H15).
    - Its last load failed, it is too early for another try, no other load is running, and no node that has the model is
      only temporarily silent (L9, L10, H12). A replica that was ready and broke for the first time (no attempt has
      failed) is replaced at once, even if `wall_now` is a moment behind the registry's clock. One that broke again is
      waited for if the pause ends within `patience_seconds`, which is how long the request can still wait.
    """
    if model not in view.state.models:
        return ModelNotFound(model)
    if view.state.writes_refused and not view.candidates.get(model) and not coming_up(view, model):
        return _writes_refused(model, view.state.writes_refused)
    failure = view.state.failures.get(model)
    if failure is None or not failure.attempts or wall_now >= failure.retry_at:
        return None
    if view.candidates.get(model) or coming_up(view, model):
        return None
    if failure.times_broken and failure.retry_at - wall_now < patience_seconds:
        return None
    retry_seconds = max(1.0, failure.retry_at - wall_now)
    return ModelLoadFailed(
        f"The model '{model}' {_what_failed(failure, retry_seconds)}: {failure.cause}",
        retry_after_seconds=retry_seconds,
        param="model",
    )


def _writes_refused(model: ModelName, cause: str) -> Unavailable:
    return Unavailable(
        f"The model '{model}' is not loaded, and nothing can be: the gateway's registry refuses writes: {cause}",
        retry_after_seconds=RETRY_AFTER_SECONDS,
        code="registry_unavailable",
    )


def _what_failed(failure: LoadFailure, retry_seconds: float) -> str:
    if not failure.times_broken:
        return "could not be loaded"
    again = f"is loaded again in {retry_seconds:.0f} s"
    return f"was loaded and broke {failure.times_broken} times in a row, and {again}; the last time"


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
    if candidates := [each for each in view.candidates.get(model, ()) if each.replica_id not in excluded]:
        return _all_busy(model, candidates, waited_seconds)
    if view.candidates.get(model) and not coming_up(view, model):
        return BackendFailed(f"Every replica of '{model}' failed this request, and no other came up in time.")
    if control_paused and not coming_up(view, model):
        return _registry_away(model, waited_seconds)
    if not any(node.status is NodeStatus.HEALTHY for node in view.state.nodes.values()):
        return _no_node(model, view, waited_seconds)
    if shortage is not None and not coming_up(view, model):
        return _no_room(model, shortage, waited_seconds)
    return _still_loading(model, loading_state(view, model, progress_of), waited_seconds)


def _all_busy(model: ModelName, candidates: Sequence[Candidate], waited_seconds: float) -> Overloaded:
    slots = sum(candidate.slots for candidate in candidates)
    return Overloaded(f"All {slots} slots of '{model}' stayed busy for {waited_seconds:.0f} s.", retry_after_seconds=1)


def _registry_away(model: ModelName, waited_seconds: float) -> Unavailable:
    return Unavailable(
        f"The model '{model}' is not loaded, and nothing could be for {waited_seconds:.0f} s: the gateway's "
        "registry can't be used now.",
        retry_after_seconds=RETRY_AFTER_SECONDS,
        code="registry_unavailable",
    )


def _no_node(model: ModelName, view: FleetView, waited_seconds: float) -> NoNode:
    return NoNode(
        f"No healthy node could serve '{model}' within {waited_seconds:.0f} s: {_nodes_there_are(view)}.",
        retry_after_seconds=RETRY_AFTER_SECONDS,
    )


def _no_room(model: ModelName, shortage: str, waited_seconds: float) -> InsufficientCapacity:
    return InsufficientCapacity(
        f"The model '{model}' could not be loaded within {waited_seconds:.0f} s: {shortage}.",
        retry_after_seconds=RETRY_AFTER_SECONDS,
        param="model",
    )


def _still_loading(model: ModelName, loading: dict[str, object], waited_seconds: float) -> ModelLoading:
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
