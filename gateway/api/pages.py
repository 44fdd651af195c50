"""The pages: health, metrics and the admin API (later also pages for people).

Inference does not pass through here. Requests arrive already admitted by `HttpApp`; errors leave in the same envelope.
"""

from collections.abc import Callable, Sequence
from typing import Any

from prometheus_client.exposition import CONTENT_TYPE_LATEST
from quart import Response

from gateway.api.auth import Role
from gateway.api.http_app import PageRoute
from gateway.api.json_body import JsonBody
from gateway.api.models import ModelDesk, add_model_pages
from gateway.api.nodes import add_fleet_pages, add_node_pages
from gateway.api.pages_app import Pages, json_response, read_json
from gateway.api.status import StatusSource, status_document
from gateway.domain.errors import NotFound
from gateway.domain.ids import ModelName, RequestId
from gateway.observability.metrics import Metrics
from gateway.registry.protocol import Registry
from gateway.routing.admission import Admission
from gateway.routing.decisions import describe, describe_candidates

PAGE_ROUTES: Sequence[PageRoute] = (
    PageRoute("/healthz", Role.PUBLIC),
    PageRoute("/readyz", Role.PUBLIC),
    PageRoute("/metrics", Role.ADMIN),
    PageRoute("/api/", Role.ADMIN),
)


def build_pages(
    source: StatusSource,
    admission: Admission,
    metrics: Metrics,
    ready: Callable[[], dict[str, bool]],
    registry: Registry,
    models: ModelDesk,
) -> Pages:
    """`ready` tells for each part whether it works; all have to for `/readyz`."""
    pages = Pages()

    @pages.get("/healthz")
    async def healthz() -> Response:
        return json_response({"status": "ok"})

    @pages.get("/readyz")
    async def readyz() -> Response:
        checks = ready()
        is_ready = all(checks.values())
        status = "ready" if is_ready else "not ready"
        return json_response({"status": status, "checks": checks}, status=200 if is_ready else 503)

    @pages.get("/metrics")
    async def exposition() -> Response:
        return Response(metrics.exposition(), content_type=CONTENT_TYPE_LATEST)

    @pages.get("/api/status")
    async def status() -> Response:
        return json_response(status_document(source))

    @pages.get("/api/decisions/<request_id>")
    async def decision(request_id: str) -> Response:
        found = admission.decisions.find(RequestId(request_id))
        if found is None:
            raise NotFound(f"No recent decision has the request id '{request_id}'; only the newest are kept.")
        return json_response(describe(found))

    @pages.post("/api/explain")
    async def explain() -> Response:
        body = await read_json(ExplainBody)
        return json_response(explanation(admission, ModelName(body.model)))

    add_model_pages(pages, models)
    add_node_pages(pages, registry, source)
    add_fleet_pages(pages, registry, source)
    return pages


class ExplainBody(JsonBody):
    """What the router would do now with a request for `model`."""

    model: str


def explanation(admission: Admission, model: ModelName) -> dict[str, Any]:
    """Raises `ModelNotFound`."""
    chosen, considered, now = admission.explain(model)
    queue = admission.statistics().get(model)
    return {
        "model": model,
        "chosen": chosen.replica_id if chosen is not None else None,
        "queued": queue.waiting if queue is not None else 0,
        "candidates": list(describe_candidates(considered, chosen, now)),
        "not_routable": admission.not_routable(model),
    }
