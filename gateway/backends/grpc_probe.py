"""Probes whether a replica is alive, over a connection of its own, so that a probe never waits behind a request
(H3)."""

import errno
from socket import gaierror
from typing import Any, Final

import trio
from google.protobuf.message import DecodeError
from grpclib import GRPCError, Status
from grpclib.client import Stream
from grpclib.exceptions import StreamTerminatedError

from gateway.backends import metadata as names
from gateway.backends.dial import Dial, dial
from gateway.backends.pb import backend_pb2 as pb
from gateway.backends.pb.backend_grpc import BackendStub
from gateway.backends.protocol import Target
from gateway.bridge import Bridge, CancelledByAsyncio
from gateway.domain.cluster import ProbeOutcome
from gateway.domain.ids import Address

CONNECT_SHARE: Final = 0.125
"""The share of the probe's time for each of the two connects that distinguish a busy replica from another program, and
from a machine that cannot be reached."""

NO_WAY_THERE: Final = frozenset(
    {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN, errno.ETIMEDOUT}
)
"""The errors of the network if it cannot reach the machine. They say nothing about the replica."""

TOO_BUSY: Final = frozenset({Status.RESOURCE_EXHAUSTED, Status.DEADLINE_EXCEEDED})
"""How Health is answered by a server whose threads all work on calls. Any other error is no answer of a healthy
backend: a proxy whose backend is gone says UNAVAILABLE, and who does not know our token UNAUTHENTICATED."""
PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0"
"""The beginning of an HTTP/2 connection (RFC 9113, 3.4). The last bytes are an empty SETTINGS frame."""
FRAME_TYPE_AT: Final = 3
SETTINGS: Final = b"\x04"
"""The type of the first frame that either side sends."""


class _NotOurs(Exception):
    """The answer did not come from a backend, or from none that works."""


class _TooBusy(Exception):
    """It lives, and has no time for Health."""


class GrpcProbe:
    """`Probe` over real connections. It raises nothing that the other side can cause, and takes no longer than its time
    limit."""

    def __init__(
        self, bridge: Bridge, timeout_seconds: float, dial: Dial = dial, *, connect_share: float = CONNECT_SHARE
    ) -> None:
        self._bridge = bridge
        self._ask_seconds = timeout_seconds * (1 - 2 * connect_share)
        self._connect_seconds = timeout_seconds * connect_share
        self._dial = dial

    async def __call__(self, target: Target) -> ProbeOutcome:
        """- answered as Health is, or refused as our protocol refuses calls (full, draining): alive;
        - answered that it is too busy (`TOO_BUSY`): busy;
        - anything else answered, any other error of gRPC's included: gone;
        - refused by the machine, or the connection broke: gone;
        - no way to the machine: unreachable;
        - silent: one TCP connect decides between busy and unreachable.
        """
        with trio.move_on_after(self._ask_seconds):
            try:
                await self._bridge.run(self._ask_aio, target)
            except _TooBusy:
                return ProbeOutcome.BUSY
            except OSError as error:
                no_way = isinstance(error, gaierror) or error.errno in NO_WAY_THERE
                return ProbeOutcome.UNREACHABLE if no_way else ProbeOutcome.GONE
            except (_NotOurs, GRPCError, StreamTerminatedError, CancelledByAsyncio):
                return ProbeOutcome.GONE
            return ProbeOutcome.ALIVE
        with trio.move_on_after(self._connect_seconds):
            if await _speaks_otherwise(target.address):
                return ProbeOutcome.GONE
        accepted = await can_connect(target.address, self._connect_seconds)
        return ProbeOutcome.BUSY if accepted else ProbeOutcome.UNREACHABLE

    async def _ask_aio(self, target: Target) -> None:
        channel = self._dial(target.address)
        try:
            async with BackendStub(channel).Health.open(metadata=names.bearer(target.token)) as stream:
                await stream.send_message(pb.HealthMessage(), end=True)
                await _read_answer_aio(stream)
        except AttributeError as error:  # grpclib raises this for a connection that broke before the call began.
            raise _NotOurs("it hung up, or does not speak HTTP/2") from error
        finally:
            channel.close()


async def _read_answer_aio(stream: Stream[Any, pb.Reply]) -> None:
    """Raises `_TooBusy`, `_NotOurs`."""
    try:
        reply = await stream.recv_message()
        await stream.recv_trailing_metadata()
    except GRPCError as error:
        speaks_grpc = stream.initial_metadata is not None  # else the status is one of HTTP, or its content type is
        if speaks_grpc and names.REFUSED in (stream.trailing_metadata or {}):
            return
        if speaks_grpc and error.status in TOO_BUSY:
            raise _TooBusy from error
        raise _NotOurs(error.message) from error
    except (DecodeError, NotImplementedError, AssertionError) as error:
        raise _NotOurs(str(error)) from error
    if reply is None or reply.message != names.HEALTHY:
        raise _NotOurs("Health was not answered as it is")


async def _speaks_otherwise(address: Address) -> bool:
    """Returns whether the answers from there are no HTTP/2. h2 takes the bytes of another protocol for the head of a
    large frame, and waits for the rest. If nothing comes, as from a busy replica, this waits until it is cancelled."""
    host, _, port = address.rpartition(":")
    try:
        async with await trio.open_tcp_stream(host, int(port)) as stream:
            await stream.send_all(PREFACE)
            first_bytes = b""
            while len(first_bytes) <= FRAME_TYPE_AT and (more := await stream.receive_some()):
                first_bytes += more
    except (OSError, trio.BrokenResourceError):
        return False
    return first_bytes[FRAME_TYPE_AT : FRAME_TYPE_AT + 1] not in {b"", SETTINGS}


async def can_connect(address: Address, timeout_seconds: float) -> bool:
    """Returns whether the machine accepts a TCP connection there. Its kernel does that even for a process that is too
    busy to accept one (pitfall 38)."""
    host, _, port = address.rpartition(":")
    with trio.move_on_after(timeout_seconds):
        try:
            stream = await trio.open_tcp_stream(host, int(port))
        except OSError:
            return False
        await trio.aclose_forcefully(stream)
        return True
    return False
