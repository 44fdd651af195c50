"""The events that the bytes of a connection are for its calls. Pure."""

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias


class HeadersReceived(NamedTuple):
    """The headers or the trailers of an answer have arrived."""

    stream_id: int
    fields: Mapping[str, str]
    is_end: bool
    """Whether the answer is complete with them."""


class DataReceived(NamedTuple):
    """A part of an answer has arrived. It has to be acknowledged (`acknowledge`)."""

    stream_id: int
    data: bytes
    is_end: bool


class StreamBroken(NamedTuple):
    """The answer of one stream has ended before its time."""

    stream_id: int
    text: str
    is_processed: bool
    """Whether the backend may have worked on the call. False means that it says that it has not."""


class ConnectionBroken(NamedTuple):
    """The connection is unusable. All its streams have ended. It is always the last event."""

    text: str


Event: TypeAlias = HeadersReceived | DataReceived | StreamBroken | ConnectionBroken
