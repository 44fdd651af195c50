"""The worker's end of a session: one connection, one call, and two channels between the call and the worker.

The whole call is one asyncio function behind the bridge. An error on entering is raised; a later one is in
`SessionChannels.error`. Leaving never waits for a gateway that does not answer (pitfalls 21, 38).
"""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import structlog
import trio
from grpclib import GRPCError, Status
from grpclib.client import Channel, Stream
from grpclib.exceptions import StreamTerminatedError

from gateway.bridge import AioReceiver, AioSender, Bridge
from gateway.domain.session import FromWorker, Hello, SessionEnded, SessionRefused, ToWorker
from gateway.transport import codec as wire
from gateway.transport import stream_pump as pump
from gateway.transport.errors import SessionLost
from gateway.transport.limits import CONFIGURATION, bound_messages, cut
from gateway.transport.node_credentials import session_metadata
from gateway.transport.pb import worker_pb2 as pb
from gateway.transport.pb.worker_grpc import WorkerSessionStub
from gateway.transport.stream_pump import WAITING_MAX, StreamFailed

log = structlog.get_logger(__name__)

WELCOME_SECONDS: Final = 10.0
"""How long the gateway may take to send its first message. A connection alone proves nothing: the kernel accepts it for
a process that is stopped."""
FLUSH_SECONDS: Final = 2.0
"""How long leaving waits for the gateway to confirm that it has received everything."""

_REGISTER_AGAIN: Final = frozenset({Status.UNAUTHENTICATED, Status.NOT_FOUND})
_REFUSED: Final = frozenset({Status.PERMISSION_DENIED, Status.FAILED_PRECONDITION, Status.UNIMPLEMENTED})


@dataclass
class SessionChannels:
    """The two channels of an open session at its worker.

    When the session is over, `send` raises `trio.BrokenResourceError` and `receive` ends.
    """

    send: trio.MemorySendChannel[FromWorker]
    receive: trio.MemoryReceiveChannel[ToWorker]
    error: SessionEnded | None = None
    """The reason why the session is over. It is set before the channels end."""


