"""The pages of health, metrics and the admin API (later also pages for people).

Inference requests do not pass through here. Requests have passed the checks of `HttpApp`, and errors leave in the same
envelope.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.exposition import CONTENT_TYPE_LATEST
from quart import Response, request

from gateway.api.admin.app import AdminApp, json_response, read_json
from gateway.api.admin.documents import StatusSource, status_document
from gateway.api.admin.models import ModelService, add_model_routes
from gateway.api.admin.nodes import add_fleet_routes, add_node_routes
from gateway.api.admin.process_metrics import ProcessMetrics
from gateway.api.http.auth import Role
from gateway.api.http.errors import ErrorPolicy
from gateway.api.http.http_app import AdminRoute
from gateway.api.http.json_body import JsonBody
from gateway.domain.ids import ModelName
from gateway.domain.model_spec import NOTHING
from gateway.observability.metrics import Metrics, Reading
from gateway.registry.protocol import Registry
from gateway.routing.admission import Admission
from gateway.routing.decisions import describe_candidates

PAGE_ROUTES: Sequence[AdminRoute] = (
    AdminRoute("/healthz", Role.PUBLIC),
    AdminRoute("/readyz", Role.PUBLIC),
    AdminRoute("/metrics", Role.ADMIN),
    AdminRoute("/api/", Role.ADMIN),
)


@dataclass(frozen=True)
class Readiness:
    """The answer of `/readyz`, by which a load balancer chooses gateways.

    A gateway is ready if it can serve, even if one of its parts does not work. It serves from its last snapshot while
    the registry is away. If all gateways answered "not ready" then, the outage of the database would become an outage
    of the fleet.
    """

    checks: Mapping[str, bool]
    """The parts that are checked, each with whether it works."""
    can_serve: bool
    """Whether the gateway has had a snapshot and is not shutting down."""
    causes: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    """The reasons why parts do not work, as far as they are known."""

    @property
    def status(self) -> str:
        """The status and the result of each check. The status is `ready`, `degraded` if the gateway can serve but a
        part does not work, or `not ready`."""
        if not self.can_serve:
            return "not ready"
        return "ready" if all(self.checks.values()) else "degraded"


def build_admin_app(
    source: StatusSource,
    admission: Admission,
    metrics: Metrics,
    read: Callable[[], Iterable[Reading]],
    ready: Callable[[], Readiness],
    registry: Registry,
    models: ModelService,
    *,
    errors: ErrorPolicy,
    processes: ProcessMetrics | None = None,
) -> AdminApp:
    """Builds the Quart application with the routes of health, metrics, status, models, nodes and replicas.

    `processes` are those of a gateway that consists of several.
    """
    admin_app = AdminApp(errors)

    @admin_app.get("/healthz")
    async def healthz() -> Response:
        """Answers that the process lives."""
        return json_response({"status": "ok"})

    @admin_app.get("/readyz")
    async def readyz() -> Response:
        """Answers whether this gateway can serve, and which parts work."""
        now = ready()
        document: dict[str, object] = {"status": now.status, "checks": dict(now.checks)}
        if now.causes:
            document["causes"] = dict(now.causes)
        return json_response(document, status=200 if now.can_serve else 503)

    @admin_app.get("/metrics")
    async def exposition() -> Response:
        """Answers with the metrics in the format of Prometheus."""
        found = metrics.exposition(read())
        if processes is not None:
            found = await processes.join(found, {name.lower(): value for name, value in request.headers.items()})
        return Response(found, content_type=CONTENT_TYPE_LATEST)

    @admin_app.get("/api/status")
    async def status() -> Response:
        """Answers with the status of the fleet."""
        return json_response(status_document(source))

    @admin_app.post("/api/explain")
    async def explain() -> Response:
        """Answers with where a request would go now, and why."""
        body = await read_json(ExplainBody)
        return json_response(explanation(admission, ModelName(body.model)))

    add_model_routes(admin_app, models)
    add_node_routes(admin_app, registry, source)
    add_fleet_routes(admin_app, registry, source)
    return admin_app


class ExplainBody(JsonBody):
    """A question: what would the router do now with a request for `model`?"""

    model: str


def explanation(admission: Admission, model: ModelName) -> dict[str, Any]:
    """Returns the answer of `/api/explain`. Raises `ModelNotFound`."""
    chosen, considered, now = admission.explain(model)
    queue = admission.statistics().get(model)
    return {
        "model": model,
        "chosen": chosen.replica_id if chosen is not None else None,
        "queued": queue.waiting if queue is not None else 0,
        "candidates": list(describe_candidates(considered, chosen, now)),
        "not_routable": admission.not_routable(model),
    }
