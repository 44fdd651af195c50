"""The Quart application: health, metrics and the admin API (later also pages for people).

Inference does not pass through here. Requests arrive already admitted by `HttpApp`; errors leave in the same envelope.
"""

from collections.abc import Callable, Sequence
from typing import Any

import structlog
import trio
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from pydantic_core import to_json
from quart import Response, request
from quart.typing import ResponseReturnValue
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException

from gateway.api.auth import Role
from gateway.api.errors import InternalError, error_headers
from gateway.api.http_app import PageRoute
from gateway.api.json_body import JsonBody, parse_json
from gateway.api.openai.encode import error_object
from gateway.api.status import StatusSource, status_document
from gateway.domain.errors import BadRequest, GatewayError, MethodNotAllowed, NotFound
from gateway.domain.ids import ModelName, RequestId
from gateway.observability.metrics import Metrics
from gateway.routing.admission import Admission
from gateway.routing.decisions import describe, describe_candidates

log = structlog.get_logger(__name__)

PAGE_ROUTES: Sequence[PageRoute] = (
    PageRoute("/healthz", Role.PUBLIC),
    PageRoute("/readyz", Role.PUBLIC),
    PageRoute("/metrics", Role.ADMIN),
    PageRoute("/api/", Role.ADMIN),
)


class Pages(QuartTrio):
    """Quart with the traps of its defaults removed (pitfalls 1, 2, 35)."""

    def __init__(self) -> None:
        super().__init__(__name__, static_folder=None)
        self.config.update(RESPONSE_TIMEOUT=None, BODY_TIMEOUT=None, MAX_CONTENT_LENGTH=1024 * 1024)
        self.register_error_handler(GatewayError, _answer_error)
        self.register_error_handler(HTTPException, _answer_http_exception)
        self.register_error_handler(Exception, _answer_bug)

    async def handle_user_exception(
        self, error: Exception | BaseExceptionGroup[BaseException]
    ) -> HTTPException | ResponseReturnValue:
        """A bug beside a cancel is logged here, since Quart would drop it (pitfalls 2, 3)."""
        if isinstance(error, BaseExceptionGroup):
            cancelled, failed = error.split(trio.Cancelled)
            if failed is not None:
                log.exception("request.failed", exc_info=failed)
            if cancelled is not None:
                raise cancelled from None
            return _envelope(InternalError())
        return await super().handle_user_exception(error)


def build_pages(
    source: StatusSource, admission: Admission, metrics: Metrics, ready: Callable[[], dict[str, bool]]
) -> Pages:
    """`ready` tells for each part whether it works; all have to for `/readyz`."""
    pages = Pages()

    @pages.get("/healthz")
    async def healthz() -> Response:
        return _json({"status": "ok"})

    @pages.get("/readyz")
    async def readyz() -> Response:
        checks = ready()
        is_ready = all(checks.values())
        status = "ready" if is_ready else "not ready"
        return _json({"status": status, "checks": checks}, status=200 if is_ready else 503)

    @pages.get("/metrics")
    async def exposition() -> Response:
        return Response(metrics.exposition(), content_type=CONTENT_TYPE_LATEST)

    @pages.get("/api/status")
    async def status() -> Response:
        return _json(status_document(source))

    @pages.get("/api/decisions/<request_id>")
    async def decision(request_id: str) -> Response:
        found = admission.decisions.find(RequestId(request_id))
        if found is None:
            raise NotFound(f"No recent decision has the request id '{request_id}'; only the newest are kept.")
        return _json(describe(found))

    @pages.post("/api/explain")
    async def explain() -> Response:
        body = parse_json(ExplainBody, await request.data)
        return _json(explanation(admission, ModelName(body.model)))

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


def _json(document: object, status: int = 200) -> Response:
    return Response(to_json(document), status=status, content_type="application/json")


def _envelope(error: GatewayError) -> Response:
    headers = {name.decode(): value.decode() for name, value in error_headers(error)}
    return Response(error_object(error), status=error.status, headers=headers, content_type="application/json")


async def _answer_error(error: GatewayError) -> Response:
    return _envelope(error)


async def _answer_http_exception(error: HTTPException) -> Response:
    """What Quart itself refuses, in our words."""
    match error.code:
        case 404:
            return _envelope(NotFound("There is nothing at this path."))
        case 405:
            response = _envelope(MethodNotAllowed("This path does not take that method."))
            response.headers.extend(header for header in error.get_headers() if header[0] == "Allow")
            return response
        case _:
            response = _envelope(BadRequest(error.description or error.name))
            response.status_code = error.code or 400
            return response


async def _answer_bug(error: Exception) -> Response:
    log.exception("request.failed", exc_info=error)
    return _envelope(InternalError())
