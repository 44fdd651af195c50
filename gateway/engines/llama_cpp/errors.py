"""The errors of a call: a status, a message for the user, and trailers for the gateway."""

from collections.abc import Mapping
from typing import Final

from grpclib.const import Status

from gateway.backends.metadata import (
    ERROR_CODE,
    ERROR_PARAM,
    IDENTITY_MISMATCH,
    NOT_LOADED,
    REFUSED,
    REFUSED_DRAINING,
    REFUSED_FULL,
)

UNSUPPORTED: Final = "unsupported"
CONTEXT_LENGTH_EXCEEDED: Final = "context_length_exceeded"


class CallError(Exception):
    """An error of a call. It may be raised anywhere below an RPC, and `dispatch` turns it into the call's status and
    trailers."""

    def __init__(self, status: Status, message: str, trailers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.trailers: Mapping[str, str] = trailers or {}


class LoadError(Exception):
    """A model cannot be loaded, for the reason in the message. It becomes the answer to LoadModel and not a status."""


def invalid(message: str, *, param: str, code: str | None = None) -> CallError:
    """Returns the error for a request that is wrong at `param`, a name in OpenAI's words."""
    trailers = {ERROR_CODE: code} if code else {}
    # A name from the client may hold any character; a trailer may not.
    if param.isascii() and param.isprintable():
        trailers[ERROR_PARAM] = param
    return CallError(Status.INVALID_ARGUMENT, message, trailers)


def wrong_kind(message: str) -> CallError:
    """Returns the error for a call that a model of this kind can't answer: INVALID_ARGUMENT at the model's name."""
    return invalid(message, param="model", code=UNSUPPORTED)


def full() -> CallError:
    """Returns the error for a call that finds no free slot: RESOURCE_EXHAUSTED, marked as refused before any work."""
    return CallError(Status.RESOURCE_EXHAUSTED, "all slots are taken", {REFUSED: REFUSED_FULL})


def draining() -> CallError:
    """Returns the error for a call during shutdown: UNAVAILABLE, marked as refused before any work."""
    return CallError(Status.UNAVAILABLE, "shutting down", {REFUSED: REFUSED_DRAINING})


def not_loaded() -> CallError:
    """Returns the error for a call that needs a model when none is loaded: FAILED_PRECONDITION."""
    return CallError(Status.FAILED_PRECONDITION, NOT_LOADED)


def identity_mismatch(wanted: str, loaded: str) -> CallError:
    """Returns the error for a call that names another model than the loaded one: NOT_FOUND."""
    return CallError(Status.NOT_FOUND, f"{IDENTITY_MISMATCH}: {wanted!r} was asked for, {loaded!r} is loaded")
