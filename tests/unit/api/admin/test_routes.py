"""Health, metrics and status behind the application that admits their requests."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families
from quart import Response
from quart import request as quart_request
from structlog.testing import capture_logs
from trio.testing import wait_all_tasks_blocked

from gateway.api.admin.app import AdminApp
from gateway.api.admin.documents import StatusSource
from gateway.api.admin.models import ModelService
from gateway.api.admin.routes import PAGE_ROUTES, Readiness, build_admin_app
from gateway.api.http.auth import Authenticator
from gateway.api.http.http_app import BodyLimits, HttpApp
from gateway.composition.http_api import ERRORS
from gateway.domain.errors import Conflict
from gateway.domain.ids import GatewayId
from gateway.observability.metrics import Metrics, Reading
from gateway.registry.embedded.memory import MemoryRegistry
from gateway.routing.load_tracker import LoadTracker
from tests.fakes.api_harness import MODELS_DIR, FakeLoads
from tests.fakes.asgi import AsgiRequest
from tests.fakes.fleet_status import fleet_status
from tests.fakes.routing_harness import idle_admission


def readings() -> Iterator[Reading]:
    yield Reading("gateway_nodes", "Nodes.", ("status",), ((("healthy",), 2.0),))


@dataclass
class Parts:
    """What works, as the test says."""

    checks: dict[str, bool] = field(default_factory=lambda: {"registry": True, "control": True})
    can_serve: bool = True

    def ready(self) -> Readiness:
        return Readiness(self.checks, self.can_serve)


@pytest.fixture
def parts() -> Parts:
    return Parts()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def admin_app(parts: Parts, metrics: Metrics) -> AdminApp:
    source = StatusSource(fleet_status(GatewayId("g")), LoadTracker().statistics, dict, lambda: 0.0)
    registry = MemoryRegistry()
    service = ModelService(registry, source, FakeLoads(), (), MODELS_DIR)
    return build_admin_app(source, idle_admission(), metrics, readings, parts.ready, registry, service, errors=ERRORS)


@pytest.fixture
def app(admin_app: AdminApp, metrics: Metrics) -> HttpApp:
    authenticator = Authenticator((), allow_anonymous=False)
    limits = BodyLimits(1000, 1.0, 1000)
    return HttpApp(
        (), PAGE_ROUTES, admin_app, errors=ERRORS, authenticator=authenticator, metrics=metrics.requests, limits=limits
    )


async def get(app: HttpApp, path: str, method: str = "GET") -> AsgiRequest:
    return await AsgiRequest(method, path).run(app)


async def test_healthz_says_that_the_process_is_up(app: HttpApp) -> None:
    request = await get(app, "/healthz")
    assert (request.status, request.json) == (200, {"status": "ok"})
    assert request.headers["content-type"] == "application/json"
    assert "x-request-id" in request.headers


async def test_readyz_says_which_part_is_not(app: HttpApp, parts: Parts) -> None:
    assert (await get(app, "/readyz")).json["status"] == "ready"
    parts.checks["control"], parts.can_serve = False, False
    request = await get(app, "/readyz")
    assert request.status == 503
    assert request.json == {"status": "not ready", "checks": {"registry": True, "control": False}}


async def test_h7_who_can_serve_without_the_registry_stays_in_the_load_balancer(app: HttpApp, parts: Parts) -> None:
    parts.checks.update(registry=False, control=False)
    request = await get(app, "/readyz")
    assert request.status == 200
    assert request.json == {"status": "degraded", "checks": {"registry": False, "control": False}}


async def test_h7_a_gateway_that_ends_is_not_ready_whatever_works(app: HttpApp, parts: Parts) -> None:
    parts.can_serve = False
    request = await get(app, "/readyz")
    assert (request.status, request.json["status"]) == (503, "not ready")


async def test_health_is_answered_also_while_draining(app: HttpApp) -> None:
    app.drain()
    assert [(await get(app, path)).status for path in ("/healthz", "/readyz", "/metrics")] == [200, 200, 503]


async def test_metrics_are_in_the_text_format_and_count_themselves(app: HttpApp) -> None:
    await get(app, "/healthz")
    request = await get(app, "/metrics")
    assert request.headers["content-type"].startswith("text/plain; version=")
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(request.body.decode())
        for sample in family.samples
    }
    assert samples["gateway_nodes", ("status", "healthy")] == 2
    assert samples["gateway_requests_total", ("model", "unknown"), ("outcome", "200"), ("route", "/healthz")] == 1


async def test_the_status_of_an_empty_fleet(app: HttpApp) -> None:
    request = await get(app, "/api/status")
    assert request.json == {
        "gateways": [{"id": "g", "leader": False, "url": None}],
        "nodes": [],
        "models": [],
        "replicas": [],
    }


async def test_a_path_below_api_that_is_not_there(app: HttpApp) -> None:
    request = await get(app, "/api/nothing")
    assert (request.status, request.error["code"]) == (404, "not_found")


async def test_a_wrong_method_is_answered_with_the_right_ones(app: HttpApp) -> None:
    request = await get(app, "/api/status", "DELETE")
    assert (request.status, request.error["code"]) == (405, "method_not_allowed")
    assert set(request.headers["allow"].split(", ")) == {"GET", "HEAD", "OPTIONS"}
    assert request.headers["content-type"] == "application/json"


async def test_an_error_of_ours_keeps_its_status(app: HttpApp, admin_app: AdminApp) -> None:
    @admin_app.get("/api/taken")
    async def taken() -> Response:
        raise Conflict("Declared in the file.")

    request = await get(app, "/api/taken")
    assert (request.status, request.error["message"]) == (409, "Declared in the file.")


async def test_a_refusal_of_quart_has_our_envelope(app: HttpApp, admin_app: AdminApp) -> None:
    @admin_app.post("/api/echo")
    async def echo() -> Response:
        await quart_request.get_data()
        raise AssertionError("it is too large to be read")

    admin_app.config["MAX_CONTENT_LENGTH"] = 3
    headers = {"host": "localhost", "content-length": "4"}
    request = await AsgiRequest("POST", "/api/echo", headers, [b"body"]).run(app)
    assert (request.status, request.error["type"]) == (413, "invalid_request_error")


@pytest.mark.parametrize("bug", [ValueError("secret detail"), ExceptionGroup("several", [ValueError("secret detail")])])
async def test_a_bug_is_answered_without_its_text_and_logged_with_it(
    app: HttpApp, admin_app: AdminApp, bug: Exception
) -> None:
    @admin_app.get("/api/bug")
    async def fail() -> Response:
        raise bug

    with capture_logs() as logs:
        request = await get(app, "/api/bug")
    assert (request.status, request.error["code"]) == (500, "internal_error")
    assert b"secret detail" not in request.body
    assert [entry["event"] for entry in logs] == ["request.failed", "request"]


async def test_a_bug_beside_a_cancel_is_logged(app: HttpApp, admin_app: AdminApp) -> None:
    """Quart alone would drop it (pitfall 2)."""

    async def clean_up_badly() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("broken clean-up")

    @admin_app.get("/api/stay")
    async def stay() -> Response:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(clean_up_badly)
            nursery.start_soon(trio.sleep_forever)
        raise AssertionError("cancelled before")

    request = AsgiRequest("GET", "/api/stay")
    with capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(request.run, app)
            await wait_all_tasks_blocked()
            request.hang_up()
    assert request.sent == []
    assert [(entry["event"], entry.get("outcome")) for entry in logs] == [
        ("request.failed", None),
        ("request", "cancelled"),
    ]
    assert logs[0]["exc_info"].subgroup(ValueError) is not None


def test_every_page_has_a_role(admin_app: AdminApp) -> None:
    """A page that no `PageRoute` covers would never be reached."""
    prefixes = tuple(route.path for route in PAGE_ROUTES)
    paths = [rule.rule for rule in admin_app.url_map.iter_rules()]
    assert "/api/status" in paths
    assert [path for path in paths if not path.startswith(prefixes)] == []
