"""The ASGI application in front of everything: guards, roles, errors, the log line of each request.

A handler that streams or is on the request path is plain ASGI (`Route`). Every other path goes to `admin_app`, the
Quart application. A request passes, in this order: header size, drain, browser guard, credentials, route, body,
handler.

This file is longer than others because the order of these checks protects the gateway, and is read in one place.
"""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Final, Protocol

import structlog
import trio
from structlog.contextvars import bind_contextvars, reset_contextvars

from gateway.api.http.auth import Authenticator, Caller, Role
from gateway.api.http.bodies import BodyBudget
from gateway.api.http.body_coding import check_coding, read_coded_body, replace_body
from gateway.api.http.browser_guard import METHODS, BrowserPolicy, check_json
from gateway.api.http.errors import ErrorPolicy, InternalError, send_error
from gateway.api.http.exchange import ClientGone, EncodeError, Exchange, HeadAnswered, Receive, Scope, Send
from gateway.domain.errors import GatewayError, MethodNotAllowed, NotFound, ShuttingDown
from gateway.domain.texts import quoted
from gateway.observability.metrics import UNKNOWN_MODEL, RequestMetrics
from gateway.transport.node_credentials import BOOT, NODE

log = structlog.get_logger(__name__)

RETRY_AFTER_DRAIN_SECONDS: Final = 5.0
METHOD_CHARACTERS_MAX: Final = 32
"""The length at which a request's method is cut in errors and log lines."""

Handler = Callable[[Exchange, Caller, bytes], Awaitable[None]]
"""Answers one request whose body has been read. Raises `GatewayError`."""


SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
"""The methods that change nothing, and whose bodies mean nothing (RFC 9110, 9.2.1 and 9.3.1)."""


@dataclass(frozen=True)
class Route:
    """A plain ASGI route. A path that ends in "/" stands for everything below it. A `{name}` in it stands for one
    segment, which is in `Exchange.params`. All routes of one path require one role."""

    method: str
    path: str
    role: Role
    handler: Handler
    body_bytes_max: int | None = None
    """The limit of the body, if it is less than the general one."""
    ends_with_service: bool = False
    """Whether the response ends as soon as the drain begins, since it would go on for as long as its client likes."""
    encode_error: EncodeError | None = None
    """The encoder of errors of its dialect. All routes of one path have the same. None means the application's."""


@dataclass(frozen=True)
class AdminRoute:
    """A path (or, with a final "/", everything below it) that Quart serves, and the role that it requires."""

    path: str
    role: Role


@dataclass(frozen=True)
class Endpoint:
    """A method and path with the role that opens it. A test checks by `HttpApp.endpoints` that all of them are
    guarded."""

    method: str
    path: str
    """The path as it is declared, with its `{name}` or `<name>`."""
    role: Role


@dataclass(frozen=True)
class _Place:
    """The routes, or the admin application, that answer at one path or at all paths of one pattern."""

    path: str
    """The path as the routes declare it, with a `{name}` for each part that varies."""
    role: Role
    routes: tuple[Route, ...] = ()
    """One for each method. None if Quart answers."""


NOWHERE: Final = _Place("other", Role.INFERENCE)


class AdminAsgiApp(Protocol):
    """The application behind the page routes."""

    async def __call__(self, scope: Any, receive: Any, send: Any, /) -> None: ...  # noqa: ANN401 - see `exchange.App`

    def rules(self) -> Iterable[tuple[str, str]]:
        """Returns the method and path of everything it serves."""


@dataclass(frozen=True)
class BodyLimits:
    """The limits of request bodies: the size of one, the time for its arrival, and the size of all together."""

    bytes_max: int
    timeout_seconds: float
    budget_bytes: int
    """The limit of all bodies together, from the first byte that is read to the end of the request."""


