"""Frames JSON as server-sent events (WHATWG HTML, "Server-sent events"), the way OpenAI's clients read them."""

from typing import Final

MEDIA_TYPE: Final = "text/event-stream"

DONE: Final = b"data: [DONE]\n\n"
"""The end of a successful stream. A failed stream ends after its error event, without this."""

KEEPALIVE: Final = b": keep-alive\n\n"
"""A comment, which readers of a stream skip."""

_LINE_BREAKS_TO_SOME: Final = (
    ("\u2028".encode(), rb"\u2028"),
    ("\u2029".encode(), rb"\u2029"),
    ("\u0085".encode(), rb"\u0085"),
)
"""The characters that are allowed raw in JSON and end no line of an event stream. But `str.splitlines`, and readers
that use it, cut there."""


def event(data: bytes) -> bytes:
    """Returns one event that carries `data`, a JSON text.

    Raises `ValueError` on a raw line end, which would break the framing. JSON from an encoder never has one.
    """
    if b"\n" in data or b"\r" in data:
        raise ValueError("an event's JSON must be on one line")
    if not data.isascii():
        for raw, escaped in _LINE_BREAKS_TO_SOME:
            data = data.replace(raw, escaped)
    return b"data: " + data + b"\n\n"


def whole_events(data: bytes) -> tuple[bytes, bytes]:
    """Splits a part of a gateway's own event stream into whole events and the beginning of the next one."""
    whole, end, begun = data.rpartition(b"\n\n")
    return whole + end, begun
