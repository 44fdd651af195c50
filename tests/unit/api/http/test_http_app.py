"""The application in front of everything, on a virtual clock: order of the guards, errors, disconnects, the drain."""

from collections.abc import Awaitable, Callable, Iterator, MutableMapping, Sequence
from typing import Any

import pytest
import trio
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway.api.http.auth import Authenticator, Caller, Key, Role
from gateway.api.http.errors import ErrorPolicy
from gateway.api.http.exchange import Exchange, Message
from gateway.api.http.http_app import AdminRoute, BodyLimits, Handler, HttpApp, Route, match_path
from gateway.composition.http_api import ERRORS
from gateway.domain.errors import BadRequest, GatewayError, Overloaded, ShuttingDown
from gateway.observability.metrics import RequestMetrics
from tests.fakes.asgi import AsgiRequest, FakeAdminApp

JSON = {"host": "localhost", "content-type": "application/json"}
KEY = Key("someone", b"\0" * 32, Role.ADMIN)
LIMITS = BodyLimits(bytes_max=100, timeout_seconds=5.0, budget_bytes=200)
PATIENCE_SECONDS = 5.0
"""After which a test that waits for an end gives up."""

Logs = list[MutableMapping[str, Any]]


@pytest.fixture
def admin_app() -> FakeAdminApp:
    return FakeAdminApp()


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def logs() -> Iterator[Logs]:
    with capture_logs() as entries:
        yield entries


Build = Callable[..., HttpApp]


@pytest.fixture
def build(admin_app: FakeAdminApp, registry: CollectorRegistry) -> Build:
    metrics = RequestMetrics(registry)

    def build_app(handler: Handler | None = None, *, keys: Sequence[Key] = ()) -> HttpApp:
        run = handler or answer_ok
        routes = [
            Route("POST", "/do", Role.INFERENCE, run),
            Route("GET", "/see", Role.INFERENCE, run),
            Route("GET", "/below/", Role.INFERENCE, run),
            Route("GET", "/admin", Role.ADMIN, run),
            Route("GET", "/things/{id}/parts/{part}", Role.INFERENCE, run),
            Route("PUT", "/thing/{id}", Role.INFERENCE, run),
            Route("DELETE", "/thing/{id}", Role.INFERENCE, run),
            Route("DELETE", "/thing/all", Role.ADMIN, run),
            Route("GET", "/service", Role.INFERENCE, run, ends_with_service=True),
            Route("POST", "/dialect", Role.INFERENCE, run, encode_error=in_a_dialect),
        ]
        admin_routes = [AdminRoute("/health", Role.PUBLIC), AdminRoute("/pages/", Role.ADMIN)]
        return HttpApp(
            routes,
            admin_routes,
            admin_app,
            errors=ERRORS,
            authenticator=Authenticator(keys, allow_anonymous=False),
            metrics=metrics,
            limits=LIMITS,
        )

    return build_app


async def answer_ok(exchange: Exchange, _caller: Caller, body: bytes) -> None:
    await exchange.respond(200, body or b"seen", content_type=b"text/plain")


def failing(error: Exception | BaseExceptionGroup[Exception]) -> Handler:
    async def fail(_exchange: Exchange, _caller: Caller, _body: bytes) -> None:
        raise error

    return fail


def in_a_dialect(error: GatewayError) -> bytes:
    return f"{error.status} in a dialect".encode()


async def stay(_exchange: Exchange, _caller: Caller, _body: bytes) -> None:
    await trio.sleep_forever()


async def stream_and_stay(exchange: Exchange, _caller: Caller, _body: bytes) -> None:
    await exchange.start_event_stream()
    await exchange.send_part(b"data: 1\n\n")
    await trio.sleep_forever()


async def fail_while_cancelled(_exchange: Exchange, _caller: Caller, _body: bytes) -> None:
    """A bug in the clean-up of one task, next to another task that is merely cancelled (pitfall 2)."""

    async def clean_up_badly() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("broken clean-up")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(clean_up_badly)
        nursery.start_soon(trio.sleep_forever)


