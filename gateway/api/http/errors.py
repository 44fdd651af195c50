"""Errors on the wire, in whatever form the response still allows."""

import math

import structlog

from gateway.api.http.asgi import Headers
from gateway.api.http.event_stream import event
from gateway.api.http.exchange import Exchange
from gateway.api.openai.errors import error_object
from gateway.domain.errors import GatewayError

log = structlog.get_logger(__name__)


class InternalError(GatewayError):
    """Our bug. What happened is in the log, not in the answer."""

    code = "internal_error"

    def __init__(self) -> None:
        super().__init__("The gateway failed to handle this request; its log says why, under this request id.")


async def send_error(exchange: Exchange, error: GatewayError) -> None:
    """Tell the client of the error in the form that the response still allows.

    - nothing sent yet: the status and the error object;
    - in the middle of an event stream: one error event, then the stream ends, without `[DONE]`;
    - in the middle of anything else: nothing can be said any more, and the listener cuts the connection.
    """
    if exchange.status is None:
        await exchange.respond(error.status, error_object(error), headers=error_headers(error))
    elif exchange.is_event_stream and not exchange.complete:
        exchange.failed = True
        await exchange.end_stream(event(error_object(error)))
    else:
        exchange.failed = True
        log.error("request.failed_after_response", error=error.message)


def error_headers(error: GatewayError) -> Headers:
    """Return the headers of an error: `Retry-After` in whole seconds if it has one, `WWW-Authenticate` for a 401."""
    headers: Headers = []
    if error.retry_after_seconds is not None:
        headers.append((b"retry-after", str(math.ceil(error.retry_after_seconds)).encode()))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return headers
