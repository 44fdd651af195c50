"""Connections without sockets: who listens where, which machine is cut off, and what breaks when a process ends.

Both ends of a connection are grpclib's own HTTP/2; only the bytes travel through `Pipe` instead of TCP.
"""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from socket import SOCK_STREAM, AddressFamily, SocketKind
from typing import Any, Protocol

import trio
from grpclib.client import Channel
from grpclib.protocol import H2Protocol

from gateway.domain.ids import Address
from gateway.domain.model_spec import ModelSpec
from tests.fakes.in_memory_transport import ClientEnd, ServerEnd
from tests.simulation.world import World


class Listener(Protocol):
    """A process that may accept connections."""

    @property
    def listens(self) -> bool: ...

    def accept(self) -> H2Protocol:
        """The server's end of a new connection."""


class Pipe(asyncio.Transport):
    """One end of a connection. What is written arrives at the other end in order, also around a cut."""

    def __init__(self, network: "Network", host: str, protocol: H2Protocol) -> None:
        super().__init__()
        self._network = network
        self._host = host
        self._protocol = protocol
        self._loop = asyncio.get_event_loop()
        self._closed = False
        self.peer = self

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if data and not self._closed:
            self._loop.call_soon(self._network.carry, self._host, lambda: self.peer.arrive(bytes(data)))

    def arrive(self, data: bytes) -> None:
        if not self._closed:
            self._protocol.data_received(data)

    def is_closing(self) -> bool:
        return self._closed

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._loop.call_soon(self._network.carry, self._host, self.peer.lose)
            self._loop.call_soon(self._protocol.connection_lost, None)

    def lose(self) -> None:
        """The other end is gone."""
        if not self._closed:
            self._closed = True
            self._protocol.connection_lost(None)


@dataclass
class Host:
    """A machine's place in the network."""

    cut_since: float = float("inf")
    cut_until: float = float("-inf")
    held: list[Callable[[], None]] = field(default_factory=list)
    """What is on its way while the machine is cut off; TCP sends it again."""

    @property
    def is_cut(self) -> bool:
        return trio.current_time() < self.cut_until

    async def wait_reachable_aio(self) -> None:
        while self.is_cut:  # noqa: ASYNC110 - a cut may be prolonged meanwhile
            await asyncio.sleep(self.cut_until - trio.current_time())

    @property
    def is_holding(self) -> bool:
        """What is sent now does not arrive now."""
        return self.is_cut or bool(self.held)


