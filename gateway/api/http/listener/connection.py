"""One accepted connection: its handshake, its protocol, and its failures, which affect no other connection."""

from dataclasses import dataclass
from typing import Final

import structlog
import trio
from hypercorn.config import Config
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper

from gateway.api.http.listener.byte_stream import ByteStream, PlainStream, TlsStream
from gateway.api.http.listener.dropping import Dropping
from gateway.api.http.listener.http1_connection import Http1Connection
from gateway.api.http.listener.http1_request import Http1Service
from gateway.api.http.listener.http2_connection import Http2Connection
from gateway.domain.pacing import TokenBucket

log = structlog.get_logger(__name__)

HTTP2: Final = "h2"
"""The name of HTTP/2 in ALPN."""
HANDSHAKE_SECONDS: Final = 60.0
"""How long the handshake of TLS may take."""
Stream = trio.SocketStream | trio.SSLStream[trio.SocketStream]


@dataclass(frozen=True)
class Http2Service:
    """The parts that all HTTP/2 connections of a listener share, for hypercorn."""

    app: AppWrapper
    config: Config
    context: WorkerContext
    """Its `terminated` is set when the drain begins."""
    drop_pace: TokenBucket
    """The pace at which all connections throw away the rests of refused bodies."""


class ClientConnection:
    """The connection of one client."""

    __slots__ = ("_http1", "_http1_service", "_http2_service", "_stream", "_write_timeout_seconds")

    def __init__(
        self, http1: Http1Service, http2: Http2Service, stream: Stream, *, write_timeout_seconds: float
    ) -> None:
        self._http1_service = http1
        self._http2_service = http2
        self._write_timeout_seconds = write_timeout_seconds
        self._stream: Stream | ByteStream = stream
        """The stream as it is used now."""
        self._http1: Http1Connection | None = None

    async def run(self) -> None:
        """Serves the connection until it ends; an error is logged and not raised, so that other connections go on.

        A cancel together with an error arrives as a group: the error is logged, and the cancel continues (pitfall 2).
        """
        try:
            await self._serve()
        except Exception:
            log.exception("http.connection_failed")
        except BaseExceptionGroup as group:
            cancelled, failed = group.split(trio.Cancelled)
            if failed is not None:
                log.exception("http.connection_failed", exc_info=failed)
            if cancelled is not None:
                raise cancelled from None
        finally:
            await self.close_now()

    def begin_drain(self) -> None:
        """Ends the connection if it has no request. The one of HTTP/2 has been told by its context."""
        if self._http1 is not None:
            self._http1.look_around()

    async def close_now(self) -> None:
        """Closes the connection at once, without waiting for unsent data."""
        if isinstance(self._stream, ByteStream):
            self._stream.close_now()
            return
        with trio.CancelScope(shield=True):  # Closing forcefully only schedules, and never waits.
            await trio.aclose_forcefully(self._stream)

    async def _serve(self) -> None:
        stream = self._stream
        if isinstance(stream, trio.SSLStream):
            await self._serve_tls(stream)
        elif isinstance(stream, trio.SocketStream):
            plain = PlainStream(stream, self._write_timeout_seconds)
            begin = await self._serve_http1(plain, scheme="http")
            if begin:
                await self._serve_http2(plain.to_trio(), begin)

    async def _serve_tls(self, stream: trio.SSLStream[trio.SocketStream]) -> None:
        try:
            with trio.fail_after(HANDSHAKE_SECONDS):
                await stream.do_handshake()
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            await self.close_now()
            return
        if self._http1_service.speaks_http2 and stream.selected_alpn_protocol() == HTTP2:
            await self._serve_http2(stream, b"")
            return
        begin = await self._serve_http1(TlsStream(stream, self._write_timeout_seconds), scheme="https")
        if begin:
            await self._serve_http2(stream, begin)

    async def _serve_http1(self, stream: ByteStream, *, scheme: str) -> bytes:
        """Serves HTTP/1. Returns what has come instead if the client begins with HTTP/2."""
        self._stream = stream
        begin = b""
        try:
            self._http1 = Http1Connection(self._http1_service, stream, stream.addresses(), scheme=scheme)
            begin = await self._http1.run()
        except OSError:
            pass  # The client has left before it is served.
        finally:
            self._http1 = None
            if not begin:
                await stream.close()
        return begin

    async def _serve_http2(self, stream: Stream, begin: bytes) -> None:
        self._stream = stream
        service = self._http2_service
        connection = Http2Connection(
            *(service.app, service.config, service.context, stream),
            dropping=Dropping(service.drop_pace),
            write_timeout_seconds=self._write_timeout_seconds,
        )
        await connection.serve(begin)
