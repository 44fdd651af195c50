"""Sends errors in the form that the response still allows."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog

from gateway.api.http.event_stream import event
from gateway.api.http.exchange import EncodeError, Exchange, Headers
from gateway.domain.errors import GatewayError

log = structlog.get_logger(__name__)


class InternalError(GatewayError):
    """A bug of the gateway. The log has the details, and the answer does not."""

    code = "internal_error"

    def __init__(self) -> None:
        super().__init__("The gateway failed to handle this request; its log says why, under this request id.")


@dataclass(frozen=True)
class ErrorPolicy:
    """The rules by which an exception becomes an answer, and the dialect in which that is written."""

    encode: EncodeError
    """The dialect of every path whose route has none of its own."""
    foreign: Mapping[type[Exception], Callable[[Exception], GatewayError]]
    """The answers for errors of other rooms. They are looked up by the classes of the exception, in order."""

    def meaning(self, error: Exception) -> GatewayError:
        """Returns what a client is told. An exception that nobody expected is a bug of ours, and is logged here."""
        if isinstance(error, GatewayError):
            return error
        translate = next((self.foreign[each] for each in type(error).__mro__ if each in self.foreign), None)
        if translate is not None:
            return translate(error)
        log.exception("request.failed", exc_info=error)
        return InternalError()


async def send_error(exchange: Exchange, error: GatewayError, encode: EncodeError) -> None:
    """Tells the client of the error in the form that the response still allows.

    - If nothing was sent yet: the status and the error object.
    - In the middle of an event stream: one error event, then the stream ends without `[DONE]`.
    - In the middle of anything else: nothing, and the listener cuts the connection.
    """
    if exchange.status is None:
        await exchange.respond(error.status, encode(error), headers=error_headers(error))
    elif exchange.is_event_stream and not exchange.complete:
        exchange.failed = True
        await exchange.end_stream(event(encode(error)))
    else:
        exchange.failed = True
        log.error("request.failed_after_response", error=error.message)


def error_headers(error: GatewayError) -> Headers:
    """Returns the headers of an error: `Retry-After` in whole seconds if it has one, `WWW-Authenticate` for a 401."""
    headers: Headers = []
    if error.retry_after_seconds is not None:
        headers.append((b"retry-after", str(math.ceil(error.retry_after_seconds)).encode()))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return headers
