"""One gRPC connection per replica, kept while the replica is in the fleet."""

from collections.abc import Callable, Container
from dataclasses import dataclass

from grpclib.client import Channel
from grpclib.config import Configuration

from gateway.backends.patient_channel import PatientChannel
from gateway.domain.ids import Address, ReplicaId

Dial = Callable[[Address], Channel]
"""Makes an unconnected channel; called on the asyncio side. A seam of the composition root."""

STREAM_WINDOW_BYTES = 128 * 1024
"""What a backend may have in flight to us per stream: small, so that a slow client slows its own backend."""


def dial(address: Address) -> Channel:
    """Makes a channel to `address` (host:port) that connects with its first call."""
    host, _, port = address.rpartition(":")
    # No keepalive of gRPC's: backends keep its default policy, which answers pings within five minutes by hanging up,
    # and a llama.cpp that loads a model answers nothing at all (pitfall 34). `dead_peers` is TCP's.
    return PatientChannel(host, int(port), config=Configuration(http2_stream_window_size=STREAM_WINDOW_BYTES))


@dataclass(frozen=True)
class ChannelPoolStatistics:
    """Counts the channels of a pool."""

    open: int
    """Replicas with a channel, connected or not."""


class ChannelPool:
    """Channels by replica id, since an address never stands for a replica (H5). One whose worker says another address
    than before has another channel: the old one may lead to somebody else by now."""

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
        """Counts the replicas that have a channel now."""
        return ChannelPoolStatistics(open=len(self._channels))
