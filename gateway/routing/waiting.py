"""What a waiting request is told when waiting makes no sense, or no sense any more. Pure."""

from collections.abc import Container
from typing import Final

from gateway.domain.cluster import NodeStatus, Replica
from gateway.domain.errors import (
    BackendFailed,
    GatewayError,
    ModelLoadFailed,
    ModelLoading,
    ModelNotFound,
    NoNode,
    Overloaded,
)
from gateway.domain.ids import ModelName, ReplicaId
from gateway.domain.lifecycle import COMING_UP, Desired
from gateway.routing.eligibility import RoutingView

RETRY_AFTER_SECONDS: Final = 5.0
"""What a client is told when nothing better is known."""


def fail_fast(view: RoutingView, model: ModelName, wall_now: float) -> GatewayError | None:
    """Why no amount of waiting can help now; None if it can.

    - the model does not exist (any more);
    - its last load failed, it is not tried again before some time, and no other load is under way (L9, L10).
    """
    if model not in view.state.models:
        return ModelNotFound(model)
    failure = view.state.failures.get(model)
    if failure is None or view.candidates.get(model) or wall_now >= failure.retry_at or coming_up(view, model):
        return None
    return ModelLoadFailed(
        f"The model '{model}' could not be loaded: {failure.cause}",
        retry_after_seconds=max(1.0, failure.retry_at - wall_now),
        param="model",
    )


def gave_up(view: RoutingView, model: ModelName, waited_seconds: float, excluded: Container[ReplicaId]) -> GatewayError:
    """What a request is told that has waited long enough."""
    candidates = [each for each in view.candidates.get(model, ()) if each.replica_id not in excluded]
    if candidates:
        slots = sum(candidate.slots for candidate in candidates)
        return Overloaded(
            f"All {slots} slots of '{model}' stayed busy for {waited_seconds:.0f} s.", retry_after_seconds=1
        )
    if view.candidates.get(model) and not coming_up(view, model):
        return BackendFailed(f"Every replica of '{model}' failed this request, and no other came up in time.")
    if not any(node.status is NodeStatus.HEALTHY for node in view.state.nodes.values()):
        return NoNode(
            f"No healthy node could load '{model}' within {waited_seconds:.0f} s.",
            retry_after_seconds=RETRY_AFTER_SECONDS,
        )
    return ModelLoading(
        f"The model '{model}' is still loading after {waited_seconds:.0f} s; the load goes on.",
        retry_after_seconds=RETRY_AFTER_SECONDS,
        loading=loading_state(view, model),
    )


def coming_up(view: RoutingView, model: ModelName) -> list[Replica]:
    """Replicas of the model's present revision that are on their way to being ready."""
    spec = view.state.models[model]
    return [
        replica
        for replica in view.state.replicas.values()
        if replica.model == model
        and replica.revision == spec.revision
        and replica.desired is Desired.RUN
        and replica.observed in COMING_UP
    ]


def loading_state(view: RoutingView, model: ModelName) -> dict[str, str]:
    """The `loading` object of a 503 `model_loading`; what is not known is absent, never guessed (L11)."""
    state = {"model": str(model), "state": "waiting"}
    for replica in coming_up(view, model)[:1]:
        state["state"] = replica.observed.value
        if (node := view.state.nodes.get(replica.node_id)) is not None:
            state["node"] = node.name
    return state
