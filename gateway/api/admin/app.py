"""Quart as the admin API uses it: errors in the API's envelope, safe defaults, JSON in and out."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

import structlog
import trio
from pydantic_core import to_json
from quart import Response, request
from quart.typing import ResponseReturnValue
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException

from gateway.api.http.browser_guard import check_json
from gateway.api.http.errors import ErrorPolicy, InternalError, error_headers
from gateway.api.http.json_body import READ_ON_LOOP_BYTES, Body, parse_json, parse_object
from gateway.domain.errors import BadRequest, GatewayError, MethodNotAllowed, NotFound

T = TypeVar("T")

log = structlog.get_logger(__name__)


class AdminApp(QuartTrio):
    """The Quart application of the admin API, with safe defaults (pitfalls 1, 2, 35)."""

    def __init__(self, errors: ErrorPolicy) -> None:
        super().__init__(__name__, static_folder=None)
        self.config.update(RESPONSE_TIMEOUT=None, BODY_TIMEOUT=None, MAX_CONTENT_LENGTH=1024 * 1024)
        self._errors = errors
        self.register_error_handler(HTTPException, self._answer_http_exception)
        self.register_error_handler(Exception, self._answer_error)

    async def handle_user_exception(
        self, error: Exception | BaseExceptionGroup[BaseException]
    ) -> HTTPException | ResponseReturnValue:
        """Logs a bug that was raised together with a cancel, because Quart would drop it (pitfalls 2, 3)."""
        if isinstance(error, BaseExceptionGroup):
            cancelled, failed = error.split(trio.Cancelled)
            if failed is not None:
                log.exception("request.failed", exc_info=failed)
            if cancelled is not None:
                raise cancelled from None
            return self._envelope(InternalError())
        return await super().handle_user_exception(error)

    async def _answer_error(self, error: Exception) -> Response:
        return self._envelope(self._errors.meaning(error))

    async def _answer_http_exception(self, error: HTTPException) -> Response:
        """Converts an error of Quart's own, such as an unknown path, to the gateway's JSON error."""
        match error.code:
            case 404:
                return self._envelope(NotFound("There is nothing at this path."))
            case 405:
                response = self._envelope(MethodNotAllowed("This path does not take that method."))
                response.headers.extend(header for header in error.get_headers() if header[0] == "Allow")
                return response
            case _:
                response = self._envelope(BadRequest(error.description or error.name))
                response.status_code = error.code or 400
                return response

    def _envelope(self, error: GatewayError) -> Response:
        headers = {name.decode(): value.decode() for name, value in error_headers(error)}
        return Response(
            self._errors.encode(error), status=error.status, headers=headers, content_type="application/json"
        )

    def rules(self) -> Iterator[tuple[str, str]]:
        """Yields the method and path of each page."""
        for rule in self.url_map.iter_rules():
            for method in sorted(rule.methods or ()):
                yield method, rule.rule


async def read_json(body_type: type[Body]) -> Body:
    """Returns the body of the request. Raises `BadRequest`, and `UnsupportedMediaType` for a body that is not declared
    as JSON."""
    return await _off_loop_if_large(partial(parse_json, body_type), await _read_declared())


async def read_object() -> dict[str, Any]:
    """Returns the body of the request, for callers that check its fields themselves. Raises the errors of
    `read_json`."""
    return await _off_loop_if_large(parse_object, await _read_declared())


async def _off_loop_if_large(parse: Callable[[bytes], T], body: bytes) -> T:
    return parse(body) if len(body) <= READ_ON_LOOP_BYTES else await trio.to_thread.run_sync(parse, body)


async def _read_declared() -> bytes:
    data = await request.data
    if data:
        check_json(request.headers.get("content-type"))
    return data


def json_response(document: object, status: int = 200) -> Response:
    """Returns a response whose body is `document` as JSON."""
    return Response(to_json(document), status=status, content_type="application/json")
