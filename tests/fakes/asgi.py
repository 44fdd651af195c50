"""ASGI without a listener: a request as a listener hands it over with what is sent back; an application of pages."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import trio

from gateway.api.http.client_watch import CLIENT_WATCH, ClientWatch
from gateway.api.http.exchange import App, Headers, Message, Receive, Scope, Send

LOCAL: Mapping[str, str] = {"host": "localhost"}


class AsgiRequest:
    """As the listener does it: the body comes in parts, and after the last byte of the answer (or when the client hangs
    up) there is one more message, `http.disconnect`."""

    def __init__(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] = LOCAL,
        body: Sequence[bytes] = (b"",),
        *,
        body_is_whole: bool = True,
    ) -> None:
        path, _, query = path.partition("?")
        raw_headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        self.client = ClientWatch()
        self.scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": raw_headers,
            "client": ("127.0.0.1", 50000),
            "server": ("127.0.0.1", 8080),
            "state": {},
            "extensions": {CLIENT_WATCH: self.client},
        }
        self.sent: list[Message] = []
        self.answering = trio.Event()
        """The first part of the answer's body was sent."""
        self._deliver, self._incoming = trio.open_memory_channel[Message](math.inf)
        for number, part in enumerate(body, start=1):
            self.deliver(part, more=number < len(body) or not body_is_whole)

    def deliver(self, part: bytes, *, more: bool) -> None:
        self._deliver.send_nowait({"type": "http.request", "body": part, "more_body": more})

    def hang_up(self) -> None:
        self._deliver.send_nowait({"type": "http.disconnect"})
        self.client.record_gone()

    async def receive(self) -> Message:
        return await self._incoming.receive()

    async def send(self, message: Message) -> None:
        await trio.lowlevel.checkpoint()
        self.sent.append(message)
        if message["type"] == "http.response.body":
            self.answering.set()
            if not message.get("more_body", False):
                self.hang_up()

    async def run(self, app: App) -> "AsgiRequest":
        await app(self.scope, self.receive, self.send)
        return self

    @property
    def status(self) -> int | None:
        """None: nothing was answered."""
        return int(self.sent[0]["status"]) if self.sent else None

    @property
    def headers(self) -> dict[str, str]:
        """Of the answer. A header that is there twice fails the test."""
        pairs: Headers = self.sent[0]["headers"]
        assert len({name for name, _ in pairs}) == len(pairs), pairs
        return {name.decode(): value.decode() for name, value in pairs}

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent[1:])

    @property
    def is_complete(self) -> bool:
        """The answer has its end."""
        return bool(self.sent) and self.sent[-1]["type"] == "http.response.body" and not self.sent[-1].get("more_body")

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error of the envelope, which has to be whole."""
        found: dict[str, Any] = self.json["error"]
        assert set(found) == {"message", "type", "param", "code"}, found
        return found


class FakeAdminApp:
    """Answers with the path; stays in `/admin_app/stay` until it is cancelled."""

    def __init__(self) -> None:
        self.lifespans = 0

    def rules(self) -> Sequence[tuple[str, str]]:
        return [("GET", "/health"), ("GET", "/pages/stay")]

    async def __call__(self, scope: Scope, receive: Receive, send: Send, /) -> None:
        if scope["type"] == "lifespan":
            self.lifespans += 1
            return
        if scope["path"] == "/pages/stay":
            await trio.sleep_forever()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": scope["path"].encode()})
