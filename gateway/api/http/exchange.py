"""One HTTP request and its response, over plain ASGI."""

import math
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from contextlib import suppress
from io import BytesIO
from typing import Any, Final
from urllib.parse import parse_qsl

import trio

from gateway.api.http.bodies import BodyCharge
from gateway.api.http.browser_guard import check_json
from gateway.api.http.client_watch import CLIENT_WATCH, ClientWatch
from gateway.api.http.event_stream import KEEPALIVE
from gateway.domain.errors import BadRequest, GatewayError, HeadersTooLarge, PayloadTooLarge, RequestTimeout
from gateway.domain.ids import ModelName, RequestId, new_id

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Any, Any, Any], Awaitable[None]]
"""An ASGI application. It is loosely typed on purpose: each framework has its own types for the three arguments."""
Headers = list[tuple[bytes, bytes]]
EncodeError = Callable[[GatewayError], bytes]
"""A dialect's error object as JSON: the body of an error response, and the data of the event that ends a failed stream.
"""

JSON = b"application/json"
EVENT_STREAM = b"text/event-stream; charset=utf-8"
UNBUFFERED: Final = (b"x-accel-buffering", b"no")  # for nginx, the usual proxy in front
EVENT_STREAM_HEAD: Final = ((b"content-type", EVENT_STREAM), (b"cache-control", b"no-store"), UNBUFFERED)

HEADER_BYTES_MAX: Final = 32 * 1024
"""The limit of all headers together. The listener's own limit is not strict (pitfall 35)."""
REQUEST_ID_CHARS_MAX: Final = 128
QUERY_FIELDS_MAX: Final = 64
LENGTH_DIGITS_MAX: Final = 18
"""The largest number of digits of an announced length. It is more than any limit, and Python refuses to read
thousands."""
REQUEST_ID: Final = b"x-request-id"
LINGER_SECONDS: Final = 30.0
"""How long the rest of a body is read and dropped after an early answer."""
LINGER_IDLE_SECONDS: Final = 5.0
"""The same if no more data comes."""


class ClientGone(Exception):
    """The client hung up before its request was complete."""


class HeadAnswered(Exception):
    """A request with the method HEAD has its answer, whose body nobody needs to compute."""