class Network:
    """Between the gateway and the machines. A worker reaches its own backends whatever happens to the network."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.hosts: dict[str, Host] = {}
        self._listening: dict[Address, Listener] = {}
        self._connections: dict[Address, list[Pipe | ServerEnd]] = {}

    def listen(self, address: Address, listener: Listener) -> None:
        self._listening[address] = listener

    def close(self, address: Address) -> None:
        """The process there has ended."""
        self._listening.pop(address, None)
        self.reset(address)

    def reset(self, address: Address) -> None:
        """Breaks the connections to `address`; new ones are possible."""
        for pipe in self._connections.pop(address, []):
            pipe.close()

    def host(self, address: str) -> Host:
        return self.hosts.setdefault(address.rpartition(":")[0], Host())

    def carry(self, host: str, arrive: Callable[[], None]) -> None:
        place = self.hosts.get(host)
        if place is not None and place.is_holding:
            place.held.append(arrive)
        else:
            arrive()

    def cut(self, name: str, seconds: float) -> None:
        """From this moment on; whoever does it has to call `run_cut` as well."""
        place, now = self.hosts.setdefault(name, Host()), trio.current_time()
        place.cut_since, place.cut_until = min(place.cut_since, now), max(place.cut_until, now + seconds)

    def cut_seconds(self, address: str) -> float:
        """For how long nothing has got through to the machine."""
        return max(0.0, trio.current_time() - self.host(address).cut_since)

    async def run_cut(self, name: str, seconds: float) -> None:
        """Nothing gets through to the machine for `seconds`, then everything that was sent meanwhile."""
        self.cut(name, seconds)
        place = self.hosts[name]
        while place.is_cut:  # noqa: ASYNC110 - a cut may be prolonged meanwhile
            await trio.sleep_until(place.cut_until)
        place.cut_since = float("inf")
        held, place.held = place.held, []
        for arrive in held:
            arrive()

    def dial(self, address: Address) -> Channel:
        return SimChannel(self, address)

    async def open_transport(self, address: Address) -> ClientEnd:
        """A connection of the gateway's calls. It and its bytes are held up as those of channels are."""
        place = self.host(address)
        while place.is_cut:  # noqa: ASYNC110 - a cut may be prolonged meanwhile
            await trio.sleep_until(place.cut_until)
        await trio.lowlevel.checkpoint()
        listener = self._listening.get(address)
        if listener is None or not listener.listens:
            raise ConnectionRefusedError(f"connection to {address} refused")
        loop, host = asyncio.get_event_loop(), address.rpartition(":")[0]
        client = ClientEnd(listener.accept(), lambda act: loop.call_soon(self.carry, host, act))
        alive = [pipe for pipe in self._connections.get(address, []) if not pipe.is_closing()]
        self._connections[address] = [*alive, client.peer]
        return client

    def dial_locally(self, address: Address) -> Channel:
        return SimChannel(self, address, local=True)

    async def connect_aio(self, address: Address, client: H2Protocol, *, local: bool) -> H2Protocol:
        place = self.host(address)
        if not local:
            await place.wait_reachable_aio()
        listener = self._listening.get(address)
        if listener is None or not listener.listens:
            raise ConnectionRefusedError(f"connection to {address} refused")
        self._join("" if local else address.rpartition(":")[0], address, client, listener.accept())
        return client

    def _join(self, host: str, address: Address, client: H2Protocol, server: H2Protocol) -> None:
        ours, theirs = Pipe(self, host, client), Pipe(self, host, server)
        ours.peer, theirs.peer = theirs, ours
        alive = [pipe for pipe in self._connections.get(address, []) if not pipe.is_closing()]
        self._connections[address] = [*alive, theirs]
        client.connection_made(ours)
        server.connection_made(theirs)

    async def connect(self, address: Address) -> None:
        """A bare TCP connect, as the kernel answers it: also for a process that is too busy to."""
        await trio.lowlevel.checkpoint()
        if self.host(address).is_cut:
            await trio.sleep_forever()
        listener = self._listening.get(address)
        if listener is None or not listener.listens:
            raise ConnectionRefusedError(f"connection to {address} refused")

    @contextmanager
    def replacing_sockets(self) -> Iterator[None]:
        """Whoever opens a Trio socket in this run gets one of this network."""
        before = trio.socket.set_custom_socket_factory(SocketFactory(self))
        try:
            yield
        finally:
            trio.socket.set_custom_socket_factory(before)


async def find_no_file(_spec: ModelSpec) -> None:
    """An `EstimateRequirement`. The real one reads in a thread, which ends at a moment that no seed decides."""
    await trio.lowlevel.checkpoint()


class SimChannel(Channel):
    """grpclib's channel; only the connection is another."""

    def __init__(self, network: Network, address: Address, *, local: bool = False) -> None:
        host, _, port = address.rpartition(":")
        super().__init__(host, int(port))
        self._network = network
        self._address = address
        self._local = local

    async def _create_connection(self) -> H2Protocol:
        return await self._network.connect_aio(self._address, self._protocol_factory(), local=self._local)


class SimSocket(trio.socket.SocketType):
    """Can be connected, and takes what is sent. Nothing ever comes back, as from a process that is too busy."""

    def __init__(self, network: Network) -> None:
        self._network = network

    @property
    def type(self) -> SocketKind:
        return SOCK_STREAM

    async def connect(self, address: Any) -> None:
        host, port = address
        await self._network.connect(Address(f"{host}:{port}"))

    @property
    def did_shutdown_SHUT_WR(self) -> bool:  # noqa: N802 - the name that the interface has
        return False

    async def send(self, data: Any, _flags: int = 0) -> int:
        await trio.lowlevel.checkpoint()
        return len(data)

    async def recv(self, _bytes_max: int, _flags: int = 0) -> bytes:
        await trio.sleep_forever()

    def setsockopt(self, *_arguments: Any) -> None:
        """There is nothing to be set."""

    def close(self) -> None:
        """There is nothing to be closed."""


class SocketFactory(trio.abc.SocketFactory):
    def __init__(self, network: Network) -> None:
        self._network = network

    def socket(
        self,
        family: AddressFamily | int = AddressFamily.AF_INET,
        type: SocketKind | int = SOCK_STREAM,  # noqa: A002 - the name that the interface has
        proto: int = 0,
    ) -> trio.socket.SocketType:
        return SimSocket(self._network)
