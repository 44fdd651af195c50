"""One gRPC connection per replica, kept while the replica is in the fleet."""

from collections.abc import Callable, Container
from dataclasses import dataclass

from grpclib.client import Channel
from grpclib.config import Configuration

from gateway.backends.patient_channel import PatientChannel
from gateway.domain.ids import Address, ReplicaId

Dial = Callable[[Address], Channel]
"""Makes an unconnected channel. It is called on the asyncio side. It is a seam of the composition root."""

STREAM_WINDOW_BYTES = 128 * 1024
"""The number of bytes that a backend may send ahead per stream. It is small, so that a slow client slows down its own
backend."""


def dial(address: Address) -> Channel:
    """Makes a channel to `address` (host:port) that connects with its first call."""
    host, _, port = address.rpartition(":")
    # gRPC's own keepalive is off: backends keep its default policy, which answers pings within five minutes by hanging
    # up, and a llama.cpp that loads a model answers nothing at all (pitfall 34). `dead_peers` is TCP's.
    return PatientChannel(host, int(port), config=Configuration(http2_stream_window_size=STREAM_WINDOW_BYTES))


@dataclass(frozen=True)
class ChannelPoolStatistics:
    """The number of channels of a pool."""

    open: int
    """The number of replicas with a channel, connected or not."""


class ChannelPool:
    """The channels by replica id, because an address never identifies a replica (H5). A replica with a new address gets
    a new channel: the old one may lead to another process by now."""

    def __init__(self, dial: Dial = dial) -> None:
        self._dial = dial
        self._channels: dict[ReplicaId, Channel] = {}
        self._addresses: dict[ReplicaId, Address] = {}

    def get(self, replica_id: ReplicaId, address: Address) -> Channel:
        """Returns the replica's channel. For the asyncio side only: a new channel binds to the running loop."""
        channel = self._channels.get(replica_id)
        if channel is not None and self._addresses[replica_id] != address:
            self._channels.pop(replica_id).close()
            channel = None
        if channel is None:
            channel = self._channels[replica_id] = self._dial(address)
            self._addresses[replica_id] = address
        return channel

    def keep_only(self, alive: Container[ReplicaId]) -> None:
        """Closes the channels of all other replicas; their open calls end with a lost connection."""
        for replica_id in [known for known in self._channels if known not in alive]:
            self._channels.pop(replica_id).close()
            del self._addresses[replica_id]

    def close(self) -> None:
        """Closes all channels; their open calls end with a lost connection."""
        self.keep_only(())

    def statistics(self) -> ChannelPoolStatistics:
        """Returns the number of replicas that have a channel now."""
        return ChannelPoolStatistics(open=len(self._channels))
