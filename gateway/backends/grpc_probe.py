"""Asks a replica whether it is alive, over a connection of its own: a probe never waits behind a request (H3)."""

import errno
from socket import gaierror
from typing import Final

import trio
from grpclib import GRPCError, Status
from grpclib.exceptions import StreamTerminatedError

from gateway.backends import metadata as names
from gateway.backends.channel_pool import Dial, dial
from gateway.backends.pb import backend_pb2 as pb
from gateway.backends.pb.backend_grpc import BackendStub
from gateway.backends.protocol import Target
from gateway.bridge import Bridge, CancelledByAsyncio
from gateway.domain.ids import Address
from gateway.domain.probe import ProbeOutcome

CONNECT_SHARE: Final = 0.25
"""Part of the probe's time that is kept for the connect that tells a busy replica from one that can't be reached."""

NO_WAY_THERE: Final = frozenset(
    {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN, errno.ETIMEDOUT}
)
"""What the network says when it can't even ask the machine; that tells nothing of the replica."""


class GrpcProbe:
    """`Probe` over real connections. Raises nothing that the other side can cause; takes no longer than its time."""

    def __init__(self, bridge: Bridge, timeout_seconds: float, dial: Dial = dial) -> None:
        self._bridge = bridge
        self._timeout_seconds = timeout_seconds
        self._dial = dial

    async def __call__(self, target: Target) -> ProbeOutcome:
        """- answered, in whatever words: alive, unless it does not know our token: then it is somebody else;
        - refused, or the connection broke: gone;
        - no way to the machine: unreachable;
        - silent: one TCP connect decides between busy and unreachable.
        """
        with trio.move_on_after(self._timeout_seconds * (1 - CONNECT_SHARE)):
            try:
                await self._bridge.run(self._ask_aio, target)
            except GRPCError as error:
                return ProbeOutcome.GONE if error.status is Status.UNAUTHENTICATED else ProbeOutcome.ALIVE
            except OSError as error:
                no_way = isinstance(error, gaierror) or error.errno in NO_WAY_THERE
                return ProbeOutcome.UNREACHABLE if no_way else ProbeOutcome.GONE
            except (StreamTerminatedError, CancelledByAsyncio):
                return ProbeOutcome.GONE
            return ProbeOutcome.ALIVE
        accepted = await can_connect(target.address, self._timeout_seconds * CONNECT_SHARE)
        return ProbeOutcome.BUSY if accepted else ProbeOutcome.UNREACHABLE

    async def _ask_aio(self, target: Target) -> None:
        channel = self._dial(target.address)
        try:
            await BackendStub(channel).Health(pb.HealthMessage(), metadata=names.bearer(target.token))
        finally:
            channel.close()


async def can_connect(address: Address, timeout_seconds: float) -> bool:
    """Whether the machine takes a TCP connection there. Its kernel does so for a process that is too busy to (38)."""
    host, _, port = address.rpartition(":")
    with trio.move_on_after(timeout_seconds):
        try:
            stream = await trio.open_tcp_stream(host, int(port))
        except OSError:
            return False
        await trio.aclose_forcefully(stream)
        return True
    return False