class HttpApp:
    """The ASGI application of the gateway: it guards each request and passes it to a route or to the admin pages."""

    def __init__(
        self,
        routes: Sequence[Route],
        admin_routes: Sequence[AdminRoute],
        admin_app: AdminAsgiApp,
        *,
        errors: ErrorPolicy,
        authenticator: Authenticator,
        metrics: RequestMetrics,
        limits: BodyLimits,
        browsers: BrowserPolicy | None = None,
    ) -> None:
        """`browsers` says which web pages may use the gateway. None means none but those of this machine."""
        self._routes = tuple(routes)
        places = _places(routes, admin_routes)
        self._exact = {place.path: place for place in reversed(places) if not _is_pattern(place.path)}
        self._patterns = tuple(place for place in places if _is_pattern(place.path))
        self._admin_app = admin_app
        self._errors = errors
        self._authenticator = authenticator
        self._metrics = metrics
        self._limits = limits
        self._bodies = BodyBudget(limits.budget_bytes, limits.bytes_max)
        self._browsers = browsers or BrowserPolicy()
        self._draining = False
        self._scopes: set[trio.CancelScope] = set()
        """The scopes of running handlers, so that the end of a drain reaches them."""
        self._scopes_of_service: set[trio.CancelScope] = set()
        """The scopes among them that end when a drain begins."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._admin_app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1000})
        else:
            place, params = self._find(scope["path"])
            encode_error = (place.routes[0].encode_error if place.routes else None) or self._errors.encode
            exchange = Exchange(scope, receive, send, params=params, encode_error=encode_error)
            bound = bind_contextvars(request_id=exchange.request_id)
            try:
                await self._guarded(exchange, partial(self._dispatch, exchange, place, scope))
            finally:
                self._record_end(exchange)
                reset_contextvars(**bound)

    def drain(self) -> None:
        """Begins the drain: new requests are refused, and running ones continue, except those without an end of their
        own."""
        self._draining = True
        for scope in tuple(self._scopes_of_service):
            scope.cancel()

    def end_streams(self) -> None:
        """Ends the drain: running handlers end, each with an error that says so."""
        for scope in tuple(self._scopes):
            scope.cancel()

    def endpoints(self) -> Sequence[Endpoint]:
        """Returns every method and path with the role that it requires."""
        return (
            *(Endpoint(route.method, route.path, route.role) for route in self._routes),
            *(Endpoint(method, path, self._admin_role(path)) for method, path in self._admin_app.rules()),
        )

    def _admin_role(self, path: str) -> Role:
        admin_app = (place for place in (*self._exact.values(), *self._patterns) if not place.routes)
        return next(
            (admin_route.role for admin_route in admin_app if match_path(admin_route.path, path) is not None),
            NOWHERE.role,
        )

    def _find(self, path: str) -> tuple[_Place, Mapping[str, str]]:
        """Returns the place that answers at `path`, with the value of each `{name}`. An exact path comes before a
        pattern."""
        exact = self._exact.get(path)
        if exact is not None:
            return exact, NO_PARAMS
        for place in self._patterns:
            params = match_path(place.path, path)
            if params is not None:
                return place, params
        return NOWHERE, NO_PARAMS

    async def _guarded(self, exchange: Exchange, answer: Callable[[], Awaitable[None]]) -> None:
        """Runs `answer`. Every error but a cancel becomes an error that the client can read.

        A bug together with a cancel arrives as a group: the bug is logged, and the cancel continues (pitfall 2).
        """
        try:
            await answer()
        except (ClientGone, HeadAnswered):
            return
        except Exception as error:  # noqa: BLE001 - `meaning` logs what nobody expected
            if isinstance(error, GatewayError):
                exchange.notes["error"] = error.message
            await self._send_error(exchange, self._errors.meaning(error))
        except BaseExceptionGroup as group:
            cancelled, failed = group.split(trio.Cancelled)
            if failed is not None:
                log.exception("request.failed", exc_info=failed)
            if cancelled is not None:
                raise cancelled from None
            await self._send_error(exchange, InternalError())

    async def _send_error(self, exchange: Exchange, error: GatewayError) -> None:
        await send_error(exchange, error, exchange.encode_error)

    async def _dispatch(self, exchange: Exchange, place: _Place, scope: Scope) -> None:
        if self._browsers.has_origins:
            exchange.response_headers += self._browsers.answer_headers(exchange.header("origin"))
        exchange.check_headers()
        if exchange.method == "OPTIONS" and await self._answer_options(exchange):
            return
        caller = self._admit(exchange, place.role)
        exchange.route = place.path
        if place.routes:
            await self._run_route(exchange, place.routes, caller)
        elif place is not NOWHERE:
            await self._run_admin_route(exchange, scope)
        else:
            raise NotFound(
                f"There is nothing at {quoted(exchange.method, METHOD_CHARACTERS_MAX)} {quoted(exchange.path)}."
            )

    async def _answer_options(self, exchange: Exchange) -> bool:
        """Answers a question about the whole server (`*`), or of a browser before it sends a request of another origin.
        Returns whether it was one. Both come without credentials. Raises `Forbidden`."""
        if exchange.path == "*":
            await exchange.respond(200, b"", b"text/plain", [(b"allow", METHODS)])
            return True
        origin, method = exchange.header("origin"), exchange.header("access-control-request-method")
        if origin is None or method is None:
            return False
        asked = exchange.header("access-control-request-headers")
        asks_for_local_network = exchange.header("access-control-request-private-network") == "true"
        headers = self._browsers.preflight_headers(origin, asked, asks_for_local_network=asks_for_local_network)
        await exchange.respond(200, b"", b"text/plain", headers)
        return True

    def _admit(self, exchange: Exchange, role: Role) -> Caller:
        """Returns the caller, or refuses it. Health is open to everyone at any time."""
        if role is Role.PUBLIC:
            return self._authenticator.anonymous
        if self._draining:
            exchange.closing = True
            raise ShuttingDown("The gateway is shutting down.", retry_after_seconds=RETRY_AFTER_DRAIN_SECONDS)
        if self._authenticator.trusts_this_machine:
            self._browsers.check_local_request(exchange.header("host"), exchange.header("origin"))
        authorization = exchange.header("authorization")
        if role is Role.WORKER:
            return self._authenticator.authorize_worker(authorization, exchange.header(NODE), exchange.header(BOOT))
        return self._authenticator.authorize(authorization, role)

    async def _run_admin_route(self, exchange: Exchange, scope: Scope) -> None:
        _check_declared(exchange)
        if exchange.header("content-encoding") is not None:
            await self._run_coded_admin_route(exchange, scope)
            return
        await self._run_until_drained(self._admin_app(scope, exchange.receive, exchange.send_message))

    async def _run_coded_admin_route(self, exchange: Exchange, scope: Scope) -> None:
        """Runs the admin application with the decoded body, as if that had come."""
        bytes_max = self._limits.bytes_max
        exchange.check_length(bytes_max)
        with self._bodies.open(exchange.peer, exchange.announced_bytes) as charge:
            body = await read_coded_body(exchange, bytes_max, self._limits.timeout_seconds, charge)
            decoded, receive = replace_body(scope, exchange.receive, body)
            await self._run_until_drained(self._admin_app(decoded, receive, exchange.send_message))

    async def _run_route(self, exchange: Exchange, routes: Sequence[Route], caller: Caller) -> None:
        method = "GET" if exchange.method == "HEAD" else exchange.method
        route = next((route for route in routes if route.method == method), None)
        if route is None:
            allowed = ", ".join("GET, HEAD" if route.method == "GET" else route.method for route in routes)
            exchange.response_headers.append((b"allow", allowed.encode()))
            given = quoted(exchange.method, METHOD_CHARACTERS_MAX)
            raise MethodNotAllowed(f"{quoted(exchange.path)} takes {allowed}, not {given}.")
        if exchange.method in SAFE_METHODS:
            await self._run_handler(exchange, route, route.handler(exchange, caller, b""))
            return
        _check_declared(exchange)
        bytes_max = min(route.body_bytes_max or self._limits.bytes_max, self._limits.bytes_max)
        exchange.check_length(bytes_max)
        with self._bodies.open(caller.name, exchange.announced_bytes) as charge:
            exchange.charge = charge
            read = (
                exchange.read_body
                if exchange.header("content-encoding") is None
                else partial(read_coded_body, exchange)
            )
            seconds = self._limits.timeout_seconds
            await self._run_handler(
                exchange, route, route.handler(exchange, caller, await read(bytes_max, seconds, charge))
            )

    async def _run_handler(self, exchange: Exchange, route: Route, handler: Awaitable[None]) -> None:
        """Runs a handler, which is called but not started. Only its own frame has the body, so that its memory is free
        once the handler has parsed it."""
        answer = partial(self._run_until_drained, handler, ends_with_service=route.ends_with_service)
        with trio.CancelScope() as scope:
            exchange.cancel_when_client_leaves(scope)
            await self._guarded(exchange, answer)

    async def _run_until_drained(self, answer: Awaitable[None], *, ends_with_service: bool = False) -> None:
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            if ends_with_service:
                self._scopes_of_service.add(scope)
            try:
                await answer
            finally:
                self._scopes.discard(scope)
                self._scopes_of_service.discard(scope)
        if scope.cancelled_caught:
            raise ShuttingDown(
                "The gateway is shutting down and could not finish this request.",
                retry_after_seconds=RETRY_AFTER_DRAIN_SECONDS,
            )

    def _record_end(self, exchange: Exchange) -> None:
        seconds = trio.current_time() - exchange.started_at
        self._metrics.requests.labels(exchange.model or UNKNOWN_MODEL, exchange.route, exchange.outcome).inc()
        self._metrics.duration.labels(exchange.route).observe(seconds)
        level = log.debug if exchange.route in QUIET_ROUTES else log.info
        level(
            "request",
            method=quoted(exchange.method, METHOD_CHARACTERS_MAX),
            path=quoted(exchange.path),
            status=exchange.status,
            outcome=exchange.outcome,
            seconds=round(seconds, 4),
            **exchange.notes,
        )


QUIET_ROUTES: Final = frozenset({"/healthz", "/readyz", "/metrics"})
"""The routes without log lines, because machines call them every few seconds."""


NO_PARAMS: Final[Mapping[str, str]] = MappingProxyType({})


def _places(routes: Iterable[Route], admin_app: Iterable[AdminRoute]) -> list[_Place]:
    """Routes come before pages, in the order in which they are declared."""
    by_path: dict[str, list[Route]] = {}
    for route in routes:
        by_path.setdefault(route.path, []).append(route)
    return [
        *(_Place(path, several[0].role, tuple(several)) for path, several in by_path.items()),
        *(_Place(admin_route.path, admin_route.role) for admin_route in admin_app),
    ]


def _is_pattern(path: str) -> bool:
    return (path.endswith("/") and path != "/") or "{" in path


def match_path(route_path: str, path: str) -> Mapping[str, str] | None:
    """Returns the values of each `{name}` of a route's path, if `path` matches it, or None. Pure."""
    if route_path.endswith("/"):
        return NO_PARAMS if path.startswith(route_path) else None
    if "{" not in route_path:
        return NO_PARAMS if path == route_path else None
    wanted, given = route_path.split("/"), path.split("/")
    if len(wanted) != len(given):
        return None
    pairs = list(zip(wanted, given, strict=True))
    if not all(got if part.startswith("{") else got == part for part, got in pairs):
        return None
    return {part[1:-1]: got for part, got in pairs if part.startswith("{")}


def _check_declared(exchange: Exchange) -> None:
    """Refuses a body that is declared as something other than JSON, or in a coding that nobody here knows. A request
    without a body need not declare anything."""
    declared, coding = exchange.header("content-type"), exchange.header("content-encoding")
    if declared is not None and exchange.method not in SAFE_METHODS:
        check_json(declared)
    if coding is not None:
        check_coding(exchange, coding)