def post(body: bytes = b"{}", path: str = "/do", **headers: str) -> AsgiRequest:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return AsgiRequest("POST", path, {**JSON, **named}, [body])


def get(path: str, **headers: str) -> AsgiRequest:
    return AsgiRequest("GET", path, {**JSON, **headers})


def entries_of(logs: Logs, event: str) -> Logs:
    return [entry for entry in logs if entry["event"] == event]


def counted(registry: CollectorRegistry, route: str, outcome: str) -> float:
    labels = {"model": "unknown", "route": route, "outcome": outcome}
    return registry.get_sample_value("gateway_requests_total", labels) or 0.0


async def test_a_request_reaches_its_handler_with_its_body(build: Build) -> None:
    request = await post(b'{"a": 1}').run(build())
    assert (request.status, request.body) == (200, b'{"a": 1}')


async def test_a_get_reaches_its_handler_without_one(build: Build) -> None:
    request = await AsgiRequest("GET", "/see", JSON, [b"ignored"]).run(build())
    assert (request.status, request.body) == (200, b"seen")


@pytest.mark.parametrize("path", ["/below/", "/below/a", "/below/a/b"])
async def test_a_path_with_a_final_slash_stands_for_all_below_it(build: Build, path: str) -> None:
    assert (await get(path).run(build())).status == 200


@pytest.mark.parametrize("path", ["/", "/below", "/see/", "/SEE", "//see", "see", "*", "/health/", "/healthx"])
async def test_any_other_path_is_not_there(build: Build, registry: CollectorRegistry, path: str) -> None:
    request = await get(path).run(build())
    assert (request.status, request.error["code"]) == (404, "not_found")
    assert counted(registry, "other", "404") == 1


@pytest.mark.parametrize(("path", "method", "allowed"), [("/do", "GET", "POST"), ("/see", "DELETE", "GET, HEAD")])
async def test_a_wrong_method_is_answered_with_the_right_one(
    build: Build, path: str, method: str, allowed: str
) -> None:
    request = await AsgiRequest(method, path, JSON).run(build())
    assert (request.status, request.error["code"]) == (405, "method_not_allowed")
    assert request.headers["allow"] == allowed


def test_every_way_in_is_listed_with_its_role(build: Build) -> None:
    endpoints = {(endpoint.method, endpoint.path): endpoint.role for endpoint in build().endpoints()}
    assert endpoints["DELETE", "/thing/{id}"] is Role.INFERENCE
    assert endpoints["GET", "/admin"] is Role.ADMIN
    assert endpoints["GET", "/health"] is Role.PUBLIC
    assert endpoints["GET", "/pages/stay"] is Role.ADMIN


@pytest.mark.parametrize(
    ("route", "path", "params"),
    [
        ("/a", "/a", {}),
        ("/a", "/a/", None),
        ("/a/", "/a/b", {}),
        ("/a/{x}", "/a/b", {"x": "b"}),
        ("/a/{x}", "/a/{x}", {"x": "{x}"}),
        ("/a/{x}", "/a/", None),
        ("/a/{x}", "/a", None),
        ("/a/{x}", "/a/b/c", None),
        ("/a/{x}/c/{y}", "/a/b/c/d", {"x": "b", "y": "d"}),
        ("/a/{x}/c", "/a/b/d", None),
    ],
)
def test_what_stands_for_the_names_in_a_path(route: str, path: str, params: dict[str, str] | None) -> None:
    assert match_path(route, path) == params


async def test_an_exact_path_comes_before_a_pattern(build: Build) -> None:
    """With its own role and route, although the pattern was declared before it."""
    seen: list[tuple[str, dict[str, str]]] = []

    async def answer(exchange: Exchange, _caller: Caller, _body: bytes) -> None:
        seen.append((exchange.route, dict(exchange.params)))
        await exchange.respond(200, b"")

    app = build(answer)
    for path in ("/thing/all", "/thing/one"):
        await AsgiRequest("DELETE", path, JSON).run(app)
    assert seen == [("/thing/all", {}), ("/thing/{id}", {"id": "one"})]


