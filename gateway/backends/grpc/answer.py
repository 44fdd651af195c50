"""Reads the headers, messages and trailers of one gRPC answer. Pure."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final
from urllib.parse import unquote

from grpclib import GRPCError, Status

from gateway.backends.grpc.messages import MessageReader

STATUS_OF_HTTP: Final[Mapping[str, Status]] = MappingProxyType(
    {
        "400": Status.INTERNAL,
        "401": Status.UNAUTHENTICATED,
        "403": Status.PERMISSION_DENIED,
        "404": Status.UNIMPLEMENTED,
        "429": Status.UNAVAILABLE,
        "502": Status.UNAVAILABLE,
        "503": Status.UNAVAILABLE,
        "504": Status.UNAVAILABLE,
    }
)
"""The meaning of an HTTP status that is not 200. Others are UNKNOWN (gRPC's mapping of HTTP status codes)."""
CONTENT_TYPES: Final = frozenset({"application/grpc", "application/grpc+proto"})
NOTHING: Final[Mapping[str, str]] = MappingProxyType({})


class AnswerReader:
    """Reads one answer. Every method raises `GRPCError` if the answer is, or says, an error."""

    def __init__(self, message_bytes_max: int) -> None:
        self.trailers = NOTHING
        self._messages = MessageReader(message_bytes_max)
        self._has_headers = False

    def read_headers(self, fields: Mapping[str, str]) -> None:
        """Reads the headers, or the trailers, or the one block of an answer that consists of trailers alone."""
        if self._has_headers:
            self.trailers = fields
            return
        self._has_headers = True
        _check_http_status(fields.get(":status"))
        _check_content_type(fields.get("content-type"))
        if "grpc-status" in fields:
            self.trailers = fields

    def read_data(self, data: bytes) -> list[bytes]:
        """Returns the messages that are complete now."""
        return self._messages.read(data)

    def finish(self) -> None:
        """Reads the end of the answer. Raises `GRPCError` unless it is the end of a successful one."""
        _check_grpc_status(self.trailers)
        if not self._messages.is_between_messages:
            raise GRPCError(Status.INTERNAL, "its answer ends within a message")


def _check_http_status(status: str | None) -> None:
    if status != "200":
        code = STATUS_OF_HTTP.get(status or "", Status.UNKNOWN)
        raise GRPCError(code, f"Received :status = {status!r}")


def _check_content_type(content_type: str | None) -> None:
    if content_type is None:
        raise GRPCError(Status.UNKNOWN, "Missing content-type header")
    if content_type not in CONTENT_TYPES:
        raise GRPCError(Status.UNKNOWN, f"Invalid content-type: {content_type!r}")


def _check_grpc_status(trailers: Mapping[str, str]) -> None:
    said = trailers.get("grpc-status")
    if said == "0":
        return
    if said is None:
        raise GRPCError(Status.UNKNOWN, "Missing grpc-status header")
    try:
        status = Status(int(said))
    except ValueError:
        raise GRPCError(Status.UNKNOWN, f"Invalid grpc-status: {said!r}") from None
    if status is not Status.OK:
        message = trailers.get("grpc-message")
        raise GRPCError(status, None if message is None else unquote(message, errors="replace"))
