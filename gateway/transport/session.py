"""One session at the gateway: an asyncio half that owns the stream, a Trio half that serves, and the end of both."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import structlog
import trio
from grpclib import Status
from grpclib.exceptions import StreamTerminatedError
from grpclib.server import Stream

from gateway.bridge import AioReceiver, AioSender
from gateway.domain.causes import leaves
from gateway.domain.session import FromWorker, Hello, Report, SessionRefused, ToWorker
from gateway.transport import codec as wire
from gateway.transport import stream_pump as pump
from gateway.transport.advertised import AdvertisedHost, checked_hello
from gateway.transport.pb import worker_pb2 as pb
from gateway.transport.stream_pump import WAITING_MAX, StreamFailed

log = structlog.get_logger(__name__)

Serve = Callable[[Hello, trio.MemorySendChannel[ToWorker], trio.MemoryReceiveChannel[FromWorker]], Awaitable[None]]
"""A Trio function that serves one worker until its records end, then returns. Its first record to the worker opens the
session there, so it has to come soon. It may raise `SessionRefused` at any time."""
AttachStream = Stream[pb.FromWorker, pb.ToWorker]

END_SECONDS: Final = 5.0
"""How long `serve` may go on after the stream has ended, before it is cancelled."""
FLUSH_SECONDS: Final = 1.0
"""How long the last records may take to be sent after `serve` has ended."""


@dataclass(frozen=True)
class SessionEnd:
    """How a session ended, in the form that the worker gets."""

    status: Status
    message: str = ""


CLOSING: Final = SessionEnd(Status.UNAVAILABLE, "the gateway stops")


class Session:
    """One session. It is made on the asyncio side when the worker has sent its hello. The first end counts."""

    def __init__(self, hello: Hello, advertised: AdvertisedHost) -> None:
        self.hello = checked_hello(hello, advertised)
        self._advertised = advertised
        self._to_worker, outgoing = trio.open_memory_channel[ToWorker](WAITING_MAX)
        incoming, self._from_worker = trio.open_memory_channel[FromWorker](WAITING_MAX)
        self._receiver, self._sender = AioReceiver(outgoing), AioSender(incoming)
        self._scope = trio.CancelScope()
        self._end: asyncio.Future[SessionEnd] = asyncio.get_running_loop().create_future()
        self._served = False

    def end(self, how: SessionEnd) -> None:
        """Ends the session in the way that `how` says, which the worker gets. Further calls change nothing."""
        if not self._end.done():
            self._end.set_result(how)

    async def run_aio(self, stream: AttachStream, silence_seconds: float) -> SessionEnd:
        """Runs the half of the stream until the session ends. A worker that vanished cancels it."""
        reading = asyncio.create_task(self._read_aio(stream, silence_seconds))
        writing = asyncio.create_task(self._write_aio(stream, silence_seconds))
        try:
            how = await self._end
            if self._served:
                await asyncio.wait({writing}, timeout=FLUSH_SECONDS)
            return how
        finally:
            reading.cancel()
            writing.cancel()
            self._record_end_of_stream()  # This is before any wait: a connection that also breaks cancels this again.
            await pump.end_tasks_aio(reading, writing)

    async def run(self, serve: Serve) -> None:
        """Runs the serving half. It raises nothing, because a failed session must not affect others."""
        try:
            with self._scope, self._to_worker, self._from_worker:
                await serve(self.hello, self._to_worker, self._from_worker)
            if self._scope.cancelled_caught:
                log.warning("session.handler_timeout", node=self.hello.name, seconds=END_SECONDS)
            self._end_serving(SessionEnd(Status.OK))
        except* SessionRefused as refusals:
            self._end_serving(_end_of(next(leaves(refusals))))
        except* Exception:
            if not self._end.done():  # Otherwise the stream ended first, and that is the reason.
                log.exception("session.handler_failed", node=self.hello.name)
            self._end_serving(SessionEnd(Status.ABORTED, "the gateway failed to serve this session; its log says why"))

    def _end_serving(self, how: SessionEnd) -> None:
        self._served = True
        self.end(how)

    async def _read_aio(self, stream: AttachStream, silence_seconds: float) -> None:
        try:
            await pump.read_aio(stream, self._read, self._sender, silence_seconds)
        except Exception as error:  # noqa: BLE001 - `_fail` logs it
            self._fail(error)
        finally:
            self._sender.close()
            self._expect_end()

    def _read(self, message: pb.FromWorker) -> FromWorker | None:
        """Decodes and checks one message. Raises `MessageRefused`."""
        record = wire.read_from_worker(message)
        return self._advertised.checked(record) if isinstance(record, Report) else record

    async def _write_aio(self, stream: AttachStream, silence_seconds: float) -> None:
        try:
            await pump.write_aio(stream, wire.to_worker_message, self._receiver, silence_seconds)
        except Exception as error:  # noqa: BLE001 - `_fail` logs it
            self._fail(error)
        finally:
            self._receiver.close()

    def _fail(self, error: Exception) -> None:
        """Records that reading or writing ended early."""
        if isinstance(error, StreamFailed):
            self.end(SessionEnd(error.status, str(error)))
        elif isinstance(error, StreamTerminatedError | OSError):
            self.end(SessionEnd(Status.ABORTED, str(error)))
        else:
            log.error("session.failed", node=self.hello.name, exc_info=error)
            self.end(SessionEnd(Status.INTERNAL, "the gateway failed to handle this session; its log says why"))

    def _record_end_of_stream(self) -> None:
        self._sender.close()
        self._receiver.close()
        self._expect_end()

    def _expect_end(self) -> None:
        """Ends the channel that `serve` reads. If `serve` does not end then, it is cancelled."""
        self._scope.deadline = min(self._scope.deadline, trio.current_time() + END_SECONDS)


def _end_of(refusal: BaseException) -> SessionEnd:
    again = isinstance(refusal, SessionRefused) and refusal.register_again
    return SessionEnd(Status.NOT_FOUND if again else Status.PERMISSION_DENIED, str(refusal))
