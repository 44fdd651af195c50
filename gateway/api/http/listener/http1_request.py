"""One HTTP/1 request as ASGI has it: the scope, and the two functions that an application calls."""

import time
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote

import trio

from gateway.api.http.client_watch import CLIENT_WATCH, ClientWatch
from gateway.api.http.exchange import App, Message, Scope
from gateway.api.http.listener.byte_stream import Address, ByteStream
from gateway.api.http.listener.http1_head import Head
from gateway.api.http.listener.http1_input import Http1Input
from gateway.api.http.listener.http1_parser import BodyPart
from gateway.api.http.listener.http1_response import CONTINUE, Clock, Http1Response
from gateway.domain.pacing import TokenBucket

ASGI: Final = {"version": "3.0", "spec_version": "2.1"}
DISCONNECT: Final = "http.disconnect"
PARTS_AT_ONCE: Final = 32
"""How many parts of a response may be sent before other tasks have their turn."""


@dataclass
class Http1Service:
    """The parts that all HTTP/1 connections of a listener share."""

    app: App
    head_timeout_seconds: float
    """How long a request's head may take to arrive, and how long a connection may have no request."""
    speaks_http2: bool
    """Whether a connection may begin with HTTP/2."""
    drop_pace: TokenBucket
    """The pace at which all connections throw away the rests of refused bodies."""
    clock: Clock = field(default_factory=Clock)
    is_ending: bool = False
    """Whether each connection ends with its next response."""
    is_draining: bool = False
    """Whether idle connections end at once as well."""


class Http1Request:
    """The request that a connection serves at the moment."""

    __slots__ = (
        *("_awaits_continue", "_body_was_read", "_input", "_keeps_alive", "_parts", "_service", "_stream"),
        *("is_complete", "response"),
    )

    def __init__(self, head: Head, service: Http1Service, incoming: Http1Input, stream: ByteStream) -> None:
        self._service = service
        self._input = incoming
        self._stream = stream
        self._keeps_alive = head.keeps_alive
        self._awaits_continue = head.awaits_continue
        self._body_was_read = False
        """Whether the application has got the last part of the body."""
        self._parts = 0
        self.response = Http1Response(is_to_head=head.method == "HEAD", is_http_1_0=head.version == "1.0")
        self.is_complete = False
        """Whether the last part of the response was sent."""

    async def receive(self) -> Message:
        """Waits for the next message of the request: a part of its body, or the disconnect (ASGI's `receive`).

        Once the response has begun, the rest of the body is dropped, and its parts are empty.
        """
        if self._awaits_continue and not self.response.has_begun:
            self._awaits_continue = False
            await self._write(CONTINUE)
        while not self._body_was_read:
            message = self._dropped_part() if self.response.has_begun else self._next_part()
            if message is not None:
                if not self._body_was_read:
                    await trio.lowlevel.checkpoint()  # A body that is all there, in small parts, is not read in one go.
                return message
            await self._input.changed.wait()
        while not (self._input.is_gone or self.is_complete):
            await self._input.changed.wait()
        return {"type": DISCONNECT}

    def _next_part(self) -> Message | None:
        """Returns the part of the body that has come, or None if more has to come first."""
        if not self._input.body_is_open:
            self._body_was_read = True
            return {"type": "http.request", "body": b"", "more_body": False}
        event = self._input.next_event()
        if isinstance(event, BodyPart):
            self._body_was_read = event.is_last
            return {"type": "http.request", "body": event.data, "more_body": not event.is_last}
        return {"type": DISCONNECT} if event is not None or self._input.is_gone else None

    def _dropped_part(self) -> Message | None:
        if not self._input.body_is_open:
            self._body_was_read = True
            return {"type": "http.request", "body": b"", "more_body": False}
        if self._input.is_gone:
            return {"type": DISCONNECT}
        if self._input.dropped_parts:
            self._input.dropped_parts = 0
            return {"type": "http.request", "body": b"", "more_body": True}
        return None

    async def send(self, message: Message) -> None:
        """Sends a message of the response (ASGI's `send`). The head goes out with the first part of the body."""
        if message["type"] == "http.response.start":
            await self._input.drop_rest()
            self._begin(message)
            return
        is_last = not message.get("more_body", False)
        data = self.response.encode(message.get("body", b""), is_last=is_last)
        if data:
            await self._write(data)
        if self._input.body_is_open and self.response.is_whole and self.response.closes:
            self._stream.end_output()  # The rest of the body is read for a while, so that the client sees the answer.
        if is_last:
            self.is_complete = True
            self._input.changed.wake()  # A task of the application may wait for the disconnect.
        else:
            await self._give_way()

    def _begin(self, message: Message) -> None:
        closes = not self._keeps_alive or self._service.is_ending or self._input.body_is_open or self._input.is_gone
        date_line = self._service.clock.date_line(time.time())
        self.response.begin(message["status"], message.get("headers", ()), closes=closes, date_line=date_line)

    async def _write(self, data: bytes) -> None:
        if not await self._stream.send(data):
            self._input.record_gone()

    async def _give_way(self) -> None:
        """Lets other tasks run now and then. An application whose client has left notices it here at the latest."""
        self._parts += 1
        if self._parts >= PARTS_AT_ONCE or self._input.is_gone:
            self._parts = 0
            await trio.lowlevel.checkpoint()


def build_scope(head: Head, scheme: str, addresses: tuple[Address, Address], watch: ClientWatch) -> Scope:
    """Returns the ASGI scope of a request. `addresses` are those of the client and of this end."""
    path, _, query = head.target.partition(b"?")
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": ASGI,
        "http_version": head.version,
        "method": head.method,
        "scheme": scheme,
        "path": unquote(path.decode("ascii")) if b"%" in path else path.decode("ascii"),
        "raw_path": path,
        "query_string": query,
        "root_path": "",
        "headers": head.headers,
        "client": addresses[0],
        "server": addresses[1],
        "state": {},
        "extensions": {CLIENT_WATCH: watch},
    }
    return scope