async def test_a_handler_finds_what_stands_for_the_names(build: Build) -> None:
    async def answer(exchange: Exchange, _caller: Caller, _body: bytes) -> None:
        await exchange.respond(200, " ".join([*exchange.params.values(), *exchange.query.values()]).encode())

    request = await get("/things/a%20/parts/b?x=1&y=").run(build(answer))
    assert request.body == b"a%20 b 1 "


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
async def test_any_method_gets_its_body(build: Build, method: str) -> None:
    request = await AsgiRequest(method, "/thing/1", JSON, [b'{"a": 1}']).run(build())
    assert (request.status, request.body) == (200, b'{"a": 1}')


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
async def test_without_a_body_nothing_has_to_be_declared(build: Build, method: str) -> None:
    assert (await AsgiRequest(method, "/thing/1").run(build())).status == 200


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
@pytest.mark.parametrize("declared", [{}, {"content-type": "text/plain"}])
async def test_a_body_that_is_not_declared_as_json_is_refused_from_any_method(
    build: Build, method: str, declared: dict[str, str]
) -> None:
    request = await AsgiRequest(method, "/thing/1", {"host": "localhost", **declared}, [b"{}"]).run(build())
    assert (request.status, request.error["code"]) == (415, "unsupported_media_type")


async def test_a_form_does_not_reach_the_pages(build: Build) -> None:
    headers = {"host": "localhost", "content-type": "text/plain"}
    assert (await AsgiRequest("POST", "/pages/x", headers, [b"{}"]).run(build())).status == 415
    assert (await AsgiRequest("GET", "/pages/x", headers).run(build())).status == 200


async def test_the_methods_of_a_path_are_all_listed(build: Build) -> None:
    request = await AsgiRequest("PATCH", "/thing/1", JSON).run(build())
    assert (request.status, request.headers["allow"]) == (405, "PUT, DELETE")


async def test_pages_get_what_no_route_names_first(build: Build) -> None:
    request = await get("/pages/some").run(build())
    assert request.body == b"/pages/some"
    assert "x-request-id" in request.headers


async def test_the_lifespan_is_that_of_the_pages(build: Build, admin_app: FakeAdminApp) -> None:
    async def none_sent(_message: Message) -> None:
        raise AssertionError

    await build()({"type": "lifespan"}, trio.sleep_forever, none_sent)
    assert admin_app.lifespans == 1


async def test_a_websocket_is_refused(build: Build) -> None:
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message)

    await build()({"type": "websocket", "path": "/pages/x", "headers": []}, receive, send)
    assert [message["type"] for message in sent] == ["websocket.close"]


# Guards and their order


async def test_headers_are_measured_before_anything_else(build: Build) -> None:
    request = await post(filler="a" * 40_000).run(build(keys=[KEY]))
    assert (request.status, request.error["code"]) == (431, "headers_too_large")


@pytest.mark.parametrize("path", ["/do", "/nothing", "/pages/x", "/see"])
async def test_without_a_key_not_even_what_exists_is_revealed(build: Build, path: str) -> None:
    request = await get(path).run(build(keys=[KEY]))
    assert (request.status, request.headers["www-authenticate"]) == (401, "Bearer")


async def test_health_needs_no_key_and_any_host_may_ask(build: Build) -> None:
    for app in (build(), build(keys=[KEY])):
        assert (await get("/health", host="probe.example", origin="null").run(app)).status == 200


async def test_browsers_are_kept_from_a_keyless_gateway_only(build: Build) -> None:
    for headers in ({"host": "evil.example"}, {"origin": "http://evil.example"}):
        assert (await get("/pages/x", **headers).run(build())).status == 403
        assert (await get("/pages/x", **headers).run(build(keys=[KEY]))).status == 401


async def test_a_body_has_to_be_declared_as_json_before_it_is_read(build: Build) -> None:
    request = AsgiRequest("POST", "/do", {"host": "localhost", "content-type": "text/plain"}, body_is_whole=False)
    await request.run(build())
    assert (request.status, request.error["code"]) == (415, "unsupported_media_type")


