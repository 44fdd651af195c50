"""One HTTP/1 connection: a task that reads (`http1_input`) and a task that serves one request after the other."""

import time
from typing import Final

import structlog
import trio

from gateway.api.http.client_watch import ClientWatch
from gateway.api.http.listener.byte_stream import Address, ByteStream
from gateway.api.http.listener.dropping import Dropping
from gateway.api.http.listener.http1_head import Head
from gateway.api.http.listener.http1_input import Http1Input
from gateway.api.http.listener.http1_parser import BodyPart, Fault, Http1Parser, Preface
from gateway.api.http.listener.http1_request import Http1Request, Http1Service, build_scope
from gateway.api.http.listener.http1_response import encode_refusal

log = structlog.get_logger(__name__)

INTERNAL_ERROR: Final = 500


class Http1Connection:
    """The connection of one client."""

    __slots__ = ("_addresses", "_input", "_scheme", "_service", "_stream")

    def __init__(
        self, service: Http1Service, stream: ByteStream, addresses: tuple[Address, Address], *, scheme: str
    ) -> None:
        """`addresses` are those of the client and of this end."""
        self._service = service
        self._stream = stream
        self._addresses = addresses
        self._scheme = scheme
        parser = Http1Parser(speaks_http2=service.speaks_http2)
        timeout = service.head_timeout_seconds
        self._input = Http1Input(stream, parser, Dropping(service.drop_pace), head_timeout_seconds=timeout)

    async def run(self) -> bytes:
        """Serves the connection until it ends. Returns what has come instead if the client begins with HTTP/2."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._input.run)
            is_http2 = await self._serve_requests()
            nursery.cancel_scope.cancel()
        return self._input.take_rest() if is_http2 else b""

    def look_around(self) -> None:
        """Has an idle connection end, once the drain has begun."""
        self._input.changed.wake()

    async def _serve_requests(self) -> bool:
        """Serves requests until the connection has to end. Returns whether it goes on with HTTP/2."""
        while True:
            event = await self._next_request()
            if isinstance(event, Head):
                if not await self._serve(event):
                    return False
                del event  # An idle connection does not keep its last request.
            elif isinstance(event, Fault):
                await self._refuse(event.status)
                return False
            else:
                return event is not None

    async def _next_request(self) -> Head | Fault | Preface | None:
        """Waits for the next request. Returns None if there will be none. Requests that have come in one go do not keep
        other tasks from their turn."""
        is_waiting = False
        while True:
            event = self._input.next_event()
            if event is not None:
                if not is_waiting:
                    await trio.lowlevel.checkpoint()
                assert not isinstance(event, BodyPart)  # noqa: S101 - a body ends with its request
                return event
            if self._input.is_gone or self._service.is_draining:
                return None
            is_waiting = True
            await self._input.changed.wait()

    async def _serve(self, head: Head) -> bool:
        """Serves one request, and returns whether another one may follow."""
        watch = ClientWatch()
        self._input.begin_request(head, watch)
        request = Http1Request(head, self._service, self._input, self._stream)
        try:
            scope = build_scope(head, self._scheme, self._addresses, watch)
            await self._service.app(scope, request.receive, request.send)
        except Exception:
            log.exception("http.request_failed")
        self._input.end_request()
        return await self._end(request)

    async def _end(self, request: Http1Request) -> bool:
        """Answers for an application that has not, and returns whether the connection stays."""
        if not request.response.has_begun and not self._input.is_gone:
            fault = self._input.next_event() if self._input.body_is_open else None
            await self._refuse(fault.status if isinstance(fault, Fault) else INTERNAL_ERROR)
        return request.is_complete and not request.response.closes and not self._input.is_gone

    async def _refuse(self, status: int) -> None:
        if await self._stream.send(encode_refusal(status, self._service.clock.date_line(time.time()))):
            self._stream.end_output()
            await self._input.drop_all()