@asynccontextmanager
async def open_session(
    bridge: Bridge,
    address: str,
    *,
    credential: str,
    hello: Hello,
    silence_seconds: float,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[SessionChannels]:
    """Opens a session with the gateway at `address` (`host:port`). It is entered once the gateway's first message is
    there, for `receive`.

    Leaving without an exception delivers what is in `send`, of which no clone may be open, within `FLUSH_SECONDS`. The
    session is lost if for `silence_seconds` nothing came from the gateway, or it took nothing.

    Raises `SessionLost`, `SessionRefused`, on entering only.
    """
    send, outgoing = trio.open_memory_channel[FromWorker](WAITING_MAX)
    incoming, receive = trio.open_memory_channel[ToWorker](WAITING_MAX)
    channels = SessionChannels(send, receive)
    call = _AttachCall(
        address=address,
        credential=credential,
        hello=hello,
        silence_seconds=silence_seconds,
        tls=tls,
        receiver=AioReceiver(outgoing),
        sender=AioSender(incoming),
        channels=channels,
    )
    with send, receive, outgoing, incoming:
        async with bridge.open_task(call.run_aio):
            await call.wait_welcome()
            yield channels
            send.close()
            receive.close()
            with trio.move_on_after(FLUSH_SECONDS):
                await call.ended.wait()


class _Ended(StreamTerminatedError):
    """The gateway has ended its side. For an error of this type, grpclib looks for the status that came with it."""


@dataclass
class _AttachCall:
    """One `Attach` call, from connecting to hanging up."""

    address: str
    credential: str
    hello: Hello
    silence_seconds: float
    tls: ssl.SSLContext | None
    receiver: AioReceiver[FromWorker]
    sender: AioSender[ToWorker]
    channels: SessionChannels

    def __post_init__(self) -> None:
        self._first_message = False
        self._first_message_or_end = trio.Event()
        self.ended = trio.Event()

    async def wait_welcome(self) -> None:
        """Waits for the gateway's first message. Raises `SessionLost`, `SessionRefused`."""
        with trio.move_on_after(WELCOME_SECONDS):
            await self._first_message_or_end.wait()
        if not self._first_message:
            raise self.channels.error or SessionLost(
                f"the gateway at {self.address} did not answer within {WELCOME_SECONDS:g} s"
            )

    async def run_aio(self) -> None:
        """Runs the call to its end, and records why it ended."""
        try:
            await self._call_aio()
        except Exception as error:  # noqa: BLE001 - `_reason` logs what it does not know
            self.channels.error = _reason(error, self.address)
        finally:
            self.receiver.close()
            self.sender.close()
            self._first_message_or_end.set()
            self.ended.set()

    async def _call_aio(self) -> None:
        """Runs the call. It always raises, because a session only ends with an error, even if that is the gateway's
        goodbye."""
        host, port = _host_and_port(self.address)
        metadata = session_metadata(self.credential, self.hello.node_id, self.hello.boot_id)
        channel = Channel(host, port, ssl=self.tls, config=CONFIGURATION)
        try:
            async with WorkerSessionStub(channel).Attach.open(metadata=metadata) as stream:
                await stream.send_request()
                await self._exchange_aio(stream)
        finally:
            channel.close()

    async def _exchange_aio(self, stream: Stream[pb.FromWorker, pb.ToWorker]) -> None:
        bound_messages(stream)
        try:
            await pump.send_aio(stream, wire.hello_message(self.hello), self.silence_seconds)
            await pump.run_until_read_aio(
                pump.read_aio(stream, self._read, self.sender, self.silence_seconds), self._write_aio(stream)
            )
        finally:
            cut(stream)  # The call is over or given up, so messages on their way do not matter.
        raise _Ended("the gateway ended the session")

    async def _write_aio(self, stream: Stream[pb.FromWorker, pb.ToWorker]) -> None:
        await pump.write_aio(stream, wire.from_worker_message, self.receiver, self.silence_seconds)
        await stream.end()

    def _read(self, message: pb.ToWorker) -> ToWorker | None:
        self._first_message = True
        self._first_message_or_end.set()
        return wire.read_to_worker(message)


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise SessionLost(f"{address} is no address of a gateway (host:port)")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _reason(error: Exception, address: str) -> SessionEnded:
    """Returns the reason of the session's end:

    - A status of the gateway is translated by its code.
    - Silence, and data that is no message, have a sentence of their own.
    - A connection that could not be made, or is lost, is explained by its error.
    """
    gateway = f"the gateway at {address}"
    match error:
        case SessionEnded():
            return error
        case GRPCError():
            return _meaning_of_status(error.status, error.message or error.status.name, gateway)
        case StreamFailed():
            return SessionLost(f"{gateway} was given up: {error}")
        case _Ended():
            return SessionLost(f"{gateway} ended the session")
        case StreamTerminatedError():
            return SessionLost(f"the connection to {gateway} broke: {error}")
        case ssl.SSLCertVerificationError():
            return SessionLost(
                f"the certificate of {gateway} is not to be trusted: {error.verify_message}; "
                "worker.tls_ca names those that are"
            )
        case OSError():
            return SessionLost(f"can't connect to {gateway}: {error.strerror or error}")
        case _:
            log.error("session.call_failed", address=address, exc_info=error)
            return SessionLost(f"the session with {gateway} failed: {type(error).__name__}")


def _meaning_of_status(status: Status, message: str, gateway: str) -> SessionEnded:
    if status in _REGISTER_AGAIN:
        return SessionRefused(f"{gateway} refused the session: {message}", register_again=True)
    if status in _REFUSED:
        return SessionRefused(f"{gateway} refused the session: {message}", register_again=False)
    return SessionLost(f"{gateway} ended the session: {message}")