async def test_a_body_over_the_limit_is_refused(build: Build) -> None:
    request = await post(b"x" * 101).run(build())
    assert (request.status, request.error["code"]) == (413, "request_too_large")
    assert request.headers["connection"] == "close"


async def test_a_body_that_does_not_come_is_given_up(build: Build, autojump_clock: MockClock) -> None:
    request = AsgiRequest("POST", "/do", JSON, [b"{"], body_is_whole=False)
    await request.run(build())
    assert (request.status, request.error["code"]) == (408, "request_timeout")


# Errors


async def test_an_error_of_ours_says_all_it_knows(build: Build, logs: Logs) -> None:
    error = Overloaded("Too many.", retry_after_seconds=1.2, param="model")
    request = await post(x_request_id="mine").run(build(failing(error)))
    assert request.status == 429
    assert request.headers["retry-after"] == "2"
    assert request.headers["x-request-id"] == "mine"
    assert request.error == {
        "message": "Too many.",
        "type": "rate_limit_error",
        "param": "model",
        "code": "rate_limit_exceeded",
    }
    assert entries_of(logs, "request")[0]["error"] == "Too many."
    assert entries_of(logs, "request.failed") == []


async def test_a_bug_is_answered_without_its_text_and_logged_with_it(build: Build, logs: Logs) -> None:
    request = await post().run(build(failing(ValueError("secret detail"))))
    assert (request.status, request.error["code"]) == (500, "internal_error")
    assert b"secret detail" not in request.body
    assert len(entries_of(logs, "request.failed")) == 1


async def test_a_group_of_bugs_is_one_500(build: Build, logs: Logs) -> None:
    group = ExceptionGroup("several", [ValueError("a"), KeyError("b")])
    assert (await post().run(build(failing(group)))).status == 500
    assert len(entries_of(logs, "request.failed")) == 1


async def test_an_error_in_a_stream_is_its_last_event(build: Build, registry: CollectorRegistry) -> None:
    async def break_off(exchange: Exchange, _caller: Caller, _body: bytes) -> None:
        await exchange.start_event_stream()
        await exchange.send_part(b"data: 1\n\n")
        raise BadRequest("Enough.")

    request = await post().run(build(break_off))
    assert (request.status, request.is_complete) == (200, True)
    first, last, nothing = request.body.split(b"\n\n")
    assert (first, nothing) == (b"data: 1", b"")
    assert last.startswith(b'data: {"error":{"message":"Enough."')
    assert counted(registry, "/do", "error") == 1


async def test_an_error_in_the_middle_of_anything_else_cuts_the_answer(
    build: Build, registry: CollectorRegistry, logs: Logs
) -> None:
    async def break_off(exchange: Exchange, _caller: Caller, _body: bytes) -> None:
        await exchange.send_head(200, [])
        await exchange.send_part(b"half")
        raise BadRequest("Enough.")

    request = await post().run(build(break_off))
    assert (request.body, request.is_complete) == (b"half", False)
    assert len(entries_of(logs, "request.failed_after_response")) == 1
    assert counted(registry, "/do", "error") == 1


async def test_an_error_after_the_whole_answer_sends_nothing_more(build: Build, logs: Logs) -> None:
    async def fail_late(exchange: Exchange, _caller: Caller, _body: bytes) -> None:
        await exchange.start_event_stream()
        await exchange.end_stream(b"data: [DONE]\n\n")
        raise BadRequest("Too late.")

    request = await post().run(build(fail_late))
    assert request.body == b"data: [DONE]\n\n"
    assert len(entries_of(logs, "request.failed_after_response")) == 1


# Clients that leave


async def run_and_hang_up(app: HttpApp, request: AsgiRequest) -> None:
    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(request.run, app)
            await wait_all_tasks_blocked()
            request.hang_up()