class Exchange:
    """One request and its response, for handlers. It tracks what has been sent, because an error after the first byte
    takes another form."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        params: Mapping[str, str],
        encode_error: EncodeError,
    ) -> None:
        """`params` are the values of each `{name}` in the route's path, and `encode_error` is that of its dialect."""
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.scheme: str = scope["scheme"]
        self.peer: str = str((scope.get("client") or ("unknown",))[0])
        """The address from which the request came: a proxy's, if there is one."""
        self._headers: dict[bytes, bytes] = {name.lower(): value for name, value in scope["headers"]}
        self._header_bytes = sum(len(name) + len(value) for name, value in scope["headers"])
        self.params = params
        self.encode_error = encode_error
        self._query_string: bytes = scope.get("query_string", b"")
        self._receive = receive
        self._send = send
        length = self._headers.get(b"content-length", b"")
        self.announced_bytes = int(length.lstrip(b"0")[:LENGTH_DIGITS_MAX] or b"0") if length.isdigit() else None
        """The size of the body by the request's head. None if the head does not say."""
        self._client: ClientWatch = scope["extensions"][CLIENT_WATCH]
        self._unread = b"transfer-encoding" in self._headers or self._headers.get(b"content-length", b"0") != b"0"
        """Whether the headers announce a body whose end has not been seen."""
        self.request_id = self._accept_request_id()
        self.started_at = trio.current_time()
        self.status: int | None = None
        """The status of the response, once its head was sent."""
        self.complete = False
        """Whether the whole response was sent."""
        self.closing = False
        """Whether the connection must not be used again after this response."""
        self.is_event_stream = False
        self.silent_since = math.inf
        """The time since which a stream waits for its backend (Trio's clock). Infinity while it does not wait."""
        self._comment_written: trio.Event | None = None
        """Set at the end of the comment that another task is writing."""
        self.response_headers: Headers = [(REQUEST_ID, self.request_id.encode())]
        """The headers of every response to this request, from any handler."""
        self.route = "other"
        """The route's path, for the metrics; paths that no route names must not become labels."""
        self.model: ModelName | None = None
        """The model for the metrics, only if it exists."""
        self.notes: dict[str, object] = {}
        """The fields of the request's log line."""
        self.charge: BodyCharge | None = None
        """The charge of the request's body, while that is read and answered."""
        self.failed = False
        """Whether the response ended with an error after it had begun."""

    def _accept_request_id(self) -> RequestId:
        given = self._headers.get(REQUEST_ID, b"")
        if 0 < len(given) <= REQUEST_ID_CHARS_MAX and all(0x20 <= byte < 0x7F for byte in given):
            return RequestId(given.decode("ascii"))
        return RequestId(new_id())

    def count_for(self, model: ModelName) -> None:
        """Has the metrics count the request for `model`, which has to exist."""
        self.model = model

    def header(self, name: str) -> str | None:
        """Returns the value of a request header, whose `name` is in lower case. Returns None if it is absent."""
        value = self._headers.get(name.encode())
        return None if value is None else value.decode("latin-1")

    @property
    def query(self) -> Mapping[str, str]:
        """The fields of the URL's query string. A repeated name has its last value.

        Raises `BadRequest` for an absurd number of names.
        """
        try:
            return dict(
                parse_qsl(self._query_string.decode("latin-1"), keep_blank_values=True, max_num_fields=QUERY_FIELDS_MAX)
            )
        except ValueError:
            raise BadRequest("The query string of the URL can't be read.") from None

    def check_headers(self) -> None:
        """Raises `HeadersTooLarge` if the request's headers have more than `HEADER_BYTES_MAX` bytes together."""
        if self._header_bytes > HEADER_BYTES_MAX:
            raise HeadersTooLarge(f"The request's headers have more than {HEADER_BYTES_MAX} bytes.")

    def check_length(self, bytes_max: int) -> None:
        """Raises `PayloadTooLarge` if the head announces more."""
        if (self.announced_bytes or 0) > bytes_max:
            self._refuse_size(bytes_max)

    def _refuse_size(self, bytes_max: int) -> None:
        self.closing = True
        raise PayloadTooLarge(f"The request's body has more than {bytes_max} bytes.")

    async def read_body(self, bytes_max: int, timeout_seconds: float, charge: BodyCharge) -> bytes:
        """Reads the whole body, and records in `charge` how much of it has arrived. Raises `PayloadTooLarge`,
        `NoRoomForBody`, `RequestTimeout`, `ClientGone`, and `UnsupportedMediaType` for one whose type the head does not
        give.

        The whole body has to be read before anything else: a disconnect behind unread body is never seen (pitfall 9).
        """
        self._unread = True
        with (
            BytesIO() as buffer
        ):  # A refusal empties it: the error's traceback would keep it while the rest is dropped.
            with trio.move_on_after(timeout_seconds) as scope:
                while self._unread:
                    message = await self._next_message()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    buffer.write(message.pop("body", b""))  # The frame of an error must not keep the part, either.
                    if buffer.tell() > bytes_max:
                        self._refuse_size(bytes_max)
                    charge.record_arrived(buffer.tell())
            if scope.cancelled_caught:
                self.closing = True
                raise RequestTimeout(f"The request's body did not arrive within {timeout_seconds:g} s.")
            if buffer.tell():
                check_json(self.header("content-type"))
            return buffer.getvalue()  # no copy

    async def _next_message(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._unread = False
        return message

    def cancel_when_client_leaves(self, scope: trio.CancelScope) -> None:
        """Has `scope` cancelled if the client leaves before it has the whole response."""
        self._client.cancel_when_gone(scope)

    async def _wait_disconnect(self) -> None:
        while (await self._next_message())["type"] != "http.disconnect":
            pass

    async def respond(
        self, status: int, body: bytes, content_type: bytes = JSON, headers: Headers | None = None
    ) -> None:
        """Sends the whole response. If the request's body was not read to its end, the connection ends.

        Closing a socket with unread data resets the connection, and a client that still sends would never see the
        answer. So the rest of the body is read for a while, between the answer and the close.
        """
        self.closing = self.closing or self._unread
        length = (b"content-length", str(len(body)).encode())
        head = [(b"content-type", content_type), length, *(headers or [])]
        await self.send_message({"type": "http.response.start", "status": status, "headers": head})
        if self._unread:
            await self._respond_early(body)
        else:
            await self.send_message({"type": "http.response.body", "body": body, "more_body": False})

    async def _respond_early(self, body: bytes) -> None:
        """Responds before the end of the body. The reading continues until the connection knows of the end, because
        closing it would otherwise wait for ever for a part of the body that nobody reads."""
        await self.send_part(body)
        await self._drop_rest()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._wait_disconnect)
            await self.end_stream()
            nursery.cancel_scope.cancel()

    async def _drop_rest(self) -> None:
        with trio.move_on_after(LINGER_SECONDS), suppress(trio.TooSlowError):
            while self._unread:
                with trio.fail_after(LINGER_IDLE_SECONDS):
                    await self._next_message()

    async def start_event_stream(self, headers: Headers | None = None) -> None:
        """Sends the head of a response with status 200 whose body is a stream of server-sent events. If a comment has
        begun the response, its head cannot take more headers, and nothing is sent."""
        if self.status is None:
            await self.send_head(200, [*EVENT_STREAM_HEAD, *(headers or [])], is_event_stream=True)

    def record_silence(self, since: float) -> None:
        """Notes that the stream waits for its backend, and since when (Trio's clock). The next part of it ends that."""
        self.silent_since = since

    async def send_comment(self) -> None:
        """Sends a comment of an event stream, and the head before it if there was none. The caller is another task than
        the handler's, so what the handler sends waits until the comment is written."""
        written = self._comment_written = trio.Event()
        try:
            if self.status is None:
                self.status, self.is_event_stream = 200, True
                head = [*EVENT_STREAM_HEAD, *self.response_headers]
                await self._send({"type": "http.response.start", "status": 200, "headers": head})
            await self._send({"type": "http.response.body", "body": KEEPALIVE, "more_body": True})
        finally:
            self._comment_written = None
            written.set()

    async def send_head(self, status: int, headers: Headers, *, is_event_stream: bool = False) -> None:
        """Sends the status and the headers of the response. With `is_event_stream`, an error is sent as an event.

        Raises `HeadAnswered` for the method HEAD.
        """
        self.is_event_stream = is_event_stream
        await self.send_message({"type": "http.response.start", "status": status, "headers": headers})
        if self.method == "HEAD":
            await self.end_stream()
            raise HeadAnswered

    async def send_part(self, data: bytes) -> None:
        """Sends one part of the response's body, which is not the last."""
        await self.send_message({"type": "http.response.body", "body": data, "more_body": True})

    async def end_stream(self, data: bytes = b"") -> None:
        """Sends the last part of the response's body, which may be empty, and ends the response."""
        await self.send_message({"type": "http.response.body", "body": data, "more_body": False})

    async def send_message(self, message: Message) -> None:
        """Sends one message of the response. Every one but a comment goes through here, including those of the Quart
        application."""
        self.silent_since = math.inf
        if self._comment_written is not None:
            await self._comment_written.wait()
        if message["type"] == "http.response.start":
            self.status = message["status"]
            closing = [(b"connection", b"close")] if self.closing else []
            message = {**message, "headers": [*message["headers"], *self.response_headers, *closing]}
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            self.complete = True
            self._client.release()
        await self._send(message)

    @property
    def outcome(self) -> str:
        """The HTTP status, or `error` if the response failed after its first byte, or `cancelled` if the client
        left."""
        if self.failed:
            return "error"
        return str(self.status) if self.complete else "cancelled"

    @property
    def receive(self) -> Receive:
        """The ASGI `receive` of the request, for an application that reads the body itself."""
        return self._receive
