"""How a model's load goes, as `GET /api/models/{name}/load-status` tells it. Pure.

| state                                       | means                                                                 |
|---------------------------------------------|-----------------------------------------------------------------------|
| `ready`                                     | a replica serves                                                      |
| `placed`, `fetching`, `starting`, `loading` | the replica that has come furthest is there                           |
| `waiting`                                   | the node of what would serve is silent                                |
| `failed`                                    | the last load did; it is tried again from `retry_at`                  |
| `unsatisfiable`                             | there is no room for what it has to have; `error` says why            |
| `not_loaded`                                | none of that; if one is wanted, `reason` may say what it waits for    |

What is not known is absent, never guessed (L11).
"""

from typing import Any

from gateway.api.admin.documents import StatusSource
from gateway.domain.errors import ModelNotFound
from gateway.domain.ids import ModelName
from gateway.domain.routability import FleetView, coming_up, loading_state


def load_status(source: StatusSource, model: ModelName) -> dict[str, Any]:
    """Raises `ModelNotFound`."""
    view = source.fleet.view
    if model not in view.state.models:
        raise ModelNotFound(model)
    return {"model": model, **_state(source, view, model), "requested": source.requested(model)}


def _state(source: StatusSource, view: FleetView, model: ModelName) -> dict[str, Any]:
    if candidates := view.candidates.get(model):
        return {"state": "ready", "node": candidates[0].node_name}
    if coming_up(view, model):
        return loading_state(view, model, source.fleet.progress_of)
    if (failure := view.state.failures.get(model)) is not None:
        return {"state": "failed", "error": failure.cause, "retry_at": failure.retry_at}
    if (reason := source.fleet.unsatisfiable().get(model)) is not None:
        return {"state": "unsatisfiable", "error": reason}
    pending = source.fleet.pending().get(model)
    return {"state": "not_loaded", **({"reason": pending.because} if pending is not None else {})}