async def test_a_client_that_leaves_cancels_its_handler(build: Build, registry: CollectorRegistry, logs: Logs) -> None:
    request = post()
    await run_and_hang_up(build(stay), request)
    assert request.sent == []
    assert counted(registry, "/do", "cancelled") == 1
    assert [entry["log_level"] for entry in logs] == ["info"]


@pytest.mark.parametrize("request_of", [lambda: get("/see"), lambda: AsgiRequest("DELETE", "/thing/1", JSON)])
async def test_a_client_that_leaves_cancels_any_method(
    build: Build, logs: Logs, request_of: Callable[[], AsgiRequest]
) -> None:
    request = request_of()
    await run_and_hang_up(build(stay), request)
    assert request.sent == []
    assert entries_of(logs, "request")[0]["outcome"] == "cancelled"


async def test_a_client_that_leaves_a_stream_cancels_it(build: Build, registry: CollectorRegistry) -> None:
    request = post()
    await run_and_hang_up(build(stream_and_stay), request)
    assert not request.is_complete
    assert counted(registry, "/do", "cancelled") == 1


async def test_a_client_that_leaves_while_it_sends_is_no_error(build: Build, logs: Logs) -> None:
    request = AsgiRequest("POST", "/do", JSON, [b"{"], body_is_whole=False)
    await run_and_hang_up(build(), request)
    assert request.sent == []
    assert [entry["outcome"] for entry in logs] == ["cancelled"]


async def test_a_bug_beside_a_cancel_is_logged(build: Build, logs: Logs) -> None:
    request = post()
    await run_and_hang_up(build(fail_while_cancelled), request)
    assert request.sent == []
    (entry,) = entries_of(logs, "request.failed")
    assert entry["exc_info"].subgroup(ValueError) is not None
    assert entry["exc_info"].subgroup(trio.Cancelled) is None
    assert entries_of(logs, "request")[0]["outcome"] == "cancelled"


async def test_a_cancel_from_outside_goes_through(build: Build, logs: Logs) -> None:
    request = post()
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(request.run, build(fail_while_cancelled))
            await wait_all_tasks_blocked()
            scope.cancel()
    assert scope.cancelled_caught
    assert request.sent == []
    assert len(entries_of(logs, "request.failed")) == 1


# The drain


async def test_a_draining_gateway_takes_no_more_and_stays_healthy(build: Build) -> None:
    app = build()
    app.drain()
    for request in (post(), get("/see"), get("/pages/x"), get("/nothing")):
        await request.run(app)
        assert (request.status, request.error["code"]) == (503, ShuttingDown.code)
        assert request.headers["connection"] == "close"
        assert request.headers["retry-after"] == "5"
    assert (await get("/health").run(app)).status == 200


Finish = Callable[[AsgiRequest], Awaitable[None]]


async def drained(app: HttpApp, request: AsgiRequest) -> AsgiRequest:
    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(request.run, app)
            await wait_all_tasks_blocked()
            app.drain()
            await wait_all_tasks_blocked()
            assert not request.is_complete
            app.end_streams()
    return request


@pytest.mark.parametrize("path", ["/do", "/pages/stay"])
async def test_the_end_of_the_drain_answers_whoever_still_waits(build: Build, path: str) -> None:
    request = await drained(build(stay), post(path=path))
    assert (request.status, request.error["code"]) == (503, ShuttingDown.code)


async def test_the_beginning_of_the_drain_ends_what_has_no_end_of_its_own(build: Build) -> None:
    app, service, stream = build(stream_and_stay), get("/service"), get("/see")
    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(service.run, app)
            nursery.start_soon(stream.run, app)
            await wait_all_tasks_blocked()
            app.drain()
            await wait_all_tasks_blocked()
            assert (service.is_complete, stream.is_complete) == (True, False)
            app.end_streams()
    assert b'"code":"shutting_down"' in service.body


async def test_the_end_of_the_drain_ends_streams_with_an_error(build: Build) -> None:
    request = await drained(build(stream_and_stay), post())
    assert (request.status, request.is_complete) == (200, True)
    assert b'"code":"shutting_down"' in request.body
    assert b"[DONE]" not in request.body


