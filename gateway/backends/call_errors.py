"""Decides what a failed gRPC call means, in one place for every RPC. Pure."""

from collections.abc import Mapping
from typing import Final

from grpclib import GRPCError, Status
from grpclib.exceptions import StreamTerminatedError

from gateway.backends import metadata as names
from gateway.backends.protocol import Lost, Refused, RouteError, Stale, Unreachable
from gateway.domain.errors import BackendFailed, BadRequest, GatewayError, Timeout

MESSAGE_CHARS_MAX: Final = 1000
"""The length at which a backend's message is cut before it is passed on."""
LEAVES: Final = "the backend takes no new calls on this connection (GOAWAY)"


class NotProcessed(StreamTerminatedError):
    """The backend says that it has not begun the call. It may be made again elsewhere as if for the first time."""


def meaning(error: Exception, trailers: Mapping[str, str], *, sent: bool) -> RouteError | GatewayError:
    """Returns the error that the router raises for `error`. `trailers` are those of the call. `sent` says whether the
    request was sent.

    - A status from the backend is translated by its code and trailers (`_meaning_of_status`).
    - A broken connection is `Lost` once the request was sent, and `Unreachable` before, or if the backend says that it
      has not begun the call.
    - Any other error is a defect of the gateway. The client still gets one clear error, that of a failed backend, and
      the caller logs it.
    """
    if isinstance(error, GRPCError):
        return _meaning_of_status(error.status, error.message or "", trailers)
    if isinstance(error, StreamTerminatedError | OSError):
        is_begun = sent and not isinstance(error, NotProcessed)
        return (Lost if is_begun else Unreachable)(str(error) or type(error).__name__)
    return BackendFailed(f"The call to the backend failed: {type(error).__name__}.")


def _meaning_of_status(status: Status, text: str, trailers: Mapping[str, str]) -> RouteError | GatewayError:
    text = text[:MESSAGE_CHARS_MAX]
    if (refused := trailers.get(names.REFUSED)) is not None:
        return Refused(draining=refused == names.REFUSED_DRAINING)
    if _is_stale(status, text):
        return Stale(text or status.name)
    match status:
        case Status.INVALID_ARGUMENT:
            return BadRequest(text, param=trailers.get(names.ERROR_PARAM), code=trailers.get(names.ERROR_CODE))
        case Status.UNIMPLEMENTED:
            return BadRequest(
                f"The model's backend does not support this: {text or 'no such call'}.", code="unsupported"
            )
        case Status.DEADLINE_EXCEEDED:
            return Timeout("The backend did not answer in time.")
        case Status.UNAVAILABLE:
            return Lost(text or status.name)
        case _:
            return BackendFailed(f"The backend failed: {text or status.name}.")


def _is_stale(status: Status, text: str) -> bool:
    """Returns whether another process, another model or no model is there (R14, H5). A NOT_FOUND of another kind is an
    ordinary error."""
    match status:
        case Status.UNAUTHENTICATED | Status.FAILED_PRECONDITION:
            return True
        case Status.NOT_FOUND:
            return names.IDENTITY_MISMATCH in text
        case _:
            return names.NOT_LOADED in text
