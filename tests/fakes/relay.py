"""A TCP relay between a worker and a gateway that can stop carrying, either way, or break the connection."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


class Way:
    """One direction. Held: nothing more is taken, so that the sender's buffers fill up, and nobody is told."""

    def __init__(self) -> None:
        self._open = trio.Event()
        self._open.set()

    def hold(self) -> None:
        self._open = trio.Event()

    def release(self) -> None:
        self._open.set()

    async def carry(self, source: trio.SocketStream, target: trio.SocketStream) -> None:
        try:
            while True:
                await self._open.wait()
                data = await source.receive_some(4096)
                await self._open.wait()
                await target.send_all(data)
                if not data:
                    await target.send_eof()
                    return
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await trio.aclose_forcefully(target)


class Relay:
    """`up`: from the worker to the gateway; `down`: back."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.up, self.down = Way(), Way()
        self.address = ""
        self._streams: list[trio.SocketStream] = []

    @property
    def connections(self) -> int:
        """Made so far."""
        return len(self._streams) // 2

    async def carry(self, worker: trio.SocketStream) -> None:
        gateway = await trio.open_tcp_stream("127.0.0.1", self._port)
        self._streams += [worker, gateway]
        async with worker, gateway, trio.open_nursery() as nursery:
            nursery.start_soon(self.up.carry, worker, gateway)
            nursery.start_soon(self.down.carry, gateway, worker)

    async def hang_up(self) -> None:
        for stream in self._streams:
            await trio.aclose_forcefully(stream)


@asynccontextmanager
async def open_relay(port: int) -> AsyncIterator[Relay]:
    """In front of what listens at `port` of this machine."""
    relay = Relay(port)
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, relay.carry, listeners)
        relay.address = f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        yield relay
        nursery.cancel_scope.cancel()