async def test_a_bug_at_the_end_of_the_drain_is_logged(build: Build, logs: Logs) -> None:
    request = await drained(build(fail_while_cancelled), post())
    assert request.status == 500
    assert len(entries_of(logs, "request.failed")) == 1


# What is told of a request


async def test_each_request_has_one_line(build: Build, logs: Logs, autojump_clock: MockClock) -> None:
    async def take_time(exchange: Exchange, caller: Caller, body: bytes) -> None:
        await trio.sleep(1.25)
        exchange.notes["replica_id"] = "r"
        await answer_ok(exchange, caller, body)

    await post().run(build(take_time))
    assert logs == [
        {
            "event": "request",
            "log_level": "info",
            "method": "POST",
            "path": "/do",
            "status": 200,
            "outcome": "200",
            "seconds": 1.25,
            "replica_id": "r",
        }
    ]


async def test_the_line_of_a_request_to_a_page_says_its_path_and_the_metric_its_route(
    build: Build, registry: CollectorRegistry, logs: Logs
) -> None:
    await get("/pages/some").run(build())
    assert logs[0]["path"] == "/pages/some"
    assert counted(registry, "/pages/", "200") == 1


LONG: str = "x" * 30_000


@pytest.mark.parametrize(
    "path", ["/nothing/" + LONG, "/pages/" + LONG, "/below/" + LONG, "/things/" + LONG + "/parts/a"]
)
@pytest.mark.parametrize("method", ["GET", "X" * 10_000])
async def test_a_long_path_or_method_is_cut_in_the_log_and_in_the_answer(
    build: Build, logs: Logs, path: str, method: str
) -> None:
    request = await AsgiRequest(method, path, headers={"host": "localhost"}).run(build())
    (line,) = logs
    assert f"... ({len(path)} characters)" in line["path"]
    assert all(len(str(value)) < 500 for value in line.values())
    assert len(request.body) < 1000 or path.startswith("/pages/")  # whose fake answers with it


async def test_control_characters_of_a_path_are_escaped_in_the_log(build: Build, logs: Logs) -> None:
    await get("/nothing\x1b[2J\nforged").run(build())
    assert logs[0]["path"] == r"/nothing\x1b[2J\nforged"
    assert r"\nforged" in logs[0]["error"]


async def answer_to(app: HttpApp, method: str, path: str) -> bytes:
    request = await AsgiRequest(method, path, JSON, (b"{}",)).run(app)
    return request.body


async def test_a_route_writes_errors_in_its_own_dialect_whoever_refuses(build: Build) -> None:
    """Also those of who looks at the request before its handler does, and of a bug."""
    assert await answer_to(build(failing(BadRequest("no"))), "POST", "/dialect") == b"400 in a dialect"
    assert await answer_to(build(failing(ValueError("bug"))), "POST", "/dialect") == b"500 in a dialect"
    assert await answer_to(build(), "GET", "/dialect") == b"405 in a dialect"
    assert await answer_to(build(keys=[KEY]), "POST", "/dialect") == b"401 in a dialect"


async def test_whatever_has_no_dialect_has_the_applications(build: Build) -> None:
    for app, path in ((build(failing(BadRequest("no"))), "/do"), (build(), "/nowhere")):
        assert (await answer_to(app, "POST", path)).startswith(b'{"error":')


async def test_an_error_of_another_room_is_answered_as_the_policy_says(
    admin_app: FakeAdminApp, registry: CollectorRegistry
) -> None:
    class Away(LookupError):
        pass

    app = HttpApp(
        [Route("GET", "/see", Role.INFERENCE, failing(Away("secret")))],
        [],
        admin_app,
        errors=ErrorPolicy(in_a_dialect, {LookupError: lambda _: Overloaded("busy", retry_after_seconds=1.0)}),
        authenticator=Authenticator([], allow_anonymous=False),
        metrics=RequestMetrics(registry),
        limits=LIMITS,
    )
    assert await answer_to(app, "GET", "/see") == b"429 in a dialect"
