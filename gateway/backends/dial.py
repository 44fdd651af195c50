"""Dials backends over grpclib, for rare calls: Health, LoadModel, Free."""

from collections.abc import Callable

from grpclib.client import Channel
from grpclib.config import Configuration

from gateway.backends.patient_channel import PatientChannel
from gateway.domain.ids import Address

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
