"""A server of one file that does what a script says, request by request, on a real socket: cuts, stalls, lies."""

import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import trio

HEAD_BYTES_MAX = 64 * 1024


@dataclass(frozen=True)
class Turn:
    """How one request is answered. The default: as it should be."""

    cut_after: int | None = None
    """Bytes of the body, then the connection ends."""
    stall_after: int | None = None
    """Bytes of the body, then nothing more, until the client hangs up."""
    status: int | None = None
    """Instead of the file; with an empty body."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Added to the answer's own, or in their place; an empty one takes its own away."""
    ignores_range: bool = False
    is_chunked: bool = False
    """Says no length, and ends in order wherever it ends: also where it is cut."""
    body: bytes | None = None
    """Instead of the server's own: the file is another one from now on."""
    etag: str | None = None
    """With `body`."""


GOOD = Turn()


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: Mapping[str, str]
    """By their names in lower case."""


@dataclass
class FileServer:
    """`script` is used up from its beginning; then all is well."""

    body: bytes
    etag: str | None = '"v1"'
    script: list[Turn] = field(default_factory=list)
    requests: list[Request] = field(default_factory=list)
    port: int = 0
    scheme: str = "http"

    @property
    def origin(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.origin}/models/weights.gguf"

    @property
    def ranges(self) -> list[str | None]:
        """What was asked for, request by request."""
        return [request.headers.get("range") for request in self.requests]

    async def serve(self, stream: trio.abc.Stream) -> None:
        async with stream:
            try:
                request = await _read_request(stream)
                if request is not None:
                    self.requests.append(request)
                    await self._answer(stream, request, self.script.pop(0) if self.script else GOOD)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass  # the client has hung up

    async def _answer(self, stream: trio.abc.Stream, request: Request, turn: Turn) -> None:
        if turn.body is not None:
            self.body, self.etag = turn.body, turn.etag
        status, headers, body = self._answer_to(request, turn)
        coding = {"content-length": "", "transfer-encoding": "chunked"} if turn.is_chunked else {}
        said = {**headers, "connection": "close", **coding, **turn.headers}
        lines = [f"HTTP/1.1 {status} X", *(f"{name}: {value}" for name, value in said.items() if value)]
        await stream.send_all("\r\n".join([*lines, "", ""]).encode())
        end = min(each for each in (turn.cut_after, turn.stall_after, len(body)) if each is not None)
        await stream.send_all(b"%x\r\n%b\r\n0\r\n\r\n" % (end, body[:end]) if turn.is_chunked else body[:end])
        if turn.stall_after is not None:
            await stream.receive_some()

    def _answer_to(self, request: Request, turn: Turn) -> tuple[int, dict[str, str], bytes]:
        if turn.status is not None:
            return turn.status, {"content-length": "0"}, b""
        named = {"etag": self.etag} if self.etag is not None else {}
        first = self._first_byte(request, turn)
        if first is None:
            return 200, {**named, "content-length": str(len(self.body))}, self.body
        if first >= len(self.body):
            return 416, {"content-range": f"bytes */{len(self.body)}", "content-length": "0"}, b""
        rest = self.body[first:]
        place = f"bytes {first}-{len(self.body) - 1}/{len(self.body)}"
        return 206, {**named, "content-length": str(len(rest)), "content-range": place}, rest

    def _first_byte(self, request: Request, turn: Turn) -> int | None:
        asked = request.headers.get("range")
        if asked is None or turn.ignores_range or request.headers.get("if-range", self.etag) != self.etag:
            return None
        return int(asked.removeprefix("bytes=").rstrip("-"))


async def _read_request(stream: trio.abc.Stream) -> Request | None:
    head = b""
    while b"\r\n\r\n" not in head:
        data = await stream.receive_some()
        if not data or len(head) > HEAD_BYTES_MAX:
            return None
        head += data
    first, *lines = head.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ")
    pairs = (line.partition(":") for line in lines)
    return Request(method, path, {name.strip().lower(): value.strip() for name, _, value in pairs})


@asynccontextmanager
async def open_file_server(
    body: bytes, *script: Turn, etag: str | None = '"v1"', tls: ssl.SSLContext | None = None
) -> AsyncIterator[FileServer]:
    server = FileServer(body, etag, list(script))
    (plain,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    server.port = plain.socket.getsockname()[1]
    listener: trio.abc.Listener[trio.abc.Stream] = plain
    if tls is not None:
        server.scheme = "https"
        listener = trio.SSLListener(plain, tls, https_compatible=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, server.serve, [listener])
        yield server
        nursery.cancel_scope.cancel()


def redirect_to(url: str, status: int = 302) -> Turn:
    return replace(GOOD, status=status, headers={"location": url})
