"""What a failed gRPC call means, decided in one place for every RPC; pure."""

from collections.abc import Mapping
from typing import Final

from grpclib import GRPCError, Status
from grpclib.exceptions import StreamTerminatedError

from gateway.backends import metadata as names
from gateway.backends.leaving_connection import NotProcessed
from gateway.backends.protocol import Lost, Refused, RouteError, Stale, Unreachable
from gateway.domain.errors import BackendFailed, BadRequest, GatewayError, Timeout

MESSAGE_CHARS_MAX: Final = 1000
"""A backend's own words are passed on, but not without end."""


def meaning(error: Exception, trailers: Mapping[str, str], *, sent: bool) -> RouteError | GatewayError:
    """What the router raises for `error`. `trailers` are those of the call, `sent` says whether the request left us.

    - a status from the backend: by its code and trailers (`_meaning_of_status`);
    - the connection broke: `Lost` once the request was sent, else `Unreachable`, as when the backend says itself that
      it has not begun with the call;
    - anything else is no answer of the backend but a defect of ours, and is told as a failed backend all the same, so
      that the client gets one clear error; the caller logs it.
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
    """Another process, another model or none at all (R14, H5). A NOT_FOUND of another kind is an ordinary error."""
    match status:
        case Status.UNAUTHENTICATED | Status.FAILED_PRECONDITION:
            return True
        case Status.NOT_FOUND:
            return names.IDENTITY_MISMATCH in text
        case _:
            return names.NOT_LOADED in text
